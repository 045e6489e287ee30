"""A bench as tables: rows of short strings, read from the bench and laid out by others."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from specx.bench.render.numbers import (
    NOTHING,
    baseline_name,
    doubt,
    has_presets,
    known,
    milliseconds,
    number,
    plain_text,
    size,
    stand_in_label,
    times,
)
from specx.bench.schema import PHASES, Bench, BenchRow, Interval, PublishedRow, Spread

T = TypeVar("T")
#: A header and a cell's text; texts to the left have a header that begins with "<".
ColumnOf = tuple[str, Callable[[T], str]]
_Columns = list[ColumnOf[BenchRow]]
Row = BenchRow | PublishedRow
#: full: as many columns as it takes; wide: for 100 columns of a terminal; narrow: for 80.
Layout = Literal["full", "wide", "narrow"]

#: Levels of the draft's tree that get a column of their own; deeper ones share one.
_OWN_LEVELS = 2
_GAP = 2  # blanks between the columns of a table in a terminal
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
    align: tuple[Literal["left", "right"], ...]
    group_breaks: frozenset[int] = frozenset()
    alarms: frozenset[tuple[int, int]] = frozenset()

    def width(self, gap: int = _GAP) -> int:
        """Cells of a terminal that the widest row takes, with ``gap`` between columns."""
        widths = self._widths()
        return sum(widths) + gap * (len(widths) - 1)

    def _widths(self) -> list[int]:
        columns = zip(self.header, *self.rows, strict=True)
        return [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]

    def turned(self) -> "TableModel":
        """Rows and columns exchanged: the first column becomes the header."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return TableModel(self.title, header, rows, ("left", *["right"] * len(self.rows)))  # type: ignore[arg-type]

    def parts(self, width: int, keys: int) -> "list[TableModel]":
        """The table in pieces of at most ``width`` cells, each with the first ``keys`` columns."""
        widths = self._widths()
        pieces: list[list[int]] = [[]]
        used = least = sum(widths[:keys]) + _GAP * (keys - 1)
        for column, cells in enumerate(widths[keys:], start=keys):
            if used + _GAP + cells > width and pieces[-1]:
                pieces.append([])
                used = least
            pieces[-1].append(column)
            used += _GAP + cells
        return [self._only([*range(keys), *piece]) for piece in pieces]

    def _only(self, columns: Sequence[int]) -> "TableModel":
        return replace(
            self,
            header=tuple(self.header[column] for column in columns),
            rows=[tuple(row[column] for column in columns) for row in self.rows],
            align=tuple(self.align[column] for column in columns),
            alarms=frozenset(),
        )


def tabulated(
    title: str,
    columns: Sequence[ColumnOf[T]],
    items: Sequence[T],
    *,
    group: Callable[[T], object] = lambda item: None,
    is_alarm: Callable[[T], bool] = lambda item: False,
) -> TableModel:
    """A row for each item. ``group``: what the rows of a group share. ``is_alarm``: whether the
    last cell shows a fault."""
    groups = [group(item) for item in items]
    last = len(columns) - 1
    return TableModel(
        title=title,
        header=tuple(header.removeprefix("<") for header, _ in columns),
        rows=[tuple(text(item) for _, text in columns) for item in items],
        align=tuple("left" if header.startswith("<") else "right" for header, _ in columns),
        group_breaks=frozenset(r for r in range(1, len(items)) if groups[r] != groups[r - 1]),
        alarms=frozenset((r, last) for r, item in enumerate(items) if is_alarm(item)),
    )


def main_table(bench: Bench, layout: Layout = "full") -> TableModel:
    """Speed, acceptance and equality by prompt length and mode.

    The usual modes take at most 100 columns of a terminal as "wide" and 80 as "narrow", names of
    ablations included.
    """
    baseline = baseline_name(bench)
    is_narrow = layout == "narrow"
    columns: _Columns = [
        *_place(bench, is_narrow=is_narrow),
        ("prefill\ntok/s", lambda row: _median(row.summary.prefill_tok_s)),
        ("decode\ntok/s", lambda row: _median(row.summary.decode_tok_s)),
        ("overall\ntok/s", lambda row: _median(row.summary.end_to_end_tok_s)),
        (
            f"<speed-up\nover {baseline}" if baseline else "<\nspeed-up",
            lambda row: _speedup(bench, row, "\n" if is_narrow else " "),
        ),
        *_counts_and_floors(layout),
        ("\nequal", _equality),
    ]
    title = _titled(bench, "Speed") + (f", compared with {baseline}" if baseline else "")
    return tabulated(
        title, columns, bench.cells, group=_group, is_alarm=lambda row: row.summary.is_unequal
    )


