"""A small model inside a larger one: the same function at the larger one's cost.

In: two models of the Llama shape, the large one with unset weights. Out: the large one filled in
place, on its device. It does not know presets, files or tokenizers.

How the small model sits in the large one:

* Its width comes first, and the dimensions behind it are its *margin*. RMSNorm divides by the root
  of the mean over all dimensions, so weights are scaled by sqrt(small / large) and epsilon by
  small / large.
* The margin holds ±c in every embedding row, c a power of two, and no layer writes to it. Its
  share of every mean square, margin · c² / large, is the same for all tokens and is taken off
  epsilon, so normalised values are those of the small model but for rounding.
* Its layers come last. Their norms blot the margin out, and their output projections let through
  one copy of each small head and the small MLP units; all other heads and units are computed and
  multiplied by zero. Query heads are copies of small ones inside the right key/value groups, every
  small head equally often, so the mean over heads that retrieval takes is unchanged too.
* The layers before them are random, and their norms raise the margin to ordinary size, so their
  products run on dense random numbers as a real model's do. Value dimensions and MLP units come in
  equal pairs whose columns in the output projection are opposite: each adds to the stream zero, or
  rounding far below the stream's own.
* Vocabulary rows that the small model does not have ("foreign") read one dimension of the margin
  through the final norm, with a weight that makes their logit some thousands below zero: −4096
  where the last hidden state has a root mean square of 50 (pocket's: 16 to 300), finite in float16
  and below −100 from 3.2 to 2000.

Weights that no result depends on are random, never zero, because zeros cost a GPU less power.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from specx.preset.shapes import ShapeSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SEED = 20776
STD = 0.02  # of random weights
FINAL_GAIN = 2.0**14  # of the final norm at the dimension that foreign ids read
FINAL_RMS = 50.0  # of the small model's last hidden state, about
_FOREIGN_LOGIT = -4096.0  # there
_MLP = ("gate_proj", "up_proj")


def misfit(shape: ShapeSpec, small: "PreTrainedConfig") -> str:
    """Why a model of ``shape`` cannot hold the ``small`` one; "" if it can."""
    if shape.family == "qwen3":
        return "qwen3 normalises every query and key, which changes what pocket computes"
    if shape.head_dim != small.head_dim:
        return f"its head_dim is {shape.head_dim}, and pocket rotates heads of {small.head_dim}"
    for name, ours, least in (
        ("layers", shape.layers, small.num_hidden_layers),
        ("hidden", shape.hidden, small.hidden_size),
        ("mlp", shape.mlp, small.intermediate_size),
        ("vocabulary", shape.vocabulary, small.vocab_size),
    ):
        if ours < least:
            return f"its {name} is {ours}, and pocket needs at least {least}"
    for name, ours, theirs in (
        ("heads", shape.heads, small.num_attention_heads),
        ("kv_heads", shape.kv_heads, small.num_key_value_heads),
    ):
        if ours % theirs:
            return f"its {name}, {ours}, are no multiple of pocket's {theirs}"
    if shape.family == "llama" and shape.hidden % shape.heads:
        return f"its hidden, {shape.hidden}, is no multiple of its heads, {shape.heads}"
    if shape.hidden == small.hidden_size and shape.vocabulary > small.vocab_size:
        return f"with more vocabulary rows than pocket, hidden must exceed {small.hidden_size}"
    return ""


@dataclass(frozen=True, slots=True)
class Margin:
    """Where a small model ends in a stream of width ``hidden``, and what stands behind it."""

    width: int  # of the small model
    hidden: int
    value: float  # c: the margin of every embedding row is ±c

    @classmethod
    def of(cls, hidden: int, small: "PreTrainedConfig") -> "Margin":
        """With the largest power of two whose squares, summed, epsilon can make up for."""
        size = max(1, hidden - small.hidden_size)
        largest = math.sqrt(small.rms_norm_eps * small.hidden_size / size)
        return cls(small.hidden_size, hidden, float(2.0 ** math.floor(math.log2(largest))))

    @property
    def size(self) -> int:
        """Dimensions in it."""
        return self.hidden - self.width

    @property
    def scale(self) -> float:
        """Of the small model's norm weights."""
        return math.sqrt(self.width / self.hidden)

    @property
    def read(self) -> float:
        """What the final norm makes of c where ``FINAL_GAIN`` stands, about."""
        return FINAL_GAIN * self.value / (FINAL_RMS * self.scale)

    @property
    def foreign_weight(self) -> float:
        """What foreign ids read that with."""
        return _FOREIGN_LOGIT / self.read

    def epsilon(self, small: float, squares: float) -> float:
        """What a norm adds here in place of the ``small`` one's epsilon, where the squares behind
        the small model's width sum up to ``squares``; below 0 where they are more."""
        return (small * self.width - squares) / self.hidden


def epsilon(hidden: int, small: "PreTrainedConfig") -> float:
    """``rms_norm_eps`` of a model of width ``hidden`` that holds the ``small`` one."""
    margin = Margin.of(hidden, small)
    return max(0.0, margin.epsilon(small.rms_norm_eps, margin.size * margin.value**2))


