"""The frequencies of a rotation, in float32, and how each published stretch changes them: RoFormer
(arXiv 2104.09864); position interpolation (2306.15595) for ``linear``; YaRN (2309.00071); Meta's
reference code of Llama 3.1 for ``llama3``; operations in the order of checkpoints' training."""

import math

import torch
from torch import Tensor

from specx.core.architecture import Rope


def inverse_frequencies(rope: Rope, width: int) -> Tensor:
    """Radians per position of each pair of a head of ``width``: [width / 2] float32."""
    power = torch.arange(0, width, 2, dtype=torch.float32) / width
    wavelengths = rope.base**power
    plain = 1.0 / wavelengths
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain, 1.0 / (rope.factor * wavelengths))
    return plain


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Turns that are long against the training's length are slowed, short ones kept, and those
    between are mixed by how often they fit into it."""
    turns = rope.original_positions / (2 * math.pi / plain)
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    kept = (turns - low) / (high - low)
    mixed = (1 - kept) * plain / rope.factor + kept * plain
    return torch.where(turns < low, plain / rope.factor, torch.where(turns > high, plain, mixed))


def _yarn(rope: Rope, plain: Tensor, slowed: Tensor) -> Tensor:
    """Pairs that turn often within the training's length are kept, rare ones slowed, with a
    ramp between them."""
    width = 2 * plain.shape[0]

    def pair_of(turns: float) -> float:
        length = rope.original_positions / (turns * 2 * math.pi)
        return width * math.log(length) / (2 * math.log(rope.base))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.rounds_range:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0.0
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept = 1 - ramp
    return slowed * (1 - kept) + plain * kept