def _counts_and_floors(layout: Layout) -> _Columns:
    if layout == "narrow":
        return [
            ("tok\nacc\n/step", lambda row: _stacked(_counted(row))),
            ("dec\npre\n/floor", lambda row: _stacked(_over_floor(row))),
        ]
    counts: _Columns = [
        ("tok/\nstep", lambda row: _counted(row)[0]),
        ("acc/\nstep", lambda row: _counted(row)[1]),
    ]
    if layout == "wide":
        return [*counts, ("dec pre\n/floor", lambda row: " ".join(_over_floor(row)))]
    return [
        *counts,
        ("decode\n/floor", lambda row: _over_floor(row)[0]),
        ("prefill\n/floor", lambda row: _over_floor(row)[1]),
    ]


def memory_table(bench: Bench) -> TableModel:
    """Memory by owner, and energy where it was measured."""
    columns: _Columns = [
        *_place(bench),
        ("weights", lambda row: _bytes(row.summary.memory.weights)),
        ("target KV", lambda row: _bytes(row.summary.memory.kv_target)),
        ("draft KV", lambda row: _bytes(row.summary.memory.kv_draft)),
        ("peak", lambda row: _bytes(row.summary.memory.peak)),
    ]
    title = "Memory"
    if any(row.summary.energy_j_per_token is not None for row in bench.cells):
        title = "Memory and energy"
        columns.append(
            ("J/token", lambda row: known(row.summary.energy_j_per_token, "{:.2f}".format))
        )
    return tabulated(_titled(bench, title), columns, bench.cells, group=_group)


def paper_table(bench: Bench) -> TableModel:
    """Ours and theirs in pairs of columns: tokens per step, end-to-end rate, speed-up."""
    ours = {(row.preset, row.mode, row.length): row for row in bench.cells}

    def here(row: PublishedRow) -> BenchRow:
        return ours[row.preset, row.mode, row.length or 0]

    rows = [row for row in bench.paper if (row.preset, row.mode, row.length) in ours]
    columns: list[ColumnOf[PublishedRow]] = [
        *_place(bench),
        ("tok/step\nhere", lambda row: _counted(here(row))[0]),
        ("tok/step\npaper", lambda row: f"{row.tokens_per_step:.2f}{doubt(row)}"),
        ("overall\ntok/s here", lambda row: _median(here(row).summary.end_to_end_tok_s)),
        ("overall\ntok/s paper", lambda row: f"{number(row.tok_s)}{doubt(row)}"),
        ("overall\nspeed-up", lambda row: _times(here(row).summary.end_to_end_speedup)),
        ("speed-up\npaper", _published_speedup),
    ]
    return tabulated("Beside the paper", columns, rows, group=_group)


def _published_speedup(row: PublishedRow) -> str:
    return f"{times(row.speedup_vs_ar)}{doubt(row)}" if row.speedup_vs_ar else NOTHING


def profile_table(bench: Bench, *, narrow: bool = False) -> TableModel:
    """Milliseconds of a verify step by phase, for what has a profile; no rows if nothing has.

    ``narrow`` joins the levels of the draft, for 80 columns.
    """
    rows = [row for row in bench.cells if row.summary.profile_ms]
    own_levels = 0 if narrow else _OWN_LEVELS
    levels = [f"draft {level}" for level in range(1, own_levels + 1)]
    found = {name for row in rows for name, _ in _phases(row, own_levels)}

    def shown(name: str) -> Callable[[BenchRow], str]:
        return lambda row: known(dict(_phases(row, own_levels)).get(name) or None, milliseconds)

    columns: _Columns = [*_place(bench, is_narrow=narrow)]
    for name in (*levels, _deep(own_levels), *_SHOWN_PHASES.values()):
        if name in found:
            header = "re-\ntrieve" if narrow and name == "retrieve" else name.replace(" ", "\n")
            columns.append((header, shown(name)))
    columns += [("total", lambda row: milliseconds(_step_ms(row))), ("ms\n/token", _ms_per_token)]
    return tabulated(_titled(bench, "Milliseconds of a verify step"), columns, rows, group=_group)


