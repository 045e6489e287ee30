"""Peak memory of this process or of the GPU, in bytes. It knows no models."""

import sys

import torch


def reset_peak(device: torch.device) -> None:
    """Start a new high mark where the platform allows it (GPU allocator; not a process's RSS)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """High mark: the allocator's on a GPU, the process's resident set on a CPU (0: unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
