"""Prompt lookup: continuations of earlier occurrences of the last n tokens, merged into a tree (the
idea: Saxena, prompt lookup decoding; here several occurrences share one tree)."""

from torch import Tensor

from specx.core.config import TreeConfig
from specx.core.drafts import Drafter
from specx.core.drafts.growth import StepCosts
from specx.core.tree import TokenTree

_LONGEST_NGRAM = 4
_OCCURRENCES = 8
# Chance that one more copied token is right, by the length of the match that led here.
_TRUST = {4: 0.85, 3: 0.7, 2: 0.5, 1: 0.3}


class LookupDrafter(Drafter):
    """Guesses by copying; costs no forward and holds no keys."""

    runs_ahead = False  # it copies from the tokens of the last step

    def __init__(self, config: TreeConfig) -> None:
        self._config = config
        self._costs: StepCosts | None = None
        self._tokens: list[int] = []
        # n-gram → positions after its occurrences, oldest first, for n = 1 … _LONGEST_NGRAM.
        self._after: dict[tuple[int, ...], list[int]] = {}

    def prefill(self, tokens: Tensor, features: Tensor) -> None:
        self.extend(tokens.tolist())

    def begin(self, costs: StepCosts | None) -> None:
        # They bound the tree by what a verify row is worth.
        self._costs = costs if self._config.size == "measured" else None

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            position = len(self._tokens)
            for size in range(1, min(_LONGEST_NGRAM, position) + 1):
                key = tuple(self._tokens[position - size :])
                self._after.setdefault(key, []).append(position)
            self._tokens.append(token)

    def draft(self) -> TokenTree:
        """The best guesses of the continuations: longer matches first, then more recent ones."""
        tokens, parents, reaches = [self._tokens[-1]], [0], [1.0]
        children: dict[tuple[int, int], int] = {}
        for start, trust in self._continuations():
            node = 0
            for token in self._tokens[start : start + self._config.depth]:
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    reaches.append(reaches[node] * trust)
                node = children[node, token]
        best = sorted(range(1, len(tokens)), key=lambda node: (-reaches[node], node))
        best = best[: self._config.nodes]
        if self._costs is not None:
            count, _, _ = self._costs.best_count([reaches[node] for node in best], 0.0)
            best = best[:count]
        # A child is less probable than its parent, so that every kept node's parent is kept.
        kept = [0, *sorted(best)]
        number = {node: index for index, node in enumerate(kept)}
        return TokenTree.build(
            [tokens[node] for node in kept], [number[parents[node]] for node in kept]
        )

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
