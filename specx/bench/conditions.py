"""Conditions under which a bench or a comparison counts as failed: ``speedup<1.0@specx@16k``.

In: the texts of ``--fail-if`` and a bench, or the rows of a comparison. Out: one sentence for every
place where a condition holds, and one for every condition that applied nowhere.

    condition := metric [".low"|".high"] operator NUMBER ["%"] ("@" mode | "@" length)*
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

from specx.bench.lengths import parse_lengths
from specx.bench.modes import parse_mode
from specx.bench.schema import Bench, BenchRow, Interval, Spread, Summary
from specx.errors import UsageError
from specx.preset.yaml import did_you_mean

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
BENCH_METRICS: Mapping[str, MetricKind] = MappingProxyType(
    {**dict.fromkeys(_INTERVALS, "interval"), **dict.fromkeys(_NUMBERS, "number")}
)
#: Of a comparison: by how much the second bench differs from the first.
COMPARE_METRICS: Mapping[str, MetricKind] = MappingProxyType({"change": "percent"})
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        "<=": operator.le,
        ">=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        ">": operator.gt,
    }
)
_SHAPE = re.compile(
    r"\s*(?P<metric>[A-Za-z_]+)(?:\.(?P<part>[A-Za-z_]*))?"
    r"\s*(?P<operator>[<>=!]+)\s*(?P<limit>[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?P<percent>%?)"
    r"\s*(?P<scope>(?:@[^@]*)*)"
)
_OF_DRAFTS = ("tokens_per_step", "accepted_per_step")
_GIB = 1 << 30


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
        return _OPERATORS[self.operator](value, self.limit)

    @property
    def name(self) -> str:
        """The metric as it is written: ``speedup.low``."""
        return self.metric if self.part == "value" else f"{self.metric}.{self.part}"


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
    name, sign = found["metric"], found["operator"]
    if name not in metrics:
        hints = [*did_you_mean(name, metrics), f"known: {', '.join(metrics)}"]
        raise UsageError(f"unknown metric {name!r} in {text.strip()!r}", hints=hints)
    is_percent = metrics[name] == "percent"
    if sign not in _OPERATORS:
        raise ValueError(f"{sign!r} is not one of {' '.join(_OPERATORS)}")
    if is_percent and not found["percent"]:
        raise ValueError(f"{name} is in percent: write {found['limit']}%")
    if found["percent"] and not is_percent:
        raise ValueError(f"{name} is not in percent")
    if found["scope"] and is_percent:
        raise ValueError("@ is not allowed here: every row is checked")
    mode, length = _scope(found["scope"])
    if found["part"] is not None and metrics[name] != "interval":
        raise ValueError(f"{name} is a single number, without .{found['part']}")
    if found["part"] not in (None, "low", "high"):
        raise ValueError(f"{name} has .low and .high, not .{found['part']}")
    return Condition(
        text=text.strip(),
        metric=name,
        part=cast(Part, found["part"] or "value"),
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
    for what, several in (("mode", len(modes) > 1), ("length", len(lengths) > 1)):
        if several:
            raise ValueError(f"only one {what} is allowed")
    return next(iter(modes), None), next(iter(lengths), None)


def failures(conditions: Sequence[Condition], bench: Bench) -> list[str]:
    """A sentence for every cell of a bench in which a condition holds."""
    return [
        f"{_comparison(condition, value)} at {row.preset} · {row.mode} · {row.length:,}"
        for condition in conditions
        for row, value in _values(condition, bench)
        if condition.holds(value)
    ]


def unmatched(conditions: Sequence[Condition], bench: Bench) -> list[str]:
    """A sentence for every condition that applied to no cell, and so was never checked."""
    sentences = []
    for condition in conditions:
        if any(True for _ in _values(condition, bench)):
            continue
        mode, length = condition.mode, condition.length
        if mode is not None and all(row.mode != mode for row in bench.cells):
            reason = f"mode {mode} was not measured"
        elif not any(_is_in_scope(condition, row) for row in bench.cells):
            what = "nothing" if mode is None else f"no run of {mode}"
            where = "" if length is None else f" at {length:,} tokens"
            reason = f"{what} was measured{where}"
        else:
            reason = f"no cell there has a value of {condition.name}"
        sentences.append(f"{condition.text} was not checked: {reason}")
    return sentences


def change_failures(
    conditions: Sequence[Condition], rows: Sequence[tuple[str, float | None]]
) -> list[str]:
    """A sentence for every row (label, change in percent) of a comparison that fails."""
    return [
        f"{_comparison(condition, change)} at {label}"
        for condition in conditions
        for label, change in rows
        if change is not None and condition.holds(change)
    ]


def change_unmatched(
    conditions: Sequence[Condition], rows: Sequence[tuple[str, float | None]]
) -> list[str]:
    """As ``unmatched``: every condition, where no row has a change."""
    if any(change is not None for _, change in rows):
        return []
    return [f"{each.text} was not checked: the benches share no row" for each in conditions]


def _values(condition: Condition, bench: Bench) -> Iterator[tuple[BenchRow, float]]:
    """Rows in the scope of ``condition`` in which its metric has a value."""
    for row in bench.cells:
        if _is_in_scope(condition, row):
            value = _value(condition, row.summary)
            if value is not None:
                yield row, value


def _is_in_scope(condition: Condition, row: BenchRow) -> bool:
    if condition.metric in _OF_DRAFTS and row.mode == "plain" and condition.mode is None:
        return False  # one token a step by definition; who writes @plain gets it
    return condition.mode in (None, row.mode) and condition.length in (None, row.length)


def _value(condition: Condition, summary: Summary) -> float | None:
    match condition.metric:
        case "peak_gib":
            return summary.memory.peak / _GIB
        case "equal":
            equal = summary.equal
            return equal.equal / equal.checked if equal and equal.checked else None
        case "floor":
            return summary.floor.decode if summary.floor else None
    found: Spread | Interval | None = getattr(summary, condition.metric)
    if found is None:
        return None
    if condition.part == "value":
        return found.median if isinstance(found, Spread) else found.value
    return found.low if condition.part == "low" else found.high


def _comparison(condition: Condition, value: float) -> str:
    """``speedup 0.83 < 1.0``, with as many decimals as it takes to look true."""
    for decimals in range(2, 16):
        rounded = f"{value:.{decimals}f}"
        if condition.holds(float(rounded)):
            break
    unit = "%" if condition.limit_text.endswith("%") else ""
    return f"{condition.name} {rounded}{unit} {condition.operator} {condition.limit_text}"
