"""A map of the prompt: its chunks as text, its headings and pages, and what the draft retrieved."""

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Lt

from specx.core.config import RetrievalConfig, parts_for
from specx.documents.blocks import LABEL_CHARACTERS, Section, SectionKind, label

if TYPE_CHECKING:
    from specx.checkpoints.tokenizer import Tokenizer
    from specx.preset.preset import Preset

Index = Annotated[int, Ge(0), Lt(1 << 31)]

MAX_TICKS = 1000
_CONTEXT_TOKENS = 4  # decoded before a chunk: decoders may treat a text's first token specially
_CHARACTER_TOKENS = 3  # a character of UTF-8 has at most four bytes, so three more tokens
_CODE = re.compile(r"^ {0,3}(?:```|~~~).*?(?:^ {0,3}(?:```|~~~)|\Z)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(?P<title>\S.*?)[ \t#]*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"^(?P<title>.*\S.*(?:\n.*\S.*)*)", re.MULTILINE)
_TITLE_END = tuple(".,;:!?…-–—”\"'")


@dataclass(frozen=True, slots=True)
class Tick:
    """A place that a reader knows: a heading, or the first text of a page, in its chunk."""

    chunk: Index
    kind: SectionKind
    label: str


@dataclass(frozen=True, slots=True)
class DocumentMap:
    """The prompt as retrieval sees it. The concatenated ``chunks`` are the prompt's text."""

    chunks: tuple[str, ...]
    ticks: tuple[Tick, ...]
    retrieval: RetrievalConfig

    def place_of(self, chunk: int) -> str:
        """Labels of the last page and the last heading at or before ``chunk``, of what there is."""
        last = {tick.kind: tick.label for tick in self.ticks if tick.chunk <= chunk}
        return " · ".join(last[kind] for kind in ("page", "heading") if kind in last)


class Retrievals:
    """Counts, over a run, how often the target's attention chose each chunk for the draft.

    The sink and the recent chunks are held in any case, so they count as held and not as chosen.
    """

    def __init__(self, document_map: DocumentMap) -> None:
        self._config = document_map.retrieval
        self.counts = [0] * len(document_map.chunks)
        self.held: frozenset[int] = frozenset()
        self.refreshes = 0

    def add(self, retrieved: Sequence[int] | None) -> None:
        """A refresh with these chunk numbers, increasing; None: there was none in this step."""
        if retrieved is None:
            return
        self.refreshes += 1
        known = len(self.counts)
        self.held = frozenset(chunk for chunk in retrieved if chunk < known)
        for chunk in retrieved[: -self._config.recent_chunks]:
            if self._config.sink_chunks <= chunk < known:
                self.counts[chunk] += 1

    @property
    def most(self) -> int | None:
        """The chunk chosen most often; of equals one that is held now, then the first."""
        ranks = [(count, chunk in self.held) for chunk, count in enumerate(self.counts)]
        return ranks.index(max(ranks)) if any(self.counts) else None

    def cells(self, width: int) -> list[tuple[float, bool]]:
        """All chunks as ``width`` cells; cell ``i`` is for the chunks from ``i·n/width`` on.

        Of each: how often its most chosen chunk was chosen, over the same of all chunks; whether
        one of them is held now.
        """
        count, highest = len(self.counts), max([1, *self.counts])
        cells = []
        for at in range(width if count else 0):
            first = at * count // width
            chunks = range(first, max(first + 1, (at + 1) * count // width))
            share = max(self.counts[chunk] for chunk in chunks) / highest
            cells.append((share, not self.held.isdisjoint(chunks)))
        return cells


def map_prompt(
    tokens: Sequence[int],
    tokenizer: "Tokenizer",
    retrieval: RetrievalConfig,
    document: str = "",
    sections: Sequence[Section] = (),
) -> DocumentMap:
    """The map of a prompt. Ticks are the ``sections`` of ``document``, where its format names any.
    They are searched in ``document`` where the prompt has it verbatim, and else in the whole
    prompt."""
    chunks = chunk_texts(tokens, tokenizer, retrieval.chunk_tokens)
    text = "".join(chunks)
    start = max(0, text.find(document))
    end = start + len(document) if document and document in text else len(text)
    ends = list(itertools.accumulate(map(len, chunks)))
    is_verbatim = bool(document) and document in text
    named = [(each.start, each.kind, each.label) for each in sections] if is_verbatim else []
    ticks = [
        Tick(bisect.bisect(ends, start + offset), kind, label)
        for offset, kind, label in named or _landmarks(text[start:end])
    ]
    return DocumentMap(tuple(chunks), tuple(ticks[:: -(-len(ticks) // MAX_TICKS) or 1]), retrieval)


def chunk_texts(tokens: Sequence[int], tokenizer: "Tokenizer", chunk_tokens: int) -> list[str]:
    """Text of every ``chunk_tokens`` tokens, special tokens left out.

    A character whose bytes lie in two chunks belongs to the first, so no text is lost.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(tokens[start:end], skip_special=True)

    texts: list[str] = []
    start = 0
    for regular_end in range(chunk_tokens, len(tokens) + chunk_tokens, chunk_tokens):
        end = max(start, min(regular_end, len(tokens)))
        latest = min(end + _CHARACTER_TOKENS, len(tokens))
        context = max(0, start - _CONTEXT_TOKENS)
        while end < latest and decode(start, end).endswith("\ufffd"):
            end += 1
        texts.append(decode(context, end)[len(decode(context, start)) :])
        start = end
    return texts


def token_text(tokenizer: "Tokenizer", token: int) -> str:
    """Text of one token as it stands inside a text, special tokens by name."""
    alone = tokenizer.decode([token])
    # A decoder may drop the space before a text's first token; before the second it keeps it.
    return tokenizer.decode([token, token])[len(alone) :] or alone


def why_nothing_is_retrieved(preset: "Preset", mode: str, prompt_tokens: int) -> str:
    """One sentence for a run whose draft chooses no chunks; "" for one that does."""
    parts = parts_for(mode, {"drafter": preset.draft.kind, **preset.parts})
    budget = preset.retrieval.budget_tokens
    if mode == "plain":
        why = "mode plain has no draft"
    elif not parts.has_draft_model:
        why = f"preset {preset.name} drafts without a model"
    elif parts.draft_cache == "full":
        why = f"in mode {mode} the draft keeps the whole text"
    elif parts.draft_cache == "window":
        why = "the draft keeps only the latest tokens"
    elif prompt_tokens <= budget:
        why = f"the text fits the draft's cache of {budget:,} tokens"
    else:
        return ""
    return f"{why}, so nothing is retrieved"


def _landmarks(text: str) -> list[tuple[int, SectionKind, str]]:
    """(offset, kind, label) of headings and pages, in the order of the text.

    Markdown headings, or where there is none, short lines between blank lines that read like
    titles. A form feed begins a page.
    """
    lines = text.replace("\f", "\n")
    titles = list(_HEADING.finditer(_CODE.sub(lambda code: "\n" * len(code[0]), lines)))
    if not titles:
        titles = [each for each in _PARAGRAPH.finditer(lines) if _is_title(each[0].strip())]
    pages = enumerate(re.finditer("\f", text.rstrip()), start=2)
    found: list[tuple[int, SectionKind, str]] = [
        *((title.start(), "heading", label(title["title"])) for title in titles),
        *((feed.end(), "page", f"p. {number}") for number, feed in pages),
    ]
    return sorted(found)


def _is_title(text: str) -> bool:
    return (
        "\n" not in text
        and 2 <= len(text) <= LABEL_CHARACTERS
        and (text[0].isupper() or text[0].isdigit())
        and any(char.isalpha() for char in text)
        and not text.endswith(_TITLE_END)
    )
