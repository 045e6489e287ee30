"""Facts about the machine, and the commit of a source tree made on the spot."""

import os
import platform
import pwd
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from specx import environment as module
from specx.environment import (
    driver_version,
    environment,
    keep_compiled,
    source_commit,
    user_folder,
)
from specx.preset.preset import user_preset_files

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(directory: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    # Run from a git hook, these tests must not write to the hook's repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *words],
        check=True,
        capture_output=True,
        text=True,
        env=clean,
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A committed package in a git work tree."""
    directory = tmp_path / "tree" / "specx"
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text("", encoding="utf-8")
    git(tmp_path / "tree", "init", "--quiet")
    git(tmp_path / "tree", "add", ".")
    git(tmp_path / "tree", "commit", "--quiet", "-m", "first")
    return directory


def fake_nvml(version: object, broken: str = "") -> types.ModuleType:
    """The three functions of pynvml that are asked; ``broken`` names the one that fails."""
    fake = types.ModuleType("pynvml")
    fake.NVMLError = type("NVMLError", (Exception,), {})  # type: ignore[attr-defined]
    fake.shutdowns = 0  # type: ignore[attr-defined]

    def answer(name: str, value: object) -> object:
        if name == broken:
            raise fake.NVMLError(name)
        return value

    def shutdown() -> None:
        fake.shutdowns += 1  # type: ignore[attr-defined]

    fake.nvmlInit = lambda: answer("init", None)  # type: ignore[attr-defined]
    fake.nvmlSystemGetDriverVersion = lambda: answer("version", version)  # type: ignore[attr-defined]
    fake.nvmlShutdown = shutdown  # type: ignore[attr-defined]
    return fake


def test_the_facts_of_a_cpu() -> None:
    facts = environment("cpu")
    assert list(facts) == [
        "device",
        "gpu",
        "cuda",
        "driver",
        "cpu",
        "threads",
        "torch",
        "transformers",
        "python",
        "os",
    ]
    assert facts["device"] == "cpu"
    assert facts["gpu"] is facts["cuda"] is facts["driver"] is None
    assert facts["cpu"]
    assert facts["threads"] >= 1
    assert facts["python"] == platform.python_version()


@pytest.mark.parametrize("version", ["580.95.05", b"580.95.05"])
def test_the_driver_is_nvmls(monkeypatch: pytest.MonkeyPatch, version: object) -> None:
    fake = fake_nvml(version)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert driver_version() == "580.95.05"
    assert fake.shutdowns == 1


@pytest.mark.parametrize(("broken", "shutdowns"), [("init", 0), ("version", 1)])
def test_no_driver_is_none(monkeypatch: pytest.MonkeyPatch, broken: str, shutdowns: int) -> None:
    fake = fake_nvml("", broken)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert driver_version() is None
    assert fake.shutdowns == shutdowns


def test_no_nvml_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_version() is None


@needs_git
def test_compiled_kernels_are_kept(tmp_path: Path) -> None:
    given = {"SPECX_CACHE_DIR": str(tmp_path / "new" / "kernels"), "TRITON_CACHE_DIR": "/mine"}
    keep_compiled(given)
    assert given["TRITON_CACHE_DIR"] == "/mine"
    assert not (tmp_path / "new").exists()
    usual: dict[str, str] = {}
    keep_compiled(usual)
    places = {Path(value) for value in usual.values()}
    assert {place.name for place in places} in ({"triton"}, set())
    assert all("specx" in place.parts for place in places)


def test_a_cache_folder_that_cannot_be_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = {"SPECX_CACHE_DIR": str(tmp_path / "file" / "kernels")}
    keep_compiled(given)
    assert list(given) == ["SPECX_CACHE_DIR"]


@pytest.mark.parametrize("home", ["", "relative", "~nobody", "/dev/null", "/dev/null/home"])
def test_a_home_that_is_none(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """Regression: where HOME was unusable every command ended in a traceback."""
    for name in list(os.environ):
        if name.startswith(("XDG_", "SPECX_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # nobody knows this user
    environ: dict[str, str] = {}
    keep_compiled(environ)
    assert environ == {}
    assert user_preset_files() == []
    folder = user_folder("state")
    assert folder is None or home in str(folder)
    assert user_folder("state", {"SPECX_STATE_DIR": "/mine"}) == Path("/mine")


def test_a_clean_tree_has_its_commit(package: Path) -> None:
    commit = source_commit(package)
    assert commit
    assert git(package, "rev-parse", "HEAD").startswith(commit)


@needs_git
def test_an_edited_file_shows(package: Path) -> None:
    (package / "__init__.py").write_text("changed = True\n", encoding="utf-8")
    commit, plus, word = str(source_commit(package)).partition("+")
    assert git(package, "rev-parse", "HEAD").startswith(commit)
    assert plus + word == "+changes"


@needs_git
def test_changes_elsewhere_in_the_tree_do_not_count(package: Path) -> None:
    (package.parent / "notes.txt").write_text("todo", encoding="utf-8")
    assert "+" not in str(source_commit(package))


@needs_git
def test_a_wheel_in_somebodys_work_tree_has_no_commit(package: Path) -> None:
    site = package.parent / ".venv" / "site-packages" / "specx"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("", encoding="utf-8")
    assert source_commit(site) is None


@needs_git
def test_a_git_hook_does_not_lead_elsewhere(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    assert source_commit(package) is not None


@needs_git
def test_an_empty_repository_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    assert source_commit(tmp_path) is None


def test_outside_of_a_work_tree_there_is_no_commit(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("", encoding="utf-8")
    assert source_commit(tmp_path) is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(tmp_path) is None


def test_a_slow_git_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang(*words: object, **settings: object) -> None:
        raise subprocess.TimeoutExpired("git", 5.0)

    monkeypatch.setattr(module.subprocess, "run", hang)
    assert source_commit(tmp_path) is None
