"""Peak memory of this process or of the GPU, in bytes. It knows no models."""

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> bool:
    """Start a new high mark: the GPU allocator's, or on Linux that of this process.

    Returns whether there is a new one. Where the system has no such switch or forbids it (some
    containers), the mark stays that of the whole process since it started.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5", encoding="ascii")  # 5: the resident set's high mark, see proc(5)
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device) -> int:
    """High mark: the allocator's on a GPU, the process's resident set elsewhere (0: unknown).

    Since the last ``reset_peak`` that returned True, otherwise since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    mark = _status_bytes("VmHWM")
    return _usage_bytes() if mark is None else mark


def _status_bytes(field: str) -> int | None:
    """A line such as ``VmHWM:   1234 kB`` of this process's status, where there is one (Linux)."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values and values[0].isdecimal() else None


def _usage_bytes() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
