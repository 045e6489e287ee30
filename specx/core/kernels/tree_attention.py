# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Hybrid Tree Attention (SpecExtend §3.2, after LongSpec) in one pass over the cache, laid out as
in Flash-Decoding (Dao et al., 2023): split among as many programs as the GPU runs at once, whose
parts a second kernel weighs. All query heads of one key/value head are rows of the same tile, so
that every key and value leaves memory once."""

import functools
import importlib
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from specx.core.kernels.launch import launch_early
from specx.core.kernels.types import TreeTiling

_SPLITS_WITHOUT_GPU = 3  # the interpreter has no multiprocessors to count
_MOST_SPLITS = 128  # what combining one row keeps in registers
_MASKED_KEYS = 64  # keys of a tile that needs a mask, at most
_GLUON = ["3", "6"]  # the Triton whose Gluon is known; 3.7 already renamed a function


def tiling(
    rows: int, width: int, dtype: torch.dtype, capability: tuple[int, int], *, gluon: bool = False
) -> TreeTiling:
    """The tiling for ``rows`` query rows of one key/value head, ``width`` elements each.

    Few rows: reading the cache is all the work, so many bytes in flight and small tensor-core
    tiles of 16. Up to 64 rows: one warp group a program, two programs take turns between matrix
    products and exponentials. More: the products weigh as much as the reading; 128 rows share
    every tile that is loaded. Tiles shrink with wider heads so that the stages fit shared memory.
    Two stages hide little, since a buffer is refilled only when its product is done; three do.
    With ``gluon``, where ``specx.core.kernels.hopper`` can run, specialized warps take over at
    more than 128 rows of 128 elements: 1.3 times as fast at 128K keys, a little faster at 16K.
    """
    block = triton.next_power_of_2(width)
    if dtype == torch.float32:  # exact products run outside the tensor cores
        return TreeTiling(16, 32 if block <= 128 else 16, 4, 2, 1, descriptors=False)
    if capability < (9, 0):  # about 100 KB of shared memory, no descriptors
        keys = 64 if block <= 64 else 32
        return TreeTiling(16 if rows <= 16 else 64, keys, 4, 3 if block <= 128 else 2, 1, False)
    if block <= 64 and rows <= 64:  # a draft's short cache: descriptors cost more than they save
        return TreeTiling(16 if rows <= 16 else 64, 128, 4, 2, 3 if rows <= 16 else 2, False)
    if rows <= 16:
        return TreeTiling(16, 128, 4, 3, 1) if block <= 128 else TreeTiling(16, 32, 4, 3, 2)
    if rows <= 64:
        return TreeTiling(64, 128, 4, 3, 1) if block <= 128 else TreeTiling(64, 64, 4, 2, 1)
    if gluon and rows > 128 and width == 128 and capability[0] == 9:
        return TreeTiling(128, 128, 4, 3, 1, specialized=True)
    return TreeTiling(128, 128, 8, 3, 1) if block <= 128 else TreeTiling(128, 64, 8, 2, 1)


def tree_attention(
    query: Tensor, keys: Tensor, values: Tensor, length: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Attention of n tree rows over a prefix that all of them see and m staged rows.

    ``query`` [H, n, D] and one layer of a cache, ``keys`` and ``values`` [Hkv, capacity, D], any
    strides with a contiguous last dimension; one dtype, float16, bfloat16 or float32. ``length``:
    int64 tensor of one element on the device, the rows of the prefix. ``mask`` [n, m] bool: row i
    sees staged row j, which lies at cache row length + j; every row must see one. ``scale`` > 0.
    Returns [n, H, D], contiguous. Cache rows from length + m on are never used; a call recorded
    in a CUDA graph serves every length, and equal inputs give equal bits.
    """
    rows = query.shape[1] * query.shape[0] // keys.shape[0]
    gluon = keys.is_cuda and _are_rows(keys) and _are_rows(values) and _has_gluon()
    chosen = tiling(rows, query.shape[2], query.dtype, _capability(query.device), gluon=gluon)
    return launch(query, keys, values, length, mask, scale, chosen)


