"""Runs the cells of a plan in order and keeps each sample as soon as it is there. In: a plan,
texts, a way to load a preset, a journal. Out: events while it works; the journal holds the rest."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from specx.bench import journal as on_disk
from specx.bench import schema
from specx.bench.data import cut_prompt
from specx.bench.journal import Journal
from specx.bench.modes import WITNESSES, parse_mode
from specx.bench.prepare import Setup
from specx.bench.roofline import measure_floor
from specx.bench.schema import BenchCell, BenchDifference, Floor, Phases, Place, Plan, Sample
from specx.bench.transformers_baseline import Witnesses
from specx.core.stats import GenerationStats
from specx.engine import Engine, load
from specx.errors import ResourceError
from specx.prompts import Prompt
from specx.standin import build as standin
from specx.stream import TextChunk

#: What a sample has from the engine's own record; the rest is timed from outside.
_TIMED = ("prefill_target_s", "prefill_draft_s", "tune_s")
_COUNTED = ("prompt_tokens", "drafted", "accepted", "copied", *_TIMED)
Check = Callable[[], None]  # called after every chunk and step; may raise what ends the run


class Subject:
    """A preset of a plan: an engine, and transformers' own generation on copies where asked."""

    def __init__(self, setup: Setup, name: str) -> None:
        """Read the preset's weights, or build the stand-in's. Raises ``SpecxError``."""
        self._setup, self._plan = setup, setup.plan
        self._witnesses: Witnesses | None = None
        self._witness_pair = None  # where the models cannot be loaded once more
        preset, options = setup.presets[name], setup.options
        device, dtype = self._plan.device, options.dtype
        if options.stand_in:
            pair = standin.load_pair(preset, device=device, dtype=dtype)
            if any(mode in WITNESSES for mode in self._plan.modes):
                self._witness_pair = standin.twin(pair)
            self._engine = Engine(preset, pair)
        else:
            self._engine = load(preset, device=device, dtype=dtype, offline=options.offline)
        self.notes = self._engine.notes

    def prompt(self, text: str, tokens: int) -> Prompt | None:
        found = cut_prompt(self._engine, text, tokens)
        # Every token counts alike, and a remark about the prompt is no reason not to measure.
        return None if found is None else replace(found, thoughts=None, warnings=())

    def run(self, cell: BenchCell, prompt: Prompt, check: Check) -> Sample:
        """Prefill and decode are timed apart: the first token ends the prefill, and the device has
        finished its work when a token is seen. Raises ``ResourceError`` out of memory."""
        joules = [self._joules()]  # before the prompt, after it, at the end

        def on_tokens() -> None:
            check()
            if len(joules) == 1:
                joules.append(self._joules())

        if cell.mode in WITNESSES:
            sample = self._witness(cell, prompt, on_tokens)
        else:
            sample = self._run(cell, prompt, check, on_tokens)
        before, between, after = *joules, self._joules()
        if before is None or between is None or after is None:
            return sample
        energy = schema.Joules(prefill=max(0.0, between - before), decode=max(0.0, after - between))
        return sample.model_copy(update={"energy": energy})

    def _joules(self) -> float | None:
        return None if self._setup.energy is None else self._setup.energy.read_joules()

    def difference(
        self, prompt: Prompt, plain: Sequence[int], tokens: Sequence[int]
    ) -> BenchDifference | None:
        found = self._engine.difference(prompt, plain, tokens, sampling=self._plan.sampling)
        return None if found is None else BenchDifference.of(found)

    def floor(self, length: int, *, again: bool) -> Floor:
        engine = self._engine
        return measure_floor(engine.preset, engine.target, engine.draft, length, again=again)

    def _run(self, cell: BenchCell, prompt: Prompt, check: Check, on_tokens: Check) -> Sample:
        variant, began = parse_mode(cell.mode), time.perf_counter()
        stream = self._engine.stream(
            prompt,
            mode=variant.mode,
            parts=variant.parts,
            max_tokens=self._plan.max_tokens,
            sampling=self._plan.sampling,
            ignore_eos=self._plan.ignore_eos,
        )
        first = last = began
        for event in stream:
            if isinstance(event, TextChunk):
                last = time.perf_counter()
                first = last if event.step is None else first
                on_tokens()
            else:
                check()
        result, stats = stream.result, stream.result.stats
        if result.tokens and result.warnings:
            # What gave way to something else must not be measured under its name.
            raise ResourceError(f"{cell.mode} cannot run", reason=result.warnings[0])
        return Sample(
            cell=cell,
            new_tokens=len(result.tokens),
            finish_reason=result.finish_reason,
            ttft_s=first - began,
            decode_s=last - first,
            total_s=last - began,
            steps=len(stats.steps),
            **{name: getattr(stats, name) for name in _COUNTED},
            draft_forwards=sum(len(step.draft_levels_s) for step in stats.steps),
            histogram=stats.accepted_histogram,
            phases=_phases(stats, last - first),
            memory=schema.MemoryBytes.of(stats.memory, "_bytes"),
            tokens=list(result.tokens),
            mode_reason=result.mode_reason,
        )

    def _witness(self, cell: BenchCell, prompt: Prompt, on_tokens: Check) -> Sample:
        plan, engine = self._plan, self._engine
        if self._witnesses is None:
            offline, pair = self._setup.options.offline, self._witness_pair
            self._witnesses = Witnesses(engine.preset, engine.device, engine.dtype, offline, pair)
        return self._witnesses.run(cell, prompt.tokens, plan.max_tokens, plan.ignore_eos, on_tokens)


