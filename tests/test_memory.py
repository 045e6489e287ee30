"""Peak memory: a number of plausible size that only a reset lowers."""

import sys
from pathlib import Path

import pytest
import torch

from specx import memory
from specx.memory import peak_bytes, reset_peak

CPU = torch.device("cpu")
BLOCK_BYTES = 300 << 20


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without /proc."""
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "proc" / "clear_refs")


def touch_and_free(count: int) -> int:
    """Fill so many bytes; the peak while they are held."""
    block = torch.ones(count, dtype=torch.uint8)
    during = peak_bytes(CPU)
    del block
    return during


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such counter")
def test_the_peak_is_in_bytes() -> None:
    # An interpreter with torch holds tens of MiB; KiB taken for bytes would be far below.
    assert 32 << 20 < peak_bytes(CPU) < 1 << 42


def test_the_peak_outlasts_what_was_freed() -> None:
    during = touch_and_free(64 << 20)
    assert peak_bytes(CPU) >= 0.99 * during >= 0.99 * (64 << 20)


def test_after_a_reset_what_was_freed_no_longer_counts() -> None:
    if not reset_peak(CPU):
        pytest.skip("this system has no resettable high mark")
    before = peak_bytes(CPU)
    during = touch_and_free(BLOCK_BYTES)
    assert during >= before + 0.9 * BLOCK_BYTES
    assert reset_peak(CPU)
    assert peak_bytes(CPU) < during - 0.5 * BLOCK_BYTES


@pytest.mark.usefixtures("no_proc")
def test_where_no_reset_is_possible_the_peak_stays() -> None:
    before = peak_bytes(CPU)
    assert not reset_peak(CPU)
    assert peak_bytes(CPU) >= before


@pytest.mark.usefixtures("no_proc")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such counter")
def test_without_proc_the_usage_counter_answers_in_bytes() -> None:
    assert 32 << 20 < peak_bytes(CPU) < 1 << 42


@pytest.mark.parametrize("text", ["", "VmRSS:\t  12 kB\n", "VmHWM:\t  ? kB\n"])
def test_a_status_without_the_mark_falls_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    status = tmp_path / "status"
    status.write_text(text, encoding="ascii")
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_bytes(CPU) == 0


@pytest.mark.usefixtures("no_proc")
def test_an_unknown_peak_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_bytes(CPU) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_of_a_gpu_is_the_allocators() -> None:
    device = torch.device("cuda")
    assert reset_peak(device)
    before = peak_bytes(device)
    block = torch.empty(1 << 20, dtype=torch.uint8, device=device)
    del block
    assert peak_bytes(device) >= before + (1 << 20)
    reset_peak(device)
    assert peak_bytes(device) < before + (1 << 20)
