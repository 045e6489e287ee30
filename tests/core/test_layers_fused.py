"""Fused decoder layers against transformers' own, on the CPU in plain PyTorch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specx.core.attention import SdpaKernels
from specx.core.forward_passes import ChunkPass
from specx.core.layers import FusedLayer, FusedNorm, FusedRotary, Layers
from specx.core.model import Model
from tests.core.tiny import FAMILIES, config, hf_logits, hf_model, random_tokens, twin

CASES: dict[str, PreTrainedConfig] = {
    **{name: config(name) for name in FAMILIES},
    "mha": config(num_key_value_heads=4),
    "mqa": config("qwen3", num_key_value_heads=1),
    "wide heads": config("mistral", head_dim=24),
    "wide heads normed": config("qwen3", head_dim=24),
    "biases everywhere": config(attention_bias=True, mlp_bias=True),
    "no head_dim": config("qwen2", head_dim=None, tie_word_embeddings=True),
}


class Recorder:
    """An attention pass with no attention: returns the queries, transposed or laid out anew."""

    def __init__(self, contiguous: bool) -> None:
        self.contiguous = contiguous
        self.seen: list[tuple[int, Tensor, Tensor, Tensor, float]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.seen.append((layer, query.clone(), key.clone(), value.clone(), scale))
        repeated = torch.cat([value] * (query.shape[0] // value.shape[0]))
        out = query + 0.5 * repeated
        return out.contiguous() if self.contiguous else out.transpose(0, 1).clone().transpose(0, 1)


def _fused(model: PreTrainedModel) -> tuple[Model, Layers]:
    wrapped = Model(model, pack=False)
    layers = Layers(wrapped.decoder)
    layers.use("fused")
    return wrapped, layers


def _logits(model: Model, tokens: Tensor) -> Tensor:
    cache = model.new_cache(len(tokens))
    attention = ChunkPass(cache, cache.stage(len(tokens)), SdpaKernels(), "fused")
    return model.forward(tokens, torch.arange(len(tokens)), attention).logits


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_fused_layers_has_the_logits_of_plain_hugging_face(name: str) -> None:
    plain = hf_model(CASES[name])
    model, _ = _fused(twin(plain))
    tokens = random_tokens(21)
    torch.testing.assert_close(
        _logits(model, tokens), hf_logits(plain, tokens), atol=3e-4, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contiguous", [True, False], ids=["copied", "view"])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_one_layer_shows_attention_the_same_and_returns_the_same(
    name: str, contiguous: bool, dtype: torch.dtype
) -> None:
    model = Model(hf_model(CASES[name]).to(dtype), pack=False)
    layers, rotary = model.decoder.layers, model.decoder.rotary_emb
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    tables = rotary(hidden, torch.tensor([[3, 4, 9, 10, 2]]))
    rest: dict[str, Any] = {"attention_mask": None, "past_key_values": None, "use_cache": False}
    theirs, ours = Recorder(contiguous), Recorder(contiguous)
    expected = layers[1](hidden.clone(), position_embeddings=tables, attention_pass=theirs, **rest)
    fused = FusedLayer(layers[1])
    stream = hidden.clone()
    got = fused(stream, position_embeddings=tables, attention_pass=ours, **rest)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(got, expected, **close)
    assert got.data_ptr() == stream.data_ptr()  # the residual stream is one buffer
    for seen, wanted in zip(ours.seen[0], theirs.seen[0], strict=True):
        torch.testing.assert_close(seen, wanted, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_rotary_tables_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    rotary = hf_model(config(name)).model.rotary_emb
    hidden, positions = torch.zeros(1, 4, 32, dtype=dtype), torch.tensor([[0, 1, 700, 3]])
    got = FusedRotary(rotary)(hidden, positions)
    for table, expected in zip(got, rotary(hidden, positions), strict=True):
        assert table.dtype == dtype
        torch.testing.assert_close(table, expected)


def test_frequencies_that_change_with_the_length_stay_transformers_own() -> None:
    scaling = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = hf_model(config(rope_parameters=scaling)).model
    own = model.rotary_emb
    layers = Layers(model)
    layers.use("fused")
    assert model.rotary_emb is own
    assert isinstance(model.norm, FusedNorm)


def test_both_forms_share_their_weights_and_can_be_swapped() -> None:
    plain = hf_model(config("qwen2"))
    expected = hf_logits(plain, random_tokens(12))
    model = Model(twin(plain), pack=False)
    names = set(model.decoder.state_dict())
    own = model.decoder.layers
    layers = Layers(model.decoder)
    assert model.decoder.layers is own
    assert set(model.decoder.state_dict()) == names
    before = _logits(model, random_tokens(12))
    layers.use("fused")
    assert isinstance(model.decoder.layers[0], FusedLayer)
    assert isinstance(model.decoder.norm, FusedNorm)
    assert isinstance(model.decoder.rotary_emb, FusedRotary)
    assert (
        model.weights_bytes
        == sum(weight.numel() * weight.element_size() for weight in model.decoder.parameters())
        + model.head.weight.numel() * 4
    )
    torch.testing.assert_close(_logits(model, random_tokens(12)), expected, atol=3e-4, rtol=1e-4)
    layers.use("original")
    assert model.decoder.layers is own
    assert set(model.decoder.state_dict()) == names
    assert torch.equal(_logits(model, random_tokens(12)), before)


def test_parameters_become_views_of_the_joined_matrices() -> None:
    model = hf_model(config("qwen2"))
    layer = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    values = [linear.weight.clone() for linear in (attention.q_proj, attention.v_proj, mlp.up_proj)]
    FusedLayer(layer)
    linears = (attention.q_proj, attention.v_proj, mlp.up_proj)
    assert all(torch.equal(a.weight, b) for a, b in zip(linears, values, strict=True))
    for group in (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (mlp.gate_proj, mlp.up_proj),
    ):
        for field in ("weight", "bias"):
            parts = [getattr(linear, field) for linear in group]
            if parts[0] is not None:
                assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
                stored = parts[0].untyped_storage().nbytes()
                assert stored == sum(part.numel() for part in parts) * 4


def test_the_embedding_survives_the_stream_being_updated_in_place() -> None:
    model, _ = _fused(hf_model(config()))
    weights = model.decoder.embed_tokens.weight.clone()
    first = _logits(model, random_tokens(9))
    assert torch.equal(_logits(model, random_tokens(9)), first)
    assert torch.equal(model.decoder.embed_tokens.weight, weights)


def _gelu(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.config.hidden_act = "gelu"


def _replaced(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.down_proj = nn.Identity()


@pytest.mark.parametrize(("spoil", "reason"), [(_gelu, "silu"), (_replaced, "plain linear")])
def test_another_shape_is_refused_before_anything_changes(spoil: Any, reason: str) -> None:
    model = hf_model(config())
    spoil(model)
    places = [weight.data_ptr() for weight in model.parameters()]
    own = model.model.layers
    with pytest.raises(ValueError, match=reason):
        Layers(model.model)
    assert model.model.layers is own
    assert [weight.data_ptr() for weight in model.parameters()] == places


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 10, 64, 700])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
@torch.inference_mode()
def test_real_shapes_on_a_gpu(name: str, count: int, dtype: torch.dtype) -> None:
    wide = config(
        name,
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        initializer_range=0.02,
    )
    plain = hf_model(wide).cuda()
    tokens = random_tokens(count).cuda()
    expected = plain(tokens[None]).logits[0]
    own = plain.to(dtype)(tokens[None]).logits[0].float()  # what rounding alone does
    model, _ = _fused(plain)
    cache = model.new_cache(count)
    attention = ChunkPass(cache, cache.stage(count), SdpaKernels(), "fused")
    got = model.forward(tokens, torch.arange(count, device="cuda"), attention).logits.float()
    floor = (own - expected).abs().max()
    assert (got - expected).abs().max() <= 2 * floor + 1e-3
