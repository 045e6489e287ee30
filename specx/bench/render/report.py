"""Comparisons as reports: a table between lines, of two saved benches or of live runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from specx.bench.comparison import LiveRun, Task, rates, speedup
from specx.bench.render import numbers
from specx.bench.render.markdown import bullets, escaped, table_markdown
from specx.bench.render.numbers import NOTHING, joined, known, number, plain_text, short, size
from specx.bench.render.tables import ColumnOf, TableModel, tabulated
from specx.bench.schema import Change, Origin, SavedComparison, Unmatched

_MOST_ALONE = 6
_MARKS = "*†‡§¶"


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison's table between lines. ``findings`` are results, ``notes`` explain."""

    title: tuple[str, ...]
    table: TableModel
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """For everything that is no terminal."""
        title = "  \n".join(map(escaped, self.title))
        items = bullets((*self.findings, *self.notes))
        return f"{title}\n\n{table_markdown(self.table)}\n\n{items}\n"


# Two saved benches


def saved_report(found: SavedComparison) -> Report:
    """One row for each preset, mode and length that both benches have."""
    # a sign for each set of differences: *, †, … **
    kinds = dict.fromkeys(tuple(row.differs) for row in found.rows if row.differs)
    most = len(_MARKS)
    marks = {kind: _MARKS[at % most] * (1 + at // most) for at, kind in enumerate(kinds)}
    legend = [f"{marks[kind]} {joined(_differing(found, name) for name in kind)}" for kind in kinds]
    alone = [f"only in A: {_alone(each)}" for each in found.only_in_a]
    alone += [f"only in B: {_alone(each)}" for each in found.only_in_b]
    if more := len(alone[_MOST_ALONE:]):
        alone[_MOST_ALONE:] = [f"and {more:,} more that only one of them has"]
    several = len({row.preset for row in found.rows}) > 1
    columns: list[ColumnOf[Change]] = [
        ("<preset", lambda row: short(row.preset)),
        ("<mode", lambda row: short(row.mode)),
        ("prompt", lambda row: f"{row.length:,}"),
        ("A", lambda row: number(row.a)),
        ("B", lambda row: number(row.b)),
        ("change", lambda row: _percent(row.change_percent)),
        ("95 % interval", _interval),
        ("n", lambda row: str(row.n)),
        ("<text", lambda row: {True: "equal", False: "differs", None: NOTHING}[row.text_equal]),
        ("<differs", lambda row: marks.get(tuple(row.differs), "")),
    ]
    columns = columns[0 if several else 1 : None if marks else -1]
    keys = 3 if several else 2
    return Report(
        title=(f"A {_origin(found.a)}", f"B {_origin(found.b)}"),
        table=tabulated("", columns, found.rows, attrgetter("preset", "length"), keys),
        findings=(*legend, *alone),
        notes=(
            f"A and B = {found.metric}, geometric mean over the n documents that both have",
            "change = of B against A; interval by a paired bootstrap over documents",
        ),
    )


def row_label(row: Change | Unmatched) -> str:
    """``pocket specx 2,048``."""
    return f"{short(row.preset)} {short(row.mode)} {row.length:,}"


def _origin(bench: Origin) -> str:
    machine = plain_text(bench.env.gpu or bench.env.cpu, 60)
    weights = "stand-in weights" if bench.stand_in else ""
    path = plain_text(bench.path)
    return joined(
        (path, numbers.program(bench.specx), machine, numbers.moment(bench.created), weights)
    )


def _differing(found: SavedComparison, name: str) -> str:
    """``torch 2.11 → 2.13`` where both values are known, else the name."""
    group, _, key = name.rpartition(".")
    one, other = (
        getattr(bench.specx if group == "specx" else bench.env, key, None)
        for bench in (found.a, found.b)
    )
    values = [known(value, lambda text: plain_text(text, 60)) for value in (one, other)]
    return short(name) if one == other else f"{short(name)} {' → '.join(values)}"


def _alone(row: Unmatched) -> str:
    documents = numbers.count(len(row.documents), "document")
    return row_label(row) + ("" if row.whole_row else f" ({documents})")


def _interval(row: Change) -> str:
    if row.low_percent is None or row.high_percent is None:
        return NOTHING
    return f"{_percent(row.low_percent)} … {_percent(row.high_percent)}"


def _percent(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1
    return f"{round(value, digits) + 0.0:+,.{digits}f} %"


# Live runs


def live_report(runs: Sequence[LiveRun], name: str, task: Task) -> Report:
    """One row a run, compared with the first one; ``name`` is the document's."""
    first = runs[0]
    columns: list[ColumnOf[LiveRun]] = [
        ("<run", _title),
        ("prompt tokens", lambda run: f"{run.result.stats.prompt_tokens:,}"),
        ("new tokens", lambda run: f"{run.result.stats.new_tokens:,}"),
        ("prefill tok/s", lambda run: known(rates(run.result.stats).prefill_tok_s, number)),
        ("decode tok/s", lambda run: known(rates(run.result.stats).decode_tok_s, number)),
        ("overall tok/s", lambda run: known(rates(run.result.stats).end_to_end_tok_s, number)),
        ("tok/step", lambda run: _per_step(run, run.result.stats.tokens_per_step)),
        ("accepted/step", lambda run: _per_step(run, run.result.stats.accepted_per_step)),
        ("peak memory", lambda run: known(run.result.stats.memory.peak_bytes or None, size)),
        ("decode speed-up", lambda run: known(speedup(run, first), numbers.times)),
        ("overall speed-up", lambda run: known(speedup(run, first, overall=True), numbers.times)),
        ("<text", lambda run: _verdict(run, first)),
    ]
    sampling = task.sampling
    drawn = f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    how = drawn if sampling.temperature else "greedy"
    limit, place = f"up to {task.max_tokens:,} new tokens", f"{first.device} {first.dtype}"
    owner = "the process" if first.device.startswith("cpu") else "the allocator on the GPU"
    return Report(
        title=(plain_text(joined((name, limit, how, place)), 400),),
        table=tabulated("", columns, runs),
        findings=tuple(difference_line(run, first) for run in runs if run.difference),
        notes=(
            "prefill = prompt tokens / prefill time of target and draft",
            "decode = (new tokens - 1) / decode time; overall = new tokens / total time",
            "accepted = draft tokens kept a step; tok/step = that + 1 (plain = 1)",
            f"speed-ups and text are compared with {_title(first)}; peak memory is that of {owner}",
        ),
    )


def difference_line(run: LiveRun, first: LiveRun) -> str:
    """Where a text leaves the first run's: the token's number, both tokens, the margin."""
    found = run.difference
    if found is None:
        return ""
    got, expected = (
        "the end" if token is None else f"{plain_text(repr(text))} (id {token})"
        for token, text in ((found.got, run.got_text), (found.expected, run.expected_text))
    )
    margin = "" if found.margin is None else f"; logit margin {found.margin:.3g}"
    place = f"{_title(run)}: token {found.index + 1:,} is {got}"
    return f"{place}, in {_title(first)} {expected}{margin}"


def _title(run: LiveRun) -> str:
    return short(run.contestant.title)


def _per_step(run: LiveRun, value: float) -> str:
    return f"{value:.2f}" if run.result.stats.steps else NOTHING


def _verdict(run: LiveRun, first: LiveRun) -> str:
    if run is first:
        return "interrupted" if run.result.finish_reason == "interrupted" else "reference"
    if run.equal is None:
        return run.why
    return "equal" if run.difference is None else f"differs at {run.difference.index + 1:,}"
