"""A table before it is laid out: strings, and what a layout has to know of them.

In: nothing. Out: ``TableModel``. It does not know benches, the screen or files.
"""

from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class TableModel:
    """Strings to be laid out. A header may hold line breaks, and so may a cell if narrow.

    ``group_breaks``: rows that begin another preset or length. ``alarms``: cells (row, column)
    that tell of a fault and must stand out.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    align: tuple[Align, ...]
    group_breaks: frozenset[int] = frozenset()
    alarms: frozenset[tuple[int, int]] = frozenset()

    def width(self, gap: int = 2) -> int:
        """Cells of a terminal that the widest row takes, with ``gap`` between columns."""
        columns = zip(self.header, *self.rows, strict=True)
        widths = [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]
        return sum(widths) + gap * (len(widths) - 1)
