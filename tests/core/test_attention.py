"""Every attention path against softmax in float64, over head ratios, row counts and prefixes."""

import pytest
import torch
from torch import Tensor

from specx.core.attention import Kernels, masked, merge, prefill_attention
from tests.core import reference

_KERNELS = Kernels()
_WIDTH = 16
_SCALE = _WIDTH**-0.5
RATIOS = [1, 4, 7, 8]
ROWS = [1, 3, 13]
PREFIXES = [0, 1, 31, 1000]


def _qkv(ratio: int, rows: int, keys: int, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Query as transformers hands it over (transposed, not contiguous), keys as cache slices."""
    noise = torch.Generator().manual_seed(ratio * 10_000 + rows * 2000 + keys)
    query = torch.randn(rows, ratio * kv_heads, _WIDTH, generator=noise).transpose(0, 1)
    store = torch.randn(2, kv_heads, keys + 5, _WIDTH, generator=noise)
    store[:, :, keys:] = float("nan")  # rows behind the end must never be read
    return query * 2.0, store[0, :, :keys], store[1, :, :keys]


def _tree_mask(rows: int, staged: int) -> Tensor:
    """The last ``rows`` of a random tree of ``staged`` nodes."""
    noise = torch.Generator().manual_seed(rows * 100 + staged)
    parents = [0] + [
        int(torch.randint(0, node, (1,), generator=noise)) for node in range(1, staged)
    ]
    return reference.mask(parents)[-rows:]


def _everything(rows: int, keys: int) -> Tensor:
    return torch.ones(rows, keys, dtype=torch.bool)


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, kind: str
) -> Tensor:
    """The last rows of the keys are staged, in a cache that holds nothing meant after them."""
    spare = torch.full((key.shape[0], 3, key.shape[2]), torch.nan, dtype=key.dtype)
    keys, values = torch.cat([key, spare], 1), torch.cat([value, spare], 1)
    prefix = torch.tensor(key.shape[1] - mask.shape[1])
    return Kernels(kind).tree(query, (keys, values), prefix, mask, scale)  # type: ignore[arg-type]


def _assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("keys", [1, 31, 1000])
def test_prefix_attention_and_its_log_sum_exp(ratio: int, rows: int, keys: int) -> None:
    query, key, value = _qkv(ratio, rows, keys)
    out, lse = _KERNELS.prefix(query, (key, value), _SCALE)
    want_out, want_lse = reference.attention(query, key, value, _everything(rows, keys), _SCALE)
    assert lse.dtype == torch.float32
    _assert_same(out, want_out)
    _assert_same(lse, want_lse)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rows", [1, 2, 3, 31, 70])
def test_causal_attention_and_its_log_sum_exp(ratio: int, rows: int) -> None:
    query, key, value = _qkv(ratio, rows, rows)
    out, lse = _KERNELS.causal(query, (key, value), _SCALE)
    sees = reference.causal(rows, rows)
    want_out, want_lse = reference.attention(query, key, value, sees, _SCALE)
    _assert_same(out, want_out)
    _assert_same(lse, want_lse)


@pytest.mark.parametrize("kind", ["fused", "eager"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_causal_chunk_behind_a_prefix(kind: str, ratio: int, rows: int, prefix: int) -> None:
    query, key, value = _qkv(ratio, rows, prefix + rows)
    got = prefill_attention(query, (key, value), _SCALE, _KERNELS, kind)
    sees = reference.causal(rows, prefix + rows)
    _assert_same(got, reference.attention(query, key, value, sees, _SCALE)[0])


@pytest.mark.parametrize("kind", ["hybrid", "masked"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_tree_behind_a_prefix(kind: str, ratio: int, rows: int, prefix: int) -> None:
    query, key, value = _qkv(ratio, rows, prefix + rows)
    mask = _tree_mask(rows, rows)
    got = tree_attention(query, key, value, mask, _SCALE, kind)
    sees = torch.cat([_everything(rows, prefix), mask], dim=1)
    _assert_same(got, reference.attention(query, key, value, sees, _SCALE)[0])


@pytest.mark.parametrize("kind", ["hybrid", "masked"])
@pytest.mark.parametrize("prefix", [0, 50])
def test_one_level_of_a_tree_sees_the_levels_before_it(kind: str, prefix: int) -> None:
    """A draft's level is 5 rows over 17 staged ones, so the mask is wider than tall."""
    query, key, value = _qkv(4, 5, prefix + 17)
    mask = _tree_mask(5, 17)
    got = tree_attention(query, key, value, mask, _SCALE, kind)
    sees = torch.cat([_everything(5, prefix), mask], dim=1)
    _assert_same(got, reference.attention(query, key, value, sees, _SCALE)[0])


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_two_ways_of_each_kind_agree(ratio: int) -> None:
    query, key, value = _qkv(ratio, 13, 313)
    mask = _tree_mask(13, 13)
    trees = [tree_attention(query, key, value, mask, _SCALE, kind) for kind in ("hybrid", "masked")]
    chunks = [
        prefill_attention(query, (key, value), _SCALE, _KERNELS, kind)
        for kind in ("fused", "eager")
    ]
    torch.testing.assert_close(*trees, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*chunks, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", [1, 7, 100, 199])
def test_merging_the_parts_of_any_split_is_attention_over_the_whole(split: int) -> None:
    query, key, value = _qkv(4, 5, 200)
    parts = [
        _KERNELS.prefix(query, (key[:, rows], value[:, rows]), _SCALE)
        for rows in (slice(0, split), slice(split, 200))
    ]
    whole, _ = reference.attention(query, key, value, _everything(5, 200), _SCALE)
    _assert_same(merge(parts[0], parts[1]), whole)
    _assert_same(merge(parts[1], parts[0]), whole)


def test_merging_with_an_overwhelming_part_returns_it() -> None:
    """Log-sum-exps that differ by thousands must neither overflow nor leave a trace."""
    strong = (torch.full((2, 3, 4), 5.0), torch.full((2, 3), 4000.0))
    weak = (torch.full((2, 3, 4), -7.0), torch.full((2, 3), -4000.0))
    assert torch.equal(merge(strong, weak), strong[0])
    assert torch.equal(merge(weak, strong), strong[0])


def test_merging_equal_parts_is_their_mean() -> None:
    parts = [(torch.full((1, 1, 2), number), torch.zeros(1, 1)) for number in (1.0, 3.0)]
    assert torch.equal(merge(parts[0], parts[1]), torch.full((1, 1, 2), 2.0))


def test_scores_in_the_hundreds_do_not_overflow() -> None:
    query, key, value = _qkv(4, 3, 103)
    query = query * 100.0
    mask = _tree_mask(3, 3)
    sees = torch.cat([_everything(3, 100), mask], dim=1)
    want = reference.attention(query, key, value, sees, _SCALE)[0]
    for kind in ("hybrid", "masked"):
        got = tree_attention(query, key, value, mask, _SCALE, kind)
        torch.testing.assert_close(got.double(), want, atol=1e-3, rtol=1e-3)


def test_masked_attention_reports_its_log_sum_exp() -> None:
    query, key, value = _qkv(7, 9, 9)
    mask = _tree_mask(9, 9)
    out, lse = masked(query, (key, value), mask, _SCALE)
    want_out, want_lse = reference.attention(query, key, value, mask, _SCALE)
    _assert_same(out, want_out)
    _assert_same(lse, want_lse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_is_half_precision_out(dtype: torch.dtype) -> None:
    """The tolerance is a few units in the last place of bfloat16."""
    query, key, value = (tensor.to(dtype) for tensor in _qkv(4, 5, 65))
    mask = _tree_mask(5, 5)
    sees = torch.cat([_everything(5, 60), mask], dim=1)
    want_tree = reference.attention(query, key, value, sees, _SCALE)[0]
    want_chunk = reference.attention(query, key, value, reference.causal(5, 65), _SCALE)[0]
    for tree in ("hybrid", "masked"):
        got = tree_attention(query, key, value, mask, _SCALE, tree)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want_tree, atol=2e-2, rtol=2e-2)
    for chunk in ("fused", "eager"):
        got = prefill_attention(query, (key, value), _SCALE, _KERNELS, chunk)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want_chunk, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["hybrid", "masked"])
def test_products_beyond_float16_do_not_overflow(kind: str) -> None:
    """Keys of Qwen2 carry biases in the hundreds: a product before scaling may exceed 65504, and
    an infinite score turns the row into NaN."""
    query, key, value = _qkv(4, 5, 45)
    query, key, value = (100.0 * query).half(), (60.0 * key).half(), value.half()
    mask = _tree_mask(5, 5)
    sees = torch.cat([_everything(5, 40), mask], dim=1)
    want = reference.attention(query, key, value, sees, 4e-4)[0]
    got = tree_attention(query, key, value, mask, 4e-4, kind)
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2e-2)
