"""The decode loop: one step is draft, verify, accept. Plain decoding is a tree of one node.

A step is launched and then settled. Where launching asks the host for nothing (a GPU), the next one
is launched before the last is settled, and the host works on one while the device does the next."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from operator import eq

import torch
from torch import Tensor

from specx.core.bounds import Bounds, Closing, ThoughtBound
from specx.core.clock import Clock, Readout, now, start_clock
from specx.core.config import RetrievalConfig
from specx.core.decoder import Model
from specx.core.drafts import Drafter
from specx.core.drafts.growth import Governor
from specx.core.sampling import Sampler
from specx.core.stats import FinishReason, Prefill, StepStats, StepTree
from specx.core.target import CostTable, Target
from specx.core.tree import Path, TokenTree
from specx.core.workspace import Workspaces

#: The target's own token after each node: logits [n, V], the output positions [n] that they
#: predict, tokens seen [n, V] bool or None → [n] int64.
Sample = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """A step that the device may still be working on."""

    tree: TokenTree
    path: Path
    logits: Tensor  # [n, V] float32
    drafted: bool
    is_warm: bool  # its time is that of any later step
    readout: Readout  # reaches, the target's report, chunks, depths, copies; some may be missing
    clock: Clock
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a step did, as the host knows it."""

    tokens: list[int]  # the target's: accepted guesses, then the bonus
    stats: StepStats  # before the stop rule; ``host_s`` is how long the device was idle before
    is_timed: bool  # whether the device's idle time is known
    chunks: tuple[int, ...] | None  # when the draft's cache was refilled


@torch.inference_mode()
def launch(
    target: Target,
    drafter: Drafter | None,
    sample: Sample,
    *,
    seen: "Seen | None" = None,
    closing: Closing | None = None,
    retrieval: RetrievalConfig | None = None,
) -> Step:
    """Put a whole step on the device. Without ``drafter`` it is a plain one; with ``retrieval`` the
    draft's context is refreshed after it."""
    cold_runs = target.launcher.cold_runs
    clock, readout = start_clock(target.model.device), Readout()
    tree = target.place(None if drafter is None else drafter.draft())
    readout.take(tree.reaches)
    context_tokens = 0 if drafter is None else drafter.context_tokens
    clock.mark("draft_s")
    logits, _ = target.verify(tree)
    clock.mark("verify_s")
    positions = target.progress.produced + tree.depths
    tokens = sample(logits, positions, None if seen is None else seen.rows(tree))
    if closing is not None:
        tokens = closing.place(tokens, positions, tree)
    path, report = target.accept(tree, tokens)
    readout.take(report)
    clock.mark("accept_s")
    target.commit(tree, path)
    if seen is not None:
        seen.add_path(tokens, path)
    if closing is not None:
        closing.add_path(tokens, path)
    clock.mark("commit_s")
    if drafter is not None and retrieval is not None:
        selection = target.select(retrieval, path)
        readout.take(selection.chunks)
        drafter.refocus(selection)
    else:
        readout.take(None)
    depths = None if tree.reaches is None else tree.depths[: tree.reaches.shape[0]]
    readout.take(depths, tree.copied)
    clock.mark("retrieve_s")
    return Step(
        tree=tree,
        path=path,
        logits=logits,
        drafted=drafter is not None,
        is_warm=target.launcher.cold_runs == cold_runs,
        readout=readout,
        clock=clock,
        context_tokens=context_tokens,
    )


