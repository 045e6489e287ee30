"""Saved benches: read one back, and join two of them row by row.

In: paths of ``specx.bench/1`` files from anywhere, so nothing in them is believed. Out: the checked
object, and a ``Comparison`` of two. It does not know engines, tables or the screen.

Two benches are joined on preset name, mode and length, and inside such a row on the SHA-256 of the
documents: what changed is measured on the same texts or not at all.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from specx.bench.record import Object, Sample
from specx.bench.report import MEASURES, SCHEMA, Samples, by_document, decode_tok_s, paired_ratios
from specx.bench.statistics import geometric_interval, mean, median
from specx.bench.validation import known, shown
from specx.errors import DocumentError, UsageError
from specx.preset.yaml import did_you_mean

COMPARE_SCHEMA = "specx.compare/1"
METRICS = (*MEASURES, "tokens_per_step", "speedup")
MAX_BENCH_BYTES = 512 << 20
_MAX_DIGITS = 18  # of a whole number: every count fits, and no quotient overflows
_PLAUSIBLE = 1e100  # a metric beyond this, or under its inverse, was not measured by a clock
_SETTINGS = ("max_tokens", "ignore_eos", "sampling")

Key = tuple[str, str, int]  # preset, mode, length


@dataclass(frozen=True, slots=True)
class Row:
    """One preset, mode and length in both benches, over the ``n`` documents that both measured."""

    preset: str
    mode: str
    length: int
    n: int
    a: float  # geometric means over the documents
    b: float
    change_percent: float  # of b against a
    low_percent: float | None  # 95 % paired bootstrap interval; None for one document
    high_percent: float | None
    environment: tuple[str, ...]  # what differs of machine, libraries, program and preset
    settings: tuple[str, ...]  # what differs of the plan's settings
    text_equal: bool | None  # same tokens in all runs; None: they differ, but so do the settings

    @property
    def agrees(self) -> bool | None:
        """Whether the interval holds "no change"; None where there is no interval."""
        if self.low_percent is None or self.high_percent is None:
            return None
        return self.low_percent <= 0 <= self.high_percent


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Documents of a row for which only one bench has the metric."""

    preset: str
    mode: str
    length: int
    whole_row: bool  # the other bench has nothing of this row
    documents: list[Object]  # as the plan lists them


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two benches joined. ``a`` and ``b`` tell what they are: created, specx, env, stand_in."""

    metric: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    rows: tuple[Row, ...]  # in the order of ``a``
    only_in_a: tuple[Unmatched, ...]
    only_in_b: tuple[Unmatched, ...]


@dataclass(slots=True)
class _Measured:
    """What one bench says of one document in one row."""

    document: Object
    values: list[float] = field(default_factory=list)
    texts: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def value(self) -> float:
        return median(self.values)


_Rows = dict[Key, dict[str, _Measured]]  # by SHA-256 of the document


def read_bench(path: str) -> Object:
    """The saved bench in a file: all that this specx knows of it, checked, ready to be indexed.

    Fields that a newer specx added within version 1 are left out; control characters in its texts
    become visible. Raises ``DocumentError`` for what is no such file or damaged, naming the place
    (``cells[3].samples[0].decode_s``), and ``UsageError`` for another kind or version.
    """
    data = _json_object(path)
    if data.get("schema") != SCHEMA:
        found = f"is {shown(data['schema'])}" if "schema" in data else "names no schema"
        hint = "a saved bench comes from: specx bench --export FILE.json"
        raise UsageError(f"{path} {found}; this specx reads {SCHEMA}", hints=[hint])
    try:
        bench = known(data)
        _check_references(bench)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path} is damaged", reason=str(error)) from error
    return bench


def join(a: Object, b: Object, metric: str = "decode_tok_s") -> Comparison:
    """``b`` against ``a``, both as ``read_bench`` gives them, over what both have measured.

    ``metric`` is one of ``METRICS``. Raises ``UsageError`` for another one, and when nothing can
    be joined, with what differs.
    """
    if metric not in METRICS:
        hints = [*did_you_mean(metric, METRICS), f"metrics: {', '.join(METRICS)}"]
        raise UsageError(f"unknown metric {shown(metric)}", hints=hints)
    ours, theirs = _rows(a, metric), _rows(b, metric)
    rows = []
    for key, documents in ours.items():
        others = theirs.get(key, {})
        both = [(documents[sha], others[sha]) for sha in documents if sha in others]
        if both:
            rows.append(_row(key, both, _environment(a, b, key[0]), _settings(a, b, metric)))
    if not rows:
        hint = "run the second with the presets, --modes, --lengths and --data of the first"
        reason = _why_apart(ours, theirs)
        raise UsageError(f"the two benches share no {metric}", reason=reason, hints=[hint])
    left, right = (_origin(bench) for bench in (a, b))
    return Comparison(metric, left, right, tuple(rows), _rest(ours, theirs), _rest(theirs, ours))


def comparison_object(
    comparison: Comparison, paths: tuple[str | None, str | None] = (None, None)
) -> Object:
    """``specx.compare/1`` of kind ``saved``; ``paths`` are those of a and b, as given."""
    return {
        "schema": COMPARE_SCHEMA,
        "kind": "saved",
        "a": {"path": paths[0], **comparison.a},
        "b": {"path": paths[1], **comparison.b},
        "metric": comparison.metric,
        "rows": [_row_object(row) for row in comparison.rows],
        "only_in_a": [asdict(rest) for rest in comparison.only_in_a],
        "only_in_b": [asdict(rest) for rest in comparison.only_in_b],
    }


def _row_object(row: Row) -> Object:
    fields = asdict(row)
    differs = [*fields.pop("environment"), *fields.pop("settings")]
    return {**fields, "differs": differs, "agrees": row.agrees}


def _rows(bench: Object, metric: str) -> _Rows:
    """Every row with the metric, in the plan's order; a document listed twice counts once."""
    base, listed = bench["plan"]["baseline"], bench["plan"]["data"]["documents"]
    samples: dict[Key, Samples] = {}
    for cell in bench["cells"]:
        key = (cell["preset"], cell["mode"], cell["length"])
        samples[key] = [Sample.model_validate(sample) for sample in cell["samples"]]
    rows: _Rows = {}
    for (preset, mode, length), runs in samples.items():
        baseline = [] if mode == base else samples.get((preset, base, length), [])
        repetitions = by_document(runs)
        by_sha: dict[str, _Measured] = {}
        for number, values in _values(runs, baseline, metric).items():
            plausible = [value for value in values if 1 / _PLAUSIBLE < value < _PLAUSIBLE]
            if plausible:
                measured = by_sha.setdefault(listed[number]["sha256"], _Measured(listed[number]))
                measured.values += plausible
                measured.texts |= {tuple(run.tokens) for run in repetitions[number]}
        if by_sha:
            rows[preset, mode, length] = by_sha
    return rows


