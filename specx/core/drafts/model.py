"""A draft model as drafter, with a short working cache over a long document.

In: committed tokens, the target's features where the model reads them (an EAGLE head), and chosen
context rows. Out: a dynamic tree (OPT-Tree as in SpecExtend §3). It does not know the target, or
why rows were chosen.

Two caches: ``full`` holds keys of every committed token *without* rotation; ``working`` holds the
rows that the draft currently sees, rotated to compact positions 0 … m − 1. So the draft meets no
position beyond its training length however long the document is.

A head's row t holds the pair (feature at t, token t + 1), so it has read one row less than there
are tokens, and the newest row is again the root's: a guess at depth d stands at position c + d − 1
behind c committed rows, for a head as for a language model. Further down a tree the feature of a
node is the head's own state at its parent.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.cache import KVCache
from specx.core.config import Parts, RetrievalConfig, TreeConfig
from specx.core.decoder import DraftModel
from specx.core.drafts.copies import Copies
from specx.core.drafts.growth import WIDTH, FixedGrowth, Growth, MeasuredGrowth, StepCosts
from specx.core.forward_passes import Rotary, WindowPass, WorkingPass
from specx.core.retrieval import Selection, recent_selection
from specx.core.sampling import Sampler
from specx.core.tree import TokenTree, TreeBuilder

_CHILDREN = 10  # guesses under each expanded node, as in OPT-Tree


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """What a draft model (a small language model or a head) drafts with."""

    model: DraftModel
    capacity: int  # most tokens of a request
    vocabulary: int  # the target's: guesses beyond it are not made
    trained_tokens: int  # no later position is used, but for a full cache
    parts: Parts
    tree: TreeConfig
    retrieval: RetrievalConfig
    kernels: Kernels


class ModelDrafter:
    """One request's draft state around a shared ``DraftModel``."""

    def __init__(
        self,
        settings: DraftSettings,
        sampler: Sampler,
        costs: Callable[[], StepCosts] | None = None,
        full: KVCache | None = None,
        spare_rows: int = 0,
    ) -> None:
        """``costs`` is asked once, at the first draft; needed for ``tree.size == "measured"``.
        ``full``: a cache to use for the whole context; ``spare_rows``: further rows in both."""
        model, parts, tree = settings.model, settings.parts, settings.tree
        capacity, trained_tokens = settings.capacity, settings.trained_tokens
        retrieval = settings.retrieval
        self._model, self._parts, self._tree = model, parts, tree
        self._retrieval, self._kernels = retrieval, settings.kernels
        self._vocabulary, self._sampler = settings.vocabulary, sampler
        self._costs_of = costs
        self._costs: StepCosts | None = None
        budget = retrieval.budget_tokens
        # Committed rows of the working cache: with a tree's depth behind them, no position beyond
        # the trained length, as long as the retrieval's budget allows.
        shortened = max(budget + 1, trained_tokens - tree.depth)
        is_short = parts.draft_cache != "full" and shortened < capacity
        self._rows = shortened if is_short else capacity
        # Rows that may follow a selection before another one is needed.
        self._slack = shortened - budget if is_short else capacity
        staged = tree.depth * WIDTH
        self._full = full or model.new_cache(capacity + spare_rows)
        self._working = model.new_cache(self._rows + staged + spare_rows)
        # Half the trained length before a block and half inside: no position beyond it.
        self._block = self._window = max(1, trained_tokens // 2)
        length = max(2 * self._window, self._rows + tree.depth + spare_rows)
        if parts.draft_prefill == "full":
            self._block = self._window = length = max(length, capacity + spare_rows)
        self._rotary = Rotary(model.inverse_frequencies, length)
        self._pending: list[int] = []
        self._features: list[Tensor] = []  # of the pending tokens, for a model that reads them
        self._last_feature: Tensor | None = None  # of the prompt, until its next token is known
        self._text = torch.zeros(0, dtype=torch.int64)  # what copies are looked for in
        self._copies: Copies | None = None
        if parts.copies == "tree":
            self._copies = self._new_copies(capacity, torch.device("cpu"))
        self._on_chain: int | None = None  # the deepest node of the copied chain so far
        self._states: list[Tensor] = []  # of the rows that this draft has read, root first
        self._produced = 0  # output tokens so far: the noise position of the root's successor
        self._levels_s: list[float] = []

    @property
    def runs_ahead(self) -> bool:
        """See ``Drafter``: the tree grows on the host."""
        return False

    @property
    def context_tokens(self) -> int:
        """See ``Drafter``."""
        return self._working.length + len(self._pending)

    @property
    def cache_bytes(self) -> int:
        """See ``Drafter``."""
        full = self._full.row_bytes * self._full.length
        return full + self._working.row_bytes * self._working.capacity

    def observe(self, draft_s: float, *told: Tensor) -> tuple[float, ...]:
        """See ``Drafter``; a level's time includes the transfer of its guesses, which waits for
        the device."""
        return tuple(self._levels_s)

    def prefill(self, tokens: Tensor, hidden: Tensor) -> None:
        """See ``Drafter``; only a model that reads features uses ``hidden``."""
        self._remember(tokens)
        tokens = tokens.to(self._model.device)
        if not self._model.reads_features:
            self._read_blocks(tokens, None)
            return
        # A feature belongs to the token behind it, which may be the next chunk's first.
        last, self._last_feature = self._last_feature, hidden[-1:].clone()
        before = hidden[:-1] if last is None else torch.cat([last, hidden[:-1]])
        self._read_blocks(tokens[tokens.shape[0] - before.shape[0] :], before)

    def _remember(self, tokens: Tensor) -> None:
        if self._copies is not None:
            self._text = torch.cat([self._text, tokens.cpu()])

    def _read_blocks(self, tokens: Tensor, features: Tensor | None) -> None:
        """Commit tokens [n] to the full cache, block by block; ``features`` [n, width]."""
        while tokens.shape[0]:
            # Where every block has a whole window before it, they go through a layer together.
            is_uniform = self._full.length >= self._window == self._block
            blocks = max(1, tokens.shape[0] // self._block) if is_uniform else 1
            count = min(blocks * self._block, tokens.shape[0])
            start = self._full.stage(count)
            window = WindowPass(
                self._full, start, self._window, self._rotary, self._kernels, self._parts, blocks
            )
            of_block = None if features is None else self._model.fuse(features[:count])
            self._forward(tokens[:count], window, of_block)
            self._full.commit(count)
            tokens = tokens[count:]
            features = None if features is None else features[count:]

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """See ``Drafter``; the forward is left to the next ``draft``."""
        self._pending += tokens
        self._produced += len(tokens)
        self._remember(torch.tensor(tokens))
        if self._model.reads_features:
            self._features.append(hidden[: len(tokens)].clone())

    def refocus(self, selection: Selection) -> None:
        """See ``Drafter``. Rows that the draft has not read yet follow by themselves."""
        self._prefer(selection)
        self._keep(selection.rows[selection.rows < self._full.length])

    def _new_copies(self, capacity: int, device: torch.device) -> Copies:
        """For texts of up to ``capacity`` tokens."""
        chunk_tokens = self._retrieval.chunk_tokens
        chunks = -(-capacity // chunk_tokens)
        return Copies(self._tree.depth, device, chunks=chunks, chunk_tokens=chunk_tokens)

    def _prefer(self, selection: Selection) -> None:
        if self._copies is not None and selection.attention is not None:
            self._copies.attend(selection.attention)

    def _keep(self, rows: Tensor) -> None:
        """Fill the working cache with ``rows`` [m] of the full one."""
        working = self._working
        working.truncate(0)
        start = working.stage(rows.shape[0])
        for layer in range(self._model.shape.layers):
            keys = self._rotary.rotate(self._full.keys[layer][:, rows], 0)
            working.write(layer, start, keys, self._full.values[layer][:, rows])
        working.commit(rows.shape[0])

    def draft(self) -> TokenTree:
        """See ``Drafter``."""
        self._make_room()
        self._levels_s = []
        growth = self._growth()
        builder = TreeBuilder(self._pending[-1], self._tree.nodes)
        self._on_chain = 0
        if self._copies is not None:
            self._copies.find(self._text, torch.tensor(len(self._text)))
        self._expand(builder, [0], self._read_pending, depth=0)
        staged: dict[int, int] = {}
        for depth in range(1, self._tree.depth):
            frontier = growth.frontier(builder, depth)
            if not frontier:
                break
            staged |= {node: len(staged) + index for index, node in enumerate(frontier)}
            read = partial(self._read_level, builder, frontier, staged, depth)
            self._expand(builder, frontier, read, depth)
        self._working.drop()
        tree = builder.tree(growth.guesses(builder), self._model.device)
        return tree if self._copies is None else replace(tree, copied=self._copies.chain.clone())

    def _growth(self) -> Growth:
        if self._tree.size == "fixed" or self._costs_of is None:
            return FixedGrowth(self._tree)
        if self._costs is None:
            self._costs = self._costs_of()
        return MeasuredGrowth(self._costs)

    def _make_room(self) -> None:
        """Read a long backlog without the working cache, and see that there is room in it."""
        backlog = len(self._pending)
        if backlog > max(1, self._slack):
            tokens, features = self._take_pending()
            older = None if features is None else features[:-1]
            self._read_blocks(tokens[:-1], older)
            self._pending = tokens[-1:].tolist()
            self._features = [] if features is None else [features[-1:]]
            self._working.truncate(0)
            backlog = 1
        self._choose_rows(backlog)

    def _choose_rows(self, backlog: int) -> None:
        """Fill the working cache where nobody did, or where ``backlog`` more rows do not fit."""
        full = self._parts.draft_cache == "full"
        unread = self._working.length == 0 and self._full.length > 0
        crowded = self._working.length + backlog > self._rows
        stale = (
            self._parts.draft_cache == "window"
            and self._working.length >= self._retrieval.budget_tokens + self._retrieval.chunk_tokens
        )
        if unread and full:
            self._keep(torch.arange(self._full.length, device=self._model.device))
        elif unread or crowded or stale:
            rows = recent_selection(self._retrieval, self._full.length).rows
            self._keep(rows.to(self._model.device))

    def _take_pending(self) -> tuple[Tensor, Tensor | None]:
        """The pending tokens [n] and, for a model that reads them, their features [n, width]."""
        tokens = torch.tensor(self._pending, device=self._model.device)
        features = torch.cat(self._features) if self._model.reads_features else None
        self._pending, self._features = [], []
        return tokens, features

    def _read_pending(self) -> Tensor:
        """Commit the pending tokens in both caches; logits [1, V] after the last one."""
        tokens, features = self._take_pending()
        count = tokens.shape[0]
        start, full_start = self._working.stage(count), self._full.stage(count)
        positions = slice(start, start + count)
        attention = self._working_pass(start, full_start, positions, None)
        fused = None if features is None else self._model.fuse(features)
        newest = self._forward(tokens, attention, fused)[-1:]
        self._working.commit(count)
        self._full.commit(count)
        self._states = [newest]
        return self._model.logits(newest)

    def _read_level(
        self, builder: TreeBuilder, nodes: list[int], staged: dict[int, int], depth: int
    ) -> Tensor:
        """Logits [len(nodes), V] after tree nodes of one depth, over working and staged rows."""
        device = self._model.device
        tokens = torch.tensor([builder.token(node) for node in nodes], device=device)
        mask = torch.zeros(len(nodes), len(staged), dtype=torch.bool)
        for row, node in enumerate(nodes):
            mask[row, [staged[ancestor] for ancestor in builder.ancestors(node)]] = True
        start = self._working.stage(len(nodes))
        place = self._working.length - 1 + depth  # the root is the last committed row
        positions = torch.full((len(nodes),), place, device=device)
        working = self._working_pass(start, 0, positions, mask.to(device))
        states = self._forward(tokens, working, self._parent_states(builder, nodes, staged))
        self._states.append(states)
        return self._model.logits(states)

    def _parent_states(
        self, builder: TreeBuilder, nodes: list[int], staged: dict[int, int]
    ) -> Tensor | None:
        """The model's states at the parents of ``nodes``, if they are its features."""
        if not self._model.reads_features:
            return None
        rows = [1 + staged.get(builder.parent(node), -1) for node in nodes]
        return torch.cat(self._states)[rows]

    def _working_pass(
        self, start: int, full_start: int, positions: Tensor | slice, mask: Tensor | None
    ) -> WorkingPass:
        return WorkingPass(
            self._working,
            start,
            self._full,
            full_start,
            positions,
            mask,
            self._rotary,
            self._kernels,
        )

    def _forward(
        self, tokens: Tensor, attention: WindowPass | WorkingPass, features: Tensor | None
    ) -> Tensor:
        """States [n, hidden] after ``tokens`` [n]."""
        # A token that only the target's padded vocabulary knows must not break the draft.
        tokens = tokens.clamp(max=self._model.shape.vocabulary - 1)
        # Position 0 leaves queries and keys unrotated; the pass rotates them itself.
        nowhere = torch.zeros_like(tokens)
        return self._model.hidden(tokens, nowhere, attention, features=features)

    def _expand(
        self, builder: TreeBuilder, nodes: list[int], read: Callable[[], Tensor], depth: int
    ) -> None:
        """Add the best guesses after ``nodes`` (all of one depth); ``read`` yields their logits."""
        start = time.perf_counter()
        chances, tokens = self._best(read(), depth, nodes)
        seconds = time.perf_counter() - start
        self._levels_s.append(seconds)
        if self._costs is not None:
            self._costs.observe_level(seconds)
        copied = -1 if self._copies is None else int(self._copies.chain[depth])
        chain, self._on_chain = self._on_chain, None
        for node, row, guesses in zip(nodes, chances, tokens, strict=True):
            for chance, token in zip(row, guesses, strict=True):
                child = builder.add(node, token, chance)
                if node == chain and token == copied:
                    self._on_chain = child

    def _best(
        self, logits: Tensor, depth: int, nodes: list[int]
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Chances and ids of the best guesses a row, scored with the noise that the target's
        sampler will draw there (common random numbers)."""
        positions = torch.full((logits.shape[0],), self._produced + depth, device=logits.device)
        scores = self._sampler.scores(logits[:, : self._vocabulary], positions)
        best = scores.log_softmax(dim=-1).topk(min(_CHILDREN, scores.shape[-1]), dim=-1)
        chances, tokens = best.values.exp().cpu(), best.indices.cpu()
        if self._copies is not None:
            is_on_chain = torch.tensor([node == self._on_chain for node in nodes])
            chances, tokens = self._copies.joined(chances, tokens, is_on_chain, depth)
        return chances.tolist(), tokens.tolist()
