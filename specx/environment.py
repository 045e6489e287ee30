"""The machine, the libraries and the source tree of a result, and the place of compiled kernels."""

import contextlib
import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping, MutableMapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

_GIT_S = 5.0  # a slow disk must not hold up a result


def environment(device: str) -> dict[str, Any]:
    """The facts of this process, on ``device``, as ``MachineFacts`` has them."""
    import torch

    on_gpu = device.startswith("cuda")
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "driver": driver_version() if on_gpu else None,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": next((each.version for each in distributions(name="transformers")), None),
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
    }


def user_folder(
    kind: Literal["cache", "config", "state"], environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Where specx keeps its own files of a kind; ``SPECX_CACHE_DIR`` and the like move it.

    None where there is no home: HOME is unset for an unknown user, relative, or anything else.
    """
    import platformdirs

    if given := environ.get(f"SPECX_{kind.upper()}_DIR"):
        return Path(given)
    try:
        return Path(getattr(platformdirs, f"user_{kind}_path")("specx"))
    except RuntimeError:
        return None


def keep_compiled(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let Triton keep what it compiles where the next run finds it.

    In the user's cache folder. A variable that the user has set wins, and where nothing can be
    written Triton's default remains. Makes no folder.
    """
    folder = user_folder("cache", environ)
    if folder is None:
        return
    with contextlib.suppress(OSError):  # a relative folder, and a working directory that is gone
        root = folder.absolute()
        existing = next(each for each in (root, *root.parents) if os.path.exists(each))
        if os.path.isdir(existing) and os.access(existing, os.W_OK):
            environ["TRITON_CACHE_DIR"] = environ.get("TRITON_CACHE_DIR") or str(root / "triton")


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without NVML (package nvidia-ml-py) or without a GPU."""
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    with contextlib.suppress(pynvml.NVMLError), contextlib.ExitStack() as stack:
        pynvml.nvmlInit()
        stack.callback(pynvml.nvmlShutdown)
        found = pynvml.nvmlSystemGetDriverVersion()
        return found.decode() if isinstance(found, bytes) else str(found)
    return None


@functools.cache
def source_commit(package: Path = Path(__file__).parent) -> str | None:
    """Abbreviated git commit of the source tree that specx runs from; None in an installed wheel.

    ``+changes`` is appended where files of the package differ from that commit.
    """
    # A wheel inside somebody's work tree is not part of it: git must know the package's files.
    if _git(package, "ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "--short", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}+changes" if commit and changes else commit or None


def _git(directory: Path, *words: str) -> str | None:
    """What a git command prints; None where it fails or there is no git."""
    # Inside a git hook the environment names another repository.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ = inherited | {"GIT_OPTIONAL_LOCKS": "0"}  # do not write to the index
    command, null = ["git", "-C", str(directory), *words], subprocess.DEVNULL
    try:
        printed = subprocess.check_output(
            command, env=environ, stdin=null, stderr=null, timeout=_GIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return printed.decode("utf-8", errors="replace").strip()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if named := re.search(r"^model name\s*:(.*)", facts, re.MULTILINE):
            return named[1].strip()
    return platform.processor() or platform.machine() or f"{os.cpu_count()} cores"
