"""What the task writers must know of the tokenizer, as arrays over token numbers.

In: the tokenizer file. Out: `Vocabulary`: word borders, word buckets, and the re-spelling of a
word whose leading space changes. Knows no corpus and no task.
"""

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

BUCKETS = 65_536
"""Words are told apart by a 16-bit hash: good enough to weigh them."""

_LETTER, _DIGIT, _SPACE, _MARK, _BYTES = range(5)


class Vocabulary:
    """Token texts and classes. Arrays are indexed by token number; `Ids` are tuples of ints."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(path))
        size = self.tokenizer.get_vocab_size()
        self.texts = [self.tokenizer.decode([i], skip_special_tokens=False) for i in range(size)]
        first = np.array([_kind(text.lstrip(" ")[:1] or " ") for text in self.texts], np.uint8)
        self._first = first
        self._last = np.array([_kind(text[-1:]) for text in self.texts], np.uint8)
        self._opens = np.array([text.startswith(" ") for text in self.texts]) | (first == _DIGIT)
        self.is_break = np.array(["\n" in text or "\r" in text for text in self.texts])
        self.is_letter = first == _LETTER
        codes = [zlib.crc32(text.strip().lower().encode()) for text in self.texts]
        self._codes = np.array(codes, np.uint32).astype(np.int64)
        self.encode = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`, special tokens included."""
        return self.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def borders(self, tokens: np.ndarray) -> np.ndarray:
        """[n] bool: True where a word, a digit or a run of marks begins."""
        out: np.ndarray = self._opens[tokens]
        out[1:] |= self._first[tokens[1:]] != self._last[tokens[:-1]]
        out[:1] = True
        return out

    def words(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts [w], buckets [w]) of the words made of letters, case folded."""
        starts = np.flatnonzero(self.borders(tokens))
        if not len(starts):
            return starts, starts
        lengths = np.diff(np.append(starts, len(tokens)))
        within = np.arange(len(tokens)) - np.repeat(starts, lengths)
        buckets = np.add.reduceat(self._codes[tokens] * (1 + 7919 * within), starts) % BUCKETS
        letters = self.is_letter[tokens[starts]]
        return starts[letters], buckets[letters]

    def respell(self, word: np.ndarray, lead: str, *, capital: bool = False) -> tuple[int, ...]:
        """The tokens of one word with `lead` ("" or a space) before it, its first letter raised
        if `capital`."""
        text = self.decode(word).strip()
        return self.encode(lead + (text[:1].upper() + text[1:] if capital else text))


def _kind(character: str) -> int:
    if not character or character == "\ufffd":
        return _BYTES
    if character.isalpha():
        return _LETTER
    if character.isnumeric():
        return _DIGIT
    return _SPACE if character.isspace() else _MARK
