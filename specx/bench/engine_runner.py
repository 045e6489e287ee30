"""What is measured: a loaded preset, asked to run one cell.

In: a cell's prompt and variant. Out: a ``Sample``. Prefill and decode are timed apart: the first
token ends the prefill, and the device has finished its work when a token is seen.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

from specx.bench.data import cut_prompt
from specx.bench.energy import GpuEnergy
from specx.bench.modes import Variant
from specx.bench.roofline import measure_floor
from specx.bench.schema import (
    BenchCell,
    BenchDifference,
    Floor,
    Joules,
    MemoryBytes,
    Phases,
    Plan,
    Sample,
)
from specx.bench.transformers_baseline import Witnesses
from specx.checkpoints.load import ModelPair
from specx.core.stats import GenerationStats
from specx.engine import Engine
from specx.errors import ResourceError
from specx.prompts import Prompt
from specx.stream import Stream, TextChunk

#: What a sample has from the engine's own record; the rest is timed from outside.
_COUNTED = (
    *("prompt_tokens", "prefill_target_s", "prefill_draft_s", "tune_s"),
    *("drafted", "accepted", "copied"),
)


class Interrupted(Exception):
    """The run was cancelled; there is no sample."""


class Subject:
    """A loaded preset: an engine, and transformers' own generation on copies where asked.

    ``witness_pair``: those copies, where they cannot be loaded once more.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        *,
        witness_pair: ModelPair | None = None,
        offline: bool = False,
        energy: GpuEnergy | None = None,
    ) -> None:
        self._engine, self._plan, self._energy = engine, plan, energy
        self._offline, self._witness_pair = offline, witness_pair
        self._stream: Stream | None = None
        self._is_cancelled = False
        self._witnesses: Witnesses | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the preset's files."""
        return self._engine.notes

    def prompt(self, text: str, tokens: int) -> Prompt | None:
        """A prompt of ``tokens`` tokens over the beginning of ``text``; None: it is too short."""
        return cut_prompt(self._engine, text, tokens)

    def run(self, cell: BenchCell, variant: Variant, prompt: Prompt) -> Sample:
        """One run. Raises ``Interrupted`` after ``cancel``, ``ResourceError`` out of memory."""
        if self._is_cancelled:
            raise Interrupted
        if variant.witness is not None:
            return self._witness(cell, variant, prompt)
        start_j, began = self._joules(), time.perf_counter()
        stream = self._stream = self._engine.stream(
            prompt,
            mode=variant.mode,
            parts=variant.parts,
            max_tokens=self._plan.max_tokens,
            sampling=self._plan.sampling,
            ignore_eos=self._plan.ignore_eos,
        )
        first = last = began
        first_j = start_j
        for event in stream:
            if not isinstance(event, TextChunk):
                continue
            last = time.perf_counter()
            if event.step is None:
                first, first_j = last, self._joules()
        if stream.result.finish_reason == "interrupted":
            raise Interrupted
        if stream.result.tokens and stream.result.warnings:
            # What gave way to something else must not be measured under its name.
            raise ResourceError(f"{variant.name} cannot run", reason=stream.result.warnings[0])
        energy = _joules(start_j, first_j, self._joules())
        return _sample(cell, stream, began, first, last, energy)

    def difference(
        self, prompt: Prompt, plain: Sequence[int], tokens: Sequence[int]
    ) -> BenchDifference | None:
        """Where ``tokens`` part from plain decoding's."""
        found = self._engine.difference(prompt, plain, tokens, sampling=self._plan.sampling)
        return None if found is None else BenchDifference.of(found)

    def floor(self, length: int, *, again: bool) -> Floor:
        """The least time that this hardware allows at ``length`` tokens.

        ``again``: measure the hardware once more and take the better figures.
        """
        engine = self._engine
        return measure_floor(engine.preset, engine.target, engine.draft, length, again=again)

    def cancel(self) -> None:
        """End the run under way; safe from a signal handler."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def _witness(self, cell: BenchCell, variant: Variant, prompt: Prompt) -> Sample:
        engine = self._engine
        assert variant.witness is not None
        if self._witnesses is None:
            self._witnesses = Witnesses(
                engine.preset,
                engine.device,
                engine.dtype,
                offline=self._offline,
                pair=self._witness_pair,
            )
        start_j = first_j = self._joules()

        def on_tokens(count: int) -> None:
            nonlocal first_j
            if self._is_cancelled:
                raise Interrupted
            if first_j is start_j:
                first_j = self._joules()

        run = self._witnesses.run(
            variant.witness, prompt.tokens, self._plan.max_tokens, self._plan.ignore_eos, on_tokens
        )
        return Sample(
            cell=cell,
            prompt_tokens=len(prompt.tokens),
            new_tokens=len(run.tokens),
            prefill_target_s=run.prefill_s,
            prefill_draft_s=0.0,
            ttft_s=run.prefill_s,
            drafted=None,
            energy=_joules(start_j, first_j, self._joules()),
            **asdict(run),
        )

    def _joules(self) -> float | None:
        return None if self._energy is None else self._energy.read_joules()


def _sample(
    cell: BenchCell, stream: Stream, began: float, first: float, last: float, energy: Joules | None
) -> Sample:
    result, stats = stream.result, stream.result.stats
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
        phases=phases(stats, last - first),
        memory=MemoryBytes.of(stats.memory, "_bytes"),
        energy=energy,
        tokens=list(result.tokens),
        mode_reason=result.mode_reason,
    )


def phases(stats: GenerationStats, decode_s: float) -> Phases:
    """Where ``decode_s`` went; what no step accounts for is the host's."""
    spent = stats.phases_s
    by_level = zip_longest(*(step.draft_levels_s for step in stats.steps), fillvalue=0.0)
    levels = [sum(level) for level in by_level]
    named_s = sum(spent.values()) - spent["host"]
    return Phases(
        draft_levels=levels,
        draft_tree=max(0.0, spent["draft"] - sum(levels)),
        host=max(0.0, decode_s - named_s),
        **{name: spent[name] for name in ("verify", "accept", "commit", "retrieve")},
    )


def _joules(start: float | None, first: float | None, end: float | None) -> Joules | None:
    if start is None or first is None or end is None:
        return None
    return Joules(prefill=max(0.0, first - start), decode=max(0.0, end - first))
