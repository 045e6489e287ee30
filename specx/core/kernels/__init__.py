"""Triton kernels; imported only where a GPU and Triton are."""

import importlib
import importlib.util
from types import ModuleType

import torch


def is_available() -> bool:
    return importlib.util.find_spec("triton") is not None


def fused(name: str, device: torch.device, wanted: bool | None) -> ModuleType | None:
    """The module ``name`` of this package where it is ``wanted`` or, if that is None, can run."""
    if wanted is None:
        wanted = device.type == "cuda" and is_available()
    return importlib.import_module(f"specx.core.kernels.{name}") if wanted else None
