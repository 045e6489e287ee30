# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Triton kernels for copied guesses: what ``Copies`` computes in torch, number for number, in two
launches a chain and one a level. A place where the last tokens occurred before is ranked by one
integer: the length of the match above, then the target's attention to its chunk, the place below.
So one maximum finds the place."""

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like, int64, uint8

from specx.core.kernels.launch import launch_kernel
from specx.core.kernels.types import (
    FADING,
    LONGEST,
    MATCH_BITS,
    PLACE_BITS,
    SHORTEST,
    WIDTH,
    CopyState,
)

_BLOCK = 1024  # places of the text that a program compares
_MATCH_WARPS = 4
# A single warp: what one program does for a chain or a level is latency alone.
_WARPS = 1

_MATCH_BITS, _PLACE_BITS = tl.constexpr(MATCH_BITS), tl.constexpr(PLACE_BITS)
_PLACES = tl.constexpr((1 << PLACE_BITS) - 1)


@triton.jit(do_not_specialize=["chunk_tokens", "chunks"])
def _match_kernel(
    text, length, attention, ranks, chunk_tokens, chunks,
    SHORT: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The best rank of one block of places; −1 where nothing matches."""
    block = tl.program_id(0)
    place = block * BLOCK + tl.arange(0, BLOCK)
    newest = tl.load(length) - 1
    # Something must follow, so the newest token itself is no place.
    agrees = place < newest
    count = tl.zeros((BLOCK,), tl.int64)
    for back in tl.static_range(LONG):
        sought = tl.load(text + newest - back, mask=newest >= back, other=-1)
        exists = (place < newest) & (place >= back)
        # Not masked by what agreed so far: the loads need not wait for each other.
        token = tl.load(text + place - back, mask=exists, other=-1)
        agrees = agrees & exists & (token == sought)
        count += agrees.to(tl.int64)
    chunk = tl.minimum(place // chunk_tokens, chunks - 1)
    # Of floats that are not negative the bits are in the order of the values.
    bits = tl.load(attention + chunk).to(tl.int32, bitcast=True) >> 16
    rank = (count << _MATCH_BITS) | (bits.to(tl.int64) << _PLACE_BITS) | place
    rank = tl.where(count >= SHORT, rank, -1)
    tl.store(ranks + block, tl.max(rank, 0))


@triton.jit
def _faded(count, prior, news, FADE: tl.constexpr):
    """A number of the counts with its news; its older part fades towards the prior."""
    before, first = tl.load(count), tl.load(prior)
    return first + FADE * (before - first) + news.to(tl.float32)


@triton.jit(do_not_specialize=["blocks"])
def _chain_kernel(
    text, length, ranks, chain, doubted, start, kind, prior, counts, blocks,
    SHORT: tl.constexpr, FADE: tl.constexpr, DEPTH: tl.constexpr, KINDS: tl.constexpr,
    LEVELS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Judge the last chain, then write the one after the best place; one program."""
    index, level = tl.arange(0, BLOCKS), tl.arange(0, LEVELS)
    rank = tl.max(tl.load(ranks + index, mask=index < blocks, other=-1), 0)
    is_level, end = level < DEPTH, tl.load(length)
    last = tl.load(chain + level, mask=is_level, other=-1)
    place = tl.load(start) + level
    known = (place < end) & (last >= 0)
    came = known & (tl.load(text + place, mask=known, other=-1) == last)
    wrong = tl.min(tl.where(came, LEVELS, level), 0)  # the first level that did not come true
    counted = tl.load(doubted + level, mask=is_level, other=0) != 0
    hits = tl.sum((counted & (level < wrong)).to(tl.int32), 0)
    tries = tl.sum((counted & known & (level <= wrong)).to(tl.int32), 0)
    hits_place = tl.load(kind)
    tries_place = hits_place + KINDS
    new_hits = _faded(counts + hits_place, prior + hits_place, hits, FADE)
    new_tries = _faded(counts + tries_place, prior + tries_place, tries, FADE)
    after = (rank & _PLACES) + 1 + level
    found = tl.load(text + after, mask=is_level & (rank >= 0) & (after < end), other=-1)
    # All of the last chain must be read before the first of the next is written.
    tl.debug_barrier()
    tl.store(counts + hits_place, new_hits, mask=tries > 0)
    tl.store(counts + tries_place, new_tries, mask=tries > 0)
    tl.store(chain + level, found, mask=is_level)
    tl.store(doubted + level, tl.zeros((LEVELS,), tl.uint8), mask=is_level)
    tl.store(start, end)
    tl.store(kind, tl.maximum((rank >> _MATCH_BITS) - SHORT, 0))


@triton.jit
def _on_chain(chain, on_chain, frontier, parents, is_row, row, level, WIDE: tl.constexpr):
    """Which rows' paths are the chain's first ``level`` tokens; kept for the next level."""
    token = tl.load(frontier + row, mask=is_row & (level > 0), other=-1)
    parent = tl.load(parents + row, mask=is_row & (level > 1), other=0)
    above = tl.load(on_chain + parent, mask=is_row & (level > 1), other=1) != 0
    copied = tl.load(chain + level - 1, mask=level > 0, other=-1)
    is_on = is_row & above & ((level == 0) | ((token == copied) & (token >= 0)))
    # The rows above are others, so nothing is overwritten that another thread still reads.
    here = on_chain + (level - 1) * WIDE + row
    tl.store(here, is_on.to(tl.uint8), mask=is_row & (level > 0))
    return is_on


@triton.jit(do_not_specialize=["level", "rows"])
def _join_kernel(
    chances, tokens, frontier, parents, chain, doubted, kind, counts, on_chain, new_chances,
    new_tokens, level, rows, COUNT: tl.constexpr, WIDE: tl.constexpr, KINDS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Join the chain's token to the guesses under ``rows`` nodes of a level; one program."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)[None, :]
    is_row = row < rows
    place = row[:, None] * COUNT + column
    is_guess = is_row[:, None] & (column < COUNT)
    chance = tl.load(chances + place, mask=is_guess, other=0.0)
    token = tl.load(tokens + place, mask=is_guess, other=-1)
    copied = tl.load(chain + level)
    tries = counts + KINDS + tl.load(kind)
    worth = tl.div_rn(tl.load(tries - KINDS), tl.load(tries))
    is_on = _on_chain(chain, on_chain, frontier, parents, is_row, row, level, WIDE)
    is_there = is_guess & (token == copied)
    thought = tl.max(is_there.to(tl.int32), 1) > 0
    first = tl.max((is_there & (column == 0)).to(tl.int32), 1) > 0
    is_doubted = is_on & (copied >= 0) & (first == 0)
    tl.store(doubted + level, tl.max(is_doubted.to(tl.int32), 0).to(tl.uint8))
    takes = is_there | ((thought == 0)[:, None] & (column == COUNT - 1))
    takes = takes & is_doubted[:, None] & (chance < worth)
    tl.store(new_chances + place, tl.where(takes, worth, chance), mask=is_guess)
    tl.store(new_tokens + place, tl.where(takes, copied, token), mask=is_guess)


def find(state: CopyState, text: Tensor, length: Tensor, chunk_tokens: int) -> None:
    """What ``Copies.find`` does, in two launches; ``text`` contiguous, fewer than 2³¹ tokens."""
    depth, blocks = state.chain.shape[0], triton.cdiv(text.shape[0], _BLOCK)
    ranks = empty(blocks, dtype=int64, device=text.device)
    launch_kernel(
        _match_kernel, (blocks,),
        text, length, state.attention, ranks, chunk_tokens, state.attention.shape[0], SHORTEST,
        LONGEST, _BLOCK, num_warps=_MATCH_WARPS,
    )  # fmt: skip
    # No fused multiply-add, so that counts are torch's to the last bit.
    launch_kernel(
        _chain_kernel, (1,),
        text, length, ranks, state.chain, state.doubted.view(uint8), state.start, state.kind,
        state.prior, state.counts, blocks, SHORTEST, FADING, depth, state.counts.shape[1],
        triton.next_power_of_2(depth), triton.next_power_of_2(blocks), num_warps=_WARPS,
        enable_fp_fusion=False,
    )  # fmt: skip


def joined(
    state: CopyState,
    chances: Tensor,
    tokens: Tensor,
    level: int,
    frontier: Tensor | None,
    parents: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows, count = tokens.shape
    chances, tokens = chances.contiguous(), tokens.contiguous()
    new_chances, new_tokens = empty_like(chances), empty_like(tokens)
    # Where there is no frontier or no parent yet, nothing is read from what is passed instead.
    launch_kernel(
        _join_kernel, (1,),
        chances, tokens, tokens if frontier is None else frontier,
        tokens if parents is None else parents, state.chain, state.doubted.view(uint8),
        state.kind, state.counts, state.on_chain.view(uint8), new_chances, new_tokens, level, rows,
        count, WIDTH, state.counts.shape[1], triton.next_power_of_2(WIDTH),
        triton.next_power_of_2(count), num_warps=_WARPS,
    )  # fmt: skip
    return new_chances, new_tokens
