"""``--trace``: the file into which a run is recorded while it goes on.

Goes in: lines. Comes out: a file that is whole up to its last line even when the process is
killed. It does not know what the lines say.
"""

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from specx.cli.errors import cannot_write
from specx.cli.output_file import check_replaceable
from specx.errors import SpecxError, UsageError


class TraceFile:
    """Opened at once, so that a place that cannot be written fails before the long run.

    A write that fails later is kept in ``problem`` and ends the recording, not the answer. A file
    that is replaced keeps its old lines until the first new one; a new file without any line is
    removed.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.problem: SpecxError | None = None
        self._path, self._place = path, place
        self._is_new = not path.exists()
        self._is_written = False
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except OSError as error:
            raise cannot_write(place, error) from error
        self._stream = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, line: str) -> None:
        """Append a line; it is on its way to the disk when this returns."""
        if self.problem is not None:
            return
        left = memoryview(line.encode("utf-8", "replace"))
        try:
            if not self._is_written and self._is_file:
                self._stream.truncate(0)
            self._is_written = True
            while left:
                left = left[self._stream.write(left) or 0 :]
        except OSError as error:
            self.problem = cannot_write(self._place, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self._stream.close()
        except OSError as problem:
            self.problem = self.problem or cannot_write(self._place, problem)
        if self._is_new and self._is_file and not self._is_written:
            self._path.unlink(missing_ok=True)


def open_trace(name: str, *, force: bool, inputs: list[str], out: str | None) -> TraceFile:
    """The file for ``--trace``. ``UsageError`` for a place that cannot be used."""
    path = Path(os.path.realpath(name))
    if out is not None and os.path.realpath(out) == str(path):
        raise UsageError("--trace and --out name the same file", hints=("choose two",))
    if path.is_file():
        check_replaceable(path, name, force=force, inputs=inputs)
    elif not path.parent.is_dir():
        raise UsageError(f"cannot write to {name}", reason=f"there is no directory {path.parent}")
    return TraceFile(path, name)
