"""Progress on stderr: a prefill bar and a live line on a terminal, a rare plain line elsewhere.

Goes in: ``Prefill`` events and running ``GenerationStats``. Comes out: what is drawn, and wiped
again, on stderr. It does not know engines, files or the text itself.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from specx.cli.format import download_line, prefill_line, status_line
from specx.cli.terminal import column_after, printable
from specx.core.stats import GenerationStats, Prefill

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.status import Status
    from rich.text import Text

    from specx.checkpoints.download import Download

REDRAW_S = 0.1
LOG_S = 10.0
_ECHO_CELLS = 4  # room for the terminal's own ^C behind the live line, which must not wrap


class Progress:
    """What a run tells while it works. This one says nothing."""

    def busy(self, what: str) -> None:
        """Something without a measure goes on (loading, verifying)."""

    def download(self, event: "Download") -> None:
        """So many bytes are here; the first event of a download comes before its first byte."""

    def prefill(self, event: Prefill) -> None:
        """The prompt has been read this far."""

    def before_text(self, text: str) -> None:
        """``text`` is about to be written to stdout."""

    def step(self, stats: GenerationStats) -> None:
        """A verify step has ended and its text has been written."""

    def close(self) -> None:
        """Wipe whatever is on display; may be called at any time, and again."""


class LogProgress(Progress):
    """For a log: one plain line at most every ten seconds, and none for a short run.

    A download, which may take an hour, has a line for each tenth instead.
    """

    def __init__(
        self, write: Callable[[str], None], mode: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._mode = mode
        self._clock = clock
        self._last_s = clock()
        self._tenths = -1

    def busy(self, what: str) -> None:
        """What begins now, if it is time for a line."""
        self._say(lambda: f"{what} …")

    def download(self, event: "Download") -> None:
        """A line at the start and for each tenth."""
        tenths = 10 * event.done_bytes // max(event.total_bytes, 1)
        if tenths != self._tenths:
            self._tenths = tenths
            self._write(download_line(event.repo, 10 * tenths, event.total_bytes))

    def prefill(self, event: Prefill) -> None:
        """Tokens read so far, if it is time for a line."""
        self._say(lambda: prefill_line(event))

    def step(self, stats: GenerationStats) -> None:
        """Tokens written so far, if it is time for a line."""
        self._say(lambda: status_line(stats, self._mode))

    def _say(self, line: Callable[[], str]) -> None:
        now_s = self._clock()
        if now_s - self._last_s >= LOG_S:
            self._last_s = now_s
            self._write(line())


class TerminalProgress(Progress):
    """Rich on a terminal that shows no model text: bar, then a live line in the same place."""

    def __init__(self, console: "Console", mode: str) -> None:
        self._console = console
        self._mode = mode
        self._busy_with = ""
        self._status: Status | None = None
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._live: Live | None = None
        self._drawn_s = 0.0

    def busy(self, what: str) -> None:
        """A spinner beside ``what``."""
        self.close()
        self._busy_with = what
        self._status = self._console.status(what, spinner="dots")
        self._status.start()

    def download(self, event: "Download") -> None:
        """A bar over all files of a download; at its end what it interrupted goes on."""
        if self._bar is None:
            self.close()
            self._bar = _download_bar(self._console)
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task("", total=event.total_bytes)
        what = f"downloading {event.repo}"
        self._bar.update(self._task, completed=event.done_bytes, description=what)
        if event.done_bytes == event.total_bytes:
            self._close_bars()
            if self._busy_with:
                self.busy(self._busy_with)

    def prefill(self, event: Prefill) -> None:
        """A bar over the prompt, which target and draft read chunk by chunk."""
        if self._bar is None:
            self.close()
            self._bar = _prefill_bar(self._console)
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task("reading", total=event.total_tokens, rate=0.0)
        rate = event.done_tokens / event.elapsed_s if event.elapsed_s > 0 else 0.0
        self._bar.update(self._task, completed=event.done_tokens, rate=rate)

    def before_text(self, text: str) -> None:
        """The bars give way; the live line does not stand where text goes."""
        self._close_bars()

    def step(self, stats: GenerationStats) -> None:
        """The live line, redrawn ten times a second at most."""
        from rich.live import Live

        self._close_bars()
        now_s = time.monotonic()
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        elif now_s - self._drawn_s < REDRAW_S:
            return
        self._drawn_s = now_s
        self._live.update(self._status_text(stats), refresh=True)

    def close(self) -> None:
        """The terminal is as it was."""
        self._close_bars()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _status_text(self, stats: GenerationStats) -> "Text":
        from rich.text import Text

        text = Text(status_line(stats, self._mode), style="cyan", no_wrap=True)
        text.truncate(max(self._console.width - _ECHO_CELLS, 1), overflow="ellipsis")
        return text

    def _close_bars(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._task = None


class SharedProgress(TerminalProgress):
    """The live line on the row below streamed text, on a terminal that shows both.

    Rich's ``Live`` wants whole lines above it; model text ends anywhere. So the line is drawn by
    hand: make sure that there is a row below, save the cursor, draw, restore. Before the next text
    the cursor is restored once more, which undoes an echoed ``^C``, and the rest is wiped. While
    the text's last row is full the terminal holds a wrap back, which a cursor movement would lose:
    then nothing is drawn for that step.
    """

    ROW_BELOW = "\x1bD\x1b[A\x1b7\r\n"
    BACK = "\x1b8"
    WIPE = "\x1b8\x1b[J"

    def __init__(self, console: "Console", mode: str) -> None:
        super().__init__(console, mode)
        self._column = 0
        self._is_drawn = False
        self._line = ""

    def before_text(self, text: str) -> None:
        """Wipe the line, and note where the cursor will stand."""
        super().before_text(text)
        self._wipe()
        self._column = column_after(printable(text), self._column, self._console.width)

    def step(self, stats: GenerationStats) -> None:
        """The line on the row below, if there is room for it."""
        self._close_bars()
        now_s = time.monotonic()
        is_due = now_s - self._drawn_s >= REDRAW_S
        if self._is_drawn and not is_due:
            return
        if is_due or not self._line:
            self._drawn_s = now_s
            self._line = self._rendered(stats)
        self._wipe()
        if self._column < self._console.width - 1:
            self._write(self.ROW_BELOW + self._line + self.BACK)
            self._is_drawn = True

    def close(self) -> None:
        """Text remains, the line does not."""
        super().close()
        self._wipe()
        self._column = 0

    def _rendered(self, stats: GenerationStats) -> str:
        with self._console.capture() as captured:
            self._console.print(self._status_text(stats), end="")
        return captured.get()

    def _wipe(self) -> None:
        if self._is_drawn:
            self._write(self.WIPE)
            self._is_drawn = False

    def _write(self, codes: str) -> None:
        self._console.file.write(codes)
        self._console.file.flush()


def _prefill_bar(console: "Console") -> "Bar":
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tok", markup=False),
        TextColumn("{task.fields[rate]:,.0f} tok/s", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )


def _download_bar(console: "Console") -> "Bar":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