def _values(runs: Samples, baseline: Samples, metric: str) -> dict[int, list[float]]:
    """Document → the metric of its repetitions, where it is defined."""
    if metric == "speedup":
        return paired_ratios(runs, baseline, decode_tok_s)
    measure = MEASURES.get(metric, _tokens_per_step)
    values = {}
    for number, repetitions in by_document(runs).items():
        found = [measure(run) for run in repetitions]
        values[number] = [value for value in found if value is not None]
    return values


def _tokens_per_step(run: Sample) -> float | None:
    return 1 + run.accepted / run.steps if run.accepted is not None and run.steps else None


def _row(
    key: Key,
    both: Sequence[tuple[_Measured, _Measured]],
    environment: tuple[str, ...],
    settings: tuple[str, ...],
) -> Row:
    change = geometric_interval([[b.value / a.value] for a, b in both])
    same = all(len(a.texts | b.texts) == 1 for a, b in both)
    return Row(
        *key,
        n=change.n,
        a=math.exp(mean(math.log(a.value) for a, _ in both)),
        b=math.exp(mean(math.log(b.value) for _, b in both)),
        change_percent=100 * (change.value - 1),
        low_percent=None if change.low is None else 100 * (change.low - 1),
        high_percent=None if change.high is None else 100 * (change.high - 1),
        environment=environment,
        settings=settings,
        text_equal=True if same else None if settings else False,
    )


def _environment(a: Object, b: Object, preset: str) -> tuple[str, ...]:
    """Names of what differs between the two benches' surroundings, for one preset."""
    ours, theirs = _facts(a, preset), _facts(b, preset)
    return tuple(name for name in ours if ours[name] != theirs.get(name))


def _facts(bench: Object, preset: str) -> dict[str, Any]:
    plan = bench["plan"]
    settings = next(each for each in plan["presets"] if each["name"] == preset)
    return {
        **bench["env"],
        "dtype": (plan["dtype"], settings["target"]["dtype"]),
        "kernels": settings["kernels"],
        "preset.sha256": settings["sha256"],
        "stand_in": bool(settings.get("stand_in")),
        "specx.version": bench["specx"]["version"],
        "specx.commit": bench["specx"]["commit"],
    }


