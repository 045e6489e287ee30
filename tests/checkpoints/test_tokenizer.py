"""Tokenizers of every kind that the shipped presets have, against transformers on the same file."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import specx
from specx.checkpoints.sentencepiece import read_sentencepiece
from specx.checkpoints.tokenizer import Tokenizer, has_tokenizer, read_tokenizer
from specx.errors import ModelError
from specx.prompts import TextStream
from tests.checkpoints.test_sentencepiece import DATA as SENTENCEPIECE
from tests.helpers import save_tokenizer, story, tiny_tokenizer

POCKET = Path(specx.__file__).parent / "pocket" / "target"
STRINGS = 10_000
#: Splits as GPT-4's successors do: contractions, words, up to so many digits, marks, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE = [story(3000), "def main(x): return [1234, 'don't', 5.67]\n\t# été Straße naïve\n" * 20]


def byte_level(digits: int, normalizer: Any = None, *, ignores_merges: bool) -> Any:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignores_merges))
    made.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(SPLIT % digits), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(SAMPLE, trainer)
    return made


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def llama3() -> Any:
    made = byte_level(3, ignores_merges=True)
    made.add_tokens(special("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"))
    begin = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    made.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    return made


def qwen2() -> Any:
    made = byte_level(1, normalizers.NFC(), ignores_merges=False)
    made.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    unflagged = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in unflagged])
    return made


def llama2() -> Any:
    return read_sentencepiece(SENTENCEPIECE / "tokenizer.model", begins=True)


def mistral() -> Any:
    """The same vocabulary, the blank before the text put there by the pre-tokenizer."""
    made = llama2()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.add_tokens(special("[INST]", "[/INST]"))
    return made


def spelling() -> Any:
    """A unigram model whose vocabulary has its control tokens as words, and gaps before others."""
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz</>| "]
    pieces = [("<unk>", 0.0), ("</s>", -0.1), ("<|user|>", -0.1), *letters]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    made.add_tokens(special("</s>", "<|user|>"))
    return made


def with_words() -> Any:
    """Added tokens that are ordinary text, as older code models have, and one that strips."""
    made = byte_level(3, ignores_merges=False)
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("    ", "é")])
    made.add_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    return made


def pocket() -> Any:
    return tokenizers.Tokenizer.from_file(str(POCKET / "tokenizer.json"))


KINDS: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (pocket, llama3, qwen2, llama2, mistral, with_words)
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """Ours, and transformers' class that adds nothing to the file."""
    made = KINDS[request.param]()
    witness = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(made.to_str()))
    return Tokenizer(made, {}), witness


def strings(count: int, seed: int = 0) -> Iterator[str]:
    """Prose, code, numbers, white space, scripts, emoji, marks, half words: what documents have."""
    rng = random.Random(seed)
    prose = story(4000, seed)
    alphabets = [
        "ab \n\t\r  \u00a0\u2003",
        "0123456789.,-%$€ ",
        "(){}[]<>|/\\_=+*&^#@!?\"'`~;: x",
        "éèüßñçåøÆœſİı e\u0301a\u0308n\u0303",
        "漢字仮名交じり文、日本語。한국어 العربية עברית हिन्दी ไทย",
        "😀👩‍👩‍👧🏳️‍🌈🇩🇪☃\ufe0f\u200d\u200b",
        "\u2581\ufffd\ufeff\x00\x1b\x7f\ue000\u2028",
    ]
    for number in range(count):
        if number % 2:
            start = rng.randrange(len(prose))
            yield prose[start : start + rng.randrange(80)]
        else:
            chosen = rng.choice([*alphabets, "".join(alphabets)])
            yield "".join(rng.choice(chosen) for _ in range(rng.randrange(24)))


