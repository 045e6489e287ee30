"""Sampling: filters against naive references, noise that is a pure function, honest frequencies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specx.core.config import SamplingConfig
from specx.core.sampling import Sampler, gumbel_noise

_HUGE = 2**63 - 1
CONFIGS = [
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.3),
    SamplingConfig(temperature=2.5, top_k=5),
    SamplingConfig(temperature=0.8, top_p=0.7),
    SamplingConfig(temperature=1.3, min_p=0.1),
    SamplingConfig(temperature=0.9, top_k=12, top_p=0.9, min_p=0.03, repetition_penalty=1.3),
    SamplingConfig(temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=0.8),
]


def _logits(rows: int, vocabulary: int = 50, seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def _seen(rows: int, vocabulary: int = 50) -> Tensor:
    return torch.rand(rows, vocabulary, generator=torch.Generator().manual_seed(9)) < 0.3


def _filtered(config: SamplingConfig, logits: Tensor, seen: Tensor | None = None) -> Tensor:
    """Log-probabilities before the noise, with −inf where a filter removed a token."""
    positions = torch.arange(logits.shape[0])
    scores = Sampler(config).scores(logits, positions, seen)
    return (scores - gumbel_noise(config.seed, positions, logits.shape[1])).log_softmax(dim=-1)


def _naive(config: SamplingConfig, row: list[float], seen: list[bool]) -> list[float]:
    """One row of filtered scores by the definitions, in Python floats."""
    punished = [
        (score / config.repetition_penalty if score > 0 else score * config.repetition_penalty)
        if was_seen
        else score
        for score, was_seen in zip(row, seen, strict=True)
    ]
    scores = [score / config.temperature for score in punished]
    if config.top_k:
        allowed = sorted(range(len(scores)), key=lambda i: -scores[i])[: config.top_k]
        scores = [s if i in allowed else -math.inf for i, s in enumerate(scores)]
    if config.top_p < 1.0:
        mass, nucleus = 0.0, []
        chances = _softmax(scores)
        for token in sorted(range(len(scores)), key=lambda i: -scores[i]):
            if mass < config.top_p:
                nucleus.append(token)
            mass += chances[token]
        scores = [s if i in nucleus else -math.inf for i, s in enumerate(scores)]
    if config.min_p > 0.0:
        chances = _softmax(scores)
        floor = config.min_p * max(chances)
        scores = [s if c >= floor else -math.inf for s, c in zip(scores, chances, strict=True)]
    return scores


def _softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def _hugging_face(config: SamplingConfig, logits: Tensor, seen: Tensor) -> Tensor:
    """The same filters by transformers' own processors, in the order of ``generate``."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(config.temperature)]
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        warpers.append(TopPLogitsWarper(config.top_p))
    if config.min_p > 0.0:
        warpers.append(MinPLogitsWarper(config.min_p))
    penalty = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
    rows = []
    for row, row_seen in zip(logits.split(1), seen, strict=True):
        text = row_seen.nonzero().T
        scores = penalty(text, row.clone()) if text.shape[1] else row
        for warper in warpers:
            scores = warper(text, scores)
        rows.append(scores[0])
    return torch.stack(rows)


