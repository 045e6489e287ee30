"""The journal of a bench: one JSON line a finished run, on disk before the next run starts.

In: a path, a plan, records. Out: a file that survives ``kill -9`` at any moment, and what was
finished when it is opened again. It does not know how runs are made or what they mean.
"""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from specx.bench.plan import Plan, differences
from specx.bench.record import Cell, Difference, Floor, Object, Sample
from specx.errors import ResourceError, UsageError

SCHEMA = "specx.bench-journal/1"
#: Facts of the environment that may not change within one journal.
ENVIRONMENT = (
    "device",
    "gpu",
    "cpu",
    "threads",
    "cuda",
    "driver",
    "torch",
    "transformers",
    "specx",
)
_MAX_BYTES = 1 << 29


@dataclass(slots=True)
class Finished:
    """What a journal holds."""

    samples: dict[Cell, Sample] = field(default_factory=dict)
    floors: dict[tuple[str, int], Floor] = field(default_factory=dict)
    differences: dict[Cell, Difference] = field(default_factory=dict)
    missing: dict[Cell, str] = field(default_factory=dict)  # cells that cannot be run, and why
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # on a preset's files
    created: str = ""
    elapsed_s: float = 0.0


class Journal:
    """Append-only. After a failed write the file ends where it ended before."""

    def __init__(self, path: Path, file: FileIO, finished: Finished) -> None:
        self.path, self._file, self.finished = path, file, finished

    @classmethod
    def create(cls, path: Path, plan: Plan, environment: Object, created: str) -> "Journal":
        """A new journal. Raises ``UsageError`` when ``path`` exists or cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("x+b", buffering=0)
        except FileExistsError as error:
            raise UsageError(
                f"the journal {path} exists", hints=[f"--resume {path} goes on with it"]
            ) from error
        except OSError as error:
            raise _cannot_write(path, error) from error
        journal = cls(path, file, Finished(created=created))
        header = {"schema": SCHEMA, "created": created, "environment": environment}
        journal._append({"kind": "header", **header, "plan": plan.as_object()})
        return journal

    @classmethod
    def resume(cls, path: Path, plan: Plan, environment: Object) -> "Journal":
        """Go on with a journal of the same plan in the same environment.

        A last line that was not finished is dropped. Raises ``UsageError`` for another plan or
        environment, with what differs, and for a file that is no journal.
        """
        try:
            file = path.open("r+b", buffering=0)
        except OSError as error:
            raise UsageError(
                f"cannot resume {path}", reason=error.strerror or str(error)
            ) from error
        try:
            header, finished = _read(path, file)
            _check_same(path, header, plan, environment)
        except UsageError:
            file.close()
            raise
        return cls(path, file, finished)

    def sample(self, sample: Sample, elapsed_s: float) -> None:
        """Keep a finished run. ``elapsed_s``: running time of the bench so far, all sessions."""
        self._append({"kind": "sample", "elapsed_s": elapsed_s, "sample": _dump(sample)})
        self.finished.samples[sample.cell] = sample
        self.finished.elapsed_s = elapsed_s

    def floor(self, floor: Floor) -> None:
        """Keep what the hardware allows at one length."""
        self._append({"kind": "floor", "floor": _dump(floor)})
        self.finished.floors[floor.preset, floor.length] = floor

    def difference(self, cell: Cell, difference: Difference) -> None:
        """Keep where a run parted from plain decoding."""
        self._append({"kind": "difference", "cell": _dump(cell), "difference": _dump(difference)})
        self.finished.differences[cell] = difference

    def missing(self, cell: Cell, reason: str) -> None:
        """Keep that a cell cannot be run; it is not tried again."""
        self._append({"kind": "missing", "cell": _dump(cell), "reason": reason})
        self.finished.missing[cell] = reason

    def notes(self, preset: str, notes: tuple[str, ...]) -> None:
        """Keep what the loader said of a preset's files; the newest loading counts."""
        if notes != self.finished.notes.get(preset, ()):
            self._append({"kind": "notes", "preset": preset, "notes": list(notes)})
            self.finished.notes[preset] = notes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """The file stays."""
        self._file.close()

    def _append(self, line: Object) -> None:
        data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            while data:  # unbuffered: a nearly full disk takes a part of it
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut(end)
            raise _cannot_write(self.path, error) from error

    def _cut(self, end: int) -> None:
        """Take back half a line; a reader drops it anyway where even that fails."""
        try:
            os.ftruncate(self._file.fileno(), end)
        except OSError:
            return


