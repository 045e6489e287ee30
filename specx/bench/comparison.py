"""The same document through several pairs of preset and mode, one run after another. Runs do not
overlap: they would share one processor, and each would slow the others down."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from specx._version import __version__
from specx.bench.modes import BASES, GROUPS, WITNESSES, Variant, parse_mode
from specx.bench.schema import BenchDifference, LiveComparison, LiveRow, MachineFacts, ratio_of
from specx.core.config import SamplingConfig
from specx.core.stats import Prefill
from specx.errors import UsageError
from specx.preset.preset import Preset, available_presets, load_preset
from specx.preset.yaml import did_you_mean
from specx.trace.records import Program
from specx.trace.result import measured, source_facts
from specx.trace.result import rates as rates

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Difference, Result, Stream, TextChunk

WARMUP_PROMPT_TOKENS = 512
WARMUP_NEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Contestant:
    title: str
    source: str  # the preset as it was named: a name or a file
    preset: Preset
    variant: Variant


@dataclass(frozen=True, slots=True)
class Task:
    document: str
    instruction: str | None  # None: the preset's own summary request
    max_tokens: int
    sampling: SamplingConfig
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One finished run, and how its text relates to the first run's. ``equal`` is None for the
    first run and where texts cannot be compared; ``why`` says why not."""

    contestant: Contestant
    result: "Result"
    prompt: "Prompt"
    device: str
    dtype: str
    remarks: tuple[str, ...]  # the engine's
    equal: bool | None = None
    why: str = ""
    difference: "Difference | None" = None
    expected_text: str = ""  # the two tokens on which the texts part; "" is the end of a text
    got_text: str = ""


@dataclass(frozen=True, slots=True)
class Began:
    index: int
    phase: Literal["loading", "warming up", "reading"]


@dataclass(frozen=True, slots=True)
class Progressed:
    index: int
    event: "Prefill | TextChunk"


@dataclass(frozen=True, slots=True)
class Ended:
    index: int
    run: LiveRun


Event = Began | Progressed | Ended


def parse_contestants(
    words: Sequence[str], preset: str | Preset, overrides: Mapping[str, object] | None = None
) -> list[Contestant]:
    """``MODE``, ``PRESET:MODE`` or ``PRESET:`` (its own mode) as contestants, in order. A preset's
    path may hold colons: the last one counts. No words mean plain and specx of ``preset``, and
    before a single one goes plain decoding of its preset. Raises ``UsageError``."""
    own = preset if isinstance(preset, str) else preset.name
    pairs = [_split(word, own) for word in words] or [(own, "plain"), (own, "specx")]
    if [mode for _, mode in pairs] == ["plain"]:
        hint = "add --with specx, for example"
        raise UsageError("plain alone cannot be compared", hints=[hint])
    if len(pairs) == 1:
        pairs.insert(0, (pairs[0][0], "plain"))
    presets = {
        source: load_preset(preset if source == own else source, overrides or {})
        for source, _ in pairs
    }
    found = [(source, presets[source], _variant(mode, presets[source])) for source, mode in pairs]
    titles = [variant.name for _, _, variant in found]
    if len(presets) > 1:
        titles = [f"{preset.name}:{variant.name}" for _, preset, variant in found]
    if len(set(titles)) < len(titles):  # two files may carry the same name
        titles = [f"{source}:{variant.name}" for source, _, variant in found]
    for title in titles:
        if titles.count(title) > 1:
            raise UsageError(f"{title} is given twice", reason="a comparison needs differing runs")
    return [Contestant(title, *rest) for title, rest in zip(titles, found, strict=True)]


def _split(word: str, preset: str) -> tuple[str, str]:
    source, colon, mode = word.rpartition(":")
    if not word:
        raise UsageError("--with is empty", hints=["--with specx, for example"])
    if colon and not source:
        hint = f"--with {mode or 'specx'}"
        raise UsageError(f"no preset before the colon in {word!r}", hints=[hint])
    return (source, mode) if colon else (preset, word)


def _variant(mode: str, preset: Preset) -> Variant:
    base = (mode or preset.mode).partition("+")[0]
    if base in BASES:
        return parse_mode(mode or preset.mode)
    if mode in WITNESSES:
        raise UsageError(
            f"{mode} cannot be compared live",
            reason=f"{mode} is {WITNESSES[mode]}, which specx does not run step by step",
            hints=[f"specx bench --modes plain,{mode} measures it"],
        )
    presets = [entry.name for entry in available_presets()]
    hints = did_you_mean(base, [*BASES, *presets])
    if mode in GROUPS:
        hints = [f"{mode} is a group of modes for specx bench; name single ones here"]
    elif "," in mode:
        hints = [" ".join(f"--with {name}" for name in mode.split(","))]
    elif base in presets or base.lower().endswith((".yaml", ".yml")):
        hints = [f"--with {base}: with a colon at its end is that preset in its own mode"]
    known = [f"modes: {', '.join(BASES)}", "with a part: specx+window, standard+hybrid"]
    raise UsageError(f"unknown mode {mode!r}", hints=[*hints, *known])


