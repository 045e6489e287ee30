"""The draft tree: a set of guesses that share prefixes, its ancestor mask for one verify forward,
and the walk that accepts one path. It does not know models, caches or how guesses were found."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """``n`` nodes; node 0 is the root, the last committed token, whose keys are not cached yet.

    Invariant: parents precede children, siblings carry different tokens, ``mask`` is the
    reflexive ancestor relation. Plain decoding is the tree of one node. Padding fills a tree up to
    a size for which a CUDA graph exists: it sees only itself and is never accepted.
    """

    tokens: Tensor  # [n] int64; −1 marks padding
    parents: Tensor  # [n] int64; the root is its own parent
    depths: Tensor  # [n] int64; root 0
    mask: Tensor  # [n, n] bool; row may attend column
    levels: int  # no node is deeper; known to the host without asking the device
    reaches: Tensor | None = None  # [n] float32: the draft's chance of each node
    copied: Tensor | None = None  # [depth] int64: a chain copied from the text, −1 after its end

    @classmethod
    def root_only(cls, token: Tensor) -> "TokenTree":
        """The tree of plain decoding over ``token`` [1] int64."""
        zero = torch.zeros_like(token)
        mask = torch.ones(1, 1, dtype=torch.bool, device=token.device)
        return cls(tokens=token, parents=zero, depths=zero, mask=mask, levels=0)

    @classmethod
    def build(
        cls, tokens: Sequence[int], parents: Sequence[int], device: torch.device | str = "cpu"
    ) -> "TokenTree":
        """A tree from host lists; ``parents[0]`` must be 0 and ``parents[i] < i``.

        Raises ``ValueError`` when a parent does not precede its child.
        """
        depths, rows = [0], [[0]]
        for node in range(1, len(tokens)):
            if not 0 <= parents[node] < node:
                raise ValueError(f"parent {parents[node]} does not precede node {node}")
            depths.append(depths[parents[node]] + 1)
            rows.append([*rows[parents[node]], node])
        mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
        for node, ancestors in enumerate(rows):
            mask[node, ancestors] = True
        return cls(
            tokens=torch.tensor(list(tokens), device=device),
            parents=torch.tensor(list(parents), device=device),
            depths=torch.tensor(depths, device=device),
            mask=mask.to(device),
            levels=max(depths),
        )

    @property
    def size(self) -> int:
        return self.tokens.shape[0]

    @property
    def longest_path(self) -> int:
        """Nodes that a path may have, the root included."""
        return min(self.levels + 1, self.size)

    def accept(self, sampled: Tensor) -> "Path":
        """The longest path on which every guess equals the target's sample at its parent.

        ``sampled`` [n] int64: the target's own token after each node. Because siblings differ, at
        most one child survives per node and the path is unique. ``sampled`` along it is then
        exactly what plain decoding would have produced: the accepted tokens, then the bonus token.
        Nothing is read by the host, and every shape is static.
        """
        if self.longest_path == 1:
            return Path(torch.zeros_like(sampled[:1]), torch.ones_like(sampled[0]))
        places = torch.arange(self.size, device=sampled.device)
        agrees = (self.tokens == sampled[self.parents]) | (places == 0)
        alive = ~(self.mask & ~agrees).any(dim=1)
        deepest = torch.argmax(torch.where(alive, self.depths, -1))
        on_path = self.mask.index_select(0, deepest[None])[0]
        # Each node of the path goes to the slot of its depth, all others to one slot more.
        longest = self.longest_path
        slots = torch.arange(longest + 1, device=sampled.device)
        slots.scatter_(0, torch.where(on_path, self.depths, longest), places)
        count = self.depths.index_select(0, deepest[None])[0] + 1
        return Path(slots[:longest], count)


@dataclass(frozen=True, slots=True)
class Path:
    """Nodes from the root to the deepest accepted guess.

    After the first ``count`` slots come the slots' own numbers, so that moving rows by ``nodes``
    leaves the rest where it is.
    """

    nodes: Tensor  # [longest path] int64, increasing
    count: Tensor  # [] int64: accepted guesses + 1

    def tolist(self) -> list[int]:
        nodes: list[int] = self.nodes[: int(self.count)].tolist()
        return nodes
