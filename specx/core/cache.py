"""Preallocated key/value storage with in-place compaction. It does not know attention, models,
positions or which rows are worth keeping."""

import torch
from torch import Tensor

from specx.core.architecture import Shape

KV = tuple[Tensor, Tensor]  # keys and values [Hkv, rows, D] of one layer


class KVCache:
    """Keys and values [L, Hkv, capacity, D] of one request.

    ``length`` rows are committed, as far as the host knows: a device may have committed more.
    Invariant: 0 ≤ length ≤ capacity. Rows after the committed ones are anybody's.
    """

    def __init__(
        self, shape: Shape, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        size = shape.layers, shape.kv_heads, capacity, shape.head_dim
        # empty, not zeros: an operating system backs untouched pages with no memory.
        self.keys = torch.empty(size, dtype=dtype, device=device)
        self.values = torch.empty(size, dtype=dtype, device=device)
        self.capacity, self.length = capacity, 0  # rows
        #: Bytes of one row over all layers, keys and values.
        self.row_bytes = shape.numbers_per_token * dtype.itemsize

    def layer(self, index: int) -> KV:
        return self.keys[index], self.values[index]

    def stage(self, rows: int) -> int:
        """Where the next ``rows`` rows go. Raises ``ValueError`` when they do not fit."""
        if self.length + rows > self.capacity:
            raise ValueError(f"{rows} rows after {self.length} exceed the cache's {self.capacity}")
        return self.length

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [Hkv, n, D] of ``layer`` at rows start … start + n."""
        rows = slice(start, start + keys.shape[1])
        self.keys[layer, :, rows] = keys
        self.values[layer, :, rows] = values

    def compact(self, nodes: Tensor, start: Tensor) -> None:
        """Move the rows ``start`` + ``nodes`` [m] int64 (increasing) to ``start`` … start + m.

        ``start``: the first row after the committed ones, [] int64.
        """
        source = nodes + start
        target = torch.arange(nodes.shape[0], device=nodes.device) + start
        for rows in (self.keys, self.values):
            # Selecting copies before the write, so overlapping rows are safe.
            rows.index_copy_(2, target, rows.index_select(2, source))

    def reach(self, length: int) -> None:
        """The first ``length`` rows are committed. Raises ``ValueError`` beyond the capacity."""
        if not 0 <= length <= self.capacity:
            raise ValueError(f"{length} rows exceed the cache's {self.capacity}")
        self.length = length
