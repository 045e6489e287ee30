"""The big model's side of a request: reading the prompt, checking trees, keeping what is accepted.

In: prompt chunks and draft trees. Out: logits, the accepted path, the chunks that the target
attends to. It does not know drafters, stop rules, text or the order of steps.

With static kernels nothing here asks the host for a device value, trees are padded to a few sizes,
and every part of a step is a CUDA graph. Recordings meet only in the places of a ``_Slot``.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.config import Parts
from specx.core.decoder import Model
from specx.core.drafts.growth import StepCosts
from specx.core.forward_passes import TargetPass
from specx.core.graphs import Graphs
from specx.core.progress import Progress
from specx.core.retrieval import Retriever, Selection
from specx.core.tree import Path, TokenTree

T = TypeVar("T")

#: Features that wait for a drafter, of the newest output tokens: a ring of so many rows.
FEATURE_ROWS = 256
#: Row counts whose verify time is measured before the first draft.
MEASURED_ROWS = (1, 4, 8, 16, 32)
#: Sizes that trees are padded to where graphs run; beyond, multiples of the last.
STATIC_ROWS = (1, 8, 16, 32, 64)
_ROUNDS = 3  # of timing them, in turns: noise that lasts a while must not hit one width alone
_STATIC_ROUNDS = 5  # the first executes, the second records


def static_rows(rows: int) -> int:
    """The size that a tree of ``rows`` nodes is padded to."""
    last = STATIC_ROWS[-1]
    return next((size for size in STATIC_ROWS if size >= rows), -(-rows // last) * last)


class TargetBuffers:
    """What outlives a request: cache, progress, recordings and their places.

    For one request at a time. A short request after a long one finds old keys behind its own,
    which no row ever sees.
    """

    def __init__(self, model: Model, capacity: int) -> None:
        self.cache = model.new_cache(capacity)
        self.progress = Progress(capacity, model.device)
        self.graphs = Graphs(model.device)
        self._heads, self._width = model.shape.heads, model.shape.head_dim
        self._dtype, self._feature_width = model.dtype, model.feature_width
        self._slots: dict[int, _Slot] = {}
        #: [FEATURE_ROWS, width]: row i mod FEATURE_ROWS is the state that produced output token i.
        self.features = self._rows_of_features(FEATURE_ROWS)

    def slot(self, rows: int) -> "_Slot":
        """The places of trees padded to ``rows``."""
        if rows not in self._slots:
            device = self.cache.keys.device
            query = torch.empty(self._heads, rows, self._width, dtype=self._dtype, device=device)
            self._slots[rows] = _Slot.empty(rows, query, self._rows_of_features(rows))
        return self._slots[rows]

    def _rows_of_features(self, rows: int) -> Tensor:
        shape, device = (rows, self._feature_width), self.cache.keys.device
        return torch.zeros(shape, dtype=self._dtype, device=device)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where recordings find a tree of ``n`` nodes, and leave what the next one reads."""

    tokens: Tensor  # [n] int64
    parents: Tensor
    depths: Tensor
    mask: Tensor  # [n, n] bool
    alone: Tensor  # [n, n] bool: the mask of padding
    sample: Tensor  # [n] int64
    nodes: Tensor  # [n] int64: the accepted path
    count: Tensor  # [] int64
    query: Tensor  # [H, n, D]
    features: Tensor  # [n, width]; a width of 0 where nobody reads them

    @classmethod
    def empty(cls, rows: int, query: Tensor, features: Tensor) -> "_Slot":
        """Padding only."""
        device = query.device
        alone = torch.eye(rows, dtype=torch.bool, device=device)
        tokens = torch.full((rows,), -1, device=device)
        parents, depths, sample, nodes = (
            torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(4)
        )
        count = torch.zeros((), dtype=torch.int64, device=device)
        mask = alone.clone()
        return cls(tokens, parents, depths, mask, alone, sample, nodes, count, query, features)

    def place(self, tree: TokenTree) -> TokenTree:
        """The same tree here, padded."""
        size = tree.size
        if size < self.tokens.shape[0]:
            self.tokens[size:].fill_(-1)
            self.parents[size:].zero_()
            self.depths[size:].zero_()
            self.mask.copy_(self.alone)
        self.tokens[:size].copy_(tree.tokens, non_blocking=True)
        if self.tokens.shape[0] > 1:
            self.parents[:size].copy_(tree.parents, non_blocking=True)
            self.depths[:size].copy_(tree.depths, non_blocking=True)
            self.mask[:size, :size].copy_(tree.mask, non_blocking=True)
        return replace(
            tree, tokens=self.tokens, parents=self.parents, depths=self.depths, mask=self.mask
        )


