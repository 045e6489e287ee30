"""EAGLE-1 and EAGLE-3 heads for training, as pure functions of tensors.

In: a target's features at positions t and the tokens at t + 1. Out: hidden states that the target's
own output matrix turns into logits for t + 2, and those of further steps, in which a head reads
its own output. Key names and layer order are those of the published heads (Li et al., EAGLE, 2024
and EAGLE-3, 2025). Knows no data, loss, optimizer or file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.forward import Forward, Shape, Weights, normalise, rope, rotate

THETA = 10_000.0
"""RoPE base of both heads, unlike the target's: published heads have it too."""

_LAYER = (
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight",
    "mlp.up_proj.weight", "mlp.down_proj.weight",
)  # fmt: skip
_PAD = 8
"""Attention rows are this much wider than the prefix: room for the path's keys, and aligned."""


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The parameters of a head, in `tensors` by their names on disk.

    `reads` are the target's layers whose inputs are its features; an EAGLE-1 head has none and
    reads the last state. `scales` [inputs of fc] multiplies what enters `fc`, so that every input
    has unit size whatever the size of the target's states; on disk it is part of `fc.weight` (see
    `folded`).
    """

    shape: Shape
    reads: tuple[int, ...]
    scales: Tensor
    tensors: Mapping[str, Tensor]

    @property
    def eagle3(self) -> bool:
        """Whether it is a head of EAGLE-3."""
        return bool(self.reads)

    def layer(self, name: str) -> Tensor:
        """A tensor of the decoder layer, by its name within the layer."""
        return self.tensors[("midlayer." if self.eagle3 else "layers.0.") + name]

    def folded(self) -> dict[str, Tensor]:
        """The tensors that go to disk: `scales` within `fc.weight`."""
        fc = self.tensors["fc.weight"] * self.scales
        return {name: t.detach() for name, t in self.tensors.items()} | {"fc.weight": fc.detach()}


def feature_layers(target: Weights) -> tuple[int, int, int]:
    """The decoder layers whose inputs an EAGLE-3 head reads: a low, a middle and the last one.

    The published heads read the third last, 29 of 32. Of 8 layers that would be 5, before the
    target knows what it will copy; its last layer is the one that points there.
    Raises ValueError for fewer than 6 layers.
    """
    layers = len(target.blocks)
    if layers < 6:
        raise ValueError(f"an EAGLE-3 head needs a target of 6 layers or more, this has {layers}")
    return 2, layers // 2, layers - 1


def target_features(
    forward: Forward, target: Weights, tokens: Tensor, reads: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """(features [B, T, F], normed last states [B, T, D]) of a target on `tokens` [B, T].

    The features are what enters the layers that a head `reads`, F = 3 D, or without any the normed
    last states.
    """
    states = forward.states(target, tokens)
    last = normalise(states[-1], target.norm, target.shape.epsilon)
    return torch.cat([states[i] for i in reads], -1) if reads else last, last


@torch.no_grad()
def make_head(target: Weights, *, eagle3: bool, mlp: int, seed: int) -> HeadWeights:
    """A fresh head of the target's width and head counts, on the CPU, in float32.

    Output projections start at zero. An EAGLE-1 head starts by handing its feature on, since its
    output must have a feature's size: the target's output matrix reads it as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    shape, hidden = target.shape, target.embedding.shape[1]
    rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    reads = feature_layers(target) if eagle3 else ()
    scales = _scales(target, generator, reads)
    wide = 2 * hidden if eagle3 else hidden

    def matrix(outputs: int, inputs: int) -> Tensor:
        drawn: Tensor = torch.randn(outputs, inputs, generator=generator) * (0.5 / inputs**0.5)
        return drawn

    layer = dict(
        zip(
            _LAYER,
            (
                matrix(rows, wide), matrix(kv_rows, wide), matrix(kv_rows, wide),
                torch.zeros(hidden, rows), torch.ones(hidden), matrix(mlp, hidden),
                matrix(mlp, hidden), torch.zeros(hidden, mlp),
            ), strict=True,
        )
    )  # fmt: skip
    if eagle3:
        layer |= {
            "hidden_norm.weight": torch.ones(hidden),
            "input_layernorm.weight": torch.ones(hidden),
        }
        tensors = {"fc.weight": 2 * matrix(hidden, 3 * hidden), "norm.weight": torch.ones(hidden)}
    else:
        keep = torch.diag(1 / scales[hidden:])
        tensors = {
            "fc.weight": torch.cat([0.2 * matrix(hidden, hidden), keep], 1),
            "fc.bias": torch.zeros(hidden),
        }
    prefix = "midlayer." if eagle3 else "layers.0."
    tensors |= {prefix + name: tensor for name, tensor in layer.items()}
    return HeadWeights(shape, reads, scales, tensors)


def _scales(target: Weights, generator: torch.Generator, reads: tuple[int, ...]) -> Tensor:
    """One over the typical size of each input of `fc`, as the target shows it on random tokens."""
    hidden = target.embedding.shape[1]
    device = target.embedding.device
    tokens = torch.randint(len(target.embedding), (1, 256), generator=generator).to(device)
    features, _ = target_features(Forward.make(compiled=False), target, tokens, reads)
    parts = list(torch.split(features[0], hidden, -1))
    if not reads:
        parts.insert(0, target.embedding[tokens[0]])
    sizes = [part.float().square().mean(-1).sqrt().median().cpu() for part in parts]
    return torch.cat([torch.full((hidden,), 1 / float(size.clamp(min=1e-6))) for size in sizes])


