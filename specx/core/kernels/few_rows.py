# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Triton programs that multiply a few rows with a large matrix; ``linear`` launches them. A program
streams a tile of weight rows through the tensor cores as their tall operand, and the few rows of x
are the narrow one; it starts while the kernel before it drains and first fetches weights, which do
not depend on it."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _finish(
    total, paired, out, bias, outputs, place, column, inside,
    ADD: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Bias, gate and residual of a tile [outputs, rows]; rounds where separate kernels would."""
    dtype: tl.constexpr = out.dtype.element_ty
    column = tl.minimum(column, outputs - 1)
    if BIAS:
        total += tl.load(bias + column)[:, None].to(tl.float32)
    if GATED:
        if BIAS:
            paired += tl.load(bias + outputs + column)[:, None].to(tl.float32)
        gate = total.to(dtype).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        total = gate * paired.to(dtype).to(tl.float32)
    if ADD:
        total += tl.load(out + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(dtype), mask=inside)


@triton.jit
def _fetch(weight, local, INPUTS: tl.constexpr, AHEAD: tl.constexpr, LINE: tl.constexpr):
    """Bring the first lines of every weight row of the tile into the L2 cache."""
    line = tl.arange(0, AHEAD) * LINE
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [weight + local[:, None] * INPUTS + line[None, :]],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["rows"])
def few_rows(
    x, weight, out, bias, partial, counters, rows, outputs, x_stride, out_stride,
    INPUTS: tl.constexpr, OUT_BLOCK: tl.constexpr, IN_BLOCK: tl.constexpr, ROW_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, LINE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of weight rows, or a share of its columns, streamed through shared memory.

    Programs that share a tile's sum leave their parts, and the last to arrive adds them up in a
    fixed order, so results repeat to the last bit. Nobody waits for another program.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    begin = split * (INPUTS // SPLITS)
    # Rows beyond the matrix read its last row and are not stored.
    local = tl.minimum(tl.arange(0, OUT_BLOCK), outputs - 1 - tile * OUT_BLOCK)
    weight += tile.to(tl.int64) * OUT_BLOCK * INPUTS + begin
    pair = outputs.to(tl.int64) * INPUTS  # from a gate row to its up row
    if PDL:
        gdc_launch_dependents()
        _fetch(weight, local, INPUTS, AHEAD, LINE)
        if GATED:
            _fetch(weight + pair, local, INPUTS, AHEAD, LINE)
        gdc_wait()
    inner = tl.arange(0, IN_BLOCK)
    row = tl.arange(0, ROW_BLOCK)
    weights = weight + local[:, None] * INPUTS + inner[None, :]
    xs = x + row[:, None] * x_stride + begin + inner[None, :]
    real = (row < rows)[:, None]
    total = tl.zeros((OUT_BLOCK, ROW_BLOCK), dtype=tl.float32)
    paired = total
    for k in tl.range(0, INPUTS // SPLITS, IN_BLOCK, num_stages=STAGES):
        tall = tl.load(weights + k)
        narrow = tl.trans(tl.load(xs + k, mask=real, other=0.0))
        total = tl.dot(tall, narrow, total)
        if GATED:
            paired = tl.dot(tl.load(weights + pair + k), narrow, paired)
    column = tile * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    inside = (row < rows)[None, :] & (column < outputs)[:, None]
    place = row[None, :] * out_stride + column[:, None]
    if SPLITS == 1:
        _finish(total, paired, out, bias, outputs, place, column, inside, ADD, BIAS, GATED)
    else:  # not a return above: what follows one is compiled all the same
        part = rows * outputs
        parts = partial + row[None, :] * outputs + column[:, None]
        tl.store(parts + split * part, total, mask=inside)
        tl.debug_barrier()  # every thread's part is written before the arrival counts
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            tl.store(counters + tile, 0)
            whole = _sum_parts(parts, part, inside, SPLITS)
            _finish(whole, whole, out, bias, outputs, place, column, inside, ADD, BIAS, GATED)


@triton.jit
def _sum_parts(parts, part, inside, SPLITS: tl.constexpr):
    """The parts in their order, past the L1 cache, which does not see other programs' writes."""
    total = tl.load(parts, mask=inside, other=0.0, cache_modifier=".cg")
    for other in tl.static_range(1, SPLITS):
        total += tl.load(parts + other * part, mask=inside, other=0.0, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["rows", "x_stride", "out_stride"])
