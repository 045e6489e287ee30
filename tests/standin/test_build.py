"""Stand-in weights: the shapes are the preset's, the text is pocket's."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specx.bench.transformers_baseline import assembled as witness
from specx.checkpoints import load as hub
from specx.checkpoints.eagle.loader import LoadedHead
from specx.checkpoints.weights import outline
from specx.core.attention import Kernels
from specx.core.cache import KVCache
from specx.core.decoder import Model, Output
from specx.core.forward_passes import ChunkPass
from specx.core.retrieval import chunk_scores
from specx.engine import Engine
from specx.errors import ModelError, ResourceError, UsageError
from specx.preset.preset import Preset, load_preset
from specx.standin import build as standin
from specx.stream import Result
from tests.helpers import PairDirs, preset_for
from tests.standin.conftest import TARGET

DRAFT = {
    "layers": 3,
    "hidden": 320,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 64,
    "mlp": 800,
    "vocabulary": 9000,
    "tied": True,
}


def preset_of(
    target: dict[str, Any] | None = None, draft: dict[str, Any] | None = None, **fields: Any
) -> Preset:
    """A preset of small "large" shapes."""
    return Preset.model_validate(
        {
            "schema": 1,
            "name": "big",
            "target": {"repo": "owner/big", "shape": TARGET | (target or {})},
            "draft": {"repo": "owner/small", "shape": DRAFT | (draft or {})},
            "context_tokens": 4096,
            "tree": {"nodes": 8, "depth": 4, "size": "fixed"},
            **fields,
        }
    )


def built(preset: Preset) -> tuple[Preset, hub.ModelPair]:
    adapted = standin.adapted(preset)
    return adapted, standin.load_pair(adapted, device="cpu", dtype="float32")


def generated(engine: Engine, mode: str, text: str) -> Result:
    return engine.generate(engine.prompt(text), mode=mode, max_tokens=24, ignore_eos=True)


def run(
    loaded: hub.LoadedModel | LoadedHead | None, tokens: torch.Tensor
) -> tuple[Output, KVCache]:
    """One forward of a model that stays as it was."""
    assert isinstance(loaded, hub.LoadedModel)
    model = Model(loaded.config.decoder, dict(loaded.tensors))
    cache = model.new_cache(len(tokens))
    attention = ChunkPass(cache, 0, Kernels(), "fused")
    return model.forward(tokens, torch.arange(len(tokens)), attention), cache


@pytest.fixture(scope="module")
def pocket() -> hub.ModelPair:
    return hub.load_pair(load_preset("pocket"), device="cpu", dtype="float32", offline=True)


@pytest.fixture(scope="module")
def results(text: str) -> dict[str, Result]:
    """What pocket itself writes with a stand-in's settings, by mode."""
    pair = hub.load_pair(load_preset("pocket"), device="cpu", dtype="float32", offline=True)
    engine = Engine(standin.adapted(preset_of()), pair)
    return {mode: generated(engine, mode, text) for mode in ("plain", "specx")}


@pytest.fixture(scope="module")
def pairs() -> Callable[[int, int], hub.ModelPair]:
    """Heads and key/value heads → a pair, made once. Read only: an engine takes a twin of it."""

    @functools.cache
    def of(heads: int, kv_heads: int) -> hub.ModelPair:
        return built(preset_of({"heads": heads, "kv_heads": kv_heads}))[1]

    return of


@pytest.fixture(scope="module")
def big(pairs: Callable[[int, int], hub.ModelPair]) -> hub.ModelPair:
    """Read only."""
    return pairs(8, 4)


@pytest.fixture(scope="module")
def tokens(pocket: hub.ModelPair, text: str) -> torch.Tensor:
    return torch.tensor(pocket.tokenizer.encode(text))


@pytest.mark.parametrize("heads", [(8, 4), (4, 4)])
def test_the_text_and_the_acceptance_are_those_of_pocket(
    heads: tuple[int, int],
    text: str,
    results: dict[str, Result],
    pairs: Callable[[int, int], hub.ModelPair],
) -> None:
    preset = standin.adapted(preset_of({"heads": heads[0], "kv_heads": heads[1]}))
    engine = Engine(preset, standin.twin(pairs(*heads)))
    for mode, theirs in results.items():
        ours = generated(engine, mode, text)
        assert len(ours.tokens) == 24
        assert ours.tokens == theirs.tokens
        near = pytest.approx(theirs.stats.tokens_per_step, rel=0.15)
        assert ours.stats.tokens_per_step == near
    assert ours.stats.tokens_per_step > 2, "the last mode is specx"


