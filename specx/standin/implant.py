"""A small model inside a larger one: the same function at the larger one's cost.

In: the tensors of two models of the Llama shape, under the names of files, the large one's with
room and no values. Out: the large one's filled in place. It does not know presets or tokenizers.

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
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from specx.checkpoints.config import ModelConfig
from specx.checkpoints.load import LoadedModel
from specx.preset.shapes import HeadShapeSpec, ShapeSpec

_SEED = 20776
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
_STD = 0.02  # of random weights
FINAL_GAIN = 2.0**14  # of the final norm at the dimension that foreign ids read
FINAL_RMS = 50.0  # of the small model's last hidden state, about
_FOREIGN_LOGIT = -4096.0  # there
_QKV = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")
_MLP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_OUT, _DOWN = "self_attn.o_proj.weight", "mlp.down_proj.weight"
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def misfit(shape: ShapeSpec, small: ModelConfig) -> str:
    """Why a model of ``shape`` cannot hold the ``small`` one; "" if it can."""
    sizes = small.shape
    if shape.family == "qwen3":
        return "qwen3 normalises every query and key, which changes what pocket computes"
    if shape.head_dim != sizes.head_dim:
        return f"its head_dim is {shape.head_dim}, and pocket rotates heads of {sizes.head_dim}"
    for name, ours, least in (
        ("layers", shape.layers, sizes.layers),
        ("hidden", shape.hidden, sizes.hidden),
        ("mlp", shape.mlp, sizes.mlp),
        ("vocabulary", shape.vocabulary, sizes.vocabulary),
    ):
        if ours < least:
            return f"its {name} is {ours}, and pocket needs at least {least}"
    if reason := uneven_heads(shape, sizes.heads, sizes.kv_heads):
        return reason
    if shape.family == "llama" and shape.hidden % shape.heads:
        return f"its hidden, {shape.hidden}, is no multiple of its heads, {shape.heads}"
    if shape.hidden == sizes.hidden and shape.vocabulary > sizes.vocabulary:
        return f"with more vocabulary rows than pocket, hidden must exceed {sizes.hidden}"
    return ""


def uneven_heads(shape: ShapeSpec | HeadShapeSpec, heads: int, kv_heads: int) -> str:
    """Why the heads of ``shape`` are no copies of ``heads`` and ``kv_heads``; "" if they can be."""
    for name, ours, theirs in (
        ("heads", shape.heads, heads),
        ("kv_heads", shape.kv_heads, kv_heads),
    ):
        if ours % theirs:
            return f"its {name}, {ours}, are no multiple of pocket's {theirs}"
    return ""


@dataclass(frozen=True, slots=True)
class Margin:
    """Where a small model ends in a stream of width ``hidden``, and what comes after it."""

    width: int  # of the small model
    hidden: int
    value: float  # c: the margin of every embedding row is ±c

    @classmethod
    def of(cls, hidden: int, small: ModelConfig) -> "Margin":
        """With the largest power of two whose squares, summed, epsilon can make up for."""
        width = small.shape.hidden
        largest = math.sqrt(small.decoder.epsilon * width / max(1, hidden - width))
        return cls(width, hidden, float(2.0 ** math.floor(math.log2(largest))))

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


def epsilon(hidden: int, small: ModelConfig) -> float:
    """``rms_norm_eps`` of a model of width ``hidden`` that holds the ``small`` one."""
    margin = Margin.of(hidden, small)
    return max(0.0, margin.epsilon(small.decoder.epsilon, margin.size * margin.value**2))


class Filler:
    """What models and heads are filled with: random numbers, and what is small in one corner."""

    def __init__(self, margin: Margin, device: torch.device) -> None:
        self._margin, self._width = margin, margin.width
        self._random = torch.Generator(device).manual_seed(_SEED)

    def _draw(self, weight: Tensor) -> Tensor:
        return weight.normal_(0.0, _STD, generator=self._random)

    def _fill_norm(self, weight: Tensor, small: Tensor) -> None:
        """The small norm, the margin blotted out."""
        weight.zero_()[: self._width] = like(weight, small.float() * self._margin.scale)

    def _fill_matrices(
        self, large: Mapping[str, Tensor], small: Mapping[str, Tensor], head_dim: int
    ) -> None:
        """The matrices of one layer, both under their names within it; random ones stay random
        where they read nothing."""
        width = self._width
        for name in _QKV:
            weight = large[name]
            heads = _repeated_heads(small[name], len(weight), head_dim)
            parts = weight.view(len(weight), -1, self._margin.hidden)
            parts[:, :, :width] = like(weight, heads).view(len(weight), -1, width)
        _put_first_copies(large[_OUT].zero_(), small[_OUT], head_dim)
        for name in _MLP:
            large[name][: len(small[name]), :width] = like(large[name], small[name])
        down = like(large[_DOWN], small[_DOWN])
        large[_DOWN].zero_()[:width, : down.shape[1]] = down


class Implant(Filler):
    """One small model on its way into a large one; see the module's docstring for the plan."""

    def __init__(self, large: LoadedModel, small: LoadedModel) -> None:
        self._large, self._small = large.separate(), small.separate()
        self._shape, self._small_shape = large.config.shape, small.config.shape
        margin = Margin.of(self._shape.hidden, small.config)
        super().__init__(margin, self._large[TABLE].device)
        self._value = margin.value

    @torch.no_grad()
    def fill(self) -> None:
        """Write every tensor of the large model, in place."""
        self._fill_tables()
        before = self._shape.layers - self._small_shape.layers
        for layer in range(self._shape.layers):
            tensors = within(self._large, f"layers.{layer}.")
            for name, tensor in tensors.items():
                if name.endswith(".bias"):  # pocket has none
                    tensor.zero_()
            if layer < before:
                self._fill_random_layer(tensors)
                continue
            small = within(self._small, f"layers.{layer - before}.")
            for name in (*_QKV, *_MLP):
                self._draw(tensors[name])
            self._fill_matrices(tensors, small, self._shape.head_dim)
            for name in _NORMS:
                self._fill_norm(tensors[name], small[name])
        self._fill_norm(self._large["norm.weight"], self._small["norm.weight"])
        if self._margin.size:
            self._large["norm.weight"][self._width] = FINAL_GAIN

    def _fill_tables(self) -> None:
        table, head = self._large[TABLE], self._large.get(HEAD)
        known, small = self._small_shape.vocabulary, self._small[TABLE]
        self._draw(table)
        margin = table[:, self._width :]
        margin.bernoulli_(0.5, generator=self._random)
        margin.mul_(2 * self._value).sub_(self._value)
        table[:known, : self._width] = like(table, small)
        if head is not None:
            self._draw(head)
            head[:known, : self._width] = like(head, self._small.get(HEAD, small))
        if self._margin.size:
            # Tied, a known row reads c there: the same shift of all known logits.
            table[:known, self._width] = self._value
            if head is not None:
                head[:known, self._width] = 0.0
            rows = table if head is None else head
            rows[known:, self._width] = self._margin.foreign_weight

    def _fill_random_layer(self, tensors: Mapping[str, Tensor]) -> None:
        for name in (*_QKV, _OUT, *_MLP, _DOWN):
            self._draw(tensors[name])
        for name in (*_MLP, _QKV[2]):  # every second row repeats the one before it
            weight = tensors[name]
            count = len(weight) // 2 * 2
            weight[1:count:2] = weight[0:count:2]
        for name in (_OUT, _DOWN):  # every second column is opposed; a last one alone is zero
            weight = tensors[name]
            count = weight.shape[1] // 2 * 2
            weight[:, 1:count:2] = -weight[:, 0:count:2]
            weight[:, count:] = 0.0
        scale = self._margin.scale
        usual = float(self._small[TABLE].pow(2).mean().sqrt()) * scale  # the stream's RMS
        for name in _NORMS:
            tensors[name][: self._width] = scale
            tensors[name][self._width :] = usual / self._value


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {n.removeprefix(prefix): each for n, each in tensors.items() if n.startswith(prefix)}


def like(weight: Tensor, values: Tensor) -> Tensor:
    """``values`` in the place and dtype of ``weight``."""
    return values.to(weight.device, weight.dtype)


def _repeated_heads(weight: Tensor, rows: int, width: int) -> Tensor:
    """Heads of ``width`` rows each, [n, in] → [``rows``, in], every head equally often."""
    heads = weight.view(-1, width, weight.shape[1])
    return heads.repeat_interleave(rows // len(weight), dim=0).flatten(0, 1)


def _put_first_copies(output: Tensor, small: Tensor, width: int) -> None:
    """Lets through one copy of each head of ``width``: [out, in of small] into [out, in]."""
    copies = output.shape[1] // small.shape[1]
    heads = output.view(len(output), -1, width)[: len(small), ::copies]
    heads.copy_(small.view(len(small), -1, width))
