"""Streams, processes and places that the tests of the command line share."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pexpect

from tests.helpers import PairDirs, preset_for


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Workplace:
    """A directory with a preset of a tiny pair and two documents."""

    directory: Path
    preset: Path
    document: Path
    short: Path


class Untouchable(io.RawIOBase):
    """A stdin that nobody may read: not when a file is named, not when a terminal has no reader."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise AssertionError("standard input was read")


def as_stdin(data: bytes | Untouchable) -> io.TextIOWrapper:
    """``data`` as ``sys.stdin``."""
    raw = io.BytesIO(data) if isinstance(data, bytes) else io.BufferedReader(data)
    return io.TextIOWrapper(raw)


class Captured(io.BytesIO):
    """The bytes below a captured text stream; they outlive the stream."""

    def close(self) -> None:
        self.flush()


class CapturedTerminal(Captured):
    """The same, and it claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def write_preset(directory: Path, pair: PairDirs) -> Path:
    """``tiny.yaml`` for a pair, in ``directory``."""
    path = directory / "tiny.yaml"
    path.write_text(preset_for(pair).to_yaml(), encoding="utf-8")
    return path


def specx(*arguments: str | Path) -> list[str]:
    """The words that start specx as a process of its own."""
    return [sys.executable, "-m", "specx", *map(str, arguments)]


def process(
    *arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run specx as a process, to its end."""
    return subprocess.run(
        specx(*arguments),
        input=stdin,
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=120,
        check=False,
    )


def on_terminal(
    command: list[str], *, columns: int = 80, rows: int = 24, **environment: str
) -> pexpect.spawn:
    """Start a program on a terminal of its own."""
    # What runs the tests may set COLUMNS, which counts more than the terminal's size.
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return pexpect.spawn(
        command[0],
        command[1:],
        encoding="utf-8",
        codec_errors="replace",
        dimensions=(rows, columns),
        timeout=60,
        env={**inherited, "TERM": "xterm-256color", **environment},
    )


def exit_code(terminal: pexpect.spawn) -> int:
    """Wait for the program's end; what it wrote is in ``terminal.before``."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus is not None
    return terminal.exitstatus
