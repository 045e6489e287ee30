"""What one forward does in every attention layer: where keys go and what each row sees.
``ChunkPass`` serves the target's prompt and ``TreePass`` trees; the others serve a draft whose
committed keys are stored without rotation. They do not know models or trees beyond a mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specx.core.attention import Kernels, prefill_attention
from specx.core.cache import KVCache
from specx.core.config import PrefillAttention


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
class ChunkPass:
    """A causal chunk of the target's prompt, at rows ``start`` … of its cache."""

    cache: KVCache
    start: int
    kernels: Kernels
    kind: PrefillAttention

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.start, key, value)
        end = self.start + key.shape[1]
        held = self.cache.keys[layer, :, :end], self.cache.values[layer, :, :end]
        return prefill_attention(query, held, scale, self.kernels, self.kind)


@dataclass(slots=True)
class TreePass:
    """Tree rows of a model that rotates its own keys, in a cache whose rows are rotated.

    They go to the rows ``first`` [] int64 … and see the first ``prefix`` [] int64 rows and, under
    ``mask`` [n, m], the m rows after those.
    """

    cache: KVCache
    prefix: Tensor
    first: Tensor
    mask: Tensor
    kernels: Kernels

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        cached = self.cache.layer(layer)
        self.kernels.store(cached, self.first, (key, value))
        return self.kernels.tree(query, cached, self.prefix, self.mask, scale)


@dataclass(slots=True)
class WindowPass:
    """Blocks of committed draft rows; each sees the ``window`` rows before it, and itself causally.

    Keys are stored without rotation; for each block they are rotated to positions counted from
    the window's start, so no position exceeds window + block. Several ``blocks`` need windows as
    long as they are, all of them there.
    """

    full: KVCache
    start: int
    window: int
    rotary: Rotary
    kernels: Kernels
    kind: PrefillAttention
    blocks: int = 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.full.write(layer, self.start, key, value)
        first, end = max(0, self.start - self.window), self.start + key.shape[1]
        keys, values = self.full.keys[layer, :, first:end], self.full.values[layer, :, first:end]
        shape, before = query.shape, self.start - first
        if self.blocks > 1:
            keys, values = _with_window(keys, self.blocks), _with_window(values, self.blocks)
            query = _fold(query, key.shape[0], self.blocks)
        keys, query = self.rotary.rotate(keys, 0), self.rotary.rotate(query, before)
        out = prefill_attention(query, (keys, values), scale, self.kernels, self.kind)
        return out if self.blocks == 1 else _unfold(out, key.shape[0], self.blocks).view(shape)


def _with_window(rows: Tensor, blocks: int) -> Tensor:
    """[Hkv, (blocks + 1) · n, D] → [Hkv · blocks, 2 · n, D]: each block and the one before."""
    by_block = rows.view(rows.shape[0], blocks + 1, -1, rows.shape[-1])
    together = torch.cat([by_block[:, :-1], by_block[:, 1:]], dim=2)
    return together.view(rows.shape[0] * blocks, -1, rows.shape[-1])


def _fold(query: Tensor, kv_heads: int, blocks: int) -> Tensor:
    """[H, blocks · n, D] → [H · blocks, n, D], a key/value head's blocks as heads of their own."""
    heads, rows, width = query.shape
    by_block = query.reshape(kv_heads, heads // kv_heads, blocks, rows // blocks, width)
    return by_block.transpose(1, 2).reshape(heads * blocks, -1, width)


def _unfold(out: Tensor, kv_heads: int, blocks: int) -> Tensor:
    """The inverse of ``_fold``, but for the shape: [Hkv, H / Hkv, blocks, n, D]."""
    heads, rows, width = out.shape
    by_block = out.view(kv_heads, blocks, heads // (kv_heads * blocks), rows, width)
    return by_block.transpose(1, 2).contiguous()


@dataclass(slots=True)
class ReadPass:
    """Committed rows that a draft reads: without rotation into ``full`` at row ``full_start``
    [] int64, rotated to compact ``positions`` [n] into ``working`` after its ``prefix`` [] int64
    rows. ``mask`` [n, n]: causal.
    """

    working: KVCache
    prefix: Tensor
    full: KVCache
    full_start: Tensor
    positions: Tensor
    mask: Tensor
    rotary: Rotary
    kernels: Kernels

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.kernels.store(self.full.layer(layer), self.full_start, (key, value))
        # One rotation for both: the launch costs more than the arithmetic.
        rotated = self.rotary.rotate_at(torch.cat([query, key]), self.positions)
        query, key = rotated[: query.shape[0]], rotated[query.shape[0] :]
        working = self.working.layer(layer)
        self.kernels.store(working, self.prefix, (key, value))
        return self.kernels.tree(query, working, self.prefix, self.mask, scale)