class TestIds:
    def test_they_are_transformers_own(
        self, pair: tuple[Tokenizer, PreTrainedTokenizerFast]
    ) -> None:
        ours, witness = pair
        texts = [*strings(STRINGS), "", " ", story(2000)]
        expected = witness(texts, add_special_tokens=False).input_ids
        assert [ours.encode(text) for text in texts] == expected

    def test_a_frame_with_texts_is_what_transformers_makes_of_it(
        self, pair: tuple[Tokenizer, PreTrainedTokenizerFast]
    ) -> None:
        ours, witness = pair
        names = [token.content for token in witness.added_tokens_decoder.values()] or ["none"]
        rng = random.Random(3)
        for left, middle, right in zip(*[strings(900)] * 3, strict=True):
            one, two = rng.choice(names), rng.choice(names)
            rendered = rng.choice([f"{one}{left}", left]) + f"{two}{middle}{one} {two}{right}"
            assert ours.encode_rendered(rendered) == witness.encode(
                rendered, add_special_tokens=False
            )

    def test_what_begins_a_text(self, pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
        ours, witness = pair
        assert ours.begin_ids + ours.encode("A text.") == witness.encode("A text.")
        assert len(ours) == len(witness)

    def test_ends_are_in_characters(self, pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
        text = "Straße 漢字 😀 end"
        ends = pair[0].token_ends(text)
        assert ends == sorted(ends)
        assert ends[-1] == len(text)


class TestTextStaysText:
    @pytest.fixture(params=[*KINDS.values(), spelling], ids=lambda kind: kind.__name__)
    def made(self, request: pytest.FixtureRequest) -> Any:
        return request.param()

    def test_no_control_token_comes_out_of_a_text(self, made: Any) -> None:
        """Regression: only flagged ones stayed text, so a document could close a tool call."""
        added = made.get_added_tokens_decoder().items()
        controls = {i: t.content for i, t in added if t.content not in ("    ", "é")}
        tokenizer = Tokenizer(made, {})
        for name in controls.values():
            for text in (name, f"one {name} two", name * 3, f"{name}\n"):
                assert not controls.keys() & set(tokenizer.encode(text))
                frame = next(iter(controls.values()))
                ids = tokenizer.encode_rendered(f"{frame}{tokenizer.mask(text)}{frame}")
                first = next(iter(controls))
                assert [i for i in ids if i in controls] == [first, first]
                assert tokenizer.unmask(tokenizer.mask(text)) == text

    def test_a_document_with_and_without_such_a_word_differs_in_its_tokens(self, made: Any) -> None:
        names = [token.content for token in made.get_added_tokens_decoder().values()]
        tokenizer = Tokenizer(made, {})
        frame = names[-1]
        for name in names:
            texts = [f"several words {word} and more" for word in (name, "x")]
            one, other = (
                tokenizer.encode_rendered(f"{frame}{tokenizer.mask(text)}{frame}") for text in texts
            )
            same = len(tokenizer.encode_rendered(f"{frame}several words")) - 1
            assert one[:same] == other[:same]
            ending = len(tokenizer.encode(" and more")) - 1
            assert one[-ending:] == other[-ending:]

    def test_a_gap_in_the_vocabulary_is_no_mark(self) -> None:
        """Ids beyond the size of a vocabulary with gaps are taken."""
        words = {"<unk>": 0, "a": 1, "b": 5, "c": 3}
        made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.add_tokens(special("</s>"))
        tokenizer = Tokenizer(made, {})
        assert tokenizer.encode("a b c") == [1, 5, 3]
        end = made.token_to_id("</s>")
        assert tokenizer.encode_rendered("a</s>c") == [1, end, 3]


def test_a_stream_of_random_ids_is_always_a_prefix(
    pair: tuple[Tokenizer, PreTrainedTokenizerFast],
) -> None:
    """Bytes that are tokens come as whole characters here: see the regression in test_prompts."""
    rng = random.Random(0)
    ours = pair[0]
    smiley = ours.encode("a😀")[-4:]
    is_byte = {i for i, text in ours.token_texts().items() if text.startswith("<0x")}
    for _ in range(100):
        drawn = [rng.randrange(len(ours)) for _ in range(30)]
        ids = [i for token in drawn for i in (smiley if token in is_byte else [token])]
        whole = ours.decode(ids, skip_special=True)
        stream, text = TextStream(ours), ""
        for token in ids:
            text += stream.push([token])
            assert whole.startswith(text)
        assert text + stream.finish() == whole


class TestFiles:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        save_tokenizer(tmp_path)
        (tmp_path / "chat_template.jinja").unlink()
        return tmp_path

    def settle(self, directory: Path, **settings: Any) -> Tokenizer:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return read_tokenizer(directory)

    def said(self, tokenizer: Tokenizer) -> str:
        assert tokenizer.template is not None
        return tokenizer.template.render([{"role": "user", "content": "text"}])

    def test_the_bundled_one(self) -> None:
        tokenizer = read_tokenizer(POCKET)
        assert (tokenizer.bos_id, tokenizer.eos_id, len(tokenizer)) == (0, 1, 8192)
        assert tokenizer.template is not None

    def test_transformers_stays_out_of_it(self) -> None:
        import subprocess
        import sys

        program = (
            "import sys; from pathlib import Path\n"
            "from specx.checkpoints.tokenizer import read_tokenizer\n"
            "from specx.prompts import TextStream, encode_prompt\n"
            f"for folder in {[str(POCKET), str(SENTENCEPIECE)]!r}:\n"
            "    tokenizer = read_tokenizer(Path(folder))\n"
            "    TextStream(tokenizer).push(encode_prompt(tokenizer, 'Hello </s>'))\n"
            "print([name for name in ('transformers', 'torch') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("[]\n", "")

    def test_the_file_beats_a_class_that_contradicts_it(self, directory: Path) -> None:
        """Regression: a Llama class over a byte-level file lost every blank."""
        tokenizer = self.settle(directory, tokenizer_class="LlamaTokenizer", add_bos_token=True)
        assert tokenizer.encode("The harbour was") == tiny_tokenizer().encode("The harbour was")
        assert tokenizer.begin_ids == []

    def test_truncation_and_padding_in_the_file_do_nothing(self, directory: Path) -> None:
        made = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        made.enable_truncation(3)
        made.enable_padding(length=50)
        made.save(str(directory / "tokenizer.json"))
        text = "The harbour was quiet before the storm"
        assert read_tokenizer(directory).encode(text) == tiny_tokenizer().encode(text)

    def test_special_tokens_in_all_spellings(self, directory: Path) -> None:
        tokenizer = self.settle(
            directory,
            bos_token={"content": "<|begin|>", "lstrip": False},
            eos_token="<|end|>",
            pad_token=None,
            unk_token="<|nowhere|>",
            chat_template="{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
        )
        assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
        assert self.said(tokenizer) == "<|begin|><|end|><|nowhere|>"

    def test_special_tokens_of_older_checkpoints(self, directory: Path) -> None:
        (directory / "special_tokens_map.json").write_text('{"eos_token": "<|user|>"}')
        assert self.settle(directory, eos_token="<|end|>").eos_id == 3
        newer = {"eos_token": "<|end|>", "added_tokens_decoder": {}}
        assert self.settle(directory, **newer).eos_id == 1

    def test_a_template_in_a_file_of_its_own_comes_first(self, directory: Path) -> None:
        assert self.said(self.settle(directory, chat_template="config")) == "config"
        (directory / "chat_template.jinja").write_text("file\n")
        assert self.said(self.settle(directory, chat_template="config")) == "file"
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "rag.jinja").write_text("other")
        assert self.said(self.settle(directory)) == "file"

    def test_several_templates(self, directory: Path) -> None:
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "this"}]
        assert self.said(self.settle(directory, chat_template=named)) == "this"
        with pytest.raises(ModelError, match="none is named default"):
            self.said(self.settle(directory, chat_template=named[:1]))

    def test_a_vocabulary_with_merges_is_converted(self, tmp_path: Path) -> None:
        made = json.loads(qwen2().to_str())["model"]
        (tmp_path / "vocab.json").write_text(json.dumps(made["vocab"]))
        merges = "\n".join(" ".join(merge) for merge in made["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
        tokenizer = read_tokenizer(tmp_path)
        assert tokenizer.decode(tokenizer.encode("The harbour, 1234.")) == "The harbour, 1234."

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
    def test_damage_is_named(self, directory: Path, name: str, content: bytes) -> None:
        (directory / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"tokenizer.* (cannot be read|is damaged)"):
            read_tokenizer(directory)

    @pytest.mark.parametrize("template", [7, {"a": "b"}, [1], [{"name": "default"}]])
    def test_a_template_that_is_none(self, directory: Path, template: Any) -> None:
        with pytest.raises(ModelError, match="cannot be read"):
            self.settle(directory, chat_template=template)

    def test_no_tokenizer_at_all(self, tmp_path: Path) -> None:
        assert not has_tokenizer(tmp_path)
        with pytest.raises(ModelError, match=r"tokenizer.json is missing"):
            read_tokenizer(tmp_path)
        shutil.copy(SENTENCEPIECE / "tokenizer.model", tmp_path)
        assert has_tokenizer(tmp_path)
