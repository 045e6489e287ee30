"""The growing tree against lists; the same checks for its Triton kernels."""

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specx.core.drafts.tree_beam import Beam, best_guesses
from specx.core.kernels.types import CHILDREN, WIDTH
from specx.core.tree import TokenTree
from tests.core import reference
from tests.core.reference import PlainTree

_ROOT = 7
Path = tuple[int, ...]
Guesses = Callable[[Path], tuple[list[float], list[int]]]


def draft(seed: int, children: int, sharpness: float, kept: int = CHILDREN) -> Guesses:
    """A model that knows the best guesses after every path; all but ``kept`` are impossible."""

    def guesses(path: Path) -> tuple[list[float], list[int]]:
        source = random.Random(f"{seed} {path}")
        scores = torch.tensor([source.gauss(0.0, sharpness) for _ in range(children + 5)])
        scores[kept:] = -torch.inf
        chances = scores.softmax(dim=0).sort(descending=True).values[:children]
        return chances.tolist(), source.sample(range(50), children)

    return guesses


def grow_on_host(guesses: Guesses, levels: int, limit: int, threshold: float | None) -> PlainTree:
    """As long as a level adds ``threshold`` expected tokens; without one every level is made."""
    builder = PlainTree(_ROOT, limit)
    frontier, expected = [0], 1.0
    for depth in range(levels):
        if depth:
            gain, expected = builder.expected() - expected, builder.expected()
            stops = threshold is not None and gain < threshold
            frontier = [] if stops else builder.frontier(depth, WIDTH)
        if not frontier:
            break
        for node in frontier:
            path = tuple(builder.token(above) for above in builder.ancestors(node))
            for chance, token in zip(*guesses(path), strict=True):
                builder.add(node, token, chance)
    return builder


def grow_on_device(beam: Beam, guesses: Guesses, levels: int, device: str = "cpu") -> None:
    """Reads each frontier node's path back through the masks, as a draft model would see it."""
    chances, tokens = guesses(())
    root = torch.tensor([_ROOT], device=device)
    beam.add_root(
        root, torch.tensor([chances], device=device), torch.tensor([tokens], device=device)
    )
    staged: list[int] = []
    for level in range(1, levels):
        staged += beam.frontier(level - 1).tolist()
        every = [
            guesses(tuple(staged[column] for column in row.nonzero().flatten().tolist()))
            for row in beam.mask(level - 1)
        ]
        beam.add_level(
            level,
            torch.tensor([chances for chances, _ in every], device=device),
            torch.tensor([tokens for _, tokens in every], device=device),
        )


def assert_same(tree: TokenTree, builder: PlainTree, rows: int) -> None:
    """The same tree as the host's, padded to ``rows``."""
    want = builder.tree(rows - 1)
    size = want.size
    assert tree.tokens[:size].tolist() == want.tokens.tolist()
    assert tree.parents[:size].tolist() == want.parents.tolist()
    assert tree.depths[:size].tolist() == want.depths.tolist()
    assert torch.equal(tree.mask[:size, :size].cpu(), want.mask)
    assert tree.tokens[size:].tolist() == [-1] * (rows - size)
    assert tree.parents[size:].tolist() == tree.depths[size:].tolist() == [0] * (rows - size)
    outside = tree.mask.cpu() & ~torch.eye(rows, dtype=torch.bool)
    assert not outside[size:].any()
    assert not outside[:, size:].any()
    best = builder.best()[: rows - 1]
    chances = [1.0, *builder.reaches(sorted(best)), *[0.0] * (rows - size)]
    assert tree.reaches is not None
    torch.testing.assert_close(tree.reaches.cpu(), torch.tensor(chances), rtol=1e-5, atol=0.0)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 1 << 30),
    levels=st.integers(1, 9),
    rows=st.sampled_from([1, 2, 5, 17, 51, 150, 513]),
    children=st.sampled_from([10, 10, 10, 9, 4, 1]),
    sharpness=st.floats(0.5, 6.0),
    threshold=st.none() | st.floats(0.01, 1.0),
)
def test_the_tree_is_the_hosts(
    seed: int, levels: int, rows: int, children: int, sharpness: float, threshold: float | None
) -> None:
    guesses = draft(seed, children, sharpness)
    beam = Beam(levels, "cpu", children)
    grow_on_device(beam, guesses, levels)
    grown = beam.tree(rows, threshold)
    assert_same(grown, grow_on_host(guesses, levels, rows - 1, threshold), rows)


