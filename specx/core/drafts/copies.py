"""Guesses copied from the text: what followed the last tokens when they stood there before.

In: the text so far, at a place that recordings may read, and which parts of it the target attends
to. Out: a chain of tokens, joined to a draft's best guesses with the chance that copying proved to
have lately. It does not know models, trees or caches. Nothing is read by the host and every shape
is static, so a CUDA graph can hold it.

The idea is prompt lookup decoding (Saxena, 2023). Here it is no drafter of its own: where the
draft model stands on the chain and thinks of another token first, the chain's next token joins its
guesses. So both share one tree and one budget of nodes. What counts is how often the copy was
right when the draft thought otherwise: a good draft is hardly disturbed, a lost one is led.

A phrase often stands in a text more than once. The target knows which of the places it is copying
from: its last layer attends there. Retrieval asks it for that anyway, chunk by chunk, every few
steps, so the chunk's attention decides between matches of the same length, at no further read of
the keys.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Self

import torch
from torch import Tensor

from specx.core import kernels
from specx.core.drafts.growth import WIDTH

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
class CopyState:
    """One request's chain of D tokens and how well chains did, at places that never change."""

    chain: Tensor  # [D] int64; −1 behind its end, and all of it where nothing matches
    attention: Tensor  # [chunks] float32 ≥ 0: how much the target attends to each chunk
    # Levels at which the draft stood on the chain and thought of another token first.
    doubted: Tensor  # [D] bool
    start: Tensor  # [] int64: where in the text the chain would stand
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


