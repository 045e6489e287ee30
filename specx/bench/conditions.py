"""Conditions under which a bench or a comparison counts as failed: ``speedup<1.0@specx@16k``.

condition := metric [".low"|".high"] operator NUMBER ["%"] ("@" mode | "@" length)*
"""

import operator as op
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from specx.bench.lengths import parse_lengths
from specx.bench.modes import parse_mode
from specx.bench.schema import Bench, BenchRow, Interval, Spread, Summary
from specx.errors import UsageError
from specx.preset.yaml import did_you_mean

#: A metric is an estimate with ``.low`` and ``.high``, a single number, or a change in percent,
#: which has no ``@`` mode and length: every row of a comparison is checked.
MetricKind = Literal["interval", "number", "percent"]
_ESTIMATES = ("speedup", "end_to_end_speedup", "tokens_per_step", "accepted_per_step")
_RATES = ("decode_tok_s", "prefill_tok_s", "end_to_end_tok_s")  # ends: least and greatest of all
_NUMBERS = ("peak_gib", "floor", "equal")  # equal: share of outputs that are plain's, 0 to 1
BENCH_METRICS: Mapping[str, MetricKind] = {
    **dict.fromkeys((*_ESTIMATES, *_RATES), "interval"),
    **dict.fromkeys(_NUMBERS, "number"),
}
#: Of a comparison: by how much the second bench differs from the first.
COMPARE_METRICS: Mapping[str, MetricKind] = {"change": "percent"}
_OPERATORS = {"<=": op.le, ">=": op.ge, "==": op.eq, "!=": op.ne, "<": op.lt, ">": op.gt}
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
    part: str  # value, low or high
    operator: str
    limit: float
    limit_text: str
    mode: str | None = None
    length: int | None = None

    def holds(self, value: float) -> bool:
        return bool(_OPERATORS[self.operator](value, self.limit))

    @property
    def name(self) -> str:
        return self.metric if self.part == "value" else f"{self.metric}.{self.part}"

    def applies_to(self, row: BenchRow) -> bool:
        if self.metric.endswith("_per_step") and row.mode == "plain" and self.mode is None:
            return False  # one token a step by definition; who writes @plain gets it
        return self.mode in (None, row.mode) and self.length in (None, row.length)


def parse_condition(text: str, metrics: Mapping[str, MetricKind]) -> Condition:
    """``speedup.low<1.0@specx@16k`` or ``change<-5%``. Raises ``UsageError``."""
    text = text.strip()
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise _refused(text, "it is not of the form METRIC OPERATOR NUMBER", metrics)
    name, part, sign, limit, percent, scope = found.groups()
    if name not in metrics:
        hints = [*did_you_mean(name, metrics), f"known: {', '.join(metrics)}"]
        raise UsageError(f"unknown metric {name!r} in {text!r}", hints=hints)
    kind = metrics[name]
    words = [word.strip() for word in scope.split("@")[1:]]
    lengths = [word for word in words if word[:1].isdecimal()]
    modes = [word for word in words if word not in lengths]
    problems = {
        f"{sign!r} is not one of {' '.join(_OPERATORS)}": sign not in _OPERATORS,
        f"{name} is in percent: write {limit}%": kind == "percent" and not percent,
        f"{name} is not in percent": kind != "percent" and percent,
        "@ is not allowed here: every row is checked": kind == "percent" and scope,
        f"{name} is a single number, without .{part}": kind != "interval" and part is not None,
        f"{name} has .low and .high, not .{part}": part not in (None, "low", "high"),
        "only one mode is allowed": len(modes) > 1,
        "only one length is allowed": re.search(r"@|,|\.\.", "@".join(lengths)),
    }
    if wrong := [problem for problem, is_there in problems.items() if is_there]:
        raise _refused(text, wrong[0], metrics)
    mode = parse_mode(modes[0]).name if modes else None
    length = parse_lengths(lengths[0])[0] if lengths else None
    part = part or "value"
    return Condition(text, name, part, sign, float(limit), limit + percent, mode, length)


def _refused(text: str, reason: str, metrics: Mapping[str, MetricKind]) -> UsageError:
    is_percent = "percent" in metrics.values()
    examples = "change<-5%" if is_percent else "speedup<1.0, speedup.low<1.5@specx@16k, equal<1"
    hints = [f"for example {examples}", f"metrics: {', '.join(metrics)}"]
    return UsageError(f"{text!r} is not a condition", reason=reason, hints=hints)


def failures(conditions: Sequence[Condition], bench: Bench) -> list[str]:
    """A sentence for every cell of a bench in which a condition holds. Raises ``UsageError`` for a
    condition that applied to no cell, and so was never checked."""
    sentences: list[str] = []
    for condition in conditions:
        values = [
            (f"{row.preset} · {row.mode} · {row.length:,}", value)
            for row in filter(condition.applies_to, bench.cells)
            if (value := _value(condition, row.summary)) is not None
        ]
        if not values:
            reason = _why_unchecked(condition, bench)
            raise UsageError(f"{condition.text} was not checked", reason=reason)
        sentences += _held(condition, values)
    return sentences


def change_failures(
    conditions: Sequence[Condition], rows: Sequence[tuple[str, float]]
) -> list[str]:
    """A sentence for every row (label, change in percent) of a comparison that fails."""
    return [line for each in conditions for line in _held(each, rows)]


def _why_unchecked(condition: Condition, bench: Bench) -> str:
    mode, length = condition.mode, condition.length
    if mode is not None and all(row.mode != mode for row in bench.cells):
        return f"mode {mode} was not measured"
    if any(map(condition.applies_to, bench.cells)):
        return f"no cell there has a value of {condition.name}"
    what = "nothing" if mode is None else f"no run of {mode}"
    return f"{what} was measured" + ("" if length is None else f" at {length:,} tokens")


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


def _held(condition: Condition, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    """``speedup 0.83 < 1.0 at …``, with as many decimals as it takes to look true."""
    unit = "%" if condition.limit_text.endswith("%") else ""
    for label, value in values:
        if condition.holds(value):
            texts = [f"{value:.{decimals}f}" for decimals in range(2, 16)]
            shown = next((text for text in texts if condition.holds(float(text))), texts[-1])
            bound = f"{condition.operator} {condition.limit_text}"
            yield f"{condition.name} {shown}{unit} {bound} at {label}"
