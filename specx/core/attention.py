"""Hybrid Tree Attention: maskless attention over the prefix, masked attention among new rows,
merged by log-sum-exp (SpecExtend §3.2, after LongSpec); the tree mask never meets the prefix.

In: queries [H, n, D], keys and values [Hkv, S, D] of one sequence. Out: [H, n, D]. It does not
know caches, models, trees or positions. ``Kernels`` is the one place where a faster backend
(flash-attn, Triton) plugs in; ``SdpaKernels`` uses what PyTorch ships, on CPU and CUDA.
"""

from typing import Protocol

import torch
from torch import Tensor

from specx.core.config import PrefillAttention, TreeAttention
from specx.core.retrieval import chunk_scores

# The fused CPU kernel is slower on one or two query rows than on four (measured at 16K keys).
_MIN_CPU_ROWS = 4


class Kernels(Protocol):
    """Attention of one backend. A length is a 0-d int64 tensor: where it lies, and whether a CUDA
    graph may hold what takes it, is the business of ``graphs.Launcher``."""

    name: str

    def store(
        self, keys: Tensor, values: Tensor, start: Tensor, key: Tensor, value: Tensor
    ) -> None:
        """Write ``key``, ``value`` [Hkv, n, D] to rows ``start`` … of one layer's cache
        [Hkv, capacity, D]."""
        ...

    def tree(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        prefix: Tensor,
        mask: Tensor,
        scale: float,
    ) -> Tensor:
        """Hybrid Tree Attention [H, n, D]: all rows see the first ``prefix`` rows of one layer's
        cache [Hkv, capacity, D], and the m staged rows after them under ``mask`` [n, m]."""
        ...

    def merge(self, first: "Partial", second: "Partial") -> Tensor:
        """Attention over the union of two disjoint key sets, from their parts; [H, n, D]."""
        ...

    def chunk_scores(
        self, query: Tensor, keys: Tensor, length: Tensor, scale: float, chunk_tokens: int
    ) -> Tensor:
        """``retrieval.chunk_scores`` over the first ``length`` rows of a cache [Hkv, capacity, D];
        [chunks] float32, of the whole cache where shapes are fixed."""
        ...

    def prefix(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> "Partial":
        """Every query row sees every key. [H, n, D], [Hkv, S, D] → ([H, n, D], [H, n])."""
        ...

    def causal(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> "Partial":
        """Row i sees keys 0 … i; as many keys as rows."""
        ...


Partial = tuple[Tensor, Tensor]  # output [H, n, D], log-sum-exp [H, n] float32


class SdpaKernels:
    """PyTorch's fused attention kernels. A group of query heads that share a key/value head is
    folded into rows, so each key and value is read once per group."""

    def __init__(self, tree_kind: TreeAttention = "hybrid") -> None:
        """``tree_kind="masked"`` is the ordinary way, one mask over everything, for ablations."""
        self.name = "masked" if tree_kind == "masked" else "sdpa"

    def store(
        self, keys: Tensor, values: Tensor, start: Tensor, key: Tensor, value: Tensor
    ) -> None:
        rows = slice(first := int(start), first + key.shape[1])
        keys[:, rows] = key
        values[:, rows] = value

    def tree(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        prefix: Tensor,
        mask: Tensor,
        scale: float,
    ) -> Tensor:
        before, end = int(prefix), int(prefix) + mask.shape[1]
        if self.name == "masked":
            sees = torch.ones(mask.shape[0], before, dtype=torch.bool, device=mask.device)
            sees = torch.cat([sees, mask], dim=1)
            return masked(query, keys[:, :end], values[:, :end], sees, scale)[0]
        own = masked(query, keys[:, before:end], values[:, before:end], mask, scale)
        if before == 0:
            return own[0]
        return merge(self.prefix(query, keys[:, :before], values[:, :before], scale), own)

    def merge(self, first: Partial, second: Partial) -> Tensor:
        return merge(first, second)

    def chunk_scores(
        self, query: Tensor, keys: Tensor, length: Tensor, scale: float, chunk_tokens: int
    ) -> Tensor:
        return chunk_scores(query, keys[:, : int(length)], scale, chunk_tokens)

    def prefix(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Partial:
        heads, rows, width = query.shape
        folded = query.reshape(key.shape[0], -1, width)
        count = folded.shape[1]
        if query.device.type == "cpu" and count < _MIN_CPU_ROWS:
            folded = torch.cat([folded, folded[:, :1].expand(-1, _MIN_CPU_ROWS - count, -1)], 1)
        out, lse = _fused(folded[None], key[None], value[None], scale, causal=False)
        out, lse = out[0, :, :count], lse[0, :, :count]
        return out.reshape(heads, rows, width), lse.reshape(heads, rows)

    def causal(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Partial:
        heads, rows, width = query.shape
        group = heads // key.shape[0]
        # The group becomes the batch: [group, Hkv, n, D] against keys repeated without a copy.
        grouped = query.view(-1, group, rows, width).transpose(0, 1)
        repeated_key, repeated_value = (each.expand(group, -1, -1, -1) for each in (key, value))
        out, lse = _fused(grouped, repeated_key, repeated_value, scale, causal=True)
        return (
            out.transpose(0, 1).reshape(heads, rows, width),
            lse.transpose(0, 1).reshape(heads, rows),
        )


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool) -> Partial:
    """Batched [B, H, n, D]; returns output and log-sum-exp [B, H, n]."""
    aten = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
        return out, lse
    if query.dtype == torch.float32:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
        return out, lse[..., : query.shape[-2]]
    out, lse, *_ = aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return out, lse[..., : query.shape[-2]]


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Partial:
    """Attention under a boolean mask [n, S] in which every row sees at least one key."""
    heads, rows, width = query.shape
    grouped = query.reshape(key.shape[0], -1, rows, width)
    # float32 before the product: a query times a key may exceed what float16 can hold.
    scores = torch.matmul(grouped.float(), key[:, None].float().transpose(-1, -2)) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).to(value.dtype)
    out = torch.matmul(weights, value[:, None])
    return out.reshape(heads, rows, width), lse.reshape(heads, rows)


def merge(first: Partial, second: Partial) -> Tensor:
    """Attention over the union of two disjoint key sets, from their parts; [H, n, D]."""
    (out_a, lse_a), (out_b, lse_b) = first, second
    share = torch.sigmoid(lse_a - lse_b)[..., None]
    return (out_b + (out_a - out_b) * share).to(out_a.dtype)


def prefill_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    kernels: Kernels,
    kind: PrefillAttention = "fused",
) -> Tensor:
    """Causal attention of the last n rows over all S ≥ n rows; [H, n, D] → [H, n, D]."""
    rows, prefix = query.shape[1], key.shape[1] - query.shape[1]
    if kind == "eager":
        sees = torch.ones(rows, key.shape[1], dtype=torch.bool, device=query.device)
        return masked(query, key, value, sees.tril(diagonal=prefix), scale)[0]
    own = kernels.causal(query, key[:, prefix:], value[:, prefix:], scale)
    if prefix == 0:
        return own[0]
    return kernels.merge(kernels.prefix(query, key[:, :prefix], value[:, :prefix], scale), own)