class TestTheSameFunction:
    def test_of_the_target(
        self, big: hub.ModelPair, pocket: hub.ModelPair, tokens: torch.Tensor
    ) -> None:
        ours, theirs = (run(pair.target, tokens)[0] for pair in (big, pocket))
        torch.testing.assert_close(ours.logits[:, :8192], theirs.logits, rtol=1e-3, atol=2e-2)

    def test_of_the_draft_with_a_tied_head(
        self, big: hub.ModelPair, pocket: hub.ModelPair, tokens: torch.Tensor
    ) -> None:
        found = [run(pair.draft, tokens)[0].logits[:, :8192] for pair in (big, pocket)]
        logits = [each.log_softmax(-1) for each in found]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=2e-2)
        assert isinstance(big.draft, hub.LoadedModel)
        assert "lm_head.weight" not in big.draft.tensors

    @pytest.mark.parametrize("heads", [(8, 4), (4, 4), (8, 2), (12, 6)])
    def test_of_retrieval(
        self,
        heads: tuple[int, int],
        pocket: hub.ModelPair,
        tokens: torch.Tensor,
        pairs: Callable[[int, int], hub.ModelPair],
    ) -> None:
        """The scores are a mean over heads: every small head must count equally often."""
        found = []
        for model in (pairs(*heads).target, pocket.target):
            output, cache = run(model, tokens)
            found.append(chunk_scores(output.query[:, -1], cache.keys[-1], 128**-0.5, 32))
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
        assert found[0].topk(8).indices.tolist() == found[1].topk(8).indices.tolist()

    def test_of_a_family_with_biases(self, pocket: hub.ModelPair, tokens: torch.Tensor) -> None:
        pair = built(preset_of({"family": "qwen2"}, {"family": "mistral"}))[1]
        ours, theirs = (run(each.target, tokens[:64])[0] for each in (pair, pocket))
        assert "layers.0.self_attn.qkv_proj.bias" in pair.target.tensors
        torch.testing.assert_close(ours.logits[:, :8192], theirs.logits, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ids_that_pocket_does_not_have_never_win(
    dtype: str, tokens: torch.Tensor, big: hub.ModelPair
) -> None:
    """Nor may their logits overflow: a sampler subtracts the largest from all others."""
    pair = big
    if dtype != "float32":
        preset = standin.adapted(preset_of({"layers": 8, "mlp": 1280}, {"layers": 2}))
        pair = standin.load_pair(preset, device="cpu", dtype=dtype)
    for model in (pair.target, pair.draft):
        logits = run(model, tokens[:80])[0].logits
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert logits[:, 8192:].max() < logits[:, :8192].min() - 100


class TestCost:
    def test_every_weight_is_there_in_the_shape_asked_for(self, big: hub.ModelPair) -> None:
        tensors = big.target.separate()
        assert len([name for name in tensors if name.endswith("o_proj.weight")]) == 10
        assert tensors["lm_head.weight"].shape == (9000, 768)
        assert tensors["layers.0.self_attn.k_proj.weight"].shape == (4 * 128, 768)
        assert all(weight.isfinite().all() for weight in tensors.values())

    def test_the_layers_before_run_on_dense_numbers_and_add_nothing(
        self, big: hub.ModelPair, tokens: torch.Tensor
    ) -> None:
        """In transformers' own modules, whose inner values can be watched."""
        model: Any = witness(big.target)
        seen: dict[str, torch.Tensor] = {}
        layer = model.model.layers[1]
        layer.mlp.down_proj.register_forward_hook(lambda _, a, out: seen.update(x=a[0], y=out))
        layer.input_layernorm.register_forward_hook(lambda *a: seen.update(norm=a[2]))
        layer.register_forward_hook(lambda *a: seen.update(before=a[1][0], after=a[2]))
        with torch.inference_mode():
            model.model(tokens[None, :64], use_cache=False)
        assert (seen["x"] != 0).all()
        assert 0.3 < seen["norm"].pow(2).mean().sqrt() < 3
        assert seen["norm"][..., 512:].abs().min() > 0.1
        assert all((weight != 0).float().mean() > 0.99 for weight in layer.parameters())
        torch.testing.assert_close(seen["before"], seen["after"], rtol=0, atol=1e-6)

    def test_two_builds_are_equal(self, big: hub.ModelPair) -> None:
        again = built(preset_of())[1].target.tensors
        assert all(torch.equal(tensor, again[name]) for name, tensor in big.target.tensors.items())

    def test_a_twin_has_the_same_weights_in_the_same_place(
        self, big: hub.ModelPair, tokens: torch.Tensor
    ) -> None:
        """And transformers' model over them computes the same."""
        twin = standin.twin(big)
        for ours, theirs in ((twin.target, big.target), (twin.draft, big.draft)):
            assert isinstance(ours, hub.LoadedModel)
            assert isinstance(theirs, hub.LoadedModel)
            model = witness(ours)
            places = {each.untyped_storage().data_ptr() for each in theirs.tensors.values()}
            assert {each.untyped_storage().data_ptr() for each in model.parameters()} == places
            with torch.inference_mode():
                logits = model(tokens[None, :20]).logits[0]
            expected = run(theirs, tokens[:20])[0].logits
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


class TestSettings:
    def test_acceptance_is_pockets_and_the_tree_the_presets(self) -> None:
        pocket, adapted = load_preset("pocket"), standin.adapted(load_preset("vicuna-7b"))
        assert adapted.name == "vicuna-7b-stand-in"
        assert adapted.retrieval == pocket.retrieval
        assert adapted.draft.trained_context_tokens == 1024
        assert adapted.prompt == pocket.prompt
        assert (adapted.tree.nodes, adapted.tree.depth) == (50, 10)

    @pytest.mark.parametrize(
        ("name", "kind"), [("vicuna-7b-eagle", "eagle"), ("llama3.1-8b-eagle3", "eagle3")]
    )
    def test_a_head_stands_in_for_a_head_of_its_kind(self, name: str, kind: str) -> None:
        pocket, preset = load_preset(f"pocket-{kind}"), load_preset(name)
        adapted = standin.adapted(preset)
        assert adapted.draft.kind == kind
        assert adapted.draft.trained_context_tokens == pocket.draft.trained_context_tokens
        assert (adapted.retrieval, adapted.prompt) == (pocket.retrieval, pocket.prompt)
        files = standin.find_pair(adapted)
        assert files.target_config.shape.hidden == 4096
        assert files.draft_config is None
        assert files.head_config is not None
        assert f"of the head {preset.draft.repo}" in standin.about(adapted)
        assert f"its {kind} head" in standin.about(adapted)

    @pytest.mark.parametrize("kind", ["none", "lookup"])
    def test_a_draft_without_weights_needs_none(self, kind: str) -> None:
        preset = load_preset("vicuna-7b", {"draft.kind": kind, "draft.shape": "null"})
        assert standin.find_pair(standin.adapted(preset)).draft_config is None

    @pytest.mark.parametrize(("name", "least"), [("vicuna-7b", 16384), ("llama3.1-8b", 131072)])
    def test_a_prompt_may_fill_the_context_with_an_output_behind(
        self, name: str, least: int
    ) -> None:
        assert standin.adapted(load_preset(name)).context_tokens >= least + 1024

    def test_ends_and_tokenizer_are_pockets(
        self, big: hub.ModelPair, pocket: hub.ModelPair
    ) -> None:
        ends = [hub.end_tokens(pair.target.config, pair.tokenizer) for pair in (big, pocket)]
        assert ends[0] == ends[1]
        assert big.tokenizer.token_texts() == pocket.tokenizer.token_texts()

    def test_the_shipped_shapes_have_the_size_of_their_names(self) -> None:
        for name, billions in (("vicuna-7b", 6.74), ("llama3.1-8b", 8.03)):
            config = standin.find_pair(standin.adapted(load_preset(name))).target_config
            tensors = outline(config, torch.float16)
            count = sum(tensor.numel() for tensor in tensors.values())
            assert count / 1e9 == pytest.approx(billions, abs=0.01)


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ({"family": "qwen3"}, "qwen3 normalises"),
            ({"head_dim": 64}, "head_dim is 64"),
            ({"layers": 7}, "layers is 7, and pocket needs at least 8"),
            ({"hidden": 511}, "hidden is 511"),
            ({"hidden": 512}, "hidden must exceed 512"),
            ({"mlp": 1024}, "mlp is 1024"),
            ({"vocabulary": 8000}, "vocabulary is 8000"),
            ({"hidden": 514}, "hidden, 514, is no multiple of its heads, 8"),
            ({"heads": 9, "kv_heads": 3}, "heads, 9, are no multiple of pocket's 4"),
            ({"heads": 12, "kv_heads": 3}, "kv_heads, 3, are no multiple of pocket's 2"),
        ],
    )
    def test_a_shape_that_cannot_hold_pocket(self, shape: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            standin.adapted(preset_of(shape))

    def test_a_preset_without_shapes_is_told_what_to_add(self) -> None:
        preset = preset_of().model_copy(update={"target": load_preset("pocket").target})
        with pytest.raises(UsageError, match=r"has no target\.shape") as caught:
            standin.adapted(preset)
        assert "add target.shape" in caught.value.hints[0]

    def test_a_preset_without_a_heads_shape_is_told_what_to_add(self) -> None:
        preset = load_preset("vicuna-7b-eagle", {"draft.head_shape": "null"})
        with pytest.raises(UsageError, match=r"has no draft\.head_shape") as caught:
            standin.adapted(preset)
        assert "add draft.head_shape" in caught.value.hints[0]

    def test_memory_is_asked_before_it_is_touched(self) -> None:
        preset = standin.adapted(load_preset("vicuna-7b", {"target.shape.mlp": "500000"}))
        with pytest.raises(ResourceError, match="GiB are free"):
            standin.load_pair(preset, device="cpu", dtype="float32")

    def test_a_checkpoint_of_another_shape_is_refused(self, tiny_pair: PairDirs) -> None:
        preset = preset_for(tiny_pair)
        sizes = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16}
        sizes |= {"mlp": 96, "vocabulary": 512}
        agreed = {f"target.shape.{name}": size for name, size in sizes.items()}
        hub.find_pair(preset.with_overrides(agreed), offline=True)
        wrong = preset.with_overrides(agreed | {"target.shape.kv_heads": "4"})
        with pytest.raises(ModelError, match="kv_heads is 2, not 4"):
            hub.find_pair(wrong, offline=True)

    def test_heads_that_do_not_share_evenly(self) -> None:
        with pytest.raises(UsageError, match="no multiple of kv_heads"):
            load_preset("vicuna-7b", {"target.shape.kv_heads": "5"})