def _assert_same(got: Tensor, scores: Tensor) -> None:
    """Scores count up to a constant: only their differences decide."""
    torch.testing.assert_close(got, scores.log_softmax(dim=-1), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_filters_are_the_naive_definitions(config: SamplingConfig) -> None:
    logits, seen = _logits(20), _seen(20)
    expected = [
        _naive(config, row, marks)
        for row, marks in zip(logits.double().tolist(), seen.tolist(), strict=True)
    ]
    _assert_same(_filtered(config, logits, seen), torch.tensor(expected))


@pytest.mark.parametrize("config", CONFIGS)
def test_filters_are_those_of_transformers(config: SamplingConfig) -> None:
    logits, seen = _logits(30, seed=4), _seen(30)
    expected = _hugging_face(config, logits, seen)
    _assert_same(_filtered(config, logits, seen), expected)


@settings(max_examples=60)
@given(
    st.integers(0, 60),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.99),
    st.floats(0.05, 5.0),
    st.integers(0, 1000),
)
def test_no_combination_of_filters_removes_the_best_token(
    top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = _logits(4, seed=seed)
    kept = _filtered(config, logits) > -math.inf
    assert kept.gather(1, logits.argmax(dim=1, keepdim=True)).all()
    tokens = Sampler(config)(logits, torch.arange(4))
    assert kept.gather(1, tokens[:, None]).all(), "a removed token was drawn"


def test_the_tightest_filters_leave_the_greedy_token() -> None:
    logits = _logits(40)
    for config in (
        SamplingConfig(temperature=1.0, top_k=1),
        SamplingConfig(temperature=1.0, top_p=1e-6),
        SamplingConfig(temperature=1.0, min_p=0.999999),
        SamplingConfig(temperature=1e-4),
    ):
        assert torch.equal(Sampler(config)(logits, torch.arange(40)), logits.argmax(dim=1))


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-20, 1e-38, 1e-45, 1e-60])
def test_the_smaller_the_temperature_the_greedier(temperature: float) -> None:
    """Regression: a logit divided by a temperature below 1e-37 is infinite in float32; several
    infinite scores tie, and a filter after them computes with NaN. 1e-60 itself is 0 there."""
    noise = torch.Generator().manual_seed(0)
    logits = torch.stack([torch.randperm(50, generator=noise) for _ in range(40)]).float()
    for config in (
        SamplingConfig(temperature=temperature),
        SamplingConfig(temperature=temperature, top_k=5, top_p=0.9, min_p=0.1),
    ):
        assert torch.equal(Sampler(config)(logits, torch.arange(40)), logits.argmax(dim=1))


def test_a_top_k_beyond_the_vocabulary_filters_nothing() -> None:
    logits = _logits(3, vocabulary=8)
    for top_k in (8, 9, 1000):
        config = SamplingConfig(temperature=1.0, top_k=top_k)
        _assert_same(_filtered(config, logits), logits)


def test_greedy_is_the_argmax_and_ignores_positions_and_seed() -> None:
    logits = _logits(10)
    for seed in (0, 5, _HUGE):
        sampler = Sampler(SamplingConfig(seed=seed))
        assert sampler.is_greedy
        assert torch.equal(sampler(logits, torch.arange(10) * 7), logits.argmax(dim=1))


def test_greedy_takes_the_penalty_into_account() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0], [-1.0, -1.1, -9.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    sampler = Sampler(SamplingConfig(repetition_penalty=1.5))
    assert sampler(logits, torch.zeros(2, dtype=torch.int64), seen).tolist() == [1, 1]


def test_half_precision_logits_are_judged_in_float32() -> None:
    logits = _logits(6).bfloat16()
    config = CONFIGS[5]
    halves = Sampler(config).scores(logits, torch.arange(6), _seen(6))
    singles = Sampler(config).scores(logits.float(), torch.arange(6), _seen(6))
    assert halves.dtype == torch.float32
    assert torch.equal(halves, singles)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(0, _HUGE))
def test_noise_depends_on_seed_and_position_alone(positions: list[int], seed: int) -> None:
    """Row count, row order and repeated positions change nothing, to the last bit."""
    together = gumbel_noise(seed, torch.tensor(positions), 33)
    for row, position in zip(together, positions, strict=True):
        assert torch.equal(row, gumbel_noise(seed, torch.tensor([position]), 33)[0])


def test_a_draft_with_another_vocabulary_size_draws_the_same_noise() -> None:
    positions = torch.tensor([0, 5, 1_000_000])
    small, large = gumbel_noise(3, positions, 40), gumbel_noise(3, positions, 64)
    assert torch.equal(small, large[:, :40])


@settings(max_examples=40)
@given(st.permutations(range(8)), st.sampled_from(CONFIGS), st.integers(0, _HUGE))
def test_a_row_draws_the_same_token_alone_and_in_a_tree(
    order: list[int], config: SamplingConfig, seed: int
) -> None:
    config = SamplingConfig(config.temperature, config.top_k, config.top_p, config.min_p, 1.2, seed)
    logits, seen = _logits(8), _seen(8)
    positions = torch.tensor([3, 4, 4, 4, 5, 5, 5, 6])
    sampler = Sampler(config)
    tokens = sampler(logits[order], positions[order], seen[order])
    for token, row in zip(tokens.tolist(), order, strict=True):
        alone = sampler(logits[row : row + 1], positions[row : row + 1], seen[row : row + 1])
        assert alone.tolist() == [token]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**62 + 1, _HUGE])
