"""Runs the cells of a plan in order and keeps each sample as soon as it is there.

In: a plan, texts, a way to load a preset, a journal. Out: events while it works; the journal holds
the rest.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from specx.bench.engine_runner import Interrupted, Subject
from specx.bench.journal import (
    DifferenceLine,
    FloorLine,
    Journal,
    MissingLine,
    NotesLine,
    SampleLine,
)
from specx.bench.modes import Variant
from specx.bench.schema import BenchCell, Place, Plan, Sample
from specx.errors import ResourceError
from specx.prompts import Prompt

_LONG_RUN_S = 60.0  # a run that is worth measuring the hardware twice


@dataclass(frozen=True, slots=True)
class Loading:
    """A preset's weights are about to be read."""

    preset: str


@dataclass(frozen=True, slots=True)
class Running:
    """A cell is about to run; ``is_warmup``: its time will be thrown away."""

    cell: BenchCell
    is_warmup: bool
    done: int
    total: int
    left_s: float | None  # predicted time of the cells that are left; None: nothing known yet


@dataclass(frozen=True, slots=True)
class Measured:
    """A cell is in the journal."""

    sample: Sample
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Missed:
    """A cell that cannot be run, and why."""

    cell: BenchCell
    reason: str


Event = Loading | Running | Measured | Missed


class Runner:
    """One pass over a plan. ``stopped`` says why it ended early: "", "budget", "interrupted"."""

    def __init__(
        self,
        plan: Plan,
        variants: Mapping[str, Variant],
        texts: Sequence[str],
        load: Callable[[str], Subject],
        journal: Journal,
        *,
        budget_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``load`` opens a preset of the plan by name; one at a time is held."""
        self._plan, self._variants, self._texts = plan, variants, texts
        self._load, self._journal, self._budget_s, self._clock = load, journal, budget_s, clock
        self._subject: Subject | None = None
        self._began = clock()
        self._before_s = journal.finished.elapsed_s
        self._costs_s: dict[Place, float] = {}  # newest durations
        self._done = sum(self._is_known(cell) for cell in plan.cells())
        self._is_cancelled = False
        self.stopped = ""

    @property
    def elapsed_s(self) -> float:
        """Running time of the bench, earlier sessions of the journal included."""
        return self._before_s + self._clock() - self._began

    def cancel(self) -> None:
        """End after the step under way; safe from a signal handler."""
        self._is_cancelled = True
        if self._subject is not None:
            self._subject.cancel()

    def run(self) -> Iterator[Event]:
        """Every cell that the journal does not have yet. Raises ``SpecxError``."""
        try:
            for preset in self._plan.presets:
                groups = [
                    [cell for cell in group if not self._is_known(cell)]
                    for group in self._plan.groups(preset.name)
                ]
                if not any(groups) and self._has_floors(preset.name):
                    continue
                yield Loading(preset.name)
                self._subject = self._load(preset.name)
                if self._is_cancelled:
                    raise Interrupted
                self._journal.keep(NotesLine(preset=preset.name, notes=self._subject.notes))
                self._measure_floors(self._subject, again=False)
                for group in groups:
                    if group:
                        yield from self._group(self._subject, group)
                if self._clock() - self._began > _LONG_RUN_S:
                    # What slowed this machine at the start must not stay as its floor.
                    self._measure_floors(self._subject, again=True)
                self._subject = None
        except Interrupted:
            self.stopped = "interrupted"
        except _BudgetSpent:
            self.stopped = "budget"

    def _group(self, subject: Subject, group: list[BenchCell]) -> Iterator[Event]:
        """Cells with one prompt, and then the comparison with plain decoding."""
        first = group[0]
        prompt = subject.prompt(self._texts[first.document], first.length)
        if prompt is None:
            for cell in group:
                yield self._miss(cell, "the document is too short")
            return
        for cell in group:
            self._check_budget(cell)
            yield from self._cell(subject, cell, prompt)
        if self._plan.verify:
            self._compare(subject, group, prompt)

    def _cell(self, subject: Subject, cell: BenchCell, prompt: Prompt) -> Iterator[Event]:
        variant = self._variants[cell.mode]
        try:
            for to_come in range(self._runs_of(cell), 0, -1):
                yield self._running(cell, is_warmup=to_come > 1)
                began = self._clock()
                sample = subject.run(cell, variant, prompt)
                self._costs_s[cell.place] = self._clock() - began
        except ResourceError as error:
            yield self._miss(cell, error.reason or error.message)
            return
        self._done += 1
        self._journal.keep(SampleLine(elapsed_s=self.elapsed_s, sample=sample))
        yield Measured(sample, self._done, self._plan.size)

    def _compare(self, subject: Subject, group: list[BenchCell], prompt: Prompt) -> None:
        """Where an output is not plain decoding's, find the first token and its margin."""
        samples = self._journal.finished.samples
        plain = samples.get(group[0].model_copy(update={"mode": "plain"}))
        for cell in group:
            sample = samples.get(cell)
            if plain is None or sample is None or sample.tokens == plain.tokens:
                continue
            found = subject.difference(prompt, plain.tokens, sample.tokens)
            if found is not None:
                self._journal.keep(DifferenceLine(cell=cell, difference=found))

    def _measure_floors(self, subject: Subject, *, again: bool) -> None:
        for length in self._plan.lengths:
            self._journal.keep(FloorLine(floor=subject.floor(length, again=again)))

    def _has_floors(self, preset: str) -> bool:
        floors = self._journal.finished.floors
        return all((preset, length) in floors for length in self._plan.lengths)

    def _is_known(self, cell: BenchCell) -> bool:
        finished = self._journal.finished
        return cell in finished.samples or cell in finished.missing

    def _miss(self, cell: BenchCell, reason: str) -> Missed:
        self._journal.keep(MissingLine(cell=cell, reason=reason))
        self._done += 1
        return Missed(cell, reason)

    def _check_budget(self, cell: BenchCell) -> None:
        if self._budget_s is None:
            return
        spent_s = self._clock() - self._began
        if spent_s + self._runs_of(cell) * self._predicted_s(cell) > self._budget_s:
            raise _BudgetSpent

    def _running(self, cell: BenchCell, *, is_warmup: bool) -> Running:
        left = [each for each in self._plan.cells() if not self._is_known(each)]
        first = {each.place: each for each in reversed(left)}.values()
        runs = [*left, *(each for each in first for _ in range(self._runs_of(each) - 1))]
        left_s = sum(map(self._predicted_s, runs)) if self._costs_s else None
        return Running(cell, is_warmup, self._done, self._plan.size, left_s)

    def _runs_of(self, cell: BenchCell) -> int:
        """How often ``cell`` runs: the first of its cost is warmed up before."""
        return 1 if cell.place in self._costs_s else 1 + self._plan.warmup

    def _predicted_s(self, cell: BenchCell) -> float:
        """What this mode took at this length, else another mode there, else by proportion; 0 where
        nothing has run."""
        if not self._costs_s:
            return 0.0
        nearest = min(
            self._costs_s, key=lambda at: (at != cell.place, abs(at.length - cell.length))
        )
        return self._costs_s[nearest] * cell.length / nearest.length


class _BudgetSpent(Exception):
    """The next cell would end after the budget."""