def enter(
    head: HeadWeights, embedded: Tensor, feature: Tensor, *, fed_back: bool
) -> tuple[Tensor, Tensor]:
    """(residual [..., D], what attention reads) from token embeddings and features.

    `fed_back` says that the feature is the head's own output: EAGLE-3 does not fuse it.
    """
    tensors, epsilon = head.tensors, head.shape.epsilon
    if not head.eagle3:
        both = torch.cat([embedded, feature], -1) * head.scales
        hidden = F.linear(both, tensors["fc.weight"], tensors["fc.bias"]).to(embedded.dtype)
        return hidden, hidden
    hidden = feature
    if not fed_back:
        hidden = F.linear(feature * head.scales, tensors["fc.weight"]).to(embedded.dtype)
    token = normalise(embedded, head.layer("input_layernorm.weight"), epsilon)
    state = normalise(hidden, head.layer("hidden_norm.weight"), epsilon)
    return hidden, torch.cat([token, state], -1)


def project(
    head: HeadWeights, inputs: Tensor, cos: Tensor, sin: Tensor, name: Literal["q", "k", "v"]
) -> Tensor:
    """Rotated query or key, or the value, [B, heads, T, d]: keys and values repeated to the query's
    heads."""
    shape = head.shape
    heads = shape.heads if name == "q" else shape.kv_heads
    projected = F.linear(inputs, head.layer(f"self_attn.{name}_proj.weight"))
    rows = projected.view(*inputs.shape[:2], heads, shape.head_dim).transpose(1, 2)
    if name != "v":
        rows = rotate(rows, cos, sin)
    return rows.repeat_interleave(shape.heads // heads, 1)


def leave(head: HeadWeights, residual: Tensor, mixed: Tensor) -> Tensor:
    """The layer's output [B, T, D] from its residual and the attention's [B, heads, T, d]."""
    flat = mixed.transpose(1, 2).flatten(2)
    hidden = residual + F.linear(flat, head.layer("self_attn.o_proj.weight"))
    x = normalise(hidden, head.layer("post_attention_layernorm.weight"), head.shape.epsilon)
    gate = F.silu(F.linear(x, head.layer("mlp.gate_proj.weight")))
    up = F.linear(x, head.layer("mlp.up_proj.weight"))
    return hidden + F.linear(gate * up, head.layer("mlp.down_proj.weight"))


def for_logits(head: HeadWeights, hidden: Tensor) -> Tensor:
    """What the target's output matrix reads: EAGLE-3 has a norm of its own, EAGLE-1 none."""
    if head.eagle3:
        return normalise(hidden, head.tensors["norm.weight"], head.shape.epsilon)
    return hidden


def path_attention(
    query: Tensor, key: Tensor, value: Tensor, roots: Tensor, path: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Attention of one query per root, [B, heads, R, d] in and out; `roots` [B, R].

    Root r sees the prefix keys [B, heads, T, d] of positions 0 to r, and of each step on its own
    path the (key, value) [B, heads, R, d] of its own row.
    """
    length, scale = key.shape[2], query.shape[3] ** -0.5
    prefix = (query @ key.transpose(-1, -2)) * scale
    position = torch.arange(length, device=query.device)
    prefix = prefix.masked_fill(position > roots[:, None, :, None], float("-inf"))
    own = [((query * k).sum(-1, keepdim=True) * scale).to(prefix.dtype) for k, _ in path]
    filler = prefix.new_full((), float("-inf")).expand(*prefix.shape[:-1], -len(path) % _PAD)
    weights = torch.cat([prefix, *own, filler], -1).softmax(-1).to(value.dtype)
    mixed = weights[..., :length] @ value
    for index, (_, v) in enumerate(path):
        mixed = mixed + weights[..., length + index, None] * v
    return mixed


def unroll(
    head: HeadWeights, embedding: Tensor, features: Tensor, tokens: Tensor, roots: Tensor,
    steps: int,
) -> list[Tensor]:  # fmt: skip
    """The layer's outputs of `steps` drafting steps along the true text (training-time test), each
    [B, R, D]: a row for each of the `roots` [B, R].

    `features` [B, T, F] are the target's, `tokens` [B, T + 1]. Step 1 reads (feature r, token
    r + 1) and predicts token r + 2. Step j > 1 reads its own output of step j - 1 and token r + j,
    stands at position r + j - 1 < T and predicts token r + j + 1. As in drafting, it attends to the
    step-1 keys of positions up to r and to the keys of its own path only.
    """
    length = features.shape[1]
    cos, sin = rope(head.shape.head_dim, THETA, length, features.device)
    embedded = F.embedding(tokens[:, 1:], embedding)
    residual, inputs = enter(head, embedded, features, fed_back=False)
    key, value = project(head, inputs, cos, sin, "k"), project(head, inputs, cos, sin, "v")
    sequences = torch.arange(len(tokens), device=tokens.device)[:, None]
    residual, inputs = residual[sequences, roots], inputs[sequences, roots]
    outputs: list[Tensor] = []
    path: list[tuple[Tensor, Tensor]] = []
    for step in range(1, steps + 1):
        at = roots + step - 1
        turn = cos[at][:, None], sin[at][:, None]
        if step > 1:
            residual, inputs = enter(head, embedded[sequences, at], outputs[-1], fed_back=True)
            path.append((project(head, inputs, *turn, "k"), project(head, inputs, *turn, "v")))
        query = project(head, inputs, *turn, "q")
        mixed = path_attention(query, key, value, roots, path)
        outputs.append(leave(head, residual, mixed))
    return outputs
