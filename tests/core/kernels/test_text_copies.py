"""The kernels of copied guesses, against torch and against plain Python."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.drafts.copies import Copies
from specx.core.kernels import is_available
from specx.core.kernels.types import LONGEST, WIDTH
from tests.core.drafts.test_copies import FOUND, drive, text_of

pytestmark = pytest.mark.skipif(not is_available(), reason="needs Triton")

_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_BLOCK = 1024  # places that a program compares


def _pair(depth: int = 10) -> tuple[Copies, Copies]:
    """Kernels and torch, over chunks of 32 tokens that are attended to somehow."""
    fused, plain = (
        Copies(depth, _DEVICE, fused=is_fused, chunks=100, chunk_tokens=32)
        for is_fused in (True, False)
    )
    _begin((fused, plain))
    return fused, plain


def _begin(pair: tuple[Copies, Copies]) -> None:
    """A new request, that attends somewhere."""
    noise = torch.Generator().manual_seed(1)
    attention = torch.rand(100, generator=noise).pow(8).to(_DEVICE)
    for copies in pair:
        copies.begin()
        copies.attend(attention)


def _assert_equal(fused: Copies, plain: Copies) -> None:
    """To the last bit."""
    assert torch.equal(fused.chain, plain.chain)
    assert torch.equal(fused.chance, plain.chance)


def _find(pair: tuple[Copies, Copies], tokens: torch.Tensor, length: int) -> None:
    for copies in pair:
        copies.find(tokens, torch.tensor(length, device=_DEVICE))
    _assert_equal(*pair)


def _level(seed: int, rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    chances = torch.rand(rows, 10, generator=noise).pow(4).sort(dim=1, descending=True).values
    tokens = torch.rand(rows, vocabulary, generator=noise).argsort(dim=1)[:, :10]
    return chances.to(_DEVICE), tokens.to(_DEVICE)


def _draft(pair: tuple[Copies, Copies], seed: int, vocabulary: int, levels: int) -> None:
    """A beam whose first row of each level follows the chain, the others what they like."""
    noise = torch.Generator().manual_seed(seed)
    for level in range(levels):
        chances, tokens = _level(seed + level, WIDTH if level else 1, vocabulary)
        frontier = parents = None
        if level:
            frontier = torch.randint(vocabulary, (WIDTH,), generator=noise).to(_DEVICE)
            frontier[0] = pair[1].chain[level - 1]
        if level > 1:
            parents = torch.randint(WIDTH, (WIDTH,), generator=noise).to(_DEVICE)
            parents[:2] = 0
            parents += (level - 2) * WIDTH
        got, want = (copies.joined(chances, tokens, level, frontier, parents) for copies in pair)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@settings(max_examples=4)
@given(seed=st.integers(0, 1 << 30), vocabulary=st.sampled_from([2, 3, 5, 12]))
def test_requests_go_as_the_docstrings_say(seed: int, vocabulary: int) -> None:
    drive(seed, vocabulary, fused=True, device=_DEVICE)


@pytest.mark.parametrize("name", FOUND)
def test_the_same_match_is_continued(name: str) -> None:
    text, chain = FOUND[name]
    for spare in (0, 1, 5):
        copies = Copies(6, _DEVICE, fused=True)
        copies.find(*text_of(text, spare, _DEVICE))
        assert copies.chain.tolist() == chain + [-1] * (6 - len(chain))


@settings(max_examples=6)
@given(
    seed=st.integers(0, 1 << 30),
    capacity=st.integers(LONGEST, 3 * _BLOCK + 5),
    vocabulary=st.sampled_from([2, 12, 40]),
)
def test_texts_of_many_blocks_are_what_torch_makes_of_them(
    seed: int, capacity: int, vocabulary: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    text = torch.randint(vocabulary, (capacity,), generator=noise).to(_DEVICE)
    pair = _pair()
    length = max(1, capacity - 40)
    for step in range(4):
        _find(pair, text, length)
        _draft(pair, seed + step, 12, levels=5)
        length = min(capacity, length + 1 + step)
        # Along the chain for a while, so that there is something to learn.
        end = min(capacity, length)
        text[end - 1 - step : end - 1] = pair[1].chain[:step]
    _find(pair, text, length)


def test_a_chain_that_nobody_doubted_teaches_nothing() -> None:
    """The text goes along every chain, but only the second one comes after a draft."""
    text = torch.tensor([1, 2, 8, 9, 7] * 12, device=_DEVICE)
    pair = _pair()
    _find(pair, text, 30)
    before = pair[0].chance.clone()
    _draft(pair, seed=2, vocabulary=12, levels=5)
    _find(pair, text, 35)
    learnt = pair[0].chance.clone()
    assert not torch.equal(learnt, before)
    _find(pair, text, 40)
    _find(pair, text, 45)
    assert torch.equal(pair[0].chance, learnt)


@pytest.mark.parametrize("place", [1, 4, _BLOCK - 1, _BLOCK, _BLOCK + 3, 2 * _BLOCK + 1])
def test_a_match_over_the_edge_of_a_block(place: int) -> None:
    """Everything else differs; what was a match stands behind the end, too."""
    text = torch.arange(2 * _BLOCK + 90, device=_DEVICE) + 100
    length = text.shape[0] - 20
    last = torch.arange(LONGEST, device=_DEVICE)
    begin = max(0, place + 1 - LONGEST)
    text[begin : place + 1] = last[begin - place - 1 :]
    text[length - LONGEST : length] = last
    text[length + 3 : length + 3 + LONGEST] = last
    pair = _pair()
    _find(pair, text, length)
    assert pair[0].chain.tolist() == text[place + 1 : place + 11].tolist()


def test_nothing_before_the_text_is_read() -> None:
    """There, the first pair's match would go on and be the longest."""
    memory = torch.tensor([3, 4, 0, 1, 2, 8, 1, 2, 9, 3, 4, 0, 1, 2], device=_DEVICE)
    pair = _pair()
    _find(pair, memory[3:], 11)
    assert pair[0].chain[0] == 9


