"""Peak memory: a number of plausible size that never falls."""

import sys

import pytest
import torch

from specx.memory import peak_bytes, reset_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such counter")
def test_the_peak_is_in_bytes() -> None:
    # An interpreter with torch holds tens of MiB; KiB taken for bytes would be far below.
    assert 32 << 20 < peak_bytes(CPU) < 1 << 42


def test_the_peak_never_falls() -> None:
    block = torch.ones(64 << 20, dtype=torch.uint8)
    during = peak_bytes(CPU)
    del block
    assert peak_bytes(CPU) >= during >= 64 << 20


def test_a_reset_on_the_cpu_changes_nothing() -> None:
    before = peak_bytes(CPU)
    reset_peak(CPU)
    assert peak_bytes(CPU) >= before


def test_an_unknown_peak_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_bytes(CPU) == 0


@pytest.mark.gpu
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_of_a_gpu_is_the_allocators() -> None:
    device = torch.device("cuda")
    reset_peak(device)
    before = peak_bytes(device)
    block = torch.empty(1 << 20, dtype=torch.uint8, device=device)
    del block
    assert peak_bytes(device) >= before + (1 << 20)
    reset_peak(device)
    assert peak_bytes(device) < before + (1 << 20)
