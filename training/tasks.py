"""Training sequences of an exact length: conversations about long documents, and plain text.

In: a corpus, a vocabulary, a mixture, a seed. Out: `Sequence`s: tokens, what each token is for,
and where each copied answer token comes from. Pure numpy; knows no model.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.corpus import Corpus
from training.excerpt import Excerpt, Library
from training.tokenizer import ASSISTANT, BOS, EOS, USER
from training.turns import ABSTRACT, Kind, Turn, TurnWriter
from training.vocabulary import BUCKETS, Vocabulary

SHORTEST_DOCUMENT = 100
"""Tokens. With less room than that left, a sequence is filled with plain text."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of sequences: plain text, real abstracts; the rest are conversations."""

    text: float
    abstract: float
    summary_first: float = 0.6


@dataclass(frozen=True, slots=True)
class Sequence:
    """`tokens` [T] uint16; `kinds` [T] uint8, the `Kind` of each token as something to predict;
    `sources` [T] int32, the position in this sequence that each answer token is copied from, or -1
    (see `turns.Copy`)."""

    tokens: np.ndarray
    kinds: np.ndarray
    sources: np.ndarray


@dataclass(slots=True)
class _Tape:
    """A sequence under construction."""

    tokens: list[np.ndarray] = field(default_factory=list)
    kinds: list[np.ndarray] = field(default_factory=list)
    sources: list[np.ndarray] = field(default_factory=list)
    size: int = 0

    def text(self, tokens: np.ndarray | tuple[int, ...]) -> None:
        """Append tokens that are read, not answered."""
        count = len(tokens)
        self._append(tokens, np.zeros(count, np.uint8), np.full(count, -1, np.int32))

    def turn(self, turn: Turn, *, opens: bool, document: int) -> None:
        """Append a question and its answer; `document` is where the excerpt starts here."""
        self.text((*(() if opens else (USER,)), *turn.prompt, ASSISTANT))
        sources = np.array([*turn.answer.sources, -1], np.int32)
        sources[sources >= 0] += document
        kinds = np.full(len(sources), turn.kind, np.uint8)
        self._append((*turn.answer.tokens, EOS), kinds, sources)

    def answer(self, tokens: np.ndarray, kind: Kind) -> None:
        """Append an answer that is not copied."""
        count = len(tokens)
        self._append(tokens, np.full(count, kind, np.uint8), np.full(count, -1, np.int32))

    def cut(self, length: int) -> Sequence:
        """The first `length` tokens."""
        return Sequence(
            np.concatenate(self.tokens)[:length],
            np.concatenate(self.kinds)[:length],
            np.concatenate(self.sources)[:length],
        )

    def _append(
        self, tokens: np.ndarray | tuple[int, ...], kinds: np.ndarray, sources: np.ndarray
    ) -> None:
        self.tokens.append(np.asarray(tokens, np.uint16))
        self.kinds.append(kinds)
        self.sources.append(sources)
        self.size += len(tokens)


