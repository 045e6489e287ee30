"""Sentencepiece models read without sentencepiece.

``ids.json`` holds what sentencepiece itself gave for 300 texts and the small BPE model beside it:
700 pieces with byte fallback, made as Llama-2's was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from specx.checkpoints.sentencepiece import read_sentencepiece
from specx.checkpoints.tokenizer import read_tokenizer
from specx.errors import ModelError

DATA = Path(__file__).parent.parent / "data" / "sentencepiece"
RECORDED: dict[str, Any] = json.loads((DATA / "ids.json").read_text(encoding="utf-8"))


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + varint(rest)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def changed(tmp_path: Path, *more: bytes) -> Path:
    """The model with settings appended: of a field that comes twice, the last one counts."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes((DATA / "tokenizer.model").read_bytes() + b"".join(more))
    return path


def test_ids_and_texts_are_sentencepieces() -> None:
    tokenizer = read_tokenizer(DATA)
    assert [tokenizer.encode(text) for text, _ in RECORDED["texts"]] == [
        ids for _, ids in RECORDED["texts"]
    ]
    decoded = [tokenizer.decode(ids, skip_special=True) for _, ids in RECORDED["texts"]]
    assert decoded == RECORDED["decoded"]


@pytest.mark.parametrize(
    ("settings", "begins"), [("{}", True), ('{"add_bos_token": false}', False)], ids=str
)
def test_the_settings_say_whether_bos_is_added(tmp_path: Path, settings: str, begins: bool) -> None:
    (tmp_path / "tokenizer_config.json").write_text(settings)
    shutil.copy(DATA / "tokenizer.model", tmp_path)
    assert read_tokenizer(tmp_path).begin_ids == [1] * begins


def test_tokens_that_are_listed_beside_the_model(tmp_path: Path) -> None:
    shutil.copy(DATA / "tokenizer.model", tmp_path)
    listed = {"700": {"content": "<|user|>", "special": True}, "1": {"content": "<s>"}}
    settings = {"added_tokens_decoder": listed, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 701}')
    tokenizer = read_tokenizer(tmp_path)
    assert len(tokenizer) == 702
    assert tokenizer.encode_rendered("<|user|>")[-1:] == [700]
    assert tokenizer.token_texts(700) == {700: "<|user|>", 701: "[PAD]"}
    assert tokenizer.eos_id == 2
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 705}')
    with pytest.raises(ModelError, match="'\\[PAD\\]', does not follow the vocabulary"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (field(2, field(3, 1)), "it is no BPE model"),
        (field(2, field(3, 2) + field(24, 1)), "spaces after words"),
        (field(3, field(2, b"map")), "maps characters"),
        (field(3, field(4, 1)), "drops spaces"),
        (field(3, field(4, 0) + field(5, 0)), "keeps spaces as they are"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, more: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_sentencepiece(changed(tmp_path, more), begins=True)
    assert "tokenizer.json" in caught.value.hints[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff" * 40,
        b"\x0a\x7fabc",
        (DATA / "tokenizer.model").read_bytes()[:-3],
        (DATA / "tokenizer.model").read_bytes()[:999],
        field(1, field(1, b"\xff")),
        field(1, 7),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer.model is (damaged|not supported)"):
        read_tokenizer(tmp_path)
