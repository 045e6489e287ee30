"""A draft model whose draft is one recording on the device: no host between its levels.

In: the progress of the request, and the target's features where the model reads them. Out: the
tree that ``ModelDrafter`` would grow with as many levels (OPT-Tree as in SpecExtend §3), at static
shapes. It does not know the target.

Everything that changes from step to step is read from device scalars: how many tokens the output
has, how many of them the draft has read, how many rows its working cache holds. The host keeps
upper bounds of them, to know when the cache must be refilled.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from specx.core.cache import KVCache
from specx.core.drafts.growth import WIDTH, ForecastGrowth, StepCosts
from specx.core.drafts.model import DraftSettings, ModelDrafter
from specx.core.drafts.tree_beam import CHILDREN, Beam, best_guesses
from specx.core.forward_passes import StagedPass, UnreadPass
from specx.core.graphs import Graphs
from specx.core.retrieval import Selection, best_chunks
from specx.core.sampling import Sampler
from specx.core.target import FEATURE_ROWS, STATIC_ROWS, TargetBuffers, static_rows
from specx.core.tree import TokenTree


class DeviceDrafter(ModelDrafter):
    """``ModelDrafter`` for static kernels: same caches, same prefill, its growth on the device."""

    def __init__(
        self,
        buffers: TargetBuffers,
        settings: DraftSettings,
        sampler: Sampler,
        costs: Callable[[], StepCosts] | None = None,
        full: KVCache | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """``buffers``: the target's; ``full``: the cache of another drafter of the same capacity;
        ``graphs``: others than the buffers'. Serves one request after the other (``begin``)."""
        tree = settings.tree
        self._unread_rows = tree.depth + 1  # most tokens that a step commits
        # A step may be launched beyond the end of the output, reads are padded, and a static
        # selection has its full size however short the context is.
        budget = settings.retrieval.budget_tokens
        spare = max(0, budget - settings.capacity) + 4 * self._unread_rows
        super().__init__(settings, sampler, costs, full, spare)
        if self._copies is not None:
            self._copies = self._new_copies(buffers.progress.text.shape[0], self._model.device)
        self._progress, self._ring = buffers.progress, buffers.features
        records = self._parts.launch == "graph"
        graphs = graphs or buffers.graphs
        self._graphs = graphs if records else Graphs(self._model.device, enabled=False)
        sizes = sorted({*STATIC_ROWS, static_rows(tree.nodes + 1)})
        self._forecast = ForecastGrowth(tree, sizes)
        self._known = min(self._vocabulary, self._model.shape.vocabulary)
        device = self._model.device
        self._beam = Beam(tree.depth, device, min(CHILDREN, self._known))
        self._read = torch.zeros((), dtype=torch.int64, device=device)  # output tokens read
        self._held = torch.zeros((), dtype=torch.int64, device=device)  # rows of the working cache
        self._budget = budget
        self._chosen = torch.zeros(self._budget, dtype=torch.int64, device=device)
        self._chosen_count = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(budget, device=device)
        ones = torch.ones(self._unread_rows, self._unread_rows, dtype=torch.bool, device=device)
        self._causal = ones.tril()
        # Rows of the full cache that the prompt's tokens have less: a head reads pairs.
        self._missing = 1 if self._model.reads_features else 0
        # A budget as long as the draft was trained must not crowd out the selection itself.
        self._most_rows = max(self._rows, self._budget + 2 * self._unread_rows)
        self.begin(self._sampler, self._costs_of)

    def begin(self, sampler: Sampler, costs: Callable[[], StepCosts] | None) -> None:
        """Forget the last request; what was learned about trees stays."""
        self._sampler = sampler
        self._forecast.begin(costs)
        if self._copies is not None:
            self._copies.begin()
        self._full.truncate(0)
        self._working.truncate(0)
        self._read.zero_()
        self._held.zero_()
        self._pending, self._produced = [], 0
        self._last_feature = None
        self._prompt = 0
        self._most_held = 0  # upper bound of ``_held``, on the host
        self._unsettled = 0  # drafts since the last ``extend``
        self._is_behind = False
        self._left_out = 0  # tokens of steps without a draft
        # Levels of the drafts that are not settled, and whether their time means anything.
        self._launched: deque[tuple[int, bool]] = deque()
        self._key = (self._kernels.name, self._parts, sampler.config)

    @property
    def full_cache(self) -> KVCache:
        """Keys of the whole context, which drafters of other parts may share."""
        return self._full

    @property
    def runs_ahead(self) -> bool:
        """See ``Drafter``."""
        return True

    @property
    def context_tokens(self) -> int:
        """See ``Drafter``; as many as there may be."""
        return self._most_held

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """See ``Drafter``. The tokens themselves are read from the progress."""
        self._produced += len(tokens)
        # Steps without a draft in between leave more unread than one recording reads.
        self._is_behind = self._is_behind or self._unsettled == 0
        self._unsettled = 0
        self._left_out += len(tokens) if self._is_behind else 0
        if self._model.reads_features and self._left_out >= FEATURE_ROWS // 2:
            self._catch_up()  # before the ring comes round

    def refocus(self, selection: Selection) -> None:
        """See ``Drafter``. Rows that the draft has not read yet follow by themselves."""
        self._prefer(selection)
        self._choose(selection)
        self._graphs.run(("refill", self._key), self._refill)
        self._most_held = self._budget

    @torch.inference_mode()
    def draft(self) -> TokenTree:
        """See ``Drafter``."""
        self._make_room()
        levels, rows = self._forecast.plan()
        key = ("draft", levels, rows, self._key)
        self._launched.append((levels, self._graphs.is_warm(key)))
        self._unsettled += 1
        # The working cache holds no more than there is.
        there_is = self._prompt + self._produced + self._unsettled * self._unread_rows
        self._most_held = min(self._most_held + self._unread_rows, there_is)
        grow = partial(self._grow, levels, rows)
        return self._graphs.run(key, grow)

    def observe(self, draft_s: float, *told: Tensor) -> tuple[float, ...]:
        """See ``Drafter``; levels are not timed one by one within a recording."""
        reaches, depths = told
        levels, is_warm = self._launched.popleft()
        told_s = draft_s if is_warm else None
        self._forecast.observe(levels, told_s, reaches.tolist(), depths.tolist())
        return (draft_s / levels,) * levels

    def _make_room(self) -> None:
        """Read a backlog, and refill the working cache where nobody did."""
        if self._prompt == 0:
            self._begin()
        elif self._is_behind:
            self._catch_up()
        crowded = self._most_held + self._unread_rows > self._most_rows
        is_window = self._parts.draft_cache == "window"
        slid = self._budget + self._retrieval.chunk_tokens + self._unread_rows
        if self._parts.draft_cache != "full" and (
            crowded or (is_window and self._most_held >= slid)
        ):
            self._graphs.run(("recent", self._key), self._take_recent)
            self._most_held = self._budget

    def _remember(self, tokens: Tensor) -> None:
        """The progress has the text."""

    def _begin(self) -> None:
        """The first draft: the full cache holds the prompt and nothing of the output."""
        self._prompt = self._full.length + self._missing
        self._is_behind, self._left_out = False, 0
        if self._most_held == 0:  # no retrieval came first
            self._choose_rows(0)
            self._hold(self._working.length)

    def _catch_up(self) -> None:
        """Read all but the newest token of the output outside the recordings."""
        read = int(self._read)  # rare: only after plain steps
        first = self._prompt + read
        unread = self._progress.text[first : self._prompt + self._produced - 1]
        if unread.numel() >= self._unread_rows:
            self._full.reach(first - self._missing)  # the recordings wrote behind its back
            places = torch.arange(read, self._produced - 1, device=self._ring.device)
            self._read_blocks(unread, self._waiting(places))
            self._read.fill_(self._produced - 1)
            self._working.truncate(0)
            self._choose_rows(1)  # the newest token is left to the recording
            self._hold(self._working.length)
        self._is_behind, self._left_out = False, 0

    def _waiting(self, places: Tensor) -> Tensor | None:
        """The target's features [n, width] of output tokens ``places`` [n], if the model reads
        them."""
        if not self._model.reads_features:
            return None
        return self._ring.index_select(0, places % FEATURE_ROWS)

    def _hold(self, rows: int) -> None:
        self._held.fill_(rows)
        self._most_held = rows

    def _choose(self, selection: Selection) -> None:
        assert selection.count is not None, "a static selection"
        self._chosen.copy_(selection.rows)
        self._chosen_count.copy_(selection.count)

    def _refill(self) -> None:
        """Fill the working cache with the chosen rows of the full one."""
        rows = self._chosen
        count = rows.shape[0]
        for layer in range(self._model.shape.layers):
            keys = self._full.keys[layer].index_select(1, rows)
            self._working.keys[layer, :, :count] = self._rotary.rotate(keys, 0)
            values = self._full.values[layer].index_select(1, rows)
            self._working.values[layer, :, :count] = values
        # Rows increase, so those that were read come first.
        is_read = (rows < self._full_length) & (self._places < self._chosen_count)
        self._held.copy_(is_read.sum())

    def _take_recent(self) -> None:
        """Choose the sink and the most recent chunks of what the draft has read."""
        chunks = -(-self._full.capacity // self._retrieval.chunk_tokens)
        newest = torch.arange(chunks, dtype=torch.float32, device=self._held.device)
        selection = best_chunks(self._retrieval, newest, self._full_length)
        self._choose(selection)
        self._refill()

    @property
    def _full_length(self) -> Tensor:
        """Rows of the full cache, [] int64: the prompt and what was read of the output."""
        return self._progress.prompt + self._read - self._missing

    def _grow(self, levels: int, rows: int) -> TokenTree:
        """Read the new tokens, grow ``levels`` levels, keep the best ``rows`` − 1 guesses."""
        progress, beam = self._progress, self._beam
        newest = self._read_new()
        if self._copies is not None:
            self._copies.find(progress.text, progress.prompt + progress.produced)
        beam.add_root(progress.root, *self._guesses(newest, 0))
        states = newest.expand(WIDTH, -1)  # of the parents of what is read next
        for level in range(1, levels):
            if level > 1 and self._model.reads_features:
                # They stand one level above, in its WIDTH staged rows.
                above = beam.parents(level - 1) - (level - 2) * WIDTH
                states = states.index_select(0, above)
            states = self._read_frontier(level, states)
            beam.add_level(level, *self._guesses(states, level))
        threshold = self._tree.threshold if self._tree.size == "fixed" else None
        tree = beam.tree(rows, threshold, levels).tree
        return tree if self._copies is None else replace(tree, copied=self._copies.chain)

    def _read_new(self) -> Tensor:
        """Commit the unread tokens in both caches; the model's state [1, hidden] at the newest."""
        device, progress = self._held.device, self._progress
        offsets = torch.arange(self._unread_rows, device=device)
        count = progress.produced - self._read
        numbers = self._read + offsets  # of output tokens
        places = (progress.prompt + numbers).clamp(max=progress.text.shape[0] - 1)
        tokens = self._embeddable(progress.text.index_select(0, places))
        attention = UnreadPass(
            self._working,
            self._held,
            self._full,
            self._full_length,
            self._held + offsets,
            self._causal,
            self._rotary,
            self._kernels,
        )
        nowhere = torch.zeros_like(tokens)  # the pass rotates
        features = self._waiting(numbers)
        fused = None if features is None else self._model.fuse(features)
        hidden = self._model.hidden(tokens, nowhere, attention, fused)
        self._held += count
        self._read.copy_(progress.produced)
        return hidden.index_select(0, (count - 1)[None])

    def _read_frontier(self, level: int, features: Tensor) -> Tensor:
        """States [WIDTH, hidden] after the best nodes of level ``level`` − 1, over all staged
        rows; ``features`` are those at their parents."""
        staged = level * WIDTH
        mask = self._beam.mask(level - 1)[:, :staged]
        attention = StagedPass(
            self._working, self._held, self._held + (staged - WIDTH), mask, self._kernels
        )
        tokens = self._embeddable(self._beam.frontier(level - 1))
        positions = (self._held + (level - 1)).expand(WIDTH)
        return self._model.hidden(tokens, positions, attention, features)

    def _embeddable(self, tokens: Tensor) -> Tensor:
        """A token that only the target's padded vocabulary knows must not break the draft."""
        return tokens.clamp(0, self._model.shape.vocabulary - 1)

    def _guesses(self, states: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Chances and tokens [n, K] of the best guesses behind ``states`` [n, hidden]."""
        scores = self._scores(self._model.logits(states), level)
        chances, tokens = best_guesses(scores, self._known, self._beam.children)
        if self._copies is None:
            return chances, tokens
        frontier = self._beam.frontier(level - 1) if level else None
        parents = self._beam.parents(level - 1) if level > 1 else None
        return self._copies.joined_in_beam(chances, tokens, level, frontier, parents)

    def _scores(self, logits: Tensor, level: int) -> Tensor:
        """With the noise that the target's sampler will draw there (common random numbers)."""
        if self._sampler.is_greedy:
            return logits
        positions = (self._progress.produced + level).expand(logits.shape[0])
        return self._sampler.scores(logits[:, : self._known], positions)
