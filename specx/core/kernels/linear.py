# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Products of a few rows with a weight matrix, which is read from memory once, at full speed: rows
[n, K] and a contiguous weight [N, K], float16 or bfloat16 on a Hopper GPU. Anything else goes to
PyTorch. ``few_rows`` has the programs, ``tilings`` says how a product is cut. The counters of
shared sums serve one stream at a time."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from specx.core.kernels import few_rows
from specx.core.kernels import rows as row_kernels
from specx.core.kernels.launch import launch_early
from specx.core.kernels.tilings import Cut, Short, Tiling, choose

_MAX_TILES = 1 << 14
_LINE_ELEMENTS = 64  # of 2 bytes in an L2 line
_SHORT_ROWS = 16  # the least that a tensor core multiplies
_HOPPER = 9  # compute capability; others were not measured, and keep cuBLAS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias: [n, K], [N, K], [N] → [n, N]."""
    cut = _cut_of(x, weight)
    if cut is None:
        return F.linear(x, weight, bias)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    multiply(x, weight, bias, out, cut)
    return out


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ as it was summed up, not rounded: [n, K], [N, K] → [n, N] float32."""
    cut = _cut_of(x, weight)
    if cut is None and x.is_cuda and x.dtype.itemsize < 4:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    if cut is None:
        product = F.linear(x, weight)
        return product if product.dtype.itemsize >= 4 else product.float()
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    multiply(x, weight, None, out, cut)
    return out


def add_linear(stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """stream += x · weightᵀ + bias, in place: ``stream`` [n, N]; rounded once."""
    cut = _cut_of(x, weight)
    if cut is not None:
        multiply(x, weight, bias, stream, cut, add=True)
        return
    stream.addmm_(x, weight.t())
    if bias is not None:
        stream.add_(bias)


def swiglu_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(gate) · up of gate | up = x · weightᵀ + bias: [n, K], [2·m, K], [2·m] → [n, m]."""
    cut = _cut_of(x, weight, gated=True)
    if cut is None:
        return row_kernels.swiglu(linear(x, weight, bias))
    out = torch.empty((x.shape[0], weight.shape[0] // 2), dtype=x.dtype, device=x.device)
    multiply(x, weight, bias, out, cut, gated=True)
    return out


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    cut: Cut,
    *,
    add: bool = False,
    gated: bool = False,
) -> None:
    """The product in a given cut: written to ``out`` [n, N], added to it, or gated into [n, N/2].

    Raises ``ValueError`` if the cut does not fit the shape.
    """
    rows, outputs, inputs = x.shape[0], out.shape[1], weight.shape[1]
    grid: tuple[int, ...] = (triton.cdiv(outputs, cut.outputs),)
    kernel, sizes, most_rows = few_rows.one_row, dict[str, Any](), 1
    if isinstance(cut, Tiling):
        if inputs % (cut.inputs * cut.splits) or (gated and cut.splits > 1):
            raise ValueError(f"{inputs} columns do not divide into {cut}")
        kernel, grid, most_rows = few_rows.few_rows, (*grid, cut.splits), rows
        sizes = _tile_sizes(out, inputs, cut)
    elif isinstance(cut, Short):
        lines = max(inputs - cut.groups * cut.inputs, 0) // _LINE_ELEMENTS
        kernel, most_rows = few_rows.short, _SHORT_ROWS
        sizes = {"GROUPS": cut.groups, "ROW_BLOCK": _SHORT_ROWS}
        sizes |= {"REST": _power_of_2(lines), "LINE": _LINE_ELEMENTS}
    if rows > most_rows:
        raise ValueError(f"{rows} rows are too many for {cut}")
    sizes |= {"INPUTS": inputs, "OUT_BLOCK": cut.outputs, "IN_BLOCK": cut.inputs}
    sizes |= {"ADD": add, "BIAS": bias is not None, "GATED": gated, "num_warps": cut.warps}
    sizes |= {"x_stride": x.stride(0), "out_stride": out.stride(0)}
    bias = weight if bias is None else bias
    launch_early(kernel, grid, x, weight, out, bias, rows=rows, outputs=outputs, **sizes)


def _tile_sizes(out: Tensor, inputs: int, tiling: Tiling) -> dict[str, Any]:
    """What ``few_rows`` takes beyond the others, with room for the parts of shared sums."""
    splits, partial, counters = tiling.splits, out, out
    if splits > 1:
        partial = torch.empty((splits, *out.shape), dtype=torch.float32, device=out.device)
        counters = _counters(out.device)
    return {
        "partial": partial,
        "counters": counters,
        "ROW_BLOCK": max(16, triton.next_power_of_2(out.shape[0])),
        "SPLITS": splits,
        "STAGES": tiling.stages,
        "AHEAD": min(tiling.ahead_lines, _power_of_2(inputs // splits // _LINE_ELEMENTS)),
        "LINE": _LINE_ELEMENTS,
    }


def _cut_of(x: Tensor, weight: Tensor, *, gated: bool = False) -> Cut | None:
    """How our kernels take this product; ``None``: PyTorch does it."""
    if (
        x.dtype not in (torch.float16, torch.bfloat16)
        or weight.dtype != x.dtype
        or not weight.is_contiguous()
        or x.stride(1) != 1
        or not _runs_on(x.device)
    ):
        return None
    return choose(x.shape[0], *weight.shape, gated=gated)


@functools.cache
def _runs_on(device: torch.device) -> bool:
    # The CPU is Triton's interpreter.
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == _HOPPER


@functools.cache
def _counters(device: torch.device) -> Tensor:
    """Arrivals at every tile; the last one sets its counter back to zero."""
    return torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)


def _power_of_2(count: int) -> int:
    """The largest one up to ``count``; 0 for none."""
    return 1 << (count.bit_length() - 1) if count else 0
