"""Energy of the GPU that torch computes on, from the driver's counter. NVML counts millijoules of
the whole GPU, other processes included, and renews the number some ten times a second: short spans
are coarse. Nothing polls here."""

from typing import Any


class GpuEnergy:
    """An open counter; the driver forgets it with the process."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read_joules(self) -> float | None:
        """The counter in joules; None where it fails. Wait for the device before reading."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000.0
        except self._nvml.NVMLError:
            return None


def open_energy(device: str) -> GpuEnergy | str:
    """The energy counter of ``device`` (``cuda``, ``cuda:1``), or why it has none."""
    if not device.startswith("cuda"):
        return f"only NVIDIA GPUs count their energy, and this is {device}"
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    import torch

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML does not answer: {error}"
    try:
        # By UUID, as CUDA_VISIBLE_DEVICES renumbers torch's GPUs and not NVML's.
        uuid = torch.cuda.get_device_properties(torch.device(device)).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        return f"this GPU has no energy counter: {error}"
    return GpuEnergy(pynvml, handle)
