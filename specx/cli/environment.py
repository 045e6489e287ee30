"""The machine and the libraries that a result was made with.

Goes in: a device name. Comes out: a flat mapping for the JSON output. Only called after a run, so
torch is loaded by then.
"""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """Facts as ``specx.result/1`` lists them; None where they do not apply or are not known."""
    import torch

    on_gpu = device.startswith("cuda")
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine()) or f"{os.cpu_count()} cores"
