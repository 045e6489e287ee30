"""Conditions under which a bench or a comparison counts as failed: ``speedup<1.0@specx@16k``.

condition := metric [".low"|".high"] operator NUMBER ["%"] ("@" mode | "@" length)*
"""

import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from specx.bench.lengths import parse_lengths
from specx.bench.modes import did_you_mean, parse_mode
from specx.bench.schema import Bench, BenchRow, Interval, Spread, Summary
from specx.errors import UsageError

Part = Literal["value", "low", "high"]
#: A metric is an estimate with ``.low`` and ``.high``, a single number, or a change in percent,
#: which has no ``@`` mode and length: every row of a comparison is checked.
MetricKind = Literal["interval", "number", "percent"]
_INTERVALS = (
    *("speedup", "end_to_end_speedup", "tokens_per_step", "accepted_per_step"),
    # Of a rate, the ends are the least and the greatest that was measured.
    *("decode_tok_s", "prefill_tok_s", "end_to_end_tok_s"),
)
_NUMBERS = ("peak_gib", "floor", "equal")  # equal: share of outputs that are plain's, 0 to 1
BENCH_METRICS: Mapping[str, MetricKind] = {
    **dict.fromkeys(_INTERVALS, "interval"),
    **dict.fromkeys(_NUMBERS, "number"),
}
#: Of a comparison: by how much the second bench differs from the first.
COMPARE_METRICS: Mapping[str, MetricKind] = {"change": "percent"}
_SIGNS = ("<=", ">=", "==", "!=", "<", ">")
_TESTS = (operator.le, operator.ge, operator.eq, operator.ne, operator.lt, operator.gt)
_OPERATORS = dict(zip(_SIGNS, _TESTS, strict=True))
_SHAPE = re.compile(
    r"\s*(?P<metric>[A-Za-z_]+)(?:\.(?P<part>[A-Za-z_]*))?"
    r"\s*(?P<operator>[<>=!]+)\s*(?P<limit>[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?P<percent>%?)"
    r"\s*(?P<scope>(?:@[^@]*)*)"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition; ``text`` as it was written, ``limit_text`` its number with the sign."""

    text: str
    metric: str
    part: Part
    operator: str
    limit: float
    limit_text: str
    mode: str | None = None
    length: int | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` fulfils it, which means failure."""
        return bool(_OPERATORS[self.operator](value, self.limit))

    @property
    def name(self) -> str:
        """The metric as it is written: ``speedup.low``."""
        return self.metric if self.part == "value" else f"{self.metric}.{self.part}"

    def applies_to(self, row: BenchRow) -> bool:
        """Whether ``row`` is in its scope."""
        if self.metric.endswith("_per_step") and row.mode == "plain" and self.mode is None:
            return False  # one token a step by definition; who writes @plain gets it
        return self.mode in (None, row.mode) and self.length in (None, row.length)


def parse_condition(text: str, metrics: Mapping[str, MetricKind]) -> Condition:
    """``speedup.low<1.0@specx@16k`` or ``change<-5%``.

    Raises ``UsageError`` for an unknown metric, mode or operator, and for a percent sign too many
    or too few.
    """
    try:
        return _parse(text, metrics)
    except ValueError as error:
        is_percent = "percent" in metrics.values()
        examples = "change<-5%" if is_percent else "speedup<1.0, speedup.low<1.5@specx@16k, equal<1"
        raise UsageError(
            f"{text.strip()!r} is not a condition",
            reason=str(error),
            hints=[f"for example {examples}", f"metrics: {', '.join(metrics)}"],
        ) from error


def _parse(text: str, metrics: Mapping[str, MetricKind]) -> Condition:
    """Raises ``ValueError`` where a part is wrong, ``UsageError`` for unknown names."""
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise ValueError("it is not of the form METRIC OPERATOR NUMBER")
    name, part, sign = found["metric"], found["part"], found["operator"]
    if name not in metrics:
        hints = [*did_you_mean(name, metrics), f"known: {', '.join(metrics)}"]
        raise UsageError(f"unknown metric {name!r} in {text.strip()!r}", hints=hints)
    is_percent, has_percent = metrics[name] == "percent", bool(found["percent"])
    has_ends = metrics[name] == "interval"
    problems = {
        f"{sign!r} is not one of {' '.join(_OPERATORS)}": sign not in _OPERATORS,
        f"{name} is in percent: write {found['limit']}%": is_percent and not has_percent,
        f"{name} is not in percent": has_percent and not is_percent,
        "@ is not allowed here: every row is checked": is_percent and bool(found["scope"]),
        f"{name} is a single number, without .{part}": part is not None and not has_ends,
        f"{name} has .low and .high, not .{part}": part not in (None, "low", "high"),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem)
    mode, length = _scope(found["scope"])
    return Condition(
        text=text.strip(),
        metric=name,
        part=cast(Part, part or "value"),
        operator=sign,
        limit=float(found["limit"]),
        limit_text=found["limit"] + found["percent"],
        mode=mode,
        length=length,
    )


def _scope(scope: str) -> tuple[str | None, int | None]:
    """``@specx@16k`` → mode and length, None where there is none."""
    words = [word.strip() for word in scope.split("@")[1:]]
    lengths = [each for word in words if word[:1].isdecimal() for each in parse_lengths(word)]
    modes = [parse_mode(word).name for word in words if not word[:1].isdecimal()]
    for what, found in (("mode", modes), ("length", lengths)):
        if len(found) > 1:
            raise ValueError(f"only one {what} is allowed")
    return next(iter(modes), None), next(iter(lengths), None)


def failures(conditions: Sequence[Condition], bench: Bench) -> list[str]:
    """A sentence for every cell of a bench in which a condition holds."""
    return [line for each in conditions for line in _held(each, _values(each, bench))]


def change_failures(
    conditions: Sequence[Condition], rows: Sequence[tuple[str, float | None]]
) -> list[str]:
    """A sentence for every row (label, change in percent) of a comparison that fails."""
    return [line for each in conditions for line in _held(each, rows)]


def unmatched(conditions: Sequence[Condition], bench: Bench) -> list[str]:
    """A sentence for every condition that applied to no cell, and so was never checked."""
    sentences = []
    for condition in conditions:
        if any(value is not None for _, value in _values(condition, bench)):
            continue
        mode, length = condition.mode, condition.length
        if mode is not None and all(row.mode != mode for row in bench.cells):
            reason = f"mode {mode} was not measured"
        elif not any(map(condition.applies_to, bench.cells)):
            what = "nothing" if mode is None else f"no run of {mode}"
            where = "" if length is None else f" at {length:,} tokens"
            reason = f"{what} was measured{where}"
        else:
            reason = f"no cell there has a value of {condition.name}"
        sentences.append(f"{condition.text} was not checked: {reason}")
    return sentences


def change_unmatched(
    conditions: Sequence[Condition], rows: Sequence[tuple[str, float | None]]
) -> list[str]:
    """As ``unmatched``: every condition, where no row has a change."""
    if any(change is not None for _, change in rows):
        return []
    return [f"{each.text} was not checked: the benches share no row" for each in conditions]


def _values(condition: Condition, bench: Bench) -> Iterator[tuple[str, float | None]]:
    """Label and value of the rows in the scope of ``condition``."""
    for row in filter(condition.applies_to, bench.cells):
        yield f"{row.preset} · {row.mode} · {row.length:,}", _value(condition, row.summary)


def _value(condition: Condition, summary: Summary) -> float | None:
    match condition.metric:
        case "peak_gib":
            return summary.memory.peak / 2**30
        case "equal":
            equal = summary.equal
            return equal.equal / equal.checked if equal and equal.checked else None
        case "floor":
            return summary.floor.decode if summary.floor else None
    found: Spread | Interval | None = getattr(summary, condition.metric)
    is_median = isinstance(found, Spread) and condition.part == "value"
    return getattr(found, "median" if is_median else condition.part, None)


def _held(condition: Condition, values: Iterable[tuple[str, float | None]]) -> Iterator[str]:
    """``speedup 0.83 < 1.0 at …``, with as many decimals as it takes to look true."""
    unit = "%" if condition.limit_text.endswith("%") else ""
    for label, value in values:
        if value is None or not condition.holds(value):
            continue
        texts = [f"{value:.{decimals}f}" for decimals in range(2, 16)]
        shown = next((text for text in texts if condition.holds(float(text))), texts[-1])
        bound = f"{condition.operator} {condition.limit_text}"
        yield f"{condition.name} {shown}{unit} {bound} at {label}"
