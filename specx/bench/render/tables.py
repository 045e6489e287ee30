"""A bench as tables and as Markdown.

In: a ``specx.bench/1`` object. Out: rows of short strings, or a whole text. It does not know the
screen, files, or how a value was measured: every number here is read from the object.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from specx.bench.record import PHASES, Object
from specx.bench.render.flat import to_csv, to_jsonl
from specx.bench.render.markdown import escaped, pipe_table
from specx.bench.render.model import Align, TableModel
from specx.bench.render.numbers import (
    NOTHING,
    baseline_name,
    definitions,
    floor_lines,
    footer,
    milliseconds,
    number,
    plain_text,
    preset_names,
    settings,
    size,
    stand_in_label,
    stand_in_lines,
    times,
    warning_lines,
)
from specx.bench.render.paper import paper_lines, paper_table

__all__ = [
    "TableModel",
    "definitions",
    "floor_lines",
    "footer",
    "main_table",
    "memory_table",
    "profile_bars",
    "profile_table",
    "stand_in_lines",
    "to_csv",
    "to_jsonl",
    "to_markdown",
]

#: full: as many columns as it takes; wide: for 100 columns of a terminal; narrow: for 80.
Layout = Literal["full", "wide", "narrow"]

#: Levels of the draft's tree that get a column of their own; deeper ones share one.
_OWN_LEVELS = 2
_HOST_PHASES = {"draft_tree": "tree"}


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    text: Callable[[Object], str]  # of a cell of the bench
    align: Align = "right"
    is_alarm: Callable[[Object], bool] = lambda cell: False


def main_table(bench: Object, layout: Layout = "full") -> TableModel:
    """Speed, acceptance and equality by prompt length and mode.

    The usual modes take at most 100 columns of a terminal as "wide" and 80 as "narrow", names of
    ablations included.
    """
    baseline = baseline_name(bench)
    over = f"speed-up\nover {baseline}" if baseline else "\nspeed-up"
    columns = [
        *_place(bench, is_narrow=layout == "narrow"),
        _Column("prefill\ntok/s", lambda cell: _median(cell, "prefill_tok_s")),
        _Column("decode\ntok/s", lambda cell: _median(cell, "decode_tok_s")),
        _Column("overall\ntok/s", lambda cell: _median(cell, "end_to_end_tok_s")),
        _Column(over, lambda cell: _speedup(bench, cell, layout == "narrow"), "left"),
        *_counts(layout),
        *_floors(layout),
        _Column("\nequal", _equality, is_alarm=_is_unequal),
    ]
    title = _titled(bench, "Speed")
    return _table(
        f"{title}, compared with {baseline}" if baseline else title, columns, bench["cells"]
    )


def _counts(layout: Layout) -> list[_Column]:
    if layout == "narrow":
        return [_Column("tok\nacc\n/step", lambda cell: _stacked(_counted(cell)))]
    return [
        _Column("tok/\nstep", lambda cell: _counted(cell)[0]),
        _Column("acc/\nstep", lambda cell: _counted(cell)[1]),
    ]


def _floors(layout: Layout) -> list[_Column]:
    if layout == "full":
        return [
            _Column("decode\n/floor", lambda cell: _over_floor(cell)[0]),
            _Column("prefill\n/floor", lambda cell: _over_floor(cell)[1]),
        ]
    if layout == "wide":
        return [_Column("dec pre\n/floor", lambda cell: " ".join(_over_floor(cell)))]
    return [_Column("dec\npre\n/floor", lambda cell: _stacked(_over_floor(cell)))]


def memory_table(bench: Object) -> TableModel:
    """Memory by owner, and energy where it was measured."""
    columns = [*_place(bench)]
    for header, key in (
        ("weights", "weights"),
        ("target KV", "kv_target"),
        ("draft KV", "kv_draft"),
        ("peak", "peak"),
    ):
        columns.append(_Column(header, lambda cell, key=key: _bytes(cell, key)))  # type: ignore[misc]
    title = "Memory"
    if any(cell["summary"]["energy_j_per_token"] is not None for cell in bench["cells"]):
        title = "Memory and energy"
        columns.append(_Column("J/token", _joules))
    return _table(_titled(bench, title), columns, bench["cells"])


def profile_table(bench: Object, *, narrow: bool = False) -> TableModel:
    """Milliseconds of a verify step by phase, for what has a profile; no rows if nothing has.

    ``narrow`` joins the levels of the draft, for 80 columns.
    """
    cells = [cell for cell in bench["cells"] if cell["summary"]["profile_ms"]]
    own_levels = 0 if narrow else _OWN_LEVELS
    splits = [dict(_phases(cell, own_levels)) for cell in cells]
    names = [name for name in _phase_names(own_levels) if any(name in split for split in splits)]
    columns = [*_place(bench, is_narrow=narrow)]
    for name in names:
        header = "re-\ntrieve" if narrow and name == "retrieve" else name.replace(" ", "\n")
        columns.append(
            _Column(header, lambda cell, name=name: _phase(cell, name, own_levels))  # type: ignore[misc]
        )
    columns += [
        _Column("total", lambda cell: milliseconds(_step_ms(cell))),
        _Column("ms\n/token", _token_ms),
    ]
    return _table(_titled(bench, "Milliseconds of a verify step"), columns, cells)


def profile_bars(bench: Object, width: int) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Stacked bars: label, then (phase, cells, milliseconds); the longest has ``width`` cells."""
    cells = [cell for cell in bench["cells"] if cell["summary"]["profile_ms"]]
    longest_ms = max((_step_ms(cell) for cell in cells), default=0.0)
    bars = []
    for cell in cells:
        parts = _phases(cell)
        sizes = _shares([ms for _, ms in parts], width / longest_ms if longest_ms else 0.0)
        label = " ".join(column.text(cell) for column in _place(bench))
        segments = [(name, many, ms) for (name, ms), many in zip(parts, sizes, strict=True)]
        bars.append((label, segments))
    return bars


