"""``specx bench diff A B``: two saved benches, row by row.

Goes in: two paths, a metric, conditions. Comes out: a table or a JSON object in the sink, an exit
code. It does not know how benches are joined. Names in a saved bench may say anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context

from specx.cli.bench_output import Report
from specx.cli.console import Screen
from specx.cli.errors import CONDITION_HELD
from specx.cli.options import ColorChoice, Format, counter, option, takes
from specx.cli.output_file import open_sink
from specx.cli.result_json import dumps
from specx.errors import UsageError

if TYPE_CHECKING:
    from specx.bench.render.tables import TableModel
    from specx.bench.schema import Change, Origin, SavedComparison, Unmatched

_MOST_ALONE = 6
_MARKS = "*†‡§¶"
_WORDS = ("preset", "mode", "text", "differs")  # columns to the left


@dataclass(frozen=True, slots=True)
class DiffRequest:
    """The options of ``specx bench diff``."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="A and B: the .json files of two --export.")
    ] = field(default_factory=list)
    metric: Annotated[
        str, option("--metric", metavar="NAME", help="What to compare [decode_tok_s].")
    ] = "decode_tok_s"
    fail_if: Annotated[
        list[str],
        option("--fail-if", metavar="COND", help="'change<-5%' → exit 9 (repeatable)."),
    ] = field(default_factory=list)
    output: Annotated[
        Format,
        option("-o", "--output", metavar="FORMAT", env="SPECX_OUTPUT", help="text or json [text]."),
    ] = "text"
    out: Annotated[
        str | None,
        option("--out", "--export", metavar="PATH", help="Write to PATH, not to stdout."),
    ] = None
    force: Annotated[bool, option("--force", help="Let --out replace an existing file.")] = False
    quiet: Annotated[int, counter("-q", "--quiet", help="-qq: errors only.")] = 0
    color: ColorChoice = "auto"


@takes(DiffRequest)
def diff(context: Context, request: DiffRequest) -> int:
    """Compare two saved benches, document by document."""
    from specx.bench.conditions import (
        COMPARE_METRICS,
        change_failures,
        change_unmatched,
        parse_condition,
    )
    from specx.bench.saved import join, read_bench

    if len(request.files) != 2:
        raise UsageError(
            f"diff takes two benches, not {len(request.files)}",
            hints=("specx bench diff before.json after.json",),
        )
    screen = Screen(color=request.color, quiet=request.quiet)
    conditions = [parse_condition(text, COMPARE_METRICS) for text in request.fail_if]
    before, after = request.files
    with open_sink(request.out, force=request.force, inputs=request.files) as sink:
        benches = read_bench(before), read_bench(after)
        found = join(*benches, request.metric, (before, after))
        if request.output != "text":
            sink.write(dumps(found.as_json(), request.output))
        elif request.out is None and sink.is_terminal:
            _report(found).draw(screen.color)
        else:
            sink.write(_report(found).markdown())
    rows = [(_label(row), row.change_percent) for row in found.rows]
    for sentence in change_unmatched(conditions, rows):
        raise UsageError(sentence)
    held = change_failures(conditions, rows)
    for sentence in held:
        screen.warn(f"--fail-if: {sentence}")
    return CONDITION_HELD if held else 0


def _report(found: "SavedComparison") -> Report:
    """One row for each preset, mode and length that both benches have."""
    marks = _marks(found)
    legend = [
        f"{mark} {' · '.join(_difference(found, name) for name in differs)}"
        for differs, mark in marks.items()
    ]
    alone = [_alone("A", each) for each in found.only_in_a]
    alone += [_alone("B", each) for each in found.only_in_b]
    if len(alone) > _MOST_ALONE:
        alone[_MOST_ALONE:] = [f"and {len(alone) - _MOST_ALONE:,} more that only one of them has"]
    several = len({row.preset for row in found.rows}) > 1
    return Report(
        title=(_bench_line("A", found.a), _bench_line("B", found.b)),
        table=_table(found, marks, several),
        findings=(*legend, *alone),
        notes=(
            f"A and B = {found.metric}, geometric mean over the n documents that both have",
            "change = of B against A; interval by a paired bootstrap over documents",
        ),
        keys=3 if several else 2,
    )


