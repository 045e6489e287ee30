"""Attention with device-side lengths in plain PyTorch: the meaning that fast kernels must keep. It
reads the whole cache whatever the length, so it is slow; it serves tests, and the parts that a
faster backend lacks."""

import torch
from torch import Tensor

from specx.core.attention import Kernels, masked
from specx.core.cache import KV


class StaticKernels(Kernels):
    """``Kernels`` whose shapes never change, for any device and dtype."""

    def __init__(self) -> None:
        self.name = "static"

    def store(self, cached: KV, start: Tensor, new: KV) -> None:
        rows = torch.arange(new[0].shape[1], device=new[0].device) + start
        for side, added in zip(cached, new, strict=True):
            side.index_copy_(1, rows, added)

    def tree(self, query: Tensor, cached: KV, prefix: Tensor, mask: Tensor, scale: float) -> Tensor:
        keys, values = cached
        rows = torch.arange(keys.shape[1], device=keys.device)
        staged = (rows - prefix).clamp(0, mask.shape[1] - 1)
        is_staged = (rows >= prefix) & (rows < prefix + mask.shape[1])
        sees = torch.where(is_staged, mask[:, staged], rows < prefix)
        # What is not seen may be uninitialised memory, and 0 · NaN is NaN.
        values = torch.where(sees.any(dim=0)[:, None], values, 0.0)
        return masked(query, (keys, values), sees, scale)[0]

    def chunk_scores(
        self, query: Tensor, keys: Tensor, length: Tensor, scale: float, chunk_tokens: int
    ) -> Tensor:
        heads, width = query.shape
        kv_heads, capacity, _ = keys.shape
        rows = torch.arange(capacity, device=keys.device)
        grouped = query.reshape(kv_heads, heads // kv_heads, width).float()
        scores = torch.matmul(grouped, keys.float().transpose(1, 2)) * scale
        chances = scores.masked_fill(rows >= length, float("-inf")).softmax(dim=-1).mean((0, 1))
        chunks = -(-capacity // chunk_tokens)
        padded = torch.nn.functional.pad(chances, (0, chunks * chunk_tokens - capacity))
        firsts = torch.arange(chunks, device=keys.device) * chunk_tokens
        counts = (length - firsts).clamp(1, chunk_tokens)
        return padded.view(chunks, chunk_tokens).sum(dim=1) / counts
