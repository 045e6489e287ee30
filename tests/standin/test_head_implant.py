"""A small head inside a larger one: it guesses what pocket's head guesses, at the larger cost."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from specx.checkpoints import load as hub
from specx.checkpoints.eagle.loader import LoadedHead
from specx.core.decoder import Model
from specx.core.drafts.eagle import LAYER, EagleHead
from specx.core.stats import StepTree
from specx.engine import Engine
from specx.errors import ResourceError, UsageError
from specx.preset.preset import Preset, load_preset
from specx.standin import build as standin
from specx.standin.head_implant import tensor_shapes
from specx.stream import TextChunk
from tests.standin.conftest import TARGET

HEAD = {
    "hidden": 768,
    "mlp": 1600,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 128,
    "vocabulary": 9000,
}
KINDS: dict[str, dict[str, Any]] = {
    "eagle": {"features": 1, "bias": True},
    "eagle3": {"features": 3},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle": ("eagle", {}),
    "eagle-no-bias": ("eagle", {"bias": False, "heads": 8, "kv_heads": 8}),
    "eagle3": ("eagle3", {"kv_heads": 2}),
    "eagle3-own-words": ("eagle3", {"vocabulary": 8500, "heads": 12, "kv_heads": 6, "mlp": 1280}),
}
WIDTH, KNOWN = 512, 8192  # pocket's

Trace = tuple[tuple[int, ...], list[tuple[StepTree | None, tuple[int, ...] | None]]]


def preset_of(
    kind: str, head: dict[str, Any] | None = None, target: dict[str, Any] | None = None
) -> Preset:
    """A preset of small "large" shapes."""
    shape = HEAD | KINDS[kind] | (head or {})
    return Preset.model_validate(
        {
            "schema": 1,
            "name": "big",
            "target": {"repo": "owner/big", "shape": TARGET | (target or {})},
            "draft": {"kind": kind, "repo": "owner/head", "head_shape": shape},
            "context_tokens": 4096,
            "tree": {"nodes": 12, "depth": 5, "size": "fixed"},
        }
    )


def built(preset: Preset, dtype: str = "float32") -> tuple[Preset, hub.ModelPair]:
    adapted = standin.adapted(preset)
    return adapted, standin.load_pair(adapted, device="cpu", dtype=dtype)


def trace_of(engine: Engine, prompt: str) -> Trace:
    """The text, and every step's tree and retrieved chunks."""
    stream = engine.stream(
        engine.prompt(prompt),
        mode="specx",
        max_tokens=24,
        ignore_eos=True,
        parts={"copies": "none"},  # they would hide a head that guesses badly
        records_trees=True,
    )
    chunks = [event for event in stream if isinstance(event, TextChunk) and event.step]
    steps = [(chunk.tree, chunk.retrieved_chunks) for chunk in chunks]
    return stream.result.tokens, steps


@pytest.fixture(scope="module")
def small() -> Callable[[str], hub.ModelPair]:
    """A kind → pocket's pair with a head of it, loaded once. Read only."""

    @functools.cache
    def of(kind: str) -> hub.ModelPair:
        own = load_preset(f"pocket-{kind}")
        return hub.load_pair(own, device="cpu", dtype="float32", offline=True)

    return of


@pytest.fixture(scope="module")
def pocket(text: str, small: Callable[[str], hub.ModelPair]) -> Callable[[str], Trace]:
    """What pocket itself does with a head of a kind and a stand-in's settings."""

    @functools.cache
    def of(kind: str) -> Trace:
        engine = Engine(standin.adapted(preset_of(kind)), copy_of(small(kind)))
        return trace_of(engine, text)

    return of


@pytest.fixture(scope="module")
def pairs() -> Callable[[str], hub.ModelPair]:
    """A case → its pair, made once. Read only: for an engine take a ``copy_of`` it."""

    @functools.cache
    def of(case: str) -> hub.ModelPair:
        return built(preset_of(*CASES[case]))[1]

    return of


def copy_of(pair: hub.ModelPair) -> hub.ModelPair:
    return hub.ModelPair(standin.twin(pair).target, pair.draft, pair.tokenizer)


def head_of(pair: hub.ModelPair) -> LoadedHead:
    assert isinstance(pair.draft, LoadedHead)
    return pair.draft


