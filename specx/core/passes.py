"""What one forward does in every attention layer: where keys go and what each row sees.

In: queries, keys and values of new rows, layer by layer. Out: their attention. ``TargetPass``
serves the target; ``WindowPass`` and ``WorkingPass`` serve a draft whose keys are stored without
rotation. They do not know models or trees beyond a mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specx.core.attention import Kernels, prefill_attention, tree_attention
from specx.core.cache import KVCache
from specx.core.config import Parts


class Rotary:
    """Rotation tables for positions 0 … length − 1, without a scaling factor.

    Halves are rotated against each other, as in Llama, Mistral and Qwen. A factor that scales
    rotated vectors (YaRN) is applied by the model itself at position 0.
    """

    def __init__(self, inverse_frequencies: Tensor, length: int) -> None:
        positions = torch.arange(length, device=inverse_frequencies.device, dtype=torch.float32)
        angles = positions[:, None] * inverse_frequencies.float()
        self._cos, self._sin = angles.cos(), angles.sin()  # [length, D / 2]

    def rotate(self, vectors: Tensor, start: int) -> Tensor:
        """[H, n, D] at positions start … start + n."""
        return self.rotate_at(vectors, slice(start, start + vectors.shape[1]))

    def rotate_at(self, vectors: Tensor, positions: Tensor | slice) -> Tensor:
        """[H, n, D] at ``positions`` [n]; computed in float32, returned in the input's dtype."""
        cos, sin = self._cos[positions], self._sin[positions]
        first, second = vectors.float().chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return rotated.to(vectors.dtype)


@dataclass(slots=True)
class TargetPass:
    """Rows of the target: a causal chunk (``mask`` None) or tree rows under ``mask`` [n, n].

    The rows must have been staged in ``cache``. ``query`` holds the last layer's queries
    [H, n, D] afterwards: retrieval needs one row of them.
    """

    cache: KVCache
    start: int
    mask: Tensor | None
    kernels: Kernels
    parts: Parts
    query: Tensor | None = None
    scale: float = 1.0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See ``AttentionPass``."""
        cache, kernels = self.cache, self.kernels
        cache.write(layer, self.start, key, value)
        if layer == cache.keys.shape[0] - 1:
            self.query, self.scale = query, scale
        end = self.start + key.shape[1]
        keys, values = cache.keys[layer, :, :end], cache.values[layer, :, :end]
        if self.mask is None:
            kind = self.parts.prefill_attention
            return prefill_attention(query, keys, values, scale, kernels, kind)
        kind_of_tree = self.parts.tree_attention
        return tree_attention(query, keys, values, self.mask, scale, kernels, kind_of_tree)


@dataclass(slots=True)
class WindowPass:
    """A block of committed draft rows that sees the ``window`` rows before it, and itself causally.

    Keys are stored without rotation; for this block they are rotated to positions counted from
    the window's start, so no position exceeds window + block.
    """

    full: KVCache
    start: int
    window: int
    rotary: Rotary
    kernels: Kernels
    parts: Parts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See ``AttentionPass``."""
        self.full.write(layer, self.start, key, value)
        first, end = max(0, self.start - self.window), self.start + key.shape[1]
        keys = self.rotary.rotate(self.full.keys[layer, :, first:end], 0)
        values = self.full.values[layer, :, first:end]
        query = self.rotary.rotate(query, self.start - first)
        kind = self.parts.prefill_attention
        return prefill_attention(query, keys, values, scale, self.kernels, kind)


@dataclass(slots=True)
class WorkingPass:
    """Draft rows over the working cache, at compact positions.

    Committed rows (``mask`` None) are also stored without rotation in ``full``; tree rows
    (``mask`` [n, staged]) live only in the working cache until the tree is done.
    """

    working: KVCache
    start: int
    full: KVCache
    full_start: int
    positions: Tensor | slice
    mask: Tensor | None
    rotary: Rotary
    kernels: Kernels

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See ``AttentionPass``."""
        if self.mask is None:
            self.full.write(layer, self.full_start, key, value)
        working, end = self.working, self.start + key.shape[1]
        # One rotation for both: the launch costs more than the arithmetic.
        rotated = self.rotary.rotate_at(torch.cat([query, key]), self.positions)
        query, key = rotated[: query.shape[0]], rotated[query.shape[0] :]
        working.write(layer, self.start, key, value)
        keys, values = working.keys[layer, :, :end], working.values[layer, :, :end]
        if self.mask is None:
            return prefill_attention(query, keys, values, scale, self.kernels)
        return tree_attention(query, keys, values, self.mask, scale, self.kernels)