def launch(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    mask: Tensor,
    scale: float,
    chosen: TreeTiling,
    splits: int | None = None,
) -> Tensor:
    """``tree_attention`` with a given tiling and number of splits (default: one full wave)."""
    heads, nodes, width = query.shape
    kv_heads, capacity, _ = keys.shape
    group, block = heads // kv_heads, triton.next_power_of_2(width)
    blocks = triton.cdiv(nodes * group, chosen.rows)
    if splits is None:
        splits = one_wave(query.device, chosen, kv_heads * blocks, capacity)
    out = torch.empty((nodes, heads, width), dtype=query.dtype, device=query.device)
    part, sums = out, out  # placeholders where one program sees all keys
    if splits > 1:
        part = out.new_empty((splits, nodes * heads, width), dtype=torch.float32)
        sums = out.new_empty((splits, nodes * heads), dtype=torch.float32)
    sizes: dict[str, Any] = {
        "HEADS": heads,
        "GROUP": group,
        "WIDTH": width,
        "KEY_ROW": keys.stride(1),
        "VALUE_ROW": values.stride(1),
        "ROWS": chosen.rows,
        "KEYS": chosen.keys,
        "SPLIT": splits > 1,
        "num_warps": chosen.warps,
    }
    kernel, tiles = _attend, [None, None]
    if chosen.specialized:
        from specx.core.kernels import hopper

        kernel, sizes["STAGES"] = hopper.attend, chosen.stages
        tiles = [hopper.tiles(side, chosen.keys) for side in (keys, values)]
    else:
        use_descriptors = chosen.descriptors and _describable(keys) and _describable(values)
        if use_descriptors:
            box = [1, chosen.keys, block]
            tiles = [TensorDescriptor.from_tensor(side, box) for side in (keys, values)]
        sizes |= {"WIDTH_BLOCK": block, "MASKED_KEYS": min(chosen.keys, _MASKED_KEYS)}
        sizes |= {"DESCRIPTORS": use_descriptors}
        sizes |= {"num_stages": chosen.stages, "maxnreg": chosen.registers}
    launch_early(
        kernel, (blocks, kv_heads, splits),
        query, keys, values, *tiles, length, mask, part, sums, query.stride(0), query.stride(1),
        keys.stride(0), values.stride(0), mask.stride(0), nodes, mask.shape[1],
        scale * math.log2(math.e), **sizes,
    )  # fmt: skip
    if splits > 1:
        warps = 1 if splits <= 8 else 4 if splits <= 32 else 8
        launch_early(
            _combine, (nodes * heads,), part, sums, out, nodes * heads, splits, width, block,
            triton.next_power_of_2(splits), num_warps=warps,
        )  # fmt: skip
    return out


def one_wave(device: torch.device, chosen: TreeTiling, programs: int, capacity: int) -> int:
    """Number of splits with which all programs run at once and a full cache has a tile for each.

    ``programs``: those of one split. It depends on no length, so that a recorded graph keeps it.
    """
    wave = _SPLITS_WITHOUT_GPU
    if device.type == "cuda":
        wave = _multiprocessors(device) * chosen.resident // programs
    return max(1, min(wave, math.ceil(capacity / chosen.keys), _MOST_SPLITS))


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _has_gluon() -> bool:
    """Whether this Triton has the Gluon in which ``specx.core.kernels.hopper`` is written."""
    if triton.__version__.split(".")[:2] != _GLUON:
        return False
    try:
        importlib.import_module("specx.core.kernels.hopper")
    except ImportError:
        return False
    return True


def _are_rows(side: Tensor) -> bool:
    """Whether [Hkv, capacity, D] can be described as the rows of one matrix."""
    return _describable(side) and side.stride(0) % side.stride(1) == 0


def _describable(rows: Tensor) -> bool:
    """Whether a tensor descriptor can address these rows [Hkv, capacity, D]."""
    size = rows.element_size()
    return rows.data_ptr() % 16 == 0 and all(
        stride * size % 16 == 0 for stride in rows.stride()[:2]
    )


