"""Guesses copied from the text: what followed the last tokens when they stood there before.

In: the text so far, at a place that recordings may read. Out: a chain of tokens, joined to a
draft's best guesses with the chance that copying proved to have lately. It does not know models,
trees or caches. Nothing is read by the host and every shape is static, so a CUDA graph can hold it.

The idea is prompt lookup decoding (Saxena, 2023). Here it is no drafter of its own: where the
draft model stands on the chain and thinks of another token first, the chain's next token joins its
guesses. So both share one tree and one budget of nodes. What counts is how often the copy was
right when the draft thought otherwise: a good draft is hardly disturbed, a lost one is led.
"""

import torch
from torch import Tensor

#: Tokens that must have stood there before; longer matches come first.
SHORTEST, LONGEST = 2, 5
_FADING = 0.95  # of what earlier copies were worth, at every new one
# Hits and tries before anything was tried, by the length of the match.
_PRIOR_HITS = (0.4, 0.6, 0.8, 1.0)
_PRIOR_TRIES = (2.0, 2.0, 2.0, 2.0)


class Copies:
    """The chain of one request, and how well chains did."""

    def __init__(self, depth: int, device: torch.device) -> None:
        """``depth``: tokens of a chain."""
        self._offsets = torch.arange(depth, device=device)
        self._suffix = torch.arange(LONGEST, device=device)
        #: The chain [depth] int64; −1 behind its end, and all of it where nothing matches.
        self.chain = torch.full((depth,), -1, dtype=torch.int64, device=device)
        # Levels at which the draft stood on the chain and thought of another token first.
        self._doubted = torch.zeros(depth, dtype=torch.bool, device=device)
        self._start = torch.zeros((), dtype=torch.int64, device=device)  # where it would stand
        self._kind = torch.zeros((), dtype=torch.int64, device=device)
        self._prior = torch.tensor([_PRIOR_HITS, _PRIOR_TRIES], device=device)
        self._counts = self._prior.clone()  # [2, kinds]: hits and tries, fading

    def begin(self) -> None:
        """Forget the last request."""
        self.chain.fill_(-1)
        self._doubted.zero_()
        self._counts.copy_(self._prior)

    def find(self, text: Tensor, length: Tensor) -> None:
        """Judge the last chain by what the text [capacity] int64 became, then look for the next.

        ``length`` [] int64: tokens of the text. Of all places where its last tokens stood before,
        the one with the longest match is taken, and of those the latest.
        """
        self._judge(text, length)
        matches = self._matches(text, length)
        numbers = torch.arange(text.shape[0], device=text.device)
        ranks = matches * text.shape[0] + numbers
        best = ranks.argmax()
        kind = matches.index_select(0, best[None])[0] - SHORTEST
        places = best + 1 + self._offsets
        inside = (places < length) & (kind >= 0)
        tokens = text.index_select(0, places.clamp(max=text.shape[0] - 1))
        self.chain.copy_(torch.where(inside, tokens, -1))
        self._doubted.zero_()
        self._start.copy_(length)
        self._kind.copy_(kind.clamp(min=0))

    def joined(
        self, chances: Tensor, tokens: Tensor, is_on_chain: Tensor, level: int
    ) -> tuple[Tensor, Tensor]:
        """The best guesses of ``level`` [n, K], best first, with the chain's token among them.

        ``is_on_chain`` [n] bool: rows whose path is the chain's first ``level`` tokens. There the
        token has at least the chance that doubted copies proved to have; a row that did not think
        of it gives up its last guess.
        """
        token = self.chain[level]
        is_doubted = is_on_chain & (tokens[:, 0] != token) & (token >= 0)
        self._doubted[level] = is_doubted.any()
        is_there = tokens == token
        is_last = torch.arange(tokens.shape[1], device=tokens.device) == tokens.shape[1] - 1
        place = is_there | (~is_there.any(dim=1, keepdim=True) & is_last)
        chance = self.chance.to(chances.dtype)
        place &= is_doubted[:, None] & (is_there | (chances < chance))
        tokens = torch.where(place, token, tokens)
        return torch.where(place, chances.clamp(min=chance), chances), tokens

    @property
    def chance(self) -> Tensor:
        """That a token of the chain is right though the draft doubts it, [] float32."""
        hits, tries = self._counts.index_select(1, self._kind[None])[:, 0]
        chance: Tensor = hits / tries
        return chance

    def continues(self, is_on_chain: Tensor, tokens: Tensor, level: int) -> Tensor:
        """Which of ``tokens`` [n] int64 at ``level``, under rows that are on the chain or not
        [n] bool, are on it themselves."""
        return is_on_chain & (tokens == self.chain[level]) & (tokens >= 0)

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
        places = self._start + self._offsets
        known = (places < length) & (self.chain >= 0)
        came = text.index_select(0, places.clamp(max=text.shape[0] - 1)) == self.chain
        is_hit = (came & known).to(torch.int64).cumprod(dim=0)
        is_tried = torch.cat([torch.ones_like(is_hit[:1]), is_hit[:-1]]) * known
        hits, tries = (is_hit * self._doubted).sum(), (is_tried * self._doubted).sum()
        counts = self._counts.index_select(1, self._kind[None])
        news = torch.stack([hits, tries]).to(counts.dtype)[:, None]
        prior = self._prior.index_select(1, self._kind[None])
        # Towards the prior, so that a chance is never nought or one.
        faded = torch.where(tries > 0, prior + _FADING * (counts - prior) + news, counts)
        self._counts.index_copy_(1, self._kind[None], faded)
