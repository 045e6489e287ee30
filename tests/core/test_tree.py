"""The tree: masks against brute force, acceptance against a walk."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.tree import TokenTree
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
