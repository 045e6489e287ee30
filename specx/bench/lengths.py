"""Lists of prompt lengths as people write them: ``512,1k..16k``. In: a text. Out: token counts, or
an error with a caret under the character that is wrong."""

import itertools
import re
from collections.abc import Iterator
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

from specx.errors import UsageError

MAX_LENGTH_TOKENS = 16 << 20
MAX_LENGTHS = 1000
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_LENGTH = r"[0-9]+(?:\.[0-9]+)?[kKmM]?"
_SPACING = rf"(?P<count>[0-9]+)|x(?P<factor>[0-9]+(?:\.[0-9]+)?)|\+(?P<step>{_LENGTH})"
_ITEM = re.compile(rf"(?P<start>{_LENGTH})(?:\.\.(?P<end>{_LENGTH})(?::(?:{_SPACING}))?)?")
#: What goes on after a part of an item, and what has to follow then.
_MISSING = {
    "start": {"..": "a length"},
    "end": {":x": "a factor", ":+": "a length", ":": "a number of points, x or +"},
}
_SIGNS = {":": "a spacing comes after a range", "*": "a factor is written :x4"}
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # for products, of any digits
_HINTS = (
    "for example: 4k or 512,1k,16k or 1k..16k (doubling)",
    "1k..16k:5 (so many points), 1k..16k:x4 (factor), 1k..4k:+1k (steps)",
)


def parse_lengths(text: str) -> tuple[int, ...]:
    """Token counts of a list such as ``512,1k..16k``, sorted, without repeats.

        list    := item ("," item)*
        item    := length | length ".." length [":" spacing]     both ends are part of a range
        spacing := COUNT points | "x" FACTOR | "+" length        none: the range doubles
        length  := DIGITS ["." DIGITS] [k|K|m|M]                 k = 1024, m = 1024 k

    Raises ``UsageError``; its ``reason`` is two lines, the text and a caret below the fault.
    """
    lengths: set[int] = set()
    at = 0
    while True:
        item = _ITEM.match(text, at)
        if item is None:
            raise _fault(text, at, "a length is missing")
        if item.end() < len(text) and text[item.end()] != ",":
            raise _unexpected(item)
        more = list(itertools.islice(_lengths(item), MAX_LENGTHS + 1))
        lengths.update(more)
        if max(len(more), len(lengths)) > MAX_LENGTHS:
            raise _fault(text, at, f"more than {MAX_LENGTHS:,} lengths")
        at = item.end() + 1
        if at > len(text):
            return tuple(sorted(lengths))


def _lengths(item: re.Match[str]) -> Iterator[int]:
    start = _length(item, "start")
    if item["end"] is None:
        return iter((start,))
    end = _length(item, "end")
    if end < start:
        raise _fault(item.string, item.start("end"), "a range must not end below its start")
    if item["step"] is not None:
        return itertools.chain(range(start, end, _length(item, "step")), (end,))
    if item["count"] is not None:
        count = Decimal(item["count"])
        if not 2 <= count <= MAX_LENGTHS:
            wrong = f"a range has 2 to {MAX_LENGTHS:,} points"
            raise _fault(item.string, item.start("count"), wrong)
        return _points(start, end, int(count))
    factor = float(item["factor"] or 2)
    if factor <= 1:
        raise _fault(item.string, item.start("factor"), "a factor is above 1")
    # From there on it only skips to the end.
    return _multiplied(start, end, min(factor, 2.0 * MAX_LENGTH_TOKENS))


def _length(item: re.Match[str], part: str) -> int:
    begin, number = item.start(part), item[part].rstrip("kKmM")
    unit = item[part][len(number) :].lower()
    point = begin + number.find(".")
    if "." in number and not unit:
        raise _fault(item.string, point, "a fraction needs k or m after it")
    tokens = _EXACT.multiply(Decimal(number), _UNITS[unit])
    if tokens > MAX_LENGTH_TOKENS:
        raise _fault(item.string, begin, f"a length is at most {MAX_LENGTH_TOKENS >> 20}m")
    if tokens % 1:
        raise _fault(item.string, point, "that is not a whole number of tokens")
    if tokens < 1:
        raise _fault(item.string, begin, "a length is at least 1")
    return int(tokens)


def _unexpected(item: re.Match[str]) -> UsageError:
    """An error about what comes after an item and is no comma."""
    text, at, part = item.string, item.end(), item.lastgroup or ""
    for sign, wanted in _MISSING.get(part, {}).items():
        if text.startswith(sign, at):
            return _fault(text, at + len(sign), f"{wanted} is missing")
    sign = text[at]
    if sign.isalpha() and part in ("start", "end", "step"):
        unit = item[0][-1].strip("0123456789")
        return _fault(text, at, f"{_shown(unit + sign)!r} is not a unit, k and m are")
    other = "a space is not allowed" if sign.isspace() else f"unexpected {_shown(sign)!r}"
    return _fault(text, at, _SIGNS.get(sign, other))


def _fault(text: str, at: int, what: str) -> UsageError:
    """An error about the character at ``at``; one past the end is allowed."""
    first, last = max(0, at - 30), at + 30
    before = ("…" if first else "") + _shown(text[first:at])
    after = _shown(text[at:last]) + ("…" if last < len(text) else "")
    caret = " " * len(before) + "^"  # what comes before a fault is ASCII
    return UsageError(f"lengths: {what}", reason=f"{before}{after}\n{caret}", hints=_HINTS)


def _multiplied(start: int, end: int, factor: float) -> Iterator[int]:
    value = float(start)
    while round(value) < end:
        yield round(value)
        value *= factor
    yield end


def _points(start: int, end: int, count: int) -> Iterator[int]:
    """Geometric points, inner ones at a multiple of 64 unless that would leave the range."""
    yield start
    for index in range(1, count - 1):
        value = start * (end / start) ** (index / (count - 1))
        rounded = round(value / 64) * 64
        yield rounded if start < rounded < end else round(value)
    yield end


def _shown(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)
