"""A bench as tables: rows of short strings, read from the bench and laid out by others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Literal, TypeVar

from specx.bench.render import numbers
from specx.bench.render.numbers import NOTHING, known, milliseconds, number, short, size, times
from specx.bench.schema import (
    PHASES,
    Bench,
    BenchDocument,
    BenchRow,
    Floor,
    Interval,
    Place,
    PublishedRow,
    Sample,
    Spread,
    Summary,
)

T = TypeVar("T")
#: A header and a cell's text; texts to the left have a header that begins with "<".
ColumnOf = tuple[str, Callable[[T], str]]
#: A row and the milliseconds of its steps' phases.
_Profile = tuple[BenchRow, dict[str, float]]

_GAP = 2  # blanks between the columns of a table in a terminal
_OWN_LEVELS = 2  # of the draft's tree; deeper ones share a column
_SHOWN_PHASES = {"draft_tree": "tree"} | {name: name for name in PHASES[2:]}


class Alarm(str):
    """A cell that shows a fault and must catch the eye."""


@dataclass(frozen=True, slots=True)
class TableModel:
    """Strings to be laid out; a header may hold line breaks.

    ``group_breaks``: rows that begin another preset or length. ``keys``: how many of the first
    columns say what a row is.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    align: tuple[Literal["left", "right"], ...]
    group_breaks: frozenset[int] = frozenset()
    keys: int = 1

    def turned(self) -> "TableModel":
        """Rows and columns exchanged: the first column becomes the header."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return TableModel(self.title, header, rows, ("left", *["right"] * len(self.rows)))  # type: ignore[arg-type]

    def parts(self, width: int) -> "list[TableModel]":
        """The table in pieces of at most ``width`` cells of a terminal, each with the keys."""
        columns = zip(self.header, *self.rows, strict=True)
        widths = [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]
        room = width - sum(widths[: self.keys]) - _GAP * self.keys
        pieces = flowed(range(self.keys, len(widths)), widths.__getitem__, _GAP, room)
        return [self._only([*range(self.keys), *piece]) for piece in pieces]

    def _only(self, columns: Sequence[int]) -> "TableModel":
        def kept(cells: Sequence[T]) -> tuple[T, ...]:
            return tuple(cells[column] for column in columns)

        rows = [kept(row) for row in self.rows]
        return replace(self, header=kept(self.header), rows=rows, align=kept(self.align))


def flowed(items: Iterable[T], cells: Callable[[T], int], gap: int, width: int) -> list[list[T]]:
    """Rows of whole items, ``gap`` cells apart; only an item alone may be wider than ``width``."""
    rows: list[list[T]] = [[]]
    used = 0
    for item in items:
        if rows[-1] and used + gap + cells(item) > width:
            rows.append([])
        used = cells(item) + (used + gap if rows[-1] else 0)
        rows[-1].append(item)
    return rows


def tabulated(
    title: str,
    columns: Sequence[ColumnOf[T]],
    items: Sequence[T],
    group: Callable[[T], object] = lambda item: None,
    keys: int = 1,
) -> TableModel:
    """A row for each item. ``group``: what the rows of a group share."""
    groups = [group(item) for item in items]
    return TableModel(
        title=title,
        header=tuple(header.removeprefix("<") for header, _ in columns),
        rows=[tuple(text(item) for _, text in columns) for item in items],
        align=tuple("left" if header.startswith("<") else "right" for header, _ in columns),
        group_breaks=frozenset(r for r in range(1, len(items)) if groups[r] != groups[r - 1]),
        keys=keys,
    )


def _by_place(
    bench: Bench,
    title: str,
    columns: Sequence[ColumnOf[Any]],
    items: Sequence[Any],
    place: Callable[[Any], Any] = lambda item: item,
    ending: str = "",
) -> TableModel:
    """``columns`` after those of an item's ``place``: what has a preset, a length and a mode."""
    keys: list[ColumnOf[Any]] = [
        ("<preset", lambda item: short(place(item).preset)),
        ("prompt", lambda item: f"{place(item).length:,}"),
        ("<mode", lambda item: short(place(item).mode)),
    ]
    keys = keys[0 if numbers.has_presets(bench) else 1 :]
    label = numbers.stand_in_label(bench)
    title = (f"{title} with {label}" if label else title) + ending
    group = attrgetter("preset", "length")
    return tabulated(title, [*keys, *columns], items, lambda item: group(place(item)), len(keys))


