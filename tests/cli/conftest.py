"""The command line in this process, on streams that the test sees; and a preset of a tiny pair."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from specx.bench import roofline as floor
from specx.cli.main import run
from tests.cli.support import (
    Captured,
    CapturedTerminal,
    Outcome,
    Untouchable,
    Workplace,
    as_stdin,
    write_preset,
)
from tests.helpers import save_pair, story


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """``cli("generate", "a.txt", stdin=b"…")`` runs ``specx generate a.txt`` in this process."""

    def call(
        *arguments: str | Path,
        stdin: bytes | Untouchable = b"",
        to_terminal: bool = False,
        err_to_terminal: bool = False,
    ) -> Outcome:
        out = CapturedTerminal() if to_terminal else Captured()
        err = CapturedTerminal() if err_to_terminal else Captured()
        monkeypatch.setattr(sys, "stdin", as_stdin(stdin))
        for name, stream in (("stdout", out), ("stderr", err)):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, "utf-8", write_through=True))
        code = run([str(word) for word in arguments])
        return Outcome(code, out.getvalue().decode(), err.getvalue().decode())

    return call


@pytest.fixture
def quick_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware that is measured in no time."""
    monkeypatch.setattr(floor, "_BANDWIDTH_S", 0.02)
    monkeypatch.setattr(floor, "_RATE_S", 0.02)
    monkeypatch.setattr(floor, "_PRODUCTS", floor._PRODUCTS[:1])


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Made once; read only. The draft is the target slightly disturbed, so that it is useful."""
    directory = tmp_path_factory.mktemp("workplace")
    preset = write_preset(directory, save_pair(directory, draft_weights="noisy"))
    place = Workplace(directory, preset, directory / "report.txt", directory / "short.txt")
    place.document.write_text(story(600), encoding="utf-8")
    place.short.write_text(story(60, seed=1), encoding="utf-8")
    return place
