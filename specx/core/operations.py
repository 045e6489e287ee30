"""What a layer consists of: products with its matrices, and the small operations between them. Each
has one form in PyTorch and, on a GPU with Triton, one kernel in a module of ``core.kernels`` with
the same functions; this is the only place that chooses."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from specx.core import kernels

_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

Norms = tuple[Tensor, Tensor, float]  # weights of the query and the key norm [D], epsilon


class RowOperations:
    """What a layer does between its products, in PyTorch; on a GPU ``core.kernels.rows``."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[n, d], [d] → [n, d]."""
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (wide * inverse).to(x.dtype)

    def rotate(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        kv_heads: int,
        norms: Norms | None = None,
    ) -> None:
        """Rotates query and key heads of [n, (H + 2·Hkv)·D] in place, after ``norms`` if given."""
        both = qkv.view(qkv.shape[0], -1, cos.shape[1])[:, : heads + kv_heads]
        turned = both
        if norms is not None:
            query_norm, key_norm, eps = norms
            query = self.rms_norm(both[:, :heads], query_norm, eps)
            turned = torch.cat([query, self.rms_norm(both[:, heads:], key_norm, eps)], dim=1)
        first, second = turned.chunk(2, dim=-1)
        crossed = torch.cat([-second, first], dim=-1)
        both.copy_(turned * cos[:, None] + crossed * sin[:, None])

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) · up: [n, 2·m] → [n, m]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotary_tables(
        self, positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Positions [n] int64 and frequencies [D/2] float32 → cosines and sines [n, D]."""
        angles = positions[:, None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


class Products:
    """Products with weights [N, K] (+ bias [N]) in PyTorch; on a GPU ``core.kernels.linear``."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias: [n, K] → [n, N]."""
        return F.linear(x, weight, bias)

    def wide_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x · weightᵀ, half precision as float32: [n, K] → [n, N]. Rounded before, on a CPU."""
        product = F.linear(x, weight)
        return product if product.dtype.itemsize >= 4 else product.float()

    def add_linear(
        self, stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """stream += x · weightᵀ + bias, in place, without a temporary of its size."""
        stream.addmm_(x, weight.t())
        if bias is not None:
            stream.add_(bias)

    def swiglu_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """silu(gate) · up of gate | up = x · weightᵀ + bias: [n, K], weight [2·m, K] → [n, m]."""
        return row_operations(weight).swiglu(F.linear(x, weight, bias))


class Linear:
    """One matrix [N, K] with its bias, multiplied by whatever is fastest on its device."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.size = weight.numel()
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._weight, self._bias = weight, bias
        self._products = _products(weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[n, K] → [n, N]."""
        return self._products.linear(x, self._weight, self._bias)

    def wide(self, x: Tensor) -> Tensor:
        """The same without a bias, in float32."""
        return self._products.wide_linear(x, self._weight)

    def add_to(self, stream: Tensor, x: Tensor) -> None:
        """Adds the product with ``x`` [n, K] to ``stream`` [n, N] in place."""
        self._products.add_linear(stream, x, self._weight, self._bias)

    def swiglu(self, x: Tensor) -> Tensor:
        """The product's two halves, gate and up: [n, K] → silu(gate) · up [n, N / 2]."""
        return self._products.swiglu_linear(x, self._weight, self._bias)


class PackedLinear(Linear):
    """A matrix in oneDNN's own layout, on a CPU in float32; the original is not kept.

    oneDNN can lay a matrix out in blocks once, so that a product with 1–64 rows streams it at
    full bandwidth: half the time of ``F.linear`` at one row, a third at eight (measured on two
    AVX-512 cores). Each row is then also computed in the same order whatever the row count, which
    makes a verify row equal a plain row to the last bit. The operators are those that
    TorchInductor emits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out

    def wide(self, x: Tensor) -> Tensor:
        return self(x)

    def add_to(self, stream: Tensor, x: Tensor) -> None:
        stream.add_(self(x))

    def swiglu(self, x: Tensor) -> Tensor:
        return RowOperations().swiglu(self(x))


@torch.inference_mode()
def linear_of(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """``weight`` in the layout that its device multiplies fastest.

    A packed product that disagrees with the ordinary one, and a build of PyTorch without the
    operators, leave a matrix as it is.
    """
    packs = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not packs or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Linear(weight, bias)
    inputs = torch.linspace(-1.0, 1.0, 3 * weight.shape[1]).view(3, -1)
    expected = F.linear(inputs, weight, bias)
    try:
        packed = PackedLinear(weight, bias)
        product = packed(inputs)
    except (AttributeError, NotImplementedError, RuntimeError):
        return Linear(weight, bias)
    bound = 1e-3 * float(expected.abs().max())
    agrees = torch.allclose(product, expected, rtol=1e-3, atol=bound)
    return packed if agrees else Linear(weight, bias)


def row_operations(sample: Tensor) -> RowOperations:
    if sample.is_cuda and sample.dtype in _KERNEL_DTYPES and kernels.is_available():
        from specx.core.kernels import rows  # imports Triton

        return cast(RowOperations, rows)
    return RowOperations()


def _products(device: torch.device) -> Products:
    if device.type == "cuda" and kernels.is_available():
        from specx.core.kernels import linear  # imports Triton

        return cast(Products, linear)
    return Products()