def _origin(bench: Object) -> Object:
    is_stand_in = any(preset.get("stand_in") for preset in bench["plan"]["presets"])
    return {**{name: bench[name] for name in ("created", "specx", "env")}, "stand_in": is_stand_in}


def _settings(a: Object, b: Object, metric: str) -> tuple[str, ...]:
    names = (*_SETTINGS, "baseline") if metric == "speedup" else _SETTINGS
    return tuple(name for name in names if a["plan"][name] != b["plan"][name])


def _rest(ours: _Rows, theirs: _Rows) -> tuple[Unmatched, ...]:
    """What ``ours`` has and ``theirs`` has not."""
    rest = []
    for key, documents in ours.items():
        others = theirs.get(key, {})
        alone = [measured.document for sha, measured in documents.items() if sha not in others]
        if alone:
            rest.append(Unmatched(*key, whole_row=not others, documents=alone))
    return tuple(rest)


def _why_apart(ours: _Rows, theirs: _Rows) -> str:
    """The first thing that keeps the benches apart, with both sides' values."""
    for name, rows in (("first", ours), ("second", theirs)):
        if not rows:
            return f"the {name} has no row with this metric"
    for place, what in enumerate(("presets", "modes", "lengths")):
        mine, yours = (list(dict.fromkeys(key[place] for key in rows)) for rows in (ours, theirs))
        if not set(mine) & set(yours):
            left, right = (", ".join(str(each) for each in side[:5]) for side in (mine, yours))
            return f"their {what} differ: {left} and {right}"
    if ours.keys() & theirs.keys():
        return "their rows were measured on different documents"
    return "no row has its preset, mode and length in both"


def _json_object(path: str) -> Object:
    """The object in a JSON file of bounded size. Raises ``DocumentError``."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BENCH_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"{path} cannot be read", reason=error.strerror or "") from error
    except ValueError as error:  # a NUL character in the path
        raise DocumentError("that is not a file name", reason=str(error)) from error
    if len(raw) > MAX_BENCH_BYTES:
        _refuse(path, f"it is larger than {MAX_BENCH_BYTES >> 20} MiB")
    try:
        data = json.loads(raw.decode("utf-8-sig"), parse_int=_whole, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        _refuse(path, f"it is not UTF-8 (byte {error.start})")
    except RecursionError:
        _refuse(path, "it is nested too deeply")
    except ValueError as error:
        _refuse(path, str(error))
    if not isinstance(data, dict):
        _refuse(path, "it holds no JSON object")
    return data


def _refuse(path: str, reason: str) -> NoReturn:
    hint = "give the .json that specx bench wrote, not a journal, .jsonl or .csv"
    raise DocumentError(f"{path} is not a saved bench", reason=reason, hints=[hint])


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is not JSON")


def _check_references(bench: Object) -> None:
    """Names and numbers must mean something in the plan, and no run may be there twice."""
    plan = bench["plan"]
    names = {"preset": [preset["name"] for preset in plan["presets"]]}
    names |= {"mode": plan["modes"], "length": plan["lengths"]}
    places = [(f"missing[{i}]", each["cell"]) for i, each in enumerate(bench["missing"])]
    seen: dict[tuple[object, ...], str] = {}
    for i, row in enumerate(bench["cells"]):
        _once(seen, tuple(row[name] for name in names), f"cells[{i}]")
        for j, sample in enumerate(row["samples"]):
            where, cell = f"cells[{i}].samples[{j}]", sample["cell"]
            places.append((where, cell))
            if any(cell[name] != row[name] for name in names):
                raise ValueError(f"{where}.cell belongs to another row")
            _once(seen, (*(cell[name] for name in names), cell["document"], cell["rep"]), where)
    for where, cell in places:
        for name, planned in names.items():
            if cell[name] not in planned:
                raise ValueError(f"{where}.cell.{name} is not in the plan: {shown(cell[name])}")
        if cell["document"] >= len(plan["data"]["documents"]):
            raise ValueError(f"{where}.cell.document is not in the plan: {cell['document']}")


def _once(seen: dict[tuple[object, ...], str], what: tuple[object, ...], where: str) -> None:
    if seen.setdefault(what, where) != where:
        raise ValueError(f"{where} is the same run as {seen[what]}")
