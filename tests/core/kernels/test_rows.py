"""The row kernels against float64, in Triton's interpreter or on a GPU."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from specx.core.kernels import rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Unit roundoff of the dtype, with room for the roundings that transformers makes on the way.
CLOSE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}
DTYPES = list(CLOSE)
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=noise).to(DEVICE, dtype)


def _assert_close(got: Tensor, expected: Tensor) -> None:
    bound = CLOSE[got.dtype]
    torch.testing.assert_close(got.double(), expected.double(), atol=bound, rtol=bound)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[n, heads, D]; written out by pairs, unlike the kernel and unlike transformers."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for pair in range(half):
        a, b = x[..., pair], x[..., pair + half]
        c, s = cos[:, None, pair], sin[:, None, pair]
        out[..., pair] = a * c - b * s
        out[..., pair + half] = b * c + a * s
    return out


def _tables(count: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    positions = torch.arange(count, dtype=torch.float64)[:, None] * 37 + 5
    angles = positions / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    doubled = torch.cat([angles, angles], dim=-1).to(DEVICE)
    return doubled.cos().to(dtype), doubled.sin().to(dtype)


def _check_norm(count: int, width: int, dtype: torch.dtype) -> None:
    x, weight = _random(count, width, dtype=dtype) * 3, _random(width, dtype=dtype, seed=1)
    x[0] *= 1e-3  # the epsilon matters here
    _assert_close(rows.rms_norm(x, weight, 1e-5), _normed(x, weight, 1e-5))


def _check_rotation(
    count: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype, normed: bool
) -> None:
    qkv = _random(count, (heads + 2 * kv_heads) * width, dtype=dtype)
    cos, sin = _tables(count, width, dtype)
    by_head = qkv.double().view(count, -1, width)
    query, key, value = by_head.split([heads, kv_heads, kv_heads], dim=1)
    norms = None
    if normed:
        norms = _random(width, dtype=dtype, seed=2), _random(width, dtype=dtype, seed=3), 1e-6
        query, key = _normed(query, norms[0], 1e-6), _normed(key, norms[1], 1e-6)
    turned = _rotated(torch.cat([query, key], dim=1), cos.double(), sin.double())
    rows.rotate(qkv, cos, sin, heads, kv_heads, norms)
    got = qkv.view(count, -1, width)
    _assert_close(got[:, : heads + kv_heads], turned)
    assert torch.equal(got[:, heads + kv_heads :].double(), value)


def _check_store(
    capacity: int, start: int, count: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    caches = _random(2, 3, kv_heads, capacity, width, dtype=dtype)
    before = caches.clone()
    new = _random(count, 4, kv_heads, width, dtype=dtype, seed=1).permute(1, 2, 0, 3)
    rows.store(caches[0, 1], caches[1, 1], torch.tensor(start, device=DEVICE), new[1], new[3])
    end = min(start + count, capacity)
    before[0, 1, :, start:end] = new[1, :, : end - start]
    before[1, 1, :, start:end] = new[3, :, : end - start]
    assert torch.equal(caches, before)


def _check_swiglu(count: int, width: int, dtype: torch.dtype) -> None:
    gate_up = _random(count, 2 * width, dtype=dtype) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    expected = gate / (1 + torch.exp(-gate)) * up
    got = rows.swiglu(gate_up)
    assert got.shape == (count, width)
    _assert_close(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width"), [(1, 64), (3, 96), (5, 129)])
def test_a_norm(count: int, width: int, dtype: torch.dtype) -> None:
    _check_norm(count, width, dtype)


def test_a_norm_of_rows_that_lie_apart() -> None:
    wide, weight = _random(4, 70), _random(33, seed=1)
    _assert_close(rows.rms_norm(wide[:, :33], weight, 1e-6), _normed(wide[:, :33], weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("width", [64, 96, 256])
def test_a_rotation_turns_query_and_key_heads_alone(
    width: int, normed: bool, dtype: torch.dtype
) -> None:
    _check_rotation(3, 7, 3, width, dtype, normed)


def test_a_rotation_of_one_head_of_a_tiny_width() -> None:
    _check_rotation(5, 1, 1, 6, torch.float32, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 5, 40, 49, 50], ids=lambda start: f"at{start}")
def test_a_store_touches_the_new_rows_alone_and_drops_what_has_no_room(
    start: int, dtype: torch.dtype
) -> None:
    _check_store(50, start, 19, 3, 24, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width"), [(1, 3072), (3, 77), (2, 1025)])
def test_a_gated_product(count: int, width: int, dtype: torch.dtype) -> None:
    _check_swiglu(count, width, dtype)


def test_a_gated_product_of_large_gates_stays_finite() -> None:
    gate_up = torch.tensor([[-200.0, 200.0, 2.0, 2.0]], device=DEVICE)
    expected = torch.tensor([[-0.0, 400.0]], device=DEVICE)
    torch.testing.assert_close(rows.swiglu(gate_up), expected)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 10, 64, 2048])
def test_real_shapes(count: int, dtype: torch.dtype) -> None:
    for width in (768, 4096, 5120):
        _check_norm(count, width, dtype)
    for heads, kv_heads, width in [(32, 32, 128), (32, 8, 128), (12, 12, 64), (40, 8, 96)]:
        _check_rotation(count, heads, kv_heads, width, dtype, normed=False)
        _check_store(4096, 3000, count, kv_heads, width, dtype)
    _check_rotation(count, 16, 8, 128, dtype, normed=True)
    for width in (3072, 11008, 14336):
        _check_swiglu(count, width, dtype)


@ON_GPU
@pytest.mark.gpu
def test_real_shapes_repeat_to_the_last_bit_in_a_graph() -> None:
    """Overlapping launches must not read what the launch before has not written yet."""
    width, eps = 4096, 1e-5
    x, weight = _random(64, width, dtype=torch.float16), _random(width, dtype=torch.float16)

    def chain(values: Tensor) -> Tensor:
        for _ in range(50):
            doubled = torch.cat([values, x], dim=1)
            values = rows.rms_norm(rows.swiglu(doubled), weight, eps)
            # The start is mixed in: else the largest element of a row outgrows all others.
            values = rows.rms_norm(values + x, weight, eps)
        return values

    eager = chain(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain(x)
    assert eager.isfinite().all()  # nothing equals NaN
    assert (eager != 0).float().mean() > 0.99
    for _ in range(20):
        graph.replay()
        assert torch.equal(captured, eager)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "half"), [(1, 32), (19, 48)])
def test_rotary_tables_hold_the_cosines_and_sines_of_float32_angles(
    count: int, half: int, dtype: torch.dtype
) -> None:
    positions = torch.arange(count, device=DEVICE) * 6500 + 3
    frequencies = 10000.0 ** -(torch.arange(half, device=DEVICE).float() / half)
    cos, sin = rows.rotary_tables(positions, frequencies, 1.5, dtype)
    angles = (positions[:, None].float() * frequencies).double()
    angles = torch.cat([angles, angles], dim=-1)
    _assert_close(cos, angles.cos() * 1.5)
    _assert_close(sin, angles.sin() * 1.5)


def _check_merge(heads: int, count: int, width: int, dtype: torch.dtype) -> None:
    first, second = (_random(heads, count, width, dtype=dtype, seed=seed) for seed in (3, 4))
    one, two = (_random(heads, count, seed=seed) * 4 for seed in (5, 6))
    one[:, 0], two[:, -1] = float("-inf"), float("-inf")  # rows with nothing in one of the sets
    if count == 1:
        two = torch.zeros_like(two)
    share = torch.sigmoid(one.double() - two.double())[..., None]
    expected = first.double() * share + second.double() * (1.0 - share)
    # Strides of a kernel that lays rows out before heads.
    strided = second.transpose(0, 1).contiguous().transpose(0, 1)
    merged = rows.merge(first, one, strided, two)
    assert merged.shape == first.shape
    assert merged.transpose(0, 1).is_contiguous()
    _assert_close(merged, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "count", "width"), [(1, 1, 8), (3, 17, 64), (2, 33, 96)])
def test_merging_is_attention_over_both_sets(
    heads: int, count: int, width: int, dtype: torch.dtype
) -> None:
    _check_merge(heads, count, width, dtype)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_a_prompt_chunk(dtype: torch.dtype) -> None:
    _check_merge(32, 4096, 128, dtype)
