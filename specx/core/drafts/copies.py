"""Guesses copied from the text: what followed the last tokens where they occurred before, joined to
a draft's own guesses with the chance that copying proved to have lately. Nothing is read by the
host and every shape is static, so a CUDA graph can hold it. The idea is prompt lookup decoding
(Saxena, 2023)."""

import torch
from torch import Tensor

from specx.core import kernels
from specx.core.kernels.types import (
    ANY_LENGTH,
    FADING,
    LONGEST,
    MATCH_BITS,
    PLACE_BITS,
    SHORTEST,
    WIDTH,
    CopyState,
)


class Copies:
    """The chain of one request, and how well chains did.

    Where the draft model has followed the chain and thinks of another token first, the chain's next
    token joins its guesses, so both share one tree and one budget of nodes. What counts is how
    often the copy was right when the draft thought otherwise. Of several places with the phrase the
    target's attention decides, which retrieval asks for anyway, chunk by chunk.
    """

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
        self._fused = kernels.fused("text_copies", device, fused)
        self._offsets = torch.arange(depth, device=device)
        self._suffix = torch.arange(LONGEST, device=device)

    @property
    def chain(self) -> Tensor:
        """The chain [depth] int64; −1 after its end, and all of it where nothing matches. The
        same memory for every text."""
        return self._state.chain

    @property
    def chance(self) -> Tensor:
        """That a token of the chain is right though the draft doubts it, [] float32."""
        hits, tries = self._state.counts.index_select(1, self._state.kind[None])[:, 0]
        chance: Tensor = hits / tries
        return chance

    def begin(self) -> None:
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

        ``length`` [] int64: tokens of the text. Of all places where its last tokens occurred
        before, the ones with the longest match are taken, of those the ones in chunks that the
        target attends to most (in bfloat16: nearly equal is equal), of those the latest.
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
        self,
        chances: Tensor,
        tokens: Tensor,
        level: int,
        frontier: Tensor | None = None,
        parents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best guesses of a tree's ``level`` with the chain's token among them, [n, K] both.

        ``chances`` [n, K] float32, best first, of ``tokens`` [n, K] int64. For the levels one after
        the other from 0 on. Level 0 is the root's, one row; later ones have n ≤ WIDTH rows, under
        ``frontier`` [n] int64 tokens, and from level 2 on ``parents`` [n] int64 are the staged rows
        of the frontier's parents (``Beam.parents``).

        Where a row's path is the chain's first ``level`` tokens and the draft thinks of another
        token first, the chain's next token has at least the chance that doubted copies proved to
        have; a row that did not think of it gives up its last guess.
        """
        if self._fused is not None:
            guesses: tuple[Tensor, Tensor] = self._fused.joined(
                self._state, chances, tokens, level, frontier, parents
            )
            return guesses
        token = self.chain[level]
        is_doubted = self._on_chain(tokens.shape[0], level, frontier, parents)
        is_doubted = is_doubted & (tokens[:, 0] != token) & (token >= 0)
        self._state.doubted[level] = is_doubted.any()
        is_there = tokens == token
        is_last = torch.arange(tokens.shape[1], device=tokens.device) == tokens.shape[1] - 1
        place = is_there | (~is_there.any(dim=1, keepdim=True) & is_last)
        chance = self.chance
        place &= is_doubted[:, None] & (is_there | (chances < chance))
        tokens = torch.where(place, token, tokens)
        return torch.where(place, chances.clamp(min=chance), chances), tokens

    def _on_chain(
        self, rows: int, level: int, frontier: Tensor | None, parents: Tensor | None
    ) -> Tensor:
        """Rows [n] bool whose path is the chain's beginning; kept for the next level."""
        kept = self._state.on_chain
        if frontier is None:
            return torch.ones(rows, dtype=torch.bool, device=kept.device)
        is_on_chain = (frontier == self.chain[level - 1]) & (frontier >= 0)
        if parents is not None:
            is_on_chain &= kept.index_select(0, parents)
        start = (level - 1) * WIDTH
        kept[start : start + rows] = is_on_chain
        return is_on_chain

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