@torch.inference_mode()
def settle(step: Step, target: Target, drafter: Drafter, previous: Clock | None = None) -> Settled:
    """Wait for a launched step and take in what it did; ``previous``: the clock of the step before
    it."""
    reaches, report, chunks, depths, copied = step.readout.wait()
    assert report is not None, "every step reports"
    count, nodes, depth, *padded = report.tolist()
    tokens = padded[:count]
    target.settle(count)
    phases_s = step.clock.seconds(previous)
    idle_s = phases_s.pop("gap", None)
    levels_s: tuple[float, ...] = ()
    chain = [] if copied is None else copied.tolist()
    agreeing = takewhile(bool, map(eq, chain, tokens[:-1]))
    if step.drafted:
        levels_s = drafter.observe(phases_s["draft_s"], reaches, depths)
    stats = StepStats(
        nodes=nodes,
        depth=depth,
        accepted=count - 1,
        new_tokens=count,
        copied=sum(agreeing),
        draft_levels_s=levels_s,
        draft_context_tokens=step.context_tokens,
        host_s=idle_s or 0.0,
        **phases_s,
    )
    numbers = None if chunks is None else _chunk_numbers(chunks)
    return Settled(tokens, stats, idle_s is not None, numbers)


@dataclass(frozen=True, slots=True)
class Request:
    """What to decode. ``end_tokens`` stop the output and are not part of it.

    ``max_tokens`` bounds the answer; ``thought``, where one may come before it, has its own bound;
    ``limit`` bounds the output in all.
    """

    prompt: Tensor  # [n] int64
    max_tokens: int
    end_tokens: frozenset[int]
    sampler: Sampler
    prefill_chunk_tokens: int = 2048
    thought: ThoughtBound | None = None
    limit: int | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens that the output may have in all."""
        most = self.max_tokens + (0 if self.thought is None else self.thought.room_tokens)
        return most if self.limit is None else min(most, self.limit)


@dataclass(frozen=True, slots=True)
class Emitted:
    """Tokens added to the output; ``step`` is None for the first one, which the prefill yields."""

    tokens: list[int]
    finish_reason: FinishReason | None = None
    step: StepStats | None = None
    retrieved_chunks: tuple[int, ...] | None = None  # when the draft's cache was refilled
    tree: StepTree | None = None  # when trees are recorded


class Decoding:
    """One running request with everything that it needs; ``cancel`` ends it after the step under
    way."""

    def __init__(
        self,
        request: Request,
        target: Target,
        drafter: Drafter,
        *,
        retrieval: RetrievalConfig | None = None,
        governor: Governor | None = None,
        costs: CostTable | None = None,
        workspaces: Workspaces | None = None,
        records_trees: bool = False,
    ) -> None:
        """``costs``: where step costs are looked up, or measured between prefill and first token;
        their time is kept apart. ``workspaces`` gets the target's workspace back at the end."""
        self.request, self.target, self.drafter = request, target, drafter
        self.retrieval, self.governor = retrieval, governor
        self._costs, self._workspaces, self._records_trees = costs, workspaces, records_trees
        self.prefill_target_s = self.prefill_draft_s = self.tune_s = 0.0
        self._cancelled = False
        self._bounds = Bounds(request.max_tokens, request.thought, request.limit)
        self._closing: Closing | None = None
        self._seen: Seen | None = None
        if request.sampler.config.repetition_penalty != 1.0:
            self._seen = Seen(target.model)
        # Trees are recorded from places that the next step overwrites.
        runs_ahead = target.launcher.is_fixed and drafter.runs_ahead and not records_trees
        self._ahead = 1 if runs_ahead else 0  # steps launched before one is settled
        self._last_clock: Clock | None = None
        self._away_s = 0.0  # how long the consumer kept the loop waiting

    def cancel(self) -> None:
        """End after the current step (or prefill chunk) with finish reason "interrupted"."""
        self._cancelled = True

    def close(self) -> None:
        """The request is over, in good order: its buffers may serve the next one."""
        if self._workspaces is not None:
            self._workspaces.give_back(self.target.workspace)
            self._workspaces = None

    def run(self) -> Iterator[Prefill | Emitted]:
        """Prefill by chunks, then steps until the stop rule, ``max_tokens`` or ``cancel``; closes
        itself before the last event."""
        for event in self._events():
            is_last = isinstance(event, Emitted) and event.finish_reason is not None
            if is_last:
                self.close()
            left = time.perf_counter()
            yield event
            self._away_s += time.perf_counter() - left
            if is_last:
                return

    def _events(self) -> Iterator[Prefill | Emitted]:
        yield from self._prefill()
        launched: deque[Step] = deque()
        number = 0
        self._away_s = 0.0
        while True:
            # A drafter that was left out reads exactly, so it waits for the last plain step.
            changes = bool(launched) and launched[-1].drafted != self._is_drafting
            if not changes:
                launched.append(self._launch(number))
                number += 1
            # Whether a thought has begun decides what is due in the next step.
            ahead = 0 if self._bounds.is_undecided else self._ahead
            if changes or len(launched) > ahead:
                yield self._settle(launched.popleft())

    def _prefill(self) -> Iterator[Prefill | Emitted]:
        prompt, target = self.request.prompt, self.target
        device, total, began = target.model.device, prompt.shape[0], time.perf_counter()
        logits = features = None
        done = 0
        for chunk in torch.split(prompt.to(device), self.request.prefill_chunk_tokens):
            if self._cancelled:
                yield Emitted([], "interrupted")
            start = now(device)
            logits, features = target.read(chunk)
            middle = now(device)
            self.drafter.prefill(chunk, features)
            self.prefill_target_s += middle - start
            self.prefill_draft_s += now(device) - middle
            done += chunk.shape[0]
            yield Prefill(done, total, time.perf_counter() - began)
        if logits is None or features is None:
            raise ValueError("the prompt is empty")
        yield self._first(logits, features)

    @torch.inference_mode()
    def _first(self, logits: Tensor, features: Tensor) -> Emitted:
        """The first token, which the prefill yields."""
        prompt, device = self.request.prompt.to(logits.device), logits.device
        position = torch.zeros(1, dtype=torch.int64, device=device)
        if self._seen is not None:
            self._seen.add(prompt)
        seen = None if self._seen is None else self._seen.rows(None)
        first = self.request.sampler(logits, position, seen)
        self._watch_thought()
        if self._closing is not None:
            first = self._closing.place(first, position, None)
        if self._seen is not None:
            self._seen.add(first)
        self.target.begin(prompt, first, features[-1:])
        chunks = None
        if self.retrieval is not None and self.retrieval.is_needed(prompt.shape[0]):
            selection = self.target.select(self.retrieval, None)
            self.drafter.refocus(selection)
            chunks = _chunk_numbers(selection.chunks)
        self._tune()  # after the prompt's last query was used: measuring overwrites it
        return Emitted(*self._commit(first.tolist()), retrieved_chunks=chunks)

    def _tune(self) -> None:
        """Tell those who decide what steps cost here."""
        costs = None
        if self._costs is not None and self.request.max_tokens > 1:
            start = now(self.target.model.device)
            costs = self._costs.of(self.target)
            self.tune_s = now(self.target.model.device) - start
            if self.governor is not None:
                self.governor.plain_s = costs.verify_s(1)
        self.drafter.begin(costs)

    def _launch(self, number: int) -> Step:
        drafter = self.drafter if self._is_drafting else None
        retrieval, length = self.retrieval, self.target.cache.length
        is_due = retrieval is not None and retrieval.due(number) and retrieval.is_needed(length)
        return launch(
            self.target,
            drafter,
            self.request.sampler,
            seen=self._seen,
            closing=self._closing,
            retrieval=retrieval if is_due else None,
        )

    def _settle(self, step: Step) -> Emitted:
        """What a launched step did, cut by the stop rule."""
        settled = settle(step, self.target, self.drafter, self._last_clock)
        began, stats = time.perf_counter(), settled.stats
        self._last_clock = step.clock
        tree = None
        if self._records_trees:
            nodes = tuple(step.tree.tokens.tolist()), tuple(step.tree.parents.tolist())
            tree = StepTree(*nodes, path=tuple(step.path.tolist()), bonus=settled.tokens[-1])
        tokens, reason = self._commit(settled.tokens)
        host_s = time.perf_counter() - began
        if settled.is_timed:  # what the device waited, without what the consumer took
            host_s = max(0.0, stats.host_s - self._away_s)
        self._away_s = 0.0
        stats = replace(stats, host_s=host_s)
        if self.governor is not None and step.is_warm:
            self.governor.observe(stats, step.drafted)
        return Emitted(tokens, reason, stats.cut(len(tokens)), settled.chunks, tree)

    @property
    def _is_drafting(self) -> bool:
        if self._bounds.is_undecided:  # a tree could go past the place where a thought is closed
            return False
        return self.governor is None or self.governor.drafting

    def _commit(self, tokens: list[int]) -> tuple[list[int], FinishReason | None]:
        """Apply the stop rule to tokens of the target, then give them to the drafter."""
        reason: FinishReason | None = "interrupted" if self._cancelled else None
        for index, token in enumerate(tokens):
            if token in self.request.end_tokens:
                tokens, reason = tokens[:index], "eos"
                break
        # Also when an end token comes right after the budget: plain decoding would not see it.
        if (fitting := self._bounds.take(tokens)) is not None:
            tokens, reason = tokens[:fitting], "length"
        self._watch_thought()
        if reason is None:
            self.drafter.extend(tokens)
        return tokens, reason

    def _watch_thought(self) -> None:
        """Close the thought in time while one is open."""
        thought = self.request.thought
        if thought is None or thought.closing is None or not self._bounds.is_open:
            self._closing = None
        elif self._closing is None:
            device = self.target.model.device
            self._closing = Closing(thought.closing, thought.max_tokens, device)


def plain_logits(target: Target, tokens: Tensor, prompt_tokens: int, chunk_tokens: int) -> Tensor:
    """The logits [1, V] by which plain decoding chooses what follows ``tokens`` [n] int64, on the
    device of a fresh ``target``; the first ``prompt_tokens`` are the prompt, read by chunks.

    Step by step, as plain decoding goes. Reading all at once rounds otherwise: in half precision
    by as much as lies between two tokens that change places (0.05 at 16,384 tokens of a 7B shape).
    On a GPU the last bit may still differ, since a longer cache can be split among more programs.
    """
    prompt, output = tokens[:prompt_tokens], tokens[prompt_tokens:]
    for chunk in torch.split(prompt, chunk_tokens):
        logits, features = target.read(chunk)
    if not len(output):
        return logits
    target.begin(prompt, output[:1], features[-1:])
    for number in range(1, len(output)):
        known = output[number : number + 1]
        step = launch(target, None, lambda *_, known=known: known)
        settle(step, target, Drafter())
    return launch(target, None, lambda logits, *_: logits.argmax(dim=-1)).logits


class Seen:
    """Which tokens the repetition penalty applies to: prompt, output, and a node's ancestors."""

    def __init__(self, model: Model) -> None:
        self._flags = torch.zeros(model.shape.vocabulary, dtype=torch.bool, device=model.device)

    def add(self, tokens: Tensor) -> None:
        self._flags[tokens] = True

    def add_path(self, sample: Tensor, path: Path) -> None:
        """Add the target's tokens along ``path``."""
        tokens = sample[path.nodes]
        inside = torch.arange(tokens.shape[0], device=tokens.device) < path.count
        self._flags.index_fill_(0, torch.where(inside, tokens, tokens[0]), True)

    def rows(self, tree: TokenTree | None) -> Tensor:
        """[n, V] bool for the nodes of ``tree``, or [1, V] for the prompt alone."""
        if tree is None:
            return self._flags[None]
        rows = self._flags.repeat(tree.size, 1)
        tokens = tree.tokens.clamp(min=0)
        # For every pair of nodes the second one's token if it is an ancestor, else the first's.
        return rows.scatter_(1, torch.where(tree.mask, tokens[None], tokens[:, None]), True)


def _chunk_numbers(chunks: Tensor) -> tuple[int, ...]:
    """On the host, without the padding of a selection."""
    return tuple(chunk for chunk in chunks.tolist() if chunk >= 0)
