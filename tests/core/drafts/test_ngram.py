"""Prompt lookup: every guess is a copy of what followed the same words before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.config import TreeConfig
from specx.core.drafts.growth import StepCosts
from specx.core.drafts.ngram import LookupDrafter
from specx.core.retrieval import Selection
from specx.core.tree import TokenTree
from tests.core import reference

_NOTHING = torch.empty(0)


def _fixed(nodes: int = 32, depth: int = 8) -> TreeConfig:
    return TreeConfig(nodes=nodes, depth=depth, size="fixed")


def _drafter(text: list[int], config: TreeConfig | None = None) -> LookupDrafter:
    drafter = LookupDrafter(config or _fixed())
    drafter.prefill(torch.tensor(text[:-1]), _NOTHING)
    drafter.extend(text[-1:])
    return drafter


def _paths(tree: TokenTree) -> list[list[int]]:
    """Tokens below the root, for every node but the root."""
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    return [
        [tokens[step] for step in reference.ancestors(parents, node)[1:]]
        for node in range(1, tree.size)
    ]


@settings(max_examples=150)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 8))
def test_every_guess_is_a_copy_of_an_earlier_continuation(
    text: list[int], nodes: int, depth: int
) -> None:
    tree = _drafter(text, _fixed(nodes, depth)).draft()
    starts = [start for start in range(1, len(text)) if text[start - 1] == text[-1]]
    assert int(tree.tokens[0]) == text[-1]
    assert tree.size <= nodes + 1
    assert int(tree.depths.max()) <= depth
    assert (tree.size > 1) == bool(starts), "a word that stood here before gives a guess"
    paths = _paths(tree)
    assert len({tuple(path) for path in paths}) == len(paths), "siblings differ"
    for path in paths:
        assert any(text[start : start + len(path)] == path for start in starts)


@settings(max_examples=150)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=60))
def test_the_first_guess_continues_the_longest_and_latest_match(text: list[int]) -> None:
    tree = _drafter(text, _fixed(nodes=1)).draft()
    for size in (4, 3, 2, 1):
        matches = [end for end in range(size, len(text)) if text[end - size : end] == text[-size:]]
        if matches:
            assert tree.tokens.tolist()[1:] == [text[matches[-1]]]
            return
    assert tree.size == 1


def test_a_repeated_sentence_is_copied_to_the_full_depth() -> None:
    sentence = list(range(20))
    tree = _drafter([*sentence, 50, 51, *sentence[:5]], _fixed(nodes=8, depth=8)).draft()
    assert max(_paths(tree), key=len) == sentence[5:13]


def test_several_continuations_share_one_tree() -> None:
    """ "1 2 3" was followed by 4 5, by 4 6 and by 7: one node for the shared 4."""
    text = [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 6, 0, 1, 2, 3, 7, 0, 1, 2, 3]
    paths = _paths(_drafter(text, _fixed(nodes=64, depth=2)).draft())
    assert {(4,), (4, 5), (4, 6), (7,), (7, 0)} == {tuple(path) for path in paths}


def test_a_first_word_gives_no_guess() -> None:
    assert _drafter([5]).draft().size == 1
    assert _drafter([1, 2, 3, 4]).draft().size == 1


def test_words_arriving_one_by_one_are_the_words_arriving_at_once() -> None:
    text = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    slowly = LookupDrafter(_fixed())
    slowly.prefill(torch.tensor(text[:10]), _NOTHING)
    slowly.prefill(torch.tensor(text[10:30]), _NOTHING)
    for token in text[30:50]:
        slowly.extend([token])
        slowly.draft()
    slowly.extend(text[50:])
    ours, theirs = slowly.draft(), _drafter(text).draft()
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.parents, theirs.parents)


@pytest.mark.parametrize(("row_s", "guesses"), [(0.0, 8), (10.0, 0)])
def test_measured_costs_decide_how_many_guesses_are_worth_verifying(
    row_s: float, guesses: int
) -> None:
    config = TreeConfig(nodes=8, depth=8, size="measured")
    costs = StepCosts({1: 1.0, 2: 1.0 + row_s})
    drafter = LookupDrafter(config)
    drafter.prefill(torch.tensor([*range(20), *range(4)]), _NOTHING)
    drafter.begin(costs)
    drafter.extend([4])
    assert drafter.draft().size == 1 + guesses


def test_it_holds_no_keys_and_ignores_a_refocus() -> None:
    drafter = _drafter([1, 2, 1])
    zero = torch.zeros(1)
    drafter.refocus(Selection(zero.long(), torch.tensor(1), zero.long(), zero))
    assert drafter.draft().tokens.tolist() == [1, 2, 1]
    assert (drafter.cache_bytes, drafter.context_tokens) == (0, 0)