def report_tables(bench: Bench, *, profile: bool) -> list[TableModel]:
    """The report's tables that have rows."""
    found = [main_table(bench), paper_table(bench), memory_table(bench)]
    found += [profile_table(bench)] if profile else []
    return [table for table in found if table.rows]


def main_table(bench: Bench) -> TableModel:
    """Speed, acceptance and equality by prompt length and mode."""
    baseline = numbers.baseline_name(bench)
    columns: list[ColumnOf[BenchRow]] = [
        ("prefill\ntok/s", lambda row: _median(row.summary.prefill_tok_s)),
        ("decode\ntok/s", lambda row: _median(row.summary.decode_tok_s)),
        ("overall\ntok/s", lambda row: _median(row.summary.end_to_end_tok_s)),
        (
            f"<speed-up\nover {baseline}" if baseline else "<\nspeed-up",
            partial(_speedup, bench.plan.baseline),
        ),
        ("tok/\nstep", lambda row: _value(row.summary.tokens_per_step)),
        ("acc/\nstep", lambda row: _value(row.summary.accepted_per_step)),
        ("decode\n/floor", lambda row: _over_floor(row, "decode")),
        ("prefill\n/floor", lambda row: _over_floor(row, "prefill")),
        ("\nequal", _equality),
    ]
    ending = f", compared with {baseline}" if baseline else ""
    return _by_place(bench, "Speed", columns, bench.cells, ending=ending)


def memory_table(bench: Bench) -> TableModel:
    """Memory by owner, and energy where it was measured."""
    columns: list[ColumnOf[BenchRow]] = [
        ("weights", lambda row: known(row.summary.memory.weights or None, size)),
        ("target KV", lambda row: known(row.summary.memory.kv_target or None, size)),
        ("draft KV", lambda row: known(row.summary.memory.kv_draft or None, size)),
        ("peak", lambda row: known(row.summary.memory.peak or None, size)),
        ("J/token", lambda row: known(row.summary.energy_j_per_token, "{:.2f}".format)),
    ]
    title = "Memory and energy"
    if all(row.summary.energy_j_per_token is None for row in bench.cells):
        title = "Memory"
        columns.pop()
    return _by_place(bench, title, columns, bench.cells)


def paper_table(bench: Bench) -> TableModel:
    """Ours and theirs in pairs of columns: tokens per step, end-to-end rate, speed-up."""
    ours = {row.place: row.summary for row in bench.cells}

    def here(row: PublishedRow) -> Summary:
        return ours[Place(row.preset, row.mode, row.length or 0)]

    def theirs(row: PublishedRow, value: float | None, form: Callable[[float], str]) -> str:
        return known(value, form) + (" ?" if row.suspect and value is not None else "")

    columns: list[ColumnOf[PublishedRow]] = [
        ("tok/step\nhere", lambda row: _value(here(row).tokens_per_step)),
        ("tok/step\npaper", lambda row: theirs(row, row.tokens_per_step, "{:.2f}".format)),
        ("overall\ntok/s here", lambda row: _median(here(row).end_to_end_tok_s)),
        ("overall\ntok/s paper", lambda row: theirs(row, row.tok_s, number)),
        ("overall\nspeed-up", lambda row: _value(here(row).end_to_end_speedup, times)),
        ("speed-up\npaper", lambda row: theirs(row, row.speedup_vs_ar or None, times)),
    ]
    rows = [row for row in bench.paper if (row.preset, row.mode, row.length) in ours]
    return _by_place(bench, "Beside the paper", columns, rows)


def profile_table(bench: Bench) -> TableModel:
    """Milliseconds of a verify step by phase, for what has a profile; no rows if nothing has."""
    rows: list[_Profile] = []
    for row, phases in profiles(bench):
        step_ms, tokens = sum(phases.values()), row.summary.tokens_per_step
        per_token = step_ms / tokens.value if tokens else 0.0
        rows.append((row, phases | {"total": step_ms, "ms /token": per_token}))

    def cell(phase: str, profile: _Profile) -> str:
        return known(profile[1].get(phase) or None, milliseconds)

    # all in the order of a step: those of the row with most levels of the draft
    names = max((list(phases) for _, phases in rows), key=len, default=[])
    columns = [(name.replace(" ", "\n"), partial(cell, name)) for name in names]
    return _by_place(bench, "Milliseconds of a verify step", columns, rows, itemgetter(0))