@triton.jit
def _dot(a, b, acc):
    """a · b + acc in float32; exact products for float32, which tensor cores would round."""
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _fetch(tiles, rows, head, start, ROW: tl.constexpr, KEYS: tl.constexpr,
           WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """[KEYS, WIDTH_BLOCK] from row ``start`` on, all of which exist."""
    if DESCRIPTORS:
        return tiles.load([head, start, 0]).reshape(KEYS, WIDTH_BLOCK)
    column = tl.arange(0, WIDTH_BLOCK)[None, :]
    # The row stride is a constant: the tile's addresses are one register and fixed offsets.
    place = rows + start.to(tl.int64) * ROW + (tl.arange(0, KEYS)[:, None] * ROW + column)
    if WIDTH == WIDTH_BLOCK:
        return tl.load(place)
    return tl.load(place, mask=column < WIDTH, other=0.0)


@triton.jit
def _whole_tiles(
    acc, top, total, q, keys, values, key_tiles, value_tiles, head, first, last, scale,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, KEY_ROW: tl.constexpr,
    VALUE_ROW: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """The running softmax over tiles ``first`` … of the prefix, in which every row sees all."""
    for tile in tl.range(first, last):
        start = tile * KEYS
        k = _fetch(key_tiles, keys, head, start, KEY_ROW, KEYS, WIDTH, WIDTH_BLOCK, DESCRIPTORS)
        scores = _dot(q, tl.trans(k), tl.zeros([ROWS, KEYS], tl.float32))
        highest = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - highest[:, None])
        fade = tl.exp2(top - highest)
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None]
        v = _fetch(
            value_tiles, values, head, start, VALUE_ROW, KEYS, WIDTH, WIDTH_BLOCK, DESCRIPTORS
        )
        acc = _dot(p.to(v.dtype), v, acc)
        top = highest
    return acc, top, total


