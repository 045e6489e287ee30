"""The public face: sorted names, all of them there, and imports that cost nothing."""

import subprocess
import sys

import pytest

import specx

_HEAVY = ("torch", "transformers", "tokenizers", "huggingface_hub", "numpy")


def _imports(code: str) -> str:
    """Which heavy packages a fresh interpreter holds after running ``code``."""
    report = f"import sys\n{code}\nprint(*[name for name in {_HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_public_names_are_sorted_and_unique() -> None:
    assert specx.__all__ == sorted(set(specx.__all__))


@pytest.mark.parametrize("name", specx.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(specx, name) is not None


def test_public_classes_know_where_they_live() -> None:
    for name in specx.__all__:
        thing = getattr(specx, name)
        if name != "__version__":
            assert thing.__name__ == name
            assert thing.__module__.startswith("specx.")
            assert thing.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'specx' has no attribute 'nonsense'"):
        _ = specx.nonsense
    with pytest.raises(ImportError):
        exec("from specx import nonsense")


def test_all_names_come_with_a_star() -> None:
    names: dict[str, object] = {}
    exec("from specx import *", names)
    assert set(specx.__all__) <= set(names)


@pytest.mark.parametrize(
    "module",
    [
        "specx",
        "specx.core",
        "specx.core.config",
        "specx.core.stats",
        "specx.errors",
        "specx.preset.preset",
    ],
)
def test_importing_it_loads_no_heavy_package(module: str) -> None:
    assert _imports(f"import {module}") == ""


def test_the_version_is_a_release_number() -> None:
    assert specx.__version__.split(".")[0].isdigit()
