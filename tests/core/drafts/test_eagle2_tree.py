"""EAGLE-2's expand-and-rerank tree (arXiv 2406.16858) is the fixed tree with a threshold of 0.

The reference below is written from the paper: expand the best K nodes of a level, K children
each, and at the end take the best of all candidates.
"""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specx.core.drafts.tree_beam import Beam
from specx.core.kernels.types import WIDTH

_WORDS = 40
Node = tuple[int, ...]  # the guesses that lead to it


def _chances(seed: int, path: Node) -> Tensor:
    """The draft's distribution behind ``path``: random, peaked now and then, never tied."""
    generator = torch.Generator().manual_seed(hash((seed, path)) & 0xFFFFFFFF)
    heat = 0.5 + 5 * float(torch.rand(1, generator=generator))
    return (torch.randn(_WORDS, generator=generator, dtype=torch.float64) * heat).softmax(0)


def _best(seed: int, path: Node) -> list[tuple[float, int]]:
    found = _chances(seed, path).topk(WIDTH)
    return list(zip(found.values.tolist(), found.indices.tolist(), strict=True))


def _reference(seed: int, total: int, depth: int) -> set[Node]:
    """``total`` nodes without the root, ``depth`` expansions behind the first level."""
    level = {(token,): math.log(chance) for chance, token in _best(seed, ())}
    candidates = dict(level)
    for _ in range(depth):
        beam = sorted(level, key=level.__getitem__, reverse=True)[:WIDTH]
        level = {
            (*node, token): level[node] + math.log(chance)
            for node in beam
            for chance, token in _best(seed, node)
        }
        candidates |= level
    return set(sorted(candidates, key=candidates.__getitem__, reverse=True)[:total])


def _paths(tokens: list[int], parents: list[int]) -> set[Node]:
    paths: list[Node] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        if token >= 0:
            paths.append((*paths[parent], token))
    return set(paths[1:])


def _grown(seed: int, total: int, depth: int) -> set[Node]:
    beam, paths = Beam(depth + 1, "cpu", WIDTH, fused=False), [()] * WIDTH

    def guesses(rows: list[Node]) -> tuple[Tensor, Tensor]:
        found = [torch.tensor(_best(seed, path), dtype=torch.float64) for path in rows]
        both = torch.stack(found)
        return both[..., 0].float(), both[..., 1].long()

    beam.add_root(torch.zeros(1, dtype=torch.int64), *guesses([()]))
    for level in range(1, depth + 1):
        above = [0] * WIDTH
        if level > 1:
            above = (beam.parents(level - 1) - (level - 2) * WIDTH).tolist()
        tokens = beam.frontier(level - 1).tolist()
        paths = [(*paths[row], token) for row, token in zip(above, tokens, strict=True)]
        beam.add_level(level, *guesses(paths))
    tree = beam.tree(total + 1)
    return _paths(tree.tokens.tolist(), tree.parents.tolist())


@given(seed=st.integers(0, 10_000), total=st.sampled_from([7, 25, 59]), depth=st.integers(1, 7))
def test_the_fixed_tree_without_a_threshold_is_eagle_2_s(seed: int, total: int, depth: int) -> None:
    wanted = _reference(seed, total, depth)
    assert len(wanted) == total
    assert _grown(seed, total, depth) == wanted