@triton.jit
def _masked_tiles(
    acc, top, total, q, keys, values, mask, inside, first, last, remainder, rest, prefix, staged,
    scale,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, KEY_ROW: tl.constexpr,
    VALUE_ROW: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The running softmax over masked tiles: ``remainder`` of the prefix from cache row ``rest``
    on, then those of the staged rows. ``mask``: where each query row's mask begins."""
    offset = tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH_BLOCK)[None, :]
    for tile in tl.range(first, last, num_stages=1):
        # Staged tiles start at the prefix's end, so that their mask is read in aligned words.
        after = (tile - remainder) * KEYS
        start, end = prefix + after, prefix + staged
        if tile < remainder:
            start, end = rest + tile * KEYS, prefix
        exists = start + offset < end
        wanted = exists[:, None] & (column < WIDTH)
        row = start.to(tl.int64) + offset[:, None]
        # Zeros for rows that hold nothing: a weight of zero does not silence a NaN.
        k = tl.load(keys + row * KEY_ROW + column, mask=wanted, other=0.0)
        v = tl.load(values + row * VALUE_ROW + column, mask=wanted, other=0.0)
        other = (after + offset)[None, :]
        asks = inside[:, None] & (other >= 0) & (other < staged)
        sees = tl.load(mask + other, mask=asks, other=0) != 0
        sees = exists[None, :] & (sees | (tile < remainder))
        scores = _dot(q, tl.trans(k), tl.zeros([ROWS, KEYS], tl.float32))
        scores = tl.where(sees, scores * scale, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.exp2(scores - finite[:, None])
        fade = tl.exp2(top - finite)
        total = total * fade + tl.sum(p, 1)
        acc = _dot(p.to(v.dtype), v, acc * fade[:, None])
        top = highest
    return acc, top, total


@triton.jit(do_not_specialize=["nodes"])
def _attend(
    query, keys, values, key_tiles, value_tiles, length, mask, out, sums,
    query_head, query_node, keys_head, values_head, mask_node, nodes, staged, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr,
    KEY_ROW: tl.constexpr, VALUE_ROW: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED_KEYS: tl.constexpr, SPLIT: tl.constexpr, DESCRIPTORS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of rows of one key/value head over one split of its keys; base-2 softmax."""
    head = tl.program_id(1)
    split, splits = tl.program_id(2), tl.num_programs(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    node, query_head_of_row = row // GROUP, head * GROUP + row % GROUP
    inside = node < nodes
    column = tl.arange(0, WIDTH_BLOCK)[None, :]
    out_row = node * HEADS + query_head_of_row
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = query + query_head_of_row[:, None].to(tl.int64) * query_head
    place += node[:, None].to(tl.int64) * query_node + column
    q = tl.load(place, mask=inside[:, None] & (column < WIDTH), other=0.0)
    # Work is shared out in units of one whole tile. After the whole tiles of the prefix come
    # masked ones, which are not pipelined: first the prefix's remainder, then the staged rows.
    prefix = tl.load(length).to(tl.int32)
    whole = prefix // KEYS
    remainder = tl.cdiv(prefix - whole * KEYS, MASKED_KEYS)
    weight: tl.constexpr = 2 * MASKED_KEYS // KEYS
    units = whole + weight * (remainder + tl.cdiv(staged, MASKED_KEYS))
    first = split * units // splits
    last = (split + 1) * units // splits
    if SPLIT:
        out += split.to(tl.int64) * nodes * (HEADS * WIDTH)
        sums += split * nodes * HEADS
        if first == last:
            tl.store(sums + out_row, tl.full([ROWS], float("-inf"), tl.float32), mask=inside)
            return
    keys += head.to(tl.int64) * keys_head
    values += head.to(tl.int64) * values_head

    acc = tl.zeros([ROWS, WIDTH_BLOCK], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc, top, total = _whole_tiles(
        acc, top, total, q, keys, values, key_tiles, value_tiles, head, first,
        tl.minimum(last, whole), scale,
        WIDTH, WIDTH_BLOCK, KEY_ROW, VALUE_ROW, ROWS, KEYS, DESCRIPTORS,
    )  # fmt: skip
    # A masked tile belongs to the split that holds its first unit.
    masked = tl.cdiv(tl.maximum(first - whole, 0), weight)
    masked_end = tl.cdiv(tl.maximum(last - whole, 0), weight)
    acc, top, total = _masked_tiles(
        acc, top, total, q, keys, values, mask + node[:, None] * mask_node, inside, masked,
        masked_end, remainder, whole * KEYS, prefix, staged, scale,
        WIDTH, WIDTH_BLOCK, KEY_ROW, VALUE_ROW, ROWS, MASKED_KEYS,
    )  # fmt: skip

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    place = out + out_row[:, None].to(tl.int64) * WIDTH + column
    tl.store(place, result.to(out.dtype.element_ty), mask=inside[:, None] & (column < WIDTH))
    if SPLIT:
        tl.store(sums + out_row, top + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=["rows", "splits"])
def _combine(
    part, sums, out, rows, splits,
    WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, SPLIT_BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One output row from its parts [splits, rows, WIDTH] and their log-sum-exps [splits, rows]."""
    row = tl.program_id(0)
    split = tl.arange(0, SPLIT_BLOCK)
    column = tl.arange(0, WIDTH_BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    exists = split < splits
    held = tl.load(sums + split * rows + row, mask=exists, other=float("-inf"))
    place = part + (split[:, None] * rows + row).to(tl.int64) * WIDTH + column[None, :]
    # Loaded before it is known which parts are empty: one round trip to memory instead of two.
    wanted = exists[:, None] & (column[None, :] < WIDTH)
    parts = tl.load(place, mask=wanted, other=0.0)
    weights = tl.exp2(held - tl.max(held, 0))
    mixed = tl.sum(tl.where(held[:, None] == float("-inf"), 0.0, parts * weights[:, None]), 0)
    result = mixed / tl.sum(weights, 0)
    tl.store(out + row.to(tl.int64) * WIDTH + column, result.to(out.dtype.element_ty),
             mask=column < WIDTH)  # fmt: skip
