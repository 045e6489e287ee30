"""A report of one table: laid out by Rich on a terminal, Markdown in a pipe or a file.

Goes in: short strings, already free of control characters. Comes out: Markdown text, or a table
on the terminal. It does not know what the strings mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specx.bench.render.markdown import escaped, pipe_table
from specx.cli.console import out_console
from specx.cli.format import fold

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2  # cells between columns


@dataclass(frozen=True, slots=True)
class Grid:
    """Strings in columns, numbers but for the columns of ``words``. The first ``keys`` columns
    tell what a row is."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})
    keys: int = 1
    breaks: frozenset[int] = frozenset()  # rows with a rule above

    def turned(self) -> "Grid":
        """Rows and columns exchanged: the first column becomes the header."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Grid(header, tuple(rows))

    def widths(self) -> list[int]:
        """Cells of each column."""
        from rich.cells import cell_len

        columns = zip(self.header, *self.rows, strict=True)
        return [max(cell_len(cell) for cell in column) for column in columns]

    def parts(self, width: int) -> "list[Grid]":
        """The grid in pieces of at most ``width`` cells, each with the key columns."""
        widths = self.widths()
        keys = list(range(self.keys))
        least = sum(widths[: self.keys]) + _GAP * (self.keys - 1)
        pieces: list[list[int]] = [[]]
        used = least
        for column, cells in enumerate(widths[self.keys :], start=self.keys):
            if used + _GAP + cells > width and pieces[-1]:
                pieces.append([])
                used = least
            pieces[-1].append(column)
            used += _GAP + cells
        return [self._only([*keys, *piece]) for piece in pieces]

    def _only(self, columns: Sequence[int]) -> "Grid":
        header = tuple(self.header[column] for column in columns)
        rows = tuple(tuple(row[column] for column in columns) for row in self.rows)
        words = frozenset(at for at, column in enumerate(columns) if column in self.words)
        return Grid(header, rows, words, self.keys, self.breaks)

    def rich(self) -> "Table":
        """For a terminal; cells are text, never markup."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0)
        )
        for column, title in enumerate(self.header):
            justify: Any = "left" if column in self.words else "right"
            table.add_column(Text(title), justify=justify, overflow="fold")
        for number_, row in enumerate(self.rows):
            if number_ in self.breaks:
                table.add_section()
            table.add_row(*(Text(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """A pipe table, its source lined up too; nothing in a cell is markup."""
        rows = [[escaped(cell) for cell in row] for row in (self.header, *self.rows)]
        columns = range(len(self.header))
        return pipe_table(rows, [column not in self.words for column in columns]) + "\n"


@dataclass(frozen=True, slots=True)
class Report:
    """A table between lines. ``findings`` are results, ``notes`` explain."""

    title: tuple[str, ...]
    grid: Grid
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    def draw(self, color: str, *, turned: bool = False) -> None:
        """On this process's stdout, a terminal; ``turned``: rows and columns exchanged."""
        from rich.text import Text

        console = out_console(color)

        def lines(texts: Sequence[str], style: str) -> None:
            for text in texts:
                for row in fold(text, console.width):
                    console.print(Text(row, style=style))

        grid = self.grid.turned() if turned else self.grid
        lines(self.title, "bold")
        for part in grid.parts(console.width):
            console.print()
            console.print(part.rich())
        console.print()
        lines(self.findings, "bold")
        lines(self.notes, "dim")

    def markdown(self) -> str:
        """For everything that is no terminal."""
        title = "  \n".join(escaped(line) for line in self.title)
        items = "".join(f"- {escaped(line)}\n" for line in (*self.findings, *self.notes))
        return f"{title}\n\n{self.grid.markdown()}\n{items}"
