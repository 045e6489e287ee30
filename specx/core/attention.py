"""Hybrid Tree Attention: maskless attention over the prefix, masked attention among new rows,
merged by log-sum-exp (SpecExtend §3.2, after LongSpec); the tree mask never meets the prefix.
It does not know caches, models, trees or positions.
"""

import torch
from torch import Tensor

from specx.core.cache import KV
from specx.core.config import PrefillAttention, TreeAttention
from specx.core.retrieval import chunk_scores

# The fused CPU kernel is slower on one or two query rows than on four (measured at 16K keys).
_MIN_CPU_ROWS = 4

Partial = tuple[Tensor, Tensor]  # output [H, n, D], log-sum-exp [H, n] float32


class Kernels:
    """Attention by what PyTorch ships, on CPU and CUDA; faster backends replace its methods.

    A length is a 0-d int64 tensor: where it lies, and whether a CUDA graph may hold what takes it,
    is the business of ``graphs.Launcher``. A group of query heads that share a key/value head is
    folded into rows, so each key and value is read once per group.
    """

    def __init__(self, tree_kind: TreeAttention = "hybrid") -> None:
        """``tree_kind="masked"`` is the ordinary way, one mask over everything, for ablations."""
        self.name = "masked" if tree_kind == "masked" else "sdpa"

    def store(self, cached: KV, start: Tensor, new: KV) -> None:
        """Write ``new`` [Hkv, n, D] to rows ``start`` … of one layer's cache [Hkv, capacity, D]."""
        rows = slice(first := int(start), first + new[0].shape[1])
        for side, added in zip(cached, new, strict=True):
            side[:, rows] = added

    def tree(self, query: Tensor, cached: KV, prefix: Tensor, mask: Tensor, scale: float) -> Tensor:
        """Hybrid Tree Attention of ``query`` [H, n, D]: all rows see the first ``prefix`` rows of
        one layer's cache [Hkv, capacity, D], and the m staged rows after them under ``mask``
        [n, m]."""
        before, end = int(prefix), int(prefix) + mask.shape[1]
        keys, values = cached
        if self.name == "masked":
            sees = torch.ones(mask.shape[0], before, dtype=torch.bool, device=mask.device)
            sees = torch.cat([sees, mask], dim=1)
            return masked(query, (keys[:, :end], values[:, :end]), sees, scale)[0]
        own = masked(query, (keys[:, before:end], values[:, before:end]), mask, scale)
        if before == 0:
            return own[0]
        return merge(self.prefix(query, (keys[:, :before], values[:, :before]), scale), own)

    def merge(self, first: Partial, second: Partial) -> Tensor:
        """Attention over the union of two disjoint key sets, from their parts; [H, n, D]."""
        return merge(first, second)

    def chunk_scores(
        self, query: Tensor, keys: Tensor, length: Tensor, scale: float, chunk_tokens: int
    ) -> Tensor:
        """``retrieval.chunk_scores`` over the first ``length`` rows of a cache [Hkv, capacity, D];
        [chunks] float32, of the whole cache where shapes are fixed."""
        return chunk_scores(query, keys[:, : int(length)], scale, chunk_tokens)

    def prefix(self, query: Tensor, held: KV, scale: float) -> Partial:
        """Every row of ``query`` [H, n, D] sees every key of ``held`` [Hkv, S, D]."""
        heads, rows, width = query.shape
        folded = query.reshape(held[0].shape[0], -1, width)
        count = folded.shape[1]
        if query.device.type == "cpu" and count < _MIN_CPU_ROWS:
            folded = torch.cat([folded, folded[:, :1].expand(-1, _MIN_CPU_ROWS - count, -1)], 1)
        out, lse = _fused(folded[None], held[0][None], held[1][None], scale, causal=False)
        out, lse = out[0, :, :count], lse[0, :, :count]
        return out.reshape(heads, rows, width), lse.reshape(heads, rows)

    def causal(self, query: Tensor, held: KV, scale: float) -> Partial:
        """Row i sees keys 0 … i; as many keys as rows."""
        heads, rows, width = query.shape
        group = heads // held[0].shape[0]
        # The group becomes the batch: [group, Hkv, n, D] against keys repeated without a copy.
        grouped = query.view(-1, group, rows, width).transpose(0, 1)
        key, value = (side.expand(group, -1, -1, -1) for side in held)
        out, lse = _fused(grouped, key, value, scale, causal=True)
        out, lse = out.transpose(0, 1), lse.transpose(0, 1)
        return out.reshape(heads, rows, width), lse.reshape(heads, rows)


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool) -> Partial:
    """Batched [B, H, n, D]; returns output and log-sum-exp [B, H, n]."""
    aten, inputs = torch.ops.aten, (query, key, value)
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            *inputs, 0.0, causal, scale=scale
        )
        return out, lse
    if query.dtype == torch.float32:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            *inputs, None, True, 0.0, causal, scale=scale
        )
    else:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(
            *inputs, 0.0, causal, False, scale=scale
        )
    return out, lse[..., : query.shape[-2]]


def masked(query: Tensor, held: KV, mask: Tensor, scale: float) -> Partial:
    """Attention under a boolean mask [n, S] in which every row sees at least one key."""
    heads, rows, width = query.shape
    key, value = held
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
    query: Tensor, held: KV, scale: float, kernels: Kernels, kind: PrefillAttention = "fused"
) -> Tensor:
    """Causal attention of the last n rows over all S ≥ n rows; [H, n, D] → [H, n, D]."""
    keys, values = held
    rows, prefix = query.shape[1], keys.shape[1] - query.shape[1]
    if kind == "eager":
        sees = torch.ones(rows, keys.shape[1], dtype=torch.bool, device=query.device)
        return masked(query, held, sees.tril(diagonal=prefix), scale)[0]
    own = kernels.causal(query, (keys[:, prefix:], values[:, prefix:]), scale)
    if prefix == 0:
        return own[0]
    before = kernels.prefix(query, (keys[:, :prefix], values[:, :prefix]), scale)
    return kernels.merge(before, own)
