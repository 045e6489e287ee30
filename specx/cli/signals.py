"""Ctrl-C, SIGTERM and a closed terminal: the first asks a request to end, the second stops."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self


class Stopped(BaseException):
    """A signal ended the work; not an ``Exception``, so that nobody handles it by chance."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class Interrupts:
    """Handlers for SIGINT, SIGTERM and SIGHUP, installed as long as the ``with`` block lasts.

    A signal that the process inherited as ignored stays ignored: whoever started specx in the
    background of a script, or under ``nohup``, wants it so.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._cancel: Callable[[], None] | None = None
        self._has_stopped = False
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int | None:
        return None if self.signum is None else 128 + self.signum

    def on_first(self, cancel: Callable[[], None] | None) -> None:
        """Call ``cancel`` at the first signal from now on; None: raise ``Stopped``."""
        self._cancel = cancel

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block nothing runs that could end in good order: the first signal stops, too.

        Raises ``Stopped``, also for a signal from before the block and for one that was swallowed.
        """
        cancel, self._cancel = self._cancel, None
        try:
            self._check()
            yield
            self._check()
        finally:
            self._cancel = cancel

    def __enter__(self) -> Self:
        known = signal.Signals.__members__  # not every system closes terminals with SIGHUP
        for signum in filter(None, map(known.get, ("SIGINT", "SIGTERM", "SIGHUP"))):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        # A library in mid-import may swallow ``Stopped`` and fail later over what is then missing.
        if self._has_stopped and self.signum is not None and isinstance(error, Exception):
            raise Stopped(self.signum) from error

    def _check(self) -> None:
        if self.signum is not None:
            raise Stopped(self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.signum is None
        self.signum = signum
        if first and self._cancel is not None:
            self._cancel()
            return
        self._has_stopped = True
        raise Stopped(signum)
