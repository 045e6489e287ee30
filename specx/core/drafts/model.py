"""A draft model (a small language model, or an EAGLE head that reads the target's features) as
drafter of dynamic trees (OPT-Tree as in SpecExtend §3), with a short working cache over a long
document. It does not know the target, or why context rows were chosen."""

import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.config import Parts, RetrievalConfig, TreeConfig
from specx.core.drafts import Drafter
from specx.core.drafts.copies import Copies
from specx.core.drafts.eagle import DraftModel
from specx.core.drafts.growth import ForecastGrowth, StepCosts, StepwiseGrowth
from specx.core.drafts.tree_beam import Beam, best_guesses
from specx.core.forward_passes import ReadPass, Rotary, TreePass, WindowPass
from specx.core.graphs import RECORDED_ROWS, padded_rows
from specx.core.kernels.types import CHILDREN, WIDTH
from specx.core.retrieval import Selection, select_recent
from specx.core.sampling import Sampler
from specx.core.tree import TokenTree
from specx.core.workspace import FEATURE_ROWS, Workspace


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """What a draft model (a small language model or a head) drafts with."""

    model: DraftModel
    vocabulary: int  # the target's: guesses beyond it are not made
    trained_tokens: int  # no later position is used, but for a full cache
    parts: Parts
    tree: TreeConfig
    retrieval: RetrievalConfig
    kernels: Kernels