class SequenceWriter:
    """Writes training sequences. `counts` tells how many of each kind were written."""

    def __init__(self, corpus: Corpus, tokenizer: Path, *, held_out: bool = False) -> None:
        self.vocabulary = Vocabulary(tokenizer)
        self.library = Library(corpus, self.vocabulary, held_out=held_out)
        self.turns = TurnWriter(self.vocabulary, rarity(corpus, self.vocabulary))
        self.counts: Counter[str] = Counter()
        self._break = self.vocabulary.encode("\n\n")

    def write(self, rng: np.random.Generator, length: int, mixture: Mixture) -> Sequence:
        """One sequence of `length` tokens of a kind drawn from `mixture`."""
        tape = _Tape()
        draw = rng.random()
        if draw < mixture.text:
            self._text(tape, rng, length)
        elif draw < mixture.text + mixture.abstract:
            self._abstract(tape, rng, length)
        while tape.size < length:
            room = length - tape.size
            if room < SHORTEST_DOCUMENT + 60:
                self._text(tape, rng, length)
            else:
                size = document_size(rng, room, opens=tape.size == 0)
                self.conversation(tape, rng, size, room, mixture.summary_first)
        return tape.cut(length)

    def example(self, rng: np.random.Generator, length: int) -> Sequence:
        """One conversation with a summary and notes over a document that nearly fills `length`."""
        tape = _Tape()
        while not tape.size:
            self.conversation(tape, rng, length - max(120, min(700, length // 4)), length, 1.0)
        self._text(tape, rng, length)
        return tape.cut(length)

    def conversation(
        self, tape: _Tape, rng: np.random.Generator, size: int, room: int, summary_first: float
    ) -> None:
        """Append one conversation over a document of about `size` tokens, within about `room`."""
        excerpt = self.library.excerpt(rng, size)
        if rng.random() < 0.7:
            most = max(1, min(24, size // 100))
            count = int(np.ceil(most ** rng.random()))
            excerpt = self.library.plant(rng, excerpt, count, set())
        turns = self._turns(rng, excerpt, summary_first)
        if not turns:
            self.counts["empty"] += 1
            return
        self._append(tape, excerpt, turns, tape.size + room)

    def _append(self, tape: _Tape, excerpt: Excerpt, turns: list[Turn], limit: int) -> None:
        tape.text((BOS, USER))
        document = tape.size
        tape.text(excerpt.tokens)
        tape.text(self._break)
        for index, turn in enumerate(turns):
            if tape.size >= limit:
                break
            tape.turn(turn, opens=index == 0, document=document)
            self.counts[turn.kind.name.lower()] += 1

    def _turns(
        self, rng: np.random.Generator, excerpt: Excerpt, summary_first: float
    ) -> list[Turn]:
        """All notes, and some quotes; a summary first, or last, or not at all."""
        turns = self.turns.needle(rng, excerpt)
        tasks = (self.turns.quote, self.turns.quote, self.turns.beginning, self.turns.following)
        wanted = 1 + min(18, len(excerpt.tokens) // 400)
        for _ in range(int(rng.integers(0 if turns else 1, wanted + 1))):
            turn = tasks[rng.integers(len(tasks))](rng, excerpt)
            if turn is not None:
                turns.insert(int(rng.integers(len(turns) + 1)), turn)
        draw = rng.random()
        if draw < summary_first + 0.15:
            summary = self.turns.summary(rng, excerpt)
            if summary is not None:
                turns.insert(0 if draw < summary_first else len(turns), summary)
        return turns

    def _text(self, tape: _Tape, rng: np.random.Generator, length: int) -> None:
        """Fill up to `length` with documents from a random sentence on."""
        while tape.size < length:
            room = length - tape.size
            excerpt = self.library.excerpt(rng, max(SHORTEST_DOCUMENT, room))
            tape.text((BOS,))
            tape.text(excerpt.tokens)
            tape.text((EOS,))
            self.counts["text"] += 1

    def _abstract(self, tape: _Tape, rng: np.random.Generator, length: int) -> None:
        """Append a document with its real summary, if one drawn in a few tries fits."""
        corpus = self.library.corpus
        for _ in range(12):
            index = int(self.library.pairs[rng.integers(len(self.library.pairs))])
            document, summary = corpus.document(index), corpus.document(int(corpus.pairs[index]))
            size = len(document) + len(summary) + 20
            if size > length or size < length // 20:
                continue
            tape.text((BOS, USER))
            tape.text(document)
            tape.text((*self._break, *self.vocabulary.encode(ABSTRACT), ASSISTANT))
            tape.answer(np.append(summary, np.uint16(EOS)), Kind.ABSTRACT)
            self.counts["abstract"] += 1
            return


def document_size(rng: np.random.Generator, room: int, *, opens: bool) -> int:
    """Tokens of a document: mostly near `room` for the first one of a sequence, else any.

    For room = 17408: 45 % within 14K to 16.9K, 30 % within 8K to 14K, the others shorter.
    """
    most = max(SHORTEST_DOCUMENT, room - max(60, min(500, room // 5)))
    draw = rng.random()
    if opens and draw < 0.75:
        low, high = (0.83, 1.0) if draw < 0.45 else (0.47, 0.83)
        return max(SHORTEST_DOCUMENT, int(most * rng.uniform(low, high)))
    return int(np.exp(rng.uniform(np.log(SHORTEST_DOCUMENT), np.log(most + 1))))


def rarity(corpus: Corpus, vocabulary: Vocabulary, *, documents: int = 1500) -> np.ndarray:
    """[BUCKETS] inverse document frequency over the openings of some documents; 0 for words that
    stand in more than a third of them."""
    count = np.zeros(BUCKETS, np.int64)
    step = max(1, len(corpus) // documents)
    for index in range(0, len(corpus), step):
        _, buckets = vocabulary.words(corpus.document(index)[:3000])
        count[np.unique(buckets)] += 1
    total = len(range(0, len(corpus), step))
    out = np.log(total / (1 + count))
    out[out < np.log(3)] = 0.0
    return out
