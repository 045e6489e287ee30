"""The decode loop: one step is draft, verify, accept. Plain decoding is a tree of one node.

In: a target, a drafter, prompt tokens. Out: events with token ids and times. It does not know
text, tokenizers, which drafter it drives, or screens.

A step is launched and then settled. Launching asks the host for nothing where target and drafter
allow it (a GPU); then the next step is launched before the last one is settled, and the host's
work for one step happens while the device does the next.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specx.core.clock import Clock, Readout, start_clock
from specx.core.config import Parts
from specx.core.decoder import Model
from specx.core.drafts import Drafter
from specx.core.drafts.growth import Governor
from specx.core.retrieval import Retriever
from specx.core.sampling import Sampler
from specx.core.stats import FinishReason, Prefill, StepStats, StepTree
from specx.core.target import Target
from specx.core.tree import Path, TokenTree


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


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that the device may still be working on."""

    tree: TokenTree
    path: Path
    hidden: Tensor
    drafted: bool
    is_warm: bool  # its time is that of any later step
    readout: Readout  # the target's report, then chunks and reaches where there are any
    has_chunks: bool
    has_copies: bool
    clock: Clock
    context_tokens: int


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
        on_end: Callable[[], None] | None = None,
        records_trees: bool = False,
    ) -> None:
        """``tune`` runs once between prefill and first token; its time is kept apart. ``on_end``
        is called by ``end``."""
        self.target, self.drafter, self.request = target, drafter, request
        self._records_trees = records_trees
        self.retriever, self.governor, self._tune = retriever, governor, tune
        self._on_end = on_end
        self.prefill_target_s = 0.0
        self.prefill_draft_s = 0.0
        self.tune_s = 0.0
        self._cancelled = False
        self._produced = 0
        self._seen = _Seen(request, target.model)
        # Trees are recorded from places that the next step overwrites.
        runs_ahead = target.is_static and drafter.runs_ahead and not records_trees
        self._ahead = 1 if runs_ahead else 0  # steps launched before one is settled
        self._last_clock: Clock | None = None
        self._away_s = 0.0  # how long the consumer kept the loop waiting

    def cancel(self) -> None:
        """End after the current step (or prefill chunk) with finish reason "interrupted"."""
        self._cancelled = True

    def end(self) -> None:
        """The run is over, in good order: its buffers may serve the next request."""
        if self._on_end is not None:
            self._on_end()
            self._on_end = None

    def run(self) -> Iterator[Prefill | Emitted]:
        """Prefill by chunks, then steps until the stop rule, ``max_tokens`` or ``cancel``."""
        for event in self._prefill():
            yield event
            if isinstance(event, Emitted) and event.finish_reason is not None:
                return
        launched: deque[_Launched] = deque()
        number = 0
        while True:
            # A drafter that was left out reads up exactly, so it waits for the last plain step.
            changes = bool(launched) and launched[-1].drafted != self._is_drafting
            if not changes:
                launched.append(self._launch(number))
                number += 1
            if changes or len(launched) > self._ahead:
                emitted = self._settle(launched.popleft())
                left = time.perf_counter()
                yield emitted
                self._away_s += time.perf_counter() - left
                if emitted.finish_reason is not None:
                    return

    def _prefill(self) -> Iterator[Prefill | Emitted]:
        prompt, target = self.request.prompt, self.target
        device, total, began = target.model.device, prompt.shape[0], time.perf_counter()
        logits = hidden = None
        done = 0
        for chunk in torch.split(prompt.to(device), self.request.prefill_chunk_tokens):
            if self._cancelled:
                yield Emitted([], "interrupted")
                return
            start = _now(device)
            logits, hidden = target.read(chunk)
            middle = _now(device)
            self.drafter.prefill(chunk, hidden)
            self.prefill_target_s += middle - start
            self.prefill_draft_s += _now(device) - middle
            done += chunk.shape[0]
            yield Prefill(done, total, time.perf_counter() - began)
        if logits is None or hidden is None:
            raise ValueError("the prompt is empty")
        yield self._first(logits, hidden)

    @torch.inference_mode()
    def _first(self, logits: Tensor, hidden: Tensor) -> Emitted:
        """The first token, which the prefill yields."""
        prompt, device = self.request.prompt.to(logits.device), logits.device
        self._seen.add(prompt)
        position = torch.zeros(1, dtype=torch.int64, device=device)
        first = self.request.sampler(logits, position, self._seen.rows(None))
        self.target.begin(prompt, first, hidden[-1:])
        self._seen.add(first)
        chunks = None
        if self.retriever is not None and self.retriever.is_needed(prompt.shape[0]):
            chunks = _chunk_numbers(self._refocus(self.retriever, None))
        if self._tune is not None:
            start = _now(device)
            self._tune()
            self.tune_s = _now(device) - start
        (tokens,) = Readout(first).wait()
        return Emitted(*self._commit(tokens.tolist(), hidden[-1:]), retrieved_chunks=chunks)

    @torch.inference_mode()
    def _launch(self, number: int) -> _Launched:
        """Put a whole step on the device."""
        target = self.target
        cold_runs = target.graphs.cold_runs
        clock = start_clock(target.model.device)
        drafting = self._is_drafting
        tree = target.place(self.drafter.draft() if drafting else None)
        context_tokens = self.drafter.context_tokens
        clock.mark("draft_s")
        logits, hidden = target.verify(tree)
        clock.mark("verify_s")
        positions = target.progress.produced + tree.depths
        sample = self.request.sampler(logits, positions, self._seen.rows(tree))
        path, report = target.accept(tree, sample)
        clock.mark("accept_s")
        target.commit(tree, sample, path)
        self._seen.add_path(sample, path)
        clock.mark("commit_s")
        told = [report]
        if is_due := drafting and self._is_due(number):
            assert self.retriever is not None
            told.append(self._refocus(self.retriever, path))
        if tree.reaches is not None:
            told += [tree.reaches, tree.depths[: tree.reaches.shape[0]]]
        if tree.copied is not None:
            told.append(tree.copied)
        clock.mark("retrieve_s")
        readout = Readout(*told)
        return _Launched(
            tree=tree,
            path=path,
            hidden=hidden,
            drafted=drafting,
            is_warm=not target.is_static or target.graphs.cold_runs == cold_runs,
            readout=readout,
            has_chunks=is_due,
            has_copies=tree.copied is not None,
            clock=clock,
            context_tokens=context_tokens,
        )

    @torch.inference_mode()
    def _settle(self, step: _Launched) -> Emitted:
        """Read what a launched step did, and apply the stop rule."""
        report, *told = step.readout.wait()
        began = time.perf_counter()
        count, nodes, depth, *padded = report.tolist()
        tokens = padded[:count]
        self.target.settle(count)
        chunks = _chunk_numbers(told.pop(0)) if step.has_chunks else None
        copied = _agreeing(told.pop().tolist(), tokens[:-1]) if step.has_copies else 0
        record = _record(step.tree, step.path.tolist(), tokens[-1]) if self._records_trees else None
        phases_s = step.clock.seconds(self._last_clock)
        idle_s = phases_s.pop("gap", None)
        self._last_clock = step.clock
        levels_s: tuple[float, ...] = ()
        if step.drafted:
            levels_s = self.drafter.observe(phases_s["draft_s"], *told)
        # Only host drafters look at the hidden states; they have settled before the next step.
        states = _hidden_on_path(step) if self._ahead == 0 else step.hidden[:0]
        new_tokens, reason = self._commit(tokens, states)
        host_s = time.perf_counter() - began
        if idle_s is not None:  # what the device waited, without what the consumer took
            host_s = max(0.0, idle_s - self._away_s)
        stats = StepStats(
            nodes=nodes,
            depth=depth,
            accepted=count - 1,
            new_tokens=len(new_tokens),
            copied=copied,
            draft_levels_s=levels_s,
            draft_context_tokens=step.context_tokens,
            host_s=host_s,
            **phases_s,
        )
        self._away_s = 0.0
        if self.governor is not None and step.is_warm:
            self.governor.observe(stats, step.drafted)
        return Emitted(new_tokens, reason, stats, chunks, record)

    @property
    def _is_drafting(self) -> bool:
        return self.governor is None or self.governor.drafting

    def _is_due(self, number: int) -> bool:
        retriever, length = self.retriever, self.target.cache.length
        return retriever is not None and retriever.due(number) and retriever.is_needed(length)

    def _refocus(self, retriever: Retriever, path: Path | None) -> Tensor:
        """Refill the draft's cache with what the last accepted node attends to; chunk numbers."""
        selection = self.target.select(retriever, path)
        self.drafter.refocus(selection)
        return selection.chunks

    def _commit(self, tokens: list[int], hidden: Tensor) -> tuple[list[int], FinishReason | None]:
        """Apply the stop rule to tokens of the target, then tell them to the drafter."""
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
            self.drafter.extend(tokens, hidden)
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

    def add_path(self, sample: Tensor, path: Path) -> None:
        """Add the target's tokens along ``path``."""
        if self._flags is not None:
            tokens = sample[path.nodes]
            inside = torch.arange(tokens.shape[0], device=tokens.device) < path.count
            self._flags.index_fill_(0, torch.where(inside, tokens, tokens[0]), True)

    def rows(self, tree: TokenTree | None) -> Tensor | None:
        """[n, V] bool for the nodes of ``tree``, or [1, V] for the prompt alone."""
        if self._flags is None or tree is None:
            return None if self._flags is None else self._flags[None]
        rows = self._flags.repeat(tree.size, 1)
        tokens = tree.tokens.clamp(min=0)
        # For every pair of nodes the second one's token if it is an ancestor, else the first's.
        return rows.scatter_(1, torch.where(tree.mask, tokens[None], tokens[:, None]), True)


def _record(tree: TokenTree, path: list[int], bonus: int) -> StepTree:
    return StepTree(
        tokens=tuple(tree.tokens.tolist()),
        parents=tuple(tree.parents.tolist()),
        path=tuple(path),
        bonus=bonus,
    )


def _chunk_numbers(chunks: Tensor) -> tuple[int, ...]:
    """On the host, without the padding of a static selection."""
    return tuple(chunk for chunk in chunks.tolist() if chunk >= 0)


def _agreeing(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((count for count, (a, b) in pairs if a != b), min(len(first), len(second)))


def _hidden_on_path(step: _Launched) -> Tensor:
    return step.hidden[step.path.nodes[: int(step.path.count)]]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
