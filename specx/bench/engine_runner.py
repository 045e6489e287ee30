"""What is measured: a loaded preset, asked to run one cell.

In: a cell and its prompt. Out: a ``Sample``. Prefill and decode are timed apart: the first token
ends the prefill, and the device has finished its work when a token is seen.
"""

import time
from collections.abc import Sequence
from itertools import zip_longest

from specx.bench import schema
from specx.bench.data import cut_prompt
from specx.bench.modes import WITNESSES, parse_mode
from specx.bench.prepare import Setup
from specx.bench.roofline import measure_floor
from specx.bench.transformers_baseline import Witnesses
from specx.core.stats import GenerationStats
from specx.engine import Engine, load
from specx.errors import ResourceError
from specx.prompts import Prompt
from specx.standin import build as standin
from specx.stream import Stream, TextChunk

#: What a sample has from the engine's own record; the rest is timed from outside.
_COUNTED = (
    *("prompt_tokens", "prefill_target_s", "prefill_draft_s", "tune_s"),
    *("drafted", "accepted", "copied"),
)


class Interrupted(Exception):
    """The bench ends here, without a sample of the cell; the text says why."""


class Subject:
    """A preset of a plan: an engine, and transformers' own generation on copies where asked."""

    def __init__(self, setup: Setup, name: str) -> None:
        """Read the preset's weights, or build the stand-in's. Raises ``SpecxError``."""
        self._setup, self._plan = setup, setup.plan
        self._witnesses: Witnesses | None = None
        self._witness_pair = None  # where the models cannot be loaded once more
        self._stream: Stream | None = None
        self._is_cancelled = False
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
        return cut_prompt(self._engine, text, tokens)

    def run(self, cell: schema.BenchCell, prompt: Prompt) -> schema.Sample:
        """One run. Raises ``Interrupted`` after ``cancel``, ``ResourceError`` out of memory."""
        self._check()
        joules = [self._joules()]  # before the prompt, after it, at the end
        measure = self._witness if cell.mode in WITNESSES else self._run
        sample = measure(cell, prompt, joules)
        before, between, after = *joules[:2], self._joules()
        if before is None or between is None or after is None:
            return sample
        spent = (max(0.0, between - before), max(0.0, after - between))
        energy = schema.Joules(prefill=spent[0], decode=spent[1])
        return sample.model_copy(update={"energy": energy})

    def difference(
        self, prompt: Prompt, plain: Sequence[int], tokens: Sequence[int]
    ) -> schema.BenchDifference | None:
        """Where ``tokens`` part from plain decoding's."""
        found = self._engine.difference(prompt, plain, tokens, sampling=self._plan.sampling)
        return schema.first_difference(found)

    def floor(self, length: int, *, again: bool) -> schema.Floor:
        """The least time that this hardware allows at ``length`` tokens; see ``measure_floor``."""
        engine = self._engine
        return measure_floor(engine.preset, engine.target, engine.draft, length, again=again)

    def cancel(self) -> None:
        """End the run under way; safe from a signal handler."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def _check(self) -> None:
        if self._is_cancelled:
            raise Interrupted("interrupted")

    def _joules(self) -> float | None:
        return None if self._setup.energy is None else self._setup.energy.read_joules()

    def _run(
        self, cell: schema.BenchCell, prompt: Prompt, joules: list[float | None]
    ) -> schema.Sample:
        variant, began = parse_mode(cell.mode), time.perf_counter()
        stream = self._stream = self._engine.stream(
            prompt,
            mode=variant.mode,
            parts=variant.parts,
            max_tokens=self._plan.max_tokens,
            sampling=self._plan.sampling,
            ignore_eos=self._plan.ignore_eos,
        )
        first = last = began
        for event in stream:
            if not isinstance(event, TextChunk):
                continue
            last = time.perf_counter()
            if event.step is None:
                first = last
                joules.append(self._joules())
        result, stats = stream.result, stream.result.stats
        if result.finish_reason == "interrupted":
            raise Interrupted("interrupted")
        if result.tokens and result.warnings:
            # What gave way to something else must not be measured under its name.
            raise ResourceError(f"{cell.mode} cannot run", reason=result.warnings[0])
        return schema.Sample(
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
            memory=schema.memory_bytes(stats.memory),
            tokens=list(result.tokens),
            mode_reason=result.mode_reason,
        )

    def _witness(
        self, cell: schema.BenchCell, prompt: Prompt, joules: list[float | None]
    ) -> schema.Sample:
        engine, offline = self._engine, self._setup.options.offline
        if self._witnesses is None:
            self._witnesses = Witnesses(
                engine.preset, engine.device, engine.dtype, offline, self._witness_pair
            )

        def on_tokens() -> None:
            self._check()
            if len(joules) == 1:
                joules.append(self._joules())

        plan = self._plan
        return self._witnesses.run(cell, prompt.tokens, plan.max_tokens, plan.ignore_eos, on_tokens)


def _phases(stats: GenerationStats, decode_s: float) -> schema.Phases:
    """Where ``decode_s`` went; what no step accounts for is the host's."""
    spent = stats.phases_s
    draft_s, _ = spent.pop("draft"), spent.pop("host")
    by_level = zip_longest(*(step.draft_levels_s for step in stats.steps), fillvalue=0.0)
    levels = [sum(level) for level in by_level]
    return schema.Phases(
        draft_levels=levels,
        draft_tree=max(0.0, draft_s - sum(levels)),
        host=max(0.0, decode_s - draft_s - sum(spent.values())),
        **spent,
    )
