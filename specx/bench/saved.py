"""Saved benches: read one back, and join two of them row by row.

In: paths of ``specx.bench/1`` files from anywhere, so nothing in them is believed. Out: the checked
bench, and a ``SavedComparison`` of two: joined on preset, mode and length, and inside such a row on
the SHA-256 of the documents. What changed is measured on the same texts or not at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from specx.bench.schema import (
    Bench,
    BenchDocument,
    BenchRow,
    Change,
    Metric,
    Origin,
    Place,
    SavedComparison,
    Unmatched,
    complaint,
    shown,
)
from specx.bench.statistics import geometric_interval
from specx.bench.summary import paired_ratios
from specx.bench.warnings import by_document
from specx.errors import DocumentError, UsageError
from specx.preset.yaml import did_you_mean

METRICS: tuple[Metric, ...] = get_args(Metric)
MAX_BENCH_BYTES = 512 << 20
_PLAUSIBLE = 1e100  # a metric beyond this, or under its inverse, was not measured by a clock
_SETTINGS = ("max_tokens", "ignore_eos", "sampling")


@dataclass(slots=True)
class _Measured:
    """What one bench says of one document in one row."""

    document: BenchDocument
    values: list[float] = field(default_factory=list)
    texts: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def value(self) -> float:
        return median(self.values)


_Rows = dict[Place, dict[str, _Measured]]  # by SHA-256 of the document


class _Labelled(BaseModel):
    schema_name: Any = Field(default=None, alias="schema")


def read_bench(path: str) -> Bench:
    """The saved bench in a file, checked.

    Fields that a newer specx added within version 1 are passed over. Raises ``DocumentError`` for
    what is no such file or damaged, naming the place (``cells[3].samples[0].decode_s``), and
    ``UsageError`` for another kind or version.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BENCH_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DocumentError(f"{path} cannot be read", reason=error.strerror or "") from error
    except ValueError as error:  # a NUL character in the path
        raise DocumentError("that is not a file name", reason=str(error)) from error
    if len(raw) > MAX_BENCH_BYTES:
        raise _no_bench(path, f"it is larger than {MAX_BENCH_BYTES >> 20} MiB")
    try:
        schema = _Labelled.model_validate_json(raw).schema_name
    except ValidationError as error:
        raise _no_bench(path, complaint(error)) from error
    if schema != "specx.bench/1":
        found = "names no schema" if schema is None else f"is {shown(schema)}"
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
    """``b`` against ``a`` over what both have measured; ``paths`` are theirs, as given.

    ``metric`` is one of ``METRICS``. Raises ``UsageError`` for another one, and when nothing can
    be joined, with what differs.
    """
    if metric not in METRICS:
        hints = [*did_you_mean(metric, METRICS), f"metrics: {', '.join(METRICS)}"]
        raise UsageError(f"unknown metric {shown(metric)}", hints=hints)
    ours, theirs = _rows(a, metric), _rows(b, metric)
    rows = []
    for place, documents in ours.items():
        others = theirs.get(place, {})
        both = [(documents[sha], others[sha]) for sha in documents if sha in others]
        if both:
            rows.append(_change(place, both, *_differences(a, b, place.preset, metric)))
    if not rows:
        hint = "run the second with the presets, --modes, --lengths and --data of the first"
        reason = _why_apart(ours, theirs)
        raise UsageError(f"the two benches share no {metric}", reason=reason, hints=[hint])
    return SavedComparison(
        a=_origin(a, paths[0]),
        b=_origin(b, paths[1]),
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
        baseline = by_place.get(place._replace(mode=bench.plan.baseline or ""))
        repetitions = by_document(row.samples)
        by_sha: dict[str, _Measured] = {}
        for number, values in _values(row, baseline, metric).items():
            plausible = [value for value in values if 1 / _PLAUSIBLE < value < _PLAUSIBLE]
            if plausible:
                measured = by_sha.setdefault(listed[number].sha256, _Measured(listed[number]))
                measured.values += plausible
                measured.texts |= {tuple(run.tokens) for run in repetitions[number]}
        if by_sha:
            rows[place] = by_sha
    return rows


def _values(row: BenchRow, baseline: BenchRow | None, metric: str) -> dict[int, list[float]]:
    """Document → the metric of its repetitions, where it is defined."""
    if metric == "speedup":
        if baseline is None or baseline is row:
            return {}
        return paired_ratios(row.samples, baseline.samples, "decode_tok_s")
    return {
        number: [value for run in runs if (value := getattr(run, metric)) is not None]
        for number, runs in by_document(row.samples).items()
    }


def _change(
    place: Place,
    both: Sequence[tuple[_Measured, _Measured]],
    environment: list[str],
    settings: list[str],
) -> Change:
    change = geometric_interval([[b.value / a.value] for a, b in both])
    same = all(len(a.texts | b.texts) == 1 for a, b in both)
    return Change(
        **place._asdict(),
        n=change.n,
        a=math.exp(fmean(math.log(a.value) for a, _ in both)),
        b=math.exp(fmean(math.log(b.value) for _, b in both)),
        change_percent=100 * (change.value - 1),
        low_percent=None if change.low is None else 100 * (change.low - 1),
        high_percent=None if change.high is None else 100 * (change.high - 1),
        text_equal=True if same else None if settings else False,
        differs=environment + settings,
    )


def _differences(a: Bench, b: Bench, preset: str, metric: str) -> tuple[list[str], list[str]]:
    """Names of what differs in the surroundings of one preset, and of settings that do."""
    ours, theirs = _facts(a, preset), _facts(b, preset)
    settings = (*_SETTINGS, "baseline") if metric == "speedup" else _SETTINGS
    return (
        [name for name in ours if ours[name] != theirs[name]],
        [name for name in settings if getattr(a.plan, name) != getattr(b.plan, name)],
    )


def _facts(bench: Bench, preset: str) -> dict[str, Any]:
    settings = next(each for each in bench.plan.presets if each.name == preset)
    return {
        **bench.env.as_json(),
        "dtype": (bench.plan.dtype, settings.target.dtype),
        "kernels": settings.kernels,
        "preset.sha256": settings.sha256,
        "stand_in": settings.stand_in is not None,
        "specx.version": bench.specx.version,
        "specx.commit": bench.specx.commit,
    }


def _origin(bench: Bench, path: str | None) -> Origin:
    return Origin(
        path=path,
        created=bench.created,
        specx=bench.specx,
        env=bench.env,
        stand_in=any(preset.stand_in for preset in bench.plan.presets),
    )


def _rest(ours: _Rows, theirs: _Rows) -> list[Unmatched]:
    """What ``ours`` has and ``theirs`` has not."""
    rest = []
    for place, documents in ours.items():
        others = theirs.get(place, {})
        alone = [measured.document for sha, measured in documents.items() if sha not in others]
        if alone:
            rest.append(Unmatched(**place._asdict(), whole_row=not others, documents=alone))
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