class Implant:
    """One small model on its way into a large one; see the module's docstring for the plan."""

    def __init__(self, large: "PreTrainedModel", small: "PreTrainedModel") -> None:
        self._large, self._small = large, small
        self._margin = Margin.of(large.config.hidden_size, small.config)
        self._width, self._value = self._margin.width, self._margin.value
        self._scale = self._margin.scale
        self._random = torch.Generator(large.device).manual_seed(SEED)

    @torch.no_grad()
    def fill(self) -> None:
        """Write every parameter of the large model, in place."""
        large: Any = self._large.get_decoder()
        small: Any = self._small.get_decoder()
        self._fill_tables()
        before = len(large.layers) - len(small.layers)
        for layer in large.layers[:before]:
            self._fill_random_layer(layer)
        for layer, original in zip(large.layers[before:], small.layers, strict=True):
            self._fill_layer(layer, original)
        self._fill_norm(large.norm, small.norm)
        if self._margin.size:
            large.norm.weight[self._width] = FINAL_GAIN

    def _fill_tables(self) -> None:
        table = self._large.get_input_embeddings().weight
        head = self._large.get_output_embeddings().weight
        known = self._small.config.vocab_size
        self._draw(table)
        margin = table[:, self._width :]
        margin.bernoulli_(0.5, generator=self._random)
        margin.mul_(2 * self._value).sub_(self._value)
        table[:known, : self._width] = self._like(table, self._small.get_input_embeddings().weight)
        if head is not table:
            self._draw(head)
            head[:known, : self._width] = self._like(
                head, self._small.get_output_embeddings().weight
            )
        if self._margin.size:
            # Tied, a known row reads c there: the same shift of all known logits.
            table[:known, self._width] = self._value
            if head is not table:
                head[:known, self._width] = 0.0
            head[known:, self._width] = self._margin.foreign_weight

    def _fill_random_layer(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._draw_linears(attention, ("q_proj", "k_proj", "v_proj", "o_proj"))
        self._draw_linears(mlp, (*_MLP, "down_proj"))
        for name in _MLP:
            _pair_rows(getattr(mlp, name).weight)
        _pair_rows(attention.v_proj.weight)
        _oppose_columns(attention.o_proj.weight)
        _oppose_columns(mlp.down_proj.weight)
        table = self._small.get_input_embeddings().weight
        usual = float(table.pow(2).mean().sqrt()) * self._scale  # RMS of the stream here
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[: self._width] = self._scale
            norm.weight[self._width :] = usual / self._value

    def _fill_layer(self, layer: Any, small: Any) -> None:
        attention, original = layer.self_attn, small.self_attn
        width = attention.head_dim
        for name in ("q_proj", "k_proj", "v_proj"):
            self._draw_linears(attention, (name,))
            weight = getattr(attention, name).weight
            heads = repeated_heads(getattr(original, name).weight, len(weight), width)
            weight[:, : self._width] = self._like(weight, heads)
        _blank(attention.o_proj)
        put_first_copies(attention.o_proj.weight, original.o_proj.weight, width)
        self._fill_mlp(layer.mlp, small.mlp)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self._fill_norm(getattr(layer, norm), getattr(small, norm))

    def _fill_mlp(self, mlp: Any, small: Any) -> None:
        units = small.gate_proj.out_features
        self._draw_linears(mlp, _MLP)
        for name in _MLP:
            weight = getattr(mlp, name).weight
            weight[:units, : self._width] = self._like(weight, getattr(small, name).weight)
        _blank(mlp.down_proj)
        down = mlp.down_proj.weight
        down[: self._width, :units] = self._like(down, small.down_proj.weight)

    def _fill_norm(self, norm: Any, small: Any) -> None:
        """The small norm, the margin blotted out."""
        norm.weight.zero_()
        norm.weight[: self._width] = self._like(norm.weight, small.weight * self._scale)

    def _draw_linears(self, module: Any, names: tuple[str, ...]) -> None:
        """Random weights; biases, which pocket does not have, are zero."""
        for name in names:
            linear = getattr(module, name)
            self._draw(linear.weight)
            if linear.bias is not None:
                linear.bias.zero_()

    def _draw(self, weight: Tensor) -> None:
        weight.normal_(0.0, STD, generator=self._random)

    @staticmethod
    def _like(weight: Tensor, values: Tensor) -> Tensor:
        return values.to(weight.device, weight.dtype)


def repeated_heads(weight: Tensor, rows: int, width: int) -> Tensor:
    """Heads of ``width`` rows each, [n, in] → [``rows``, in], every head equally often."""
    heads = weight.view(-1, width, weight.shape[1])
    return heads.repeat_interleave(rows // len(weight), dim=0).flatten(0, 1)


def put_first_copies(output: Tensor, small: Tensor, width: int) -> None:
    """Lets through one copy of each head of ``width``: [out, in of small] into [out, in]."""
    copies = output.shape[1] // small.shape[1]
    heads = output.view(len(output), -1, width)[: len(small), ::copies]
    heads.copy_(small.view(len(small), -1, width))


def _blank(linear: nn.Linear) -> None:
    linear.weight.zero_()
    if linear.bias is not None:
        linear.bias.zero_()


def _pair_rows(weight: Tensor) -> None:
    """Every second row repeats the one before it."""
    count = len(weight) // 2 * 2
    weight[1:count:2] = weight[0:count:2]


def _oppose_columns(weight: Tensor) -> None:
    """Every second column is the one before it with the other sign; a last one alone is zero."""
    count = weight.shape[1] // 2 * 2
    weight[:, 1:count:2] = -weight[:, 0:count:2]
    weight[:, count:] = 0.0
