"""How long an output may be, where a thought may come before the answer.

In: the output's tokens. Out: where it ends, and the token that closes a thought at its bound. It
does not know text: where thoughts begin and end is found by whoever reads the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specx.core.tree import Path, TokenTree


class Finder(Protocol):
    """Finds the thought of an output, token by token."""

    @property
    def tokens(self) -> int:
        """How many tokens of the output so far are a thought's, its tags included."""

    @property
    def is_open(self) -> bool:
        """Whether the output so far ends within a thought."""

    @property
    def is_undecided(self) -> bool:
        """Whether the tokens to come decide if those so far are a thought's."""

    def push(self, token: int) -> None:
        """Take in the output's next token."""


@dataclass(frozen=True, slots=True)
class ThoughtBound:
    """A thought may have ``max_tokens`` tokens; then ``closing`` is its next one, or, where no
    single token closes a thought (None), the output ends. ``room_tokens``: what it may take in
    all, blanks before its opening tag included."""

    finder: Finder
    max_tokens: int
    closing: int | None
    room_tokens: int


class Bounds:
    """Counts an output's tokens as they come: at most ``max_tokens`` of an answer, after a thought
    that has a bound of its own; at most ``limit`` in all."""

    def __init__(self, max_tokens: int, thought: ThoughtBound | None, limit: int | None) -> None:
        self._max_tokens, self._thought, self._limit = max_tokens, thought, limit
        self._produced = 0

    @property
    def is_open(self) -> bool:
        """Whether the output so far ends within a thought."""
        return self._thought is not None and self._thought.finder.is_open

    @property
    def is_undecided(self) -> bool:
        """Whether the output so far may yet turn out to be a thought."""
        return self._thought is not None and self._thought.finder.is_undecided

    def take(self, tokens: Sequence[int]) -> int | None:
        """How many of ``tokens`` the output may still have, if it ends with them; else None."""
        for count, token in enumerate(tokens, start=1):
            self._produced += 1
            if self._thought is not None:
                self._thought.finder.push(token)
            if self._is_full():
                return count
        return None

    def _is_full(self) -> bool:
        thought = self._thought
        if self._produced == self._limit:
            return True
        if thought is None:
            return self._produced >= self._max_tokens
        if thought.finder.is_open:
            return thought.closing is None and thought.finder.tokens >= thought.max_tokens
        return self._produced - thought.finder.tokens >= self._max_tokens


class Closing:
    """Puts the closing token where an open thought has reached its bound, on the device.

    The place depends on the output position and on the tokens before it alone, so every tree,
    draft and mode gives the same text.
    """

    def __init__(self, token: int, max_tokens: int, device: torch.device) -> None:
        self._token, self._max_tokens = token, max_tokens
        self._is_closed = torch.zeros((), dtype=torch.bool, device=device)

    def place(self, tokens: Tensor, positions: Tensor, tree: TokenTree | None) -> Tensor:
        """``tokens`` [n] int64, which the target puts at output ``positions`` [n], the closing one
        among them where it is due; ``tree`` is None after the prompt."""
        is_due = (positions >= self._max_tokens) & ~self._is_closed
        if tree is not None:
            is_due &= ~(tree.mask & (tree.tokens == self._token)).any(dim=1)
        return torch.where(is_due, self._token, tokens)

    def add_path(self, tokens: Tensor, path: Path) -> None:
        """Take in what the target said along ``path``."""
        said = tokens[path.nodes]
        inside = torch.arange(said.shape[0], device=said.device) < path.count
        self._is_closed |= ((said == self._token) & inside).any()
