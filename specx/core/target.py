"""The big model's side of a request: reading the prompt, checking trees, keeping what is accepted.

Nothing here asks the host for a device value, so where shapes are fixed every part of a step is a
CUDA graph. Recordings meet only in the places of a ``Slot``."""

from functools import partial

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.clock import now
from specx.core.config import Parts, RetrievalConfig
from specx.core.decoder import Model
from specx.core.drafts.growth import StepCosts
from specx.core.forward_passes import ChunkPass, TreePass
from specx.core.graphs import RECORDED_ROWS
from specx.core.retrieval import Selection, select
from specx.core.tree import Path, TokenTree
from specx.core.workspace import FEATURE_ROWS, Slot, Workspace

#: Row counts whose verify time is measured before the first draft, where shapes are not fixed.
MEASURED_ROWS = (1, 4, 8, 16, 32)
_ROUNDS = 3  # of timing them, in turns: noise that lasts a while must not hit one width alone
_FIXED_ROUNDS = 5  # the first executes, the second records


class Target:
    """The big model in one request."""

    def __init__(
        self,
        model: Model,
        capacity: int,
        parts: Parts,
        kernels: Kernels,
        workspace: Workspace | None = None,
    ) -> None:
        """``capacity``: rows for prompt, output and the trees after it; a ``workspace`` of at
        least that size is taken over from an earlier request."""
        self.model, self.parts, self._kernels = model, parts, kernels
        self.workspace = workspace or Workspace(model, capacity)
        self.cache, self.progress = self.workspace.cache, self.workspace.progress
        self.cache.reach(0)
        self.launcher = self.workspace.launcher(kernels, parts.launch)
        self._query: Tensor | None = None

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Commit a prompt chunk [n]; logits [1, V] after it and features [n, width] at it."""
        count, start = tokens.shape[0], self.cache.stage(tokens.shape[0])
        positions = torch.arange(start, start + count, device=tokens.device)
        chunk = ChunkPass(self.cache, start, self._kernels, self.parts.prefill_attention)
        output = self.model.forward(tokens, positions, chunk, count - 1)
        self._query = output.query
        self.cache.reach(start + count)
        self.progress.length.fill_(start + count)
        return output.logits, output.features

    @torch.inference_mode()
    def begin(self, prompt: Tensor, first: Tensor, features: Tensor) -> None:
        """``prompt`` [n] int64 is read and ``first`` [1] follows it, by the state ``features``
        [1, width]."""
        self.progress.begin(prompt, first)
        if self.model.feature_width:
            self.workspace.features[:1] = features

    @torch.inference_mode()
    def place(self, tree: TokenTree | None) -> TokenTree:
        """The tree as ``verify`` wants it: on the device, padded where shapes are fixed. None is
        plain decoding's, the newest token alone."""
        if tree is None:
            return self.launcher.run(self._place_root, "root")
        return self.workspace.slot(self.launcher.rows(tree.size)).place(tree)

    @torch.inference_mode()
    def verify(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        """Run a placed tree after the prefix; logits [n, V] and features [n, width].

        Raises ``ValueError`` where the cache has no room for it.
        """
        self.cache.stage(tree.size)
        self._query = self.workspace.slot(tree.size).query
        return self.launcher.run(partial(self._verify, tree), "verify", tree.size)

    @torch.inference_mode()
    def accept(self, tree: TokenTree, sample: Tensor) -> tuple[Path, Tensor]:
        """The accepted path of a placed tree, given the target's own token [n] after each node.

        Also what the host wants to know, [3 + longest path] int64: accepted guesses + 1, nodes
        without padding, depth, and the new tokens (padded).
        """
        slot = self.workspace.slot(tree.size)
        slot.sample.copy_(sample)
        key = "accept", tree.size, tree.longest_path
        report = self.launcher.run(partial(_accept, slot, tree), *key)
        return Path(slot.nodes[: tree.longest_path], slot.count), report

    @torch.inference_mode()
    def commit(self, tree: TokenTree, path: Path) -> None:
        """Move the rows of an accepted ``path`` together and append its tokens to the output."""
        key = "commit", tree.size, tree.longest_path
        self.launcher.run(partial(self._commit, tree, path), *key)

    def settle(self, count: int) -> None:
        """The host learns how many rows ``commit`` committed."""
        self.cache.reach(self.cache.length + count)

    @torch.inference_mode()
    def select(self, config: RetrievalConfig, path: Path | None) -> Selection:
        """Chunks that the last node of a committed ``path`` attends to in the last layer; the
        prompt's last token when ``path`` is None."""
        query = self._query
        assert query is not None, "no forward has run yet"
        if path is None:
            return self._select(config, query[:, -1])
        key = "select", query.shape[1], path.nodes.shape[0], config
        return self.launcher.run(partial(self._select_after, config, query, path), *key)

    def over(self, model: Model, parts: Parts) -> "Target":
        """The same with other parts over another model, in the same workspace."""
        return Target(model, self.cache.capacity, parts, self._kernels, self.workspace)

    def verify_widths(self) -> None:
        """A verify forward of every recorded width that the cache has room for."""
        for tree in self._chains(RECORDED_ROWS).values():
            self.verify(self.place(tree))

    def measure(self) -> StepCosts:
        """Time verify forwards of a few widths on the cache as it is; nothing is kept."""
        is_fixed, device = self.launcher.is_fixed, self.model.device
        trees = self._chains(RECORDED_ROWS if is_fixed else MEASURED_ROWS)
        seconds = dict.fromkeys(trees, float("inf"))
        for _ in range(_FIXED_ROUNDS if is_fixed else _ROUNDS):
            for rows, tree in trees.items():
                start = now(device)
                self.verify(self.place(tree))
                seconds[rows] = min(seconds[rows], now(device) - start)
        return StepCosts(seconds)

    def _chains(self, widths: tuple[int, ...]) -> dict[int, TokenTree]:
        """Trees without branches, of those ``widths`` that the cache has room for; their tokens do
        not matter."""
        room, device = self.cache.capacity - self.cache.length, self.model.device
        return {
            rows: TokenTree.build([0] * rows, [max(0, row - 1) for row in range(rows)], device)
            for rows in widths
            if rows <= room
        }

    def _place_root(self) -> TokenTree:
        return self.workspace.slot(1).place(TokenTree.root_only(self.progress.root))

    def _verify(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        slot, start = self.workspace.slot(tree.size), self.launcher.length(self.progress.length)
        rows = TreePass(self.cache, start, start, tree.mask, self._kernels)
        tokens = tree.tokens.clamp(min=0)  # padding
        output = self.model.forward(tokens, start + tree.depths, rows)
        slot.query.copy_(output.query)
        if self.model.feature_width:
            slot.features.copy_(output.features)
        return output.logits, output.features

    def _commit(self, tree: TokenTree, path: Path) -> None:
        slot, progress = self.workspace.slot(tree.size), self.progress
        if tree.levels:
            self.cache.compact(path.nodes, progress.length)
        if self.model.feature_width:
            features = slot.features.index_select(0, path.nodes)
            places = torch.arange(path.nodes.shape[0], device=features.device)
            places = (places + progress.produced) % FEATURE_ROWS
            self.workspace.features.index_copy_(0, places, features)
        progress.advance(slot.sample[path.nodes], path.count)

    def _select_after(self, config: RetrievalConfig, query: Tensor, path: Path) -> Selection:
        row = path.nodes.index_select(0, (path.count - 1)[None])
        return self._select(config, query.index_select(1, row)[:, 0])

    def _select(self, config: RetrievalConfig, query: Tensor) -> Selection:
        keys, length = self.cache.keys[-1], self.progress.length
        scale = self.model.score_scale
        scores = self._kernels.chunk_scores(query, keys, length, scale, config.chunk_tokens)
        return select(config, scores, length)


class CostTable:
    """Step costs of one engine: measured once for every power of two of the context, and by parts,
    because another draft cache or attention makes other levels and other rows."""

    def __init__(self) -> None:
        self._known: dict[tuple[Parts, int], StepCosts] = {}

    def of(self, target: Target) -> StepCosts:
        """The costs at the present length of ``target``; the first time at a few forwards."""
        key = target.parts, target.cache.length.bit_length()
        if key not in self._known:
            self._known[key] = target.measure()
        return self._known[key]


def _accept(slot: Slot, tree: TokenTree) -> Tensor:
    path = tree.accept(slot.sample)
    slot.nodes[: tree.longest_path].copy_(path.nodes)
    slot.count.copy_(path.count)
    is_node = tree.tokens >= 0
    depth = torch.where(is_node, tree.depths, 0).max()
    summary = torch.stack([path.count, is_node.sum(), depth])
    return torch.cat([summary, slot.sample[path.nodes]])