def test_a_tree_of_the_greatest_depth_is_the_hosts() -> None:
    guesses, levels = draft(3, CHILDREN, 9.0), 64
    beam = Beam(levels, "cpu")
    grow_on_device(beam, guesses, levels)
    assert int(beam.tree(513).depths.max()) > 20
    assert_same(beam.tree(513), grow_on_host(guesses, levels, 512, None), 513)


def test_one_growth_gives_trees_of_any_size_and_of_fewer_levels() -> None:
    guesses = draft(5, CHILDREN, 3.0)
    beam = Beam(6, "cpu")
    grow_on_device(beam, guesses, 6)
    for rows in (1, 2, 33, 65):
        assert_same(beam.tree(rows), grow_on_host(guesses, 6, rows - 1, None), rows)
        shallow = grow_on_host(guesses, 3, rows - 1, None)
        assert_same(beam.tree(rows, levels=3), shallow, rows)


def test_the_threshold_stops_at_every_level() -> None:
    """Thresholds just around each level's gain: the comparison and what counts as gain."""
    guesses, levels, rows = draft(11, CHILDREN, 2.5), 7, 21
    beam = Beam(levels, "cpu")
    grow_on_device(beam, guesses, levels)
    expected = [1.0] + [
        grow_on_host(guesses, depth, rows - 1, None).expected() for depth in range(1, levels + 1)
    ]
    gains = [later - earlier for earlier, later in itertools.pairwise(expected)]
    depths = set()
    for gain in gains:
        for threshold in (gain * 0.999, gain * 1.001):
            if threshold <= 1.0:
                host = grow_on_host(guesses, levels, rows - 1, threshold)
                assert_same(beam.tree(rows, threshold), host, rows)
                depths.add(len(host._tokens))
    assert len(depths) >= 4, "the thresholds stop at different levels"


def test_a_second_tree_owes_nothing_to_the_first() -> None:
    beam, fresh = Beam(5, "cpu"), Beam(5, "cpu")
    grow_on_device(beam, draft(1, CHILDREN, 1.0), 5)
    beam.tree(40)
    for used in (beam, fresh):
        grow_on_device(used, draft(2, CHILDREN, 2.0), 5)
    got, want = beam.tree(40, 0.2), fresh.tree(40, 0.2)
    assert torch.equal(got.tokens, want.tokens)
    assert torch.equal(got.mask, want.mask)
    assert torch.equal(beam.mask(4), fresh.mask(4))


def test_impossible_guesses_are_padding() -> None:
    """A filter (top-p) leaves two possible tokens a node: 2 + 4 + 8 guesses in three levels."""
    guesses = draft(4, CHILDREN, 1.0, kept=2)
    beam = Beam(3, "cpu")
    grow_on_device(beam, guesses, 3)
    grown = beam.tree(51)
    assert int((grown.tokens >= 0).sum()) == 1 + 2 + 4 + 8
    assert_same(grown, grow_on_host(guesses, 3, 14, None), 51)
    path = grown.accept(torch.full((51,), -1))
    assert path.tolist() == [0], "padding is never accepted"


def test_ties_are_broken_by_age() -> None:
    def even(path: Path) -> tuple[list[float], list[int]]:
        return [0.25] * 4, [1, 2, 3, 4]

    beam = Beam(3, "cpu", 4)
    grow_on_device(beam, even, 3)
    for rows in (3, 8, 13, 40):
        assert_same(beam.tree(rows), grow_on_host(even, 3, rows - 1, None), rows)


def test_masks_are_the_ancestors_of_a_valid_tree() -> None:
    beam = Beam(8, "cpu")
    grow_on_device(beam, draft(8, CHILDREN, 2.0), 8)
    tree = beam.tree(64)
    assert torch.equal(tree.mask, reference.mask(tree.parents.tolist()))
    built = TokenTree.build(tree.tokens.tolist(), tree.parents.tolist())
    assert torch.equal(tree.depths, built.depths)


