# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Triton kernels for growing a draft tree: what ``Beam`` computes in torch, in three launches a
level and three for the tree. Guesses are compared by integer keys: the upper half orders float32
values, the lower half prefers lower positions, so that one maximum finds the value and its
position, and breaks ties by age."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from specx.core.kernels.launch import launch_kernel
from specx.core.kernels.types import WIDTH, Levels

_SMALL_BLOCK = 1024  # columns a program reads, where a row has few
_LARGE_BLOCK = 4096
_FEW_COLUMNS = 65536
_COLUMNS_A_WARP = 512
_MERGE_WARPS = 4
_RANK_BLOCK = 32  # guesses a program ranks
_NODE_BLOCK = 16  # rows of the tree mask a program writes

_NUMBER_BLOCK = 1024  # guesses that are numbered at a time

_LOWEST = tl.constexpr(-0x7FFFFFFFFFFFFFFF)
_POSITIONS = tl.constexpr(0x7FFFFFFF)  # positions in keys are inverted
_SLOTS = tl.constexpr(16)  # guesses of a row and rows of a level, padded to a power of two


@triton.jit
def _ordered(values):
    """Upper half of a key: int64 in the order of float32 ``values``."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) << 32


@triton.jit
def _value(keys):
    bits = (keys >> 32).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _finite(values):
    """A reference for exponentials: 0 where nothing is possible, so that no NaN arises."""
    return tl.where(values == float("-inf"), 0.0, values)


@triton.jit(do_not_specialize=["blocks"])
def _partial_kernel(
    scores, stride, keys, largest, totals, vocabulary, blocks,
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of the best ``COUNT`` columns of one block of one row; its maximum and sum."""
    block, row = tl.program_id(0), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    start = scores + row.to(tl.int64) * stride
    values = tl.load(start + columns, mask=inside, other=float("-inf")).to(tl.float32)
    peak = tl.max(values, 0)
    total = tl.sum(tl.exp(values - _finite(peak)), 0)
    place = row * blocks + block
    tl.store(largest + place, peak)
    tl.store(totals + place, total)
    left = tl.where(inside, _ordered(values) | (columns ^ _POSITIONS), _LOWEST)
    for index in tl.static_range(COUNT):
        best = tl.max(left, 0)
        tl.store(keys + place * _SLOTS + index, best)
        left = tl.where(left == best, _LOWEST, left)


