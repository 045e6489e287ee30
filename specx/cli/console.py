"""stderr: messages in three grades of importance, and the progress display that fits."""

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from specx.cli.errors import OutputClosed, debug_lines, error_lines, is_on
from specx.cli.format import fold, tab_separated, table
from specx.cli.output_file import Sink
from specx.cli.progress import LogProgress, Progress, SharedProgress, TerminalProgress
from specx.errors import SpecxError, printable

if TYPE_CHECKING:
    from rich.console import Console


class Screen:
    """stderr as one object; ``quiet`` 1 hides notes and stats, 2 hides warnings too."""

    def __init__(self, *, color: str = "auto", quiet: int = 0, verbose: int = 0) -> None:
        self.quiet, self.verbose, self.color = quiet, verbose, color
        self.is_terminal = sys.stderr.isatty()
        self._shows_progress = not is_on(os.environ.get("SPECX_NO_PROGRESS"))
        is_forced = color == "always" or is_on(os.environ.get("FORCE_COLOR"))
        self.console = plain_console(
            stderr=True,
            force_terminal=self.is_terminal or is_forced,
            color_system="auto" if wants_color(color) else None,
        )

    @property
    def is_live(self) -> bool:
        """Whether something may be drawn here and drawn over."""
        return self.is_terminal and self._shows_progress and os.environ.get("TERM") != "dumb"

    def note(self, text: str) -> None:
        if self.quiet < 1:
            self._remark(text, "dim")

    def detail(self, text: str) -> None:
        """Show what only ``-v`` asks for."""
        if self.verbose:
            self._remark(text, "dim")

    def warn(self, text: str) -> None:
        """Show something that the user should know and that is no failure."""
        if self.quiet < 2:
            self._remark(f"warning: {text}", "yellow")

    def fail(self, error: SpecxError) -> None:
        """Show an error, whatever ``quiet`` says; with ``SPECX_DEBUG`` its traceback first."""
        self._print(debug_lines(error))
        what, *rest = error_lines(error)
        self._print([what], "bold red")
        self._print(rest)

    def progress(self, mode: str, *, shows_text: bool, shows_thoughts: bool = False) -> Progress:
        """The display for one run; ``shows_text``: model text is streamed to a terminal;
        ``shows_thoughts``: to this one."""
        if self.quiet or not self._shows_progress:
            return Progress()
        if not self.is_live:
            return LogProgress(self.note, mode)
        if shows_thoughts:
            return SharedProgress(self.console, mode)
        if not shows_text:
            return TerminalProgress(self.console, mode)
        return SharedProgress(self.console, mode) if _same_terminal() else Progress()

    def _remark(self, text: str, style: str) -> None:
        """On a terminal wrapped between parts or words, in a log one line."""
        lines = fold(text, self.console.width) if self.is_terminal else [text]
        self._print(lines, style, wraps=self.is_terminal)

    def _print(self, lines: Iterable[str], style: str = "", *, wraps: bool = False) -> None:
        from rich.text import Text

        with contextlib.suppress(OSError):  # a full disk under stderr must not cost the answer
            for line in lines:
                self.console.print(Text(printable(line), style=style), soft_wrap=not wraps)


def wants_color(color: str) -> bool:
    """What ``--color`` and NO_COLOR say about a terminal."""
    return color == "always" or (color == "auto" and not os.environ.get("NO_COLOR"))


def plain_console(**settings: Any) -> "Console":
    """A Rich console that takes text as it is. ``OutputClosed`` when its reader has gone."""
    from rich.console import Console

    class ClosingConsole(Console):
        def on_broken_pipe(self) -> None:
            raise OutputClosed

    return ClosingConsole(highlight=False, markup=False, emoji=False, **settings)


def out_console(color: str = "auto") -> "Console":
    """Rich on stdout, for tables that specx itself made up; never for model text."""
    return plain_console(
        force_terminal=True if color == "always" else None,
        color_system=None if color == "never" else "auto",
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], color: str = "auto") -> None:
    """A table on stdout; tabs between the cells where it is no terminal."""
    if sys.stdout.isatty():
        out_console(color).print(table(header, rows))
    else:
        Sink().write(tab_separated(header, rows))


def _same_terminal() -> bool:
    try:
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    except (OSError, AttributeError):  # no terminal, or a system without terminal names
        return False
