"""Reading ``specx.trace/1`` from files of unknown origin: a header, a line for each piece of
prefill and each step, an end. A run that was killed leaves a readable file without an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from specx.core.stats import GenerationStats, Memory, StepStats
from specx.documents.document import read_file
from specx.errors import DocumentError
from specx.trace.records import AnyLine, End, Header, Line, PrefillLine, StepLine

MAX_TRACE_BYTES = 256 << 20
_REASON_CHARACTERS = 200
_LINE: TypeAdapter[AnyLine] = TypeAdapter(Line)


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
    counts = step.model_dump(include={"nodes", "accepted", "new_tokens", "draft_context_tokens"})
    times = {f"{phase}_s": seconds for phase, seconds in step.times_s}
    record = StepStats(depth=0, **counts, **times)
    stats.steps.append(record)
    stats.decode_s += record.total_s


def read_trace(path: str) -> Trace:
    """Read and check a trace file. A last line that was cut off is left out, with a warning.

    Raises ``DocumentError`` with the number of the wrong line.
    """
    raw = read_file(path, MAX_TRACE_BYTES)
    if len(raw) > MAX_TRACE_BYTES:
        raise DocumentError(f"{path} is larger than {MAX_TRACE_BYTES >> 20} MiB")
    if not raw:
        raise DocumentError(f"{path} is empty")
    *complete, rest = raw.split(b"\n")
    lines: list[AnyLine] = []
    warning = ""
    for number, text in enumerate([*complete, rest] if rest else complete, start=1):
        try:
            line = _LINE.validate_json(text)
            _check_place(line, lines)
        except ValueError as error:
            if 1 < number > len(complete) and isinstance(error, ValidationError):
                warning = f"line {number} was cut off and is left out: the trace has no end"
                break
            hint = "specx summarize report.txt --trace run.jsonl writes one"
            what, hints = ("not a trace", [hint]) if number == 1 else ("damaged", [])
            reason = f"line {number}: {_problem(error)}"
            raise DocumentError(f"{path} is {what}", reason=reason, hints=hints) from error
        lines.append(line)
    header, last = lines[0], lines[-1]
    assert isinstance(header, Header)
    end = last if isinstance(last, End) else None
    if end is None and not warning:
        warning = "the run was cut short: the trace has no end"
    prefill = tuple(line for line in lines if isinstance(line, PrefillLine))
    steps = tuple(line for line in lines if isinstance(line, StepLine))
    return Trace(header, prefill, steps, end, (warning,) if warning else ())


def _check_place(line: AnyLine, lines: Sequence[AnyLine]) -> None:
    """Raise ``ValueError`` unless ``line`` can follow ``lines``."""
    last = lines[-1] if lines else None
    step = last.number + 1 if isinstance(last, StepLine) else 0
    if last is None and isinstance(line, Header):
        return
    if last is None or isinstance(line, Header):
        problem = "the header must come first, and there is no second header"
    elif isinstance(last, End):
        problem = "nothing may follow the end"
    elif not isinstance(last, Header) and line.elapsed_s < last.elapsed_s:
        problem = "elapsed_s goes back in time"
    elif isinstance(line, PrefillLine) and step:
        problem = "prefill follows a step"
    elif isinstance(line, StepLine) and line.number != step:
        problem = f"step {step} is missing"
    elif isinstance(line, End) and line.text != _text(lines):
        problem = "the text is not that of the steps"
    else:
        return
    raise ValueError(problem)


def _text(lines: Sequence[AnyLine]) -> str:
    steps = (line for line in lines if isinstance(line, StepLine))
    return "".join(piece.text for step in steps for piece in step.pieces)


def _problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid ")
    return (f"{place}: {message}" if place else message)[:_REASON_CHARACTERS]
