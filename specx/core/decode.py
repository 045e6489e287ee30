"""The decode loop: one step is draft, verify, accept. Plain decoding is a tree of one node.

In: a target, a drafter, prompt tokens. Out: events with token ids and times. It does not know
text, tokenizers, which drafter it drives, or screens.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.config import Parts
from specx.core.drafts import Drafter
from specx.core.growth import Governor, StepCosts
from specx.core.model import Model
from specx.core.passes import TargetPass
from specx.core.retrieval import Retriever, Selection
from specx.core.sampling import Sampler
from specx.core.stats import FinishReason, Prefill, StepStats, StepTree
from specx.core.tree import TokenTree

#: Row counts whose verify time is measured before the first draft.
MEASURED_ROWS = (1, 4, 8, 16, 32)
_ROUNDS = 3  # of timing them, in turns: noise that lasts a while must not hit one width alone


@dataclass(frozen=True, slots=True)
class Request:
    """What to decode. ``end_tokens`` stop the output and are not part of it."""

    prompt: Tensor  # [n] int64
    max_tokens: int
    end_tokens: frozenset[int]
    sampler: Sampler
    parts: Parts
    prefill_chunk_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Emitted:
    """Tokens added to the output; ``step`` is None for the first one, which the prefill yields."""

    tokens: list[int]
    finish_reason: FinishReason | None = None
    step: StepStats | None = None
    retrieved_chunks: tuple[int, ...] | None = None  # when the draft's cache was refilled
    tree: StepTree | None = None  # when the decoder was asked to record trees


class Target:
    """The big model's state in one request: its cache and the query that retrieval taps."""

    def __init__(self, model: Model, capacity: int, parts: Parts, kernels: Kernels) -> None:
        self.model, self._parts, self._kernels = model, parts, kernels
        self.cache = model.new_cache(capacity)
        self._query: Tensor | None = None
        self._scale = 1.0

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Commit a prompt chunk [n]; logits [1, V] after it and hidden states [n, hidden]."""
        count, start = tokens.shape[0], self.cache.stage(tokens.shape[0])
        positions = torch.arange(start, start + count, device=tokens.device)
        output = self._forward(tokens, positions, start, None, count - 1)
        self.cache.commit(count)
        return output

    def verify(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        """Stage the tree behind the prefix; logits [n, V] and hidden states [n, hidden]."""
        start = self.cache.stage(tree.size)
        return self._forward(tree.tokens, self.cache.length + tree.depths, start, tree.mask, 0)

    def select(self, retriever: Retriever, row: int) -> Selection:
        """Chunks that row ``row`` of the last forward attends to in the last layer."""
        assert self._query is not None, "no forward has run yet"
        keys = self.cache.keys[-1, :, : self.cache.length]
        return retriever.select(self._query[:, row], keys, self._scale)

    def measure(self) -> StepCosts:
        """Time verify forwards of a few widths on the cache as it stands; nothing is kept."""
        room = self.cache.capacity - self.cache.length
        trees = {rows: _chain(rows, self.model.device) for rows in MEASURED_ROWS if rows <= room}
        seconds = dict.fromkeys(trees, float("inf"))
        for _ in range(_ROUNDS):
            for rows, tree in trees.items():
                start = _now(self.model.device)
                self.verify(tree)
                seconds[rows] = min(seconds[rows], _now(self.model.device) - start)
                self.cache.drop()
        return StepCosts(seconds)

    def _forward(
        self, tokens: Tensor, positions: Tensor, start: int, mask: Tensor | None, logits_from: int
    ) -> tuple[Tensor, Tensor]:
        attention = TargetPass(self.cache, start, mask, self._kernels, self._parts)
        output = self.model.forward(tokens, positions, attention, logits_from)
        self._query, self._scale = attention.query, attention.scale
        return output.logits, output.hidden


class Decoder:
    """Runs one request; ``cancel`` ends it after the step under way."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        request: Request,
        *,
        retriever: Retriever | None = None,
        governor: Governor | None = None,
        tune: Callable[[], object] | None = None,
        records_trees: bool = False,
    ) -> None:
        """``tune`` runs once between prefill and first token; its time is kept apart."""
        self.target, self.drafter, self.request = target, drafter, request
        self._records_trees = records_trees
        self.retriever, self.governor, self._tune = retriever, governor, tune
        self.prefill_target_s = 0.0
        self.prefill_draft_s = 0.0
        self.tune_s = 0.0
        self._cancelled = False
        self._produced = 0
        self._root = 0
        self._seen = _Seen(request, target.model)

    def cancel(self) -> None:
        """End after the current step (or prefill chunk) with finish reason "interrupted"."""
        self._cancelled = True

    def run(self) -> Iterator[Prefill | Emitted]:
        """Prefill by chunks, then steps until the stop rule, ``max_tokens`` or ``cancel``."""
        for event in self._prefill():
            yield event
            if isinstance(event, Emitted) and event.finish_reason is not None:
                return
        for number in itertools.count():
            emitted = self._step(number)
            yield emitted
            if emitted.finish_reason is not None:
                return

    def _prefill(self) -> Iterator[Prefill | Emitted]:
        prompt = self.request.prompt
        device, total, began = self.target.model.device, prompt.shape[0], time.perf_counter()
        logits = hidden = None
        done = 0
        for chunk in torch.split(prompt.to(device), self.request.prefill_chunk_tokens):
            if self._cancelled:
                yield Emitted([], "interrupted")
                return
            start = _now(device)
            logits, hidden = self.target.read(chunk)
            middle = _now(device)
            self.drafter.prefill(chunk, hidden)
            self.prefill_target_s += middle - start
            self.prefill_draft_s += _now(device) - middle
            done += chunk.shape[0]
            yield Prefill(done, total, time.perf_counter() - began)
        if logits is None or hidden is None:
            raise ValueError("the prompt is empty")
        self._seen.add(prompt.to(device))
        position = torch.zeros(1, dtype=torch.int64, device=device)
        first = self.request.sampler(logits, position, self._seen.rows(None))
        chunks = None
        if self.retriever is not None and self.retriever.is_needed(total):
            chunks = self._refocus(self.retriever, -1)
        if self._tune is not None:
            start = _now(device)
            self._tune()
            self.tune_s = _now(device) - start
        yield Emitted(*self._commit(first.tolist(), hidden[-1:]), retrieved_chunks=chunks)

    def _step(self, number: int) -> Emitted:
        device, target = self.target.model.device, self.target
        clock = _clock(device)
        drafting = self.governor is None or self.governor.drafting
        tree = self.drafter.draft() if drafting else TokenTree.root_only(self._root, device)
        levels_s = self.drafter.levels_s if drafting else ()
        clock.mark("draft_s")
        context_tokens = self.drafter.context_tokens
        logits, hidden = target.verify(tree)
        clock.mark("verify_s")
        sample = self.request.sampler(logits, self._produced + tree.depths, self._seen.rows(tree))
        path = tree.accept(sample)
        tokens = sample[path].tolist()  # the step's host synchronisation
        clock.mark("accept_s")
        target.cache.keep(path)
        clock.mark("commit_s")
        chunks = None
        if drafting and self._is_due(number):
            assert self.retriever is not None
            chunks = self._refocus(self.retriever, int(path[-1]))
        clock.mark("retrieve_s")
        record = _record(tree, path, tokens[-1]) if self._records_trees else None
        accepted = len(tokens) - 1
        new_tokens, reason = self._commit(tokens, hidden[path])
        clock.mark("host_s")
        stats = StepStats(
            nodes=tree.size,
            depth=int(tree.depths.max()),
            accepted=accepted,
            new_tokens=len(new_tokens),
            draft_levels_s=levels_s,
            draft_context_tokens=context_tokens,
            **clock.seconds(),
        )
        if self.governor is not None:
            self.governor.observe(stats)
        return Emitted(new_tokens, reason, stats, chunks, record)

    def _is_due(self, number: int) -> bool:
        retriever, length = self.retriever, self.target.cache.length
        return retriever is not None and retriever.due(number) and retriever.is_needed(length)

    def _refocus(self, retriever: Retriever, row: int) -> tuple[int, ...]:
        """Refill the draft's cache with what row ``row`` of the last forward attends to."""
        selection = self.target.select(retriever, row)
        self.drafter.refocus(selection.rows)
        return selection.chunks

    def _commit(self, tokens: list[int], hidden: Tensor) -> tuple[list[int], FinishReason | None]:
        """Apply the stop rule to tokens of the target, then hand them to the drafter."""
        reason: FinishReason | None = "interrupted" if self._cancelled else None
        for index, token in enumerate(tokens):
            if token in self.request.end_tokens:
                tokens, reason = tokens[:index], "eos"
                break
        left = self.request.max_tokens - self._produced
        # Also when an end token stands right behind the budget: plain decoding would not see it.
        if len(tokens) >= left:
            tokens, reason = tokens[:left], "length"
        self._produced += len(tokens)
        if reason is None:
            self._root = tokens[-1]
            self.drafter.extend(tokens, hidden)
            self._seen.add(torch.tensor(tokens, device=hidden.device))
        return tokens, reason


