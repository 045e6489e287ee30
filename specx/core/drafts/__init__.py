"""Drafters: whatever guesses the target's next tokens as a tree.

In: committed tokens, and the target's hidden states where a drafter wants them. Out: a
``TokenTree`` whose root is the last committed token. A drafter serves one request; a new request
gets a new drafter, so no state can leak between documents.
"""

from typing import Protocol

from torch import Tensor

from specx.core.retrieval import Selection
from specx.core.tree import TokenTree


class Drafter(Protocol):
    """What a decode loop says to a drafter."""

    @property
    def runs_ahead(self) -> bool:
        """Whether ``draft`` finds everything on the device: it may be called again before
        ``extend`` has told the host's side what the last step brought."""
        ...

    def prefill(self, tokens: Tensor, hidden: Tensor) -> None:
        """The next prompt tokens [n] and the target's hidden states [n, hidden] at them."""
        ...

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """Newly committed tokens; ``hidden`` [len(tokens), hidden] is the target's state that
        produced each of them (empty where the drafter runs ahead). The last one is the next
        tree's root."""
        ...

    def draft(self) -> TokenTree | None:
        """A tree of guesses under the last committed token; None: no guess."""
        ...

    def refocus(self, selection: Selection) -> None:
        """Keep only these context rows in the working cache."""
        ...

    def observe(self, draft_s: float, *told: Tensor) -> tuple[float, ...]:
        """What the last draft took, and its tree's reaches and depths [n] if it gave any.

        Returns the seconds of its forwards, level by level; () where there are none.
        """
        ...

    @property
    def context_tokens(self) -> int:
        """Rows of context that the next draft will see."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held for this request."""
        ...


class NoDraft:
    """Plain decoding: every tree is its root."""

    runs_ahead = True
    context_tokens = 0
    cache_bytes = 0

    def prefill(self, tokens: Tensor, hidden: Tensor) -> None:
        """See ``Drafter``; nothing to remember."""

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """See ``Drafter``; nothing to remember."""

    def draft(self) -> None:
        """See ``Drafter``."""

    def refocus(self, selection: Selection) -> None:
        """See ``Drafter``; there is no cache."""

    def observe(self, draft_s: float, *told: Tensor) -> tuple[float, ...]:
        """See ``Drafter``."""
        return ()
