"""How parts of a step are launched: called, or, on a GPU, recorded once as a CUDA graph and
replayed with one call of the host. It does not know models, trees or attention."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from specx.core.config import Launch

T = TypeVar("T")
#: Backends that read lengths on the device, so that a recording made at one length serves all.
_RECORDABLE = frozenset({"triton", "flash", "static"})
#: Sizes that trees are padded to where shapes are fixed; beyond, multiples of the last.
RECORDED_ROWS = (1, 8, 16, 32, 64)
_MOST = 64  # recordings kept: each holds its outputs, and sampling settings make keys without end


class Graphs:
    """Recordings that share one memory pool.

    A function must read its inputs from tensors whose place never changes, may not ask the host
    for a device value, and is executed exactly once a call, so it may change its buffers.
    Its outputs are lost when any other recording runs: its work may lie in the same memory.
    """

    def __init__(self, device: torch.device, *, enabled: bool = True) -> None:
        self.device = device
        self._enabled = enabled and device.type == "cuda"
        self._warm: set[Hashable] = set()
        self._recorded: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = OrderedDict()
        self._pool: Any = None
        #: Runs that compiled or recorded something: their time says nothing about the next.
        self.cold_runs = 0

    def is_warm(self, key: Hashable) -> bool:
        """Whether the next ``run`` neither compiles nor records."""
        return key in (self._recorded if self._enabled else self._warm)

    def run(self, key: Hashable, function: Callable[[], T]) -> T:
        """``function()``: executed at the first call (which compiles kernels and sets up
        libraries), recorded at the second, replayed from then on."""
        self.cold_runs += not self.is_warm(key)
        if not self._enabled:
            self._warm.add(key)
            return function()
        if key in self._recorded:
            self._recorded.move_to_end(key)
        elif key in self._warm:
            self._record(key, function)
        else:
            self._warm.add(key)
            return function()
        graph, outputs = self._recorded[key]
        graph.replay()
        result: T = outputs
        return result

    def _record(self, key: Hashable, function: Callable[[], Any]) -> None:
        # Not torch.cuda.graph(): it collects garbage first, which takes longer than the recording.
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = function()
            finally:
                graph.capture_end()
        current.wait_stream(side)
        self._pool = self._pool or graph.pool()
        self._recorded[key] = (graph, outputs)
        if len(self._recorded) > _MOST:
            oldest, _ = self._recorded.popitem(last=False)
            self._warm.discard(oldest)


class Launcher:
    """Launches the parts of a step over one attention backend.

    ``is_fixed``: shapes are the same in every step and the host is never asked for a device value,
    whether recorded or not. Then trees are padded, a draft is planned before it grows, and a step
    may be launched before the last one is settled.
    """

    def __init__(self, graphs: Graphs, backend: str, launch: Launch) -> None:
        """``graphs`` may hold recordings of other backends too."""
        self.is_fixed = backend in _RECORDABLE
        self._graphs, self._backend = graphs, backend
        if not self.is_fixed or launch == "eager":
            self._graphs = Graphs(graphs.device, enabled=False)

    @property
    def cold_runs(self) -> int:
        return self._graphs.cold_runs

    def is_warm(self, *key: Hashable) -> bool:
        return not self.is_fixed or self._graphs.is_warm((*key, self._backend))

    def run(self, function: Callable[[], T], *key: Hashable) -> T:
        """``function()``, recorded under ``key`` where that can be done (see ``Graphs``)."""
        return self._graphs.run((*key, self._backend), function) if self.is_fixed else function()

    def rows(self, count: int) -> int:
        """The rows of a tree of ``count`` nodes, with padding."""
        return padded_rows(count) if self.is_fixed else count

    def length(self, scalar: Tensor) -> Tensor:
        """``scalar`` [] int64 where the backend reads it: on the device, or on the host, for which
        a GPU without recordings is asked once a forward instead of once a layer."""
        return scalar if self.is_fixed else scalar.cpu()


def padded_rows(count: int) -> int:
    """The recorded size that holds ``count`` rows."""
    last = RECORDED_ROWS[-1]
    return next((size for size in RECORDED_ROWS if size >= count), -(-count // last) * last)