def profile_bars(
    bench: Bench, width: int
) -> list[tuple[BenchRow, str, list[tuple[str, int, float]]]]:
    """Stacked bars: row, label, (phase, cells, milliseconds); the longest has ``width`` cells."""
    rows = [row for row in bench.cells if row.summary.profile_ms]
    longest_ms = max(map(_step_ms, rows), default=0.0)
    scale = width / longest_ms if longest_ms else 0.0
    bars = []
    for row in rows:
        names, values = zip(*_phases(row), strict=True)
        # in whole cells whose sum is the rounded sum: ends of segments round
        edges = [round(total * scale) for total in itertools.accumulate(values, initial=0.0)]
        cells = [end - start for start, end in itertools.pairwise(edges)]
        label = " ".join(text(row) for _, text in _place(bench))
        bars.append((row, label, list(zip(names, cells, values, strict=True))))
    return bars


def _titled(bench: Bench, title: str) -> str:
    """``title``, and whose weights were measured where they are not the checkpoints'."""
    label = stand_in_label(bench)
    return f"{title} with {label}" if label else title


def _group(row: Row) -> tuple[str, int | None]:
    return row.preset, row.length


def _place(bench: Bench, *, is_narrow: bool = False) -> list[ColumnOf[Row]]:
    preset: ColumnOf[Row] = ("<preset", lambda row: plain_text(row.preset, 40))
    return [
        *([preset] if has_presets(bench) else []),
        ("prompt", lambda row: f"{row.length:,}"),
        ("<mode", lambda row: _mode(row, is_narrow)),
    ]


def _mode(row: Row, is_narrow: bool) -> str:
    """``standard+retrieval``; on two lines if ``is_narrow``, and so is ``hf-assisted``."""
    name = plain_text(row.mode, 40)
    if not is_narrow:
        return name
    return name.replace("+", "\n+", 1) if "+" in name else name.replace("-", "-\n", 1)


def _median(found: Spread | None) -> str:
    return known(found, lambda spread: number(spread.median))


def _times(found: Interval | None) -> str:
    return known(found, lambda ratio: times(ratio.value))


def _counted(row: BenchRow) -> tuple[str, ...]:
    found = (row.summary.tokens_per_step, row.summary.accepted_per_step)
    return tuple(known(each, lambda rate: f"{rate.value:.2f}") for each in found)


def _speedup(bench: Bench, row: BenchRow, space: str) -> str:
    found = row.summary.speedup
    if found is None:
        return "1" if row.mode == bench.plan.baseline else NOTHING
    if found.low is None or found.high is None:
        return _times(found)
    return f"{_times(found)}{space}[{found.low:.2f}, {found.high:.2f}]"


def _over_floor(row: BenchRow) -> tuple[str, ...]:
    """Time over the least possible one, of decoding and of the prefill: ``2.5``, ``11``."""
    found = row.summary.floor
    ratios = (found.decode, found.prefill) if found else (None, None)
    return tuple(
        NOTHING if ratio is None else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"
        for ratio in ratios
    )


def _stacked(lines: Iterable[str]) -> str:
    """On lines of their own; one dash where nothing was measured."""
    text = "\n".join(lines)
    return NOTHING if set(text) == {NOTHING, "\n"} else text


def _equality(row: BenchRow) -> str:
    mark = " !" if row.summary.is_unequal else ""
    return known(row.summary.equal, lambda found: f"{found.equal}/{found.checked}{mark}")


def _bytes(value: int) -> str:
    return known(value or None, size)


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


def _step_ms(row: BenchRow) -> float:
    return sum(ms for _, ms in _phases(row))


def _ms_per_token(row: BenchRow) -> str:
    tokens = row.summary.tokens_per_step
    return known(tokens, lambda rate: milliseconds(_step_ms(row) / rate.value))