def test_a_level_may_be_read_in_part() -> None:
    """As where a host reads only the nodes that are worth it: their guesses, their paths in the
    rows that were read, and nothing of an earlier tree's guesses under the others."""
    guesses = draft(9, CHILDREN, 2.0)
    beam, widths, staged = Beam(4, "cpu"), [3, 1, 2], list[int]()
    grow_on_device(beam, draft(1, CHILDREN, 1.0), 4)
    builder, frontier = PlainTree(_ROOT, 400), [0]
    root = torch.tensor([_ROOT])
    chances, tokens = guesses(())
    beam.add_root(root, torch.tensor([chances]), torch.tensor([tokens]))
    for level in range(4):
        if level:
            width = widths[level - 1]
            staged += beam.frontier(level - 1)[:width].tolist()
            mask = beam.mask(level - 1, widths[:level])
            assert mask.shape == (width, len(staged))
            paths = [tuple(staged[i] for i in row.nonzero()[:, 0].tolist()) for row in mask]
            every = [guesses(path) for path in paths]
            beam.add_level(
                level,
                torch.tensor([chances for chances, _ in every]),
                torch.tensor([tokens for _, tokens in every]),
            )
            frontier = builder.frontier(level, width)
        for node in frontier:
            path = tuple(builder.token(above) for above in builder.ancestors(node))
            for chance, token in zip(*guesses(path), strict=True):
                builder.add(node, token, chance)
        best = builder.best()
        assert beam.best(level + 1, 400) == pytest.approx(builder.reaches(best), rel=1e-5)
        frontier = builder.frontier(level + 1, WIDTH)
        assert beam.frontier_reaches(level) == pytest.approx(builder.reaches(frontier), rel=1e-5)
    assert_same(beam.tree(30), builder, 30)


def test_best_guesses_are_the_softmax_of_the_vocabulary() -> None:
    scores = torch.randn(4, 90, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    scores[2, 5:] = -torch.inf
    chances, tokens = best_guesses(scores, 80, 8)
    assert (chances.dtype, tokens.dtype) == (torch.float32, torch.int64)
    want = scores[:, :80].double().softmax(dim=-1).sort(descending=True).values[:, :8]
    torch.testing.assert_close(chances.double(), want, rtol=1e-5, atol=0.0)
    assert torch.equal(scores.gather(1, tokens), scores[:, :80].sort(descending=True).values[:, :8])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [False, True])
def test_growth_in_a_cuda_graph_is_the_hosts(fused: bool) -> None:
    levels, rows, vocabulary = 8, 51, 32000
    beam = Beam(levels, "cuda", fused=fused)
    noise = torch.Generator("cuda").manual_seed(0)
    scores = [
        3 * torch.randn(WIDTH if level else 1, vocabulary, device="cuda", generator=noise)
        for level in range(levels)
    ]
    root = torch.tensor([_ROOT], device="cuda")
    grow_from_scores(beam, scores, vocabulary, root)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grow_from_scores(beam, scores, vocabulary, root)
        grown = beam.tree(rows, 0.01)
    for _ in range(3):
        for score in scores:
            score.normal_(0.0, 3.0, generator=noise)
        graph.replay()
        other = Beam(levels, "cpu")
        grow_from_scores(other, [score.cpu() for score in scores], vocabulary, root.cpu())
        want = other.tree(rows, 0.01)
        assert torch.equal(grown.tokens.cpu(), want.tokens)
        assert torch.equal(grown.parents.cpu(), want.parents)
        assert torch.equal(grown.mask.cpu(), want.mask)
        assert torch.equal(grown.depths.cpu(), want.depths)


def grow_from_scores(beam: Beam, scores: list[Tensor], vocabulary: int, root: Tensor) -> None:
    """All levels of a tree whose scores do not depend on it."""
    is_fused = scores[0].is_cuda
    beam.add_root(root, *best_guesses(scores[0], vocabulary, beam.children, is_fused))
    for level in range(1, len(scores)):
        beam.add_level(level, *best_guesses(scores[level], vocabulary, beam.children, is_fused))
