"""What a user installs: the package, the weights and the presets; nothing that made them."""

from pathlib import Path

import pytest

from specx.preset.preset import available_presets

hatchling = pytest.importorskip("hatchling.builders.wheel", reason="comes with pip install .[test]")

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    """Paths in the wheel, without its metadata."""
    builder = hatchling.WheelBuilder(str(_ROOT))
    return {file.distribution_path for file in builder.recurse_included_files()}


def test_nothing_lies_beside_the_package(wheel: set[str]) -> None:
    assert {path.partition("/")[0] for path in wheel} == {"specx"}
    rooms = {path.split("/")[1] for path in wheel}
    assert not rooms & {"training", "tools", "tests", "docs"}


def test_all_of_the_package_is_there(wheel: set[str]) -> None:
    sources = {
        path.relative_to(_ROOT).as_posix()
        for path in (_ROOT / "specx").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= wheel
    assert "specx/py.typed" in sources


def test_the_weights_and_the_presets_are_there(wheel: set[str]) -> None:
    weights = {Path(path).parent.name for path in wheel if path.endswith(".safetensors")}
    assert weights == {"target", "draft", "eagle", "eagle3"}
    shipped = {entry.path.name for entry in available_presets() if entry.origin == "shipped"}
    assert {f"specx/presets/{name}" for name in shipped} <= wheel
