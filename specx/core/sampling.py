"""From logits to tokens, with noise that depends only on (seed, output position): the same seed
gives the same text in every mode (Gumbel-max: argmax of filtered logits + noise), and the walk
over the tree needs no draft probabilities. Filters in the usual order: repetition penalty (Keskar
et al., CTRL), temperature, top-k, top-p (Holtzman et al.), min-p (Nguyen et al.)."""

import torch
from torch import Tensor

from specx.core.config import SamplingConfig

# Multipliers of the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) as signed int64.
_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN = -0x61C8864680B583EB
_COLDEST = 1e-30  # its reciprocal is still a float32


class Sampler:
    """Pure in (seed, position): no state moves between calls."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config

    @property
    def is_greedy(self) -> bool:
        """Whether the token is the plain argmax of the (penalised) logits."""
        return self.config.temperature == 0.0

    def __call__(self, logits: Tensor, positions: Tensor, seen: Tensor | None = None) -> Tensor:
        """One token a row: logits [n, V], positions [n] int64 → [n] int64.

        ``seen`` [n, V] bool marks tokens that the repetition penalty applies to (row = the text up
        to that node); only read when a penalty is set.
        """
        if self.is_greedy and self.config.repetition_penalty == 1.0:
            return logits.argmax(dim=-1)
        return self.scores(logits, positions, seen).argmax(dim=-1)

    def scores(self, logits: Tensor, positions: Tensor, seen: Tensor | None = None) -> Tensor:
        """Penalised, filtered, perturbed logits [n, V] in float32, whose argmax is the sample."""
        scores = logits.float()
        if seen is not None and self.config.repetition_penalty != 1.0:
            penalty = self.config.repetition_penalty
            punished = torch.where(scores > 0, scores / penalty, scores * penalty)
            scores = torch.where(seen, punished, scores)
        if self.is_greedy:
            return scores
        # Against the largest, so that no temperature, however small, overflows.
        scores = scores - scores.amax(dim=-1, keepdim=True)
        scores = self._filter(scores / max(self.config.temperature, _COLDEST))
        return scores + gumbel_noise(self.config.seed, positions, scores.shape[-1])

    def _filter(self, scores: Tensor) -> Tensor:
        config, lowest = self.config, float("-inf")
        if 0 < config.top_k < scores.shape[-1]:
            kth = scores.topk(config.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < kth, lowest)
        if config.top_p < 1.0:
            ordered, index = scores.sort(dim=-1, descending=True, stable=True)
            probabilities = ordered.softmax(dim=-1)
            # A token stays while the mass before it is below top_p: the first always stays.
            drop = probabilities.cumsum(dim=-1) - probabilities >= config.top_p
            scores = scores.masked_fill(drop.gather(-1, index.argsort(dim=-1)), lowest)
        if config.min_p > 0.0:
            probabilities = scores.softmax(dim=-1)
            weakest = config.min_p * probabilities.amax(dim=-1, keepdim=True)
            scores = scores.masked_fill(probabilities < weakest, lowest)
        return scores


def gumbel_noise(seed: int, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [n, vocabulary] float32, a pure function of (seed, position, token).

    A counter-based hash in integer arithmetic, so every device and every row count draws the same
    numbers. On a CPU, rows with equal positions are computed once.
    """
    inverse = None
    if positions.device.type == "cpu":  # elsewhere it would wait for the device
        positions, inverse = torch.unique(positions, return_inverse=True)
    tokens = torch.arange(vocabulary, device=positions.device)
    stream = _mix(_mix(positions + _GOLDEN) ^ _signed(seed))
    bits = _mix(stream[:, None] + _GOLDEN * (tokens + 1)[None, :])
    # 23 bits and a half are exact in float32, so the number is never 0 or 1.
    uniform = (((bits >> 41) & 0x7FFFFF).float() + 0.5) * 2.0**-23
    noise = -torch.log(-torch.log(uniform))
    return noise if inverse is None else noise[inverse]


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _MIX[0]
    value = (value ^ _shift(value, 27)) * _MIX[1]
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
