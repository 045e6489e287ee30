"""Saved benches: read one back, and join two of them row by row. The files come from anywhere, so
nothing in them is believed. Benches are joined on preset, mode and length, and inside such a row on
the SHA-256 of the documents: what changed is measured on the same texts or not at all."""

from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from specx.bench import schema
from specx.bench.schema import Bench, Change, Place, SavedComparison, Unmatched
from specx.bench.statistics import geometric_interval
from specx.bench.summary import known, paired_ratios
from specx.bench.warnings import by_document
from specx.documents.document import read_file
from specx.errors import DocumentError, UsageError
from specx.preset.yaml import did_you_mean
from specx.trace.records import complaint, shown

METRICS: tuple[schema.Metric, ...] = get_args(schema.Metric)
MAX_BENCH_BYTES = 512 << 20
_PLAUSIBLE = 1e100  # a metric beyond this, or under its inverse, was not measured by a clock
_SETTINGS = ("max_tokens", "ignore_eos", "sampling", "baseline")


@dataclass(slots=True)
class _Measured:  # what one bench says of one document in one row
    document: schema.BenchDocument
    values: list[float] = field(default_factory=list)
    texts: set[tuple[int, ...]] = field(default_factory=set)


_Rows = dict[Place, dict[str, _Measured]]  # by SHA-256 of the document


class _Labelled(BaseModel):
    schema_name: Any = Field(default=None, alias="schema")


def read_bench(path: str) -> Bench:
    """The saved bench in a file, checked; fields that a newer specx added are passed over. Raises
    ``DocumentError`` for what is no such file or damaged, naming the place
    (``cells[3].samples[0].decode_s``), and ``UsageError`` for another kind or version."""
    raw = read_file(path, MAX_BENCH_BYTES).removeprefix(b"\xef\xbb\xbf")
    if len(raw) > MAX_BENCH_BYTES:
        raise _no_bench(path, f"it is larger than {MAX_BENCH_BYTES >> 20} MiB")
    try:
        name = _Labelled.model_validate_json(raw).schema_name
    except ValidationError as error:
        raise _no_bench(path, complaint(error)) from error
    if name != "specx.bench/1":
        found = "names no schema" if name is None else f"is {shown(name)}"
        hint = "a saved bench comes from: specx bench --export FILE.json"
        raise UsageError(f"{path} {found}; this specx reads specx.bench/1", hints=[hint])
    try:
        return Bench.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise DocumentError(f"{path} is damaged", reason=complaint(error)) from error


def _no_bench(path: str, reason: str) -> DocumentError:
    hint = "give the .json that specx bench wrote, not a journal, .jsonl or .csv"
    return DocumentError(f"{path} is not a saved bench", reason=reason, hints=[hint])


def join(
    a: Bench,
    b: Bench,
    metric: str = "decode_tok_s",
    paths: tuple[str | None, str | None] = (None, None),
) -> SavedComparison:
    """``b`` against ``a`` over what both have measured; ``paths`` are theirs, as given. ``metric``
    is one of ``METRICS``. Raises ``UsageError`` for another one, and when nothing can be joined,
    with what differs."""
    if metric not in METRICS:
        hints = [*did_you_mean(metric, METRICS), f"metrics: {', '.join(METRICS)}"]
        raise UsageError(f"unknown metric {shown(metric)}", hints=hints)
    ours, theirs = _rows(a, metric), _rows(b, metric)
    rows = []
    for place in [place for place in ours if place in theirs]:
        mine, yours = ours[place], theirs[place]
        if both := [(mine[sha], yours[sha]) for sha in mine if sha in yours]:
            one, other = (_facts(bench, place.preset, metric) for bench in (a, b))
            rows.append(_change(place, both, [name for name in one if one[name] != other[name]]))
    if not rows:
        hint = "run the second with the presets, --modes, --lengths and --data of the first"
        reason = _why_apart(ours, theirs)
        raise UsageError(f"the two benches share no {metric}", reason=reason, hints=[hint])
    stand_in = [any(preset.stand_in for preset in bench.plan.presets) for bench in (a, b)]
    return SavedComparison(
        a=schema.Origin.of(a, path=paths[0], stand_in=stand_in[0]),
        b=schema.Origin.of(b, path=paths[1], stand_in=stand_in[1]),
        metric=metric,
        rows=rows,
        only_in_a=_rest(ours, theirs),
        only_in_b=_rest(theirs, ours),
    )


def _rows(bench: Bench, metric: str) -> _Rows:
    """Every row with the metric, in the plan's order; a document listed twice counts once."""
    listed = bench.plan.data.documents
    by_place = {row.place: row for row in bench.cells}
    rows: _Rows = {}
    for place, row in by_place.items():
        runs = by_document(row.samples)
        values = {number: known(group, metric) for number, group in runs.items()}
        if metric == "speedup":
            baseline = by_place.get(place._replace(mode=bench.plan.baseline or ""), row)
            below = [] if baseline is row else baseline.samples
            values = paired_ratios(row.samples, below, "decode_tok_s")
        by_sha: dict[str, _Measured] = {}
        for number, found in values.items():
            if plausible := [value for value in found if 1 / _PLAUSIBLE < value < _PLAUSIBLE]:
                measured = by_sha.setdefault(listed[number].sha256, _Measured(listed[number]))
                measured.values += plausible
                measured.texts |= {tuple(run.tokens) for run in runs[number]}
        if by_sha:
            rows[place] = by_sha
    return rows


def _change(place: Place, both: list[tuple[_Measured, _Measured]], differs: list[str]) -> Change:
    pairs = [(median(a.values), median(b.values)) for a, b in both]
    found = geometric_interval([[b / a] for a, b in pairs])
    low, high = (None if end is None else 100 * (end - 1) for end in (found.low, found.high))
    text_equal: bool | None = all(len(a.texts | b.texts) == 1 for a, b in both)
    if not text_equal and not set(_SETTINGS).isdisjoint(differs):
        text_equal = None
    return Change(
        **place._asdict(),
        n=found.n,
        a=geometric_mean(a for a, _ in pairs),
        b=geometric_mean(b for _, b in pairs),
        change_percent=100 * (found.value - 1),
        low_percent=low,
        high_percent=high,
        text_equal=text_equal,
        differs=differs,
    )


def _facts(bench: Bench, preset: str, metric: str) -> dict[str, Any]:
    """What surrounds the numbers of one preset, by the names under which differences are shown."""
    facts = next(each for each in bench.plan.presets if each.name == preset)
    settings = _SETTINGS if metric == "speedup" else _SETTINGS[:-1]
    return {
        **bench.env.model_dump(),
        "dtype": (bench.plan.dtype, facts.target.dtype),
        "kernels": facts.kernels,
        "preset.sha256": facts.sha256,
        "stand_in": facts.stand_in is not None,
        **{f"specx.{name}": value for name, value in bench.specx},
        **{name: getattr(bench.plan, name) for name in settings},
    }


def _rest(ours: _Rows, theirs: _Rows) -> list[Unmatched]:
    """What ``ours`` has and ``theirs`` has not."""
    rest = []
    for place, mine in ours.items():
        yours = theirs.get(place, {})
        if alone := [measured.document for sha, measured in mine.items() if sha not in yours]:
            rest.append(Unmatched(**place._asdict(), whole_row=not yours, documents=alone))
    return rest


def _why_apart(ours: _Rows, theirs: _Rows) -> str:
    """The first thing that keeps the benches apart, with both sides' values."""
    for name, rows in (("first", ours), ("second", theirs)):
        if not rows:
            return f"the {name} has no row with this metric"
    for what in Place._fields:
        mine, yours = ({getattr(place, what): None for place in rows} for rows in (ours, theirs))
        if mine.keys().isdisjoint(yours):
            left, right = (", ".join(map(str, list(side)[:5])) for side in (mine, yours))
            return f"their {what}s differ: {left} and {right}"
    if ours.keys() & theirs.keys():
        return "their rows were measured on different documents"
    return "no row has its preset, mode and length in both"
