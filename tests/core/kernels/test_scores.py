"""Retrieval scores on the device: against float64, over garbage, and against retrieval's own."""

import math

import pytest
import torch
from torch import Tensor

from specx.core import retrieval
from specx.core.kernels import is_available
from specx.core.kernels.scores import chunk_scores

pytestmark = pytest.mark.skipif(not is_available(), reason="needs Triton")

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _query_keys(
    heads: int, kv_heads: int, rows: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(heads, width, generator=noise)
    keys = torch.randn(kv_heads, rows, width, generator=noise)
    return query.to(_DEVICE, dtype), keys.to(_DEVICE, dtype)


def _exact(query: Tensor, keys: Tensor, scale: float, chunk_tokens: int) -> Tensor:
    """Float64, head by head and chunk by chunk."""
    group = query.shape[0] // keys.shape[0]
    mean = torch.zeros(keys.shape[1], dtype=torch.float64, device=keys.device)
    for head, vector in enumerate(query.double()):
        weights = (keys[head // group].double() @ vector * scale).softmax(dim=0)
        mean += weights / query.shape[0]
    return torch.stack([chunk.mean() for chunk in mean.split(chunk_tokens)])


def _assert_exact(query: Tensor, keys: Tensor, length: int, chunk_tokens: int) -> None:
    """The filled chunks have float64's scores, the others none; rows behind ``length`` are NaN."""
    keys = keys.clone()
    want = _exact(query, keys[:, :length], query.shape[1] ** -0.5, chunk_tokens)
    keys[:, length:] = torch.nan
    rows = torch.tensor([length], device=_DEVICE)
    got = chunk_scores(query, keys, rows, query.shape[1] ** -0.5, chunk_tokens)
    assert got.dtype == torch.float32
    assert got.shape[0] == math.ceil(keys.shape[1] / chunk_tokens)
    filled = want.shape[0]
    torch.testing.assert_close(got[:filled].double(), want, rtol=1e-4, atol=0.0)
    assert got[filled:].tolist() == [-math.inf] * (got.shape[0] - filled)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 16), (8, 2, 16), (7, 1, 24)])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 500])
def test_scores_are_those_of_float64(heads: int, kv_heads: int, width: int, length: int) -> None:
    query, keys = _query_keys(heads, kv_heads, 500, width)
    _assert_exact(query, keys, length, 32)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 32, 100, 128, 130, 300, 1000])
@pytest.mark.parametrize("length", [1, 129, 300, 401])
def test_chunks_of_any_size(chunk_tokens: int, length: int) -> None:
    query, keys = _query_keys(2, 1, 401, 16)
    _assert_exact(query, keys, length, chunk_tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # The interpreter multiplies bfloat16 matrices as if their bits were integers; one query head a
    # key head needs no matrix product.
    kv_heads = 4 if dtype is torch.bfloat16 and _DEVICE == "cpu" else 2
    query, keys = _query_keys(4, kv_heads, 200, 32, dtype)
    _assert_exact(query, keys, 150, 32)
    _assert_exact(query.float() + 1e-3, keys, 150, 32)


def test_many_groups_of_pieces_share_one_denominator() -> None:
    """More groups than are read at a time, and an attention sink that others are tiny beside."""
    query, keys = _query_keys(1, 1, 65 * 128 + 3, 16)
    keys[:, 0] = query[0]
    _assert_exact(query, keys, 65 * 128 + 1, 32)


def test_a_strided_cache_and_query() -> None:
    query, keys = _query_keys(4, 2, 200, 32)
    strided = keys.transpose(0, 1).contiguous().transpose(0, 1)
    rows = torch.tensor(170, device=_DEVICE)
    wide = torch.cat([query, query], dim=1)[:, :32]
    got = chunk_scores(wide, strided, rows, 0.2, 32)
    assert torch.equal(got, chunk_scores(query, keys, rows, 0.2, 32))
    want = retrieval.chunk_scores(query, keys[:, :170], 0.2, 32)
    torch.testing.assert_close(got[:6], want, rtol=1e-5, atol=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8), (28, 4)])
def test_real_shapes_in_a_cuda_graph(heads: int, kv_heads: int) -> None:
    query, keys = _query_keys(heads, kv_heads, 16400, 128, torch.float16)
    length = torch.tensor([16000], device="cuda")
    chunk_scores(query, keys, length, 128**-0.5, 32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chunk_scores(query, keys, length, 128**-0.5, 32)
    for rows in (16000, 33, 16400):
        length.fill_(rows)
        graph.replay()
        want = _exact(query, keys[:, :rows], 128**-0.5, 32)
        torch.testing.assert_close(got[: want.shape[0]].double(), want, rtol=1e-4, atol=0.0)
        assert bool((got[want.shape[0] :] == -math.inf).all())