class Copies:
    """The chain of one request, and how well chains did."""

    def __init__(
        self,
        depth: int,
        device: torch.device,
        fused: bool | None = None,
        *,
        chunks: int = 1,
        chunk_tokens: int = ANY_LENGTH,
    ) -> None:
        """``depth``: tokens of a chain. ``fused`` chooses Triton kernels (True) or torch (False);
        None: kernels where they can run. ``chunks`` of ``chunk_tokens`` hold the longest text."""
        self._state = CopyState.empty(depth, chunks, device)
        self._chunk_tokens = chunk_tokens
        self._fused = _fused(device, fused)
        self._offsets = torch.arange(depth, device=device)
        self._suffix = torch.arange(LONGEST, device=device)

    @property
    def chain(self) -> Tensor:
        """The chain [depth] int64; −1 behind its end, and all of it where nothing matches. The
        same memory for every text."""
        return self._state.chain

    @property
    def chance(self) -> Tensor:
        """That a token of the chain is right though the draft doubts it, [] float32."""
        hits, tries = self._state.counts.index_select(1, self._state.kind[None])[:, 0]
        chance: Tensor = hits / tries
        return chance

    def begin(self) -> None:
        """Forget the last request."""
        self._state.chain.fill_(-1)
        self._state.attention.zero_()
        self._state.doubted.zero_()
        self._state.counts.copy_(self._state.prior)

    def attend(self, attention: Tensor) -> None:
        """From now on prefer what the target attends to, [n] float32 ≥ 0 chunk by chunk; chunks
        beyond are not attended to."""
        known = min(attention.shape[0], self._state.attention.shape[0])
        self._state.attention[:known].copy_(attention[:known])

    def find(self, text: Tensor, length: Tensor) -> None:
        """Judge the last chain by what the text [capacity] int64 became, then look for the next.

        ``length`` [] int64: tokens of the text. Of all places where its last tokens stood before,
        the ones with the longest match are taken, of those the ones in chunks that the target
        attends to most (in bfloat16: nearly equal is equal), of those the latest.
        """
        if self._fused is not None:
            self._fused.find(self._state, text, length, self._chunk_tokens)
            return
        self._judge(text, length)
        matches = self._matches(text, length)
        numbers = torch.arange(text.shape[0], device=text.device)
        attention = self._state.attention
        chunks = (numbers // self._chunk_tokens).clamp(max=attention.shape[0] - 1)
        # Of floats that are not negative the bits are in the order of the values.
        attended = (attention.view(torch.int32) >> 16).long().index_select(0, chunks)
        best = ((matches << MATCH_BITS) | (attended << PLACE_BITS) | numbers).argmax()
        kind = matches.index_select(0, best[None])[0] - SHORTEST
        places = best + 1 + self._offsets
        inside = (places < length) & (kind >= 0)
        tokens = text.index_select(0, places.clamp(max=text.shape[0] - 1))
        state = self._state
        state.chain.copy_(torch.where(inside, tokens, -1))
        state.doubted.zero_()
        state.start.copy_(length)
        state.kind.copy_(kind.clamp(min=0))

    def joined(
        self, chances: Tensor, tokens: Tensor, is_on_chain: Tensor, level: int
    ) -> tuple[Tensor, Tensor]:
        """The best guesses of ``level`` with the chain's token among them, [n, K] both.

        ``chances`` [n, K] float32, best first, of ``tokens`` [n, K] int64; ``is_on_chain`` [n]
        bool: rows whose path is the chain's first ``level`` tokens. There the token has at least
        the chance that doubted copies proved to have; a row that did not think of it gives up its
        last guess.
        """
        token = self.chain[level]
        is_doubted = is_on_chain & (tokens[:, 0] != token) & (token >= 0)
        self._state.doubted[level] = is_doubted.any()
        is_there = tokens == token
        is_last = torch.arange(tokens.shape[1], device=tokens.device) == tokens.shape[1] - 1
        place = is_there | (~is_there.any(dim=1, keepdim=True) & is_last)
        chance = self.chance.to(chances.dtype)
        place &= is_doubted[:, None] & (is_there | (chances < chance))
        tokens = torch.where(place, token, tokens)
        return torch.where(place, chances.clamp(min=chance), chances), tokens

    def joined_in_beam(
        self,
        chances: Tensor,
        tokens: Tensor,
        level: int,
        frontier: Tensor | None = None,
        parents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``joined`` for the levels of a ``Beam``, one after the other from 0 on, which finds out
        by itself what is on the chain.

        Level 0 is the root's: ``chances`` and ``tokens`` [1, K]. On later ones they are [WIDTH, K],
        under ``frontier`` [WIDTH] int64 tokens; from level 2 on ``parents`` [WIDTH] int64 are the
        staged rows of the frontier's parents (``Beam.parents``).
        """
        if self._fused is not None:
            guesses: tuple[Tensor, Tensor] = self._fused.joined(
                self._state, chances, tokens, level, frontier, parents
            )
            return guesses
        is_on_chain = torch.ones(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        if frontier is not None:
            on_chain = self._state.on_chain
            if parents is not None:
                is_on_chain = on_chain.index_select(0, parents)
            is_on_chain = is_on_chain & (frontier == self.chain[level - 1]) & (frontier >= 0)
            on_chain[(level - 1) * WIDTH : level * WIDTH] = is_on_chain
        return self.joined(chances, tokens, is_on_chain, level)

    def _matches(self, text: Tensor, length: Tensor) -> Tensor:
        """How many tokens before and at each place [capacity] equal the last ones; 0 below
        ``SHORTEST`` and where nothing follows."""
        last = text.index_select(0, (length - 1 - self._suffix).clamp(min=0))
        numbers = torch.arange(text.shape[0], device=text.device)
        agrees = numbers < length - 1
        count = torch.zeros_like(text)
        for back in range(LONGEST):
            agrees = agrees & (text.roll(back) == last[back]) & (numbers >= back)
            count += agrees
        return torch.where(count >= SHORTEST, count, 0)

    def _judge(self, text: Tensor, length: Tensor) -> None:
        """Count the doubted tokens of the chain that came true, and the first that did not."""
        state = self._state
        places = state.start + self._offsets
        known = (places < length) & (state.chain >= 0)
        came = text.index_select(0, places.clamp(max=text.shape[0] - 1)) == state.chain
        is_hit = (came & known).to(torch.int64).cumprod(dim=0)
        is_tried = torch.cat([torch.ones_like(is_hit[:1]), is_hit[:-1]]) * known
        hits, tries = (is_hit * state.doubted).sum(), (is_tried * state.doubted).sum()
        counts = state.counts.index_select(1, state.kind[None])
        news = torch.stack([hits, tries]).to(counts.dtype)[:, None]
        prior = state.prior.index_select(1, state.kind[None])
        # Towards the prior, so that a chance is never nought or one.
        faded = torch.where(tries > 0, prior + FADING * (counts - prior) + news, counts)
        state.counts.index_copy_(1, state.kind[None], faded)


def _fused(device: torch.device, wanted: bool | None) -> ModuleType | None:
    """The Triton kernels, where they are wanted or, without a wish, can run."""
    if wanted is None:
        wanted = device.type == "cuda" and kernels.is_available()
    return import_module("specx.core.kernels.copies") if wanted else None
