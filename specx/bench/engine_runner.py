"""What is measured: a loaded preset, asked to run one cell.

In: a cell and its prompt. Out: a ``Sample``. Prefill and decode are timed apart: the first token
ends the prefill, and the device has finished its work when a token is seen.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

from specx.bench.data import cut_prompt
from specx.bench.modes import WITNESSES, parse_mode
from specx.bench.prepare import Setup
from specx.bench.roofline import measure_floor
from specx.bench.schema import (
    BenchCell,
    BenchDifference,
    Floor,
    Joules,
    MemoryBytes,
    Phases,
    Sample,
)
from specx.bench.transformers_baseline import Witnesses
from specx.core.stats import GenerationStats
from specx.engine import Engine, load
from specx.errors import ResourceError
from specx.prompts import Prompt
from specx.standin import build as standin
from specx.stream import TextChunk

#: What a sample has from the engine's own record; the rest is timed from outside.
_COUNTED = (
    *("prompt_tokens", "prefill_target_s", "prefill_draft_s", "tune_s"),
    *("drafted", "accepted", "copied"),
)


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

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the preset's files."""
        return self._engine.notes

    def prompt(self, text: str, tokens: int) -> Prompt | None:
        """A prompt of ``tokens`` tokens over the beginning of ``text``; None: it is too short."""
        found = cut_prompt(self._engine, text, tokens)
        # Every token counts alike, and a remark about the prompt is no reason not to measure.
        return None if found is None else replace(found, thoughts=None, warnings=())

    def run(self, cell: BenchCell, prompt: Prompt, check: Callable[[], None]) -> Sample:
        """One run; ``check`` is called after every chunk and step and may raise what ends it.

        Raises ``ResourceError`` out of memory.
        """
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
        energy = Joules(prefill=max(0.0, between - before), decode=max(0.0, after - between))
        return sample.model_copy(update={"energy": energy})

    def _joules(self) -> float | None:
        return None if self._setup.energy is None else self._setup.energy.read_joules()

    def difference(
        self, prompt: Prompt, plain: Sequence[int], tokens: Sequence[int]
    ) -> BenchDifference | None:
        """Where ``tokens`` part from plain decoding's."""
        found = self._engine.difference(prompt, plain, tokens, sampling=self._plan.sampling)
        return None if found is None else BenchDifference.of(found)

    def floor(self, length: int, *, again: bool) -> Floor:
        """The least time that this hardware allows at ``length`` tokens; see ``measure_floor``."""
        engine = self._engine
        return measure_floor(engine.preset, engine.target, engine.draft, length, again=again)

    def _run(
        self,
        cell: BenchCell,
        prompt: Prompt,
        check: Callable[[], None],
        on_tokens: Callable[[], None],
    ) -> Sample:
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
            memory=MemoryBytes.of(stats.memory, "_bytes"),
            tokens=list(result.tokens),
            mode_reason=result.mode_reason,
        )

    def _witness(self, cell: BenchCell, prompt: Prompt, on_tokens: Callable[[], None]) -> Sample:
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