def profiles(bench: Bench) -> list[_Profile]:
    """The phases of a step in their order, with milliseconds; deep levels of the draft joined."""
    found = []
    for row in bench.cells:
        if profile := row.summary.profile_ms:
            levels = profile.draft_levels
            phases = {f"draft {n + 1}": ms for n, ms in enumerate(levels[:_OWN_LEVELS])}
            if deep := levels[_OWN_LEVELS:]:
                phases[f"draft {_OWN_LEVELS + 1}+"] = sum(deep)
            phases |= {shown: getattr(profile, name) for name, shown in _SHOWN_PHASES.items()}
            found.append((row, phases))
    return found


# Only on a page


def floor_table(bench: Bench) -> TableModel:
    columns: list[ColumnOf[Floor]] = [
        ("<preset", lambda floor: short(floor.preset)),
        ("prompt", lambda floor: f"{floor.length:,}"),
        ("a step\nms", lambda floor: milliseconds(floor.step_s * 1e3)),
        ("plain at most\ntok/s", lambda floor: number(floor.step_tok_s)),
        ("<limited by", lambda floor: floor.bound),
        ("prefill at most\ntok/s", lambda floor: number(floor.prefill_tok_s)),
        ("bandwidth\nGB/s", lambda floor: number(floor.bandwidth_bytes_s / 1e9)),
        ("rate\nTFLOP/s", lambda floor: number(floor.rate_flop_s / 1e12)),
    ]
    return tabulated("Floor", columns[0 if numbers.has_presets(bench) else 1 :], bench.floors)


def sample_table(bench: Bench) -> TableModel:
    columns: list[ColumnOf[Sample]] = [
        ("<document", lambda run: numbers.document_name(bench, run.cell.document)),
        ("rep.", lambda run: str(run.cell.rep)),
        ("prompt\ntokens", lambda run: f"{run.prompt_tokens:,}"),
        ("new\ntokens", lambda run: f"{run.new_tokens:,}"),
        ("<end", lambda run: run.finish_reason),
        ("prefill\ns", lambda run: f"{run.prefill_target_s + run.prefill_draft_s:.3f}"),
        ("first token\ns", lambda run: f"{run.ttft_s:.3f}"),
        ("decode\ns", lambda run: f"{run.decode_s:.3f}"),
        ("total\ns", lambda run: f"{run.total_s:.3f}"),
        ("steps", lambda run: known(run.steps, "{:,}".format)),
        ("accepted", lambda run: known(run.accepted, "{:,}".format)),
        ("peak", lambda run: size(run.memory.peak)),
        ("<equal", lambda run: {None: NOTHING, True: "yes", False: "NO"}[run.equal]),
    ]
    runs = [run for row in bench.cells for run in row.samples]
    return _by_place(bench, "Samples", columns, runs, attrgetter("cell"))


def document_table(bench: Bench) -> TableModel:
    columns: list[ColumnOf[BenchDocument]] = [
        ("<name", lambda document: numbers.plain_text(document.name)),
        ("characters", lambda document: f"{document.characters:,}"),
        ("<sha256", lambda document: document.sha256),
    ]
    return tabulated("Documents", columns, bench.plan.data.documents)


# Cells


def _median(found: Spread | None) -> str:
    return known(found.median if found else None, number)


def _value(found: Interval | None, form: Callable[[float], str] = "{:.2f}".format) -> str:
    return known(found.value if found else None, form)


def _speedup(baseline: str | None, row: BenchRow) -> str:
    found = row.summary.speedup
    if found is None:
        return "1" if row.mode == baseline else NOTHING
    bounds = "" if found.low is None else " [{:.2f}, {:.2f}]".format(*found.ends)
    return f"{_value(found, times)}{bounds}"


def _over_floor(row: BenchRow, half: str) -> str:
    """Time over the least possible one: ``2.5``, ``11``."""
    ratio = getattr(row.summary.floor, half, None)
    return known(ratio, lambda value: f"{value:.1f}" if value < 9.95 else f"{value:,.0f}")


def _equality(row: BenchRow) -> str:
    text = known(row.summary.equal, lambda found: f"{found.equal}/{found.checked}")
    return Alarm(f"{text} !") if row.summary.is_unequal else text
