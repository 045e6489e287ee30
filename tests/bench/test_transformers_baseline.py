"""transformers' own generation as a witness: same tokens as specx, true counts, no memory."""

import time
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import specx
from specx.bench.schema import BenchCell, Sample
from specx.bench.transformers_baseline import Witnesses, row_bytes
from specx.errors import PairError, ResourceError, SpecxError, UsageError
from specx.preset.preset import load_preset
from tests.helpers import PairDirs, edit_json, preset_for, save_pair, tiny_config, tiny_model

KINDS = ("hf", "hf-assisted")
TEXT = (
    "The council of the harbour town met on Monday to speak about the new bridge. Its cost has "
    "risen to 14 million, said the treasurer, Anna Holt, because steel is dearer than last year. "
    "The bridge is to open in May 2027. Fishermen fear that their boats will not pass below it."
)


@pytest.fixture(scope="module")
def engine() -> specx.Engine:
    return specx.load("pocket", device="cpu", offline=True)


@pytest.fixture(scope="module")
def pocket() -> Witnesses:
    return Witnesses(load_preset("pocket", {}), "cpu", "auto", True)


@pytest.fixture(scope="module")
def prompt(engine: specx.Engine) -> specx.Prompt:
    return engine.prompt(TEXT)


def cell(kind: str) -> BenchCell:
    return BenchCell(preset="pocket", mode=kind, length=64, document=0, rep=0)


def assert_consistent(run: Sample, max_tokens: int) -> None:
    """What holds of every run, whoever drafted."""
    assert run.steps is not None
    assert run.accepted is not None
    produced = len(run.tokens) + (run.finish_reason == "eos")
    assert produced == run.first_tokens + run.steps + run.accepted
    assert produced <= max_tokens
    assert sum(run.histogram) == run.steps
    assert sum(kept * count for kept, count in enumerate(run.histogram)) == run.accepted
    assert run.ttft_s == run.prefill_target_s > 0
    assert (run.decode_s > 0) == (run.steps > 0)
    assert run.total_s == pytest.approx(run.ttft_s + run.decode_s)
    assert run.memory.weights > 0
    assert run.memory.kv_target > 0
    assert run.memory.peak > run.memory.weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_plain_decoding(
    engine: specx.Engine, pocket: Witnesses, prompt: specx.Prompt, kind: str
) -> None:
    plain = engine.generate(prompt, mode="plain", max_tokens=20, ignore_eos=True)
    run = pocket.run(cell(kind), prompt.tokens, 20, True)
    assert run.tokens == list(plain.tokens)
    assert run.finish_reason == plain.finish_reason == "length"
    assert_consistent(run, 20)
    if kind == "hf":
        assert (run.first_tokens, run.steps, run.accepted) == (1, 19, 0)
        assert run.memory.kv_draft == 0
    else:
        assert run.steps < 19
        assert run.memory.kv_draft > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_ends_and_is_not_part_of_the_output(
    engine: specx.Engine, pocket: Witnesses, kind: str
) -> None:
    question = engine.prompt("", "What is the capital of France? Answer in one word.")
    plain = engine.generate(question, mode="plain", max_tokens=120)
    assert plain.finish_reason == "eos", "the test needs a short answer"
    run = pocket.run(cell(kind), question.tokens, 120, False)
    assert run.tokens == list(plain.tokens)
    assert run.finish_reason == "eos"
    assert_consistent(run, 120)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_do_not_depend_on_earlier_ones(
    pocket: Witnesses, prompt: specx.Prompt, kind: str
) -> None:
    first = pocket.run(cell(kind), prompt.tokens, 16, True)
    pocket.run(cell(kind), prompt.tokens[5:], 21, True)  # over a cache of the same size
    again = pocket.run(cell(kind), prompt.tokens, 16, True)
    assert (again.tokens, again.steps, again.histogram) == (
        first.tokens,
        first.steps,
        first.histogram,
    )