def one_row(
    x, weight, out, bias, rows, outputs, x_stride, out_stride,
    INPUTS: tl.constexpr, OUT_BLOCK: tl.constexpr, IN_BLOCK: tl.constexpr,
    ADD: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A few weight rows in registers, times one row of x."""
    column = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    inner = tl.arange(0, IN_BLOCK)
    base = tl.minimum(column, outputs - 1).to(tl.int64)[:, None] * INPUTS
    weights = weight + base + inner[None, :]
    pairs = weights + outputs.to(tl.int64) * INPUTS  # the up rows of these gate rows
    real = inner < INPUTS
    if PDL:
        gdc_launch_dependents()
    tall = tl.load(weights, mask=real[None, :], other=0.0)
    if GATED:
        twin = tl.load(pairs, mask=real[None, :], other=0.0)
    if PDL:
        gdc_wait()
    narrow = tl.load(x + inner, mask=real, other=0.0).to(tl.float32)[None, :]
    total = tall.to(tl.float32) * narrow
    paired = total
    if GATED:
        paired = twin.to(tl.float32) * narrow
    for k in range(IN_BLOCK, INPUTS, IN_BLOCK):
        real = inner < INPUTS - k
        tall = tl.load(weights + k, mask=real[None, :], other=0.0)
        if GATED:
            twin = tl.load(pairs + k, mask=real[None, :], other=0.0)
        narrow = tl.load(x + k + inner, mask=real, other=0.0).to(tl.float32)[None, :]
        total += tall.to(tl.float32) * narrow
        if GATED:
            paired += twin.to(tl.float32) * narrow
    total = tl.sum(total, axis=1, keep_dims=True)
    if GATED:
        paired = tl.sum(paired, axis=1, keep_dims=True)
    place, inside = column[:, None], (column < outputs)[:, None]
    _finish(total, paired, out, bias, outputs, place, column, inside, ADD, BIAS, GATED)


@triton.jit(do_not_specialize=["rows"])
def short(
    x, weight, out, bias, rows, outputs, x_stride, out_stride,
    INPUTS: tl.constexpr, OUT_BLOCK: tl.constexpr, GROUPS: tl.constexpr, IN_BLOCK: tl.constexpr,
    ROW_BLOCK: tl.constexpr, REST: tl.constexpr, LINE: tl.constexpr,
    ADD: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A few weight rows, ``GROUPS`` × ``IN_BLOCK`` columns at once; the warps share the groups."""
    tile = tl.program_id(0)
    slab: tl.constexpr = GROUPS * IN_BLOCK
    local = tl.minimum(tl.arange(0, OUT_BLOCK), outputs - 1 - tile * OUT_BLOCK)
    weight += tile.to(tl.int64) * OUT_BLOCK * INPUTS
    pair = outputs.to(tl.int64) * INPUTS  # from a gate row to its up row
    group = tl.arange(0, GROUPS)[:, None, None] * IN_BLOCK
    inner = group + tl.arange(0, IN_BLOCK)[None, None, :]
    row = tl.arange(0, ROW_BLOCK)
    weights = weight + local[None, :, None] * INPUTS + inner
    xs = x + row[None, :, None] * x_stride + inner
    real = (row < rows)[None, :, None]
    if PDL:
        gdc_launch_dependents()
    tall = tl.load(weights, mask=inner < INPUTS, other=0.0)
    if GATED:
        twin = tl.load(weights + pair, mask=inner < INPUTS, other=0.0)
    if PDL:
        if REST > 0:
            _fetch(weight + slab, local, INPUTS, REST, LINE)
            if GATED:
                _fetch(weight + slab + pair, local, INPUTS, REST, LINE)
        gdc_wait()
    narrow = tl.load(xs, mask=real & (inner < INPUTS), other=0.0)
    narrow = tl.permute(narrow, (0, 2, 1))
    total = tl.dot(tall, narrow)
    paired = total
    if GATED:
        paired = tl.dot(twin, narrow)
    for k in range(slab, INPUTS, slab):
        here = inner < INPUTS - k
        tall = tl.load(weights + k, mask=here, other=0.0)
        if GATED:
            twin = tl.load(weights + pair + k, mask=here, other=0.0)
        narrow = tl.permute(tl.load(xs + k, mask=real & here, other=0.0), (0, 2, 1))
        total = tl.dot(tall, narrow, total)
        if GATED:
            paired = tl.dot(twin, narrow, paired)
    total = tl.sum(total, axis=0)
    if GATED:
        paired = tl.sum(paired, axis=0)
    column = tile * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    inside = (row < rows)[None, :] & (column < outputs)[:, None]
    place = row[None, :] * out_stride + column[:, None]
    _finish(total, paired, out, bias, outputs, place, column, inside, ADD, BIAS, GATED)