def test_noise_is_finite_and_standard_gumbel(seed: int) -> None:
    """Kolmogorov–Smirnov on 200,000 draws. The bound 2.8/√n is crossed by honest noise with
    odds 2·exp(−2·2.8²) ≈ 3e-7; the draws are fixed, so it either holds for ever or never."""
    noise = gumbel_noise(seed, torch.arange(200), 1000)
    assert noise.dtype == torch.float32
    assert torch.isfinite(noise).all()
    ordered = torch.exp(-torch.exp(-noise.double())).flatten().sort().values
    ideal = (torch.arange(ordered.numel()) + 0.5) / ordered.numel()
    assert (ordered - ideal).abs().max() < 2.8 / math.sqrt(ordered.numel())


def test_neighbouring_seeds_positions_and_tokens_are_uncorrelated() -> None:
    """Correlations of 40,000 pairs; the bound of five standard errors has odds of 6e-7."""
    base = gumbel_noise(7, torch.arange(200), 200)
    others = [
        gumbel_noise(8, torch.arange(200), 200),  # next seed
        gumbel_noise(7, torch.arange(1, 201), 200),  # next position
        gumbel_noise(7, torch.arange(200), 201)[:, 1:],  # next token
        base.T,  # position and token exchanged
    ]
    for other in others:
        pair = torch.stack([base.flatten(), other.flatten()]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(base.numel())


def test_no_draw_is_infinite() -> None:
    """Regression: with 24 random bits, (bits + 0.5) rounds up to 2^24 in float32 once in 2^24
    draws. The uniform number was then 1, the noise +inf: that token won whatever its logit, and
    where a filter had removed it, −inf + inf = NaN won too. At 128K tokens a position that was one
    position in 130; in the pocket vocabulary it hits seed 0 at output position 458."""
    for position, token in ((458, 6681), (826, 7267), (3531, 2251)):
        noise = gumbel_noise(0, torch.tensor([position]), 8192)[0]
        assert torch.isfinite(noise).all(), f"token {token} at position {position}"


def test_a_removed_token_never_wins_at_an_extreme_draw() -> None:
    """The same draw as above, seen by a user: top-k 1 must be the greedy token everywhere."""
    logits = torch.zeros(1, 8192)
    logits[0, 17] = 30.0
    sampler = Sampler(SamplingConfig(temperature=1.0, top_k=1, seed=0))
    assert sampler(logits, torch.tensor([458])).tolist() == [17]


@pytest.mark.parametrize("seed", [0, 11, _HUGE])
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2], CONFIGS[3]])
def test_frequencies_are_the_softmax_of_the_filtered_logits(
    config: SamplingConfig, seed: int
) -> None:
    """Pearson's χ² over 20,000 positions and at most 10 tokens (9 degrees of freedom). Above 52
    an honest sampler lands with odds of 5e-8; the draws are fixed, so there is no flicker."""
    count = 20_000
    config = SamplingConfig(config.temperature, config.top_k, config.top_p, seed=seed)
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -1.5, 1.4, 0.9]])
    expected = _filtered(config, logits)[0].double().softmax(dim=0) * count
    rows = logits.expand(count, -1)
    drawn = Sampler(config)(rows, torch.arange(count)).bincount(minlength=10)
    assert (drawn[expected == 0] == 0).all()
    alive = expected > 0
    assert float(((drawn - expected) ** 2 / expected)[alive].sum()) < 52.0


def test_consecutive_draws_are_independent() -> None:
    """χ² on 16 kinds of consecutive pairs (15 degrees of freedom); odds above 65: 3e-8."""
    count = 20_000
    drawn = Sampler(SamplingConfig(temperature=1.0))(torch.zeros(count, 4), torch.arange(count))
    pairs = (drawn[:-1:2] * 4 + drawn[1::2]).bincount(minlength=16).double()
    expected = count / 2 / 16
    assert float(((pairs - expected) ** 2 / expected).sum()) < 65.0


def test_seeds_beyond_the_range_are_refused() -> None:
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="seed"):
            SamplingConfig(seed=seed)
