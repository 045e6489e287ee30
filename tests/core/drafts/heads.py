"""Random EAGLE heads in every published form, and what they compute, written a second time.

``naive_states`` follows the papers line by line over the whole sequence at once: no cache, no
joined matrices, no compact positions.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from specx.core.drafts.eagle import LAYER, EagleHead, HeadConfig
from specx.core.model import Model
from tests.core.tiny import Pair, config, disturbed, hf_model, twin

HEADS, KEY_HEADS, WIDTH, MLP, OWN_WORDS = 4, 2, 8, 24, 60
LAYERS = (2, 4, 5)  # of a target with eight layers

#: Every form: (generation, what it has besides).
FORMS: dict[str, tuple[Literal[1, 3], frozenset[str]]] = {
    "eagle": (1, frozenset()),
    "eagle-bias": (1, frozenset({"bias", "qkv_bias", "embedding"})),
    "eagle3": (3, frozenset({"words"})),
    "eagle3-shared": (3, frozenset()),
    "eagle3-speculators": (3, frozenset({"words", "embedding", "qk_norm", "residual_is_normed"})),
    "eagle3-fc-norms": (3, frozenset({"fc_norm", "output_is_normed", "words"})),
    "eagle3-input-norm": (3, frozenset({"input_norm"})),
}


def make_tensors(form: str, hidden: int, vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """A random head's tensors [out, in] under the names that the core knows."""
    generation, has = FORMS[form]
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 1.5 / columns**0.5

    def vector(rows: int, around: float = 1.0) -> Tensor:
        return around + 0.3 * torch.randn(rows, generator=generator)

    inputs = hidden if generation == 1 else 2 * hidden
    features = 2 if generation == 1 else len(LAYERS)
    attention = f"{LAYER}self_attn."
    tensors = {
        "fc.weight": matrix(hidden, features * hidden),
        f"{attention}q_proj.weight": matrix(HEADS * WIDTH, inputs),
        f"{attention}k_proj.weight": matrix(KEY_HEADS * WIDTH, inputs),
        f"{attention}v_proj.weight": matrix(KEY_HEADS * WIDTH, inputs),
        f"{attention}o_proj.weight": matrix(hidden, HEADS * WIDTH),
        f"{LAYER}mlp.gate_proj.weight": matrix(MLP, hidden),
        f"{LAYER}mlp.up_proj.weight": matrix(MLP, hidden),
        f"{LAYER}mlp.down_proj.weight": matrix(hidden, MLP),
        f"{LAYER}post_attention_layernorm.weight": vector(hidden),
    }
    if generation == 3:
        for name in (f"{LAYER}hidden_norm", f"{LAYER}input_layernorm", "norm"):
            tensors[f"{name}.weight"] = vector(hidden)
    if "bias" in has:
        tensors["fc.bias"] = vector(hidden, 0.0)
    if "qkv_bias" in has:
        for name, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
            tensors[f"{attention}{name}_proj.bias"] = vector(heads * WIDTH, 0.0)
    if "qk_norm" in has:
        tensors |= {f"{attention}{name}_norm.weight": vector(WIDTH) for name in "qk"}
    if "fc_norm" in has:
        tensors |= {f"fc_norm.{index}.weight": vector(hidden) for index in range(len(LAYERS))}
    if "input_norm" in has:
        tensors["input_norm.weight"] = vector(features * hidden)
    if "embedding" in has:
        tensors["embed_tokens.weight"] = matrix(vocabulary, hidden) * 4
    if "words" in has:
        chosen = torch.randperm(vocabulary, generator=generator)[:OWN_WORDS].sort().values
        tensors["lm_head.weight"] = matrix(OWN_WORDS, hidden) * 4
        tensors["d2t"] = chosen - torch.arange(OWN_WORDS)
    return tensors


def make_config(form: str) -> HeadConfig:
    """The configuration of a random head."""
    generation, has = FORMS[form]
    frequencies = 10000.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    return HeadConfig(
        generation=generation,
        heads=HEADS,
        head_dim=WIDTH,
        epsilon=1e-5,
        inverse_frequencies=frequencies,
        feature_layers=LAYERS if generation == 3 else (),
        residual_is_normed="residual_is_normed" in has,
        output_is_normed="output_is_normed" in has,
    )


def make_pair(form: str = "eagle3", family: str = "llama", seed: int = 0) -> Pair:
    """A target of eight layers with a head, and an untouched twin of the target."""
    model = hf_model(config(family, num_hidden_layers=8), seed)
    target = Model(twin(model))
    tensors = make_tensors(form, model.config.hidden_size, model.config.vocab_size, seed)
    return Pair(target, EagleHead(make_config(form), tensors, target), model)