class Race:
    """The runs of one document; a model pair is loaded once and given up after its last turn."""

    def __init__(self, contestants: Sequence[Contestant], task: Task) -> None:
        self.contestants, self.task = tuple(contestants), task
        self.runs: list[LiveRun] = []
        self._engines: dict[str, Engine] = {}
        self._stream: Stream | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """End after the current step; safe from a signal handler. No further run follows."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def events(self) -> Iterator[Event]:
        for index, contestant in enumerate(self.contestants):
            if self._is_cancelled:
                return
            yield from self._turn(index, contestant)
            if all(each.source != contestant.source for each in self.contestants[index + 1 :]):
                self._engines.pop(contestant.source, None)

    def _turn(self, index: int, contestant: Contestant) -> Iterator[Event]:
        task = self.task
        if contestant.source not in self._engines:
            yield Began(index, "loading")
            from specx.engine import load  # imports torch

            self._engines[contestant.source] = load(
                contestant.preset, device=task.device, dtype=task.dtype, offline=task.offline
            )
        engine = self._engines[contestant.source]
        prompt = engine.prompt(task.document, task.instruction)
        yield Began(index, "warming up")
        # A few steps on the prompt's beginning: what is paid once, no run shall pay.
        beginning = replace(prompt, tokens=prompt.tokens[:WARMUP_PROMPT_TOKENS], thoughts=None)
        few = min(WARMUP_NEW_TOKENS, task.max_tokens)
        for _ in self._start(engine, beginning, contestant.variant, few, ignore_eos=True):
            pass
        if self._is_cancelled:
            return
        yield Began(index, "reading")
        stream = self._start(engine, prompt, contestant.variant, task.max_tokens, ignore_eos=False)
        for event in stream:
            yield Progressed(index, event)
        self._stream = None
        known = (engine.device, engine.dtype, engine.remarks)
        run = self._judged(LiveRun(contestant, stream.result, prompt, *known), engine)
        self.runs.append(run)
        yield Ended(index, run)

    def _start(
        self, engine: "Engine", prompt: "Prompt", variant: Variant, limit: int, *, ignore_eos: bool
    ) -> "Stream":
        self._stream = engine.stream(
            prompt,
            mode=variant.mode,
            parts=variant.parts,
            max_tokens=limit,
            sampling=self.task.sampling,
            ignore_eos=ignore_eos,
        )
        if self._is_cancelled:  # the signal came while the stream was being made
            self._stream.cancel()
        return self._stream

    def _judged(self, run: LiveRun, engine: "Engine") -> LiveRun:
        """``run`` compared with the first one, where there is one."""
        if not self.runs:
            return run
        first = self.runs[0]
        if why := _incomparable(first, run):
            return replace(run, why=why)
        expected, got = first.result.tokens, run.result.tokens
        is_partial = "interrupted" in (first.result.finish_reason, run.result.finish_reason)
        if is_partial:  # what both have can still differ
            common = min(len(expected), len(got))
            expected, got = expected[:common], got[:common]
        found = engine.difference(run.prompt, expected, got, sampling=self.task.sampling)
        if found is None:
            return replace(run, why="interrupted") if is_partial else replace(run, equal=True)
        one, other = (
            "" if token is None else engine.tokenizer.decode([token])
            for token in (found.expected, found.got)
        )
        return replace(run, equal=False, difference=found, expected_text=one, got_text=other)


def _incomparable(first: LiveRun, run: LiveRun) -> str:
    """Why two texts need not be the same; "" if they must be."""
    one, other = first.contestant.preset.target, run.contestant.preset.target
    if (one.repo, one.revision) != (other.repo, other.revision):
        return "another target"
    if first.dtype != run.dtype:
        return "another dtype"
    return "another prompt" if run.prompt.tokens != first.prompt.tokens else ""


def speedup(run: LiveRun, first: LiveRun, *, overall: bool = False) -> float | None:
    """The rate of decoding, or of the whole request, over the first run's; None for the first run
    and where a rate is missing."""
    rate = "end_to_end_tok_s" if overall else "decode_tok_s"
    mine, other = (getattr(rates(each.result.stats), rate) for each in (run, first))
    return None if run is first or None in (mine, other) else ratio_of(mine, other)


def live_comparison(
    runs: Sequence[LiveRun], document: "Document", environment: Mapping[str, Any]
) -> LiveComparison:
    return LiveComparison(
        specx=Program(version=__version__),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        input=source_facts(document, runs[0].prompt),
        env=MachineFacts(**environment),
        runs=[_row(run, runs[0]) for run in runs],
    )


def _row(run: LiveRun, first: LiveRun) -> LiveRow:
    facts = measured(run.result, run.remarks)
    if not run.result.stats.steps:  # nothing is per step
        blank = dict.fromkeys(("accepted_per_step", "tokens_per_step"))
        facts["accept"] = facts["accept"].model_copy(update=blank)
    return LiveRow(
        preset=run.contestant.preset.name,
        mode=run.contestant.variant.name,
        speedup=speedup(run, first),
        end_to_end_speedup=speedup(run, first, overall=True),
        equal=run.equal,
        first_difference=BenchDifference.of(run.difference) if run.difference else None,
        **facts,
    )
