"""Questions about an excerpt, and their answers with the place each answer token comes from.

In: an `Excerpt`. Out: `Turn`s: instruction text, answer tokens, sources. One function per task;
a function returns None where the excerpt does not suit the task. Knows no model.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from training.excerpt import Excerpt
from training.text import UNFIT
from training.vocabulary import BUCKETS, Vocabulary

SUMMARIZE = "Summarize the text above."
ABSTRACT = "Write an abstract of the text above."
_SUMMARIZE_OTHERWISE = (
    "Give a summary of the text above.",
    "Summarize this document.",
    "What are the main points of the text above?",
    "Write a short summary of the text.",
)
_ABOUT = ("What does the text say about", "Find the sentence about", "Quote the text on")
_LEAD_IN = re.compile(
    r" ?(?:However|In addition|Moreover|Furthermore|Therefore|Thus|For example|Additionally|"
    r"As a result|Finally|Consequently|Nevertheless|Similarly|Specifically|In fact|Indeed|"
    r"Accordingly|In particular|On the other hand|In contrast|Also|Overall), "
)


class Kind(IntEnum):
    """What a token is for: text that is only read, or which task's answer."""

    TEXT = 0
    NEEDLE = 1
    QUOTE = 2
    CONTINUE = 3
    SUMMARY = 4
    ABSTRACT = 5


