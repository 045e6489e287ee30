"""Drafters: whatever guesses the target's next tokens as a tree. Each serves one request at a time,
and begins it knowing nothing of the last, so no state can leak between documents."""

from torch import Tensor

from specx.core.drafts.growth import StepCosts
from specx.core.retrieval import Selection
from specx.core.tree import TokenTree


class Drafter:
    """What a decode loop says to a drafter. This one never guesses: plain decoding."""

    #: Whether ``draft`` finds everything on the device: it may be called again before ``extend``.
    runs_ahead = True
    #: Rows of context that the last draft saw, at most.
    context_tokens = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held for this request."""
        return 0

    def prefill(self, tokens: Tensor, features: Tensor) -> None:
        """The next prompt tokens [n] and the target's features [n, width] at them."""

    def begin(self, costs: StepCosts | None) -> None:
        """The prompt is read and its first token drawn. ``costs`` of a step on this machine, if
        they were measured."""

    def extend(self, tokens: list[int]) -> None:
        """Newly committed tokens; the last one is the next tree's root."""

    def draft(self) -> TokenTree | None:
        """A tree of guesses under the last committed token; None: no guess."""
        return None

    def refocus(self, selection: Selection) -> None:
        """Keep only these context rows in the working cache."""

    def observe(
        self, draft_s: float, reaches: Tensor | None, depths: Tensor | None
    ) -> tuple[float, ...]:
        """What the last settled draft took, and its tree's reaches and depths [n] if it had any.

        Returns the seconds of its forwards, level by level; () where there are none.
        """
        return ()
