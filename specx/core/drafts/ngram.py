"""Prompt lookup: continuations of earlier occurrences of the last n tokens, merged into a tree.

In: token ids. Out: a tree of copied guesses. It knows no model (the idea: Saxena, prompt lookup
decoding; here several occurrences share one tree).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from specx.core.config import TreeConfig
from specx.core.drafts.growth import StepCosts
from specx.core.retrieval import Selection
from specx.core.tree import TokenTree, TreeBuilder

_LONGEST_NGRAM = 4
_OCCURRENCES = 8
# Chance that one more copied token is right, by the length of the match that led here.
_TRUST = {4: 0.85, 3: 0.7, 2: 0.5, 1: 0.3}


class LookupDrafter:
    """Guesses by copying; costs no forward."""

    runs_ahead = False  # it copies from the tokens of the last step
    context_tokens = 0
    cache_bytes = 0

    def __init__(
        self,
        config: TreeConfig,
        device: torch.device,
        costs: Callable[[], StepCosts] | None = None,
    ) -> None:
        """``costs`` bounds the tree by what a verify row is worth, for ``size="measured"``."""
        self._config = config
        self._costs = costs if config.size == "measured" else None
        self._device = device
        self._tokens: list[int] = []
        # n-gram → positions after its occurrences, oldest first, for n = 1 … _LONGEST_NGRAM.
        self._after: dict[tuple[int, ...], list[int]] = {}

    def prefill(self, tokens: Tensor, hidden: Tensor) -> None:
        """See ``Drafter``."""
        self._append(tokens.tolist())

    def extend(self, tokens: list[int], hidden: Tensor) -> None:
        """See ``Drafter``."""
        self._append(tokens)

    def refocus(self, selection: Selection) -> None:
        """See ``Drafter``; a lookup sees everything at no cost."""

    def observe(self, draft_s: float, *told: Tensor) -> tuple[float, ...]:
        """See ``Drafter``; there are no forwards."""
        return ()

    def draft(self) -> TokenTree:
        """See ``Drafter``. Longer matches first, then more recent ones."""
        builder = TreeBuilder(self._tokens[-1], self._config.nodes)
        children: dict[tuple[int, int], int] = {}
        for start, trust in self._continuations():
            node = 0
            for token in self._tokens[start : start + self._config.depth]:
                if (node, token) not in children:
                    children[node, token] = builder.add(node, token, trust)
                node = children[node, token]
        guesses = self._config.nodes
        if self._costs is not None:
            guesses = self._costs().best_count(builder.reaches(builder.best()), 0.0)[0]
        return builder.tree(guesses, self._device)

    def _continuations(self) -> list[tuple[int, float]]:
        """Positions that follow an earlier occurrence of the last tokens, with their trust."""
        found: dict[int, float] = {}
        for size in range(_LONGEST_NGRAM, 0, -1):
            key = tuple(self._tokens[-size:])
            for start in reversed(self._after.get(key, [])[-_OCCURRENCES:]):
                found.setdefault(start, _TRUST[size])
            # One token matches anywhere: only worth it when nothing longer does.
            if found and size <= 2:
                break
        return list(found.items())[:_OCCURRENCES]

    def _append(self, tokens: list[int]) -> None:
        for token in tokens:
            position = len(self._tokens)
            for size in range(1, min(_LONGEST_NGRAM, position) + 1):
                key = tuple(self._tokens[position - size :])
                self._after.setdefault(key, []).append(position)
            self._tokens.append(token)
