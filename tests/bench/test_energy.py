"""The energy counter over a stand-in for NVML, which is the boundary of this module."""

import sys
import types
from typing import Any

import pytest
import torch

from specx.bench.energy import GpuEnergy, open_energy

UUIDS = ("7e2a1f00-0000-4000-8000-000000000000", "7e2a1f00-0000-4000-8000-000000000001")


class FakeNvml(types.ModuleType):
    """Two GPUs with millijoule counters; ``broken`` names the function that fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: str = "") -> None:
        super().__init__("pynvml")
        self.broken, self.opened = broken, 0
        self.millijoules = {f"GPU-{UUIDS[0]}": 5_000, f"GPU-{UUIDS[1]}": 1_234_567}

    def nvmlInit(self) -> None:
        self._fail("init")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._fail("handle")
        if uuid not in self.millijoules:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._fail("energy")
        return self.millijoules[handle]

    def _fail(self, name: str) -> None:
        if name == self.broken:
            raise self.NVMLError(f"{name} is not supported")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES=1,0: torch's first GPU is NVML's second."""

    def properties(device: torch.device) -> Any:
        return types.SimpleNamespace(uuid=UUIDS[1 - (device.index or 0)])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "joules"), [("cuda", 1234.567), ("cuda:1", 5.0)])
def test_the_counter_is_that_of_torchs_device(nvml: FakeNvml, device: str, joules: float) -> None:
    meter = open_energy(device)
    assert isinstance(meter, GpuEnergy)
    assert meter.read_joules() == pytest.approx(joules)
    nvml.millijoules = {uuid: value + 2_500 for uuid, value in nvml.millijoules.items()}
    assert meter.read_joules() == pytest.approx(joules + 2.5)
    assert nvml.opened == 1


@pytest.mark.usefixtures("two_gpus")
def test_a_counter_that_stops_answering_is_none(nvml: FakeNvml) -> None:
    meter = open_energy("cuda")
    assert isinstance(meter, GpuEnergy)
    nvml.broken = "energy"
    assert meter.read_joules() is None


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("broken", ["init", "handle", "energy"])
def test_without_a_counter_there_is_a_reason(nvml: FakeNvml, broken: str) -> None:
    nvml.broken = broken
    reason = open_energy("cuda")
    assert isinstance(reason, str)
    assert f"{broken} is not supported" in reason
    assert nvml.opened == 0


def test_without_nvml_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reason = open_energy("cuda")
    assert isinstance(reason, str)
    assert "nvidia-ml-py" in reason


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_have_no_counter(device: str) -> None:
    reason = open_energy(device)
    assert isinstance(reason, str)
    assert device in reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_counts_upwards() -> None:
    meter = open_energy("cuda")
    if isinstance(meter, str):
        pytest.skip(meter)
    before = meter.read_joules()
    work = torch.ones(4096, 4096, device="cuda")
    for _ in range(500):
        work = (work @ work).clamp(max=1.0)
    torch.cuda.synchronize()
    after = meter.read_joules()
    assert before is not None
    assert after is not None
    assert after > before
