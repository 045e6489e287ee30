"""Lists of prompt lengths as people write them: ``512,1k..16k``.

In: a text. Out: token counts, or an error with a caret under the character that is wrong.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

from specx.errors import UsageError

MAX_LENGTH_TOKENS = 16 << 20
MAX_LENGTHS = 1000
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_LENGTH = re.compile(r"([0-9]+)(\.[0-9]+)?([kKmM]?)")
_FACTOR = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_COUNT = re.compile(r"[0-9]+")
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # for products, of any digits
_ROUND_TO = 64
_SHOWN_CHARACTERS = 30  # to either side of the fault
_SIGNS = {":": "a spacing comes after a range", "*": "a factor is written :x4"}
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
    scanner = _Scanner(text)
    lengths: set[int] = set()
    while True:
        begin = scanner.at
        more = list(itertools.islice(_item(scanner), MAX_LENGTHS + 1))
        lengths.update(more)
        if max(len(more), len(lengths)) > MAX_LENGTHS:
            raise scanner.fault(begin, f"more than {MAX_LENGTHS:,} lengths")
        if scanner.at == len(text):
            return tuple(sorted(lengths))
        if not scanner.take(","):
            sign = text[scanner.at]
            other = "a space is not allowed" if sign.isspace() else f"unexpected {_shown(sign)!r}"
            raise scanner.fault(scanner.at, _SIGNS.get(sign, other))


@dataclass(slots=True)
class _Scanner:
    text: str
    at: int = 0

    def take(self, sign: str) -> bool:
        """Whether ``sign`` comes next; if so it is passed."""
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) * found
        return found

    def match(self, pattern: re.Pattern[str], wanted: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.fault(self.at, f"{wanted} is missing")
        self.at = found.end()
        return found

    def fault(self, at: int, what: str) -> UsageError:
        """An error about the character at ``at``; one past the end is allowed."""
        first, last = max(0, at - _SHOWN_CHARACTERS), at + _SHOWN_CHARACTERS
        before = ("…" if first else "") + _shown(self.text[first:at])
        after = _shown(self.text[at:last]) + ("…" if last < len(self.text) else "")
        caret = " " * len(before) + "^"  # what comes before a fault is ASCII
        return UsageError(f"lengths: {what}", reason=f"{before}{after}\n{caret}", hints=_HINTS)


def _item(scanner: _Scanner) -> Iterator[int]:
    """The item at the scanner, which is passed; its lengths come as they are asked for."""
    start = _length(scanner)
    if not scanner.take(".."):
        return iter((start,))
    begin = scanner.at
    end = _length(scanner)
    if end < start:
        raise scanner.fault(begin, "a range must not end below its start")
    if not scanner.take(":"):
        return _multiplied(start, end, 2.0)
    if scanner.take("+"):
        return itertools.chain(range(start, end, _length(scanner)), (end,))
    begin = scanner.at
    if scanner.take("x"):
        factor = float(scanner.match(_FACTOR, "a factor")[0])
        if factor <= 1:
            raise scanner.fault(begin + 1, "a factor is above 1")
        # From there on it only skips to the end.
        return _multiplied(start, end, min(factor, 2.0 * MAX_LENGTH_TOKENS))
    count = Decimal(scanner.match(_COUNT, "a number of points, x or +")[0])
    if not 2 <= count <= MAX_LENGTHS:
        raise scanner.fault(begin, f"a range has 2 to {MAX_LENGTHS:,} points")
    return _points(start, end, int(count))


def _length(scanner: _Scanner) -> int:
    begin = scanner.at
    found = scanner.match(_LENGTH, "a length")
    digits, fraction, unit = found[1], found[2] or "", found[3]
    rest = scanner.text[scanner.at : scanner.at + 1]
    if rest.isalpha():
        raise scanner.fault(scanner.at, f"{_shown(unit + rest)!r} is not a unit, k and m are")
    if fraction and not unit:
        raise scanner.fault(found.end(1), "a fraction needs k or m after it")
    tokens = _EXACT.multiply(Decimal(digits + fraction), _UNITS[unit.lower()])
    if tokens > MAX_LENGTH_TOKENS:
        raise scanner.fault(begin, f"a length is at most {MAX_LENGTH_TOKENS >> 20}m")
    if tokens % 1:
        raise scanner.fault(found.end(1), "that is not a whole number of tokens")
    if tokens < 1:
        raise scanner.fault(begin, "a length is at least 1")
    return int(tokens)


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
        rounded = round(value / _ROUND_TO) * _ROUND_TO
        yield rounded if start < rounded < end else round(value)
    yield end


def _shown(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)
