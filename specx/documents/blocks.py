"""A document as its format gives it, a block at a time, put together into one text with sections.

Markdown marks headings, so that a model sees what a reader sees. Knows no format.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

SectionKind = Literal["heading", "page"]

LABEL_CHARACTERS = 60
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Section:
    """A place that a reader knows: where it begins in the text, in characters."""

    start: int
    kind: SectionKind
    label: str


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a heading (``level`` from 1) or a row of a table (``is_row``)."""

    text: str
    level: int = 0
    is_row: bool = False


@dataclass(slots=True)
class Extract:
    """What was found in a file: the text, its sections in order, and what was left out of it."""

    text: str
    sections: list[Section] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def assemble(blocks: Iterable[Block]) -> Extract:
    """The blocks as one text: a blank line between them, none between the rows of a table."""
    pieces: list[str] = []
    found = Extract("")
    at, was_row = 0, False
    for block in blocks:
        if pieces:
            pieces.append("\n" if was_row and block.is_row else "\n\n")
            at += len(pieces[-1])
        was_row = block.is_row
        if block.level:
            found.sections.append(Section(at, "heading", label(block.text)))
        pieces.append(f"{'#' * min(block.level, 6)} {block.text}" if block.level else block.text)
        at += len(pieces[-1])
    found.text = "".join(pieces)
    return found


def label(text: str) -> str:
    """``text`` as a heading is quoted: on one line, and short."""
    text = one_spaced(text)
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"


def one_spaced(text: str) -> str:
    """White space as one blank, none at the ends."""
    return _SPACES.sub(" ", text).strip()
