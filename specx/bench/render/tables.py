"""A bench as tables.

In: a bench. Out: ``TableModel``s, rows of short strings. It does not know the screen, files, or how
a value was measured: every number here is read from the bench.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from specx.bench.render.numbers import (
    NOTHING,
    baseline_name,
    doubt,
    has_presets,
    milliseconds,
    number,
    plain_text,
    size,
    stand_in_label,
    times,
)
from specx.bench.schema import PHASES, Bench, BenchRow, Interval, PublishedRow, Spread

Align = Literal["left", "right"]
#: full: as many columns as it takes; wide: for 100 columns of a terminal; narrow: for 80.
Layout = Literal["full", "wide", "narrow"]

#: Levels of the draft's tree that get a column of their own; deeper ones share one.
_OWN_LEVELS = 2
_PAPER_HEADER = (
    *("tok/step\nhere", "tok/step\npaper", "overall\ntok/s here", "overall\ntok/s paper"),
    *("overall\nspeed-up", "speed-up\npaper"),
)
_SHOWN_PHASES = {"draft_tree": "tree"} | {name: name for name in PHASES[2:]}


@dataclass(frozen=True, slots=True)
class TableModel:
    """Strings to be laid out. A header may hold line breaks, and so may a cell if narrow.

    ``group_breaks``: rows that begin another preset or length. ``alarms``: cells (row, column)
    that show a fault and must catch the eye.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    align: tuple[Align, ...]
    group_breaks: frozenset[int] = frozenset()
    alarms: frozenset[tuple[int, int]] = frozenset()

    def width(self, gap: int = 2) -> int:
        """Cells of a terminal that the widest row takes, with ``gap`` between columns."""
        widths = self._widths()
        return sum(widths) + gap * (len(widths) - 1)

    def _widths(self) -> list[int]:
        columns = zip(self.header, *self.rows, strict=True)
        return [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]

    def turned(self) -> "TableModel":
        """Rows and columns exchanged: the first column becomes the header."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        numbers: list[Align] = ["right"] * len(self.rows)
        return TableModel(self.title, header, rows, ("left", *numbers))

    def parts(self, width: int, keys: int, gap: int = 2) -> "list[TableModel]":
        """The table in pieces of at most ``width`` cells, each with the first ``keys`` columns."""
        widths = self._widths()
        least = sum(widths[:keys]) + gap * (keys - 1)
        pieces: list[list[int]] = [[]]
        used = least
        for column, cells in enumerate(widths[keys:], start=keys):
            if used + gap + cells > width and pieces[-1]:
                pieces.append([])
                used = least
            pieces[-1].append(column)
            used += gap + cells
        return [self._only([*range(keys), *piece]) for piece in pieces]

    def _only(self, columns: Sequence[int]) -> "TableModel":
        return TableModel(
            self.title,
            tuple(self.header[column] for column in columns),
            [tuple(row[column] for column in columns) for row in self.rows],
            tuple(self.align[column] for column in columns),
            self.group_breaks,
        )


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    text: Callable[[BenchRow], str]
    align: Align = "right"
    is_alarm: Callable[[BenchRow], bool] = lambda row: False


def main_table(bench: Bench, layout: Layout = "full") -> TableModel:
    """Speed, acceptance and equality by prompt length and mode.

    The usual modes take at most 100 columns of a terminal as "wide" and 80 as "narrow", names of
    ablations included.
    """
    baseline = baseline_name(bench)
    over = f"speed-up\nover {baseline}" if baseline else "\nspeed-up"
    columns = [
        *_place(bench, is_narrow=layout == "narrow"),
        _Column("prefill\ntok/s", lambda row: _median(row.summary.prefill_tok_s)),
        _Column("decode\ntok/s", lambda row: _median(row.summary.decode_tok_s)),
        _Column("overall\ntok/s", lambda row: _median(row.summary.end_to_end_tok_s)),
        _Column(over, lambda row: _speedup(bench, row, layout == "narrow"), "left"),
        *_counts(layout),
        *_floors(layout),
        _Column("\nequal", _equality, is_alarm=lambda row: row.summary.is_unequal),
    ]
    title = _titled(bench, "Speed")
    return _table(f"{title}, compared with {baseline}" if baseline else title, columns, bench.cells)


def _counts(layout: Layout) -> list[_Column]:
    if layout == "narrow":
        return [_Column("tok\nacc\n/step", lambda row: _stacked(_counted(row)))]
    return [
        _Column("tok/\nstep", lambda row: _counted(row)[0]),
        _Column("acc/\nstep", lambda row: _counted(row)[1]),
    ]


def _floors(layout: Layout) -> list[_Column]:
    if layout == "full":
        return [
            _Column("decode\n/floor", lambda row: _over_floor(row)[0]),
            _Column("prefill\n/floor", lambda row: _over_floor(row)[1]),
        ]
    if layout == "wide":
        return [_Column("dec pre\n/floor", lambda row: " ".join(_over_floor(row)))]
    return [_Column("dec\npre\n/floor", lambda row: _stacked(_over_floor(row)))]


def memory_table(bench: Bench) -> TableModel:
    """Memory by owner, and energy where it was measured."""
    columns = [
        *_place(bench),
        _Column("weights", lambda row: _bytes(row.summary.memory.weights)),
        _Column("target KV", lambda row: _bytes(row.summary.memory.kv_target)),
        _Column("draft KV", lambda row: _bytes(row.summary.memory.kv_draft)),
        _Column("peak", lambda row: _bytes(row.summary.memory.peak)),
    ]
    title = "Memory"
    if any(row.summary.energy_j_per_token is not None for row in bench.cells):
        title = "Memory and energy"
        columns.append(_Column("J/token", _joules))
    return _table(_titled(bench, title), columns, bench.cells)


def paper_table(bench: Bench) -> TableModel:
    """Ours and theirs in pairs of columns: tokens per step, end-to-end rate, speed-up."""
    ours = {(row.preset, row.mode, row.length): row for row in bench.cells}
    pairs = [
        (ours[row.preset, row.mode, row.length], row)
        for row in bench.paper
        if row.length and (row.preset, row.mode, row.length) in ours
    ]
    place = _place(bench)
    numbers: list[Align] = ["right"] * len(_PAPER_HEADER)
    return TableModel(
        title="Beside the paper",
        header=(*(column.header for column in place), *_PAPER_HEADER),
        rows=[(*(column.text(row) for column in place), *_beside(row, r)) for row, r in pairs],
        align=(*(column.align for column in place), *numbers),
        group_breaks=_breaks([row for row, _ in pairs]),
    )


def _beside(row: BenchRow, published: PublishedRow) -> tuple[str, ...]:
    mark, ratio = doubt(published), published.speedup_vs_ar
    return (
        _counted(row)[0],
        f"{published.tokens_per_step:.2f}{mark}",
        _median(row.summary.end_to_end_tok_s),
        f"{number(published.tok_s)}{mark}",
        _times(row.summary.end_to_end_speedup),
        f"{times(ratio)}{mark}" if ratio else NOTHING,
    )


def profile_table(bench: Bench, *, narrow: bool = False) -> TableModel:
    """Milliseconds of a verify step by phase, for what has a profile; no rows if nothing has.

    ``narrow`` joins the levels of the draft, for 80 columns.
    """
    rows = [row for row in bench.cells if row.summary.profile_ms]
    own_levels = 0 if narrow else _OWN_LEVELS
    splits = [dict(_phases(row, own_levels)) for row in rows]
    levels = [f"draft {level}" for level in range(1, own_levels + 1)]
    names = [*levels, _deep(own_levels), *_SHOWN_PHASES.values()]
    columns = [*_place(bench, is_narrow=narrow)]
    for name in names:
        if any(name in split for split in splits):
            header = "re-\ntrieve" if narrow and name == "retrieve" else name.replace(" ", "\n")
            columns.append(_Column(header, _phase(name, own_levels)))
    columns += [
        _Column("total", lambda row: milliseconds(_step_ms(row))),
        _Column("ms\n/token", _token_ms),
    ]
    return _table(_titled(bench, "Milliseconds of a verify step"), columns, rows)


def profile_bars(bench: Bench, width: int) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Stacked bars: label, then (phase, cells, milliseconds); the longest has ``width`` cells."""
    rows = [row for row in bench.cells if row.summary.profile_ms]
    longest_ms = max((_step_ms(row) for row in rows), default=0.0)
    bars = []
    for row in rows:
        parts = _phases(row)
        sizes = _shares([ms for _, ms in parts], width / longest_ms if longest_ms else 0.0)
        label = " ".join(column.text(row) for column in _place(bench))
        segments = [(name, many, ms) for (name, ms), many in zip(parts, sizes, strict=True)]
        bars.append((label, segments))
    return bars


