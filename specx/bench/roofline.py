"""The least time that this machine allows for a step and for a prefill. In: a target, its draft, a
length. Out: ``schema.Floor``: what no implementation can avoid, counted from the models' shapes,
and the bandwidth and matmul rate measured here, in this process."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from specx.bench.schema import Floor
from specx.core.architecture import Shape
from specx.core.decoder import Footprint
from specx.core.drafts.eagle import EagleHead
from specx.core.operations import linear_of
from specx.memory import room_on
from specx.preset.preset import Preset

_LEAST_BYTES = 64 << 20
_BANDWIDTH_S = 1.5  # time box of one size
_RATE_S = 1.0
#: Rows and width of square linear layers, from one that suits two cores to one that suits a GPU.
_PRODUCTS = ((256, 1024), (1024, 2048), (2048, 4096), (4096, 8192))
# What this process has measured: bytes a second by buffer size, and operations a second. Other
# work on the machine only ever lowers these figures, so the best ones are kept.
_BANDWIDTHS: dict[torch.device, dict[int, float]] = {}
_RATES: dict[tuple[torch.device, torch.dtype], float] = {}


class Weighed(Protocol):  # a model or a head
    shape: Shape
    dtype: torch.dtype
    device: torch.device

    @property
    def footprint(self) -> Footprint: ...


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What forwards of one model cost, by the shapes of its parts. A product of one row with n
    weights is 2·n operations; attention of one row over L tokens is 4·H·D·L a layer, of L rows over
    each other, causally, 2·H·D·L²."""

    weights: Footprint  # one forward reads them once; a tied table counts once, as the head
    kv_row_bytes: int  # keys and values of one token, all layers
    attention_flop: int  # of one row over one earlier token, all layers

    def step_bytes(self, length: int) -> int:  # to read, for one row after ``length`` tokens
        return self.weights.forward_bytes + self.kv_row_bytes * length

    def step_flop(self, length: int) -> int:
        linear = 2 * (self.weights.layer_parameters + self.weights.head_parameters)
        return linear + self.attention_flop * length

    def prefill_flop(self, length: int) -> int:
        """Operations of reading ``length`` tokens, logits of the last one only."""
        linear = 2 * (self.weights.layer_parameters * length + self.weights.head_parameters)
        return linear + self.attention_flop * length * length // 2


def cost_of(model: Weighed) -> ModelCost:
    shape = model.shape
    kv_row_bytes = shape.numbers_per_token * model.dtype.itemsize
    return ModelCost(model.footprint, kv_row_bytes, 4 * shape.layers * shape.heads * shape.head_dim)


def measure_floor(
    preset: Preset, target: Weighed, draft: Weighed | None, length: int, *, again: bool = False
) -> Floor:
    """The floor of ``preset`` on ``length`` prompt tokens. The first call measures for about three
    seconds, later ones at similar sizes not at all. ``again`` measures once more and takes the
    better figure: worth it on a busy machine."""
    cost, level_bytes = cost_of(target), 0
    if draft is not None:
        # The least that a drafter of this preset keeps in sight; the ``full`` cache reads more.
        rows = min(length, preset.retrieval.budget_tokens)
        level_bytes = cost_of(draft).step_bytes(rows)
        if isinstance(draft, EagleHead):  # merges the target's features once a draft, not a level
            level_bytes -= draft.fuse_bytes
    step_bytes = cost.step_bytes(length)
    return Floor(
        preset=preset.name,
        length=length,
        step_bytes=step_bytes,
        step_flop=cost.step_flop(length),
        draft_level_bytes=level_bytes,
        prefill_flop=cost.prefill_flop(length),
        bandwidth_bytes_s=bandwidth(target.device, step_bytes, again=again),
        rate_flop_s=matmul_rate(target.device, target.dtype, again=again),
    )


def bandwidth(device: torch.device, count: int, *, again: bool = False) -> float:
    """Bytes a second at which about ``count`` bytes are read over and over. The buffer is as large
    as what a step reads: a cache that helps the step helps the floor. A draft is smaller than that,
    so its levels may run faster than their floor says."""
    most = (4 if device.type == "cuda" else 1) << 30  # a larger buffer is no faster and no slower
    largest = min(most, max(free_bytes(device) // 4, 1 << 20))
    size = rounded(min(max(count, _LEAST_BYTES), largest))
    known = _BANDWIDTHS.setdefault(device, {})
    if again or size not in known:
        known[size] = max(known.get(size, 0.0), _read_bytes_s(device, size))
    # More bytes cannot be read faster than fewer: such a figure says that this one was disturbed.
    return max(rate for other, rate in known.items() if other >= size)


def matmul_rate(device: torch.device, dtype: torch.dtype, *, again: bool = False) -> float:
    """Operations a second of the engine's own linear layer at its fastest prefill-like size."""
    key = (device, dtype)
    if again or key not in _RATES:
        _RATES[key] = max(_RATES.get(key, 0.0), _product_flop_s(device, dtype))
    return _RATES[key]


def rounded(count: int) -> int:
    """``count`` to two significant binary digits after the first: similar sizes share a figure."""
    grain = 1 << max(0, count.bit_length() - 3)
    return max(grain, round(count / grain) * grain)


def free_bytes(device: torch.device) -> int:
    free = room_on(device).free_bytes
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if free is None else free
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return 4 * _LEAST_BYTES


@torch.inference_mode()
def _read_bytes_s(device: torch.device, count: int) -> float:
    """By summing a buffer, and by copying one half of it over the other; the faster way counts. On
    a CPU both are as fast as or faster than ``dot``, ``amax`` or a float64 sum; on a GPU the copy
    wins on small buffers, the sum on large ones."""
    buffer = torch.ones(count // 8 * 2, dtype=torch.float32, device=device)
    low, high = buffer.chunk(2)
    ways = (buffer.sum, lambda: low.copy_(high))  # a copy reads one half and writes the other
    return buffer.nbytes / min(_best_s(way, device, _BANDWIDTH_S / len(ways)) for way in ways)


@torch.inference_mode()
def _product_flop_s(device: torch.device, dtype: torch.dtype) -> float:
    best, left_s = 0.0, _RATE_S
    for rows, width in _PRODUCTS:
        flop = 2 * rows * width * width
        if best and flop / best > 0.25:  # seconds of one product
            break
        left_s /= 2
        layer = linear_of(torch.randn(width, width, device=device, dtype=dtype) * width**-0.5)
        inputs = torch.randn(rows, width).to(device, dtype)
        best = max(best, flop / _best_s(partial(layer, inputs), device, left_s))
    return best


def _best_s(work: Callable[[], object], device: torch.device, limit_s: float) -> float:
    """Seconds of the fastest repetition: at least three, after one to warm up."""
    work()
    best, count, end = math.inf, 0, time.perf_counter() + limit_s
    while count < 3 or time.perf_counter() < end:
        best = min(best, _timed_s(work, device))
        count += 1
    return max(best, 1e-9)


def _timed_s(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000.0
    began = time.perf_counter()
    work()
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began
