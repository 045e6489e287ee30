"""The same document through several pairs of preset and mode, one run after another.

In: words such as ``spec`` or ``qwen3-8b:specx+window``, a document and what to do with it. Out:
events while it runs, one ``LiveRun`` each, and a ``LiveComparison``.

Runs do not overlap: they would share one processor, and each would slow the others down.
"""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from specx._version import __version__
from specx.bench.modes import BASES, GROUPS, WITNESSES, Variant, parse_mode
from specx.bench.schema import (
    LiveAcceptance,
    LiveComparison,
    LiveInput,
    LiveRates,
    LiveRow,
    LiveTimes,
    MachineFacts,
    first_difference,
    memory_bytes,
    ratio_of,
)
from specx.core.config import SamplingConfig
from specx.core.stats import GenerationStats, Prefill
from specx.errors import UsageError
from specx.preset.preset import Preset, available_presets, load_preset
from specx.preset.yaml import did_you_mean
from specx.trace.result import Remark, TokenCounts, source_facts

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Difference, Result, Stream, TextChunk

WARMUP_PROMPT_TOKENS = 512
WARMUP_NEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Contestant:
    """What runs. ``source`` is the preset as it was named: a name or a file."""

    title: str
    source: str
    preset: Preset
    variant: Variant


@dataclass(frozen=True, slots=True)
class Task:
    """What every contestant is asked; ``instruction`` None is its preset's own summary request."""

    document: str
    instruction: str | None
    max_tokens: int
    sampling: SamplingConfig
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One finished run, and how its text relates to the first run's.

    ``equal`` is None for the first run and where texts cannot be compared; ``why`` says why not.
    """

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
    """A contestant has entered a phase of its turn."""

    index: int
    phase: Literal["loading", "warming up", "reading"]


@dataclass(frozen=True, slots=True)
class Progressed:
    """The running contestant has read or written a little more."""

    index: int
    event: "Prefill | TextChunk"


@dataclass(frozen=True, slots=True)
class Ended:
    """A contestant is through."""

    index: int
    run: LiveRun


Event = Began | Progressed | Ended


def parse_contestants(
    words: Sequence[str], preset: str | Preset, overrides: Mapping[str, object] | None = None
) -> list[Contestant]:
    """``MODE``, ``PRESET:MODE`` or ``PRESET:`` (its own mode) as contestants, in order.

    A preset's path may hold colons: the last one counts. No words mean plain and specx of
    ``preset``, and before a single one goes plain decoding of its preset. Raises ``UsageError``.
    """
    own = preset if isinstance(preset, str) else preset.name
    pairs = [_split(word, own) for word in words] or [(own, "plain"), (own, "specx")]
    if len(pairs) == 1 and pairs[0][1] != "plain":
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
    if len(titles) < 2:
        raise UsageError(
            f"{titles[0]} alone cannot be compared", hints=("add --with specx, for example",)
        )
    contestants = zip(titles, found, strict=True)
    return [Contestant(title, *rest) for title, rest in contestants]


def _split(word: str, preset: str) -> tuple[str, str]:
    source, colon, mode = word.rpartition(":")
    if not word:
        raise UsageError("--with is empty", hints=("--with specx, for example",))
    if not colon:
        return preset, word
    if not source:
        raise UsageError(
            f"no preset before the colon in {word!r}", hints=(f"--with {mode or 'specx'}",)
        )
    return source, mode


def _variant(mode: str, preset: Preset) -> Variant:
    base = mode.partition("+")[0]
    if mode == "":
        return parse_mode(preset.mode)
    if mode in WITNESSES:
        raise UsageError(
            f"{mode} cannot be compared live",
            reason=f"{mode} is {WITNESSES[mode]}, which specx does not run step by step",
            hints=(f"specx bench --modes plain,{mode} measures it",),
        )
    if base not in BASES:
        raise _unknown(mode, base)
    return parse_mode(mode)


def _unknown(mode: str, base: str) -> UsageError:
    presets = [entry.name for entry in available_presets()]
    hints = []
    if mode in GROUPS:
        hints.append(f"{mode} is a group of modes for specx bench; name single ones here")
    elif "," in mode:
        hints.append(" ".join(f"--with {name}" for name in mode.split(",")))
    elif base in presets or base.lower().endswith((".yaml", ".yml")):
        hints.append(f"--with {base}: with a colon at its end is that preset in its own mode")
    else:
        hints += did_you_mean(base, [*BASES, *presets])
    return UsageError(
        f"unknown mode {mode!r}",
        hints=(*hints, f"modes: {', '.join(BASES)}", "with a part: specx+window, standard+hybrid"),
    )


class Race:
    """The runs of one document. Iterate over ``events``; ``runs`` grows meanwhile.

    A model pair is loaded once and given up after its last turn.
    """

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
        """Run everybody. Raises ``SpecxError``; finished runs remain in ``runs``."""
        for index, contestant in enumerate(self.contestants):
            if self._is_cancelled:
                return
            yield from self._turn(index, contestant)
            awaited = {each.source for each in self.contestants[index + 1 :]}
            if contestant.source not in awaited:
                self._engines.pop(contestant.source, None)

    def _turn(self, index: int, contestant: Contestant) -> Iterator[Event]:
        if contestant.source not in self._engines:
            yield Began(index, "loading")
            from specx.engine import load  # imports torch

            task = self.task
            self._engines[contestant.source] = load(
                contestant.preset, device=task.device, dtype=task.dtype, offline=task.offline
            )
        engine = self._engines[contestant.source]
        prompt = engine.prompt(self.task.document, self.task.instruction)
        yield Began(index, "warming up")
        self._warm_up(engine, prompt, contestant.variant)
        if self._is_cancelled:
            return
        yield Began(index, "reading")
        stream = self._start(engine, prompt, contestant.variant, self.task.max_tokens)
        for event in stream:
            yield Progressed(index, event)
        self._stream = None
        run = self._judged(contestant, engine, prompt, stream.result)
        self.runs.append(run)
        yield Ended(index, run)

    def _warm_up(self, engine: "Engine", prompt: "Prompt", variant: Variant) -> None:
        """A few steps on the prompt's beginning: what is paid once, no run shall pay."""
        beginning = replace(prompt, tokens=prompt.tokens[:WARMUP_PROMPT_TOKENS])
        few = min(WARMUP_NEW_TOKENS, self.task.max_tokens)
        for _ in self._start(engine, beginning, variant, few, ignore_eos=True):
            pass
        self._stream = None

    def _start(
        self,
        engine: "Engine",
        prompt: "Prompt",
        variant: Variant,
        max_tokens: int,
        *,
        ignore_eos: bool = False,
    ) -> "Stream":
        self._stream = engine.stream(
            prompt,
            mode=variant.mode,
            parts=variant.parts,
            max_tokens=max_tokens,
            sampling=self.task.sampling,
            ignore_eos=ignore_eos,
        )
        if self._is_cancelled:  # the signal came while the stream was being made
            self._stream.cancel()
        return self._stream

    def _judged(
        self, contestant: Contestant, engine: "Engine", prompt: "Prompt", result: "Result"
    ) -> LiveRun:
        run = LiveRun(contestant, result, prompt, engine.device, engine.dtype, engine.remarks)
        if not self.runs:
            return run
        first = self.runs[0]
        if why := _incomparable(first, run):
            return replace(run, why=why)
        expected, got = first.result.tokens, result.tokens
        is_partial = "interrupted" in (first.result.finish_reason, result.finish_reason)
        if is_partial:  # what both have can still differ
            common = min(len(expected), len(got))
            expected, got = expected[:common], got[:common]
        difference = engine.difference(prompt, expected, got, sampling=self.task.sampling)
        if difference is None:
            return replace(run, why="interrupted") if is_partial else replace(run, equal=True)
        words = [
            "" if token is None else engine.tokenizer.decode([token])
            for token in (difference.expected, difference.got)
        ]
        return replace(
            run, equal=False, difference=difference, expected_text=words[0], got_text=words[1]
        )


