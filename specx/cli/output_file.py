"""Where the answer goes, stdout or a file that appears whole or not at all; and the trace's file.

Nothing but the answer is written to a ``Sink``.
"""

import errno
import os
import stat
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Self, TextIO

from specx.cli.errors import OutputClosed, cannot_write
from specx.cli.signals import Stopped
from specx.errors import SpecxError, UsageError, printable

_RESET = "\x1b[0m"
_NEW_FILE = 0o666  # less what the umask takes


class Sink:
    """stdout, flushed with every write. On a terminal control characters become visible signs."""

    def __init__(self, stream: TextIO | None = None, place: str = "standard output") -> None:
        self._stream = sys.stdout if stream is None else stream
        self._place = place
        self.is_terminal = self._stream.isatty()
        self._last = "\n"

    def write(self, text: str, code: str = "") -> None:
        """Write and flush. ``OutputClosed`` when the reader has gone, else a ``SpecxError``.

        ``code`` is the escape sequence of a style that lasts as long as ``text``. It is for a
        terminal, now or later, so control characters become visible then too.
        """
        if not text:
            return
        self._last = text[-1]
        shown = printable(text) if self.is_terminal or code else text
        if code:
            start, rest = split_space(shown)
            shown = f"{start}{code}{rest}{_RESET}" if rest else start
        try:
            self._stream.write(shown)
            self._stream.flush()
        except BrokenPipeError as error:
            raise OutputClosed from error
        except OSError as error:
            raise cannot_write(self._place, error) from error

    def end_line(self) -> None:
        if self._last != "\n":
            self.write("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream is not sys.stdout:  # which belongs to the process
            with suppress(OSError):  # every write was flushed, so nothing new can fail
                self._stream.close()


class FileSink(Sink):
    """A new file beside the final one, renamed over it at the end.

    Created before the long run starts, so that a place that cannot be written fails at once. If
    the block ends with an error, or nothing was written, no file remains; a signal is no error.
    """

    def __init__(self, path: Path) -> None:
        import tempfile

        self._final = path
        try:
            handle, name = tempfile.mkstemp(prefix=".specx-", suffix=".part", dir=path.parent)
        except OSError as error:
            raise cannot_write(str(path), error) from error
        self._temporary = Path(name)
        os.chmod(name, _mode_for(path))
        super().__init__(os.fdopen(handle, "w", encoding="utf-8", errors="replace"), str(path))

    def write_bytes(self, data: bytes) -> None:
        """Write what is no text. Raises as ``write`` does."""
        try:
            self._stream.buffer.write(data)
        except OSError as error:
            raise cannot_write(self._place, error) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._stream.close()
            is_written = self._temporary.stat().st_size > 0
            if is_written and (kind is None or issubclass(kind, Stopped)):
                os.replace(self._temporary, self._final)
        except OSError as problem:
            raise cannot_write(str(self._final), problem) from problem
        finally:
            self._temporary.unlink(missing_ok=True)


class TraceFile:
    """The file of ``--trace``: whole up to its last line even when the process is killed.

    Opened at once, so that a place that cannot be written fails before the long run. A write that
    fails later is kept in ``problem`` and ends the recording, not the answer. A file that is
    replaced keeps its old lines until the first new one; a new file without any line is removed.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.problem: SpecxError | None = None
        self._path, self._place = path, place
        self._is_new, self._is_written = not path.exists(), False
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, _NEW_FILE)
        except OSError as error:
            raise cannot_write(place, error) from error
        self._stream = os.fdopen(descriptor, "wb", buffering=0)
        self._is_file = path.is_file()

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

    def __exit__(self, *_: object) -> None:
        try:
            self._stream.close()
        except OSError as problem:
            self.problem = self.problem or cannot_write(self._place, problem)
        if self._is_new and self._is_file and not self._is_written:
            self._path.unlink(missing_ok=True)


def open_sink(out: str | None, *, force: bool, inputs: list[str]) -> Sink:
    """The sink for ``--out``; None is stdout. ``UsageError`` for a place that cannot be used."""
    if out is None:
        return Sink()
    path = Path(os.path.realpath(out))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a device is written to, never replaced
            return Sink(path.open("w", encoding="utf-8", errors="replace"), out)
    except (FileNotFoundError, NotADirectoryError):
        _check_parent(path, out)
        return FileSink(path)
    except OSError as error:  # a directory, too
        raise cannot_write(out, error) from error
    check_replaceable(path, out, force=force, inputs=inputs)
    return FileSink(path)


def open_trace(
    name: str | None, *, force: bool, inputs: list[str], out: str | None
) -> AbstractContextManager[TraceFile | None]:
    """The file for ``--trace``, if that is given. ``UsageError`` as in ``open_sink``."""
    if name is None:
        return nullcontext()
    path = Path(os.path.realpath(name))
    if out is not None and os.path.realpath(out) == str(path):
        raise UsageError("--trace and --out name the same file", hints=("choose two",))
    if path.is_file():
        check_replaceable(path, name, force=force, inputs=inputs)
    else:
        _check_parent(path, name)
    return TraceFile(path, name)


def _check_parent(path: Path, out: str) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"cannot write to {out}", reason=f"there is no directory {path.parent}")


def check_replaceable(path: Path, out: str, *, force: bool, inputs: list[str]) -> None:
    """Raise ``UsageError`` unless the file at ``path``, named ``out``, may be replaced."""
    if any(name != "-" and os.path.realpath(name) == str(path) for name in inputs):
        reason, hint = "it is one of the documents", "choose another"
        raise UsageError(f"cannot write to {out}", reason=reason, hints=(hint,))
    if not force:
        hint = "--force replaces it"
        raise UsageError(f"cannot write to {out}", reason="the file exists", hints=(hint,))
    if not os.access(path, os.W_OK):
        raise cannot_write(out, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _mode_for(path: Path) -> int:
    """Permissions of the file to be replaced, else those of a new file under the umask."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return _NEW_FILE & ~mask


def split_space(text: str) -> tuple[str, str]:
    """White space at the start of ``text``, which a style must not underline, and the rest."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest
