"""Reading ``specx.trace/1`` from files of unknown origin.

A trace has a header, a line for each piece of prefill and each step, and an end. A run that was
killed leaves one without an end, which is still readable.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from specx.core.stats import GenerationStats, Memory
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
        return "".join(piece.text for step in self.steps for piece in step.pieces)

    def stats(self) -> GenerationStats:
        """The run's totals, as far as it was recorded."""
        stats = GenerationStats(prompt_tokens=self.header.prompt_tokens)
        for step in self.steps:
            add_step(stats, step)
        if self.prefill:
            stats.prefill_target_s = self.prefill[-1].elapsed_s
        if self.end is not None:
            totals = self.end.totals
            stats.prefill_target_s = totals.prefill_target_s
            stats.prefill_draft_s, stats.tune_s = totals.prefill_draft_s, totals.tune_s
            stats.ttft_s, stats.total_s = totals.ttft_s, totals.total_s
            stats.memory = Memory(peak_bytes=totals.peak_bytes)
        return stats


def add_step(stats: GenerationStats, step: StepLine) -> None:
    """Count one more step in running totals."""
    stats.new_tokens += step.new_tokens
    record = step.stats()
    if record is not None:
        stats.steps.append(record)
        stats.decode_s += record.total_s


def read_trace(path: str) -> Trace:
    """Read and check a trace file. A last line that was cut off is left out, with a warning.

    Raises ``DocumentError`` with the number of the wrong line.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_TRACE_BYTES + 1)
    except FileNotFoundError as error:
        raise DocumentError(f"there is no file {path}") from error
    except OSError as error:
        raise DocumentError(f"{path} cannot be read", reason=error.strerror or "") from error
    except ValueError as error:  # a NUL character in the path
        raise DocumentError("that is not a file name", reason=str(error)) from error
    if len(raw) > MAX_TRACE_BYTES:
        raise DocumentError(f"{path} is larger than {MAX_TRACE_BYTES >> 20} MiB")
    return _assembled(path, _lines(path, raw))


def _lines(path: str, raw: bytes) -> Iterator[tuple[int, _AnyLine | None]]:
    """Line numbers with lines; None for a last line that was cut off."""
    lines = raw.split(b"\n")
    is_complete = lines[-1] == b""
    for number, line in enumerate(lines[:-1] if is_complete else lines, start=1):
        try:
            yield number, _LINE.validate_json(line)
        except ValidationError as error:
            if number == 1:
                raise DocumentError(
                    f"{path} is not a trace",
                    reason=f"line 1: {_problem(error)}",
                    hints=["specx summarize report.txt --trace run.jsonl writes one"],
                ) from error
            if number == len(lines):
                yield number, None
                return
            raise _damaged(path, number, _problem(error)) from error


def _assembled(path: str, lines: Iterable[tuple[int, _AnyLine | None]]) -> Trace:
    header: Header | None = None
    end: End | None = None
    prefill: list[PrefillLine] = []
    steps: list[StepLine] = []
    last_s, warning = 0.0, "the run was cut short: the trace has no end"
    for number, line in lines:
        if header is None:
            if not isinstance(line, Header):
                raise _damaged(path, number, "the first line must be the header")
            header = line
            continue
        if line is None:
            warning = f"line {number} was cut off and is left out: the trace has no end"
            break
        problem = _misplaced(line, steps, end, last_s)
        if problem or isinstance(line, Header):
            raise _damaged(path, number, problem)
        last_s = line.elapsed_s
        if isinstance(line, PrefillLine):
            prefill.append(line)
        elif isinstance(line, StepLine):
            steps.append(line)
        else:
            end, warning = line, ""
    if header is None:
        raise DocumentError(f"{path} is empty")
    return Trace(header, tuple(prefill), tuple(steps), end, (warning,) if warning else ())


def _misplaced(line: _AnyLine, steps: list[StepLine], end: End | None, last_s: float) -> str:
    """Why ``line`` cannot follow what came before; "" if it can."""
    if isinstance(line, Header):
        return "there is a second header"
    if end is not None:
        return "nothing may follow the end"
    if line.elapsed_s < last_s:
        return "elapsed_s goes back in time"
    if isinstance(line, PrefillLine) and steps:
        return "prefill follows a step"
    if isinstance(line, StepLine) and line.number != len(steps):
        return f"step {len(steps)} is missing"
    if isinstance(line, End):
        text = "".join(piece.text for step in steps for piece in step.pieces)
        return "" if line.text == text else "the text is not that of the steps"
    return ""


def _damaged(path: str, number: int, problem: str) -> DocumentError:
    return DocumentError(f"{path} is damaged", reason=f"line {number}: {problem}")


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid ")
    return (f"{place}: {message}" if place else message)[:_REASON_CHARACTERS]
