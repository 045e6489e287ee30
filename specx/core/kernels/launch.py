# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Launching Triton kernels, or compiling them ahead of time, many at once. One that meets new
shapes is compiled at its first launch, a third of a second each, and a first request meets some
sixty. Most of that is spent in ptxas, LLVM and the C compiler, which leave Python's lock alone."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import triton

_IS_AHEAD = ContextVar("specx_is_ahead", default=False)


def launch_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](...)``; within ``compiling_ahead`` it is compiled and not started."""
    kernel.run(*arguments, grid=grid, warmup=_IS_AHEAD.get(), **options)


def launch_early(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``launch_kernel`` of one with a parameter ``PDL``: from compute capability 9 on it starts
    while the kernel before it drains. The first argument is a tensor of its device."""
    early = _starts_early(arguments[0].device)
    launch_kernel(kernel, grid, *arguments, PDL=early, launch_pdl=early, **options)


@functools.cache
def _starts_early(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@contextmanager
def compiling_ahead(device: torch.device) -> Iterator[None]:
    """Within, ``launch_kernel`` starts nothing: at the end all kernels that were to be launched are
    compiled and loaded. What they would have written is undefined, so nothing that is made within
    may be used, nor be the index of anything."""
    with ThreadPoolExecutor(initializer=partial(torch.cuda.set_device, device)) as pool:
        mode = triton.AsyncCompileMode(pool)
        token = _IS_AHEAD.set(True)
        try:
            with mode:
                yield
        finally:
            _IS_AHEAD.reset(token)
        kernels = [each.result() for each in mode.future_kernels.values()]
        list(pool.map(_load, kernels))


def can_compile_ahead() -> bool:
    """Whether this Triton can compile in the background (3.4 and later)."""
    return "AsyncCompileMode" in triton.__all__


def _load(kernel: Any) -> None:
    kernel.run  # noqa: B018  reading it builds the launcher and loads the binary
