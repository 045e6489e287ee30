"""Drafters: whatever guesses the target's next tokens as a tree.

In: committed tokens, and the target's hidden states where a drafter wants them. Out: a
``TokenTree`` whose root is the last committed token. A drafter serves one request; a new request
gets a new drafter, so no state can leak between documents.
"""

from typing import Protocol

import torch
from torch import Tensor

from specx.core.tree import TokenTree


class Drafter(Protocol):
    """The four things a decode loop says to a drafter."""

    def prefill(self, tokens: Tensor, hidden: Tensor) -> None:
        """The next prompt tokens [n] and the target's hidden states [n, hidden] at them."""
        ...

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """Newly committed tokens; ``hidden`` [len(tokens), hidden] is the target's state that
        produced each of them. The last one is the next tree's root."""
        ...

    def draft(self) -> TokenTree:
        """A tree of guesses under the last committed token."""
        ...

    def refocus(self, rows: Tensor) -> None:
        """Keep only these context rows [m] (increasing) in the working cache."""
        ...

    @property
    def context_tokens(self) -> int:
        """Rows of context that the next draft will see."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held for this request."""
        ...

    @property
    def levels_s(self) -> tuple[float, ...]:
        """Seconds of the last draft's forwards, level by level; () where there are none."""
        ...


class NoDraft:
    """Plain decoding: every tree is its root."""

    context_tokens = 0
    cache_bytes = 0
    levels_s: tuple[float, ...] = ()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._root = 0

    def prefill(self, tokens: Tensor, hidden: Tensor) -> None:
        """See ``Drafter``; nothing to remember."""

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """See ``Drafter``."""
        self._root = tokens[-1]

    def draft(self) -> TokenTree:
        """See ``Drafter``."""
        return TokenTree.root_only(self._root, self._device)

    def refocus(self, rows: Tensor) -> None:
        """See ``Drafter``; there is no cache."""
