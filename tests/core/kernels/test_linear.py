"""Products of few rows against float64, in Triton's interpreter or on a GPU."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from specx.core.kernels import linear
from specx.core.kernels.tilings import Cut, OneRow, Short, Tiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-4}
# The interpreter multiplies bfloat16 matrices as if their bits were integers.
DTYPES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
CUTS = {
    "whole": Tiling(64, 128, 3, 4),
    "split in three": Tiling(32, 64, 2, 4, splits=3),
    "split in two": Tiling(128, 128, 2, 8, splits=2),
    "one row": OneRow(4, 1024, 4),
    "one row in steps": OneRow(2, 256, 2),
    "short": Short(16, 4, 256, 4),
    "short in steps": Short(32, 2, 128, 4),
}
ROWS = {Tiling: (1, 7, 33), OneRow: (1,), Short: (1, 10, 16)}
CASES = [(name, count) for name, cut in CUTS.items() for count in ROWS[type(cut)]]


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=noise).to(DEVICE, dtype)


def _operands(count: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    weight = _random(outputs, inputs, dtype=dtype, seed=1) * inputs**-0.5
    wide = _random(count, inputs + 32, dtype=dtype)  # rows that lie apart
    return (
        wide[:, :inputs],
        weight,
        _random(outputs, dtype=dtype, seed=2),
        _random(count, outputs, dtype=dtype, seed=3),
    )


def _assert_close(got: Tensor, expected: Tensor) -> None:
    bound = CLOSE[got.dtype]
    torch.testing.assert_close(got.double(), expected, atol=bound, rtol=bound)


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    return x.double() @ weight.double().t()


def _gated(product: Tensor) -> Tensor:
    gate, up = product.chunk(2, dim=1)
    return gate * gate.sigmoid() * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "count"), CASES)
def test_every_cut_gives_the_product(name: str, count: int, dtype: torch.dtype) -> None:
    cut: Cut = CUTS[name]
    x, weight, bias, stream = _operands(count, 144, 768, dtype)
    out = torch.empty_like(stream)
    for _ in range(2):  # the counters of shared sums are ready again
        linear.multiply(x, weight, None, out, cut)
        _assert_close(out, _exact(x, weight))
    expected = stream.double() + _exact(x, weight) + bias.double()
    linear.multiply(x, weight, bias, stream, cut, add=True)
    _assert_close(stream, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("name", "count"), [case for case in CASES if not case[0].startswith("split")]
)
def test_every_whole_cut_gates(name: str, count: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight, bias, _ = _operands(count, 144, 768, dtype)
    out = torch.empty(count, 72, dtype=dtype, device=DEVICE)
    expected = _exact(x, weight) + (bias.double() if biased else 0)
    linear.multiply(x, weight, bias if biased else None, out, CUTS[name], gated=True)
    torch.testing.assert_close(
        out.double(), _gated(expected), atol=2 * CLOSE[dtype], rtol=2 * CLOSE[dtype]
    )


@pytest.mark.parametrize(
    ("cut", "count", "gated"),
    [
        (Tiling(64, 512, 3, 4), 4, False),  # 768 columns are no multiple of 512
        (Tiling(64, 128, 3, 4, splits=2), 4, True),
        (OneRow(4, 1024, 4), 2, False),
        (Short(16, 4, 256, 4), 17, False),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(cut: Cut, count: int, gated: bool) -> None:
    x, weight, _, stream = _operands(count, 144, 768, torch.float16)
    out = stream[:, :72].contiguous() if gated else stream
    with pytest.raises(ValueError, match=r"rows are too many|do not divide"):
        linear.multiply(x, weight, None, out, cut, gated=gated)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_wide_product_is_not_rounded(count: int, dtype: torch.dtype) -> None:
    """Logits that half precision would make equal stay apart, whatever the number of rows."""
    x, weight, _, _ = _operands(count, 144, 768, dtype)
    torch.testing.assert_close(
        linear.wide_linear(x, weight).double(), _exact(x, weight), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 256), (40, 100), (34, 256)])
def test_any_shape_and_dtype_is_served(
    outputs: int, inputs: int, count: int, dtype: torch.dtype
) -> None:
    x, weight, bias, stream = _operands(count, outputs, inputs, dtype)
    _assert_close(linear.linear(x, weight), _exact(x, weight))
    _assert_close(linear.linear(x, weight, bias), _exact(x, weight) + bias.double())
    assert linear.wide_linear(x, weight).dtype == torch.float32
    for addend in (None, bias):
        expected = stream.double() + _exact(x, weight)
        expected = expected if addend is None else expected + addend.double()
        linear.add_linear(stream, x, weight, addend)
        _assert_close(stream, expected)
    gated = linear.swiglu_linear(x, weight, bias)
    expected = _gated(_exact(x, weight) + bias.double())
    torch.testing.assert_close(
        gated.double(), expected, atol=2 * CLOSE[dtype], rtol=2 * CLOSE[dtype]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 10, 16, 17, 64])
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(12288, 4096), (4096, 11008), (6144, 4096), (4096, 14336), (2304, 768), (768, 3072)],
)
def test_real_shapes(outputs: int, inputs: int, count: int, dtype: torch.dtype) -> None:
    x, weight, _, stream = _operands(count, outputs, inputs, dtype)
    first = linear.linear(x, weight)
    _assert_close(first, _exact(x, weight))
    assert all(torch.equal(linear.linear(x, weight), first) for _ in range(5))
    expected = stream.double() + _exact(x, weight)
    linear.add_linear(stream, x, weight)
    _assert_close(stream, expected)
    gated = linear.swiglu_linear(x, weight)
    bound = 2 * CLOSE[dtype]
    torch.testing.assert_close(gated.double(), _gated(_exact(x, weight)), atol=bound, rtol=bound)