def _shares(values: Sequence[float], scale: float) -> list[int]:
    """``values * scale`` in whole cells whose sum is the rounded sum: ends of segments round."""
    edges = [0]
    total = 0.0
    for value in values:
        total += value
        edges.append(round(total * scale))
    return [end - start for start, end in itertools.pairwise(edges)]


def to_markdown(bench: Object, *, profile: bool) -> str:
    """The whole report as GitHub Markdown; ``profile`` adds the milliseconds of a step."""
    tables = [main_table(bench), paper_table(bench), memory_table(bench)]
    if profile:
        tables.append(profile_table(bench))
    names = ", ".join(escaped(plain_text(name)) for name in preset_names(bench))
    blocks = [f"# specx bench: {names}"]
    blocks += [f"**{escaped(line)}.**" for line in stand_in_lines(bench)]
    blocks.append(_bullets(floor_lines(bench)))
    for table in tables:
        if table.rows:
            blocks += [f"## {escaped(table.title)}", _grid(table)]
    warnings = warning_lines(bench)
    if warnings:
        blocks += ["## Warnings", _bullets(warnings)]
    blocks += ["## Definitions", _bullets([*definitions(bench), *paper_lines(bench)])]
    blocks += ["## Settings", _bullets(settings(bench))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _titled(bench: Object, title: str) -> str:
    """``title``, and whose weights were measured where they are not the checkpoints'."""
    label = stand_in_label(bench)
    return f"{title} with {label}" if label else title


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(line.strip())}" for line in lines)


def _grid(table: TableModel) -> str:
    titles = [re.sub(r"(?<=/)\n|\n(?=/)", "", title).replace("\n", " ") for title in table.header]
    rows = [
        [_markdown_cell(cell, (r, c) in table.alarms) for c, cell in enumerate(row)]
        for r, row in enumerate(table.rows)
    ]
    header = [escaped(title.strip()) for title in titles]
    return pipe_table([header, *rows], [align == "right" for align in table.align])


def _markdown_cell(cell: str, is_alarm: bool) -> str:
    # an interval in brackets is ours and no link; anything with a letter may be a name
    is_number = re.fullmatch(r"[\d.,x/ –-]+(\[[\d., ]+\])?", cell)
    text = cell if is_number else escaped(cell.replace("\n", " "))
    return f"**{text}**" if is_alarm else text


def _table(title: str, columns: Sequence[_Column], cells: Sequence[Object]) -> TableModel:
    places = [(cell["preset"], cell["length"]) for cell in cells]
    return TableModel(
        title=title,
        header=tuple(column.header for column in columns),
        rows=[tuple(column.text(cell) for column in columns) for cell in cells],
        align=tuple(column.align for column in columns),
        group_breaks=frozenset(r for r in range(1, len(cells)) if places[r] != places[r - 1]),
        alarms=frozenset(
            (r, c)
            for r, cell in enumerate(cells)
            for c, column in enumerate(columns)
            if column.is_alarm(cell)
        ),
    )


