"""Where the answer goes: stdout, or a file that appears whole or not at all.

Goes in: text. Comes out: bytes on stdout or in a file. It does not know what the text means,
and nothing but the answer passes through here.
"""

import contextlib
import errno
import os
import stat
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from specx.cli.errors import OutputClosed, cannot_write
from specx.cli.signals import Stopped
from specx.cli.terminal import printable, split_space
from specx.errors import UsageError

END_OF_LOOK = "\x1b[0m"


class Sink:
    """stdout, flushed with every write. ``is_terminal``: control characters become visible."""

    def __init__(self, stream: TextIO | None = None, place: str = "standard output") -> None:
        self._stream = sys.stdout if stream is None else stream
        self._place = place
        self.is_terminal = self._stream.isatty()
        self._last = "\n"

    def write(self, text: str, code: str = "") -> None:
        """Write and flush. ``OutputClosed`` when the reader has gone, else a ``SpecxError``.

        ``code`` starts a look that ends behind ``text``. Whoever gives one writes for a terminal,
        at once or later, so control characters become visible then too.
        """
        if not text:
            return
        self._last = text[-1]
        shown = printable(text) if self.is_terminal or code else text
        if code:
            start, rest = split_space(shown)
            shown = f"{start}{code}{rest}{END_OF_LOOK}" if rest else start
        try:
            self._stream.write(shown)
            self._stream.flush()
        except BrokenPipeError as error:
            raise OutputClosed from error
        except OSError as error:
            raise cannot_write(self._place, error) from error

    def end_line(self) -> None:
        """Close the last line unless it is closed already."""
        if self._last != "\n":
            self.write("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Nothing to close: stdout belongs to the process."""


class DeviceSink(Sink):
    """A device or a named pipe: opened and written to, never replaced."""

    def __init__(self, path: Path, place: str) -> None:
        try:
            super().__init__(path.open("w", encoding="utf-8", errors="replace"), place)
        except OSError as error:
            raise cannot_write(place, error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # every write was flushed, so nothing new can fail
            self._stream.close()


class FileSink(Sink):
    """A new file beside the final one, renamed over it at the end.

    Created before the long run starts, so that a place that cannot be written fails at once. If
    the block ends with an error, or nothing was written, no file remains; a signal is no error.
    """

    def __init__(self, path: Path) -> None:
        self._final = path
        try:
            handle, name = tempfile.mkstemp(prefix=".specx-", suffix=".part", dir=path.parent)
        except OSError as error:
            raise cannot_write(str(path), error) from error
        self._temporary = Path(name)
        os.chmod(name, mode_for(path))
        super().__init__(os.fdopen(handle, "w", encoding="utf-8", errors="replace"), str(path))
        self._is_written = False

    def write(self, text: str, code: str = "") -> None:
        """As ``Sink.write``."""
        super().write(text, code)
        self._is_written = self._is_written or bool(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self._stream.close()
            if self._is_written and (kind is None or issubclass(kind, Stopped)):
                os.replace(self._temporary, self._final)
        except OSError as problem:
            raise cannot_write(str(self._final), problem) from problem
        finally:
            self._temporary.unlink(missing_ok=True)


def open_sink(out: str | None, *, force: bool, inputs: list[str]) -> Sink:
    """The sink for ``--out``; None is stdout. ``UsageError`` for a place that cannot be used."""
    if out is None:
        return Sink()
    path = Path(os.path.realpath(out))
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not path.parent.is_dir():
            raise UsageError(
                f"cannot write to {out}", reason=f"there is no directory {path.parent}"
            ) from None
        return FileSink(path)
    except OSError as error:
        raise cannot_write(out, error) from error
    if stat.S_ISDIR(kind):
        raise cannot_write(out, OSError(errno.EISDIR, "it is a directory"))
    if not stat.S_ISREG(kind):
        return DeviceSink(path, out)
    check_replaceable(path, out, force=force, inputs=inputs)
    return FileSink(path)


def check_replaceable(path: Path, out: str, *, force: bool, inputs: list[str]) -> None:
    """Raise ``UsageError`` unless the file at ``path``, named ``out``, may be replaced."""
    if any(name != "-" and os.path.realpath(name) == str(path) for name in inputs):
        raise UsageError(
            f"cannot write to {out}", reason="it is one of the documents", hints=("choose another",)
        )
    if not force:
        raise UsageError(
            f"cannot write to {out}", reason="the file exists", hints=("--force replaces it",)
        )
    if not os.access(path, os.W_OK):
        raise cannot_write(out, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def mode_for(path: Path) -> int:
    """Permissions of the file to be replaced, else those of a new file under the umask."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
