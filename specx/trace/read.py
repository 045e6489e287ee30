"""Reading ``specx.trace/1`` from files of unknown origin.

A trace has a header, a line for each piece of prefill and each step, and an end. A run that was
killed leaves one without an end, which is still readable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from specx.core.stats import GenerationStats, Memory, StepStats
from specx.documents.document import read_file
from specx.errors import DocumentError
from specx.trace.records import End, Header, Line, PrefillLine, StepLine

MAX_TRACE_BYTES = 256 << 20
_REASON_CHARACTERS = 200
_AnyLine = Header | PrefillLine | StepLine | End
_LINE: TypeAdapter[_AnyLine] = TypeAdapter(Line)


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded run, checked. ``end`` is None and ``warnings`` says so when it was cut short."""

    header: Header
    prefill: tuple[PrefillLine, ...]
    steps: tuple[StepLine, ...]
    end: End | None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All the text of the run."""
        return _text(self.steps)

    def stats(self) -> GenerationStats:
        """The run's totals, as far as it was recorded."""
        stats = GenerationStats(prompt_tokens=self.header.prompt_tokens)
        for step in self.steps:
            add_step(stats, step)
        if self.end is None:
            stats.prefill_target_s = self.prefill[-1].elapsed_s if self.prefill else 0.0
            return stats
        totals = self.end.totals
        names = {"prefill_target_s", "prefill_draft_s", "tune_s", "ttft_s", "total_s"}
        memory = Memory(peak_bytes=totals.peak_bytes)
        return replace(stats, memory=memory, **totals.model_dump(include=names))


def add_step(stats: GenerationStats, step: StepLine) -> None:
    """Count one more step in running totals."""
    stats.new_tokens += step.new_tokens
    if step.times_s is None:
        return
    times = step.times_s.model_dump()
    record = StepStats(
        nodes=step.nodes,
        depth=0,
        accepted=step.accepted,
        new_tokens=step.new_tokens,
        draft_levels_s=tuple(times.pop("draft_levels")),
        draft_context_tokens=step.draft_context_tokens,
        **{f"{phase}_s": seconds for phase, seconds in times.items()},
    )
    stats.steps.append(record)
    stats.decode_s += record.total_s


def read_trace(path: str) -> Trace:
    """Read and check a trace file. A last line that was cut off is left out, with a warning.

    Raises ``DocumentError`` with the number of the wrong line.
    """
    raw = read_file(path, MAX_TRACE_BYTES)
    if len(raw) > MAX_TRACE_BYTES:
        raise DocumentError(f"{path} is larger than {MAX_TRACE_BYTES >> 20} MiB")
    *complete, rest = raw.split(b"\n")
    warning = ""
    lines: list[_AnyLine] = []
    steps: list[StepLine] = []
    for number, text in enumerate([*complete, rest] if rest else complete, start=1):
        try:
            line = _LINE.validate_json(text)
        except ValidationError as error:
            problem = _problem(error)
            if number == 1:
                raise DocumentError(
                    f"{path} is not a trace",
                    reason=f"line 1: {problem}",
                    hints=["specx summarize report.txt --trace run.jsonl writes one"],
                ) from error
            if number > len(complete):
                warning = f"line {number} was cut off and is left out: the trace has no end"
                break
        else:
            problem = _misplaced(line, lines, steps)
        if problem:
            raise DocumentError(f"{path} is damaged", reason=f"line {number}: {problem}")
        lines.append(line)
        if isinstance(line, StepLine):
            steps.append(line)
    if not lines:
        raise DocumentError(f"{path} is empty")
    header, last = lines[0], lines[-1]
    assert isinstance(header, Header)
    prefill = tuple(line for line in lines if isinstance(line, PrefillLine))
    end = last if isinstance(last, End) else None
    if end is None and not warning:
        warning = "the run was cut short: the trace has no end"
    return Trace(header, prefill, tuple(steps), end, (warning,) if warning else ())


def _misplaced(line: _AnyLine, lines: list[_AnyLine], steps: list[StepLine]) -> str:
    """Why ``line`` cannot follow ``lines``, ``steps`` among them; "" if it can."""
    if not lines:
        return "" if isinstance(line, Header) else "the first line must be the header"
    if isinstance(line, Header):
        return "there is a second header"
    last = lines[-1]
    if isinstance(last, End):
        return "nothing may follow the end"
    if not isinstance(last, Header) and line.elapsed_s < last.elapsed_s:
        return "elapsed_s goes back in time"
    if isinstance(line, PrefillLine) and steps:
        return "prefill follows a step"
    if isinstance(line, StepLine) and line.number != len(steps):
        return f"step {len(steps)} is missing"
    if isinstance(line, End) and line.text != _text(steps):
        return "the text is not that of the steps"
    return ""


def _text(steps: Sequence[StepLine]) -> str:
    return "".join(piece.text for step in steps for piece in step.pieces)


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid ")
    return (f"{place}: {message}" if place else message)[:_REASON_CHARACTERS]