def _place(bench: Object, *, is_narrow: bool = False) -> list[_Column]:
    preset = _Column("preset", lambda cell: plain_text(cell["preset"], 40), "left")
    return [
        *([preset] if len(preset_names(bench)) > 1 else []),
        _Column("prompt", lambda cell: f"{cell['length']:,}"),
        _Column("mode", lambda cell: _mode(cell, is_narrow), "left"),
    ]


def _mode(cell: Object, is_narrow: bool) -> str:
    """``standard+retrieval``; on two lines if ``is_narrow``, and so is ``hf-assisted``."""
    name = plain_text(cell["mode"], 40)
    if not is_narrow:
        return name
    return name.replace("+", "\n+", 1) if "+" in name else name.replace("-", "-\n", 1)


def _median(cell: Object, key: str) -> str:
    found = cell["summary"][key]
    return number(found["median"]) if found else NOTHING


def _value(cell: Object, key: str) -> str:
    found = cell["summary"][key]
    return f"{found['value']:.2f}" if found else NOTHING


def _counted(cell: Object) -> tuple[str, str]:
    return _value(cell, "tokens_per_step"), _value(cell, "accepted_per_step")


def _speedup(bench: Object, cell: Object, narrow: bool) -> str:
    found = cell["summary"]["speedup"]
    if not found:
        return "1" if cell["mode"] == bench["plan"]["baseline"] else NOTHING
    if found["low"] is None or found["high"] is None:
        return times(found["value"])
    interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
    return f"{times(found['value'])}{chr(10) if narrow else ' '}{interval}"


def _over_floor(cell: Object) -> tuple[str, str]:
    """Time over the least possible one, of decoding and of the prefill: ``2.5``, ``11``."""
    found = cell["summary"]["floor"] or {}
    decode, prefill = (found.get(part) for part in ("decode", "prefill"))
    return _ratio(decode), _ratio(prefill)


def _ratio(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _stacked(parts: Iterable[str]) -> str:
    """On lines of their own; one dash where nothing was measured."""
    lines = list(parts)
    return NOTHING if set(lines) == {NOTHING} else "\n".join(lines)


def _equality(cell: Object) -> str:
    found = cell["summary"]["equal"]
    if not found:
        return NOTHING
    return f"{found['equal']}/{found['checked']}{' !' if _is_unequal(cell) else ''}"


def _is_unequal(cell: Object) -> bool:
    found = cell["summary"]["equal"]
    return bool(found) and found["equal"] < found["checked"]


def _bytes(cell: Object, key: str) -> str:
    value = cell["summary"]["memory"][key]
    return size(value) if value else NOTHING


def _joules(cell: Object) -> str:
    value = cell["summary"]["energy_j_per_token"]
    return NOTHING if value is None else f"{value:.2f}"


def _phase_names(own_levels: int) -> list[str]:
    levels = [f"draft {level}" for level in range(1, own_levels + 1)]
    rest = [_HOST_PHASES.get(name, name) for name in PHASES if name != "draft_levels"]
    return [*levels, _deep(own_levels), *rest]


def _deep(own_levels: int) -> str:
    return f"draft {own_levels + 1}+" if own_levels else "draft"


def _phases(cell: Object, own_levels: int = _OWN_LEVELS) -> list[tuple[str, float]]:
    """The phases of a step in their order, with milliseconds; deep levels of the draft joined."""
    profile = cell["summary"]["profile_ms"]
    levels = list(profile["draft_levels"])
    parts = [(f"draft {n + 1}", ms) for n, ms in enumerate(levels[:own_levels])]
    if levels[own_levels:]:
        parts.append((_deep(own_levels), sum(levels[own_levels:])))
    parts += [
        (_HOST_PHASES.get(name, name), profile[name]) for name in PHASES if name != "draft_levels"
    ]
    return parts


def _phase(cell: Object, name: str, own_levels: int) -> str:
    ms = dict(_phases(cell, own_levels)).get(name)
    return milliseconds(ms) if ms else NOTHING


def _step_ms(cell: Object) -> float:
    return sum(ms for _, ms in _phases(cell))


def _token_ms(cell: Object) -> str:
    tokens = cell["summary"]["tokens_per_step"]
    return milliseconds(_step_ms(cell) / tokens["value"]) if tokens else NOTHING