@dataclass(frozen=True, slots=True)
class Copy:
    """Answer tokens and the excerpt position of each one's source, -1 where it has none.

    A source holds the same token, except that the first token of a respelled word points at the
    token with which that word begins in the excerpt.
    """

    tokens: list[int]
    sources: list[int]


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer. `prompt` are tokens, without role markers."""

    kind: Kind
    prompt: tuple[int, ...]
    answer: Copy


class TurnWriter:
    """Writes turns about one excerpt after another. `rarity` [BUCKETS] weighs words."""

    def __init__(self, vocabulary: Vocabulary, rarity: np.ndarray) -> None:
        self.vocabulary, self.rarity = vocabulary, rarity

    def needle(self, rng: np.random.Generator, excerpt: Excerpt) -> list[Turn]:
        """A question for every planted note, in random order."""
        turns = []
        for index in rng.permutation(len(excerpt.notes)):
            note = excerpt.notes[index]
            prompt = self.vocabulary.encode(note.label.question(rng))
            answer = self.copy(excerpt.tokens, note.start, note.end, "")
            turns.append(Turn(Kind.NEEDLE, prompt, answer))
        return turns

    def quote(self, rng: np.random.Generator, excerpt: Excerpt) -> Turn | None:
        """Ask for the sentence that holds a rare phrase of 2 to 4 words."""
        if not len(excerpt.spans):
            return None
        start, end = (int(x) for x in excerpt.spans[rng.integers(len(excerpt.spans))])
        tokens = excerpt.tokens[start:end]
        borders = np.append(np.flatnonzero(self.vocabulary.borders(tokens)), len(tokens))
        words, buckets = self.vocabulary.words(tokens)
        weight = np.zeros(len(tokens))
        weight[words] = self.rarity[buckets]
        count = int(rng.integers(2, 5))
        if len(borders) < count + 3:
            return None
        sums = np.convolve(weight[borders[:-1]], np.ones(count), "valid")
        sums[0] = -1.0  # the first word is respelled in the answer
        first = int(np.argmax(sums))
        phrase = tokens[borders[first] : borders[first + count]]
        spaced = self.vocabulary.texts[phrase[0]].startswith(" ")
        if not spaced or self.vocabulary.is_break[phrase].any():
            return None
        if occurrences(excerpt.tokens, phrase) != 1:
            return None
        ask = self.vocabulary.encode(_ABOUT[min(int(rng.integers(5)) // 2, len(_ABOUT) - 1)])
        prompt = (*ask, *map(int, phrase), *self.vocabulary.encode("?"))
        return Turn(Kind.QUOTE, prompt, self.copy(excerpt.tokens, start, end, ""))

    def beginning(self, rng: np.random.Generator, excerpt: Excerpt) -> Turn | None:
        """Ask for the sentence that begins with given words."""
        if not len(excerpt.spans):
            return None
        start, end = (int(x) for x in excerpt.spans[rng.integers(len(excerpt.spans))])
        borders = np.flatnonzero(self.vocabulary.borders(excerpt.tokens[start:end]))
        count = int(rng.integers(4, 7))
        if len(borders) < count + 4:
            return None
        stop = start + int(borders[count])
        tail = excerpt.tokens[start + int(borders[1]) : stop]
        if occurrences(excerpt.tokens, tail) != 1:
            return None
        words = self.copy(excerpt.tokens, start, stop, " ").tokens
        prompt = (*self.vocabulary.encode("Quote the sentence that begins with:"), *words)
        return Turn(Kind.CONTINUE, prompt, self.copy(excerpt.tokens, start, end, ""))

    def following(self, rng: np.random.Generator, excerpt: Excerpt) -> Turn | None:
        """Ask for the sentence after a given one."""
        if len(excerpt.spans) < 2:
            return None
        index = int(rng.integers(len(excerpt.spans) - 1))
        (start, end), (after, stop) = excerpt.spans[index : index + 2].astype(int)
        given = self.copy(excerpt.tokens, start, end, " ").tokens
        tail = excerpt.tokens[start + (end - start) // 2 : end]
        if not end <= after <= end + 1 or len(given) > 60 or occurrences(excerpt.tokens, tail) != 1:
            return None
        prompt = (*self.vocabulary.encode("What comes after the sentence:"), *given)
        return Turn(Kind.CONTINUE, prompt, self.copy(excerpt.tokens, after, stop, ""))

    def summary(self, rng: np.random.Generator, excerpt: Excerpt) -> Turn | None:
        """An extractive summary: the best sentence of each of m equal segments, in order."""
        chosen = self.choose(excerpt)
        if not chosen:
            return None
        answer = Copy([], [])
        for start, end in chosen:
            sentence = self.condense(excerpt.tokens, start, end, " " if answer.tokens else "")
            answer.tokens.extend(sentence.tokens)
            answer.sources.extend(sentence.sources)
        text = SUMMARIZE
        if rng.random() > 0.8:
            text = _SUMMARIZE_OTHERWISE[rng.integers(len(_SUMMARIZE_OTHERWISE))]
        return Turn(Kind.SUMMARY, self.vocabulary.encode(text), answer)

    def choose(self, excerpt: Excerpt) -> list[tuple[int, int]]:
        """Spans of the summary's sentences: as many as `segments` says, or none at all."""
        spans, size = excerpt.spans, len(excerpt.tokens)
        if not len(spans):
            return []
        scores = self._scores(excerpt)
        count = segments(size)
        chosen: list[tuple[int, int]] = []
        seen: set[bytes] = set()
        for segment in range(count):
            edges = np.array([segment, segment + 1]) * (size / count)
            low, high = np.searchsorted(spans[:, 0], edges)
            order = low + np.argsort(-scores[low:high], kind="stable")
            if segment == 0:  # the opening: the first good sentence rather than the best one
                good = low + np.flatnonzero(scores[low:high] > 0.3)
                order = np.concatenate([good[:1], order])
            for index in order:
                start, end = int(spans[index, 0]), int(spans[index, 1])
                text = excerpt.tokens[start + 1 : end].tobytes()
                if scores[index] > UNFIT / 2 and text not in seen:
                    seen.add(text)
                    chosen.append((start, end))
                    break
        return chosen if len(chosen) == count else []

    def _scores(self, excerpt: Excerpt) -> np.ndarray:
        """[S] how central each sentence's words are to the excerpt, in standard deviations, plus
        the sentence's prior."""
        starts, buckets = self.vocabulary.words(excerpt.tokens)
        frequency = np.bincount(buckets, minlength=BUCKETS)[buckets]
        weights = np.log1p(frequency - 1) * self.rarity[buckets]
        total = np.concatenate([[0.0], np.cumsum(weights)])
        low = np.searchsorted(starts, excerpt.spans[:, 0])
        high = np.searchsorted(starts, excerpt.spans[:, 1])
        mean = (total[high] - total[low]) / np.maximum(high - low, 5)
        scores: np.ndarray = (mean - mean.mean()) / (mean.std() + 1e-6) + excerpt.priors
        return scores

    def copy(self, tokens: np.ndarray, start: int, end: int, lead: str) -> Copy:
        """`tokens[start:end]` with `lead` before the first word and line breaks as spaces."""
        out = Copy([], [])
        breaks = np.flatnonzero(self.vocabulary.is_break[tokens[start:end]]) + start
        for low, high in zip([start, *(breaks + 1)], [*breaks, end], strict=True):
            if low < high:
                self._copy_line(out, tokens, int(low), int(high), " " if out.tokens else lead)
        return out

    def _copy_line(self, out: Copy, tokens: np.ndarray, low: int, high: int, lead: str) -> None:
        borders = np.flatnonzero(self.vocabulary.borders(tokens[low : min(high, low + 24)]))
        stop = low + int(borders[1]) if len(borders) > 1 else high
        word = self.vocabulary.respell(tokens[low:stop], lead)
        out.tokens.extend(word)
        out.sources.extend(align(word, tokens[low:stop], low))
        out.tokens.extend(tokens[stop:high].tolist())
        out.sources.extend(range(stop, high))

    def condense(self, tokens: np.ndarray, start: int, end: int, lead: str) -> Copy:
        """A sentence without insertions in brackets and without "However," and the like."""
        opening = self._after_lead_in(tokens, start, end)
        if opening == start:
            return self._without_brackets(self.copy(tokens, start, end, lead))
        borders = np.flatnonzero(self.vocabulary.borders(tokens[opening:end]))
        stop = opening + int(borders[1])
        word = self.vocabulary.respell(tokens[opening:stop], lead, capital=True)
        space = " " if self.vocabulary.texts[tokens[stop]][:1] in (" ", "\n") else ""
        rest = self.copy(tokens, stop, end, space)
        sources = align(word, tokens[opening:stop], opening) + rest.sources
        return self._without_brackets(Copy([*word, *rest.tokens], sources))

    def _after_lead_in(self, tokens: np.ndarray, start: int, end: int) -> int:
        """Where the sentence goes on after its "However, "; `start` where it has none."""
        head = tokens[start : min(end, start + 9)]
        text = ""
        for offset, token in enumerate(head):
            text += self.vocabulary.texts[token]
            if text.endswith(",") and _LEAD_IN.fullmatch(text + " ") and start + offset + 6 < end:
                return start + offset + 1
        return start

    def _without_brackets(self, copied: Copy) -> Copy:
        texts = self.vocabulary.texts
        out = Copy([], [])
        index = 0
        while index < len(copied.tokens):
            close = self._closing(copied.tokens, index) if out.tokens else index
            if close == index:
                out.tokens.append(copied.tokens[index])
                out.sources.append(copied.sources[index])
                index += 1
                continue
            rest = self.vocabulary.encode(texts[copied.tokens[close]][1:])
            out.tokens.extend(rest)
            out.sources.extend([-1] * len(rest))
            index = close + 1
        return out

    def _closing(self, tokens: list[int], index: int) -> int:
        """The position of the bracket that closes the one at `index`; `index` where none opens
        there, where brackets nest, or where the insertion is long."""
        text = self.vocabulary.texts[tokens[index]]
        if text not in (" (", " ["):
            return index
        for close in range(index + 1, min(index + 40, len(tokens))):
            inner = self.vocabulary.texts[tokens[close]]
            if inner[:1] == (")" if text == " (" else "]"):
                return close
            if any(mark in inner for mark in "()[]"):
                return index
        return index


def segments(size: int) -> int:
    """Sentences in the summary of a document of `size` tokens."""
    return 2 if size < 400 else 3 if size < 800 else 4 if size < 1600 else 6


def align(new: tuple[int, ...], old: np.ndarray, start: int) -> list[int]:
    """Sources of a respelled word: equal tokens from its end, and its begin for the first one."""
    out = [-1] * len(new)
    for back in range(1, min(len(new), len(old)) + 1):
        if new[-back] != old[-back]:
            break
        out[-back] = start + len(old) - back
    if out and out[0] < 0:
        out[0] = start
    return out


def occurrences(tokens: np.ndarray, part: np.ndarray) -> int:
    """How often `part` stands in `tokens`."""
    if not len(part) or len(part) > len(tokens):
        return 0
    places = np.flatnonzero(tokens[: len(tokens) - len(part) + 1] == part[0])
    for offset in range(1, len(part)):
        places = places[tokens[places + offset] == part[offset]]
    return len(places)
