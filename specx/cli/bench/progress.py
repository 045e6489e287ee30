"""A bench's progress on stderr: a bar with the cell under way, or a rare line in a log.

Goes in: the runner's events. Comes out: what is drawn on stderr. It does not know how cells run.
"""

import time
from typing import TYPE_CHECKING

from specx.cli.console import Screen
from specx.cli.format import seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from specx.bench.record import Cell, Sample
    from specx.bench.runner import Event

LOG_S = 30.0


class BenchProgress:
    """Shows events as they come; with ``-v`` one line a finished cell too."""

    def __init__(self, screen: Screen, total: int) -> None:
        self._screen, self._total = screen, total
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._logged_s = time.monotonic()

    def show(self, event: "Event") -> None:
        """One event of the runner."""
        from specx.bench.runner import Loading, Measured, Missed, Running

        if isinstance(event, Loading):
            self._tell(f"loading {event.preset}", 0)
        elif isinstance(event, Running):
            left = "" if event.left_s is None else f" · {seconds(event.left_s)} left"
            warmup = " · warm-up" if event.is_warmup else ""
            self._tell(f"{_name(event.cell)}{warmup}{left}", event.done)
        elif isinstance(event, Measured):
            self._screen.detail(_finished(event.sample, event.done, event.total))
        elif isinstance(event, Missed):
            self._screen.warn(f"not measured: {_name(event.cell)}: {event.reason}")

    def close(self) -> None:
        """The terminal is as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tell(self, what: str, done: int) -> None:
        if self._screen.quiet:
            return
        if self._screen.is_live:
            self._draw(what, done)
            return
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_S:
            self._logged_s = now_s
            self._screen.note(f"{done} of {self._total} runs · {what}")

    def _draw(self, what: str, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        if self._bar is None:
            self._bar = Progress(
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis"),
                ),
                console=self._screen.console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=self._total)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, description=what, completed=done)


def _name(cell: "Cell") -> str:
    rep = f" · repetition {cell.rep + 1}" if cell.rep else ""
    document = f"document {cell.document + 1}"
    return f"{cell.preset} {cell.mode} · {cell.length:,} tokens · {document}{rep}"


def _finished(sample: "Sample", done: int, total: int) -> str:
    from specx.bench.report import decode_tok_s, prefill_tok_s

    rates = [
        f"{name} {rate:,.1f} tok/s"
        for name, rate in (("prefill", prefill_tok_s(sample)), ("decode", decode_tok_s(sample)))
        if rate is not None
    ]
    return " · ".join([f"{done} of {total}", _name(sample.cell), *rates])
