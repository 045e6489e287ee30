"""The live view of ``specx compare``: one column a run, its rates and the end of its text.

A frame on stderr is redrawn ten times a second at most, and its last state stays. Runs take turns,
so one column moves at a time. What models write is only text: no markup, no control characters.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from specx.bench.comparison import Began, Ended, Event, LiveRun, rates, speedup
from specx.bench.render.numbers import number, times
from specx.cli.format import fold
from specx.cli.progress import REDRAW_S, Progress
from specx.core.stats import GenerationStats, Prefill
from specx.errors import one_line, printable

FEWEST_ROWS = 12  # of a terminal that has room for columns
_COLUMN_CELLS = 16  # a narrower column holds no line of text; then runs are below each other
_MOST_TEXT_ROWS = 16
_FINAL_TEXT_ROWS = 4
_KEPT_CHARACTERS = 1 << 12  # more than any column shows
_GAP = 3  # between columns: space, rule, space
_ECHO_CELLS = 4  # room for the terminal's own ^C after the last line, which must not wrap
_WAITING = "waiting"
_WIDEST = "1,234 tok/s · 12.34 tok/step · 1.23x · equal"


class OneByOne:
    """The display of a single run, once for each: for a log, a pipe, or a small terminal."""

    def __init__(self, titles: Sequence[str], make: Callable[[str], Progress]) -> None:
        self._titles, self._make = [one_line(title) for title in titles], make
        self._progress = Progress()  # shows nothing

    def show(self, event: Event) -> None:
        """A bar while reading, then a line."""
        if isinstance(event, Began):
            self.close()
            self._progress = self._make(self._titles[event.index])
            if event.phase != "reading":
                self._progress.busy(f"{event.phase}: {self._titles[event.index]}")
        elif isinstance(event, Ended):
            self.close()
        elif isinstance(event.event, Prefill):
            self._progress.prefill(event.event)
        else:
            self._progress.step(event.event.stats)

    def close(self) -> None:
        """Wipe it."""
        self._progress.close()


@dataclass(slots=True)
class Column:
    """What one run shows: its state in a few words, and the end of its text."""

    title: str
    state: str = _WAITING
    is_running: bool = False
    text: str = ""

    def add(self, text: str) -> None:
        """More of the run's text."""
        self.text += printable(text).expandtabs(4)
        if len(self.text) > 2 * _KEPT_CHARACTERS:
            self.text = self.text[-_KEPT_CHARACTERS:]

    def tail(self, console: Console, width: int, rows: int) -> list[str]:
        """The last ``rows`` rows of the text, of at most ``width`` cells."""
        paragraphs = "\n".join(self.text.split("\n")[-max(rows, 1) :])
        lines = Text(paragraphs).wrap(console, width)
        return [line.plain.rstrip() for line in lines][-rows:] if rows > 0 else []


class Columns:
    """Side by side on a terminal, in place; below each other where that is too narrow."""

    def __init__(self, console: Console, titles: Sequence[str], subject: str) -> None:
        self._console, self._subject = console, one_line(subject)
        self._columns = [Column(one_line(title)) for title in titles]
        self._first: LiveRun | None = None
        self._live: Live | None = None
        self._drawn_s = 0.0
        self._number = 0

    def show(self, event: Event) -> None:
        """Take it in; draw if it is time, or if a run has entered another phase."""
        column = self._columns[event.index]
        self._number = event.index
        is_due = True
        if isinstance(event, Began):
            column.state, column.is_running = event.phase, True
        elif isinstance(event, Ended):
            self._first = self._first or event.run
            column.state, column.is_running = _result_state(event.run, self._first), False
        else:
            step = event.event
            if isinstance(step, Prefill):
                column.state = f"reading {step.done_tokens:,} of {step.total_tokens:,}"
            else:
                column.state = _state(step.stats)
                column.add(step.text)
            is_due = time.monotonic() - self._drawn_s >= REDRAW_S
        if is_due:
            self._draw()

    def close(self) -> None:
        """The last state stays, with fewer rows of text, so that the table below is near."""
        if self._live is not None:
            live, self._live = self._live, None
            for column in self._columns:
                if column.is_running or column.state == _WAITING:
                    column.state = "stopped" if column.is_running else "not run"
                column.is_running = False
            live.update(self._frame(is_final=True))
            live.stop()

    def _draw(self) -> None:
        self._drawn_s = time.monotonic()
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start()
        self._live.update(self._frame(is_final=False), refresh=True)

    def _frame(self, *, is_final: bool) -> RenderableType:
        size = self._console.size
        width = (size.width - 2 - _GAP * (len(self._columns) - 1)) // len(self._columns)
        is_wide = width >= _COLUMN_CELLS
        state_rows = len(fold(_WIDEST, width)) if is_wide else len(self._columns)
        spare = size.height - state_rows - (4 if is_wide else 3)
        rows = min(spare, _FINAL_TEXT_ROWS if is_final else _MOST_TEXT_ROWS)
        if is_wide:
            body = [self._side_by_side(width, state_rows, rows, is_final=is_final)]
        else:
            body = self._stacked(size.width - 1, 0 if is_final else rows)
        foot = f"run {self._number + 1} of {len(self._columns)} · {self._subject}"
        last_width = max(size.width - _ECHO_CELLS, 1)
        return Group(*body, Text() if is_final else _cut(Text(foot, style="dim"), last_width))

    def _side_by_side(
        self, width: int, state_rows: int, rows: int, *, is_final: bool
    ) -> RenderableType:
        grid = Table(box=box.MINIMAL, show_edge=False, pad_edge=True, padding=(0, 1))
        states, tails = [], [column.tail(self._console, width, rows) for column in self._columns]
        for column in self._columns:
            grid.add_column(_title(column, width), width=width, no_wrap=True)
            style = "cyan" if column.is_running else "dim" if column.state == _WAITING else ""
            states.append(_lines(fold(column.state, width)[:state_rows], state_rows, style))
        grid.add_row(*states)
        grid.add_row(*(_lines(tail, max(map(len, tails)) if is_final else rows) for tail in tails))
        return grid

    def _stacked(self, width: int, rows: int) -> list[RenderableType]:
        lines: list[RenderableType] = [
            _cut(Text.assemble(_title(column, width), "  ", column.state), width)
            for column in self._columns
        ]
        if rows > 0:
            tail = self._columns[self._number].tail(self._console, width, rows)
            lines += [Text("─" * width, style="dim"), _lines(tail, rows)]
        return lines


def _state(stats: GenerationStats) -> str:
    rate = rates(stats).decode_tok_s
    parts = [f"{number(rate)} tok/s" if rate else f"{stats.new_tokens} tok"]
    if stats.steps:
        parts.append(f"{stats.tokens_per_step:.2f} tok/step")
    return " · ".join(parts)


def _result_state(run: LiveRun, first: LiveRun) -> str:
    parts = [_state(run.result.stats)]
    if (ratio := speedup(run, first)) is not None:
        parts.append(times(ratio))
    if run.result.finish_reason == "interrupted":
        parts.append("interrupted")
    elif run.equal is not None:
        parts.append("equal" if run.equal else "differs")
    return " · ".join(parts)


def _cut(text: Text, width: int) -> Text:
    """On one line of at most ``width`` cells."""
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def _title(column: Column, width: int) -> Text:
    return _cut(Text(column.title, style="bold cyan" if column.is_running else "bold"), width)


def _lines(lines: Sequence[str], rows: int, style: str = "") -> Text:
    """Exactly ``rows`` of them, some empty."""
    return Text("\n".join([*lines, *[""] * (rows - len(lines))]), style=style, no_wrap=True)