@triton.jit(do_not_specialize=["blocks"])
def _merge_kernel(
    keys, largest, totals, chances, tokens, blocks,
    COUNT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The best of one row's blocks, with their probabilities."""
    row = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    peaks = tl.load(largest + row * blocks + block, mask=block < blocks, other=float("-inf"))
    sums = tl.load(totals + row * blocks + block, mask=block < blocks, other=0.0)
    place = tl.arange(0, BLOCKS * _SLOTS)
    inside = (place < blocks * _SLOTS) & (place % _SLOTS < COUNT)
    left = tl.load(keys + row * blocks * _SLOTS + place, mask=inside, other=_LOWEST)
    peak = _finite(tl.max(peaks, 0))
    total = tl.sum(sums * tl.exp(peaks - peak), 0)
    slot = tl.arange(0, _SLOTS)
    found = tl.full((_SLOTS,), _LOWEST, tl.int64)
    for index in tl.static_range(COUNT):
        best = tl.max(left, 0)
        found = tl.where(slot == index, best, found)
        left = tl.where(left == best, _LOWEST, left)
    target = row * COUNT + slot
    tl.store(chances + target, tl.exp(_value(found) - peak) / total, mask=slot < COUNT)
    tl.store(tokens + target, (found & _POSITIONS) ^ _POSITIONS, mask=slot < COUNT)


@triton.jit(do_not_specialize=["level", "rows", "staged"])
def _add_kernel(
    chances, guesses, reach, tokens, slots, chosen, frontier, frontier_reach, sees, level, rows,
    staged, COUNT: tl.constexpr, WIDE: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add one level of guesses under ``rows`` nodes and choose its frontier; one program."""
    place = tl.arange(0, PADDED)
    is_place, given, parent = place < WIDE * COUNT, place < rows * COUNT, place // COUNT
    chance = tl.load(chances + place, mask=given, other=0.0)
    token = tl.load(guesses + place, mask=given, other=0)
    before = frontier_reach + (level - 1) * WIDE + parent
    above = tl.load(before, mask=given & (level > 0), other=1.0)
    reached = tl.minimum(chance, 1.0) * above
    number = level * WIDE * COUNT + place
    tl.store(reach + number, reached, mask=is_place)
    tl.store(tokens + number, token, mask=is_place)
    keys = tl.where(is_place, _ordered(reached) | (place ^ _POSITIONS), _LOWEST)
    rank = tl.sum((keys[None, :] > keys[:, None]).to(tl.int32), 1)
    chose = is_place & (rank < WIDE)
    row = level * WIDE + rank
    tl.store(slots + number, tl.where(chose, row, -1).to(tl.int64), mask=is_place)
    tl.store(frontier + row, token, mask=chose)
    tl.store(frontier_reach + row, reached, mask=chose)
    tl.store(chosen + row, number.to(tl.int64), mask=chose)
    index = tl.arange(0, _SLOTS)
    is_picked = (rank[None, :] == index[:, None]) & chose[None, :]
    above_row = (level - 1) * WIDE + tl.sum(tl.where(is_picked, parent[None, :], 0), 1)
    here = level * WIDE + index
    # Columns of later levels are never written, so they stay False.
    start = 0
    while start < (level + 1) * WIDE:
        columns = start + tl.arange(0, COLUMNS)[None, :]
        inside = (index < WIDE)[:, None] & (columns < staged)
        source = sees + above_row[:, None] * staged + columns
        seen = tl.load(source, mask=inside & (level > 0), other=0)
        own = (columns == here[:, None]).to(tl.uint8)
        tl.store(sees + here[:, None] * staged + columns, seen | own, mask=inside)
        start += COLUMNS


@triton.jit(do_not_specialize=["levels", "limit"])
def _rank_kernel(
    reach, lasting, levels, limit,
    GUESSES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many first levels may be made until a guess is no longer among the best ``limit``."""
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine_reach = tl.load(reach + mine, mask=mine < levels * GUESSES, other=0.0)
    before = tl.zeros((BLOCK,), tl.int32)
    lasts = tl.zeros((BLOCK,), tl.int32)
    offsets = tl.arange(0, PADDED)
    level = 0
    while level < levels:
        other = level * GUESSES + offsets
        other_reach = tl.load(reach + other, mask=offsets < GUESSES, other=-1.0)
        precedes = (other_reach[None, :] > mine_reach[:, None]) | (
            (other_reach[None, :] == mine_reach[:, None]) & (other[None, :] < mine[:, None])
        )
        before += tl.sum(precedes.to(tl.int32), 1)
        lasts += (before < limit).to(tl.int32)
        level += 1
    lasts = tl.where(mine_reach > 0.0, lasts, 0)
    tl.store(lasting + mine, lasts, mask=mine < levels * GUESSES)


@triton.jit
def _last_level(
    reach, lasting, levels, threshold,
    GUESSES: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first level that adds less than ``threshold`` expected tokens, or the last one."""
    row = tl.arange(0, LEVELS)
    gains = tl.zeros((LEVELS,), tl.float32)
    start = 0
    while start < levels * GUESSES:
        guess = start + tl.arange(0, BLOCK)
        inside = guess < levels * GUESSES
        value = tl.load(reach + guess, mask=inside, other=0.0)[:, None]
        lasts = tl.load(lasting + guess, mask=inside, other=0)[:, None]
        own = (guess // GUESSES)[:, None]
        come = tl.where(row[None, :] == own, value, 0.0)
        go = tl.where(row[None, :] == lasts, value, 0.0)
        gains += tl.sum(tl.where(lasts > own, come - go, 0.0), 0)
        start += BLOCK
    return tl.min(tl.where((gains < threshold) & (row < levels), row, levels - 1), 0)


@triton.jit(do_not_specialize=["levels", "nodes", "threshold"])
def _number_kernel(
    root, reach, tokens, lasting, numbers, kept, node_tokens, node_depths, node_reach, levels,
    nodes, threshold, GUESSES: tl.constexpr, LEVELS: tl.constexpr, STOPS: tl.constexpr,
    NODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Number the guesses of the tree in their order; one program."""
    last = levels - 1
    if STOPS:
        last = _last_level(reach, lasting, levels, threshold, GUESSES, LEVELS, BLOCK // 2)
    tl.store(node_tokens, tl.load(root))
    tl.store(node_depths, 0)
    tl.store(node_reach, 1.0)
    tl.store(kept, -1)
    used = 1
    start = 0
    while start < (last + 1) * GUESSES:
        guess = start + tl.arange(0, BLOCK)
        inside = guess < (last + 1) * GUESSES
        taken = tl.load(lasting + guess, mask=inside, other=0) > last
        value = tl.load(reach + guess, mask=taken, other=0.0)
        token = tl.load(tokens + guess, mask=taken, other=0)
        node = used + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(numbers + guess, node, mask=taken)
        tl.store(kept + node, guess, mask=taken)
        tl.store(node_tokens + node, token, mask=taken)
        tl.store(node_depths + node, (guess // GUESSES + 1).to(tl.int64), mask=taken)
        tl.store(node_reach + node, value, mask=taken)
        used += tl.sum(taken.to(tl.int32), 0)
        start += BLOCK
    rest = tl.arange(0, NODES)
    is_padding = (rest >= used) & (rest < nodes)
    tl.store(kept + rest, tl.full((NODES,), -1, tl.int32), mask=is_padding)
    tl.store(node_tokens + rest, tl.full((NODES,), -1, tl.int64), mask=is_padding)
    tl.store(node_depths + rest, tl.zeros((NODES,), tl.int64), mask=is_padding)
    tl.store(node_reach + rest, tl.zeros((NODES,), tl.float32), mask=is_padding)


@triton.jit(do_not_specialize=["nodes", "staged"])
def _mask_kernel(
    slots, chosen, sees, numbers, kept, parents, mask, nodes, staged,
    COUNT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Parents and mask rows of a block of nodes."""
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = node < nodes
    guess = tl.load(kept + node, mask=inside, other=-1)
    below = guess >= WIDE * COUNT  # deeper than the root's children
    above = guess // COUNT - WIDE  # staged row of the parent
    parent = tl.load(chosen + above, mask=below, other=0)
    tl.store(parents + node, tl.load(numbers + parent, mask=below, other=0).to(tl.int64), inside)
    is_tree = (node == 0) | (guess >= 0)
    start = 0
    while start < nodes:
        other = start + tl.arange(0, COLUMNS)
        there = other < nodes
        number = tl.load(kept + other, mask=there, other=-1)
        slot = tl.load(slots + number, mask=number >= 0, other=-1)
        sought = below[:, None] & (slot >= 0)[None, :]
        seen = tl.load(sees + above[:, None] * staged + slot[None, :], mask=sought, other=0) != 0
        seen |= (other[None, :] == node[:, None]) | ((other == 0)[None, :] & is_tree[:, None])
        target = mask + node[:, None] * nodes + other[None, :]
        tl.store(target, seen.to(tl.uint8), mask=inside[:, None] & there[None, :])
        start += COLUMNS


def best_guesses(scores: Tensor, vocabulary: int, children: int = 10) -> tuple[Tensor, Tensor]:
    """Most probable tokens among the first ``vocabulary`` columns, best first (ties: lower id).

    ``scores`` [n, V], last dimension contiguous; float16, bfloat16 or float32, −inf allowed.
    Returns softmax probabilities [n, children] float32 and tokens [n, children] int64.
    """
    rows = scores.shape[0]
    partial = _partial(scores, vocabulary, children)
    blocks = partial[1].shape[1]
    chances = torch.empty(rows, children, device=scores.device)
    tokens = torch.empty(rows, children, dtype=torch.int64, device=scores.device)
    padded = triton.next_power_of_2(blocks)
    launch_kernel(
        _merge_kernel,
        (rows,),
        *partial,
        chances,
        tokens,
        blocks,
        children,
        padded,
        num_warps=_MERGE_WARPS,
    )
    return chances, tokens


def add_level(state: Levels, level: int, chances: Tensor, tokens: Tensor) -> None:
    """One more level of ``Beam``: ``chances`` and ``tokens`` [rows ≤ WIDTH, children]."""
    launch_kernel(
        _add_kernel, (1,),
        chances.contiguous(), tokens.contiguous(), state.reach, state.tokens, state.slots,
        state.chosen, state.frontier, state.frontier_reach, state.sees.view(torch.uint8), level,
        chances.shape[0], state.sees.shape[0], state.children, WIDTH,
        triton.next_power_of_2(state.reach.shape[1]), 128, num_warps=4,
    )  # fmt: skip


def finish(state: Levels, rows: int, threshold: float | None, levels: int) -> dict[str, Tensor]:
    """The tensors of ``Beam.tree``."""
    place, guesses = state.reach.device, state.reach.shape[1]
    count = levels * guesses

    def new(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=place)

    lasting, numbers = new(count, dtype=torch.int32), new(count, dtype=torch.int32)
    kept, reach = new(rows, dtype=torch.int32), new(rows, dtype=torch.float32)
    tree = {"tokens": new(rows), "parents": new(rows), "depths": new(rows)}
    mask = new(rows, rows, dtype=torch.bool)
    launch_kernel(
        _rank_kernel, (triton.cdiv(count, _RANK_BLOCK),),
        state.reach, lasting, levels, rows - 1, guesses, triton.next_power_of_2(guesses),
        _RANK_BLOCK, num_warps=4,
    )  # fmt: skip
    launch_kernel(
        _number_kernel, (1,),
        state.root, state.reach, state.tokens, lasting, numbers, kept, tree["tokens"],
        tree["depths"], reach, levels, rows, threshold or 0.0, guesses,
        triton.next_power_of_2(state.reach.shape[0]), threshold is not None,
        triton.next_power_of_2(rows), _NUMBER_BLOCK, num_warps=8,
    )  # fmt: skip
    launch_kernel(
        _mask_kernel, (triton.cdiv(rows, _NODE_BLOCK),),
        state.slots, state.chosen, state.sees.view(torch.uint8), numbers, kept, tree["parents"],
        mask.view(torch.uint8), rows, state.sees.shape[0], state.children, WIDTH, _NODE_BLOCK, 64,
        num_warps=4,
    )  # fmt: skip
    return tree | {"mask": mask, "reaches": reach}


def _partial(scores: Tensor, vocabulary: int, children: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, maxima and sums of each block of columns: [n, blocks, 16], [n, blocks] twice."""
    rows = scores.shape[0]
    block = _SMALL_BLOCK if vocabulary <= _FEW_COLUMNS else _LARGE_BLOCK
    blocks = triton.cdiv(vocabulary, block)
    kind: dict[str, Any] = {"device": scores.device}
    keys = torch.empty(rows, blocks, 16, dtype=torch.int64, **kind)
    largest, totals = torch.empty(rows, blocks, **kind), torch.empty(rows, blocks, **kind)
    launch_kernel(
        _partial_kernel, (blocks, rows),
        scores, scores.stride(0), keys, largest, totals, vocabulary, blocks, children, block,
        num_warps=max(1, block // _COLUMNS_A_WARP),
    )  # fmt: skip
    return keys, largest, totals
