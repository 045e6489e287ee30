"""What a comparison says: of finished runs, or of two saved benches.

Goes in: runs, or a ``specx.compare/1`` object of kind ``saved``. Comes out: a ``Report``, and lines
for messages. It prints nothing and does not know engines. Names in a saved bench may say anything.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from specx.bench.comparison import Run, end_to_end_speedup, rates, speedup
from specx.bench.render.numbers import NOTHING, moment, number, plain_text, size, times
from specx.cli.compare.report import Grid, Report

_SEPARATOR = " · "
_NAME_CELLS = 40
_MOST_ALONE = 6
_MARKS = "*†‡§¶"
_WORDS = ("preset", "mode", "text", "differs")  # columns of the saved table


def runs_report(runs: Sequence[Run], title: str) -> Report:
    """One row a run, compared with the first one."""
    first = runs[0]
    name = plain_text(first.contestant.title, _NAME_CELLS)
    owner = "the process" if first.device.startswith("cpu") else "the allocator on the GPU"
    return Report(
        title=(plain_text(title, 400),),
        grid=_runs_grid(runs),
        findings=tuple(difference_line(run, first) for run in runs if run.difference),
        notes=(
            "prefill = prompt tokens / prefill time of target and draft",
            "decode = (new tokens - 1) / decode time; overall = new tokens / total time",
            "accepted = draft tokens kept a step; tok/step = that + 1 (plain = 1)",
            f"speed-ups and text are compared with {name}; peak memory is that of {owner}",
        ),
    )


def _runs_grid(runs: Sequence[Run]) -> Grid:
    header = (
        "run",
        "prompt tokens",
        "new tokens",
        "prefill tok/s",
        "decode tok/s",
        "overall tok/s",
        "tok/step",
        "accepted/step",
        "peak memory",
        "decode speed-up",
        "overall speed-up",
        "text",
    )
    rows = tuple(_run_row(run, runs[0]) for run in runs)
    return Grid(header, rows, words=frozenset({0, len(header) - 1}))


def _run_row(run: Run, first: Run) -> tuple[str, ...]:
    stats = run.result.stats
    peak = stats.memory.peak_bytes
    return (
        plain_text(run.contestant.title, _NAME_CELLS),
        f"{stats.prompt_tokens:,}",
        f"{stats.new_tokens:,}",
        *(NOTHING if rate is None else number(rate) for rate in rates(stats).values()),
        f"{stats.tokens_per_step:.2f}" if stats.steps else NOTHING,
        f"{stats.accepted_per_step:.2f}" if stats.steps else NOTHING,
        size(peak) if peak else NOTHING,
        *(_ratio(ratio(run, first)) for ratio in (speedup, end_to_end_speedup)),
        _verdict(run, first),
    )


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else times(value)


def _verdict(run: Run, first: Run) -> str:
    if run is first:
        return "interrupted" if run.result.finish_reason == "interrupted" else "reference"
    if run.equal is None:
        return run.why
    return "equal" if run.difference is None else f"differs at {run.difference.index + 1:,}"


def difference_line(run: Run, first: Run) -> str:
    """Where a text leaves the first run's: the token's number, both tokens, the margin."""
    difference = run.difference
    if difference is None:
        return ""
    pairs = (
        (difference.got, run.got_text),
        (difference.expected, run.expected_text),
    )
    got, expected = (
        "the end" if token is None else f"{plain_text(repr(text))} (id {token})"
        for token, text in pairs
    )
    margin = "" if difference.margin is None else f"; logit margin {difference.margin:.3g}"
    titles = [plain_text(each.contestant.title, _NAME_CELLS) for each in (run, first)]
    return (
        f"{titles[0]}: token {difference.index + 1:,} is {got}, in {titles[1]} {expected}{margin}"
    )


def saved_report(comparison: Mapping[str, Any]) -> Report:
    """One row for each preset, mode and length that both benches have."""
    legend = [
        f"{mark} {_SEPARATOR.join(_difference(comparison, name) for name in differs)}"
        for differs, mark in _marks(comparison).items()
    ]
    alone = [_alone(side, each) for side in "ab" for each in comparison[f"only_in_{side}"]]
    if len(alone) > _MOST_ALONE:
        alone[_MOST_ALONE:] = [f"and {len(alone) - _MOST_ALONE:,} more that only one of them has"]
    metric = plain_text(comparison["metric"])
    return Report(
        title=tuple(_bench_line(side, comparison[side]) for side in "ab"),
        grid=_saved_grid(comparison),
        findings=(*legend, *alone),
        notes=(
            f"A and B = {metric}, geometric mean over the n documents that both have",
            "change = of B against A; interval by a paired bootstrap over documents",
        ),
    )


def _saved_grid(comparison: Mapping[str, Any]) -> Grid:
    rows: list[Mapping[str, Any]] = comparison["rows"]
    several = len({row["preset"] for row in rows}) > 1
    marks = _marks(comparison)
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        *([("preset", lambda row: plain_text(row["preset"], _NAME_CELLS))] if several else []),
        ("mode", lambda row: plain_text(row["mode"], _NAME_CELLS)),
        ("prompt", lambda row: f"{row['length']:,}"),
        ("A", lambda row: number(row["a"])),
        ("B", lambda row: number(row["b"])),
        ("change", lambda row: _percent(row["change_percent"])),
        ("95 % interval", _interval),
        ("n", lambda row: str(row["n"])),
        ("text", lambda row: {True: "equal", False: "differs", None: NOTHING}[row["text_equal"]]),
    ]
    if marks:
        columns.append(("differs", lambda row: marks.get(tuple(row["differs"]), "")))
    places = [list(each) for _, each in groupby(rows, lambda r: (r["preset"], r["length"]))]
    starts = [sum(map(len, places[:at])) for at in range(1, len(places))]
    return Grid(
        tuple(title for title, _ in columns),
        tuple(tuple(text(row) for _, text in columns) for row in rows),
        words=frozenset(at for at, (title, _) in enumerate(columns) if title in _WORDS),
        keys=3 if several else 2,
        breaks=frozenset(starts),
    )


def _bench_line(side: str, bench: Mapping[str, Any]) -> str:
    version = bench["specx"]
    commit = f" ({plain_text(version['commit'], 12)})" if version["commit"] else ""
    parts = (
        f"{side.upper()} {plain_text(bench['path'])}",
        f"specx {plain_text(version['version'], 20)}{commit}",
        plain_text(bench["env"]["gpu"] or bench["env"]["cpu"], 60),
        moment(bench["created"]),
        *(["stand-in weights"] if bench.get("stand_in") else []),
    )
    return _SEPARATOR.join(parts)


def row_label(row: Mapping[str, Any]) -> str:
    """``pocket specx 2,048``: a row of two saved benches in a message."""
    names = [plain_text(row[key], _NAME_CELLS) for key in ("preset", "mode")]
    return f"{' '.join(names)} {row['length']:,}"


def _marks(comparison: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """A sign for each set of differences: ``*``, ``†``, … ``**``."""
    kinds = dict.fromkeys(tuple(row["differs"]) for row in comparison["rows"] if row["differs"])
    count = len(_MARKS)
    return {kind: _MARKS[at % count] * (1 + at // count) for at, kind in enumerate(kinds)}


def _difference(comparison: Mapping[str, Any], name: str) -> str:
    """``torch 2.11 → 2.13`` where both values are known, else the name."""
    values = []
    for side in ("a", "b"):
        bench = comparison[side]
        group, _, key = name.rpartition(".")
        facts = bench["specx"] if group == "specx" else bench["env"]
        values.append(facts.get(key))
    if values[0] == values[1]:
        return plain_text(name, _NAME_CELLS)
    one, other = (NOTHING if value is None else plain_text(value, 60) for value in values)
    return f"{plain_text(name, _NAME_CELLS)} {one} → {other}"


def _alone(side: str, unmatched: Mapping[str, Any]) -> str:
    what = ""
    if not unmatched["whole_row"]:
        count = len(unmatched["documents"])
        what = f" ({count} document{'' if count == 1 else 's'})"
    return f"only in {side.upper()}: {row_label(unmatched)}{what}"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["low_percent"], row["high_percent"]
    return NOTHING if low is None or high is None else f"{_percent(low)} … {_percent(high)}"


def _percent(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1
    return f"{round(value, digits) + 0.0:+,.{digits}f} %"
