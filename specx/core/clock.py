"""Seconds of a step's phases, by the clock of the device that does the work."""

import itertools
import time

import torch


class Clock:
    """Runs from its creation. This one is the host's, for a device that works in step with it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] = now - self._last
        self._last = now

    def seconds(self, previous: "Clock | None") -> dict[str, float]:
        """Seconds by phase, and under "gap" how long the device was idle after ``previous``: a
        host never is."""
        return self._seconds


class StreamClock(Clock):
    """Events on a GPU's stream: the host may run ahead between phases; only reading waits."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._phases: list[str] = []
        self._events = [self._stream.record_event(_event())]

    def mark(self, phase: str) -> None:
        self._phases.append(phase)
        self._events.append(self._stream.record_event(_event()))

    def seconds(self, previous: "Clock | None") -> dict[str, float]:
        self._events[-1].synchronize()
        pairs = zip(self._phases, itertools.pairwise(self._events), strict=True)
        seconds = {phase: start.elapsed_time(end) / 1000 for phase, (start, end) in pairs}
        if isinstance(previous, StreamClock):
            seconds["gap"] = max(0.0, previous._events[-1].elapsed_time(self._events[0]) / 1000)
        return seconds


def now(device: torch.device) -> float:
    """Seconds on the host's clock once ``device`` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def start_clock(device: torch.device) -> Clock:
    """A running clock for work on ``device``."""
    return StreamClock(device) if device.type == "cuda" else Clock()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Readout:
    """Device tensors on their way to the host: ``wait`` is the step's one synchronisation.

    A recording's output is to be taken before another recording runs: they share their memory.
    """

    def __init__(self) -> None:
        self._on_host: list[torch.Tensor | None] = []
        self._arrived: torch.cuda.Event | None = None

    def take(self, *tensors: torch.Tensor | None) -> None:
        """Later writes to ``tensors`` on the same stream do not change what is read. None keeps a
        place empty."""
        self._on_host += [None if tensor is None else _to_host(tensor) for tensor in tensors]
        if any(tensor is not None and tensor.device.type == "cuda" for tensor in tensors):
            if self._arrived is None:
                self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()  # after what was taken last

    def wait(self) -> list[torch.Tensor | None]:
        """The values on the host, in the order in which they were taken."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._on_host


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
