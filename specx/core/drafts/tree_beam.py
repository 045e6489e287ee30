"""The draft tree as it grows, level by level (OPT-Tree as in SpecExtend §3). Nothing is read back,
so a CUDA graph can hold the whole growth. It does not know models, or who decides how far a tree
grows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specx.core import kernels
from specx.core.kernels.types import CHILDREN, WIDTH, Levels
from specx.core.tree import TokenTree


class Beam:
    """One tree under construction, in buffers that are allocated once.

    A guess's reach is the draft's chance that the whole path down to it is accepted. A child is
    never more probable than its parent and comes after it, so any number of best guesses is a tree.
    Level ``l`` holds the guesses at depth ``l + 1``. Its ``WIDTH`` most probable ones, its
    frontier, best first, have the staged rows ``l * WIDTH + w``; the draft reads the first of them.

    Use: ``add_root``; for each level from 1 on, after the draft has read the first rows of
    ``frontier(level - 1)`` with ``mask(level - 1)``, ``add_level``; at the end ``tree``. A new
    ``add_root`` starts the next tree. ``level`` is a host number.
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
        self._fused = kernels.fused("guess", place, fused)
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
        self.add_level(0, chances, tokens)

    def add_level(self, level: int, chances: Tensor, tokens: Tensor) -> None:
        """Add guesses under the first n rows of the frontier of ``level - 1``: conditional
        probabilities ``chances`` [n, K] float32, best first, and ``tokens`` [n, K] int64."""
        if self._fused is not None:
            self._fused.add_level(self._levels, level, chances, tokens)
        else:
            self._add(level, chances, tokens)

    def frontier(self, level: int) -> Tensor:
        """Tokens [WIDTH] int64 of the level's most probable guesses, best first. A place that no
        guess fills has reach 0. The same memory for every tree."""
        return self._levels.frontier[level]

    def mask(self, level: int, widths: Sequence[int] | None = None) -> Tensor:
        """Which staged rows the frontier sees: itself and its ancestors, not the root.

        [WIDTH, (level + 1) * WIDTH] bool; or, where the draft has read only the first ``widths``
        rows of each level up to this one, [widths[level], sum of widths].
        """
        rows = self._levels.sees[level * WIDTH : (level + 1) * WIDTH]
        if widths is None:
            return rows[:, : (level + 1) * WIDTH]
        rows = rows[: widths[level]]
        pieces = [rows[:, at * WIDTH : at * WIDTH + width] for at, width in enumerate(widths)]
        return torch.cat(pieces, dim=1)

    def parents(self, level: int) -> Tensor:
        """Staged rows [WIDTH] int64 of the parents of ``frontier(level)``; level ≥ 1."""
        chosen = self._levels.chosen[level * WIDTH : (level + 1) * WIDTH]
        return self._parent_rows.index_select(0, chosen)

    def best(self, levels: int, limit: int) -> list[float]:
        """On the host: reaches of the most probable guesses of the first ``levels`` levels, at most
        ``limit``, best first; no impossible ones."""
        reach = self._levels.reach.view(-1)[: levels * WIDTH * self.children]
        found: list[float] = reach.topk(min(limit, reach.shape[0])).values.tolist()
        return [reach for reach in found if reach > 0.0]

    def frontier_reaches(self, level: int) -> list[float]:
        """On the host: reaches of ``frontier(level)``."""
        reaches: list[float] = self._levels.frontier_reach[level].tolist()
        return reaches

    def tree(
        self, rows: int, threshold: float | None = None, levels: int | None = None
    ) -> TokenTree:
        """The root and the ``rows - 1`` most probable guesses; parents precede children.

        Fewer guesses than rows leave padding at the end: token −1, parent 0, depth 0, reach 0, a
        mask of the node alone. ``threshold``: OPT-Tree's rule: levels after the first one that adds
        fewer expected tokens are left out. ``levels``: only the first ones (those added since the
        root, if not all were).
        """
        count = self.levels if levels is None else levels
        if self._fused is not None:
            fields = self._fused.finish(self._levels, rows, threshold, count)
            return TokenTree(**fields, levels=count)
        return self._finish(rows, threshold, count)

    def _add(self, level: int, chances: Tensor, tokens: Tensor) -> None:
        state, start = self._levels, level * WIDTH
        here, count = slice(start, start + WIDTH), chances.numel()
        reaches = chances.clamp(max=1.0)
        if level:
            above = state.frontier_reach[level - 1, : chances.shape[0]]
            reaches = reaches * above[:, None]
        reach = state.reach[level]
        reach[:count] = reaches.reshape(-1)
        reach[count:] = 0.0
        state.tokens[level, :count] = tokens.reshape(-1)
        ordered = reach.sort(descending=True, stable=True)
        best = ordered.indices[:WIDTH]
        state.frontier_reach[level] = ordered.values[:WIDTH]
        state.frontier[level] = state.tokens[level][best]
        state.slots[level].fill_(-1).scatter_(0, best, self._row_numbers[here])
        state.chosen[here] = best + level * WIDTH * self.children
        if level:
            # Impossible guesses are among the best where there are few: any row will do for them.
            state.sees[here] = state.sees[start - WIDTH : start][best // self.children]
        state.sees[here].diagonal(start).fill_(True)

    def _finish(self, rows: int, threshold: float | None, levels: int) -> TokenTree:
        state, end = self._levels, levels * WIDTH * self.children
        reach, level_of = state.reach.view(-1)[:end], self._level_of[:end]
        if threshold is not None:
            last = self._last_level(reach, rows - 1, threshold, levels)
            reach = torch.where(level_of <= last, reach, 0.0)
        pad = max(0, rows - 1 - end)
        ordered = torch.nn.functional.pad(reach, (0, pad)).sort(descending=True, stable=True)
        reaches, best = ordered.values[: rows - 1], ordered.indices[: rows - 1]
        # −1 is the root; ``end`` and more are padding, after all guesses.
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
        return TokenTree(
            tokens=tokens,
            parents=torch.searchsorted(kept, parents),
            depths=torch.where(is_guess, level_of[numbers] + 1, 0),
            mask=mask,
            levels=levels,
            reaches=chances,
        )

    def _last_level(self, reach: Tensor, limit: int, threshold: float, levels: int) -> Tensor:
        """The level that OPT-Tree's rule stops after, [] int64."""
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
    module = kernels.fused("guess", scores.device, fused)
    if module is not None:
        chances, tokens = module.best_guesses(scores, vocabulary, children)
        return chances, tokens
    best = scores[:, :vocabulary].float().log_softmax(dim=-1).topk(children, dim=-1)
    return best.values.exp(), best.indices
