"""What kernels and their callers agree on: the buffers of a growing tree and of copied guesses, and
how a launch of the tree's attention is laid out."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

#: Nodes expanded a level at most, and guesses under each of them, as in OPT-Tree.
WIDTH = 10
CHILDREN = 10
#: Tokens that must have stood there before; longer matches come first.
SHORTEST, LONGEST = 2, 5
#: A place's rank in one integer: the length of its match from bit 48 on, 16 bits of attention, its
#: number.
MATCH_BITS, PLACE_BITS = 48, 32
#: Tokens of a chunk where there is only one.
ANY_LENGTH = 1 << 30
#: Of what earlier copies were worth, at every new one.
FADING = 0.95
# Hits and tries before anything was tried, by the length of the match.
_PRIOR_HITS = (0.4, 0.6, 0.8, 1.0)
_PRIOR_TRIES = (2.0, 2.0, 2.0, 2.0)


@dataclass(frozen=True, slots=True)
class Levels:
    """What is known of a tree under construction; L levels of G = WIDTH * children guesses.

    Level 0 fills only its first ``children`` places, the others keep reach 0. A guess's number is
    its place in the flattened levels. R = L * WIDTH staged rows.
    """

    children: int
    root: Tensor  # [1] int64 token
    reach: Tensor  # [L, G] float32
    tokens: Tensor  # [L, G] int64
    slots: Tensor  # [L, G] int64: staged row of a guess, −1 outside the frontier
    chosen: Tensor  # [R] int64: number of the guess in a staged row
    frontier: Tensor  # [L, WIDTH] int64 tokens
    frontier_reach: Tensor  # [L, WIDTH] float32
    sees: Tensor  # [R, R] bool: itself and its ancestors below the root

    @classmethod
    def empty(cls, levels: int, children: int, device: torch.device) -> Self:
        """No guess yet."""
        rows, guesses = levels * WIDTH, WIDTH * children

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            children=children,
            root=zeros(1),
            reach=zeros(levels, guesses, dtype=torch.float32),
            tokens=zeros(levels, guesses),
            slots=zeros(levels, guesses) - 1,
            chosen=zeros(rows),
            frontier=zeros(levels, WIDTH),
            frontier_reach=zeros(levels, WIDTH, dtype=torch.float32),
            sees=zeros(rows, rows, dtype=torch.bool),
        )


@dataclass(frozen=True, slots=True)
class CopyState:
    """One request's chain of D tokens and how well chains did, at places that never change."""

    chain: Tensor  # [D] int64; −1 after its end, and all of it where nothing matches
    attention: Tensor  # [chunks] float32 ≥ 0: how much the target attends to each chunk
    # Levels at which the draft had followed the chain and thought of another token first.
    doubted: Tensor  # [D] bool
    start: Tensor  # [] int64: where in the text the chain would begin
    kind: Tensor  # [] int64: length of its match, less ``SHORTEST``
    prior: Tensor  # [2, kinds] float32: hits and tries before anything was tried
    counts: Tensor  # [2, kinds] float32: hits and tries, fading
    on_chain: Tensor  # [D * WIDTH] bool: rows of a beam whose path is the chain's beginning

    @classmethod
    def empty(cls, depth: int, chunks: int, device: torch.device) -> Self:
        """No chain, nothing tried and nothing attended to."""
        prior = torch.tensor([_PRIOR_HITS, _PRIOR_TRIES], device=device)
        return cls(
            chain=torch.full((depth,), -1, dtype=torch.int64, device=device),
            attention=torch.zeros(chunks, device=device),
            doubted=torch.zeros(depth, dtype=torch.bool, device=device),
            start=torch.zeros((), dtype=torch.int64, device=device),
            kind=torch.zeros((), dtype=torch.int64, device=device),
            prior=prior,
            counts=prior.clone(),
            on_chain=torch.zeros(depth * WIDTH, dtype=torch.bool, device=device),
        )


@dataclass(frozen=True, slots=True)
class TreeTiling:
    """How one launch is laid out. ``rows`` × ``keys``: a tile of scores; ``stages``: tiles of keys
    and values in flight; ``resident``: programs that fit a multiprocessor; ``descriptors``: tiles
    are fetched by the tensor memory accelerator instead of by threads; ``specialized``: by a warp
    of its own, for two groups of ``warps`` warps (``specx.core.kernels.hopper``)."""

    rows: int
    keys: int
    warps: int
    stages: int
    resident: int
    descriptors: bool = True
    registers: int | None = None
    specialized: bool = False