def _incomparable(first: LiveRun, run: LiveRun) -> str:
    """Why two texts need not be the same; "" if they must be."""
    one, other = first.contestant.preset.target, run.contestant.preset.target
    if (one.repo, one.revision) != (other.repo, other.revision):
        return "another target"
    if first.dtype != run.dtype:
        return "another dtype"
    return "another prompt" if run.prompt.tokens != first.prompt.tokens else ""


def speedup(run: LiveRun, first: LiveRun, rate: str = "decode_tok_s") -> float | None:
    """A rate over the first run's; None for the first run and where a rate is missing."""
    mine, other = (getattr(rates(each.result.stats), rate) for each in (run, first))
    return None if run is first or None in (mine, other) else ratio_of(mine, other)


def end_to_end_speedup(run: LiveRun, first: LiveRun) -> float | None:
    """The same for the rate over the whole request."""
    return speedup(run, first, "end_to_end_tok_s")


def rates(stats: GenerationStats) -> LiveRates:
    """Tokens per second; None where nothing was read or written to the end."""
    if not stats.new_tokens:  # ended while reading: the prompt was not read as a whole
        return LiveRates(prefill_tok_s=None, decode_tok_s=None, end_to_end_tok_s=None)
    return LiveRates(
        prefill_tok_s=stats.prefill_tokens_per_s or None,
        decode_tok_s=stats.decode_tokens_per_s or None,
        end_to_end_tok_s=stats.end_to_end_tokens_per_s or None,
    )


def live_comparison(
    runs: Sequence[LiveRun], document: "Document", environment: Mapping[str, Any]
) -> LiveComparison:
    """At least one finished run as what is written to a file."""
    return LiveComparison(
        specx={"version": __version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        input=LiveInput(**source_facts(document, runs[0].prompt).model_dump()),
        env=MachineFacts(**environment),
        runs=[_live_row(run, runs[0]) for run in runs],
    )


def _live_row(run: LiveRun, first: LiveRun) -> LiveRow:
    stats = run.result.stats
    return LiveRow(
        preset=run.contestant.preset.name,
        mode=run.contestant.variant.name,
        text=run.result.text,
        finish_reason=run.result.finish_reason,
        tokens=TokenCounts(prompt=stats.prompt_tokens, new=stats.new_tokens),
        time_s=LiveTimes(**{name: getattr(stats, f"{name}_s") for name in LiveTimes.model_fields}),
        rate=rates(stats),
        accept=LiveAcceptance(
            steps=len(stats.steps),
            drafted=stats.drafted,
            accepted=stats.accepted,
            accepted_per_step=stats.accepted_per_step if stats.steps else None,
            tokens_per_step=stats.tokens_per_step if stats.steps else None,
        ),
        memory=memory_bytes(stats.memory),
        speedup=speedup(run, first),
        end_to_end_speedup=end_to_end_speedup(run, first),
        equal=run.equal,
        first_difference=first_difference(run.difference),
        warnings=[Remark(message=message) for message in (*run.remarks, *run.result.warnings)],
    )
