"""The journal of a bench: one JSON line a finished run, on disk before the next run starts. The
file survives ``kill -9`` at any moment. How runs are made and what they mean is not known here."""

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from specx.bench.schema import BenchCell, BenchDifference, Build, Floor, MachineFacts, Plan, Sample
from specx.errors import ResourceError, UsageError

_MAX_BYTES = 1 << 29


class HeaderLine(BaseModel):
    kind: Literal["header"] = "header"
    schema_name: Literal["specx.bench-journal/1"] = Field(
        default="specx.bench-journal/1", alias="schema"
    )
    created: str
    environment: dict[str, Any]
    plan: dict[str, Any]


class SampleLine(BaseModel):
    kind: Literal["sample"] = "sample"
    elapsed_s: float  # running time of the bench so far, all sessions
    sample: Sample


class FloorLine(BaseModel):
    kind: Literal["floor"] = "floor"
    floor: Floor


class DifferenceLine(BaseModel):
    kind: Literal["difference"] = "difference"
    cell: BenchCell
    difference: BenchDifference


class MissingLine(BaseModel):  # not tried again
    kind: Literal["missing"] = "missing"
    cell: BenchCell
    reason: str


class NotesLine(BaseModel):
    kind: Literal["notes"] = "notes"
    preset: str
    notes: tuple[str, ...]


Line = HeaderLine | SampleLine | FloorLine | DifferenceLine | MissingLine | NotesLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


@dataclass(slots=True)
class Finished:
    samples: dict[BenchCell, Sample] = field(default_factory=dict)
    floors: dict[tuple[str, int], Floor] = field(default_factory=dict)
    differences: dict[BenchCell, BenchDifference] = field(default_factory=dict)
    missing: dict[BenchCell, str] = field(default_factory=dict)  # cells that cannot be run, and why
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # on a preset's files
    header: HeaderLine | None = None
    elapsed_s: float = 0.0

    def take(self, line: Line) -> None:
        match line:
            case HeaderLine():
                self.header = line
            case SampleLine():
                self.samples[line.sample.cell] = line.sample
                self.elapsed_s = line.elapsed_s
            case FloorLine():
                self.floors[line.floor.preset, line.floor.length] = line.floor
            case DifferenceLine():
                self.differences[line.cell] = line.difference
            case MissingLine():
                self.missing[line.cell] = line.reason
            case NotesLine():
                self.notes[line.preset] = line.notes


class Journal:
    """Append-only. After a failed write the file ends where it ended before."""

    def __init__(self, path: Path, file: FileIO, finished: Finished) -> None:
        self.path, self._file, self.finished = path, file, finished

    @classmethod
    def create(
        cls, path: Path, plan: Plan, environment: MachineFacts, build: Build, created: str
    ) -> "Journal":
        """A new journal. Raises ``UsageError`` when ``path`` exists or cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("x+b", buffering=0)
        except FileExistsError as error:
            hint = f"--resume {path} goes on with it"
            raise UsageError(f"the journal {path} exists", hints=[hint]) from error
        except OSError as error:
            raise _cannot_write(path, error) from error
        journal = cls(path, file, Finished())
        facts = _facts(environment, build)
        journal.keep(HeaderLine(created=created, environment=facts, plan=plan.as_json()))
        return journal

    @classmethod
    def resume(cls, path: Path, plan: Plan, environment: MachineFacts, build: Build) -> "Journal":
        """Go on with a journal of the same plan in the same environment. A last line that was not
        finished is dropped. Raises ``UsageError`` for another plan or environment, with what
        differs, and for a file that is no journal."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("r+b", buffering=0))
            except OSError as error:
                reason = error.strerror or str(error)
                raise UsageError(f"cannot resume {path}", reason=reason) from error
            header, finished = _read(path, file)
            found = differences(plan.as_json(), header.plan)
            for line in differences(_facts(environment, build), header.environment):
                if not line.startswith(("python:", "os:")):  # these may change within one journal
                    found.append(f"env.{line}")
            if found:
                reason = "; ".join([*found[:3], *([f"{len(found) - 3} more"] if found[3:] else [])])
                hint = "give the same options as before, or start anew without --resume"
                what = f"{path} is the journal of another bench"
                raise UsageError(what, reason=reason, hints=[hint])
            stack.pop_all()  # the journal closes it
        return cls(path, file, finished)

    def keep(self, line: Line) -> None:
        """``line`` on disk, and then in ``finished``; notes that are held already are left out.
        Raises ``ResourceError`` where the disk is full, ``UsageError`` for other failures."""
        if isinstance(line, NotesLine) and line.notes == self.finished.notes.get(line.preset, ()):
            return
        data = (line.model_dump_json(by_alias=True) + "\n").encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            while data:  # unbuffered: a nearly full disk takes a part of it
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            # Half a line is taken back; a reader drops it anyway where even that fails.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            raise _cannot_write(self.path, error) from error
        self.finished.take(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def newest(directory: Path) -> Path | None:
    """The journal in ``directory`` that was written to last."""
    journals = [path for path in directory.glob("*.jsonl") if _is_journal(path)]
    return max(journals, key=lambda path: path.stat().st_mtime, default=None)


def _is_journal(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return isinstance(_LINE.validate_json(file.readline(_MAX_BYTES)), HeaderLine)
    except (OSError, ValidationError):
        return False


def _read(path: Path, file: FileIO) -> tuple[HeaderLine, Finished]:
    """What follows the last line end is cut off the file."""
    if os.fstat(file.fileno()).st_size > _MAX_BYTES:
        raise UsageError(f"{path} is too large for a journal of specx bench")
    data = file.read()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        file.truncate(end)
    finished = Finished()
    for number, raw in enumerate(data[:end].splitlines() or [b""], start=1):
        try:
            line = _LINE.validate_json(raw)
            if isinstance(line, HeaderLine) != (number == 1):
                raise ValueError("only the first line is a header")
        except ValueError as error:
            reason = f"line {number} cannot be read or is out of place"
            raise UsageError(f"{path} is not a journal of specx bench", reason=reason) from error
        finished.take(line)
    assert finished.header is not None
    return finished.header, finished


def _facts(environment: MachineFacts, build: Build) -> dict[str, Any]:
    return {**environment.model_dump(), "specx": build.as_json()}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Sentences that name every setting in which two plans (or environments) differ."""
    a, b = _leaves(ours), _leaves(theirs)
    return [
        f"{key}: {_short(b, key)} → {_short(a, key)}" for key in a | b if a.get(key) != b.get(key)
    ]


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        inner = {f"{key}.{name}".removeprefix("."): each for name, each in value.items()}
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        inner = {f"{key}[{index}]": each for index, each in enumerate(value)}
    else:
        return {key: value}
    return {leaf: it for name, each in inner.items() for leaf, it in _leaves(each, name).items()}


def _short(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "absent"
    return text if len(text) <= 40 else f"{text[:37]}…"


def _cannot_write(path: Path, error: OSError) -> ResourceError | UsageError:
    what, reason = f"cannot write the journal {path}", error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hints = ["free some space", f"then --resume {path}: finished runs are kept"]
        return ResourceError(what, reason=reason, hints=hints)
    return UsageError(what, reason=reason)
