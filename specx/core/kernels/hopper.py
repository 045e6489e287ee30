# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Tree attention for more than 64 rows a key/value head on Hopper, as in FlashAttention-3 (Shah et
al., 2024): a producer warp keeps the tensor memory accelerator busy, two consumers of 64 rows share
its tiles, and each multiplies the weights of one tile while it computes those of the next. This is
Gluon, below Triton and different from version to version: imported only where it is known."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_ELEMENT = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


def tiles(side: Tensor, keys: int) -> TensorDescriptor:
    """Tiles of ``keys`` rows of [Hkv, capacity, D], seen as the rows of one matrix."""
    kv_heads, capacity, width = side.shape
    layout = gl.NVMMASharedLayout.get_default_for([keys, width], _ELEMENT[side.dtype])
    row = side.stride(1)
    rows = (kv_heads - 1) * (side.stride(0) // row) + capacity
    return TensorDescriptor(side, [rows, width], [row, 1], [keys, width], layout)


@gluon.jit
def _produce(key_tiles, value_tiles, key_row, value_row, rings, count,
             KEYS: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """One warp: requests ``count`` tiles of keys and of values, each when its buffer is free."""
    k_ring, v_ring, k_full, v_full, k_free, v_free = rings
    BYTES: gl.constexpr = KEYS * WIDTH * 2
    for i in range(count):
        stage = i % STAGES
        phase = (i // STAGES & 1) ^ 1  # of a new barrier, the phase before has passed
        mbarrier.wait(k_free.index(stage), phase)
        mbarrier.expect(k_full.index(stage), BYTES)
        tma.async_copy_global_to_shared(
            key_tiles, [key_row + i * KEYS, 0], k_full.index(stage), k_ring.index(stage)
        )
        mbarrier.wait(v_free.index(stage), phase)
        mbarrier.expect(v_full.index(stage), BYTES)
        tma.async_copy_global_to_shared(
            value_tiles, [value_row + i * KEYS, 0], v_full.index(stage), v_ring.index(stage)
        )


@gluon.jit
def _release(free):
    """The other group and the producer may learn that this group no longer reads a buffer."""
    gl.thread_barrier()
    mbarrier.arrive(free, count=1)


@gluon.jit
def _weigh(scores, top, total, scale):
    """One step of a running softmax without a mask: weights, fading of what was, sum, maximum."""
    highest = gl.maximum(top, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - highest[:, None])
    fade = gl.exp2(top - highest)
    return weights, fade, total * fade + gl.sum(weights, 1), highest


@gluon.jit
def _whole_tiles(
    q, rings, acc, top, total, zeros, scale, count,
    OPERAND: gl.constexpr, ACC_ROWS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The running softmax over ``count`` ≥ 1 tiles of the prefix, in which every row sees all.

    While the weights of tile i are computed, those of tile i - 1 are multiplied by its values.
    """
    k_ring, v_ring, k_full, v_full, k_free, v_free = rings
    mbarrier.wait(k_full.index(0), 0)
    scores = warpgroup_mma(q, k_ring.index(0).permute((1, 0)), zeros, use_acc=False)
    _release(k_free.index(0))
    weights, fade, total, top = _weigh(scores, top, total, scale)
    p = gl.convert_layout(weights.to(k_ring.dtype), OPERAND)
    mbarrier.wait(k_full.index(1 % STAGES), 1 // STAGES, pred=count > 1)
    for i in range(1, count):
        stage, before = i % STAGES, (i - 1) % STAGES
        scores_later = warpgroup_mma(
            q, k_ring.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        mbarrier.wait(v_full.index(before), (i - 1) // STAGES & 1)
        acc_later = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[scores_later])
        _release(k_free.index(stage))
        weights, fade, total, top = _weigh(scores, top, total, scale)
        p_later = gl.convert_layout(weights.to(k_ring.dtype), OPERAND)
        # Here and not at the top, where it is needed: ptxas moves the wait for the products up
        # before the exponentials, and all overlap is lost, unless a loop such as this stands
        # in the way.
        mbarrier.wait(k_full.index((i + 1) % STAGES), (i + 1) // STAGES & 1, pred=i + 1 < count)
        acc, p, p_later = warpgroup_mma_wait(0, deps=[acc_later, p, p_later])
        _release(v_free.index(before))
        acc = acc * gl.convert_layout(fade, ACC_ROWS)[:, None]
        p = p_later
    last = (count - 1) % STAGES
    mbarrier.wait(v_full.index(last), (count - 1) // STAGES & 1)
    acc = warpgroup_mma(p, v_ring.index(last), acc)
    return acc, top, total


@gluon.jit
def _masked_tiles(
    q, k_own, v_own, keys, values, mask, inside, acc, top, total, zeros, scale, prefix, staged,
    first, last,
    OPERAND: gl.constexpr, ACC_ROWS: gl.constexpr, SCORES: gl.constexpr, WARPS: gl.constexpr,
    WIDTH: gl.constexpr, KEY_ROW: gl.constexpr, VALUE_ROW: gl.constexpr, KEYS: gl.constexpr,
):  # fmt: skip
    """The running softmax over tiles ``first`` … of what follows the whole tiles: the prefix's
    remainder, then the staged rows. ``mask``: where each query row's mask begins; ``k_own`` and
    ``v_own``: buffers [KEYS, WIDTH] of this group."""
    FETCH: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    offset = gl.arange(0, KEYS, gl.SliceLayout(1, FETCH))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, FETCH))[None, :]
    for tile in range(first, last):
        start = prefix // KEYS * KEYS + tile * KEYS
        row = (start + offset)[:, None]
        # Zeros for rows that hold nothing: a weight of zero does not silence a NaN.
        wanted = row < prefix + staged
        k = gl.load(keys + row.to(gl.int64) * KEY_ROW + column, mask=wanted, other=0.0)
        v = gl.load(values + row.to(gl.int64) * VALUE_ROW + column, mask=wanted, other=0.0)
        other = (start + gl.arange(0, KEYS, gl.SliceLayout(0, SCORES)) - prefix)[None, :]
        asks = inside[:, None] & (other >= 0) & (other < staged)
        sees = gl.load(mask + other, mask=asks, other=0) != 0
        sees = sees | (other < 0)
        gl.thread_barrier()
        k_own.store(k)
        v_own.store(v)
        fence_async_shared()
        gl.thread_barrier()
        scores = warpgroup_mma(q, k_own.permute((1, 0)), zeros, use_acc=False)
        scores = gl.where(sees, scores * scale, float("-inf"))
        highest = gl.maximum(top, gl.max(scores, 1))
        finite = gl.where(highest == float("-inf"), 0.0, highest)
        weights = gl.exp2(scores - finite[:, None])
        fade = gl.exp2(top - finite)
        total = total * fade + gl.sum(weights, 1)
        top = highest
        acc = acc * gl.convert_layout(fade, ACC_ROWS)[:, None]
        acc = warpgroup_mma(gl.convert_layout(weights.to(k_own.dtype), OPERAND), v_own, acc)
    return acc, top, total


@gluon.jit
def _consume(
    q, rings, done, keys, values, mask, out, sums, mask_node, nodes, staged, scale, prefix,
    count, tail, tail_end, first_row, head,
    GROUP_NUMBER: gl.constexpr, HEADS: gl.constexpr, GROUP: gl.constexpr, WIDTH: gl.constexpr,
    KEY_ROW: gl.constexpr, VALUE_ROW: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """One group: ROWS rows from ``first_row`` on over ``count`` whole tiles and the masked ones
    from ``tail`` up to ``tail_end``; stores what they attend to."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    SCORE_ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    ACC_ROWS: gl.constexpr = gl.SliceLayout(1, ACC)
    acc = gl.zeros([ROWS, WIDTH], gl.float32, ACC)
    zeros = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    top = gl.full([ROWS], float("-inf"), gl.float32, SCORE_ROWS)
    total = gl.zeros([ROWS], gl.float32, SCORE_ROWS)
    if count > 0:
        acc, top, total = _whole_tiles(
            q, rings, acc, top, total, zeros, scale, count, OPERAND, ACC_ROWS, STAGES
        )
    row = first_row + gl.arange(0, ROWS, SCORE_ROWS)
    node = row // GROUP
    inside = node < nodes
    if tail < tail_end:
        # Each group takes a buffer of the ring for itself, which the other may still be reading.
        _release(done)
        mbarrier.wait(done, 0)
        acc, top, total = _masked_tiles(
            q, rings[0].index(GROUP_NUMBER), rings[1].index(GROUP_NUMBER), keys, values,
            mask + node[:, None] * mask_node, inside, acc, top, total, zeros, scale, prefix,
            staged, tail, tail_end,
            OPERAND, ACC_ROWS, SCORES, WARPS, WIDTH, KEY_ROW, VALUE_ROW, KEYS,
        )  # fmt: skip
    if SPLIT:
        place = node * HEADS + head * GROUP + row % GROUP
        gl.store(sums + place, top + gl.log2(total), mask=inside)
    share = gl.convert_layout(1.0 / gl.where(total == 0.0, 1.0, total), ACC_ROWS)
    row = first_row + gl.arange(0, ROWS, ACC_ROWS)
    node = row // GROUP
    place = (node * HEADS + head * GROUP + row % GROUP)[:, None].to(gl.int64) * WIDTH
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, ACC))[None, :]
    result = (acc * share[:, None]).to(out.dtype.element_ty)
    gl.store(out + place + column, result, mask=(node < nodes)[:, None])


@gluon.jit
def _ring(tiles, KEYS: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr):
    """STAGES buffers for tiles, a barrier each for "it is full" and "both groups are done"."""
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    ring = gl.allocate_shared_memory(tiles.dtype, [STAGES, KEYS, WIDTH], tiles.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    return ring, full, free


@gluon.jit
def _queries(
    query, query_head, query_node, nodes, first_row, head,
    GROUP: gl.constexpr, WIDTH: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """The query rows of both groups in shared memory, [2, HALF, WIDTH]; zeros after the last."""
    FETCH: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, FETCH))[None, :]
    q = gl.allocate_shared_memory(query.dtype.element_ty, [2, HALF, WIDTH], LAYOUT)
    for half in gl.static_range(2):
        row = first_row + half * HALF + gl.arange(0, HALF, gl.SliceLayout(1, FETCH))
        node = row // GROUP
        place = query + (head * GROUP + row % GROUP)[:, None].to(gl.int64) * query_head
        place += node[:, None].to(gl.int64) * query_node + column
        q.index(half).store(gl.load(place, mask=(node < nodes)[:, None], other=0.0))
    return q


@gluon.jit(do_not_specialize=["nodes"])
def attend(
    query, keys, values, key_tiles, value_tiles, length, mask, out, sums,
    query_head, query_node, keys_head, values_head, mask_node, nodes, staged, scale,
    HEADS: gl.constexpr, GROUP: gl.constexpr, WIDTH: gl.constexpr, KEY_ROW: gl.constexpr,
    VALUE_ROW: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    SPLIT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """One block of ROWS rows of one key/value head over one split of its keys; base-2 softmax.

    As ``tree_attention`` launches it, for float16 or bfloat16 and D a power of 2 from 64 on;
    ``key_tiles`` and ``value_tiles``: ``tiles`` of a cache whose heads are a whole number of rows
    apart. ``out`` [splits, n · H, D] and ``sums`` [splits, n · H] float32: attention and
    base-2 log-sum-exp, -inf where a split sees nothing; with one split ``out`` [n, H, D] is the
    result itself, in any dtype, and ``sums`` is left alone.
    """
    head = gl.program_id(1)
    split, splits = gl.program_id(2), gl.num_programs(2)
    first_row = gl.program_id(0) * ROWS
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    # Work is shared out in tiles: the whole ones of the prefix, then the masked ones.
    prefix = gl.load(length).to(gl.int32)
    whole = prefix // KEYS
    units = whole + gl.cdiv(prefix - whole * KEYS + staged, KEYS)
    first = split * units // splits
    last = (split + 1) * units // splits
    count = gl.maximum(gl.minimum(last, whole) - first, 0)
    tail = gl.maximum(first - whole, 0)
    tail_end = gl.maximum(last - whole, 0)
    if SPLIT:
        out += split.to(gl.int64) * nodes * (HEADS * WIDTH)
        sums += split * nodes * HEADS
    key_row = (head * (keys_head // KEY_ROW) + first * KEYS).to(gl.int32)
    value_row = (head * (values_head // VALUE_ROW) + first * KEYS).to(gl.int32)
    keys += head.to(gl.int64) * keys_head
    values += head.to(gl.int64) * values_head

    k_ring, k_full, k_free = _ring(key_tiles, KEYS, WIDTH, STAGES)
    v_ring, v_full, v_free = _ring(value_tiles, KEYS, WIDTH, STAGES)
    rings = (k_ring, v_ring, k_full, v_full, k_free, v_free)
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(done, count=2)
    HALF: gl.constexpr = ROWS // 2
    WARPS: gl.constexpr = gl.num_warps()
    LAYOUT: gl.constexpr = key_tiles.layout
    q = _queries(query, query_head, query_node, nodes, first_row, head, GROUP, WIDTH, HALF, LAYOUT)
    fence_async_shared()
    gl.thread_barrier()
    gl.warp_specialize(
        [
            (_consume, (
                q.index(0), rings, done, keys, values, mask, out, sums, mask_node, nodes, staged,
                scale, prefix, count, tail, tail_end, first_row, head,
                0, HEADS, GROUP, WIDTH, KEY_ROW, VALUE_ROW, HALF, KEYS, STAGES, WARPS, SPLIT,
            )),
            (_consume, (
                q.index(1), rings, done, keys, values, mask, out, sums, mask_node, nodes, staged,
                scale, prefix, count, tail, tail_end, first_row + HALF, head,
                1, HEADS, GROUP, WIDTH, KEY_ROW, VALUE_ROW, HALF, KEYS, STAGES, WARPS, SPLIT,
            )),
            (_produce, (
                key_tiles, value_tiles, key_row, value_row, rings, count, KEYS, WIDTH, STAGES,
            )),
        ],
        [WARPS, 1],
        [240, 24],  # registers a thread of the second group and of the producer
    )  # fmt: skip
