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
#: full: as many columns as it takes; wide: for 100 columns of a terminal; narrow: for 80.
Layout = Literal["full", "wide", "narrow"]
GAP = 2  # blanks between the columns of a table in a terminal

_OWN_LEVELS = 2  # of the draft's tree; deeper ones share a column
_SHOWN_PHASES = {"draft_tree": "tree"} | {name: name for name in PHASES[2:]}


class Alarm(str):
    """A cell that shows a fault and must catch the eye."""


@dataclass(frozen=True, slots=True)
class TableModel:
    """Strings to be laid out. A header may hold line breaks, and so may a cell if narrow.

    ``group_breaks``: rows that begin another preset or length.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    align: tuple[Literal["left", "right"], ...]
    group_breaks: frozenset[int] = frozenset()

    def width(self) -> int:
        """Cells of a terminal that the widest row takes."""
        widths = self._widths()
        return sum(widths) + GAP * (len(widths) - 1)

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
        room = width - sum(widths[:keys]) - GAP * keys
        pieces = flowed(range(keys, len(widths)), widths.__getitem__, GAP, room)
        return [self._only([*range(keys), *piece]) for piece in pieces]

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
) -> TableModel:
    """A row for each item. ``group``: what the rows of a group share."""
    groups = [group(item) for item in items]
    return TableModel(
        title=title,
        header=tuple(header.removeprefix("<") for header, _ in columns),
        rows=[tuple(text(item) for _, text in columns) for item in items],
        align=tuple("left" if header.startswith("<") else "right" for header, _ in columns),
        group_breaks=frozenset(r for r in range(1, len(items)) if groups[r] != groups[r - 1]),
    )


def report_tables(bench: Bench, *, profile: bool) -> list[list[TableModel]]:
    """The report's tables that have rows, each in its layouts, widest first."""
    layouts: tuple[Layout, ...] = ("full", "wide", "narrow")
    found = [
        [main_table(bench, layout) for layout in layouts],
        [paper_table(bench)],
        [memory_table(bench)],
        [profile_table(bench), profile_table(bench, narrow=True)] if profile else [],
    ]
    return [tables for tables in found if tables and tables[0].rows]


def main_table(bench: Bench, layout: Layout = "full") -> TableModel:
    """Speed, acceptance and equality by prompt length and mode.

    The usual modes take at most 100 columns of a terminal as "wide" and 80 as "narrow", names of
    ablations included.
    """
    baseline = numbers.baseline_name(bench)
    is_narrow = layout == "narrow"
    yields: list[ColumnOf[BenchRow]] = [
        ("tok/\nstep", lambda row: _value(row.summary.tokens_per_step)),
        ("acc/\nstep", lambda row: _value(row.summary.accepted_per_step)),
    ]
    floors: list[ColumnOf[BenchRow]] = [
        ("decode\n/floor", lambda row: _over_floor(row, "decode")),
        ("prefill\n/floor", lambda row: _over_floor(row, "prefill")),
    ]
    if is_narrow:
        yields = [("tok\nacc\n/step", partial(_stacked, yields))]
        floors = [("dec\npre\n/floor", partial(_stacked, floors))]
    elif layout == "wide":
        both = [text for _, text in floors]
        floors = [("dec pre\n/floor", lambda row: " ".join(text(row) for text in both))]
    columns: list[ColumnOf[BenchRow]] = [
        *_place(bench, is_narrow=is_narrow),
        ("prefill\ntok/s", lambda row: _median(row.summary.prefill_tok_s)),
        ("decode\ntok/s", lambda row: _median(row.summary.decode_tok_s)),
        ("overall\ntok/s", lambda row: _median(row.summary.end_to_end_tok_s)),
        (
            f"<speed-up\nover {baseline}" if baseline else "<\nspeed-up",
            partial(_speedup, bench.plan.baseline, "\n" if is_narrow else " "),
        ),
        *yields,
        *floors,
        ("\nequal", _equality),
    ]
    title = _titled(bench, "Speed") + (f", compared with {baseline}" if baseline else "")
    return tabulated(title, columns, bench.cells, _group)


