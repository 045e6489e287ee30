"""Preallocated key/value storage with in-place compaction.

In: keys and values of new rows. Out: views of the committed and staged rows. It does not know
attention, models, positions or which rows are worth keeping.
"""

import torch
from torch import Tensor

from specx.core.config import kv_row_bytes


class KVCache:
    """Keys and values [L, Hkv, capacity, D] of one request.

    ``length`` rows are committed, ``staged`` rows behind them belong to a tree or chunk that is
    not decided yet. Invariant: 0 ≤ length ≤ length + staged ≤ capacity. A forward writes the
    same staged rows in every layer; ``stage`` reserves them once beforehand.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (layers, kv_heads, capacity, head_dim)
        # empty, not zeros: an operating system backs untouched pages with no memory.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0
        self.staged = 0

    @property
    def capacity(self) -> int:
        """Rows allocated."""
        return self.keys.shape[2]

    @property
    def end(self) -> int:
        """Rows in use: committed and staged."""
        return self.length + self.staged

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all layers, keys and values."""
        layers, heads, _, width = self.keys.shape
        return kv_row_bytes(layers, heads, width, self.keys.element_size())

    def stage(self, rows: int) -> int:
        """Reserve ``rows`` more staged rows; returns the first one.

        Raises ``ValueError`` when they do not fit.
        """
        start = self.end
        if start + rows > self.capacity:
            raise ValueError(f"{rows} rows after {start} exceed the cache's {self.capacity}")
        self.staged += rows
        return start

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [Hkv, n, D] of ``layer`` at rows start … start + n."""
        stop = start + keys.shape[1]
        self.keys[layer, :, start:stop] = keys
        self.values[layer, :, start:stop] = values

    def compact(self, nodes: Tensor, start: int | Tensor) -> None:
        """Move the rows ``start`` + ``nodes`` [m] int64 (increasing) to ``start`` and behind.

        ``start``: the first staged row, on the host or as a device scalar.
        """
        source = nodes + start
        target = torch.arange(nodes.shape[0], device=nodes.device) + start
        for rows in (self.keys, self.values):
            # Selecting copies before the write, so overlapping rows are safe.
            rows.index_copy_(2, target, rows.index_select(2, source))

    def commit(self, rows: int) -> None:
        """Commit the first ``rows`` staged rows as they lie; the rest is forgotten."""
        if rows > self.staged:
            raise ValueError(f"cannot commit {rows} of {self.staged} staged rows")
        self.length += rows
        self.staged = 0

    def drop(self) -> None:
        """Forget every staged row."""
        self.staged = 0

    def reach(self, length: int) -> None:
        """The first ``length`` rows are committed: they were written at places that a device
        scalar named. Raises ``ValueError`` beyond the capacity."""
        if length > self.capacity:
            raise ValueError(f"{length} rows exceed the cache's {self.capacity}")
        self.length, self.staged = length, 0

    def truncate(self, length: int) -> None:
        """Shorten to ``length`` committed rows; staged rows are forgotten."""
        if length > self.length:
            raise ValueError(f"cannot truncate {self.length} rows to {length}")
        self.length, self.staged = length, 0
