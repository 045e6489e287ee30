"""CUDA graphs: a fixed sequence of kernels, recorded once and replayed with one call of the host.

In: a key and a function of static buffers. Out: its result, from the first call's own execution or
from a replay. It does not know models, trees or attention. On other devices the function is
simply called.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_MOST = 64  # recordings kept: each holds its outputs, and sampling settings make keys without end


class Graphs:
    """Recordings that share one memory pool.

    A function must read its inputs from tensors whose place never changes, may not ask the host
    for a device value, and is executed exactly once a call, so it may change its buffers.
    Its outputs are overwritten by the next call with the same key.
    """

    def __init__(self, device: torch.device, *, enabled: bool = True) -> None:
        self._device = device
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
        current = torch.cuda.current_stream(self._device)
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
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