def memory_table(bench: Bench) -> TableModel:
    """Memory by owner, and energy where it was measured."""
    columns: list[ColumnOf[BenchRow]] = [
        *_place(bench),
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
    return tabulated(_titled(bench, title), columns, bench.cells, _group)


def paper_table(bench: Bench) -> TableModel:
    """Ours and theirs in pairs of columns: tokens per step, end-to-end rate, speed-up."""
    ours = {row.place: row.summary for row in bench.cells}

    def here(row: PublishedRow) -> Summary:
        return ours[Place(row.preset, row.mode, row.length or 0)]

    def theirs(row: PublishedRow, value: float | None, form: Callable[[float], str]) -> str:
        doubt = " ?" if row.suspect else ""
        return known(value, lambda known_value: f"{form(known_value)}{doubt}")

    columns: list[ColumnOf[PublishedRow]] = [
        *_place(bench),
        ("tok/step\nhere", lambda row: _value(here(row).tokens_per_step)),
        ("tok/step\npaper", lambda row: theirs(row, row.tokens_per_step, "{:.2f}".format)),
        ("overall\ntok/s here", lambda row: _median(here(row).end_to_end_tok_s)),
        ("overall\ntok/s paper", lambda row: theirs(row, row.tok_s, number)),
        ("overall\nspeed-up", lambda row: _value(here(row).end_to_end_speedup, times)),
        ("speed-up\npaper", lambda row: theirs(row, row.speedup_vs_ar or None, times)),
    ]
    rows = [row for row in bench.paper if (row.preset, row.mode, row.length) in ours]
    return tabulated("Beside the paper", columns, rows, _group)


def profile_table(bench: Bench, *, narrow: bool = False) -> TableModel:
    """Milliseconds of a verify step by phase, for what has a profile; no rows if nothing has.

    ``narrow`` joins the levels of the draft, for 80 columns.
    """
    rows: list[_Profile] = []
    for row, phases in profiles(bench, 0 if narrow else _OWN_LEVELS):
        step_ms, tokens = sum(phases.values()), row.summary.tokens_per_step
        per_token = step_ms / tokens.value if tokens else 0.0
        rows.append((row, phases | {"total": step_ms, "ms /token": per_token}))
    columns: list[ColumnOf[_Profile]] = _place(bench, of=itemgetter(0), is_narrow=narrow)
    # all in the order of a step: those of the row with most levels of the draft
    for phase in max((list(phases) for _, phases in rows), key=len, default=[]):
        header = "re-\ntrieve" if narrow and phase == "retrieve" else phase.replace(" ", "\n")
        columns.append((header, partial(_phase, phase)))
    title = _titled(bench, "Milliseconds of a verify step")
    return tabulated(title, columns, rows, lambda profile: _group(profile[0]))


def profiles(bench: Bench, own_levels: int = _OWN_LEVELS) -> list[_Profile]:
    """The phases of a step in their order, with milliseconds; deep levels of the draft joined."""
    found = []
    for row in bench.cells:
        if profile := row.summary.profile_ms:
            levels = profile.draft_levels
            phases = {f"draft {n + 1}": ms for n, ms in enumerate(levels[:own_levels])}
            if deep := levels[own_levels:]:
                phases[f"draft {own_levels + 1}+" if own_levels else "draft"] = sum(deep)
            phases |= {shown: getattr(profile, name) for name, shown in _SHOWN_PHASES.items()}
            found.append((row, phases))
    return found


def _phase(name: str, profile: _Profile) -> str:
    return known(profile[1].get(name) or None, milliseconds)


# Only on a page


def floor_table(bench: Bench) -> TableModel:
    """The least time that the machine allows."""
    columns: list[ColumnOf[Floor]] = [
        *_place(bench)[:-1],
        ("a step\nms", lambda floor: milliseconds(floor.step_s * 1e3)),
        ("plain at most\ntok/s", lambda floor: number(floor.step_tok_s)),
        ("<limited by", lambda floor: floor.bound),
        ("prefill at most\ntok/s", lambda floor: number(floor.prefill_tok_s)),
        ("bandwidth\nGB/s", lambda floor: number(floor.bandwidth_bytes_s / 1e9)),
        ("rate\nTFLOP/s", lambda floor: number(floor.rate_flop_s / 1e12)),
    ]
    return tabulated("Floor", columns, bench.floors)


def sample_table(bench: Bench) -> TableModel:
    """Every run."""
    columns: list[ColumnOf[Sample]] = [
        *_place(bench, of=attrgetter("cell")),
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
    return tabulated("Samples", columns, [run for row in bench.cells for run in row.samples])


def document_table(bench: Bench) -> TableModel:
    """The texts."""
    columns: list[ColumnOf[BenchDocument]] = [
        ("<name", lambda document: numbers.plain_text(document.name)),
        ("characters", lambda document: f"{document.characters:,}"),
        ("<sha256", lambda document: document.sha256),
    ]
    return tabulated("Documents", columns, bench.plan.data.documents)


# Cells


def _place(
    bench: Bench, of: Callable[[Any], Any] = lambda item: item, *, is_narrow: bool = False
) -> list[ColumnOf[Any]]:
    """The first columns; ``of`` finds what has a preset, a mode and a length."""

    def mode(item: Any) -> str:
        """``standard+retrieval``; on two lines if narrow, and so is ``hf-assisted``."""
        name = short(of(item).mode)
        if not is_narrow:
            return name
        return name.replace("+", "\n+", 1) if "+" in name else name.replace("-", "-\n", 1)

    columns: list[ColumnOf[Any]] = [
        ("<preset", lambda item: short(of(item).preset)),
        ("prompt", lambda item: f"{of(item).length:,}"),
        ("<mode", mode),
    ]
    return columns if numbers.has_presets(bench) else columns[1:]


def _titled(bench: Bench, title: str) -> str:
    """``title``, and whose weights were measured where they are not the checkpoints'."""
    label = numbers.stand_in_label(bench)
    return f"{title} with {label}" if label else title


def _group(row: BenchRow | PublishedRow) -> tuple[str, int | None]:
    return row.preset, row.length


def _median(found: Spread | None) -> str:
    return known(found.median if found else None, number)


def _value(found: Interval | None, form: Callable[[float], str] = "{:.2f}".format) -> str:
    return known(found.value if found else None, form)


def _speedup(baseline: str | None, space: str, row: BenchRow) -> str:
    found = row.summary.speedup
    if found is None:
        return "1" if row.mode == baseline else NOTHING
    bounds = "" if found.low is None else "{}[{:.2f}, {:.2f}]".format(space, *found.ends)
    return f"{_value(found, times)}{bounds}"


def _over_floor(row: BenchRow, half: str) -> str:
    """Time over the least possible one: ``2.5``, ``11``."""
    ratio = getattr(row.summary.floor, half, None)
    return known(ratio, lambda value: f"{value:.1f}" if value < 9.95 else f"{value:,.0f}")


def _stacked(columns: Sequence[ColumnOf[BenchRow]], row: BenchRow) -> str:
    """Cells on lines of their own; one dash where nothing was measured."""
    cells = [text(row) for _, text in columns]
    return NOTHING if set(cells) == {NOTHING} else "\n".join(cells)


def _equality(row: BenchRow) -> str:
    text = known(row.summary.equal, lambda found: f"{found.equal}/{found.checked}")
    return Alarm(f"{text} !") if row.summary.is_unequal else text
