"""Products and row operations: the same numbers in every layout, and the same bits of a row
whatever rows are beside it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specx.core.operations import Linear, PackedLinear, RowOperations, linear_of

SHAPES = [(32, 64), (64, 97), (129, 33), (256, 512), (512, 1376)]
COUNTS = [1, 2, 3, 4, 5, 8, 13, 16, 31, 50, 64]


def _drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _weights(inputs: int, outputs: int, *, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    weight = _drawn(outputs, inputs) / inputs**0.5
    return weight, _drawn(outputs, seed=1) if bias else None


@pytest.mark.parametrize("kind", [Linear, PackedLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_the_three_products(kind: type[Linear], bias: bool) -> None:
    for inputs, outputs in SHAPES:
        weight, offset = _weights(inputs, outputs, bias=bias)
        product, x = kind(weight, offset), _drawn(7, inputs, seed=2)
        expected = F.linear(x, weight, offset)
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(product(x), expected, **close)
        stream = _drawn(7, outputs, seed=3)
        both = stream + expected
        product.add_to(stream, x)
        torch.testing.assert_close(stream, both, **close)
        if outputs % 2 == 0:
            gate, up = expected.chunk(2, dim=-1)
            torch.testing.assert_close(product.swiglu(x), F.silu(gate) * up, **close)
        assert product.size == weight.numel()
        assert product.nbytes == 4 * (weight.numel() + bias * outputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(shape: tuple[int, int]) -> None:
    """What makes a verify row of a tree equal a plain decoding row exactly."""
    packed = linear_of(*_weights(*shape))
    assert isinstance(packed, PackedLinear)
    inputs = _drawn(max(COUNTS), shape[0], seed=2)
    alone = torch.cat([packed(row) for row in inputs.split(1)])
    for count in COUNTS:
        assert torch.equal(packed(inputs[:count]), alone[:count]), f"{count} rows"
        assert torch.equal(packed(inputs[-count:]), alone[-count:]), f"last {count} rows"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_not_packed(dtype: torch.dtype) -> None:
    weight, bias = _weights(8, 8)
    assert bias is not None
    assert type(linear_of(weight.to(dtype), bias.to(dtype))) is Linear


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert type(linear_of(*_weights(8, 8))) is Linear


def test_a_build_without_the_operators_multiplies_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: PackedLinear, weight: Tensor, bias: Tensor | None) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    assert type(linear_of(*_weights(8, 8))) is Linear


def test_a_product_that_disagrees_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x: torch.zeros(3, 8))
    assert type(linear_of(*_weights(8, 8))) is Linear


def test_values_are_not_rotated() -> None:
    """Of [n, (H + 2·Hkv)·D] only the first H + Hkv heads."""
    rows = RowOperations()
    qkv = _drawn(5, (4 + 2 * 2) * 8)
    before = qkv.clone()
    cos, sin = rows.rotary_tables(torch.arange(1, 6), torch.ones(4), 1.0, torch.float32)
    rows.rotate(qkv, cos, sin, 4, 2)
    assert torch.equal(qkv[:, 48:], before[:, 48:])
    assert not (qkv[:, :48] == before[:, :48]).any()
