"""The machine, the libraries and the source tree of a result, and the place of compiled kernels."""

import contextlib
import functools
import os
import platform
import re
import subprocess
from collections.abc import MutableMapping
from importlib.metadata import distributions
from pathlib import Path

from typing_extensions import TypedDict

_GIT_S = 5.0  # a slow disk must not hold up a result


class Environment(TypedDict):
    """Facts as the JSON outputs list them; None where one does not apply or is not known."""

    device: str
    gpu: str | None
    cuda: str | None
    driver: str | None
    cpu: str
    threads: int
    torch: str
    transformers: str | None
    python: str
    os: str


def environment(device: str) -> Environment:
    """The facts of this process, on ``device``."""
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


def keep_compiled(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let Triton keep what it compiles below ``SPECX_CACHE_DIR``, else in the user's cache folder.

    A variable that the user has set wins; where nothing can be written its default remains.
    """
    import platformdirs

    given = environ.get("SPECX_CACHE_DIR")
    root = (Path(given) if given else platformdirs.user_cache_path("specx")).absolute()
    existing = next(each for each in (root, *root.parents) if each.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
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