def read_header(path: Path) -> Object | None:
    """The first line of a journal, or None if it is none."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    is_header = isinstance(header, dict) and header.get("schema") == SCHEMA
    return header if is_header else None


def newest(directory: Path) -> Path | None:
    """The journal in ``directory`` that was written to last."""
    journals = [path for path in directory.glob("*.jsonl") if read_header(path) is not None]
    return max(journals, key=lambda path: path.stat().st_mtime, default=None)


def _read(path: Path, file: FileIO) -> tuple[Object, Finished]:
    header: Object | None = None
    finished = Finished()
    for number, line in _complete_lines(path, file):
        try:
            record = json.loads(line)
            if header is None:
                header = record if record["schema"] == SCHEMA else None
                finished.created = str(record["created"])
                if header is None:
                    raise KeyError("schema")
            else:
                _take(record, finished)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path} is not a journal of specx bench", reason=f"line {number} cannot be read"
            ) from error
    if header is None:
        raise UsageError(f"{path} is not a journal of specx bench", reason="it has no header")
    return header, finished


def _complete_lines(path: Path, file: FileIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; what follows the last line end is cut off the file."""
    if os.fstat(file.fileno()).st_size > _MAX_BYTES:
        raise UsageError(f"{path} is too large for a journal of specx bench")
    data = file.read()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        file.truncate(end)
    yield from enumerate(data[:end].splitlines(), start=1)


def _take(record: Object, finished: Finished) -> None:
    kind = record["kind"]
    if kind == "sample":
        sample = Sample.model_validate(record["sample"])
        finished.samples[sample.cell] = sample
        finished.elapsed_s = float(record["elapsed_s"])
    elif kind == "floor":
        floor = Floor.model_validate(record["floor"])
        finished.floors[floor.preset, floor.length] = floor
    elif kind == "difference":
        cell = Cell.model_validate(record["cell"])
        finished.differences[cell] = Difference.model_validate(record["difference"])
    elif kind == "missing":
        finished.missing[Cell.model_validate(record["cell"])] = str(record["reason"])
    elif kind == "notes":
        if not isinstance(record["notes"], list):
            raise TypeError("notes are a list")
        finished.notes[str(record["preset"])] = tuple(map(str, record["notes"]))
    else:
        raise ValueError(f"unknown kind {kind!r}")


def _check_same(path: Path, header: Object, plan: Plan, environment: Object) -> None:
    was = header.get("environment")
    was = was if isinstance(was, dict) else {}
    ours, theirs = ({key: facts.get(key) for key in ENVIRONMENT} for facts in (environment, was))
    found = differences(plan.as_object(), header.get("plan", {}))
    found += [f"env.{line}" for line in differences(ours, theirs)]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(
            f"{path} is the journal of another bench",
            reason="; ".join(found[:3]) + more,
            hints=["give the same options as before, or start anew without --resume"],
        )


def _dump(record: Sample | Floor | Difference | Cell) -> Object:
    return record.model_dump(mode="json")


def _cannot_write(path: Path, error: OSError) -> ResourceError | UsageError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            f"cannot write the journal {path}",
            reason=reason,
            hints=["free some space", f"then --resume {path}: finished runs are kept"],
        )
    return UsageError(f"cannot write the journal {path}", reason=reason)
