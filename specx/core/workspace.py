"""What outlives a request: buffers allocated once and recorded once, for one request at a time.

A short request after a long one finds old keys after its own, which no row ever sees."""

from dataclasses import replace

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.cache import KVCache
from specx.core.config import Launch, Parts
from specx.core.decoder import Model
from specx.core.drafts.eagle import DraftModel
from specx.core.graphs import Graphs, Launcher
from specx.core.tree import TokenTree

#: Features that wait for a drafter, of the newest output tokens: a ring of so many rows.
FEATURE_ROWS = 256
_ROUND_ROWS = 256  # similar requests share a workspace


class TextProgress:
    """The text's tokens and three counters, at places that never change (CUDA graphs read them).

    The host learns the same numbers one read later; until then a GPU can go on.
    """

    def __init__(self, capacity_tokens: int, device: torch.device) -> None:
        """``capacity_tokens``: most tokens of prompt and output, with what ``advance`` pads."""
        #: Prompt, then output [capacity] int64.
        self.text = torch.zeros(capacity_tokens, dtype=torch.int64, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        #: Tokens of the prompt; of the output; cached by the target (all but the newest): [] int64.
        self.prompt, self.produced, self.length = (self._counts[index] for index in range(3))

    @property
    def root(self) -> Tensor:
        """The newest token [1] int64: the root of the next tree."""
        return self.text.index_select(0, self.length[None])

    def begin(self, prompt: Tensor, first: Tensor) -> None:
        """Start an output after ``prompt`` [n] int64 with its ``first`` token [1] int64."""
        count = prompt.shape[0]
        self.prompt.fill_(count)
        self.produced.fill_(1)
        self.length.fill_(count)
        self.text[:count] = prompt
        self.text[count : count + 1] = first

    def advance(self, tokens: Tensor, count: Tensor) -> None:
        """Append the first ``count`` of ``tokens`` [m] int64; the rest is overwritten next time."""
        places = torch.arange(1, tokens.shape[0] + 1, device=tokens.device) + self.length
        self.text.index_copy_(0, places, tokens)
        self._counts[1:] += count


class Slot:
    """Where recordings find a tree of ``n`` nodes, and leave what the next one reads."""

    def __init__(self, rows: int, query: Tensor, features: Tensor) -> None:
        """Padding only. ``query`` [H, n, D]; ``features`` [n, width], no column where nobody reads
        them."""
        device = query.device
        self.query, self.features = query, features
        self.tokens = torch.full((rows,), -1, device=device)  # [n] int64, as the next four
        self.parents, self.depths, self.sample, self.nodes = (
            torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(4)
        )  # the last: the accepted path
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # [] of that path
        self._alone = torch.eye(rows, dtype=torch.bool, device=device)  # [n, n]: padding's mask
        self.mask = self._alone.clone()

    def place(self, tree: TokenTree) -> TokenTree:
        """The same tree here, padded."""
        size = tree.size
        if size < self.tokens.shape[0]:
            self.tokens[size:].fill_(-1)
            self.parents[size:].zero_()
            self.depths[size:].zero_()
            self.mask.copy_(self._alone)
        self.tokens[:size].copy_(tree.tokens, non_blocking=True)
        if self.tokens.shape[0] > 1:
            self.parents[:size].copy_(tree.parents, non_blocking=True)
            self.depths[:size].copy_(tree.depths, non_blocking=True)
            self.mask[:size, :size].copy_(tree.mask, non_blocking=True)
        return replace(
            tree, tokens=self.tokens, parents=self.parents, depths=self.depths, mask=self.mask
        )


class Workspace:
    """Caches of target and draft, progress, recordings and their places."""

    def __init__(self, target: Model, capacity: int) -> None:
        """``capacity``: rows of the target's cache, rounded up."""
        self.capacity = -(-capacity // _ROUND_ROWS) * _ROUND_ROWS
        self.cache = target.new_cache(self.capacity)
        self.progress = TextProgress(self.capacity, target.device)
        #: Drafters that later requests with the same parts take over.
        self.kept: dict[Parts, object] = {}
        self._draft_cache: KVCache | None = None
        self._graphs = Graphs(target.device)
        self._launchers: dict[tuple[str, Launch], Launcher] = {}
        self._target, self._slots = target, dict[int, Slot]()
        #: [FEATURE_ROWS, width]: row i mod FEATURE_ROWS is the state that produced output token i.
        self.features = self._rows_of_features(FEATURE_ROWS)

    def launcher(self, kernels: Kernels, launch: Launch) -> Launcher:
        """The one that launches everything over ``kernels``."""
        key = kernels.name, launch
        if key not in self._launchers:
            self._launchers[key] = Launcher(self._graphs, *key)
        return self._launchers[key]

    def slot(self, rows: int) -> Slot:
        """The places of trees padded to ``rows``."""
        if rows not in self._slots:
            shape, device = self._target.shape, self.cache.keys.device
            query = torch.empty(
                shape.heads, rows, shape.head_dim, dtype=self._target.dtype, device=device
            )
            self._slots[rows] = Slot(rows, query, self._rows_of_features(rows))
        return self._slots[rows]

    def draft_cache(self, model: DraftModel, capacity: int) -> KVCache:
        """Keys of the whole context, which drafters of several parts share."""
        if self._draft_cache is None or self._draft_cache.capacity < capacity:
            self._draft_cache = model.new_cache(capacity)
        return self._draft_cache

    def _rows_of_features(self, rows: int) -> Tensor:
        target = self._target
        shape = rows, target.feature_width
        return torch.zeros(shape, dtype=target.dtype, device=target.device)


class Workspaces:
    """The workspace that is free, if any: a request takes it and gives it back at its end."""

    def __init__(self, target: Model) -> None:
        self._target = target
        self._free: Workspace | None = None

    def take(self, capacity: int) -> Workspace:
        """A workspace of at least ``capacity`` rows; a smaller free one makes room for it first."""
        found, self._free = self._free, None
        if found is not None and found.capacity >= capacity:
            return found
        del found
        return Workspace(self._target, capacity)

    def give_back(self, workspace: Workspace) -> None:
        """Keep the larger of two, where there are recordings to keep; elsewhere its memory is worth
        more to others than a new one costs."""
        if self._target.device.type != "cuda":
            return
        if self._free is None or self._free.capacity < workspace.capacity:
            self._free = workspace

    def drop(self) -> None:
        self._free = None
