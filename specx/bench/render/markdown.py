"""Pipe tables for everything that is no terminal.

In: strings that nobody vouches for. Out: Markdown in which none of them is markup. It does not
know what the tables say.
"""

import re
from collections.abc import Sequence


def escaped(text: str) -> str:
    """Nothing in ``text`` is markup: no link, no image, no HTML, no cell border."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)


def pipe_table(rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> str:
    """A table of Markdown cells, the first row its header; columns of numbers stand to the right.

    The source is lined up too, since many read it as it is.
    """
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(widths, is_number, strict=True))
    rule = ["-" * (width - 1) + ":" if number else "-" * width for width, number in columns]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, (width, number) in zip(row, columns, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
