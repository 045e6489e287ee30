"""Compiled layers: the same numbers, one program for all layers, attention outside of it.

The programs are traced and run by PyTorch itself ("aot_eager"), which needs no compiler;
TorchInductor's own run on a GPU (``tests/test_gpu.py``).
"""

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from specx.core.attention import SdpaKernels
from specx.core.compiled import attend, attention_by
from specx.core.config import LayerForm
from specx.core.model import Model
from specx.core.passes import TargetPass
from tests.core.tiny import PLAIN, config, hf_model, random_tokens

CASES = {
    "llama": config(num_hidden_layers=3),
    "qwen3": config("qwen3", num_hidden_layers=3),
    "qwen2": config("qwen2", num_hidden_layers=3),
}


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", backend)
    yield
    torch._dynamo.reset()


def _forward(model: Model, tokens: Tensor, form: LayerForm) -> tuple[Tensor, Tensor, TargetPass]:
    cache = model.new_cache(len(tokens))
    attention = TargetPass(cache, cache.stage(len(tokens)), None, SdpaKernels(), PLAIN)
    output = model.forward(tokens, torch.arange(len(tokens)), attention, form=form)
    return output.logits, output.features, attention


@pytest.mark.parametrize("name", CASES)
def test_compiled_layers_have_the_numbers_of_the_original_ones(name: str) -> None:
    model = Model(hf_model(CASES[name]), pack=False)
    for rows in (7, 1):
        tokens = random_tokens(rows)
        logits, _, attention = _forward(model, tokens, "compiled")
        expected, _, original = _forward(model, tokens, "original")
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert attention.query is not None
        assert original.query is not None
        torch.testing.assert_close(attention.query, original.query, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attention.cache.keys, original.cache.keys, atol=1e-5, rtol=1e-5)


def test_all_layers_share_one_program_for_each_number_of_rows() -> None:
    """Thirty-two layers that compile one after the other are a minute at every tree size."""
    counters = torch._dynamo.utils.counters
    model = Model(hf_model(CASES["llama"]), pack=False)
    for rows, programs in ((7, 1), (1, 2), (7, 2)):
        _forward(model, random_tokens(rows), "compiled")
        assert counters["stats"]["unique_graphs"] == programs
    assert not counters["graph_break"]


def test_what_enters_a_layer_is_still_kept_for_a_head() -> None:
    model = Model(hf_model(CASES["llama"]), pack=False)
    model.tap((1, 2))
    _, features, _ = _forward(model, random_tokens(5), "compiled")
    _, expected, _ = _forward(model, random_tokens(5), "original")
    assert features.shape[-1] == 2 * model.shape.hidden
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


class _Keeps:
    """An attention pass that returns the query's very memory, and keeps it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.seen.append((layer, query))
        return query * scale


def test_layers_are_counted_and_the_last_query_is_a_copy() -> None:
    """A program uses its memory again; retrieval reads the last layer's query after the forward."""
    kept, query = _Keeps(), torch.randn(2, 5, 4)
    for _ in range(2):  # every forward counts anew
        with attention_by(kept, 2):
            for _ in range(2):
                out = attend(query, query, query, 0.5)
    assert [layer for layer, _ in kept.seen] == [0, 1, 0, 1]
    pointers = [seen.data_ptr() for _, seen in kept.seen]
    assert pointers[0] == query.data_ptr() != pointers[1]
    torch.testing.assert_close(out, query * 0.5)


def test_attention_needs_a_forward_under_way() -> None:
    with pytest.raises(LookupError):
        attend(torch.zeros(2, 5, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5, 4), 1.0)


def test_nothing_is_compiled_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: asked.append(a) or real(*a, **k))
    model = Model(hf_model(CASES["llama"]), pack=False)
    for form in ("original", "fused"):
        _forward(model, random_tokens(3), form)
    assert not asked
    _forward(model, random_tokens(3), "compiled")
    assert len(asked) == 3
