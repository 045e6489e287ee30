"""Where a bench goes: its progress on stderr, its tables on a terminal, its exports."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specx.cli.console import Screen, out_console
from specx.cli.format import fold, seconds, table
from specx.cli.output_file import FileSink, check_replaceable
from specx.cli.result_json import dumps
from specx.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from specx.bench.render.report import Report
    from specx.bench.render.tables import TableModel
    from specx.bench.runner import Event
    from specx.bench.schema import Bench, BenchCell

SUFFIXES = (".json", ".jsonl", ".csv", ".md", ".png", ".svg", ".html")
_DRAWN = (".png", ".svg")
_LOG_S = 30.0


def settle_libraries(screen: Screen) -> None:
    """What others read when they are imported."""
    if screen.verbose < 2:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class BenchProgress:
    """Events as they come: a bar with the cell under way, or a rare line in a log; with ``-v``
    one line a finished cell too."""

    def __init__(self, screen: Screen, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self._screen, self._total = screen, total
        self._logged_s = time.monotonic()
        one_line = Column(no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False, table_column=one_line),
            console=screen.console,
            transient=True,
            disable=not screen.is_live or screen.quiet > 0,
        )
        self._task = self._bar.add_task("", total=total)

    def show(self, event: "Event") -> None:
        """One event of the runner."""
        from specx.bench.runner import Loading, Measured, Missed, Running

        match event:
            case Loading():
                self._say(f"loading {event.preset}", 0)
            case Running():
                left = "" if event.left_s is None else f" · {seconds(event.left_s)} left"
                warmup = " · warm-up" if event.is_warmup else ""
                self._say(f"{_name(event.cell)}{warmup}{left}", event.done)
            case Measured(sample=run):
                line = f"{event.done} of {event.total} · {_name(run.cell)}"
                for name, rate in (("prefill", run.prefill_tok_s), ("decode", run.decode_tok_s)):
                    line += "" if rate is None else f" · {name} {rate:,.1f} tok/s"
                self._screen.detail(line)
            case Missed():
                self._screen.warn(f"not measured: {_name(event.cell)}: {event.reason}")

    def close(self) -> None:
        """The terminal is as it was."""
        if not self._bar.disable:
            self._bar.stop()

    def _say(self, what: str, done: int) -> None:
        if not self._bar.disable:
            self._bar.update(self._task, description=what, completed=done)
            self._bar.start()
        elif time.monotonic() - self._logged_s >= _LOG_S:
            self._logged_s = time.monotonic()
            self._screen.note(f"{done} of {self._total} runs · {what}")


def _name(cell: "BenchCell") -> str:
    rep = f" · repetition {cell.rep + 1}" if cell.rep else ""
    return f"{cell.preset} {cell.mode} · {cell.length:,} tokens · document {cell.document + 1}{rep}"


# Files


def check_exports(paths: list[Path], *, force: bool, inputs: list[str]) -> None:
    """``--export``: the suffix says the format. Raises ``UsageError`` for a place that cannot be
    used; ``inputs`` are files that are read, and so never replaced."""
    for path in paths:
        suffix, reason, hints = path.suffix.lower(), "", []
        if suffix not in SUFFIXES:
            reason, hints = "the suffix says the format", [" ".join(SUFFIXES)]
        elif path.is_dir():
            reason = "it is a directory"
        elif not path.parent.is_dir():
            reason = f"there is no directory {path.parent}"
        elif path.exists():
            check_replaceable(Path(os.path.realpath(path)), str(path), force=force, inputs=inputs)
        if not reason and not os.access(path.parent, os.W_OK):
            reason = "the directory is not writable"
        if reason:
            raise UsageError(f"cannot export to {path}", reason=reason, hints=hints)
        if suffix in _DRAWN:
            from specx.bench.render.chart import require_matplotlib

            require_matplotlib()


def export(bench: "Bench", path: Path, *, profile: bool) -> None:
    """Write one file, which is there as a whole or not at all. Raises ``SpecxError``."""
    from specx.bench.render.figure import figure_bytes

    suffix = path.suffix.lower()
    with FileSink(path) as sink:
        if suffix in _DRAWN:
            sink.write_bytes(figure_bytes(bench, suffix[1:]))
        else:
            sink.write(as_text(bench, suffix[1:], profile=profile))


def as_text(bench: "Bench", kind: str, *, profile: bool) -> str:
    """``bench`` as json, jsonl, csv, md or html."""
    from specx.bench.render.flat import to_csv, to_jsonl
    from specx.bench.render.html import to_html
    from specx.bench.render.markdown import to_markdown

    if kind == "json":
        return dumps(bench.as_json(), "json")
    if kind == "md":
        return to_markdown(bench, profile=profile)
    return {"jsonl": to_jsonl, "csv": to_csv, "html": to_html}[kind](bench)


# A terminal


def render(bench: "Bench", color: str, *, profile: bool, plot: bool) -> None:
    """Floor, tables, warnings, definitions and settings, as one report."""
    from rich.text import Text

    from specx.bench.render import numbers, terminal_plot
    from specx.bench.render.tables import report_tables

    console = out_console(color)
    has_color = console.color_system is not None and not console.no_color
    _print_lines(console, numbers.stand_in_lines(bench), "bold")
    _print_lines(console, numbers.floor_lines(bench))
    for each in report_tables(bench, profile=profile):
        _print_table(console, each)
    if profile:
        drawn = terminal_plot.step_bars(bench, console.width, color=has_color)
        console.print("", Text.from_ansi(drawn), sep="\n")
    if plot and bench.cells:
        width = min(console.width, 100)
        drawn = terminal_plot.terminal_plot(bench, width, 18, color=has_color)
        console.print("", Text.from_ansi(drawn), sep="\n")
    console.print()
    _print_lines(console, numbers.definitions(bench), "dim")
    console.print()
    _print_lines(console, numbers.footer(bench))


def _print_table(console: "Console", whole: "TableModel") -> None:
    """In as many parts as the console's width asks for."""
    from rich.text import Text

    from specx.bench.render.tables import Alarm

    for part in whole.parts(console.width):
        grid = table(part.header, (), padding=(0, 1, 0, 0))
        if whole.title:
            grid.title, grid.title_justify = Text(whole.title, style="bold"), "left"
        for column, align in zip(grid.columns, part.align, strict=True):
            column.justify = align
        for number, row in enumerate(part.rows):
            if number in part.group_breaks:
                grid.add_section()
            grid.add_row(*(Text(cell, "bold red" * isinstance(cell, Alarm)) for cell in row))
        console.print("", grid, sep="\n")


def _print_lines(
    console: "Console", lines: Sequence[str], style: str = "", *, folds: bool = False
) -> None:
    """Each as it is: nothing in a line is markup."""
    from rich.text import Text

    for line in lines:
        for row in fold(line, console.width) if folds else [line]:
            console.print(Text(row, style=style))


def draw_report(report: "Report", color: str) -> None:
    """On this process's stdout, a terminal, in as many tables as its width asks for."""
    console = out_console(color)
    _print_lines(console, report.title, "bold", folds=True)
    _print_table(console, report.table)
    console.print()
    _print_lines(console, report.findings, "bold", folds=True)
    _print_lines(console, report.notes, "dim", folds=True)