def _shares(values: Sequence[float], scale: float) -> list[int]:
    """``values * scale`` in whole cells whose sum is the rounded sum: ends of segments round."""
    edges = [round(total * scale) for total in itertools.accumulate(values, initial=0.0)]
    return [end - start for start, end in itertools.pairwise(edges)]


def _titled(bench: Bench, title: str) -> str:
    """``title``, and whose weights were measured where they are not the checkpoints'."""
    label = stand_in_label(bench)
    return f"{title} with {label}" if label else title


def _table(title: str, columns: Sequence[_Column], rows: Sequence[BenchRow]) -> TableModel:
    return TableModel(
        title=title,
        header=tuple(column.header for column in columns),
        rows=[tuple(column.text(row) for column in columns) for row in rows],
        align=tuple(column.align for column in columns),
        group_breaks=_breaks(rows),
        alarms=frozenset(
            (r, c)
            for r, row in enumerate(rows)
            for c, column in enumerate(columns)
            if column.is_alarm(row)
        ),
    )


def _breaks(rows: Sequence[BenchRow]) -> frozenset[int]:
    places = [(row.preset, row.length) for row in rows]
    return frozenset(r for r in range(1, len(rows)) if places[r] != places[r - 1])


def _place(bench: Bench, *, is_narrow: bool = False) -> list[_Column]:
    preset = _Column("preset", lambda row: plain_text(row.preset, 40), "left")
    return [
        *([preset] if has_presets(bench) else []),
        _Column("prompt", lambda row: f"{row.length:,}"),
        _Column("mode", lambda row: _mode(row, is_narrow), "left"),
    ]


