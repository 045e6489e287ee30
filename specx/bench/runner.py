"""Runs the cells of a plan in order and keeps each sample as soon as it is there.

In: a plan, texts, a way to load a preset, a journal. Out: events while it works; the journal holds
the rest.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from specx.bench.engine_runner import Subject
from specx.bench.journal import (
    DifferenceLine,
    FloorLine,
    Journal,
    MissingLine,
    NotesLine,
    SampleLine,
)
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


class Interrupted(Exception):
    """The bench ends here, without a sample of the cell; the text says why."""


Event = Loading | Running | Measured | Missed


class Runner:
    """One pass over a plan. ``stopped`` says why it ended early: "", "budget", "interrupted"."""

    def __init__(
        self,
        plan: Plan,
        texts: Sequence[str],
        load: Callable[[str], Subject],
        journal: Journal,
        *,
        budget_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``load`` opens a preset of the plan by name; one at a time is held."""
        self._plan, self._texts, self._load, self._journal = plan, texts, load, journal
        self._budget_s, self._clock, self._began = budget_s, clock, clock()
        self._before_s = journal.finished.elapsed_s
        self._costs_s: dict[Place, float] = {}  # newest durations
        self._is_cancelled = False
        self.stopped = ""

    @property
    def elapsed_s(self) -> float:
        """Running time of the bench, earlier sessions of the journal included."""
        return self._before_s + self._spent_s

    @property
    def _spent_s(self) -> float:
        return self._clock() - self._began

    def cancel(self) -> None:
        """End after the step under way; safe from a signal handler."""
        self._is_cancelled = True

    def _check(self) -> None:
        if self._is_cancelled:
            raise Interrupted("interrupted")

    def run(self) -> Iterator[Event]:
        """Every cell that the journal does not have yet. Raises ``SpecxError``."""
        try:
            for preset in self._plan.presets:
                yield from self._preset(preset.name)
        except Interrupted as error:
            self.stopped = str(error)

    def _preset(self, name: str) -> Iterator[Event]:
        groups = [[*filter(self._is_left, group)] for group in self._plan.groups(name)]
        floors = self._journal.finished.floors
        if not any(groups) and all((name, length) in floors for length in self._plan.lengths):
            return
        yield Loading(name)
        subject = self._load(name)
        self._check()
        self._journal.keep(NotesLine(preset=name, notes=subject.notes))
        self._measure_floors(subject, again=False)
        for group in filter(None, groups):
            yield from self._group(subject, group)
        if self._spent_s > _LONG_RUN_S:
            # What slowed this machine at the start must not stay as its floor.
            self._measure_floors(subject, again=True)

    def _measure_floors(self, subject: Subject, *, again: bool) -> None:
        for length in self._plan.lengths:
            self._journal.keep(FloorLine(floor=subject.floor(length, again=again)))

    def _group(self, subject: Subject, group: list[BenchCell]) -> Iterator[Event]:
        """Cells with one prompt, and then the comparison with plain decoding."""
        prompt = subject.prompt(self._texts[group[0].document], group[0].length)
        for cell in group:
            if prompt is None:
                yield self._miss(cell, "the document is too short")
                continue
            runs_s = self._runs_of(cell) * self._predicted_s(cell)
            if self._budget_s is not None and self._spent_s + runs_s > self._budget_s:
                raise Interrupted("budget")
            yield from self._cell(subject, cell, prompt)
        if self._plan.verify and prompt is not None:
            self._compare(subject, group, prompt)

    def _cell(self, subject: Subject, cell: BenchCell, prompt: Prompt) -> Iterator[Event]:
        try:
            for to_come in range(self._runs_of(cell), 0, -1):
                yield Running(cell, to_come > 1, self._done, self._left_s())
                began = self._clock()
                sample = subject.run(cell, prompt, self._check)
                self._costs_s[cell.place] = self._clock() - began
        except ResourceError as error:
            yield self._miss(cell, error.reason or error.message)
            return
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

    def _miss(self, cell: BenchCell, reason: str) -> Missed:
        self._journal.keep(MissingLine(cell=cell, reason=reason))
        return Missed(cell, reason)

    @property
    def _done(self) -> int:
        return len(self._journal.finished.samples) + len(self._journal.finished.missing)

    def _is_left(self, cell: BenchCell) -> bool:
        finished = self._journal.finished
        return cell not in finished.samples and cell not in finished.missing

    def _left_s(self) -> float | None:
        if not self._costs_s:
            return None
        left = [*filter(self._is_left, self._plan.cells())]
        warmups = {cell.place: cell for cell in left}.values()
        runs = [*left, *(cell for cell in warmups for _ in range(self._runs_of(cell) - 1))]
        return sum(map(self._predicted_s, runs))

    def _runs_of(self, cell: BenchCell) -> int:
        """How often ``cell`` runs: the first of its cost is warmed up before."""
        return 1 if cell.place in self._costs_s else 1 + self._plan.warmup

    def _predicted_s(self, cell: BenchCell) -> float:
        """What this mode took at this length, else another mode there, else by proportion; 0 where
        nothing has run."""
        nearest = min(
            self._costs_s,
            key=lambda at: (at != cell.place, abs(at.length - cell.length)),
            default=None,
        )
        return 0.0 if nearest is None else self._costs_s[nearest] * cell.length / nearest.length