def test_one_token_takes_no_decoding(pocket: Witnesses, prompt: specx.Prompt) -> None:
    for kind in KINDS:
        run = pocket.run(cell(kind), prompt.tokens, 1, True)
        assert (len(run.tokens), run.first_tokens, run.steps, run.decode_s) == (1, 1, 0, 0.0)
        assert run.histogram == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_forward_is_heard(pocket: Witnesses, prompt: specx.Prompt, kind: str) -> None:
    calls: list[None] = []
    run = pocket.run(cell(kind), prompt.tokens, 12, True, lambda: calls.append(None))
    assert len(run.tokens) == 12
    assert len(calls) == (run.steps or 0) + 1


def test_a_slow_listener_costs_no_time(pocket: Witnesses, prompt: specx.Prompt) -> None:
    began = time.perf_counter()
    run = pocket.run(cell("hf"), prompt.tokens, 4, True, lambda: time.sleep(0.1))
    assert run.total_s <= time.perf_counter() - began - 4 * 0.1


def test_a_listener_can_end_the_run(pocket: Witnesses, prompt: specx.Prompt) -> None:
    def stop() -> None:
        raise UsageError("enough")

    with pytest.raises(UsageError, match="enough"):
        pocket.run(cell("hf"), prompt.tokens, 12, True, stop)
    assert len(pocket.run(cell("hf"), prompt.tokens, 4, True).tokens) == 4


def test_the_checkpoints_sampling_settings_do_not_leak_in(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, draft_weights="noisy")
    ordinary = [_tokens(pair, kind) for kind in KINDS]
    for directory in (pair.target, pair.draft):
        edit_json(
            directory / "generation_config.json",
            do_sample=True,
            temperature=5.0,
            top_k=3,
            repetition_penalty=5.0,
            min_new_tokens=3,
        )
    assert [_tokens(pair, kind) for kind in KINDS] == ordinary
    assert ordinary[0] == ordinary[1]


def _tokens(pair: PairDirs, kind: str) -> list[int]:
    witnesses = Witnesses(preset_for(pair), "cpu", "float32", True)
    return witnesses.run(cell(kind), range(5, 60), 16, True).tokens


def test_a_pair_without_a_draft_has_one_witness(tiny_pair: PairDirs) -> None:
    preset = preset_for(tiny_pair, {"draft.kind": "none", "draft.repo": None})
    witnesses = Witnesses(preset, "cpu", "float32", True)
    assert len(witnesses.run(cell("hf"), range(5, 40), 4, True).tokens) == 4
    with pytest.raises(UsageError, match="no draft"):
        witnesses.run(cell("hf-assisted"), range(5, 40), 4, True)


def test_a_padded_vocabulary_cannot_be_assisted(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, target_changes={"vocab_size": 520}, draft_tokenizer=True)
    witnesses = Witnesses(preset_for(pair), "cpu", "float32", True)
    with pytest.raises(PairError, match="520"):
        witnesses.run(cell("hf-assisted"), range(5, 40), 4, True)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(torch.OutOfMemoryError("no"), ResourceError), (RuntimeError("broken"), SpecxError)],
)
def test_failures_of_the_library_are_specx_errors(
    tiny_pair: PairDirs,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[SpecxError],
) -> None:
    def fail(*words: object, **settings: object) -> Sample:
        raise raised

    witnesses = Witnesses(preset_for(tiny_pair), "cpu", "float32", True)
    monkeypatch.setattr(witnesses._target, "generate", fail)
    with pytest.raises(expected):
        witnesses.run(cell("hf"), [5, 6], 2, True)


def test_bytes_of_a_row_are_those_of_a_real_cache() -> None:
    model = tiny_model(tiny_config("qwen3"))
    cache = DynamicCache(config=model.config)
    model(torch.zeros(1, 10, dtype=torch.int64), past_key_values=cache)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == 10 * row_bytes(model)
