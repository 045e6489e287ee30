"""Shared fixtures: an isolated environment for every test, tiny pairs made once a session."""

import os
import signal

# Set before anything imports torch, tokenizers or the Hub's client, which read them once.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
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


@pytest.fixture(autouse=True, scope="session")
def usual_signals() -> Iterator[None]:
    """Signals as a shell gives them to a program in the foreground, here and in every child.

    A script's background job and ``nohup`` start their programs with signals ignored, and a
    program hands that on to its children: tests of Ctrl-C would wait for ever.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


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
