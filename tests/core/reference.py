"""What the core computes, written the slow and obvious way: float64, loops, no shared code."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specx.core.tree import TokenTree


def attention(
    query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention in float64: query [H, n, D], key and value [Hkv, S, D], sees [n, S] bool.

    Returns the output [H, n, D] and the natural log of the softmax denominators [H, n].
    """
    group = query.shape[0] // key.shape[0]
    outs, sums = [], []
    for head in range(query.shape[0]):
        keys, values = key[head // group].double(), value[head // group].double()
        scores = query[head].double() @ keys.T * scale
        scores = scores.masked_fill(~sees, -math.inf)
        largest = scores.max(dim=-1, keepdim=True).values
        weights = (scores - largest).exp()
        total = weights.sum(dim=-1, keepdim=True)
        outs.append(weights / total @ values)
        sums.append((total.log() + largest)[:, 0])
    return torch.stack(outs), torch.stack(sums)


def causal(rows: int, keys: int) -> Tensor:
    """[rows, keys] bool for the last ``rows`` of ``keys`` positions."""
    first = keys - rows
    return torch.tensor([[key <= first + row for key in range(keys)] for row in range(rows)])


def rotate(vectors: Tensor, positions: Sequence[int], inverse_frequencies: Tensor) -> Tensor:
    """Rotary embedding in float64 by complex multiplication; [H, n, D] at positions [n]."""
    half = vectors.shape[-1] // 2
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * inverse_frequencies.double()
    numbers = torch.complex(vectors[..., :half].double(), vectors[..., half:].double())
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def ancestors(parents: Sequence[int], node: int) -> list[int]:
    """From the root to ``node``, both included."""
    path = [node]
    while path[-1] != 0:
        path.append(parents[path[-1]])
    return path[::-1]


def mask(parents: Sequence[int]) -> Tensor:
    """The reflexive ancestor relation [n, n] bool, entry by entry."""
    size = len(parents)
    rows = [[column in ancestors(parents, row) for column in range(size)] for row in range(size)]
    return torch.tensor(rows)


def walk(tokens: Sequence[int], parents: Sequence[int], sampled: Sequence[int]) -> list[int]:
    """Follow the target's own tokens down the tree for as long as a child carries them."""
    path = [0]
    while True:
        here = path[-1]
        children = [node for node in range(1, len(tokens)) if parents[node] == here]
        matching = [node for node in children if tokens[node] == sampled[here]]
        if not matching:
            return path
        path.append(matching[0])


class PlainTree:
    """Grows a tree from scored guesses in lists.

    Holds candidates with the draft's probability that the whole path up to them is accepted
    (``reach``). A child is never more probable than its parent and comes after it, so any number
    of best nodes is a tree.
    """

    def __init__(self, root: int, limit: int) -> None:
        self._limit = limit
        self._tokens = [root]
        self._parents = [0]
        self._depths = [0]
        self._reach = [1.0]

    def add(self, parent: int, token: int, probability: float) -> int:
        """Add a guess under ``parent`` with the draft's conditional ``probability``; its id."""
        self._tokens.append(token)
        self._parents.append(parent)
        self._depths.append(self._depths[parent] + 1)
        self._reach.append(self._reach[parent] * min(probability, 1.0))
        return len(self._tokens) - 1

    def best(self) -> list[int]:
        """Ids of the most probable guesses, at most ``limit``, best first (ties: older first)."""
        order = sorted(range(1, len(self._tokens)), key=lambda node: (-self._reach[node], node))
        return order[: self._limit]

    def reaches(self, nodes: Sequence[int]) -> list[float]:
        """Probability, by the draft, that each of ``nodes`` is accepted."""
        return [self._reach[node] for node in nodes]

    def expected(self) -> float:
        """Expected tokens of a verify step with the best nodes: the bonus + their reaches."""
        return 1.0 + sum(self.reaches(self.best()))

    def frontier(self, depth: int, width: int) -> list[int]:
        """The nodes of one depth that are among the best: the ones worth expanding."""
        return [node for node in self.best() if self._depths[node] == depth][:width]

    def token(self, node: int) -> int:
        """Token id of ``node``."""
        return self._tokens[node]

    def parent(self, node: int) -> int:
        """The node above ``node``; the root's is itself."""
        return self._parents[node]

    def ancestors(self, node: int) -> list[int]:
        """Path from below the root to ``node``, ``node`` included."""
        path = []
        while node:
            path.append(node)
            node = self._parents[node]
        return path[::-1]

    def tree(self, guesses: int, device: torch.device | str = "cpu") -> TokenTree:
        """The tree of the root and the ``guesses`` best nodes."""
        kept = [0, *sorted(self.best()[:guesses])]
        number = {node: index for index, node in enumerate(kept)}
        return TokenTree.build(
            [self._tokens[node] for node in kept],
            [number[self._parents[node]] for node in kept],
            device,
        )
