# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Triton kernels for the chunk scores of Cross-model Retrieval (SpecExtend, arXiv 2505.20776 §3.3).
Rows are read in pieces: a chunk, or up to ``_ROWS`` rows of a longer one, padded to a power of two.
The first kernel reads the keys once and leaves, for each head, the exponential sums of all pieces
relative to the maximum of their group of pieces; the second one makes probabilities."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from specx.core.kernels.launch import launch_kernel

_ROWS = 128  # padded rows that a program reads
_WARPS = 8
_CHUNKS = 32  # chunks that a program of the second kernel finishes
_GROUPS = 64  # groups of pieces that it reads at a time


def chunk_scores(
    query: Tensor, keys: Tensor, length: Tensor, scale: float, chunk_tokens: int
) -> Tensor:
    """Mean attention probability of each chunk over the first ``length`` rows and all heads.

    ``query`` [H, D] and ``keys`` [Hkv, capacity, D], any floating dtypes and strides with the last
    dimension contiguous; ``length`` one int64 on the device, 1 ≤ length ≤ capacity; what later
    rows hold does not matter. Returns [ceil(capacity / chunk_tokens)] float32: the last chunk is
    averaged over its own rows, chunks that start at ``length`` or later get −inf.
    """
    heads, width = query.shape
    kv_heads, capacity, _ = keys.shape
    chunks = triton.cdiv(capacity, chunk_tokens)
    piece = min(triton.next_power_of_2(chunk_tokens), _ROWS)
    pieces = chunks * triton.cdiv(chunk_tokens, piece)
    groups = triton.cdiv(pieces, _ROWS // piece)
    sums = torch.empty(heads, pieces, device=keys.device)
    largest = torch.empty(heads, groups, device=keys.device)
    totals = torch.empty_like(largest)
    group = heads // kv_heads
    padded_heads = 1 if group == 1 else max(16, triton.next_power_of_2(group))
    launch_kernel(
        _sum_kernel, (groups, kv_heads),
        query, keys, length, sums, largest, totals, scale * math.log2(math.e), query.stride(0),
        keys.stride(0), keys.stride(1), pieces, groups,
        width, max(16, triton.next_power_of_2(width)), group, padded_heads, chunk_tokens, piece,
        _ROWS, num_warps=_WARPS,
    )  # fmt: skip
    scores = torch.empty(chunks, device=keys.device)
    launch_kernel(
        _mean_kernel, (triton.cdiv(chunks, _CHUNKS),),
        length, sums, largest, totals, scores, chunks, pieces, groups,
        heads, triton.next_power_of_2(heads), chunk_tokens, piece, _ROWS, _CHUNKS, _GROUPS,
        num_warps=8,
    )  # fmt: skip
    return scores


@triton.jit
def _first_row(piece, CHUNK: tl.constexpr, PIECE: tl.constexpr):
    """The row of the cache that a piece starts at."""
    a_chunk: tl.constexpr = (CHUNK + PIECE - 1) // PIECE
    return piece // a_chunk * CHUNK + piece % a_chunk * PIECE


@triton.jit(do_not_specialize=["scale", "pieces", "groups"])
def _sum_kernel(
    query, keys, length, sums, largest, totals, scale, query_stride, head_stride, row_stride,
    pieces, groups,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr,
    CHUNK: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Exponential sums (base 2) of one group of pieces for the query heads of one key head."""
    group, kv_head = tl.program_id(0), tl.program_id(1)
    count: tl.constexpr = ROWS // PIECE
    filled = tl.load(length)
    if _first_row(group * count, CHUNK, PIECE) < filled:
        offset = tl.arange(0, ROWS)
        piece = group * count + offset // PIECE
        row = _first_row(piece, CHUNK, PIECE) + offset % PIECE
        # A piece that is padded, or the last of its chunk, must not reach into the next chunk.
        inside = (row < filled) & (row // CHUNK == _first_row(piece, CHUNK, PIECE) // CHUNK)
        column = tl.arange(0, PADDED)
        there = column < WIDTH
        place = keys + kv_head.to(tl.int64) * head_stride + row.to(tl.int64)[:, None] * row_stride
        block = tl.load(place + column[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        index = tl.arange(0, PADDED_HEADS)
        head = kv_head * HEADS + index
        known = index < HEADS
        place = query + head[:, None] * query_stride + column[None, :]
        vectors = tl.load(place, mask=known[:, None] & there[None, :], other=0.0)
        products = _products(vectors, block, HEADS) * scale
        products = tl.where(inside[None, :], products, float("-inf"))
        peak = tl.max(products, 1)
        weights = tl.exp2(products - peak[:, None])
        each = tl.sum(tl.reshape(weights, (PADDED_HEADS, count, PIECE)), 2)
        target = group * count + tl.arange(0, count)[None, :]
        stored = known[:, None] & (target < pieces)
        tl.store(sums + head[:, None] * pieces + target, each, mask=stored)
        tl.store(largest + head * groups + group, peak, mask=known)
        tl.store(totals + head * groups + group, tl.sum(weights, 1), mask=known)


@triton.jit
def _products(vectors, block, HEADS: tl.constexpr):
    """Query heads times keys in float32: [heads, D] and [rows, D] → [heads, rows]."""
    if HEADS == 1:
        # One vector leaves tensor cores idle anyway, and this way keys stay in registers.
        return tl.sum(block.to(tl.float32) * vectors.to(tl.float32), 1)[None, :]
    if vectors.dtype != block.dtype:
        vectors, block = vectors.to(tl.float32), block.to(tl.float32)
    return tl.dot(vectors, tl.trans(block), input_precision="ieee")


@triton.jit(do_not_specialize=["chunks", "pieces", "groups"])
def _mean_kernel(
    length, sums, largest, totals, scores, chunks, pieces, groups,
    HEADS: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Scores of a block of chunks; every program adds up the softmax denominators itself."""
    count: tl.constexpr = ROWS // PIECE
    a_chunk: tl.constexpr = (CHUNK + PIECE - 1) // PIECE
    filled = tl.load(length)
    head = tl.arange(0, PADDED)[:, None]
    peak = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    start = 0
    while start < groups:
        group = start + tl.arange(0, GROUPS)[None, :]
        known = (group < groups) & (_first_row(group * count, CHUNK, PIECE) < filled)
        known = known & (head < HEADS)
        peaks = tl.load(largest + head * groups + group, mask=known, other=float("-inf"))
        parts = tl.load(totals + head * groups + group, mask=known, other=0.0)
        higher = tl.maximum(peak, tl.max(peaks, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(peak - base) + tl.sum(parts * tl.exp2(peaks - base[:, None]), 1)
        peak = higher
        start += GROUPS
    chunk = tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)
    mean = tl.zeros((CHUNKS,), tl.float32)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.where(total > 0.0, total, 1.0)
    part = 0
    while part < a_chunk:
        piece = chunk[None, :] * a_chunk + part
        group = piece // count
        known = (piece < pieces) & (_first_row(group * count, CHUNK, PIECE) < filled)
        known = known & (head < HEADS)
        each = tl.load(sums + head * pieces + piece, mask=known, other=0.0)
        peaks = tl.load(largest + head * groups + group, mask=known, other=float("-inf"))
        shares = each * tl.exp2(peaks - peak[:, None]) / total[:, None]
        mean += tl.sum(tl.where(known, shares, 0.0), 0)
        part += 1
    rows = tl.minimum(filled - chunk.to(tl.int64) * CHUNK, CHUNK)
    mean = mean / (HEADS * tl.maximum(rows, 1).to(tl.float32))
    tl.store(scores + chunk, tl.where(rows > 0, mean, float("-inf")), mask=chunk < chunks)