def naive_states(
    form: str, tensors: dict[str, Tensor], embedding: Tensor, features: Tensor, tokens: Tensor,
    guesses: tuple[int, ...] = (),
) -> Tensor:  # fmt: skip
    """States of the pairs (features [n, width] of the target, tokens [n]), then of a path of
    ``guesses`` behind them, each reading the state before it. Positions count from 0."""
    generation, has = FORMS[form]

    def norm(rows: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-5)
        return rows * scale * tensors[f"{name}.weight"]

    own = tensors.get("embed_tokens.weight", embedding)
    if generation == 3:
        if "fc_norm" in has:
            parts = features.chunk(len(LAYERS), dim=-1)
            features = torch.cat([norm(part, f"fc_norm.{i}") for i, part in enumerate(parts)], -1)
        if "input_norm" in has:
            features = norm(features, "input_norm")
        features = features @ tensors["fc.weight"].T
    states = _layer(form, tensors, norm, own[tokens], features)
    for count, guess in enumerate(guesses):
        tokens = torch.cat([tokens, torch.tensor([guess])])
        features = torch.cat([features, states[-1:]])
        again = _layer(form, tensors, norm, own[tokens], features)
        assert torch.allclose(again[:-1], states, atol=1e-4), f"the path changed before {count}"
        states = again
    return states


def _layer(
    form: str, tensors: dict[str, Tensor], norm: Any, embedded: Tensor, features: Tensor
) -> Tensor:
    generation, has = FORMS[form]
    attention, mlp = f"{LAYER}self_attn.", f"{LAYER}mlp."

    def times(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    if generation == 1:
        residual = inputs = times("fc", torch.cat([embedded, features], -1))
    else:
        normed = norm(features, f"{LAYER}hidden_norm")
        inputs = torch.cat([norm(embedded, f"{LAYER}input_layernorm"), normed], -1)
        residual = normed if "residual_is_normed" in has else features
    rows = inputs.shape[0]

    def heads(name: str, count: int) -> Tensor:
        return times(f"{attention}{name}_proj", inputs).view(rows, count, WIDTH).transpose(0, 1)

    query, key, value = heads("q", HEADS), heads("k", KEY_HEADS), heads("v", KEY_HEADS)
    if "qk_norm" in has:
        query, key = norm(query, f"{attention}q_norm"), norm(key, f"{attention}k_norm")
    angles = torch.arange(rows)[:, None] * 10000.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def rotate(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    group = HEADS // KEY_HEADS
    key, value = (each.repeat_interleave(group, 0) for each in (rotate(key), value))
    scores = rotate(query) @ key.transpose(1, 2) / WIDTH**0.5
    scores = scores.masked_fill(torch.ones(rows, rows).triu(1).bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(rows, -1)
    stream = residual + times(f"{attention}o_proj", mixed)
    inner = norm(stream, f"{LAYER}post_attention_layernorm")
    inner = F.silu(times(f"{mlp}gate_proj", inner)) * times(f"{mlp}up_proj", inner)
    stream = stream + times(f"{mlp}down_proj", inner)
    return norm(stream, "norm") if "output_is_normed" in has else stream


def naive_logits(form: str, tensors: dict[str, Tensor], head: Tensor, states: Tensor) -> Tensor:
    """Logits [n, V] over the target's vocabulary; ``head`` is the target's output matrix."""
    generation, has = FORMS[form]
    if generation == 3 and "output_is_normed" not in has:
        scale = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-5)
        states = states * scale * tensors["norm.weight"]
    if "words" not in has:
        return states @ head.T
    logits = torch.full((states.shape[0], head.shape[0]), float("-inf"))
    for word, offset in enumerate(tensors["d2t"].tolist()):
        logits[:, word + offset] = states @ tensors["lm_head.weight"][word]
    return logits


@torch.no_grad()
def true_features(pair: Pair, form: str, tokens: Tensor) -> Tensor:
    """What the untouched target computes at every token [n, width]."""
    output = pair.reference(tokens[None], output_hidden_states=True)
    if FORMS[form][0] == 1:
        return output.hidden_states[-1][0]
    return torch.cat([output.hidden_states[layer][0] for layer in LAYERS], dim=-1)


__all__ = ["FORMS", "disturbed", "make_config", "make_pair", "make_tensors", "naive_logits",
           "naive_states", "true_features"]  # fmt: skip
