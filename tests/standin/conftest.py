"""What both rooms of stand-in tests build from."""

import json
from importlib.resources import files
from typing import Any

import pytest

#: A target larger than pocket's in every size.
TARGET: dict[str, Any] = {
    "layers": 10,
    "hidden": 768,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 128,
    "mlp": 1536,
    "vocabulary": 9000,
}


@pytest.fixture(scope="session")
def text() -> str:
    """Short: prefill is what these tests take their time for."""
    sample = files("specx.bench").joinpath("sample.jsonl").read_text("utf-8").splitlines()[0]
    return str(json.loads(sample)["text"])[:1200]
