"""Documents of a wanted length: windows of corpus documents, with planted notes.

In: the corpus and a random generator. Out: `Excerpt`. Knows no question and no answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from training import notes
from training.corpus import SUMMARY, Corpus
from training.vocabulary import Vocabulary

CATEGORY_WEIGHTS: Mapping[str, float] = {
    "gov": 3.0, "congress": 1.3, "un": 1.2, "sci": 0.9, "textbook": 1.3, "book": 0.7,
    "book_pgwrap": 0.7, "tech": 0.4, "govpost": 1.0, "story": 0.7, "meeting": 0.4, "sciabs": 0.3,
}  # fmt: skip
"""How much more often than its size tells a category is read; GovReport is the nearest aim."""

MAX_NATURAL_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Note:
    """A planted sentence; `start` and `end` bound its content within the excerpt."""

    label: notes.Label
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A document: `tokens` [n], sentence `spans` [S, 2] and their `priors` [S], planted `notes`."""

    tokens: np.ndarray
    spans: np.ndarray
    priors: np.ndarray
    notes: tuple[Note, ...] = ()


class Library:
    """Draws excerpts and notes from the training half or the held-out half of a corpus."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, *, held_out: bool = False) -> None:
        self.corpus, self.vocabulary = corpus, vocabulary
        lengths = corpus.lengths()
        usable = (corpus.held_out == held_out) & (np.diff(corpus.span_offsets) >= 6)
        self._pools: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for number, name in enumerate(corpus.names):
            members = np.flatnonzero(usable & (corpus.categories == number))
            if name in CATEGORY_WEIGHTS and len(members):
                weights = np.minimum(lengths[members], 60_000).astype(np.float64)
                self._pools[name] = members, np.cumsum(weights) / weights.sum()
        sizes = {name: lengths[members].sum() for name, (members, _) in self._pools.items()}
        shares = np.array([CATEGORY_WEIGHTS[name] * sizes[name] ** 0.7 for name in self._pools])
        self._names, self._shares = list(self._pools), np.cumsum(shares) / shares.sum()
        self.pairs = np.flatnonzero((corpus.held_out == held_out) & (corpus.pairs >= 0))
        assert SUMMARY not in self._pools

    def draw(self, rng: np.random.Generator, category: str | None = None) -> tuple[int, str]:
        """A document, and its category: drawn too unless given."""
        if category is None:
            category = self._names[int(np.searchsorted(self._shares, rng.random()))]
        members, cumulated = self._pools[category]
        return int(members[int(np.searchsorted(cumulated, rng.random()))]), category

    def excerpt(self, rng: np.random.Generator, size: int) -> Excerpt:
        """At most `size` tokens of one document, of several of its category where one is short.

        Ends with a sentence. Its first word has no space before it.
        """
        index, category = self.draw(rng)
        parts = [self._window(rng, index, size, "")]
        room = size - len(parts[0].tokens)
        for _ in range(40):
            if room < max(120, size // 20):
                break
            index, _ = self.draw(rng, category)
            part = self._window(rng, index, room, "\n\n" if rng.random() < 0.5 else " ")
            parts.append(part)
            room -= len(part.tokens)
        return _concatenate(parts)

    def _window(self, rng: np.random.Generator, index: int, size: int, separator: str) -> Excerpt:
        """Whole sentences of document `index` in at most `size` tokens, `separator` first."""
        tokens = self.corpus.document(index)
        spans, priors = self.corpus.sentences(index)
        first = 0
        if len(tokens) > size and rng.random() < 0.7:
            latest = np.searchsorted(spans[:, 0], len(tokens) - size, side="right")
            first = int(rng.integers(max(1, int(latest))))
        elif rng.random() < 0.2:
            first = int(rng.integers(len(spans) // 2))
        start = int(spans[first, 0]) if first else 0
        stop = max(1, int(np.searchsorted(spans[:, 1], start + size - 4, side="right")))
        spans, priors = spans[first:stop], priors[first:stop]
        if not len(spans):
            empty = np.zeros((0, 2), np.int32)
            return Excerpt(np.zeros(0, np.uint16), empty, np.zeros(0, np.float32))
        end = int(spans[-1, 1])
        head = self._head(tokens[start:end], separator)
        old = _first_word(self.vocabulary, tokens[start : start + 24])
        shift = len(head) - old
        whole = np.concatenate([np.array(head, np.uint16), tokens[start + old : end]])
        spans = np.maximum(spans - start + shift, 0)
        if separator == "\n\n" and len(spans):
            spans[0, 0] = max(spans[0, 0], 1)
        return Excerpt(whole, spans, priors)

    def _head(self, tokens: np.ndarray, separator: str) -> tuple[int, ...]:
        old = _first_word(self.vocabulary, tokens[:24])
        if separator == " ":
            return self.vocabulary.respell(tokens[:old], " ")
        return self.vocabulary.encode(separator) + self.vocabulary.respell(tokens[:old], "")

    def plant(
        self, rng: np.random.Generator, excerpt: Excerpt, count: int, taken: set[int]
    ) -> Excerpt:
        """The excerpt with `count` notes between its sentences, at depths drawn evenly."""
        ends = np.unique(excerpt.spans[:, 1])
        count = min(count, len(ends))
        if not count:
            return excerpt
        depths = rng.random(count) * len(excerpt.tokens)
        places = np.unique(ends[np.minimum(np.searchsorted(ends, depths), len(ends) - 1)])
        pieces: list[np.ndarray] = []
        planted: list[Note] = []
        label: notes.Label | None = None
        before = shift = 0
        shifts = np.zeros(len(places) + 1, np.int64)
        for order, place in enumerate(places):
            label = notes.sibling(rng, label, taken) if label else notes.label(rng, taken)
            head = self.vocabulary.encode(" " + label.text)
            body = self._content(rng)
            start = int(place) + shift + len(head)
            planted.append(Note(label, start, start + len(body)))
            pieces += [excerpt.tokens[before:place], np.array([*head, *body], np.uint16)]
            before, shift = int(place), shift + len(head) + len(body)
            shifts[order + 1] = shift
        pieces.append(excerpt.tokens[before:])
        moved = (
            excerpt.spans
            + shifts[np.searchsorted(places, excerpt.spans[:, 0], side="right")][:, None]
        )
        return Excerpt(np.concatenate(pieces), moved, excerpt.priors, tuple(planted))

    def _content(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The tokens of a note's content, with the space before it: made up, or from elsewhere."""
        if rng.random() < 0.7:
            return self.vocabulary.encode(" " + notes.content(rng))
        for _ in range(8):
            index, _ = self.draw(rng)
            spans, _ = self.corpus.sentences(index)
            start, end = spans[rng.integers(len(spans))]
            tokens = self.corpus.document(index)[start:end]
            if len(tokens) <= MAX_NATURAL_TOKENS and not self.vocabulary.is_break[tokens].any():
                old = _first_word(self.vocabulary, tokens)
                return (*self.vocabulary.respell(tokens[:old], " "), *map(int, tokens[old:]))
        return self.vocabulary.encode(" " + notes.content(rng))


def _first_word(vocabulary: Vocabulary, tokens: np.ndarray) -> int:
    """Tokens of the first word, white space before it included."""
    borders = np.flatnonzero(vocabulary.borders(tokens))
    first = 1 if vocabulary.is_break[tokens[0]] else 0
    return int(borders[first + 1]) if len(borders) > first + 1 else len(tokens)


def _concatenate(parts: list[Excerpt]) -> Excerpt:
    starts = np.cumsum([0] + [len(part.tokens) for part in parts[:-1]])
    return Excerpt(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.spans + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.priors for part in parts]),
    )
