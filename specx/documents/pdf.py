"""PDF to text and sections, by PDFium (pypdfium2, extra ``docs``).

What a page layout adds is taken back: running headers and footers, words divided at line ends,
ligatures. Lines stay lines, so that the rows of a table stay rows. It does not recognise text in
pictures.
"""

import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from specx.documents.blocks import Extract, Section, label, one_spaced
from specx.errors import DocumentError, UsageError

MAX_PAGES = 20_000
_EDGE_LINES = 2  # of a page that may be running headers or footers
_NEAR_PAGES = 2  # to each side, since left and right pages may differ
_LONGEST_RUNNING = 100
_LIGATURES = str.maketrans(
    dict(zip("ﬀﬁﬂﬃﬄﬅﬆ", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True))
)
#: A word that a line end divides: PDFium writes the first signs for its hyphen.
_DIVIDED = re.compile("(\\w+)(?:[\u0002\ufffe\u00ad]\n?|[-\u2010]\n)(?=(\\w+))")
_DIGITS = re.compile(r"[0-9]+|\b[ivxlc]+\b")
_TOC_LEVELS = 6


def pdf_extract(
    raw: bytes,
    what: str,
    pages: Callable[[int], Sequence[int]],
    on_page: Callable[[int, int], None] = lambda done, total: None,
) -> Extract:
    """The text of a PDF. ``pages``: from the number of pages to those that are read, from 0.

    ``on_page`` is called after each page with how many are done, and of how many. Raises
    ``DocumentError``.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(raw)
        count = len(document)
    except pypdfium2.PdfiumError as error:
        raise _refusal(what, str(error)) from error
    try:
        if count > MAX_PAGES:
            raise DocumentError(f"{what} has {count:,} pages", reason=f"{MAX_PAGES:,} are read")
        numbers = pages(count)
        texts = []
        for done, number in enumerate(numbers, start=1):
            texts.append(_page_text(document, number))
            on_page(done, len(numbers))
        outline = _outline(document)
    finally:
        document.close()
    return _cleaned(texts, numbers, outline, what)


def _refusal(what: str, said: str) -> DocumentError:
    if "assword" in said:
        hint = "take the password off: qpdf --decrypt --password=… FILE new.pdf"
        return DocumentError(f"{what} is protected by a password", hints=[hint])
    hint = "mend it, if a viewer still opens it: qpdf FILE new.pdf"
    return DocumentError(f"{what} is a damaged PDF", reason=one_spaced(said)[:200], hints=[hint])


def _page_text(document: Any, number: int) -> str:
    """The text of a page; "" for one that is damaged."""
    import pypdfium2

    try:
        page = document[number]
        try:
            text: str = page.get_textpage().get_text_bounded(errors="replace")
        finally:
            page.close()
    except pypdfium2.PdfiumError:
        return ""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _outline(document: Any) -> list[tuple[str, int]]:
    """Titles of the bookmarks and the pages that they lead to, from 0."""
    import pypdfium2

    found: list[tuple[str, int]] = []
    try:
        for mark in document.get_toc(max_depth=_TOC_LEVELS):
            place = mark.get_dest()
            at = place.get_index() if place is not None else None
            if at is not None and (title := one_spaced(mark.get_title())):
                found.append((title, at))
    except (pypdfium2.PdfiumError, UnicodeError, ValueError):
        return found  # what was read of it
    return found


def _cleaned(
    texts: Sequence[str], numbers: Sequence[int], outline: Sequence[tuple[str, int]], what: str
) -> Extract:
    empty = sum(not text.strip() for text in texts)
    if empty == len(texts):
        hint = "make a text layer first: ocrmypdf FILE new.pdf"
        raise DocumentError(f"{what} has no text, only pictures of pages", hints=[hint])
    found = Extract("")
    if empty:
        found.removed.append(f"{empty:,} of {len(texts):,} pages have no text (scanned?)")
    pages, dropped = _without_running_lines([text.translate(_LIGATURES) for text in texts])
    found.removed += [
        f"{many:,} running lines like {line[:_LONGEST_RUNNING]!r}" for line, many in dropped
    ]
    pieces: list[str] = []
    at = 0
    for number, page in zip(numbers, pages, strict=True):
        if not page:
            continue
        found.sections.append(Section(at, "page", f"p. {number + 1}"))
        titles = [title for title, place in outline if place == number]
        found.sections += [
            Section(at + start, "heading", name) for start, name in _places(page, titles)
        ]
        pieces.append(page)
        at += len(page) + 2
    text = "\n\n".join(pieces)
    found.text, found.sections, joined = _undivided(text, found.sections)
    if joined:
        found.removed.append(f"hyphens of {joined:,} divided words")
    return found


def _places(page: str, titles: Sequence[str]) -> list[tuple[int, str]]:
    """Where on a page its titles stand, else its beginning; in the order of the page."""
    lines, starts, at = [], [], 0
    for line in page.split("\n"):
        lines.append(one_spaced(line).casefold())
        starts.append(at)
        at += len(line) + 1
    found = []
    for title in titles:
        wanted = title.casefold()
        exact = [start for start, line in zip(starts, lines, strict=True) if line == wanted]
        ends = [start for start, line in zip(starts, lines, strict=True) if line.endswith(wanted)]
        found.append(((exact or ends or [0])[0], label(title)))
    return sorted(found)


def _without_running_lines(texts: Sequence[str]) -> tuple[list[str], list[tuple[str, int]]]:
    """Pages without the lines at their edges that the pages around them have as well, or that
    have the printed number of the page."""
    pages = [[line.rstrip() for line in text.strip().split("\n")] for text in texts]
    keys = [_edges(lines) for lines in pages]
    offset = _printed_offset(pages)
    dropped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for number, lines in enumerate(pages):
        near = keys[max(0, number - _NEAR_PAGES) : number + _NEAR_PAGES + 1]
        for at in (0, -1):
            for _ in range(_EDGE_LINES):
                key = _key(lines[at]) if len(lines) > 1 else ""
                is_running = sum(key in each for each in near) > _NEAR_PAGES  # itself, and two more
                if not key or not (is_running or _last_number(lines[at]) == number + offset):
                    break
                dropped[key] += 1
                examples.setdefault(key, lines.pop(at).strip())
    return ["\n".join(lines).strip("\n") for lines in pages], [
        (examples[key], many) for key, many in dropped.most_common()
    ]


def _printed_offset(pages: Sequence[Sequence[str]]) -> float:
    """What has to be added to a page's place to have its printed number; NaN for no numbers."""
    numbers = [{_last_number(lines[at]) for at in (0, -1)} - {None} for lines in pages]
    found = Counter(
        printed - place for place, each in enumerate(numbers) for printed in each if printed
    )
    offset, count = max(found.items(), key=lambda each: each[1], default=(0, 0))
    return offset if count >= max(3, len(pages) // 2) else math.nan


def _last_number(line: str) -> int | None:
    """The number that ends a short line, or is it."""
    word = line.strip(" -–—|.").rpartition(" ")[2]
    is_number = word.isdecimal() and len(word) < 6 and len(line) < _LONGEST_RUNNING
    return int(word) if is_number else None


def _edges(lines: Sequence[str]) -> set[str]:
    return {_key(line) for line in (*lines[:_EDGE_LINES], *lines[-_EDGE_LINES:])} - {""}


def _key(line: str) -> str:
    """A line as running ones repeat it: numbers masked; "" for one that cannot be such."""
    masked = one_spaced(_DIGITS.sub("#", line.casefold()))
    is_number = masked.strip("-–—|. ") == "#"
    return masked if is_number or any(sign.isalpha() for sign in masked) else ""


def _undivided(text: str, sections: Sequence[Section]) -> tuple[str, list[Section], int]:
    """Words joined that a line end divides, with the sections moved accordingly.

    A hyphen stays before a capital, and where the text has the same word with it elsewhere.
    """
    words = set(re.findall(r"\w+-\w+", text))
    pieces, ends, shifts, at = [], [], [0], 0
    for found in _DIVIDED.finditer(text):
        first, second = found.groups()
        keeps = not second.islower() or f"{first}-{second}" in words
        pieces += [text[at : found.end(1)], "-" if keeps else ""]
        at = found.start(2)
        ends.append(at)
        shifts.append(shifts[-1] + at - found.end(1) - keeps)
    moved = [
        Section(each.start - shifts[bisect(ends, each.start)], each.kind, each.label)
        for each in sections
    ]
    return "".join([*pieces, text[at:]]), moved, len(ends)


def chosen_pages(given: str, count: int) -> list[int]:
    """``3-10,15`` as numbers from 0, in the order of the document. Raises ``UsageError``."""
    chosen: set[int] = set()
    for part in given.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = first or "1", (last or str(count)) if dash else first
        is_range = bool(first or last) and low.isdecimal() and high.isdecimal()
        if not is_range or not 1 <= int(low) <= int(high):
            raise UsageError(
                f"--pages takes numbers and ranges, not {given!r}", hints=["--pages 3-10,15"]
            )
        if int(low) > count:
            raise UsageError(f"there is no page {low}", reason=f"the document has {count:,} pages")
        chosen.update(range(int(low) - 1, min(int(high), count)))
    return sorted(chosen)
