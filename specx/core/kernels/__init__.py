"""Triton kernels; imported only where a GPU and Triton are."""

import importlib.util


def is_available() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None
