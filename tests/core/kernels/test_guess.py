"""The kernels of a growing tree: best guesses against float64, the beam against the host."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.drafts.tree_beam import Beam
from specx.core.kernels import is_available
from specx.core.kernels.guess import best_guesses
from specx.core.kernels.types import CHILDREN
from tests.core.drafts.test_tree_beam import assert_same, draft, grow_on_device, grow_on_host

pytestmark = pytest.mark.skipif(not is_available(), reason="needs Triton")

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _scores(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, columns, generator=noise)).to(dtype).to(_DEVICE)


def _assert_best(scores: torch.Tensor, vocabulary: int, children: int) -> None:
    chances, tokens = best_guesses(scores, vocabulary, children)
    assert (chances.dtype, tokens.dtype) == (torch.float32, torch.int64)
    exact = scores[:, :vocabulary].double()
    want = exact.sort(dim=-1, descending=True, stable=True).indices[:, :children]
    assert torch.equal(tokens, want)
    probabilities = exact.softmax(dim=-1).gather(1, want)
    torch.testing.assert_close(chances.double(), probabilities, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "columns", "vocabulary"), [(1, 11, 10), (3, 1000, 1000), (10, 3100, 3001)]
)
def test_guesses_are_the_best_of_float64(
    dtype: torch.dtype, rows: int, columns: int, vocabulary: int
) -> None:
    """Half precision has many ties: of equal scores the lower token comes first."""
    _assert_best(_scores(rows, columns, dtype), vocabulary, 10)


def test_guesses_of_a_large_vocabulary_and_of_strided_rows() -> None:
    wide = _scores(2, 70000, torch.float16)
    _assert_best(wide, 70000, 10)
    _assert_best(wide[:, 7:], 69990, 3)


def test_columns_beyond_the_vocabulary_are_not_guessed() -> None:
    scores = _scores(2, 64, torch.float32)
    scores[:, 50:] = torch.nan
    _assert_best(scores, 50, 10)
    _assert_best(scores, 4, 4)


def test_impossible_tokens_have_probability_zero() -> None:
    """Filters leave −inf: whole blocks of it, and fewer possible tokens than guesses."""
    scores = _scores(3, 2500, torch.float32)
    scores[0, 3:] = -torch.inf
    scores[1, :2400] = -torch.inf
    scores[2] = -torch.inf
    scores[2, 1200] = 1e30
    _assert_best(scores, 2500, 10)


def test_large_and_signed_scores_keep_their_order() -> None:
    scores = torch.tensor([[-1e30, -1.0, -1e-30, 0.0, 1e-30, 1.0, 80.0, 80.5]], device=_DEVICE)
    _assert_best(scores, 8, 8)
    _assert_best(-scores, 8, 8)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 1 << 30),
    levels=st.integers(1, 5),
    rows=st.sampled_from([1, 2, 17, 51, 150]),
    children=st.sampled_from([10, 10, 4, 1]),
    sharpness=st.floats(0.5, 6.0),
    threshold=st.none() | st.floats(0.01, 1.0),
)
def test_the_tree_is_the_hosts(
    seed: int, levels: int, rows: int, children: int, sharpness: float, threshold: float | None
) -> None:
    guesses = draft(seed, children, sharpness)
    beam = Beam(levels, _DEVICE, children, fused=True)
    grow_on_device(beam, guesses, levels, _DEVICE)
    host = grow_on_host(guesses, levels, rows - 1, threshold)
    assert_same(beam.tree(rows, threshold), host, rows)


def test_one_growth_gives_trees_of_any_size_threshold_and_of_fewer_levels() -> None:
    guesses = draft(5, CHILDREN, 2.5)
    beam = Beam(6, _DEVICE, fused=True)
    grow_on_device(beam, guesses, 6, _DEVICE)
    for rows, threshold in ((9, 0.2), (33, 0.3), (65, 0.1), (40, None)):
        host = grow_on_host(guesses, 6, rows - 1, threshold)
        assert_same(beam.tree(rows, threshold), host, rows)
        shallow = grow_on_host(guesses, 3, rows - 1, threshold)
        assert_same(beam.tree(rows, threshold, levels=3), shallow, rows)


def test_impossible_guesses_are_padding_and_ties_are_broken_by_age() -> None:
    guesses = draft(4, CHILDREN, 1.0, kept=2)
    beam = Beam(3, _DEVICE, fused=True)
    grow_on_device(beam, guesses, 3, _DEVICE)
    assert_same(beam.tree(51), grow_on_host(guesses, 3, 14, None), 51)

    def even(path: tuple[int, ...]) -> tuple[list[float], list[int]]:
        return [0.25] * 4, [1, 2, 3, 4]

    beam = Beam(3, _DEVICE, 4, fused=True)
    grow_on_device(beam, even, 3, _DEVICE)
    for rows in (8, 40):
        assert_same(beam.tree(rows), grow_on_host(even, 3, rows - 1, None), rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 10, 50])
@pytest.mark.parametrize("vocabulary", [8192, 32000, 128256, 152064])
def test_guesses_of_real_vocabularies(rows: int, vocabulary: int) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        _assert_best(_scores(rows, vocabulary, dtype), vocabulary, 10)
        _assert_best(_scores(rows, vocabulary, dtype), vocabulary - 265, 10)
