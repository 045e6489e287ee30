"""A bench as Markdown, in which no name is markup, and pipe tables for what is no terminal."""

import re
from collections.abc import Iterable

from specx.bench.render import numbers
from specx.bench.render.tables import Alarm, TableModel, report_tables
from specx.bench.schema import Bench


def escaped(text: str) -> str:
    """Nothing in ``text`` is markup: no link, no image, no HTML, no cell border."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(line.strip())}" for line in lines)


def to_markdown(bench: Bench, *, profile: bool) -> str:
    """The whole report as GitHub Markdown; ``profile`` adds the milliseconds of a step."""
    names = ", ".join(escaped(numbers.plain_text(preset.name)) for preset in bench.plan.presets)
    blocks = [f"# specx bench: {names}"]
    blocks += [f"**{escaped(line)}**" for line in numbers.stand_in_lines(bench)]
    blocks.append(bullets(numbers.floor_lines(bench)))
    for table in report_tables(bench, profile=profile):
        blocks += [f"## {escaped(table.title)}", table_markdown(table)]
    sections = {
        "Warnings": numbers.warning_lines(bench),
        "Definitions": numbers.definitions(bench),
        "Settings": numbers.settings(bench),
    }
    blocks += [f"## {title}\n\n{bullets(lines)}" for title, lines in sections.items() if lines]
    return "\n\n".join(filter(None, blocks)) + "\n"


def table_markdown(table: TableModel) -> str:
    """The table without its title, lined up in the source too, since many read it as it is."""
    titles = [re.sub(r"(?<=/)\n|\n(?=/)", "", title).replace("\n", " ") for title in table.header]
    rows = [[escaped(title.strip()) for title in titles]]
    rows += [[_cell(cell) for cell in row] for row in table.rows]
    # "<6" or ">6": how a cell of each column is padded, and with a dash before it the rule below
    sides = [">" if align == "right" else "<" for align in table.align]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{side}{width}" for side, width in zip(sides, widths, strict=True)]
    rows.insert(1, [format(":" if form[0] == ">" else "", f"-{form}") for form in forms])
    lines = [" | ".join(map(format, row, forms)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(cell: str) -> str:
    # an interval in brackets is ours and no link; anything with a letter may be a name
    is_number = re.fullmatch(r"[\d.,x/ –-]+(\[[\d., ]+\])?", cell)
    text = cell if is_number else escaped(cell.replace("\n", " "))
    return f"**{text}**" if isinstance(cell, Alarm) else text
