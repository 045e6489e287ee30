# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""The small operations of a decoder layer, one Triton launch each, on CUDA tensors in float16,
bfloat16 or float32. Every kernel computes in float32 and rounds where transformers' modules round,
so that the two differ in the last bit only; weights are read before the wait for the kernel before.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specx.core.kernels.launch import launch_early

_ROWS = 16  # of one head that a program copies or merges
_HEADS_A_ROTATION = 8
_ROWS_A_TABLE = 8
_COLUMNS_A_PRODUCT = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm of rows: [n, d] and [d] → [n, d] (Zhang and Sennrich, 2019)."""
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    launch_early(
        _rms_norm, (rows,), x, weight, out, x.stride(0), width, eps, block,
        num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return out


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> None:
    """Rotate the query and key heads of ``qkv`` [n, (H + 2·Hkv)·D] in place.

    ``cos`` and ``sin`` [n, D]; halves are rotated against each other (RoFormer, as Llama lays it
    out). ``norms`` holds the weights [D] of a norm of every query and key head before the
    rotation and its epsilon (Qwen3).
    """
    rows, width = cos.shape
    half, rotated = width // 2, heads + kv_heads
    query_norm, key_norm, eps = (cos, cos, 0.0) if norms is None else norms
    launch_early(
        _rotate, (rows, triton.cdiv(rotated, _HEADS_A_ROTATION)),
        qkv, cos, sin, query_norm, key_norm, qkv.stride(0), cos.stride(0), sin.stride(0), eps,
        heads, rotated, half, triton.next_power_of_2(half), _HEADS_A_ROTATION, norms is not None,
        num_warps=2,
    )  # fmt: skip


def store(keys: Tensor, values: Tensor, start: Tensor, key: Tensor, value: Tensor) -> None:
    """Write new rows ``key`` and ``value`` [Hkv, n, D] one after the other into a cache, in place.

    ``keys`` and ``values`` [Hkv, capacity, D] of one layer, any strides with a contiguous last
    dimension; ``start`` is an int64 tensor of one element on the device. Rows that would land
    beyond the capacity are dropped.
    """
    kv_heads, rows, width = key.shape
    strides = [side.stride(axis) for side in (keys, values, key, value) for axis in (0, 1)]
    launch_early(
        _store, (kv_heads, triton.cdiv(rows, _ROWS)),
        keys, values, start, key, value, rows, keys.shape[1], *strides,
        width, triton.next_power_of_2(width), _ROWS, num_warps=4,
    )  # fmt: skip


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up: [n, 2·m] with the gate in the first half → [n, m] (Shazeer, 2020)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    grid = rows, triton.cdiv(width, _COLUMNS_A_PRODUCT)
    arguments = gate_up, out, gate_up.stride(0), width, _COLUMNS_A_PRODUCT
    launch_early(_swiglu, grid, *arguments, num_warps=4)
    return out


def merge(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """Attention over the union of two disjoint key sets from their outputs [H, n, D], any strides
    with a contiguous last dimension, and log-sum-exps [H, n] float32; as ``attention.merge``.

    [H, n, D], laid out as [n, H, D]: what follows reads it row by row.
    """
    heads, rows, width = first.shape
    out = torch.empty((rows, heads, width), dtype=first.dtype, device=first.device)
    sides = first, second, first_lse, second_lse
    strides = [side.stride(axis) for side in sides for axis in (0, 1)]
    launch_early(
        _merge, (triton.cdiv(rows, _ROWS), heads),
        first, first_lse, second, second_lse, out, rows, *strides, heads * width,
        width, triton.next_power_of_2(width), _ROWS, num_warps=4,
    )  # fmt: skip
    return out.transpose(0, 1)


def rotary_tables(
    positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Positions [n] int64 and frequencies [D/2] float32 → cosines and sines [n, D] in ``dtype``,
    times ``scaling``; the halves of a row are equal."""
    rows, half = positions.shape[0], frequencies.shape[0]
    tables = torch.empty((2, rows, 2 * half), dtype=dtype, device=positions.device)
    launch_early(
        _rotary_tables, (triton.cdiv(rows, _ROWS_A_TABLE),), positions, frequencies, tables, rows,
        scaling, half, triton.next_power_of_2(half), _ROWS_A_TABLE, num_warps=4,
    )  # fmt: skip
    return tables[0], tables[1]