class Target:
    """The big model in one request."""

    def __init__(
        self,
        model: Model,
        capacity: int,
        parts: Parts,
        kernels: Kernels,
        buffers: TargetBuffers | None = None,
    ) -> None:
        """``capacity``: rows for prompt, output and the trees behind it; ``buffers`` of at least
        that size are taken over from an earlier request."""
        self.model, self._parts, self._kernels = model, parts, kernels
        self.buffers = buffers or TargetBuffers(model, capacity)
        self.cache, self.progress = self.buffers.cache, self.buffers.progress
        self.cache.truncate(0)
        self._query: Tensor | None = None
        self._scale = 1.0
        self._key = kernels.name
        records = parts.launch == "graph"
        self.graphs = self.buffers.graphs if records else Graphs(model.device, enabled=False)

    @property
    def is_static(self) -> bool:
        """Whether a step needs nothing from the host."""
        return self._kernels.is_static

    @property
    def _keeps_features(self) -> bool:
        """Whether a drafter reads features without the host handing them over."""
        return self.is_static and self.model.feature_width > 0

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Commit a prompt chunk [n]; logits [1, V] after it and hidden states [n, hidden]."""
        count, start = tokens.shape[0], self.cache.stage(tokens.shape[0])
        positions = torch.arange(start, start + count, device=tokens.device)
        attention = self._pass(start, None)
        output = self.model.forward(tokens, positions, attention, count - 1)
        self._query, self._scale = attention.query, attention.scale
        self.cache.commit(count)
        return output.logits, output.features

    @torch.inference_mode()
    def begin(self, prompt: Tensor, first: Tensor, features: Tensor) -> None:
        """``prompt`` [n] int64 is read and ``first`` [1] follows it, by the state ``features``
        [1, width]."""
        self.progress.begin(prompt, first)
        if self._keeps_features:
            self.buffers.features[:1] = features

    @torch.inference_mode()
    def place(self, tree: TokenTree | None) -> TokenTree:
        """The tree as ``verify`` wants it: on the device, padded where graphs run. None stands for
        plain decoding's, the newest token alone."""
        if tree is None and self.is_static:
            return self._run("root", 1, self._place_root)
        tree = tree or TokenTree.root_only(self.progress.root)
        if not self.is_static:
            self.cache.stage(tree.size)
            return tree
        return self.buffers.slot(static_rows(tree.size)).place(tree)

    @torch.inference_mode()
    def verify(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        """Stage a placed tree behind the prefix; logits [n, V] and hidden states [n, hidden]."""
        if self.is_static:
            self._query = self.buffers.slot(tree.size).query
        return self._run("verify", tree.size, partial(self._verify, tree))

    @torch.inference_mode()
    def accept(self, tree: TokenTree, sample: Tensor) -> tuple[Path, Tensor]:
        """The accepted path of a placed tree, given the target's own token [n] after each node.

        Also what the host wants to know, [3 + longest path] int64: accepted guesses + 1, nodes
        without padding, depth, and the new tokens (padded).
        """
        if not self.is_static:
            return _accept(tree, sample)
        slot = self.buffers.slot(tree.size)
        slot.sample.copy_(sample)
        report = self._run(
            "accept", (tree.size, tree.longest_path), partial(_accept_in, slot, tree)
        )
        return Path(slot.nodes[: tree.longest_path], slot.count), report

    @torch.inference_mode()
    def commit(self, tree: TokenTree, sample: Tensor, path: Path) -> None:
        """Move the accepted rows together and append their tokens to the output."""
        if self.is_static:
            sample = self.buffers.slot(tree.size).sample
        key = (tree.size, tree.longest_path)
        # The sample is a slot's where this is recorded.
        self._run("commit", key, partial(self._commit, tree, sample, path))

    def settle(self, count: int) -> None:
        """The host learns how many rows ``commit`` committed."""
        if self.is_static:
            self.cache.reach(self.cache.length + count)
        else:
            self.cache.commit(count)

    @torch.inference_mode()
    def select(self, retriever: Retriever, path: Path | None) -> Selection:
        """Chunks that the last node of a committed ``path`` attends to in the last layer; the
        prompt's last token when ``path`` is None."""
        query = self._query
        assert query is not None, "no forward has run yet"
        keys = self.cache.keys[-1]
        if not self.is_static:
            accepted = [] if path is None else path.tolist()
            row = accepted[-1] if accepted else -1
            rows = keys[:, : self.cache.length + len(accepted)]
            return retriever.select(query[:, row], rows, self._scale)
        if path is None:
            length = self.progress.length
            return retriever.select_within(query[:, -1], keys, length, self._scale, self._kernels)
        chosen = partial(self._select, retriever, query, path)
        key = (query.shape[1], path.nodes.shape[0], retriever.config)
        selection: Selection = self._run("select", key, chosen)
        return selection

    def measure(self) -> StepCosts:
        """Time verify forwards of a few widths on the cache as it stands; nothing is kept."""
        room = self.cache.capacity - self.cache.length
        wanted = STATIC_ROWS if self.is_static else MEASURED_ROWS
        trees = {rows: _chain(rows, self.model.device) for rows in wanted if rows <= room}
        seconds = dict.fromkeys(trees, float("inf"))
        for _ in range(_STATIC_ROUNDS if self.is_static else _ROUNDS):
            for rows, tree in trees.items():
                start = _now(self.model.device)
                self.verify(self.place(tree))
                seconds[rows] = min(seconds[rows], _now(self.model.device) - start)
                self.cache.drop()
        return StepCosts(seconds)

    def _place_root(self) -> TokenTree:
        return self.buffers.slot(1).place(TokenTree.root_only(self.progress.root))

    def _verify(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        start = self.progress.length if self.is_static else self.cache.length
        attention = self._pass(start, tree.mask)
        tokens = tree.tokens.clamp(min=0)  # padding
        positions = start + tree.depths
        output = self.model.forward(tokens, positions, attention)
        assert attention.query is not None
        self._scale = attention.scale
        if self.is_static:
            slot = self.buffers.slot(tree.size)
            slot.query.copy_(attention.query)
            if self._keeps_features:
                slot.features.copy_(output.features)
        else:
            self._query = attention.query
        return output.logits, output.features

    def _commit(self, tree: TokenTree, sample: Tensor, path: Path) -> None:
        if tree.levels:
            start = self.progress.length if self.is_static else self.cache.length
            self.cache.compact(path.nodes, start)
        if self._keeps_features:
            features = self.buffers.slot(tree.size).features.index_select(0, path.nodes)
            places = torch.arange(path.nodes.shape[0], device=features.device)
            places = (places + self.progress.produced) % FEATURE_ROWS
            self.buffers.features.index_copy_(0, places, features)
        self.progress.advance(sample[path.nodes], path.count)

    def _select(self, retriever: Retriever, query: Tensor, path: Path) -> Selection:
        row = path.nodes.index_select(0, (path.count - 1)[None])
        tapped = query.index_select(1, row)[:, 0]
        keys, length = self.cache.keys[-1], self.progress.length
        return retriever.select_within(tapped, keys, length, self._scale, self._kernels)

    def _pass(self, start: int | Tensor, mask: Tensor | None) -> TargetPass:
        return TargetPass(self.cache, start, mask, self._kernels, self._parts)

    def _run(self, name: str, size: Hashable, function: Callable[[], T]) -> T:
        """A part of a step: recorded where lengths are the device's."""
        if not self.is_static:
            return function()
        return self.graphs.run((name, size, self._key), function)


def _accept(tree: TokenTree, sample: Tensor) -> tuple[Path, Tensor]:
    path = tree.accept(sample)
    is_node = tree.tokens >= 0
    depth = torch.where(is_node, tree.depths, 0).max()
    summary = torch.stack([path.count, is_node.sum(), depth])
    return path, torch.cat([summary, sample[path.nodes]])


def _accept_in(slot: _Slot, tree: TokenTree) -> Tensor:
    path, report = _accept(tree, slot.sample)
    slot.nodes[: tree.longest_path].copy_(path.nodes)
    slot.count.copy_(path.count)
    return report


def _chain(rows: int, device: torch.device) -> TokenTree:
    """A tree without branches; its tokens do not matter."""
    return TokenTree.build([0] * rows, [max(0, row - 1) for row in range(rows)], device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
