"""The Llama forward pass for training, as pure functions of tensors, and its losses.

In: a Hugging Face Llama model's parameters, tokens [B, T]. Out: hidden states, losses, the last
layer's attention mass on copy sources. One decoder block is one function: it compiles once per
sequence length and serves all layers. Knows no data, optimizer or file; a test holds it against
the Hugging Face forward.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

POINTER_SPAN = 24
"""A query may look this many tokens past its source and still count as pointing at it."""

Block = tuple[Tensor, ...]
"""Norm, q, k, v, o, norm, gate, up, down: the weights of one decoder layer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the block function needs beside tensors."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of a model, the very tensors that its module holds."""

    shape: Shape
    theta: float
    embedding: Tensor
    blocks: tuple[Block, ...]
    norm: Tensor


def make_config(
    *, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, theta: float, positions: int,
    vocabulary: int = 8192,
) -> LlamaConfig:  # fmt: skip
    """A Llama configuration with tied embeddings and the pair's special tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )


def make_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model in float32: output projections start at zero, so that every
    block starts as the identity."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                width = config.hidden_size if "embed" in name else parameter.shape[1]
                parameter.normal_(std=0.02 if "embed" in name else width**-0.5 * 0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    return model


def weights_of(model: LlamaForCausalLM) -> Weights:
    """The parameters of `model` in the order that `hidden_states` wants."""
    config = model.config
    blocks = tuple(
        (
            layer.input_layernorm.weight,
            layer.self_attn.q_proj.weight,
            layer.self_attn.k_proj.weight,
            layer.self_attn.v_proj.weight,
            layer.self_attn.o_proj.weight,
            layer.post_attention_layernorm.weight,
            layer.mlp.gate_proj.weight,
            layer.mlp.up_proj.weight,
            layer.mlp.down_proj.weight,
        )
        for layer in model.model.layers
    )
    shape = Shape(
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
    )
    theta = float(config.rope_parameters["rope_theta"])
    return Weights(shape, theta, model.model.embed_tokens.weight, blocks, model.model.norm.weight)


def rope(width: int, theta: float, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [T, width] float32, of positions 0 to T - 1 with base `theta`."""
    power = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] / theta**power
    angle = torch.cat([angle, angle], 1)
    return angle.cos(), angle.sin()


def normalise(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm over the last dimension, in float32."""
    values = hidden.float()
    scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
    return (values * scale * weight).to(hidden.dtype)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions applied to [..., T, head_dim]."""
    low, high = values.float().chunk(2, -1)
    return (values.float() * cos + torch.cat([-high, low], -1) * sin).to(values.dtype)


def block(hidden: Tensor, cos: Tensor, sin: Tensor, weights: Block, shape: Shape) -> Tensor:
    """One decoder layer with causal attention; hidden [B, T, D] in and out."""
    norm, q, k, v, o, norm_mlp, gate, up, down = weights
    batch, length, _ = hidden.shape
    x = normalise(hidden, norm, shape.epsilon)

    def split(projection: Tensor, heads: int) -> Tensor:
        return F.linear(x, projection).view(batch, length, heads, shape.head_dim).transpose(1, 2)

    query = rotate(split(q, shape.heads), cos, sin)
    key = rotate(split(k, shape.kv_heads), cos, sin)
    value = split(v, shape.kv_heads)
    group = shape.heads // shape.kv_heads
    mixed = F.scaled_dot_product_attention(
        query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), is_causal=True
    )
    hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), o)
    x = normalise(hidden, norm_mlp, shape.epsilon)
    return hidden + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def token_losses(hidden: Tensor, norm: Tensor, head: Tensor, labels: Tensor, e: float) -> Tensor:
    """[B, T] float32 cross entropy of `labels` given the last hidden states."""
    logits = F.linear(normalise(hidden, norm, e), head).float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def pointer_losses(
    hidden: Tensor, cos: Tensor, sin: Tensor, weights: Block, shape: Shape, rows: Tensor,
    sources: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How well a layer's attention points at copy sources.

    `hidden` [B, T, D] is what enters the layer; `rows` [B, R] are query positions and `sources`
    [B, R] the positions they should attend to (-1: unused row). Returns the loss per row, the mean
    over used rows, and the mean attention mass on `sources` to `sources + POINTER_SPAN`.
    """
    norm, q, k = weights[:3]
    batch, length, _ = hidden.shape
    x = normalise(hidden, norm, shape.epsilon)
    picked = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))
    query = F.linear(picked, q).view(batch, -1, shape.heads, shape.head_dim).transpose(1, 2)
    query = rotate(query, cos[rows][:, None], sin[rows][:, None])
    key = F.linear(x, k).view(batch, length, shape.kv_heads, shape.head_dim).transpose(1, 2)
    key = rotate(key, cos, sin).repeat_interleave(shape.heads // shape.kv_heads, 1)
    scores = (query @ key.transpose(-1, -2)).float() * shape.head_dim**-0.5
    position = torch.arange(length, device=hidden.device)
    scores = scores.masked_fill(position > rows[:, None, :, None], float("-inf"))
    mass = scores.softmax(-1).mean(1)
    start = sources.clamp(min=0)[:, :, None]
    near = (mass * ((position >= start) & (position <= start + POINTER_SPAN))).sum(-1)
    exact = mass.gather(2, start)[:, :, 0]
    used = (sources >= 0).float()
    total = used.sum().clamp(min=1.0)
    losses = -(near + 1e-6).log() - 0.5 * (exact + 1e-6).log()
    return (losses * used).sum() / total, (near * used).sum().detach() / total


@dataclass(frozen=True, slots=True)
class Forward:
    """The three functions above, plain or compiled for one sequence length."""

    block: Callable[..., Tensor]
    losses: Callable[..., Tensor]
    pointer: Callable[..., tuple[Tensor, Tensor]]

    @staticmethod
    def make(*, compiled: bool) -> "Forward":
        """Compiled functions are for static shapes: make new ones after a change of length."""
        if not compiled:
            return Forward(block, token_losses, pointer_losses)
        torch._dynamo.reset()
        return Forward(
            torch.compile(block, dynamic=False, fullgraph=True),
            torch.compile(token_losses, dynamic=False, fullgraph=True),
            torch.compile(pointer_losses, dynamic=False, fullgraph=True),
        )

    def hidden_states(self, weights: Weights, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(what enters the last layer, what leaves it), each [B, T, D]."""
        states = self.states(weights, tokens)
        return states[-2], states[-1]

    def states(self, weights: Weights, tokens: Tensor) -> list[Tensor]:
        """What enters each layer, and last what leaves the last one (un-normed), each [B, T, D]."""
        shape = weights.shape
        cos, sin = rope(shape.head_dim, weights.theta, tokens.shape[1], tokens.device)
        states = [F.embedding(tokens, weights.embedding)]
        for layer in weights.blocks:
            states.append(self.block(states[-1], cos, sin, layer, shape))
        return states

    def point(
        self, weights: Weights, entering: Tensor, rows: Tensor, sources: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`pointer_losses` of the last layer."""
        shape = weights.shape
        cos, sin = rope(shape.head_dim, weights.theta, entering.shape[1], entering.device)
        return self.pointer(entering, cos, sin, weights.blocks[-1], shape, rows, sources)
