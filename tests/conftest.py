"""Shared fixtures: an isolated environment for every test, tiny pairs made once a session."""

import os

# Set before anything imports torch, tokenizers or the Hub's client, which read them once.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers import FAMILIES, PairDirs, save_pair

# The same examples on every machine, however slow: a run that fails, fails again. For new ones:
# pytest --hypothesis-profile=default
settings.register_profile("specx", deadline=None, derandomize=True, database=None)
settings.load_profile("specx")


@pytest.fixture(autouse=True)
def isolated_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test sees the user's own presets, settings or colours, or writes where they keep state."""
    for name in [name for name in os.environ if name.startswith("SPECX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPECX_CONFIG_DIR", str(tmp_path_factory.getbasetemp() / "no-config"))
    monkeypatch.setenv("SPECX_STATE_DIR", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> PairDirs:
    """A random llama target and a smaller llama draft that shares its tokenizer. Read only."""
    return save_pair(tmp_path_factory.mktemp("tiny-pair"))


@pytest.fixture(scope="session")
def tiny_pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PairDirs]:
    """Family name → pair directories, each made once. Read only."""
    made: dict[str, PairDirs] = {}

    def pair_of(family: str) -> PairDirs:
        if family not in made:
            made[family] = save_pair(tmp_path_factory.mktemp(f"tiny-{family}"), family)
        return made[family]

    return pair_of


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Runs a test once for every architecture that specx supports."""
    name: str = request.param
    return name


@pytest.fixture
def own_pair(tmp_path: Path) -> PairDirs:
    """A fresh pair that the test may damage."""
    return save_pair(tmp_path / "pair")
