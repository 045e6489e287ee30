"""Pairs named on the command line: kinds, contexts and limits come from config files."""

from pathlib import Path
from typing import Any

import pytest

import specx
from specx.checkpoints.adhoc import adhoc_preset, with_draft
from specx.errors import ModelError, ModelUnavailableError, PairError, UsageError
from specx.preset.preset import Preset, load_preset
from tests import recorded as facts
from tests.helpers import PairDirs, edit_json, story


def folder(repo: str) -> str:
    return str(facts.CONFIGS / repo.replace("/", "__"))


def pair(target: str, draft: str | None) -> Preset:
    return adhoc_preset(folder(target), draft and folder(draft), offline=True)


@pytest.mark.parametrize(
    ("target", "draft", "kind", "trained"),
    [
        ("lmsys/vicuna-7b-v1.5-16k", "double7/vicuna-68m", "lm", 2048),
        ("lmsys/vicuna-7b-v1.5-16k", "jycha-98/EAGLE-vicuna-7b-v1.5-16k", "eagle", 2048),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "lm", 8192),
        ("meta-llama/Llama-3.1-8B-Instruct", "yuhuili/EAGLE-LLaMA3.1-Instruct-8B", "eagle", 2048),
        ("meta-llama/Llama-3.1-8B-Instruct", "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "eagle3", 2048),
        ("Qwen/Qwen3-8B", "AngelSlim/Qwen3-8B_eagle3", "eagle3", 2048),
        ("Qwen/Qwen3-8B", "TanBaby/EAGLE3-Qwen3-8B-YARN-64K", "eagle3", 65536),
    ],
)
def test_the_kind_is_found_out(target: str, draft: str, kind: str, trained: int) -> None:
    preset = pair(target, draft)
    assert (preset.name, preset.draft.kind) == ("adhoc", kind)
    assert preset.draft.trained_context_tokens == trained
    assert preset.retrieval.budget_tokens <= trained
    assert preset.retrieval.top_chunks == (28 if kind == "lm" else 59)


def test_the_context_is_the_targets() -> None:
    assert pair("lmsys/longchat-7b-16k", None).context_tokens == 16384
    preset = pair("Qwen/Qwen3-8B", None)
    assert (preset.context_tokens, preset.target.dtype) == (40960, "bfloat16")
    assert preset.draft.kind == "lookup"


def test_a_draft_of_the_presets_own_is_replaced() -> None:
    preset = load_preset("vicuna-7b", {"parts.drafter": "lm"})
    other = with_draft(preset, "lookup", offline=True)
    assert (other.name, other.target) == (preset.name, preset.target)
    assert (other.draft.kind, other.draft.repo) == ("lookup", None)
    assert dict(other.parts) == {}
    assert (other.paper, other.measured, other.requires.sources) == ((), (), {})
    assert other.prompt == preset.prompt
    assert other.fingerprint != preset.fingerprint


def test_it_runs(tiny_pair: PairDirs) -> None:
    preset = adhoc_preset(str(tiny_pair.target), str(tiny_pair.draft), offline=True)
    engine = specx.load(preset, device="cpu", offline=True)
    plain = specx.load(with_draft(preset, "none", offline=True), device="cpu", offline=True)
    text = story(60)
    asked: dict[str, Any] = {"max_tokens": 12}
    assert engine.generate(text, **asked).tokens == plain.generate(text, **asked).tokens


def test_a_draft_with_few_positions_gets_small_chunks(own_pair: PairDirs) -> None:
    edit_json(own_pair.draft / "config.json", max_position_embeddings=96)
    preset = adhoc_preset(str(own_pair.target), str(own_pair.draft), offline=True)
    assert preset.draft.trained_context_tokens == 96
    assert preset.retrieval.budget_tokens <= 96


class TestRefusals:
    def test_what_is_not_there(self, tiny_pair: PairDirs) -> None:
        with pytest.raises(ModelUnavailableError, match="not a model directory"):
            adhoc_preset("./nowhere", None, offline=True)
        with pytest.raises(ModelUnavailableError):
            adhoc_preset(str(tiny_pair.target), "./nowhere", offline=True)

    def test_another_kind_of_drafter(self, own_pair: PairDirs) -> None:
        edit_json(own_pair.draft / "config.json", architectures=["MedusaModel"])
        with pytest.raises(PairError, match="Medusa heads"):
            adhoc_preset(str(own_pair.target), str(own_pair.draft), offline=True)

    @pytest.mark.parametrize("value", [0, -5, "long", 1.5, [], True])
    def test_positions_that_are_no_number(self, own_pair: PairDirs, value: object) -> None:
        edit_json(own_pair.target / "config.json", max_position_embeddings=value)
        with pytest.raises(ModelError, match="max_position_embeddings"):
            adhoc_preset(str(own_pair.target), None, offline=True)

    def test_a_damaged_file(self, own_pair: PairDirs) -> None:
        Path(own_pair.draft / "config.json").write_text("{", encoding="utf-8")
        with pytest.raises(ModelError, match="is damaged"):
            adhoc_preset(str(own_pair.target), str(own_pair.draft), offline=True)

    def test_a_draft_with_hardly_any_position(self, own_pair: PairDirs) -> None:
        """The preset cannot hold it; the pair check says what the draft was built for."""
        edit_json(own_pair.draft / "config.json", max_position_embeddings=4)
        preset = adhoc_preset(str(own_pair.target), str(own_pair.draft), offline=True)
        with pytest.raises((PairError, UsageError), match="4 positions"):
            specx.load(preset, device="cpu", offline=True)