@pytest.mark.parametrize("case", CASES)
def test_text_and_trees_are_those_of_pocket(
    case: str,
    text: str,
    pairs: Callable[[str], hub.ModelPair],
    pocket: Callable[[str], Trace],
) -> None:
    kind, _ = CASES[case]
    engine = Engine(standin.adapted(preset_of(*CASES[case])), copy_of(pairs(case)))
    tokens, steps = trace_of(engine, text)
    expected, theirs = pocket(kind)
    assert tokens == expected
    assert steps == theirs
    assert 2 * len(steps) < len(tokens), "a head that guesses nothing proves nothing"


class Causal:
    """Attention of rows that see those before them."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        copies = len(query) // len(key)
        keys, values = (each.repeat_interleave(copies, dim=0) for each in (key, value))
        return scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale)


@pytest.mark.parametrize("size", [1.0, 0.01])
@pytest.mark.parametrize("case", CASES)
def test_states_and_logits_are_those_of_pocket(
    case: str,
    size: float,
    pairs: Callable[[str], hub.ModelPair],
    small: Callable[[str], hub.ModelPair],
) -> None:
    """Also where a stream is so small that a norm's epsilon counts."""
    kind, _ = CASES[case]
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(KNOWN, (12,), generator=random)
    taps = [torch.randn(12, WIDTH, generator=random) * size for _ in range(KINDS[kind]["features"])]
    found = []
    for pair in (small(kind), pairs(case)):
        target = Model(pair.target.config.decoder, dict(pair.target.tensors))
        margin = target.embedding[tokens][:, WIDTH:].clone()
        if kind == "eagle" and margin.shape[1]:  # behind the final norm
            margin.zero_()[:, 0] = torch.rand(12, generator=random)
        head = EagleHead(head_of(pair).config, head_of(pair).tensors, target)
        features = torch.cat([torch.cat([tap, margin], dim=-1) for tap in taps], dim=-1)
        states = head.hidden(tokens, torch.arange(12), Causal(), features=head.fuse(features))
        found.append((states[:, :WIDTH], head.logits(states)[:, :KNOWN]))
    (theirs, their_logits), (ours, our_logits) = found
    near = 2e-4 * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=near)
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_pocket_does_not_have_are_never_guessed(
    kind: str, dtype: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may their logits overflow, wherever in a draft the state comes from."""
    own = 8400 if kind == "eagle3" else 9000
    sizes = {"layers": 8, "mlp": 1280}
    preset = preset_of(kind, {"vocabulary": own, "mlp": 1280}, sizes)
    engine = Engine(*built(preset, dtype))
    seen: list[torch.Tensor] = []
    make = EagleHead.logits

    def logits(self: EagleHead, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(make(self, hidden))
        return seen[-1]

    monkeypatch.setattr(EagleHead, "logits", logits)
    engine.generate(engine.prompt(text[:200]), mode="spec", max_tokens=8, ignore_eos=True)
    assert {len(each) > 1 for each in seen} == {False, True}, "roots, and levels below them"
    found = torch.cat(seen)
    assert found[:, :own].isfinite().all()
    assert found[:, KNOWN:].amax() < found[:, :KNOWN].amin() - 100


class TestTheLargeHead:
    @pytest.mark.parametrize("case", CASES)
    def test_every_tensor_is_there_in_the_shape_asked_for(
        self, case: str, pairs: Callable[[str], hub.ModelPair]
    ) -> None:
        kind, changes = CASES[case]
        head, shape = head_of(pairs(case)), preset_of(*CASES[case]).draft.head_shape
        assert shape is not None
        tensors = dict(head.tensors)
        table = tensors.pop("d2t", None)
        sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert sizes == tensor_shapes(shape, head.config.generation, TARGET["vocabulary"])
        assert (table is not None) == ("vocabulary" in changes)
        assert ("fc.bias" in tensors) == shape.bias
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert (head.config.heads, head.config.generation) == (shape.heads, int(kind[5:] or 1))

    def test_weights_that_nothing_depends_on_are_no_zeros(
        self, pairs: Callable[[str], hub.ModelPair]
    ) -> None:
        for case in ("eagle", "eagle3-own-words"):
            tensors = head_of(pairs(case)).tensors
            for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"):
                weight = tensors[f"{LAYER}{name}_proj.weight"]
                assert (weight != 0).float().mean() > 0.99, name
        assert (tensors["lm_head.weight"] != 0).float().mean() > 0.98
        taps = tensors["fc.weight"].view(HEAD["hidden"], 3, -1)
        assert (taps[:, 1:, WIDTH:] != 0).float().mean() > 0.99

    def test_an_eagle3_head_hands_the_margin_on(
        self, pairs: Callable[[str], hub.ModelPair], small: Callable[[str], hub.ModelPair]
    ) -> None:
        pair = pairs("eagle3")
        joint = head_of(pair).tensors["fc.weight"]
        margin = pair.target.tensors["embed_tokens.weight"][100:140, WIDTH:]
        streams = torch.randn(3, 40, WIDTH, generator=torch.Generator().manual_seed(1)) * 5
        features = torch.cat([torch.cat([each, margin], dim=-1) for each in streams], dim=-1)
        merged = features @ joint.T
        torch.testing.assert_close(merged[:, WIDTH:], margin, rtol=0, atol=1e-8)
        joint = head_of(small("eagle3")).tensors["fc.weight"].float()
        expected = torch.cat(list(streams), dim=-1) @ joint.T
        torch.testing.assert_close(merged[:, :WIDTH], expected, rtol=1e-4, atol=1e-4)

    def test_two_builds_are_equal(self, pairs: Callable[[str], hub.ModelPair]) -> None:
        first = head_of(pairs("eagle")).tensors
        again = head_of(built(preset_of(*CASES["eagle"]))[1]).tensors
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())

    def test_a_twin_holds_no_second_head(self, pairs: Callable[[str], hub.ModelPair]) -> None:
        assert standin.twin(pairs("eagle")).draft is None

    @pytest.mark.parametrize(
        ("name", "millions"), [("llama3.1-8b-eagle3", 424.7), ("vicuna-7b-eagle", 235.9)]
    )
    def test_the_shipped_shapes_have_the_size_of_their_files(
        self, name: str, millions: float
    ) -> None:
        preset = standin.adapted(load_preset(name))
        shape, target = preset.draft.head_shape, preset.target.shape
        assert shape is not None
        assert target is not None
        sizes = tensor_shapes(shape, preset.draft.generation, target.vocabulary)
        count = sum(map(math.prod, sizes.values()))
        assert count / 1e6 == pytest.approx(millions, abs=0.1)

    def test_beside_a_target_of_pockets_own_width(
        self, text: str, pocket: Callable[[str], Trace]
    ) -> None:
        """There is no margin at all."""
        own = {"hidden": WIDTH, "vocabulary": KNOWN}
        engine = Engine(*built(preset_of("eagle3", own, own | {"layers": 8})))
        assert trace_of(engine, text) == pocket("eagle3")


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "head", "words"),
        [
            ("eagle", {"hidden": 1024}, "hidden is 1024, and the target's embedding has 768"),
            ("eagle", {"head_dim": 64}, "head_dim is 64"),
            ("eagle3", {"features": 4}, "features are 4, and pocket's head reads 3"),
            ("eagle3", {"vocabulary": 8000}, "vocabulary is 8000, not between 8192 and 9000"),
            ("eagle3", {"vocabulary": 9001}, "vocabulary is 9001, not between 8192 and 9000"),
            ("eagle", {"mlp": 1024}, "mlp is 1024, and pocket needs at least 1280"),
            ("eagle", {"heads": 6, "kv_heads": 2}, "heads, 6, are no multiple of pocket's 4"),
            ("eagle", {"heads": 12, "kv_heads": 3}, "kv_heads, 3, are no multiple of pocket's 2"),
        ],
    )
    def test_a_shape_that_cannot_hold_pockets_head(
        self, kind: str, head: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            standin.adapted(preset_of(kind, head))

    def test_an_eagle_head_without_bias_needs_a_margin(self) -> None:
        own = {"hidden": WIDTH, "vocabulary": KNOWN}
        with pytest.raises(UsageError, match="without a bias, hidden must exceed"):
            standin.adapted(preset_of("eagle", own | {"bias": False}, own))

    def test_memory_of_the_head_is_asked_before_it_is_touched(self) -> None:
        preset = standin.adapted(preset_of("eagle", {"mlp": 1 << 22}))
        with pytest.raises(ResourceError, match=r"they need 7\d\.\d GiB"):
            standin.load_pair(preset, device="cpu", dtype="float32")
