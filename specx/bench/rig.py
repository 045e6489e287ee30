"""One request as it stands after its prefill, whose parts can be run alone and again.

In: a loaded engine and a prompt length. Out: ``Task``s, and the seconds of a real prefill. It does
not know how often or by which clock a task is timed, or what a good time would be.

Target, drafter and their order within a step are those of ``core.decode``; keys, values and the
features that a head reads are random numbers, so a task costs what it costs and the text means
nothing. Where lengths are the device's (a GPU) nothing in a task waits for it.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from specx.bench.modes import with_part
from specx.bench.roofline import cost_of, level_weights
from specx.core.attention import Kernels
from specx.core.cache import KVCache
from specx.core.config import Parts, SamplingConfig, parts_for
from specx.core.drafts.device import DeviceDrafter
from specx.core.drafts.model import DraftSettings, ModelDrafter
from specx.core.graphs import Graphs
from specx.core.kernels.choice import choose_kernels
from specx.core.retrieval import Retriever, Selection
from specx.core.sampling import Sampler
from specx.core.target import Target, static_rows
from specx.core.tree import TokenTree
from specx.engine import Engine

#: Nodes of the trees whose forward and whose attention are timed; one node is a plain step's.
VERIFIED_NODES = (1, 8, 16, 32, 64)
ATTENDED_NODES = (1, 64)
LEVELS = 8  # of a draft, where the preset's tree is as deep

_STEPS = 8  # in a row, or as many more as make a whole retrieval interval
_DRAFTS = 8  # in a row: more would refill a working cache within what is timed
_SEED = 5
#: What is changed in a forward, in the words of ``--modes``: other kernels, then other parts.
_OTHER_KERNELS = {"flash-attn": "flash", "sdpa": "sdpa", "masked": "masked"}
_OTHER_PARTS = ("no-graphs", "original")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """``prepare``, which is not timed, then ``work`` several times in a row.

    ``pieces``: equal ones that ``work`` consists of. ``repeats``: how often in a row; None: as
    the time allows. ``is_queued``: the host is done long before the device, so a row of them may
    be handed over while the device still does something else.
    """

    name: str
    work: Callable[[], object]
    prepare: Callable[[], object]
    floor_bytes: int
    nodes: int | None = None
    variant: str = ""
    pieces: int = 1
    repeats: int | None = None
    is_queued: bool = False


class Rig:
    """Target and drafter of one request of ``length`` prompt tokens."""

    def __init__(self, engine: Engine, length: int) -> None:
        """Allocates both caches."""
        self._engine, self.length = engine, length
        self.parts = parts_of(engine)
        self.kernels, _ = choose_kernels(engine.target, self.parts)
        tree, budget = engine.preset.tree, engine.preset.retrieval.budget_tokens
        self.levels = levels_of(engine)
        widest = static_rows(max(tree.nodes + 1, *VERIFIED_NODES))
        every = engine.preset.retrieval.every_steps
        self._row = every * -(-_STEPS // every) if self.kernels.is_static else every
        room = (self._row + 1) * (tree.depth + 1)  # what steps commit before they start again
        capacity = self._capacity = length + room + widest + 2 * (tree.depth + 1)
        self.target = Target(engine.target, capacity, self.parts, self.kernels)
        self._sampler = Sampler(SamplingConfig())
        self._first = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._drafters: dict[int, DeviceDrafter] = {}  # by levels
        self._full: KVCache | None = None  # the draft's keys of the whole context
        self._missing = 0  # rows that it has less than there are tokens: a head reads pairs
        if engine.draft is not None and self.parts.has_draft_model:
            self._missing = int(engine.draft.reads_features)
            spare = 4 * (self.levels + 1)
            self._full = engine.draft.new_cache(max(capacity, budget) + spare)
        self._retriever = Retriever(engine.preset.retrieval)
        is_asked = self.drafts and self.parts.draft_cache == "retrieval"
        self._retrieves = is_asked and self._retriever.is_needed(length)
        self._selection: Selection | None = None
        self._drafter: ModelDrafter | None = None  # of the task under way
        self._steps = 0  # since its start
        #: Keys and values that the drafter of a request holds.
        self.draft_kv_bytes = 0
        if self._full is not None:
            working = self._new_drafter(self.levels).cache_bytes  # nothing is in the full one yet
            self.draft_kv_bytes = working + self._full.row_bytes * self._full.capacity

    @property
    def is_static(self) -> bool:
        """Whether drafts are recordings of exactly ``levels``; else of as many as are worth it."""
        return self.target.is_static

    @property
    def told_level_s(self) -> float | None:
        """Mean seconds of the newest draft's levels behind the first, if the drafter times them."""
        if self._drafter is None or self.is_static:
            return None
        levels_s = self._drafter.observe(0.0)[1:]
        return sum(levels_s) / len(levels_s) if levels_s else None

    @property
    def drafts(self) -> bool:
        """Whether there is a draft model."""
        return self._full is not None

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> tuple[float, float]:
        """Read ``tokens`` [n] int64 into empty caches; seconds of the target and of the draft."""
        self.target.cache.truncate(0)
        drafter = self._new_drafter(self.levels) if self.drafts else None
        if self._full is not None:
            self._full.truncate(0)
        target_s = draft_s = 0.0
        for chunk in torch.split(tokens, self._engine.preset.prefill_chunk_tokens):
            start = now(self._device)
            _, hidden = self.target.read(chunk)
            middle = now(self._device)
            if drafter is not None:
                drafter.prefill(chunk, hidden)
            target_s += middle - start
            draft_s += now(self._device) - middle
        return target_s, draft_s

    @torch.inference_mode()
    def fill(self) -> None:
        """Random keys and values in place of those of ``length`` tokens. Needs a ``prefill``."""
        caches = [self.target.cache] if self._full is None else [self.target.cache, self._full]
        for rows in (rows for cache in caches for rows in (*cache.keys, *cache.values)):
            rows.normal_()
        self.target.buffers.features.normal_()
        self._start(self.target)
        if self._retrieves:
            self._selection = self.target.select(self._retriever, None)

    def tokens(self) -> Tensor:
        """A prompt: ``length`` random tokens, the same every time."""
        known = self._engine.target.shape.vocabulary
        if self._engine.draft is not None:
            known = min(known, self._engine.draft.shape.vocabulary)
        seeded = torch.Generator().manual_seed(_SEED)
        return torch.randint(known, (self.length,), generator=seeded).to(self._device)

    def lead(self) -> Callable[[], object]:
        """Something that keeps a GPU busy while the host hands over what is to be timed."""
        forward = self._forward(1, self.target)
        forward.prepare()
        return forward.work

    def tasks(self) -> Iterator[Task]:
        """All pieces of this length, a whole step first."""
        steps = [("plain step", 1, partial(self._start, self.target))]
        if self.drafts:
            ready = partial(self._ready, self.levels, self._step)
            steps.insert(0, ("step", self._engine.preset.tree.nodes + 1, ready))
        size, is_queued = self._forward_bytes, _is_recorded(self.target)
        for name, nodes, start in steps:
            yield Task(name, self._step, start, size, nodes, "", 1, self._row, is_queued)
        for nodes in VERIFIED_NODES:
            yield self._forward(nodes, self.target)
        for nodes in ATTENDED_NODES:
            yield self._attention(nodes)
        if self.drafts:
            # One level alone tells what a level costs where the drafter does not.
            for levels in sorted({1 if self.is_static else self.levels, self.levels}):
                yield self._draft(levels)

    def variants(self) -> tuple[list[Task], dict[str, str]]:
        """Forwards of 1 and 64 nodes with one part changed; also why a part could not be."""
        model, is_gpu = self._engine.target, self._device.type == "cuda"
        changed: list[tuple[str, Parts, Kernels]] = []
        lost: dict[str, str] = {}
        for word, name in _OTHER_KERNELS.items():
            parts = with_part(self.parts, word)
            kernels, note = choose_kernels(model, parts)
            if kernels.name == name != self.kernels.name:
                changed.append((word, parts, kernels))
            elif kernels.name != name and is_gpu:
                lost[word] = note
        for word in _OTHER_PARTS if is_gpu and self.is_static else ():
            parts = with_part(self.parts, word)
            if parts != self.parts:
                changed.append((word, parts, self.kernels))
        tasks = []
        for word, parts, kernels in changed:
            target = Target(model, self._capacity, parts, kernels, self.target.buffers)
            tasks += [self._forward(nodes, target, word) for nodes in (1, VERIFIED_NODES[-1])]
        return tasks, lost

    def _forward(self, nodes: int, target: Target, variant: str = "") -> Task:
        """A forward over a random tree of ``nodes``."""
        tree = _random_tree(nodes, self._device)
        placed = [tree]

        def prepare() -> None:
            self._start(target)
            placed[0] = target.place(tree)

        def launch() -> None:
            target.verify(placed[0])

        def work() -> None:
            target.verify(target.place(tree))
            target.cache.drop()

        is_static = target.is_static
        return Task(
            "verify",
            launch if is_static else work,
            prepare if is_static else partial(self._start, target),
            self._forward_bytes,
            nodes=nodes,
            variant=variant,
            is_queued=_is_recorded(target),
        )

    def _attention(self, nodes: int) -> Task:
        """A tree's attention in every layer, one after the other, so that no cache of the GPU
        holds what is read."""
        shape, cache, device = self._engine.target.shape, self.target.cache, self._device
        mask = _random_tree(nodes, device).mask
        # As a layer hands it over: heads beside each other in a row.
        rows = torch.randn(nodes, shape.heads, shape.head_dim, device=device)
        query = rows.to(self._engine.target.dtype).transpose(0, 1)
        prefix = torch.tensor(self.length, device=device) if self.is_static else self.length
        scale = shape.head_dim**-0.5

        def attend() -> None:
            for layer in range(shape.layers):
                keys, values = cache.keys[layer], cache.values[layer]
                self.kernels.tree(query, keys, values, prefix, mask, scale)

        graphs = Graphs(device, enabled=_is_recorded(self.target))
        return Task(
            "tree attention",
            lambda: graphs.run("attention", attend),
            lambda: None,
            cache.row_bytes // shape.layers * self.length,
            nodes=nodes,
            pieces=shape.layers,
            is_queued=_is_recorded(self.target),
        )

    def _draft(self, levels: int) -> Task:
        """A whole draft of ``levels`` after one new token."""
        return Task(
            "draft" if levels == self.levels else "draft of one level",
            self._draft_one,
            partial(self._ready, levels, self._draft_one),
            levels * self.level_bytes if self.is_static else 0,
            repeats=_DRAFTS if self.is_static else 1,
            is_queued=_is_recorded(self.target),
        )

    def _draft_one(self) -> None:
        """One more token of output, and a draft behind it."""
        drafter = self._drafter
        assert drafter is not None
        if self.is_static:
            self.target.progress.produced.add_(1)
        else:
            drafter.extend([0], self.target.buffers.features[:1])
        drafter.draft()

    def _step(self) -> None:
        """What ``Decoder`` launches for one step; without static kernels also what it settles."""
        drafter, target, progress = self._drafter, self.target, self.target.progress
        tree = TokenTree.root_only(progress.root) if drafter is None else drafter.draft()
        tree = target.place(tree)
        logits, features = target.verify(tree)
        sample = self._sampler(logits, progress.produced + tree.depths)
        path, report = target.accept(tree, sample)
        target.commit(tree, sample, path)
        if drafter is not None and self._retrieves and self._retriever.due(self._steps):
            drafter.refocus(target.select(self._retriever, path))
        self._steps += 1
        if not target.is_static:
            count = int(report[0])
            target.settle(count)
            if drafter is not None:
                drafter.extend(report[3 : 3 + count].tolist(), features[path.nodes])

    def _start(self, target: Target) -> None:
        """As after the prefill and its first token, for plain steps."""
        target.cache.reach(self.length)
        target.progress.begin(self.tokens(), self._first)
        self._drafter, self._steps = None, 0

    def _ready(self, levels: int, first: Callable[[], object]) -> None:
        """As after ``first``, the first draft or step, which may have more to do than others."""
        assert self._full is not None
        self._start(self.target)
        drafter = self._drafter = self._new_drafter(levels)
        self._full.reach(self.length - self._missing)
        if self._selection is not None:
            drafter.refocus(self._selection)
        if not self.is_static:
            drafter.extend([0], self.target.buffers.features[:1])
        first()
        self._steps = 0

    def _new_drafter(self, levels: int) -> ModelDrafter:
        """A drafter of exactly ``levels`` at the beginning of a request."""
        preset, draft = self._engine.preset, self._engine.draft
        assert draft is not None
        if levels in self._drafters:
            self._drafters[levels].begin(self._sampler, None)
            return self._drafters[levels]
        settings = DraftSettings(
            model=draft,
            capacity=self._capacity,
            vocabulary=self._engine.target.shape.vocabulary,
            trained_tokens=preset.draft.trained_context_tokens,
            parts=self.parts,
            tree=replace(preset.tree, depth=levels, threshold=0.0),
            retrieval=preset.retrieval,
            kernels=self.kernels,
        )
        if not self.is_static:
            return ModelDrafter(settings, self._sampler, full=self._full)
        # Two drafters of the same parts would take each other's recordings.
        graphs = None if levels == self.levels else Graphs(self._device)
        self._drafters[levels] = DeviceDrafter(
            self.target.buffers, settings, self._sampler, full=self._full, graphs=graphs
        )
        return self._drafters[levels]

    @property
    def level_bytes(self) -> int:
        """Weights of the draft, and its working cache at its budget; 0 without a draft."""
        if (draft := self._engine.draft) is None:
            return 0
        rows = min(self.length, self._engine.preset.retrieval.budget_tokens)
        weights = level_weights(draft) if draft.reads_features else draft.weights_bytes
        return weights + cost_of(draft).kv_row_bytes * rows

    @property
    def _device(self) -> torch.device:
        return self._engine.target.device

    @property
    def _forward_bytes(self) -> int:
        cache = self.target.cache
        return self._engine.target.weights_bytes + cache.row_bytes * self.length


def levels_of(engine: Engine) -> int:
    """Levels of the drafts that are timed."""
    return min(LEVELS, engine.preset.tree.depth)


def parts_of(engine: Engine) -> Parts:
    """Those of mode ``specx`` as the preset changes them."""
    preset = engine.preset
    parts = parts_for("specx", {"drafter": preset.draft.kind, **preset.parts})
    return parts if engine.draft is not None else replace(parts, drafter="none")


def _is_recorded(target: Target) -> bool:
    """Whether its forwards are CUDA graphs."""
    records = target.is_static and target.graphs is target.buffers.graphs
    return records and target.model.device.type == "cuda"


def _random_tree(nodes: int, device: torch.device) -> TokenTree:
    """A tree of ``nodes`` with other tokens everywhere, the same for every ``nodes``."""
    rng = random.Random(_SEED)
    parents = [0, *(rng.randrange(node) for node in range(1, nodes))]
    return TokenTree.build(range(nodes), parents, device)


def now(device: torch.device) -> float:
    """Seconds on the host's clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
