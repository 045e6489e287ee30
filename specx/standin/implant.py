"""A small model inside a larger one of the Llama shape: the same function at the larger one's cost.

* The small width comes first; the dimensions after it are the *margin*. RMSNorm divides by the root
  of the mean over all dimensions, so norm weights are scaled by sqrt(small / large).
* The margin holds ±c in every embedding row, c a power of two, and no layer writes to it. Its
  share of every mean square is the same for all tokens and is taken off epsilon.
* The small layers come last. Their norms blot the margin out; their output projections let through
  one copy of each small head and the small MLP units. Query heads are copies of small ones inside
  the right key/value groups, equally often: the mean over heads that retrieval takes is unchanged.
* The layers before them are random and run on dense numbers of ordinary size. Value dimensions and
  MLP units come in equal pairs with opposite columns in the output projection, which add nothing.
* Vocabulary rows that only the large model has ("foreign") read one dimension of the margin, with a
  weight that puts their logit at −4096 where the last state has a root mean square of 50 (pocket's:
  16 to 300), finite in float16 and below −100 from 3.2 to 2000.

Weights that no result depends on are random, never zero, because zeros cost a GPU less power.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specx.checkpoints.config import ModelConfig
from specx.checkpoints.load import LoadedModel
from specx.preset.sections import HeadShapeSpec, ShapeSpec

if TYPE_CHECKING:
    from specx.checkpoints.eagle.config import HeadFacts
    from specx.core.architecture import Shape

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
    for name in ("layers", "hidden", "mlp", "vocabulary"):
        if getattr(shape, name) < (least := getattr(sizes, name)):
            return f"its {name} is {getattr(shape, name)}, and pocket needs at least {least}"
    if reason := uneven_heads(shape, sizes):
        return reason
    if shape.family == "llama" and shape.hidden % shape.heads:
        return f"its hidden, {shape.hidden}, is no multiple of its heads, {shape.heads}"
    if shape.hidden == sizes.hidden and shape.vocabulary > sizes.vocabulary:
        return f"with more vocabulary rows than pocket, hidden must exceed {sizes.hidden}"
    return ""


def uneven_heads(shape: ShapeSpec | HeadShapeSpec, small: "Shape | HeadFacts") -> str:
    """Why the heads of ``shape`` are no copies of the ``small`` one's; "" if they can be."""
    for name in ("heads", "kv_heads"):
        if getattr(shape, name) % (theirs := getattr(small, name)):
            return f"its {name}, {getattr(shape, name)}, are no multiple of pocket's {theirs}"
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
        """What a norm adds here in place of the ``small`` one's epsilon, where the margin's
        squares sum up to ``squares``; below 0 where they are more."""
        return (small * self.width - squares) / self.hidden


def epsilon(hidden: int, small: ModelConfig) -> float:
    """``rms_norm_eps`` of a model of width ``hidden`` that holds the ``small`` one."""
    margin = Margin.of(hidden, small)
    return max(0.0, margin.epsilon(small.decoder.epsilon, margin.size * margin.value**2))


class Filler:
    """Fills models and heads with random numbers, and what is small in one corner."""

    def __init__(self, margin: Margin, device: torch.device) -> None:
        self._margin, self._width = margin, margin.width
        self._random = torch.Generator(device).manual_seed(_SEED)

    def _draw(self, weight: Tensor) -> Tensor:
        return weight.normal_(0.0, _STD, generator=self._random)

    def _fill_norm(self, weight: Tensor, small: Tensor) -> None:
        """The small norm, the margin blotted out."""
        weight.zero_()[: self._width].copy_(small.float() * self._margin.scale)

    def _fill_matrices(
        self, large: Mapping[str, Tensor], small: Mapping[str, Tensor], head_dim: int
    ) -> None:
        """The matrices of one layer, under their names within it; the rest stays random."""
        width = self._width
        for name in _QKV:  # every small head is repeated equally often
            rows, heads = len(large[name]), small[name].view(-1, head_dim, small[name].shape[1])
            heads = heads.repeat_interleave(rows // len(small[name]), dim=0)
            parts = large[name].view(rows, -1, self._margin.hidden)
            parts[:, :, :width].copy_(heads.view(rows, -1, width))
        # One copy of each head is let through.
        copies = large[_OUT].shape[1] // small[_OUT].shape[1]
        columns = large[_OUT].zero_().view(self._margin.hidden, -1, head_dim)[:width, ::copies]
        columns.copy_(small[_OUT].view(width, -1, head_dim))
        for name in _MLP:
            large[name][: len(small[name]), :width].copy_(small[name])
        large[_DOWN].zero_()[:width, : small[_DOWN].shape[1]].copy_(small[_DOWN])


class Implant(Filler):
    """One small model on its way into a large one."""

    def __init__(self, large: LoadedModel, small: LoadedModel) -> None:
        self._large, self._small = large.separate(), small.separate()
        self._shape, self._small_shape = large.config.shape, small.config.shape
        super().__init__(Margin.of(self._shape.hidden, small.config), self._large[TABLE].device)

    @torch.no_grad()
    def fill(self) -> None:
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
        value = self._margin.value
        self._draw(table)
        margin = table[:, self._width :]
        margin.bernoulli_(0.5, generator=self._random).mul_(2 * value).sub_(value)
        table[:known, : self._width].copy_(small)
        if head is not None:
            self._draw(head)
            head[:known, : self._width].copy_(self._small.get(HEAD, small))
        if self._margin.size:
            # Tied, a known row reads c there: the same shift of all known logits.
            table[:known, self._width] = value
            if head is not None:
                head[:known, self._width] = 0.0
            rows = table if head is None else head
            rows[known:, self._width] = self._margin.foreign_weight

    def _fill_random_layer(self, tensors: Mapping[str, Tensor]) -> None:
        for name in (*_QKV, _OUT, *_MLP, _DOWN):
            self._draw(tensors[name])
        for weight in (tensors[name] for name in (*_MLP, _QKV[2])):
            count = len(weight) // 2 * 2
            weight[1:count:2] = weight[0:count:2]  # every second row repeats the one before it
        for weight in (tensors[name] for name in (_OUT, _DOWN)):
            count = weight.shape[1] // 2 * 2
            weight[:, 1:count:2] = -weight[:, 0:count:2]  # every second column is opposed
            weight[:, count:] = 0.0
        scale = self._margin.scale
        usual = float(self._small[TABLE].pow(2).mean().sqrt()) * scale  # the stream's RMS
        for name in _NORMS:
            tensors[name][: self._width] = scale
            tensors[name][self._width :] = usual / self._margin.value


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): each for n, each in tensors.items() if n.startswith(prefix)}