class _Seen:
    """Which tokens the repetition penalty applies to: prompt, output, and a node's ancestors."""

    def __init__(self, request: Request, model: Model) -> None:
        self._flags: Tensor | None = None
        if request.sampler.config.repetition_penalty != 1.0:
            size = model.shape.vocabulary
            self._flags = torch.zeros(size, dtype=torch.bool, device=model.device)

    def add(self, tokens: Tensor) -> None:
        if self._flags is not None:
            self._flags[tokens] = True

    def rows(self, tree: TokenTree | None) -> Tensor | None:
        """[n, V] bool for the nodes of ``tree``, or [1, V] for the prompt alone."""
        if self._flags is None or tree is None:
            return None if self._flags is None else self._flags[None]
        rows = self._flags.repeat(tree.size, 1)
        node, ancestor = tree.mask.nonzero(as_tuple=True)
        rows[node, tree.tokens[ancestor]] = True
        return rows


def _chain(rows: int, device: torch.device) -> TokenTree:
    """A tree without branches; its tokens do not matter."""
    return TokenTree.build([0] * rows, [max(0, row - 1) for row in range(rows)], device)


def _record(tree: TokenTree, path: Tensor, bonus: int) -> StepTree:
    return StepTree(
        tokens=tuple(tree.tokens.tolist()),
        parents=tuple(tree.parents.tolist()),
        path=tuple(path.tolist()),
        bonus=bonus,
    )


class _Clock(Protocol):
    """Seconds of a step's phases."""

    def mark(self, phase: str) -> None:
        """End ``phase`` here."""
        ...

    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        ...


class _HostClock:
    """The host's clock, for a device that works in step with it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return self._seconds


class _StreamClock:
    """Events on a GPU's stream: the host may run ahead between phases; only reading waits."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._phases: list[str] = []
        self._events = [self._stream.record_event(_event())]

    def mark(self, phase: str) -> None:
        self._phases.append(phase)
        self._events.append(self._stream.record_event(_event()))

    def seconds(self) -> dict[str, float]:
        self._events[-1].synchronize()
        pairs = zip(self._phases, itertools.pairwise(self._events), strict=True)
        return {phase: start.elapsed_time(end) / 1000 for phase, (start, end) in pairs}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _clock(device: torch.device) -> _Clock:
    return _StreamClock(device) if device.type == "cuda" else _HostClock()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
