"""The tree: masks against brute force, acceptance against a walk, growth on the host."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specx.core.tree import TokenTree, TreeBuilder
from tests.core import reference

_TOKENS = 5  # a vocabulary so small that guesses often agree with the samples
Nodes = tuple[list[int], list[int]]


@st.composite
def trees(draw: st.DrawFn) -> Nodes:
    """Tokens and parents of a tree in which siblings differ; parents come first."""
    tokens, parents = [draw(st.integers(0, _TOKENS - 1))], [0]
    for _ in range(draw(st.integers(0, 20))):
        parent = draw(st.integers(0, len(tokens) - 1))
        taken = {tokens[n] for n in range(1, len(tokens)) if parents[n] == parent}
        free = [token for token in range(_TOKENS) if token not in taken]
        if free:
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent)
    return tokens, parents


@st.composite
def builders(draw: st.DrawFn) -> TreeBuilder:
    """A builder after random guesses, some of them certain, impossible or rounded above one."""
    builder = TreeBuilder(draw(st.integers(0, 9)), draw(st.integers(1, 15)))
    chance = st.sampled_from([0.0, 1e-30, 0.1, 0.25, 0.5, 0.5, 0.9, 1.0, 1.0 + 1e-6])
    taken: set[tuple[int, int]] = set()
    size = 1
    for _ in range(draw(st.integers(0, 25))):
        parent, token = draw(st.integers(0, size - 1)), draw(st.integers(0, 9))
        if (parent, token) not in taken:
            taken.add((parent, token))
            assert builder.add(parent, token, draw(chance)) == size
            size += 1
    return builder


@settings(max_examples=200)
@given(trees())
def test_mask_and_depths_are_the_brute_force_ancestors(nodes: Nodes) -> None:
    tokens, parents = nodes
    tree = TokenTree.build(tokens, parents)
    assert tree.size == len(tokens)
    assert tree.tokens.tolist() == tokens
    assert tree.parents.tolist() == parents
    assert torch.equal(tree.mask, reference.mask(parents))
    assert tree.depths.tolist() == [
        len(reference.ancestors(parents, node)) - 1 for node in range(len(tokens))
    ]


@settings(max_examples=400)
@given(trees(), st.data())
def test_accept_is_the_naive_walk(nodes: Nodes, data: st.DataObject) -> None:
    tokens, parents = nodes
    samples = st.lists(st.integers(0, _TOKENS), min_size=len(tokens), max_size=len(tokens))
    sampled = data.draw(samples)
    path = TokenTree.build(tokens, parents).accept(torch.tensor(sampled))
    assert path.tolist() == reference.walk(tokens, parents, sampled)
    assert path.nodes.dtype == torch.int64


@settings(max_examples=100)
@given(trees(), st.data())
def test_accept_finds_any_path_that_the_target_takes(nodes: Nodes, data: st.DataObject) -> None:
    tokens, parents = nodes
    leaf = data.draw(st.integers(0, len(tokens) - 1))
    wanted = reference.ancestors(parents, leaf)
    sampled = [_TOKENS] * len(tokens)  # no guess carries this token
    for parent, child in itertools.pairwise(wanted):
        sampled[parent] = tokens[child]
    assert TokenTree.build(tokens, parents).accept(torch.tensor(sampled)).tolist() == wanted


def test_a_deep_agreement_below_a_wrong_guess_is_not_accepted() -> None:
    #  0 ─ 1 (wrong) ─ 2 ─ 3 (both agree)      0 ─ 4 (right)
    tree = TokenTree.build([9, 1, 2, 3, 4], [0, 0, 1, 2, 0])
    assert tree.accept(torch.tensor([4, 2, 3, 7, 8])).tolist() == [0, 4]


def test_the_root_is_accepted_whatever_it_carries() -> None:
    assert TokenTree.root_only(torch.tensor([7])).accept(torch.tensor([3])).tolist() == [0]


def test_plain_decoding_is_a_tree_of_one_node() -> None:
    tree = TokenTree.root_only(torch.tensor([7]))
    assert (tree.size, tree.tokens.tolist(), tree.depths.tolist()) == (1, [7], [0])
    assert tree.mask.tolist() == [[True]]


@pytest.mark.parametrize("parents", [[0, 1], [0, 2, 0], [0, -1], [0, 0, 2]])
def test_a_parent_that_does_not_precede_its_child_is_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="does not precede"):
        TokenTree.build([0] * len(parents), parents)


@settings(max_examples=200)
@given(builders())
def test_any_number_of_best_nodes_is_connected(builder: TreeBuilder) -> None:
    best = builder.best()
    for count in range(len(best) + 1):
        kept = set(best[:count])
        for node in kept:
            assert kept.issuperset(builder.ancestors(node))


@settings(max_examples=200)
@given(builders(), st.integers(0, 20))
def test_any_number_of_guesses_makes_a_valid_tree(builder: TreeBuilder, guesses: int) -> None:
    tree = builder.tree(guesses)
    kept = sorted(builder.best()[:guesses])
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    assert tree.size == 1 + len(kept)
    assert torch.equal(tree.mask, reference.mask(parents))
    guessed = list(zip(parents[1:], tokens[1:], strict=True))
    assert len(set(guessed)) == len(guessed), "two siblings carry the same token"
    for index, node in enumerate(kept, start=1):
        carried = [tokens[n] for n in reference.ancestors(parents, index)[1:]]
        assert carried == [builder.token(n) for n in builder.ancestors(node)]


@settings(max_examples=100)
@given(builders())
def test_best_is_sorted_limited_and_breaks_ties_by_age(builder: TreeBuilder) -> None:
    best = builder.best()
    ranks = [(-reach, node) for reach, node in zip(builder.reaches(best), best, strict=True)]
    assert ranks == sorted(ranks)
    assert 0 not in best
    assert all(0.0 <= reach <= 1.0 for reach in builder.reaches(best))
    assert builder.expected() == pytest.approx(1.0 + sum(builder.reaches(best)))


@settings(max_examples=100)
@given(builders(), st.integers(1, 4), st.integers(1, 5))
def test_the_frontier_is_the_best_of_one_depth(
    builder: TreeBuilder, depth: int, width: int
) -> None:
    frontier = builder.frontier(depth, width)
    there = [node for node in builder.best() if len(builder.ancestors(node)) == depth]
    assert frontier == there[:width]


@example([0.5, 0.5])
@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_reach_is_the_product_along_the_path(chances: list[float]) -> None:
    builder, node, product = TreeBuilder(0, 64), 0, 1.0
    for token, chance in enumerate(chances):
        node = builder.add(node, token, chance)
        product *= chance
        assert builder.reaches([node]) == [pytest.approx(product)]
    assert builder.ancestors(node) == list(range(1, len(chances) + 1))
    assert builder.ancestors(0) == []


def test_the_limit_keeps_the_most_probable_guesses() -> None:
    builder = TreeBuilder(0, 2)
    weak, strong, child = builder.add(0, 1, 0.2), builder.add(0, 2, 0.7), 0
    child = builder.add(strong, 3, 0.5)
    assert builder.best() == [strong, child]
    assert weak not in builder.best()
    assert builder.tree(9).tokens.tolist() == [0, 2, 3]
