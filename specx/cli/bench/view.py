"""A bench's tables on a terminal.

Goes in: a ``specx.bench/1`` object. Comes out: Rich output on stdout. It computes nothing.
"""

from typing import TYPE_CHECKING, Any

from specx.cli.console import out_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from specx.bench.render.tables import TableModel

_GAP = 2  # blanks between the columns of a table
_LONGEST_BAR = 60
# Okabe and Ito's colours, which colour-blind people tell apart, in the order of a step.
_PHASE_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7")
_PHASE_MARKS = "█▓▒░▚▞▄▀▌"


def render(bench: dict[str, Any], color: str, *, profile: bool, plot: bool) -> None:
    """Floor, tables, warnings, definitions and settings, as one report."""
    from specx.bench.render.paper import paper_lines, paper_table
    from specx.bench.render.tables import (
        definitions,
        floor_lines,
        footer,
        main_table,
        memory_table,
        profile_table,
        stand_in_lines,
    )

    console = out_console(color)
    print_lines(console, [f"{line}." for line in stand_in_lines(bench)], "bold")
    print_lines(console, floor_lines(bench))
    fitting(console, [main_table(bench, layout) for layout in ("full", "wide", "narrow")])
    fitting(console, [paper_table(bench)])
    fitting(console, [memory_table(bench)])
    if profile:
        fitting(console, [profile_table(bench), profile_table(bench, narrow=True)])
        _bars(console, bench)
    if plot and bench["cells"]:
        _plot(console, bench)
    console.print()
    print_lines(console, [*definitions(bench), *paper_lines(bench)], "dim")
    console.print()
    print_lines(console, footer(bench))


def fitting(console: "Console", models: list["TableModel"]) -> None:
    """The first of the same table's layouts, widest first, for which there is room."""
    model = next((each for each in models if each.width(_GAP) <= console.width), models[-1])
    if model.rows:
        gap = _GAP if model.width(_GAP) <= console.width else 1
        console.print()
        console.print(_table(model, gap))


def _table(model: "TableModel", gap: int) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        title=Text(model.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,  # puts a blank of its own between columns
        padding=(0, gap - 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for title, align in zip(model.header, model.align, strict=True):
        grid.add_column(Text(title), justify=align, overflow="fold", vertical="top")
    for number, row in enumerate(model.rows):
        if number in model.group_breaks:
            grid.add_section()
        grid.add_row(
            *(
                Text(cell, style="bold red" if (number, column) in model.alarms else "")
                for column, cell in enumerate(row)
            )
        )
    return grid


def _bars(console: "Console", bench: dict[str, Any]) -> None:
    """Where a step's time goes, one stacked bar a row; phases differ in colour and in pattern."""
    from rich.text import Text

    from specx.bench.render.tables import profile_bars

    widest = max((len(label) for label, _ in profile_bars(bench, 1)), default=0)
    bars = profile_bars(bench, max(10, min(_LONGEST_BAR, console.width - widest - 2)))
    # the longest list of phases has all of them, in the order of a step
    phases = max(([phase for phase, *_ in parts] for _, parts in bars), key=len, default=[])
    looks = {
        phase: (_PHASE_COLORS[turn % len(_PHASE_COLORS)], _PHASE_MARKS[turn % len(_PHASE_MARKS)])
        for turn, phase in enumerate(phases)
    }
    console.print()
    for label, parts in bars:
        line = Text(f"{label:<{widest}}  ")
        for phase, cells, _ in parts:
            paint, mark = looks[phase]
            line.append(mark * cells, style=paint)
        console.print(line)
    drawn = {phase for _, parts in bars for phase, cells, _ in parts if cells}
    console.print(*_legend(looks, drawn, console.width), sep="\n")


def _legend(looks: dict[str, tuple[str, str]], drawn: set[str], width: int) -> list["Text"]:
    """What the marks stand for; a line ends between two phases, never inside one."""
    from rich.text import Text

    lines = [Text()]
    for phase, (paint, mark) in looks.items():
        if phase not in drawn:
            continue
        item = Text.assemble((mark, paint), f" {phase}")
        if not lines[-1]:
            lines[-1].append_text(item)
        elif len(lines[-1]) + 2 + len(item) <= width:
            lines[-1].append("  ").append_text(item)
        else:
            lines.append(item)
    return lines


def _plot(console: "Console", bench: dict[str, Any]) -> None:
    from rich.text import Text

    from specx.bench.render.plots import terminal_plot

    has_color = console.color_system is not None and not console.no_color
    drawn = terminal_plot(bench, min(console.width, 100), 18, color=has_color)
    console.print()
    console.print(Text.from_ansi(drawn))


def print_lines(console: "Console", lines: list[str], style: str = "") -> None:
    """Each as it stands: nothing in a line is markup."""
    from rich.text import Text

    for line in lines:
        console.print(Text(line, style=style))