def _phases(stats: GenerationStats, decode_s: float) -> Phases:
    """Where ``decode_s`` went; what no step accounts for is the host's."""
    spent = stats.phases_s
    draft_s, _ = spent.pop("draft"), spent.pop("host")
    by_level = zip_longest(*(step.draft_levels_s for step in stats.steps), fillvalue=0.0)
    levels = [sum(level) for level in by_level]
    return Phases(
        draft_levels=levels,
        draft_tree=max(0.0, draft_s - sum(levels)),
        host=max(0.0, decode_s - draft_s - sum(spent.values())),
        **spent,
    )


@dataclass(frozen=True, slots=True)
class Loading:
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
        self._journal.keep(on_disk.NotesLine(preset=name, notes=subject.notes))
        self._measure_floors(subject, again=False)
        for group in filter(None, groups):
            yield from self._group(subject, group)
        if self._spent_s > 60:  # what slowed this machine at the start must not stay as its floor
            self._measure_floors(subject, again=True)

    def _measure_floors(self, subject: Subject, *, again: bool) -> None:
        for length in self._plan.lengths:
            self._journal.keep(on_disk.FloorLine(floor=subject.floor(length, again=again)))

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
        self._journal.keep(on_disk.SampleLine(elapsed_s=self.elapsed_s, sample=sample))
        yield Measured(sample, self._done, self._plan.size)

    def _compare(self, subject: Subject, group: list[BenchCell], prompt: Prompt) -> None:
        """Where an output is not plain decoding's, find the first token and its margin."""
        samples = self._journal.finished.samples
        plain = samples.get(group[0].model_copy(update={"mode": "plain"}))
        for cell in group:
            sample = samples.get(cell)
            if plain is None or sample is None or sample.tokens == plain.tokens:
                continue
            if found := subject.difference(prompt, plain.tokens, sample.tokens):
                self._journal.keep(on_disk.DifferenceLine(cell=cell, difference=found))

    def _miss(self, cell: BenchCell, reason: str) -> Missed:
        self._journal.keep(on_disk.MissingLine(cell=cell, reason=reason))
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
        if not self._costs_s:
            return 0.0
        nearest = min(
            self._costs_s, key=lambda at: (at != cell.place, abs(at.length - cell.length))
        )
        return self._costs_s[nearest] * cell.length / nearest.length