def _table(
    found: "SavedComparison", marks: dict[tuple[str, ...], str], several: bool
) -> "TableModel":
    from specx.bench.render.numbers import NOTHING, number, plain_text
    from specx.bench.render.tables import TableModel

    columns: list[tuple[str, Callable[[Change], str]]] = [
        ("mode", lambda row: plain_text(row.mode, 40)),
        ("prompt", lambda row: f"{row.length:,}"),
        ("A", lambda row: number(row.a)),
        ("B", lambda row: number(row.b)),
        ("change", lambda row: _percent(row.change_percent)),
        ("95 % interval", _interval),
        ("n", lambda row: str(row.n)),
        ("text", lambda row: {True: "equal", False: "differs", None: NOTHING}[row.text_equal]),
    ]
    if several:
        columns.insert(0, ("preset", lambda row: plain_text(row.preset, 40)))
    if marks:
        columns.append(("differs", lambda row: marks.get(tuple(row.differs), "")))
    places = [list(each) for _, each in groupby(found.rows, lambda row: (row.preset, row.length))]
    return TableModel(
        title="",
        header=tuple(title for title, _ in columns),
        rows=[tuple(text(row) for _, text in columns) for row in found.rows],
        align=tuple("left" if title in _WORDS else "right" for title, _ in columns),
        group_breaks=frozenset(sum(map(len, places[:at])) for at in range(1, len(places))),
    )


def _bench_line(side: str, bench: "Origin") -> str:
    from specx.bench.render.numbers import moment, plain_text

    commit = f" ({plain_text(bench.specx.commit, 12)})" if bench.specx.commit else ""
    parts = (
        f"{side} {plain_text(bench.path)}",
        f"specx {plain_text(bench.specx.version, 20)}{commit}",
        plain_text(bench.env.gpu or bench.env.cpu, 60),
        moment(bench.created),
        *(["stand-in weights"] if bench.stand_in else []),
    )
    return " · ".join(parts)


def _label(row: "Change | Unmatched") -> str:
    """``pocket specx 2,048``."""
    from specx.bench.render.numbers import plain_text

    return f"{plain_text(row.preset, 40)} {plain_text(row.mode, 40)} {row.length:,}"


def _marks(found: "SavedComparison") -> dict[tuple[str, ...], str]:
    """A sign for each set of differences: ``*``, ``†``, … ``**``."""
    kinds = dict.fromkeys(tuple(row.differs) for row in found.rows if row.differs)
    count = len(_MARKS)
    return {kind: _MARKS[at % count] * (1 + at // count) for at, kind in enumerate(kinds)}


def _difference(found: "SavedComparison", name: str) -> str:
    """``torch 2.11 → 2.13`` where both values are known, else the name."""
    from specx.bench.render.numbers import NOTHING, plain_text

    group, _, key = name.rpartition(".")
    one, other = (
        getattr(bench.specx if group == "specx" else bench.env, key, None)
        for bench in (found.a, found.b)
    )
    if one == other:
        return plain_text(name, 40)
    shown = [NOTHING if value is None else plain_text(value, 60) for value in (one, other)]
    return f"{plain_text(name, 40)} {shown[0]} → {shown[1]}"


def _alone(side: str, unmatched: "Unmatched") -> str:
    from specx.bench.render.numbers import count

    documents = count(len(unmatched.documents), "document")
    what = "" if unmatched.whole_row else f" ({documents})"
    return f"only in {side}: {_label(unmatched)}{what}"


def _interval(row: "Change") -> str:
    if row.low_percent is None or row.high_percent is None:
        return "–"
    return f"{_percent(row.low_percent)} … {_percent(row.high_percent)}"


def _percent(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1
    return f"{round(value, digits) + 0.0:+,.{digits}f} %"
