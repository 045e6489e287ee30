"""The draft tree grown on the device: what ``TreeBuilder`` and ``FixedGrowth`` do, without a host.

In: the best guesses under each node of a level, or the scores they come from. Out: what the draft
reads next (tokens, ancestor mask), and at the end the tree to verify. Every shape is static and
nothing is read back, so a CUDA graph can hold the whole growth. It does not know models or caches.

Level ``l`` holds the guesses at depth ``l + 1``. Its ``WIDTH`` most probable ones, the level's
frontier, are read by the draft at staged rows ``l * WIDTH + w``. The host's builder expands only
those of them that are among the best ``limit`` so far; the others' children rank behind ``limit``
guesses that precede their parents, so both have the same best guesses.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Self

import torch
from torch import Tensor

from specx.core import kernels
from specx.core.drafts.growth import WIDTH
from specx.core.tree import TokenTree

CHILDREN = 10  # guesses under each expanded node, as in OPT-Tree


@dataclass(frozen=True, slots=True)
class GrownTree:
    """A tree of fixed size and what its guesses are worth.

    Fewer guesses than rows leave padding at the end: token −1, parent 0, depth 0, a mask of the
    node alone.
    """

    tree: TokenTree  # n nodes, with the reach of each (root 1, padding 0)
    reaches: Tensor  # [n - 1] float32, probability that a guess is accepted, best first; padding 0
    depths: Tensor  # [n - 1] int64, depth of the same guesses; padding 0


@dataclass(frozen=True, slots=True)
class Levels:
    """What is known of a tree under construction; L levels of G = WIDTH * children guesses.

    Level 0 fills only its first ``children`` places, the others keep reach 0. A guess's number is
    its place in the flattened levels. R = L * WIDTH staged rows.
    """

    children: int
    root: Tensor  # [1] int64 token
    reach: Tensor  # [L, G] float32
    tokens: Tensor  # [L, G] int64
    slots: Tensor  # [L, G] int64: staged row of a guess, −1 outside the frontier
    chosen: Tensor  # [R] int64: number of the guess in a staged row
    frontier: Tensor  # [L, WIDTH] int64 tokens
    frontier_reach: Tensor  # [L, WIDTH] float32
    sees: Tensor  # [R, R] bool: itself and its ancestors below the root

    @classmethod
    def empty(cls, levels: int, children: int, device: torch.device) -> Self:
        """No guess yet."""
        rows, guesses = levels * WIDTH, WIDTH * children

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            children=children,
            root=zeros(1),
            reach=zeros(levels, guesses, dtype=torch.float32),
            tokens=zeros(levels, guesses),
            slots=zeros(levels, guesses) - 1,
            chosen=zeros(rows),
            frontier=zeros(levels, WIDTH),
            frontier_reach=zeros(levels, WIDTH, dtype=torch.float32),
            sees=zeros(rows, rows, dtype=torch.bool),
        )


class Beam:
    """One tree under construction, in buffers that are allocated once.

    Use: ``add_root`` (or ``read_root``); for each level from 1 on, after the draft has read
    ``frontier(level - 1)`` with ``mask(level - 1)``, ``add_level`` (or ``read_level``); at the end
    ``tree``. A new ``add_root`` starts the next tree. ``level`` is a host number.
    """

    def __init__(
        self,
        levels: int,
        device: torch.device | str,
        children: int = CHILDREN,
        fused: bool | None = None,
    ) -> None:
        """``levels``: depth of the tree; ``children``: min(CHILDREN, vocabulary). ``fused``
        chooses Triton kernels (True) or torch (False); None: kernels where they can run."""
        place = torch.device(device)
        self.levels, self.children = levels, children
        self._fused = _fused(place, fused)
        self._levels = Levels.empty(levels, children, place)
        numbers = torch.arange(levels * WIDTH * children, device=place)
        # Of each guess by number, without what a tree adds: staged row of its parent; level.
        self._parent_rows = (numbers // children - WIDTH).clamp(min=-1)
        self._parent_rows[: WIDTH * children] = -1
        self._level_of = numbers // (WIDTH * children)
        self._row_numbers = torch.arange(levels * WIDTH, device=place)

    def add_root(self, root: Tensor, chances: Tensor, tokens: Tensor) -> None:
        """Start a tree: ``root`` [1] int64, the guesses under it ``chances`` [1, K] float32 with
        ``tokens`` [1, K] int64, K = ``children``."""
        self._levels.root.copy_(root)
        self._add(0, chances, tokens)

    def add_level(self, level: int, chances: Tensor, tokens: Tensor) -> None:
        """Add guesses under the frontier of ``level - 1``: conditional probabilities ``chances``
        [WIDTH, K] float32, best first, and ``tokens`` [WIDTH, K] int64; 1 ≤ level < levels."""
        self._add(level, chances, tokens)

    def read_root(self, root: Tensor, scores: Tensor, vocabulary: int) -> None:
        """``add_root`` with the ``best_guesses`` of ``scores`` [1, V]."""
        self._levels.root.copy_(root)
        self._add(0, *self._guesses(scores, vocabulary))

    def read_level(self, level: int, scores: Tensor, vocabulary: int) -> None:
        """``add_level`` with the ``best_guesses`` of ``scores`` [WIDTH, V]."""
        self._add(level, *self._guesses(scores, vocabulary))

    def frontier(self, level: int) -> Tensor:
        """Tokens [WIDTH] int64 of the level's most probable guesses, best first. A place that no
        guess fills carries token 0 and reach 0. The same memory for every tree."""
        return self._levels.frontier[level]

    def reach(self, level: int) -> Tensor:
        """Probability [WIDTH] float32 that each guess of ``frontier(level)`` is accepted."""
        return self._levels.frontier_reach[level]

    def mask(self, level: int) -> Tensor:
        """Which staged rows the frontier sees: itself and its ancestors, not the root.

        [WIDTH, levels * WIDTH] bool, contiguous; the columns of later levels are False. The same
        memory for every tree.
        """
        return self._levels.sees[level * WIDTH : (level + 1) * WIDTH]

    def parents(self, level: int) -> Tensor:
        """Staged rows [WIDTH] int64 of the parents of ``frontier(level)``; level ≥ 1."""
        chosen = self._levels.chosen[level * WIDTH : (level + 1) * WIDTH]
        return self._parent_rows.index_select(0, chosen)

    def tree(
        self, rows: int, threshold: float | None = None, levels: int | None = None
    ) -> GrownTree:
        """The root and the ``rows - 1`` most probable guesses; parents precede children.

        ``threshold``: OPT-Tree's rule, as ``FixedGrowth`` with ``rows - 1`` nodes: levels behind
        the first one that adds fewer expected tokens are left out. ``levels``: only the first ones
        (those added since the root, if not all were).
        """
        count = self.levels if levels is None else levels
        if self._fused is not None:
            fields, reaches, depths = self._fused.finish(self._levels, rows, threshold, count)
            return GrownTree(TokenTree(**fields, levels=count), reaches, depths)
        return self._finish(rows, threshold, count)

    def _guesses(self, scores: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        return best_guesses(scores, vocabulary, self.children, self._fused is not None)

    def _add(self, level: int, chances: Tensor, tokens: Tensor) -> None:
        if self._fused is not None:
            self._fused.add_level(self._levels, level, chances, tokens)
            return
        state, start = self._levels, level * WIDTH
        here = slice(start, start + WIDTH)
        reaches = chances.clamp(max=1.0)
        if level:
            reaches = reaches * state.frontier_reach[level - 1][:, None]
        state.reach[level][: chances.numel()] = reaches.reshape(-1)
        state.tokens[level][: chances.numel()] = tokens.reshape(-1)
        ordered = state.reach[level].sort(descending=True, stable=True)
        best = ordered.indices[:WIDTH]
        state.frontier_reach[level] = ordered.values[:WIDTH]
        state.frontier[level] = state.tokens[level][best]
        state.slots[level].fill_(-1).scatter_(0, best, self._row_numbers[here])
        state.chosen[here] = best + level * WIDTH * self.children
        if level:
            state.sees[here] = state.sees[start - WIDTH : start][best // self.children]
        state.sees[here].diagonal(start).fill_(True)

    def _finish(self, rows: int, threshold: float | None, levels: int) -> GrownTree:
        """``tree`` in torch."""
        state, end = self._levels, levels * WIDTH * self.children
        reach, level_of = state.reach.view(-1)[:end], self._level_of[:end]
        if threshold is not None:
            last = self._last_level(reach, rows - 1, threshold, levels)
            reach = torch.where(level_of <= last, reach, 0.0)
        pad = max(0, rows - 1 - end)
        ordered = torch.nn.functional.pad(reach, (0, pad)).sort(descending=True, stable=True)
        reaches, best = ordered.values[: rows - 1], ordered.indices[: rows - 1]
        depths = torch.where(reaches > 0, level_of[best.clamp(max=end - 1)] + 1, 0)
        # −1 is the root; ``end`` and more are padding, behind all guesses.
        kept = torch.where(reaches > 0, best, end).sort().values
        kept = torch.nn.functional.pad(kept, (1, 0), value=-1)
        is_guess = (kept >= 0) & (kept < end)
        numbers = kept.clamp(0, end - 1)
        above = torch.where(is_guess, self._parent_rows[numbers], -1)
        parents = torch.where(above >= 0, state.chosen[above], -1)
        slots = torch.where(is_guess, state.slots.view(-1)[numbers], -1)
        mask = state.sees[above][:, slots] & (above >= 0)[:, None] & (slots >= 0)
        mask[:, 0] = kept < end
        mask.diagonal().fill_(True)
        tokens = torch.where(is_guess, state.tokens.view(-1)[numbers], -1)
        tokens[:1] = state.root
        chances = torch.where(is_guess, reach[numbers], 0.0)
        chances[:1].fill_(1.0)
        tree = TokenTree(
            tokens=tokens,
            parents=torch.searchsorted(kept, parents),
            depths=torch.where(is_guess, level_of[numbers] + 1, 0),
            mask=mask,
            levels=levels,
            reaches=chances,
        )
        return GrownTree(tree, reaches, depths)

    def _last_level(self, reach: Tensor, limit: int, threshold: float, levels: int) -> Tensor:
        """The level that ``FixedGrowth`` stops after, 0-d int64."""
        ordered = reach.double().sort(descending=True, stable=True)
        row = torch.arange(levels, device=reach.device)
        inside = self._level_of[ordered.indices] <= row[:, None]
        among = inside & (inside.cumsum(dim=1) <= limit)
        expected = (among * ordered.values).sum(dim=1)
        gains = torch.diff(expected, prepend=expected.new_zeros(1))
        return torch.where((gains < threshold) | (row == levels - 1), row, levels).amin()


def best_guesses(
    scores: Tensor, vocabulary: int, children: int = CHILDREN, fused: bool | None = None
) -> tuple[Tensor, Tensor]:
    """The most probable tokens of each row among the first ``vocabulary`` columns, best first.

    ``scores`` [n, V] float of any kind (logits, or perturbed scores with −inf). Returns softmax
    probabilities [n, children] float32 and tokens [n, children] int64. ``fused`` as in ``Beam``.
    """
    module = _fused(scores.device, fused)
    if module is not None:
        chances, tokens = module.best_guesses(scores, vocabulary, children)
        return chances, tokens
    best = scores[:, :vocabulary].float().log_softmax(dim=-1).topk(children, dim=-1)
    return best.values.exp(), best.indices


def _fused(device: torch.device, wanted: bool | None) -> ModuleType | None:
    """The Triton kernels, where they are wanted or, without a wish, can run."""
    if wanted is None:
        wanted = device.type == "cuda" and kernels.is_available()
    return import_module("specx.core.kernels.guess") if wanted else None