def test_a_run_of_one_token_matches_everywhere() -> None:
    text = torch.full((2 * _BLOCK,), 7, device=_DEVICE)
    for length in (1, 2, 3, 6, _BLOCK, _BLOCK + 1, 2 * _BLOCK):
        pair = _pair()
        _find(pair, text, length)
        assert pair[0].chain[0] == (7 if length > 2 else -1)


def test_impossible_and_undefined_chances_are_torchs() -> None:
    """A draft's filters leave chances of 0; NaN must not turn into a guess."""
    text = torch.tensor([1, 2, 8, 1, 2], device=_DEVICE)
    rows = [[0.5, 0.0, 0.0], [0.9, torch.nan, 0.1], [torch.nan] * 3, [0.5, 0.3, 0.25]]
    tokens = [[3, 8, 4], [3, 8, 4], [3, 4, 5], [8, 3, 4]]
    for row, ids in zip(rows, tokens, strict=True):
        pair = _pair()
        _find(pair, text, 5)
        chances = torch.tensor([row], device=_DEVICE)
        guesses = torch.tensor([ids], device=_DEVICE)
        got, want = (copies.joined(chances, guesses, 0) for copies in pair)
        assert torch.equal(got[1], want[1])
        torch.testing.assert_close(got[0], want[0], rtol=0.0, atol=0.0, equal_nan=True)
        assert torch.equal(chances[0, :2].isnan(), torch.tensor(row[:2], device=_DEVICE).isnan())


def _captured(function: Callable[[], None]) -> Callable[[], None]:
    """``function`` as a CUDA graph, after one call that compiles."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capacity", [16385, 131072])
def test_a_graph_over_a_long_text(capacity: int) -> None:
    """One recording serves every length, and is what torch does without one.

    Once only the kernels' side forgot the request that warmed up, and with it what it attended to.
    """
    noise = torch.Generator().manual_seed(capacity)
    text = torch.randint(12, (capacity,), generator=noise).to(_DEVICE)
    length = torch.tensor(100, device=_DEVICE)
    fused, plain = _pair()
    chances, tokens = _level(3, 1, 12)
    joined: list[torch.Tensor] = []

    def step() -> None:
        fused.find(text, length)
        joined[:] = fused.joined(chances, tokens, 0)

    replay = _captured(step)
    _begin((fused, plain))
    for now in (1000, 1001, 1002, 5000, capacity - 9, capacity):
        length.fill_(now)
        replay()
        plain.find(text, length)
        want = plain.joined(chances, tokens, 0)
        _assert_equal(fused, plain)
        assert plain.chain[0] >= 0
        assert all(torch.equal(a, b) for a, b in zip(joined, want, strict=True))
