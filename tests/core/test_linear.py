"""Packed products: the same numbers as ``nn.Linear``, and the same bits whatever the row count."""

import pytest
import torch
from specx.core.linear import PackedLinear, pack_linears
from torch import nn

SHAPES = [(32, 64), (64, 97), (129, 33), (256, 512), (512, 1376)]
COUNTS = [1, 2, 3, 4, 5, 8, 13, 16, 31, 50, 64]


def _linear(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_a_linear_layer(shape: tuple[int, int], bias: bool) -> None:
    linear = _linear(*shape, bias=bias)
    inputs = torch.randn(1, 7, shape[0], generator=torch.Generator().manual_seed(1))
    packed = PackedLinear(linear)
    torch.testing.assert_close(packed(inputs), linear(inputs), atol=1e-5, rtol=1e-5)
    assert (packed.in_features, packed.out_features) == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_whatever_rows_stand_beside_it(shape: tuple[int, int]) -> None:
    """What makes a verify row of a tree equal a plain decoding row exactly."""
    packed = PackedLinear(_linear(*shape))
    inputs = torch.randn(max(COUNTS), shape[0], generator=torch.Generator().manual_seed(2))
    alone = torch.cat([packed(row) for row in inputs.split(1)])
    for count in COUNTS:
        assert torch.equal(packed(inputs[:count]), alone[:count]), f"{count} rows"
        assert torch.equal(packed(inputs[None, -count:])[0], alone[-count:]), f"last {count} rows"


def test_every_float32_linear_is_replaced_and_nothing_else() -> None:
    class Special(nn.Linear):
        """Whatever it does, it is no ordinary linear layer."""

    model = nn.Sequential(
        _linear(8, 8),
        nn.ReLU(),
        nn.Sequential(_linear(8, 8, seed=1), Special(8, 8)),
        nn.Embedding(4, 8),
    )
    inputs = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    before = model[:3](inputs)
    assert pack_linears(model) == 2
    kinds = [type(module) for module in (model[0], model[1], model[2][0], model[2][1], model[3])]
    assert kinds == [PackedLinear, nn.ReLU, PackedLinear, Special, nn.Embedding]
    torch.testing.assert_close(model[:3](inputs), before, atol=1e-5, rtol=1e-5)
    assert pack_linears(model) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_left_alone(dtype: torch.dtype) -> None:
    model = nn.Sequential(_linear(8, 8)).to(dtype)
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = nn.Sequential(_linear(8, 8))
    assert pack_linears(model) == 0


def test_a_build_without_the_operators_keeps_its_linear_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: PackedLinear, linear: nn.Linear) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    model = nn.Sequential(_linear(8, 8))
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear


def test_a_product_that_disagrees_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: torch.zeros(3, 8))
    model = nn.Sequential(_linear(8, 8))
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear
