"""Attention with device-side lengths in plain PyTorch: the meaning that fast kernels must keep.

It reads the whole cache whatever the length, so it is slow; it serves tests, and the parts that a
faster backend lacks.
"""

import torch
from torch import Tensor

from specx.core.attention import SdpaKernels, masked


class StaticKernels(SdpaKernels):
    """``Kernels`` whose shapes never change, for any device and dtype."""

    is_static = True

    def __init__(self) -> None:
        super().__init__()
        self.name = "static"

    def store(
        self, keys: Tensor, values: Tensor, start: int | Tensor, key: Tensor, value: Tensor
    ) -> None:
        """See ``Kernels``; rows beyond the cache are left out."""
        if isinstance(start, int):  # a prompt chunk
            super().store(keys, values, start, key, value)
            return
        rows = torch.arange(key.shape[1], device=key.device) + start
        keys.index_copy_(1, rows, key)
        values.index_copy_(1, rows, value)

    def tree(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        prefix: int | Tensor,
        mask: Tensor,
        scale: float,
    ) -> Tensor:
        """See ``Kernels``."""
        rows = torch.arange(keys.shape[1], device=keys.device)
        staged = (rows - prefix).clamp(0, mask.shape[1] - 1)
        behind = (rows >= prefix) & (rows < prefix + mask.shape[1])
        sees = torch.where(behind, mask[:, staged], rows < prefix)
        # What is not seen may be uninitialised memory, and 0 · NaN is NaN.
        values = torch.where(sees.any(dim=0)[:, None], values, 0.0)
        return masked(query, keys, values, sees, scale)[0]