@triton.jit
def _start(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _rms_norm(x, weight, out, stride, width, eps, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    if PDL:
        gdc_launch_dependents()
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    loaded = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    wide = loaded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normed = (wide * inverse).to(loaded.dtype)
    product = normed.to(tl.float32) * scale.to(tl.float32)
    tl.store(out + row * width + columns, product.to(loaded.dtype), mask=inside)


@triton.jit
def _rotate(
    qkv, cos, sin, query_norm, key_norm, stride, cos_stride, sin_stride, eps,
    HEADS: tl.constexpr, ROTATED: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEAD_BLOCK + tl.arange(0, HEAD_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < ROTATED) & (column < HALF)
    _start(PDL)
    place = qkv + row * stride + head * (2 * HALF) + column
    loaded = tl.load(place, mask=inside, other=0.0)
    first = loaded.to(tl.float32)
    second = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        inverse = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        is_query = head < HEADS
        weight = tl.where(is_query, query_norm + column, key_norm + column)
        scale = tl.load(weight, mask=inside, other=0.0).to(tl.float32)
        first = (first * inverse).to(loaded.dtype).to(tl.float32) * scale
        scale = tl.load(weight + HALF, mask=inside, other=0.0).to(tl.float32)
        second = (second * inverse).to(loaded.dtype).to(tl.float32) * scale
        first = first.to(loaded.dtype).to(tl.float32)
        second = second.to(loaded.dtype).to(tl.float32)
    cos += row * cos_stride + column
    sin += row * sin_stride + column
    here = column < HALF
    c, s = tl.load(cos, mask=here, other=0.0), tl.load(sin, mask=here, other=0.0)
    turned = first * c.to(tl.float32) - second * s.to(tl.float32)
    tl.store(place, turned.to(loaded.dtype), mask=inside)
    c, s = tl.load(cos + HALF, mask=here, other=0.0), tl.load(sin + HALF, mask=here, other=0.0)
    turned = second * c.to(tl.float32) + first * s.to(tl.float32)
    tl.store(place + HALF, turned.to(loaded.dtype), mask=inside)


@triton.jit(do_not_specialize=["rows", "capacity"])
def _store(
    keys, values, start, key, value, rows, capacity,
    keys_head, keys_row, values_head, values_row, key_head, key_row, value_head, value_row,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, ROW_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)[:, None].to(tl.int64)
    column = tl.arange(0, WIDTH_BLOCK)[None, :]
    _start(PDL)
    target = tl.load(start) + row
    inside = (row < rows) & (target < capacity) & (column < WIDTH)
    new_key = tl.load(key + head * key_head + row * key_row + column, mask=inside)
    new_value = tl.load(value + head * value_head + row * value_row + column, mask=inside)
    tl.store(keys + head * keys_head + target * keys_row + column, new_key, mask=inside)
    tl.store(values + head * values_head + target * values_row + column, new_value, mask=inside)


@triton.jit
def _swiglu(gate_up, out, stride, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    _start(PDL)
    place = gate_up + row * stride + column
    loaded = tl.load(place, mask=inside, other=0.0)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    gate = loaded.to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-gate))).to(loaded.dtype).to(tl.float32)
    tl.store(out + row * width + column, (gate * up).to(loaded.dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _rotary_tables(
    positions, frequencies, tables, rows, scaling, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr,
    ROW_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (row < rows)[:, None] & (column < HALF)
    if PDL:
        gdc_launch_dependents()
    frequency = tl.load(frequencies + column, mask=column < HALF, other=0.0)
    if PDL:
        gdc_wait()
    position = tl.load(positions + row, mask=row < rows, other=0).to(tl.float32)[:, None]
    angle = position * frequency
    place = tables + row.to(tl.int64)[:, None] * (2 * HALF) + column
    for table in tl.static_range(2):
        value = (tl.cos(angle) if table == 0 else tl.sin(angle)) * scaling
        value = value.to(tables.dtype.element_ty)
        target = place + table * rows.to(tl.int64) * (2 * HALF)
        tl.store(target, value, mask=inside)
        tl.store(target + HALF, value, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _merge(
    first, first_lse, second, second_lse, out, rows, first_head, first_row, second_head, second_row,
    first_lse_head, first_lse_row, second_lse_head, second_lse_row, out_row,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, ROW_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    column = tl.arange(0, WIDTH_BLOCK)[None, :]
    here = row < rows
    inside = here[:, None] & (column < WIDTH)
    _start(PDL)
    one = tl.load(first_lse + head * first_lse_head + row * first_lse_row, mask=here, other=0.0)
    two = tl.load(second_lse + head * second_lse_head + row * second_lse_row, mask=here, other=0.0)
    share = (1.0 / (1.0 + tl.exp(two - one)))[:, None]
    a = tl.load(first + head * first_head + row[:, None] * first_row + column, mask=inside)
    b = tl.load(second + head * second_head + row[:, None] * second_row + column, mask=inside)
    a, b = a.to(tl.float32), b.to(tl.float32)
    result = (b + (a - b) * share).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * out_row + head * WIDTH + column, result, mask=inside)
