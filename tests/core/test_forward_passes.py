"""Rotation and the passes: where keys go, and what a row sees at which position."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from specx.core.architecture import Shape
from specx.core.attention import Kernels
from specx.core.cache import KVCache
from specx.core.forward_passes import ReadPass, Rotary, TreePass, WindowPass
from tests.core import reference

_HEADS, _KV_HEADS, _WIDTH = 4, 2, 16
_SCALE = _WIDTH**-0.5
_FREQUENCIES = 10000.0 ** -(torch.arange(0, _WIDTH, 2).float() / _WIDTH)


def _qkv(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    query = torch.randn(_HEADS, rows, _WIDTH, generator=noise)
    return (query, *torch.randn(2, _KV_HEADS, rows, _WIDTH, generator=noise))


def _cache(capacity: int) -> KVCache:
    return KVCache(Shape(1, _HEADS, _KV_HEADS, _WIDTH, 9, 8, 8), capacity, torch.float32, "cpu")


def _assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)


def test_rotation_is_the_complex_product_and_that_of_transformers() -> None:
    query, key, _ = _qkv(9)
    positions = [0, 1, 5, 5, 17, 100, 999, 2, 3]
    rotary = Rotary(_FREQUENCIES, 1000)
    got = rotary.rotate_at(torch.cat([query, key]), torch.tensor(positions))
    expected = reference.rotate(torch.cat([query, key]), positions, _FREQUENCIES)
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=0.0)
    angles = torch.tensor(positions)[:, None] * _FREQUENCIES.repeat(2)
    theirs = apply_rotary_pos_emb(query[None], key[None], angles.cos()[None], angles.sin()[None])
    torch.testing.assert_close(got, torch.cat(theirs, dim=1)[0], atol=1e-5, rtol=0.0)


def test_rotating_a_run_is_rotating_at_its_positions() -> None:
    rotary, (query, _, _) = Rotary(_FREQUENCIES, 50), _qkv(7)
    expected = rotary.rotate_at(query, torch.arange(11, 18))
    assert torch.equal(rotary.rotate(query, 11), expected)
    assert torch.equal(rotary.rotate_at(query, slice(11, 18)), expected)


def test_position_zero_is_no_rotation() -> None:
    query, _, _ = _qkv(1)
    assert torch.equal(Rotary(_FREQUENCIES, 1).rotate(query, 0), query)


def test_rotation_keeps_half_precision_and_computes_in_float32() -> None:
    query, _, _ = _qkv(3)
    rotary, half = Rotary(_FREQUENCIES, 4000), query.bfloat16()
    got = rotary.rotate(half, 3900)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, rotary.rotate(half.float(), 3900).bfloat16())


@pytest.mark.parametrize("window", [1, 4, 8, 1000])
@pytest.mark.parametrize("blocks", [[8, 8, 8, 5], [1, 2, 3, 1], [20], [5, 5, 1, 5]])
@pytest.mark.parametrize("kind", ["fused", "eager"])
def test_a_windowed_prefill_is_brute_force_attention_over_blocks(
    window: int, blocks: list[int], kind: str
) -> None:
    """Row i of a block that starts at s sees rows max(0, s − window) … i. Rotary attention depends
    on distances alone, so absolute positions in float64 must give the same as compact ones."""
    total = sum(blocks)
    query, key, value = _qkv(total)
    sees = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for block in blocks:
        for row in range(start, start + block):
            sees[row, max(0, start - window) : row + 1] = True
        start += block
    places = list(range(total))
    rotated = [reference.rotate(vectors, places, _FREQUENCIES) for vectors in (query, key)]
    expected, _ = reference.attention(*rotated, value, sees, _SCALE)
    cache, rotary = _cache(total), Rotary(_FREQUENCIES, min(window, total) + max(blocks))
    outs = []
    for block in blocks:
        start = cache.stage(block)
        attention = WindowPass(cache, start, window, rotary, Kernels(), kind)
        rows = slice(start, start + block)
        outs.append(attention.attend(0, query[:, rows], key[:, rows], value[:, rows], _SCALE))
        cache.reach(start + block)
    _assert_same(torch.cat(outs, dim=1), expected)
    assert torch.equal(cache.keys[0, :, :total], key), "keys are stored without rotation"
    assert torch.equal(cache.values[0, :, :total], value)


@pytest.mark.parametrize("kind", ["fused", "eager"])
@pytest.mark.parametrize("blocks", [2, 3])
def test_blocks_read_together_are_blocks_read_one_by_one(blocks: int, kind: str) -> None:
    """With the same window before each; and no position beyond a window and a block."""
    size = 5
    query, key, value = _qkv((blocks + 1) * size)
    rotary, outs = Rotary(_FREQUENCIES, 2 * size), []
    for together in (1, blocks):
        cache, parts_of = _cache((blocks + 1) * size), []
        for count in (1, *[together] * (blocks // together)):
            start = cache.stage(count * size)
            window = WindowPass(cache, start, size, rotary, Kernels(), kind, count)
            rows = slice(start, start + count * size)
            parts_of.append(window.attend(0, query[:, rows], key[:, rows], value[:, rows], _SCALE))
            cache.reach(start + count * size)
        outs.append(torch.cat(parts_of, dim=1))
    _assert_same(outs[1], outs[0].double())


def test_committed_draft_rows_see_the_working_cache_at_compact_positions() -> None:
    query, key, value = _qkv(9)
    rotary, working, full = Rotary(_FREQUENCIES, 20), _cache(20), _cache(20)
    outs = []
    for first, stop in ((0, 6), (6, 9)):
        rows, held = slice(first, stop), torch.tensor(first)
        causal = torch.ones(stop - first, stop - first, dtype=torch.bool).tril()
        places = torch.arange(first, stop)
        attention = ReadPass(working, held, full, held + 2, places, causal, rotary, Kernels())
        outs.append(attention.attend(0, query[:, rows], key[:, rows], value[:, rows], _SCALE))
    turned = [reference.rotate(vectors, range(9), _FREQUENCIES) for vectors in (query, key)]
    expected, _ = reference.attention(*turned, value, reference.causal(9, 9), _SCALE)
    _assert_same(torch.cat(outs, dim=1), expected)
    _assert_same(working.keys[0, :, :9], turned[1])
    assert torch.equal(full.keys[0, :, 2:11], key), "the full cache keeps them without rotation"


def test_tree_rows_see_the_prefix_and_their_ancestors() -> None:
    """The second level of a tree, after two staged rows of the first."""
    query, key, value = _qkv(8)
    cache = _cache(20)
    cache.write(0, 0, key[:, :6], value[:, :6])
    mask = torch.tensor([[True, False, True, False], [False, True, False, True]])
    attention = TreePass(cache, torch.tensor(4), torch.tensor(6), mask, Kernels())
    got = attention.attend(0, query[:, 6:], key[:, 6:], value[:, 6:], _SCALE)
    sees = torch.cat([torch.ones(2, 4, dtype=torch.bool), mask], dim=1)
    _assert_same(got, reference.attention(query[:, 6:], key, value, sees, _SCALE)[0])
    assert torch.equal(cache.keys[0, :, :8], key)
