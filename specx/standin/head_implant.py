"""A small EAGLE head inside a larger one: the same guesses at the larger one's cost.

Layers are as in ``implant``, and the large target has the small one in it already.

* EAGLE-3 reads inputs of the target's layers, which end with ±c in the margin, the same at all of
  them. The first one's margin is handed on into the head's stream, so its norms work as the
  target's do. The other two taps' margins are read with random weights that cancel.
* EAGLE-1 reads normed states and norms only once. Of its stream's margin one dimension is not zero:
  the one that foreign vocabulary rows read. It is made from the embedding's constant c, because a
  state's own value there varies, and is about what the target's final norm gives there.
* A vocabulary of its own consists of the target's first rows.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from specx.checkpoints.eagle.config import HeadFacts
from specx.checkpoints.eagle.layout import LAYER, Generation, Shapes, needed_shapes
from specx.checkpoints.eagle.loader import LoadedHead
from specx.checkpoints.load import LoadedModel
from specx.preset.sections import HeadShapeSpec, ShapeSpec
from specx.standin import implant

_FEATURES = 3  # that pocket's EAGLE-3 head reads
_HEAD_RMS = 6.25  # of that head's last state, about: 1.6 to 18


def head_misfit(shape: HeadShapeSpec, target: ShapeSpec, small: HeadFacts, generation: int) -> str:
    """Why a head of ``shape`` beside ``target`` cannot hold the ``small`` one; "" if it can."""
    if shape.hidden != target.hidden:
        return f"its hidden is {shape.hidden}, and the target's embedding has {target.hidden}"
    if shape.head_dim != small.head_dim:
        return f"its head_dim is {shape.head_dim}, and pocket rotates heads of {small.head_dim}"
    if generation == 3 and shape.features != _FEATURES:
        return f"its features are {shape.features}, and pocket's head reads {_FEATURES}"
    if not small.draft_vocabulary <= shape.vocabulary <= target.vocabulary:
        least, most = small.draft_vocabulary, target.vocabulary
        return f"its vocabulary is {shape.vocabulary}, not between {least} and {most}"
    if shape.mlp < small.mlp:
        return f"its mlp is {shape.mlp}, and pocket needs at least {small.mlp}"
    if reason := implant.uneven_heads(shape, small):
        return reason
    if generation == 1 and not shape.bias and shape.hidden == small.hidden:
        return f"without a bias, hidden must exceed pocket's {small.hidden}"
    return ""


def tensor_shapes(shape: HeadShapeSpec, generation: Generation, vocabulary: int) -> Shapes:
    """Name → shape of the large head's tensors beside a target of ``vocabulary`` rows."""
    found = needed_shapes(shape, generation, shape.hidden)
    if shape.bias:
        found["fc.bias"] = (shape.hidden,)
    if generation == 3 and shape.vocabulary < vocabulary:
        found["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    return found


class HeadImplant(implant.Filler):
    """One small head on its way into a large one beside ``target``, which holds ``small_target``.

    Its residual is not normed, and it has no norms beyond the official ones.
    """

    def __init__(
        self,
        small: LoadedHead,
        shape: HeadShapeSpec,
        target: LoadedModel,
        small_target: LoadedModel,
    ) -> None:
        self._small, self._shape = small, shape
        self._target, self._small_target = target, small_target
        self._table = target.tensors[implant.TABLE]
        super().__init__(implant.Margin.of(shape.hidden, small_target.config), self._table.device)

    @torch.no_grad()
    def build(self) -> LoadedHead:
        config = self._small.config
        shapes = tensor_shapes(self._shape, config.generation, len(self._table))
        tensors = {n: self._draw(self._table.new_empty(size)) for n, size in shapes.items()}
        self._fill_joint(tensors)
        layer = implant.within(tensors, LAYER)
        self._fill_matrices(layer, implant.within(self._small.tensors, LAYER), config.head_dim)
        for name in "qkv":  # EAGLE-1's stream is not normed before
            weight = layer[f"self_attn.{name}_proj.weight"]
            parts = weight.view(len(weight), -1, self._shape.hidden)
            parts[:, :, self._width : self._width + 1] = 0.0
        for name in tensors:
            if name.endswith("norm.weight"):
                self._fill_norm(tensors[name], self._small.tensors[name])
        if config.generation == 3 and self._margin.size:
            tensors["norm.weight"][self._width] = implant.FINAL_GAIN * _HEAD_RMS / implant.FINAL_RMS
        if "lm_head.weight" in tensors:
            self._fill_rows(tensors["lm_head.weight"])
            tensors["d2t"] = self._table.new_zeros(self._shape.vocabulary, dtype=torch.int64)
        layers, small = (each.config.shape.layers for each in (self._target, self._small_target))
        config = replace(
            config,
            heads=self._shape.heads,
            epsilon=self._margin.epsilon(config.epsilon, self._squares()),
            feature_layers=tuple(layers - small + layer for layer in config.feature_layers),
        )
        return LoadedHead(config, tensors)

    @property
    def _constant(self) -> float:
        """What EAGLE-1's states hold where foreign rows read: a power of two, exact anywhere."""
        return float(2.0 ** round(math.log2(self._margin.read)))

    def _squares(self) -> float:
        """Of the margin of what is normed, summed."""
        if self._margin.size == 0:
            return 0.0
        if self._small.config.generation == 1:
            return self._constant**2
        return self._margin.size * self._margin.value**2

    def _fill_joint(self, tensors: dict[str, Tensor]) -> None:
        """What makes a stream of features, and in EAGLE-1 of the embedding too."""
        weight, small = tensors["fc.weight"], self._small.tensors["fc.weight"]
        width, hidden = self._width, self._shape.hidden
        parts = weight.view(hidden, -1, hidden)
        parts[:, :, :width] = 0.0
        parts[:width, :, :width].copy_(small.view(width, -1, width))
        if "fc.bias" in tensors:
            tensors["fc.bias"].zero_()
        if self._small.config.generation == 3:
            margins = parts[:, :, width:]  # of the taps, which are the same numbers
            margins[:, 0] = 0.0
            margins[width:, 0].fill_diagonal_(1.0)  # handed on
            margins[:, 2] = -margins[:, 1]
            return
        parts[:, 0, width:] = 0.0  # differs from token to token, but for its first dimension
        parts[:, 1, width : width + 1] = 0.0  # a state's value there varies
        if self._margin.size:
            parts[width, 0, width] = self._constant / self._margin.value
        if (bias := self._small.tensors.get("fc.bias")) is None:
            return
        if "fc.bias" in tensors:
            tensors["fc.bias"][:width].copy_(bias)
        else:
            parts[:width, 0, width].copy_(bias / self._margin.value)

    def _fill_rows(self, head: Tensor) -> None:
        """The head's own output matrix: the small target's, and rows that never win."""
        small = self._small_target.tensors
        rows = small.get(implant.HEAD, small[implant.TABLE])
        head[: len(rows), : self._width].copy_(rows)
        head[: len(rows), self._width] = 0.0
        head[len(rows) :, self._width] = self._margin.foreign_weight
