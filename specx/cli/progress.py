"""Progress on stderr: a prefill bar and a live line on a terminal, a rare plain line elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from specx.cli.format import download_line, prefill_line, prefill_tokens_per_s, status_line
from specx.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn
    from rich.status import Status
    from rich.text import Text

    from specx.checkpoints.download import Download, Notice
    from specx.cli.console import Screen
    from specx.core.stats import GenerationStats, Prefill

REDRAW_S = 0.1
LOG_S = 10.0
_ECHO_CELLS = 4  # room for the terminal's own ^C after the live line, which must not wrap


class Progress:
    """What a run reports while it works. This one shows nothing."""

    def busy(self, what: str) -> None:
        """Something without a measure goes on (loading, verifying)."""

    def download(self, event: "Download") -> None:
        """So many bytes are here; the first event of a download comes before its first byte."""

    def prefill(self, event: "Prefill") -> None:
        """The prompt has been read this far."""

    def before_text(self, text: str) -> None:
        """``text`` is about to be written to stdout."""

    def step(self, stats: "GenerationStats") -> None:
        """A verify step has ended and its text has been written."""

    def close(self) -> None:
        """Wipe whatever is on display; may be called at any time, and again."""


class LogProgress(Progress):
    """For a log: one plain line at most every ten seconds, for a download one each tenth."""

    def __init__(self, write: Callable[[str], None], mode: str) -> None:
        self._write, self._mode, self._last_s = write, mode, time.monotonic()
        self._tenths = -1

    def busy(self, what: str) -> None:
        self._say(lambda: f"{what} …")

    def download(self, event: "Download") -> None:
        tenths = 10 * event.done_bytes // max(event.total_bytes, 1)
        if tenths != self._tenths:
            self._tenths = tenths
            self._write(download_line(event.repo, 10 * tenths, event.total_bytes))

    def prefill(self, event: "Prefill") -> None:
        self._say(lambda: prefill_line(event))

    def step(self, stats: "GenerationStats") -> None:
        self._say(lambda: status_line(stats, self._mode))

    def _say(self, line: Callable[[], str]) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= LOG_S:
            self._last_s = now_s
            self._write(line())


class TerminalProgress(Progress):
    """Rich on a terminal that shows no model text: one display at a time, in the same place."""

    def __init__(self, console: "Console", mode: str) -> None:
        self._console, self._mode, self._busy_with = console, mode, ""
        self._shown: Status | Bar | Live | None = None
        self._drawn_s = 0.0

    def busy(self, what: str) -> None:
        self._busy_with = what
        self._show(self._console.status(what, spinner="dots"))

    def download(self, event: "Download") -> None:
        from rich.progress import DownloadColumn, TransferSpeedColumn

        columns = DownloadColumn(binary_units=True), TransferSpeedColumn()
        what, done, total = f"downloading {event.repo}", event.done_bytes, event.total_bytes
        self._advance(what, done, total, *columns)
        if event.done_bytes == event.total_bytes:
            self.close()
            if self._busy_with:  # goes on after the interruption
                self.busy(self._busy_with)

    def prefill(self, event: "Prefill") -> None:
        counts = "{task.completed:,.0f}/{task.total:,.0f} tok", "{task.fields[rate]:,.0f} tok/s"
        rate = prefill_tokens_per_s(event)
        self._advance("reading", event.done_tokens, event.total_tokens, *counts, rate=rate)

    def step(self, stats: "GenerationStats") -> None:
        from rich.live import Live

        live = self._shown
        if not isinstance(live, Live):
            live = Live(console=self._console, transient=True, auto_refresh=False)
            self._show(live)
        elif not self._is_due():
            return
        live.update(self._status_text(stats), refresh=True)

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._drawn_s < REDRAW_S:
            return False
        self._drawn_s = now_s
        return True

    def _status_text(self, stats: "GenerationStats") -> "Text":
        from rich.text import Text

        text = Text(status_line(stats, self._mode), style="cyan", no_wrap=True)
        text.truncate(max(self._console.width - _ECHO_CELLS, 1), overflow="ellipsis")
        return text

    def _advance(
        self, what: str, done: int, total: int, *columns: "ProgressColumn | str", rate: float = 0.0
    ) -> None:
        from rich.progress import BarColumn, Progress, TimeRemainingColumn

        bar = self._shown
        if not isinstance(bar, Progress):
            all_columns = (BarColumn(24), *columns, TimeRemainingColumn(compact=True))
            bar = Progress(
                "{task.description}", *all_columns, console=self._console, transient=True
            )
            bar.add_task(what, total=total, rate=rate)
            self._show(bar)
        bar.update(bar.task_ids[0], completed=done, description=what, rate=rate)

    def _show(self, display: "Status | Bar | Live") -> None:
        self.close()
        self._shown = display
        display.start()


class SharedProgress(TerminalProgress):
    """The live line on the row below streamed text, on a terminal that shows both.

    Rich's ``Live`` wants whole lines above it; model text ends anywhere. So the line is drawn by
    hand: make sure that there is a row below, save the cursor, draw, restore. Before the next text
    the cursor is restored once more, which undoes an echoed ``^C``, and the rest is wiped. A full
    last row holds its wrap back, which a cursor movement would lose: then nothing is drawn.
    """

    ROW_BELOW = "\x1bD\x1b[A\x1b7\r\n"
    BACK = "\x1b8"
    WIPE = "\x1b8\x1b[J"

    def __init__(self, console: "Console", mode: str) -> None:
        super().__init__(console, mode)
        self._column, self._line, self._is_drawn = 0, "", False

    def before_text(self, text: str) -> None:
        self._wipe()
        self._column = column_after(printable(text), self._column, self._console.width)

    def step(self, stats: "GenerationStats") -> None:
        is_due = self._is_due()
        if self._is_drawn and not is_due:
            return
        if is_due or not self._line:
            with self._console.capture() as captured:
                self._console.print(self._status_text(stats), end="")
            self._line = captured.get()
        self._wipe()
        if self._column < self._console.width - 1:
            self._write(self.ROW_BELOW + self._line + self.BACK)
            self._is_drawn = True

    def close(self) -> None:
        self._wipe()
        self._column = 0

    def _wipe(self) -> None:
        super().close()
        if self._is_drawn:
            self._write(self.WIPE)
            self._is_drawn = False

    def _write(self, codes: str) -> None:
        self._console.file.write(codes)
        self._console.file.flush()


def column_after(text: str, column: int, width: int) -> int:
    """The cursor's column after ``text`` (printable) was written at ``column``, 0 … ``width``.

    ``width`` itself means that the row is full and the terminal will wrap before the next cell.
    """
    from rich.cells import cell_len

    _, newline, rest = text.rpartition("\n")
    column = 0 if newline else column
    for char in rest:
        cells = cell_len(char)
        if char == "\t":
            column = min((column // 8 + 1) * 8, width - 1)
        else:
            column = cells if column + cells > width else column + cells
    return column


@contextlib.contextmanager
def downloads_shown(screen: "Screen", progress: Progress | None = None) -> Iterator[None]:
    """Show downloads in this block: by ``progress``, or in lines above a command's own display."""
    from specx.checkpoints.download import Notice, listening

    shown = progress or (Progress() if screen.quiet else LogProgress(screen.note, ""))

    def hear(event: "Download | Notice") -> None:
        if isinstance(event, Notice):
            screen.note(event.text)
        else:
            shown.download(event)

    with listening(hear):
        yield