def _mode(row: BenchRow, is_narrow: bool) -> str:
    """``standard+retrieval``; on two lines if ``is_narrow``, and so is ``hf-assisted``."""
    name = plain_text(row.mode, 40)
    if not is_narrow:
        return name
    return name.replace("+", "\n+", 1) if "+" in name else name.replace("-", "-\n", 1)


def _median(found: Spread | None) -> str:
    return number(found.median) if found else NOTHING


def _times(found: Interval | None) -> str:
    return times(found.value) if found else NOTHING


def _counted(row: BenchRow) -> tuple[str, ...]:
    found = (row.summary.tokens_per_step, row.summary.accepted_per_step)
    return tuple(f"{each.value:.2f}" if each else NOTHING for each in found)


def _speedup(bench: Bench, row: BenchRow, narrow: bool) -> str:
    found = row.summary.speedup
    if found is None:
        return "1" if row.mode == bench.plan.baseline else NOTHING
    if found.low is None or found.high is None:
        return _times(found)
    return f"{_times(found)}{chr(10) if narrow else ' '}[{found.low:.2f}, {found.high:.2f}]"


def _over_floor(row: BenchRow) -> tuple[str, ...]:
    """Time over the least possible one, of decoding and of the prefill: ``2.5``, ``11``."""
    found = row.summary.floor
    ratios = (found.decode, found.prefill) if found else (None, None)
    return tuple(
        NOTHING if ratio is None else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"
        for ratio in ratios
    )


def _stacked(parts: Iterable[str]) -> str:
    """On lines of their own; one dash where nothing was measured."""
    lines = list(parts)
    return NOTHING if set(lines) == {NOTHING} else "\n".join(lines)


def _equality(row: BenchRow) -> str:
    found = row.summary.equal
    if found is None:
        return NOTHING
    return f"{found.equal}/{found.checked}{' !' if row.summary.is_unequal else ''}"


def _bytes(value: int) -> str:
    return size(value) if value else NOTHING


def _joules(row: BenchRow) -> str:
    value = row.summary.energy_j_per_token
    return NOTHING if value is None else f"{value:.2f}"


def _deep(own_levels: int) -> str:
    return f"draft {own_levels + 1}+" if own_levels else "draft"


def _phases(row: BenchRow, own_levels: int = _OWN_LEVELS) -> list[tuple[str, float]]:
    """The phases of a step in their order, with milliseconds; deep levels of the draft joined."""
    profile = row.summary.profile_ms
    assert profile is not None
    levels = profile.draft_levels
    parts = [(f"draft {n + 1}", ms) for n, ms in enumerate(levels[:own_levels])]
    if levels[own_levels:]:
        parts.append((_deep(own_levels), sum(levels[own_levels:])))
    return parts + [(shown, getattr(profile, name)) for name, shown in _SHOWN_PHASES.items()]


def _phase(name: str, own_levels: int) -> Callable[[BenchRow], str]:
    def text(row: BenchRow) -> str:
        ms = dict(_phases(row, own_levels)).get(name)
        return milliseconds(ms) if ms else NOTHING

    return text


def _step_ms(row: BenchRow) -> float:
    return sum(ms for _, ms in _phases(row))


def _token_ms(row: BenchRow) -> str:
    tokens = row.summary.tokens_per_step
    return milliseconds(_step_ms(row) / tokens.value) if tokens else NOTHING