class ModelDrafter(Drafter):
    """One request's draft state around a shared ``DraftModel``; ``start`` begins the next request
    in the same buffers.

    Two caches: ``full`` holds keys of every committed token *without* rotation; ``working`` holds
    the rows that the draft currently sees, rotated to compact positions 0 … m − 1. So the draft
    meets no position beyond its training length however long the document is. A head's row t holds
    the pair (feature at t, token t + 1), so it has read one row less than there are tokens; further
    down a tree the feature of a node is the head's own state at its parent.

    What changes from step to step is read from device scalars. Where shapes are fixed, a draft is
    one recording of as many levels as were planned, and the host keeps upper bounds of them.
    """

    def __init__(self, settings: DraftSettings, workspace: Workspace) -> None:
        """``workspace``: the target's, whose progress and features are read here."""
        model, tree, retrieval = settings.model, settings.tree, settings.retrieval
        self.settings, self._model, self._parts = settings, model, settings.parts
        self._kernels, device = settings.kernels, model.device
        self._launcher = workspace.launcher(settings.kernels, settings.parts.launch)
        self.runs_ahead = self._launcher.is_fixed
        self._progress, self._ring = workspace.progress, workspace.features
        self._known = min(settings.vocabulary, model.shape.vocabulary)
        # Rows of the full cache that the prompt's tokens have less: a head reads pairs.
        self._missing = 1 if model.reads_features else 0
        self._unread_rows = tree.depth + 1  # most tokens that a step commits
        self._allocate(workspace)
        chunks = -(-workspace.capacity // retrieval.chunk_tokens)
        self._copies: Copies | None = None
        if self._parts.copies == "tree":
            self._copies = Copies(
                tree.depth, device, chunks=chunks, chunk_tokens=retrieval.chunk_tokens
            )
        self._beam = Beam(tree.depth, device, min(CHILDREN, self._known))
        sizes = sorted({*RECORDED_ROWS, padded_rows(tree.nodes + 1)})
        self._forecast, self._stepwise = ForecastGrowth(tree, sizes), StepwiseGrowth(tree)
        self._read = torch.zeros((), dtype=torch.int64, device=device)  # output tokens read
        self._held = torch.zeros((), dtype=torch.int64, device=device)  # rows of the working cache
        self._chosen = torch.zeros(retrieval.budget_tokens, dtype=torch.int64, device=device)
        self._chosen_count = torch.zeros((), dtype=torch.int64, device=device)
        ones = torch.ones(self._unread_rows, self._unread_rows, dtype=torch.bool, device=device)
        self._causal, self._offsets = ones.tril(), torch.arange(self._unread_rows, device=device)

    def _allocate(self, workspace: Workspace) -> None:
        """Caches, and how long their rows may be."""
        model, parts, tree = self._model, self._parts, self.settings.tree
        budget, trained = self.settings.retrieval.budget_tokens, self.settings.trained_tokens
        capacity = workspace.capacity
        # A step may be launched beyond the end of the output, reads are padded, and a selection
        # has its full size however short the context is.
        spare = max(0, budget - capacity) + 4 * self._unread_rows
        # With a tree's depth after it no position is beyond the trained length, as long as the
        # retrieval's budget allows.
        shortened = max(budget + 1, trained - tree.depth)
        rows = min(capacity, shortened) if parts.draft_cache != "full" else capacity
        # A budget as long as the draft was trained must not crowd out the selection itself.
        self._most_rows = max(rows, budget + 2 * self._unread_rows)
        # A window slides by a chunk; where only bounds are known, by a step's tokens more.
        sliding = self.settings.retrieval.chunk_tokens
        self._slid_rows = budget + sliding + self._unread_rows * self._launcher.is_fixed
        self._full = workspace.draft_cache(model, capacity + spare)
        self._working = model.new_cache(rows + tree.depth * WIDTH + spare)
        # Half the trained length before a block and half inside: no position beyond it.
        self._block = self._window = max(1, trained // 2)
        length = max(2 * self._window, rows + tree.depth + spare)
        if parts.draft_prefill == "full":
            self._block = self._window = length = max(length, capacity + spare)
        self._rotary = Rotary(model.inverse_frequencies, length)

    def start(self, sampler: Sampler) -> None:
        """Forget the last request; what was learned about trees stays."""
        self._sampler = sampler
        self._key = self._parts, sampler.config
        if self._copies is not None:
            self._copies.begin()
        self._full.reach(0)
        self._read.zero_()
        self._held.zero_()
        self.context_tokens = 0  # upper bound of ``_held``, on the host
        self._prompt = self._produced = 0  # tokens, as far as the host knows
        self._last_feature: Tensor | None = None  # of the prompt, until its next token is known
        self._unsettled = 1  # drafts since the last ``extend``; the first one follows no draft
        self._is_behind = False
        self._left_out = 0  # tokens of steps without a draft
        # Levels of the drafts that are not settled, and whether their time means anything.
        self._launched: deque[tuple[int, bool]] = deque()

    @property
    def cache_bytes(self) -> int:
        full = self._full.row_bytes * self._full.length
        return full + self._working.row_bytes * self._working.capacity

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, features: Tensor) -> None:
        """The next prompt tokens; only a model that reads ``features`` uses them."""
        tokens = tokens.to(self._model.device)
        if not self._model.reads_features:
            self._read_blocks(tokens, None)
            return
        # A feature belongs to the token after it, which may be the next chunk's first.
        last, self._last_feature = self._last_feature, features[-1:].clone()
        before = features[:-1] if last is None else torch.cat([last, features[:-1]])
        self._read_blocks(tokens[tokens.shape[0] - before.shape[0] :], before)

    def begin(self, costs: StepCosts | None) -> None:
        self._prompt = self._full.length + self._missing
        self._forecast.begin(costs)
        self._stepwise.begin(costs)

    def extend(self, tokens: list[int]) -> None:
        """Newly committed tokens, which are read from the progress by the next ``draft``."""
        self._produced += len(tokens)
        # Steps without a draft in between may leave more unread than one draft reads.
        self._is_behind = self._is_behind or self._unsettled == 0
        self._unsettled = 0
        self._left_out += len(tokens) if self._is_behind else 0
        if self._model.reads_features and self._left_out >= FEATURE_ROWS // 2:
            self._catch_up()  # before the ring comes round

    @torch.inference_mode()
    def refocus(self, selection: Selection) -> None:
        """Keep only these context rows; those that the draft has not read yet follow by
        themselves."""
        if self._copies is not None:
            self._copies.attend(selection.attention)
        rows, count = selection.rows, selection.count
        if self._launcher.is_fixed:  # recordings find them in their own place
            rows, count = self._chosen.copy_(rows), self._chosen_count.copy_(count)
        self._launcher.run(partial(self._fill, rows, count), "fill", self._key)
        self._bound_held(self.settings.retrieval.budget_tokens)

    @torch.inference_mode()
    def draft(self) -> TokenTree:
        self._make_room()
        self._unsettled += 1
        if not self._launcher.is_fixed:
            tree = self._grow_stepwise()
        else:
            levels, rows = self._forecast.plan()
            key = "draft", levels, rows, self._key
            self._launched.append((levels, self._launcher.is_warm(*key)))
            tree = self._launcher.run(partial(self._grow, levels, rows), *key)
        # The working cache holds no more than there is.
        there_is = self._prompt + self._produced + self._unsettled * self._unread_rows
        self._bound_held(min(self.context_tokens + self._unread_rows, there_is))
        return tree

    def observe(
        self, draft_s: float, reaches: Tensor | None, depths: Tensor | None
    ) -> tuple[float, ...]:
        """What the draft took; levels are not timed one by one within a recording."""
        if not self._launcher.is_fixed:
            return tuple(self._stepwise.levels_s)
        assert reaches is not None
        assert depths is not None
        levels, is_warm = self._launched.popleft()
        seconds = draft_s if is_warm else None
        self._forecast.observe(levels, seconds, reaches.tolist(), depths.tolist())
        return (draft_s / levels,) * levels

    def _read_blocks(self, tokens: Tensor, features: Tensor | None) -> None:
        """Commit tokens [n] to the full cache, block by block; ``features`` [n, width]."""
        kind = self._parts.prefill_attention
        while tokens.shape[0]:
            # Where every block has a whole window before it, they go through a layer together.
            is_uniform = self._full.length >= self._window == self._block
            blocks = max(1, tokens.shape[0] // self._block) if is_uniform else 1
            count = min(blocks * self._block, tokens.shape[0])
            start = self._full.stage(count)
            window = WindowPass(
                self._full, start, self._window, self._rotary, self._kernels, kind, blocks
            )
            fused = None if features is None else self._model.fuse(features[:count])
            block = self._embeddable(tokens[:count])
            # Position 0 leaves queries and keys unrotated; the pass rotates them itself.
            self._model.hidden(block, torch.zeros_like(block), window, fused)
            self._full.reach(start + count)
            tokens = tokens[count:]
            features = None if features is None else features[count:]

    def _read_new(self) -> Tensor:
        """Commit the unread tokens in both caches; the model's state [1, hidden] at the newest."""
        progress, launcher = self._progress, self._launcher
        count = progress.produced - self._read
        rows = self._unread_rows if launcher.is_fixed else int(count)
        offsets = self._offsets[:rows]
        numbers = self._read + offsets  # of output tokens
        places = (progress.prompt + numbers).clamp(max=progress.text.shape[0] - 1)
        tokens = self._embeddable(progress.text.index_select(0, places))
        attention = ReadPass(
            self._working,
            launcher.length(self._held),
            self._full,
            launcher.length(self._full_length),
            self._held + offsets,
            self._causal[:rows, :rows],
            self._rotary,
            self._kernels,
        )
        features = self._features_of(numbers)
        fused = None if features is None else self._model.fuse(features)
        hidden = self._model.hidden(tokens, torch.zeros_like(tokens), attention, fused)
        self._held += count
        self._read.copy_(progress.produced)
        return hidden.index_select(0, (count - 1)[None])

    def _features_of(self, numbers: Tensor) -> Tensor | None:
        """The target's features [n, width] of output tokens ``numbers`` [n], if they are read."""
        if not self._model.reads_features:
            return None
        return self._ring.index_select(0, numbers % FEATURE_ROWS)

    def _embeddable(self, tokens: Tensor) -> Tensor:
        """A token that only the target's padded vocabulary knows must not break the draft."""
        return tokens.clamp(0, self._model.shape.vocabulary - 1)

    @property
    def _full_length(self) -> Tensor:
        """Rows of the full cache, [] int64: the prompt and what was read of the output."""
        return self._progress.prompt + self._read - self._missing

    @torch.inference_mode()
    def _catch_up(self) -> None:
        """Read all but the newest token of the output where one draft would not."""
        read = int(self._read)  # rare: only after plain steps
        first = self._prompt + read
        unread = self._progress.text[first : self._prompt + self._produced - 1]
        if unread.numel() >= self._unread_rows:
            self._full.reach(first - self._missing)  # drafts wrote without the host's count
            numbers = torch.arange(read, self._produced - 1, device=self._ring.device)
            self._read_blocks(unread, self._features_of(numbers))
            self._read.fill_(self._produced - 1)
            self.context_tokens = 0
        self._is_behind, self._left_out = False, 0

    def _make_room(self) -> None:
        """Read a backlog, and fill the working cache where nobody did."""
        if self._is_behind:
            self._catch_up()
        cache, is_unfilled = self._parts.draft_cache, self.context_tokens == 0
        if cache == "full" and is_unfilled:
            rows = torch.arange(self._full.length, device=self._model.device)
            self._fill(rows, self._full_length)
            self.context_tokens = self._full.length
        is_crowded = self.context_tokens + self._unread_rows > self._most_rows
        has_slid = cache == "window" and self.context_tokens >= self._slid_rows
        if cache != "full" and (is_unfilled or is_crowded or has_slid):
            self._launcher.run(self._fill_with_recent, "recent", self._key)
            self._bound_held(self.settings.retrieval.budget_tokens)

    def _fill(self, rows: Tensor, count: Tensor) -> None:
        """Fill the working cache with the first ``count`` [] of ``rows`` [m] of the full one."""
        if not self._launcher.is_fixed:
            rows = rows[: int(count)]
        for layer in range(self._model.shape.layers):
            keys = self._full.keys[layer].index_select(1, rows)
            self._working.write(layer, 0, self._rotary.rotate(keys, 0),
                                self._full.values[layer].index_select(1, rows))  # fmt: skip
        # Rows increase, so those that were read come first.
        places = torch.arange(rows.shape[0], device=rows.device)
        self._held.copy_(((rows < self._full_length) & (places < count)).sum())

    def _fill_with_recent(self) -> None:
        """Fill it with the sink and the most recent chunks of what the draft has read."""
        recent = select_recent(self.settings.retrieval, self._full.capacity, self._full_length)
        self._fill(recent.rows, recent.count)

    def _bound_held(self, bound: int) -> None:
        """The working cache holds ``bound`` rows at most; exactly known where that is free."""
        self.context_tokens = bound if self._launcher.is_fixed else int(self._held)

    def _grow(self, levels: int, rows: int) -> TokenTree:
        """``levels`` levels, of which the best ``rows`` − 1 guesses are kept."""
        states = self._add_root()
        for level in range(1, levels):
            states = self._add_level(level, states)
        tree = self.settings.tree
        return self._tree(rows, levels, tree.threshold if tree.size == "fixed" else None)

    def _grow_stepwise(self) -> TokenTree:
        """As many levels, rows of each, and guesses as are worth it."""
        growth, beam, tree = self._stepwise, self._beam, self.settings.tree
        growth.start()
        start = time.perf_counter()
        states, widths = self._add_root(), list[int]()
        while True:
            level = len(widths) + 1
            reaches = beam.best(level, tree.nodes)
            growth.observe_level(time.perf_counter() - start)
            if level == tree.depth:
                break
            width = growth.width(reaches, beam.frontier_reaches(level - 1))
            if width == 0:
                break
            widths.append(width)
            start = time.perf_counter()
            states = self._add_level(level, states, widths)
        return self._tree(1 + growth.guesses(reaches), level)

    def _tree(self, rows: int, levels: int, threshold: float | None = None) -> TokenTree:
        tree = self._beam.tree(rows, threshold, levels)
        return tree if self._copies is None else replace(tree, copied=self._copies.chain)

    def _add_root(self) -> Tensor:
        """Read the new tokens and guess what follows; the model's state [1, hidden] there."""
        progress = self._progress
        newest = self._read_new()
        if self._copies is not None:
            self._copies.find(progress.text, progress.prompt + progress.produced)
        self._beam.add_root(progress.root, *self._guesses(newest, 0))
        return newest

    def _add_level(self, level: int, states: Tensor, widths: list[int] | None = None) -> Tensor:
        """Read the frontier of ``level`` − 1 and guess what follows; states [n, hidden] there.

        ``states`` of the level above; ``widths``: rows read of each frontier so far, this one's
        last (None: all).
        """
        width = WIDTH if widths is None else widths[-1]
        staged = (level - 1) * WIDTH if widths is None else sum(widths[:-1])
        prefix = self._launcher.length(self._held)
        mask = self._beam.mask(level - 1, widths)
        attention = TreePass(self._working, prefix, prefix + staged, mask, self._kernels)
        if level == 1:
            states = states.expand(width, -1)
        elif self._model.reads_features:
            above = self._beam.parents(level - 1)[:width] - (level - 2) * WIDTH
            states = states.index_select(0, above)
        tokens = self._embeddable(self._beam.frontier(level - 1)[:width])
        # The root is the last committed row.
        positions = (self._held + (level - 1)).expand(width)
        states = self._model.hidden(tokens, positions, attention, states)
        self._beam.add_level(level, *self._guesses(states, level))
        return states

    def _guesses(self, states: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Chances and tokens [n, K] of the best guesses after ``states`` [n, hidden], scored with
        the noise that the target's sampler will draw there (common random numbers)."""
        scores = self._model.logits(states)
        if not self._sampler.is_greedy:
            positions = (self._progress.produced + level).expand(scores.shape[0])
            scores = self._sampler.scores(scores[:, : self._known], positions)
        chances, tokens = best_guesses(scores, self._known, self._beam.children)
        if self._copies is None:
            return chances, tokens
        count = states.shape[0]
        frontier = self._beam.frontier(level - 1)[:count] if level else None
        parents = self._beam.parents(level - 1)[:count] if level > 1 else None
        return self._copies.joined(chances, tokens, level, frontier, parents)


def drafter_in(workspace: Workspace, settings: DraftSettings, sampler: Sampler) -> ModelDrafter:
    """The drafter of these parts in ``workspace``, at the start of a request: an earlier request's
    or a new one."""
    drafter = workspace.kept.get(settings.parts)
    if not isinstance(drafter, ModelDrafter):
        drafter = workspace.kept[settings.parts] = ModelDrafter(settings, workspace)
    drafter.start(sampler)
    return drafter
