"""specx as a process: real pipes, real signals, a real terminal. Few, because each loads torch."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.cli.support import exit_code, on_terminal, process, specx

CONTROL = re.compile(rb"\x1b|[\x00-\x08\x0b-\x1f]")
CURSOR_CODES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|.)")


@pytest.fixture
def long_run(workplace):
    """A command line that would decode for a long time."""
    return specx(
        *("summarize", workplace.short, "-m", workplace.preset),
        *("--mode", "plain", "-n", "3500", "--ignore-eos"),
    )


def test_pipes_are_pure_whatever_the_locale(cli, workplace):
    words = ("summarize", "-m", workplace.preset, "-n", "20", "--mode", "specx", "--verify")
    done = process(
        *words,
        stdin=workplace.short.read_bytes(),
        env={"PYTHONIOENCODING": "cp1252", "LC_ALL": "C", "PYTHONUTF8": "0", "FORCE_COLOR": ""},
    )
    assert done.returncode == 0
    expected = cli(*words, stdin=workplace.short.read_bytes())
    assert done.stdout.decode("utf-8") == expected.out
    assert not CONTROL.search(done.stderr)
    assert [line.split(" · ")[0] for line in done.stderr.decode().splitlines()] == [
        expected.err.split(" · ")[0]
    ]


def test_a_reader_that_leaves(long_run):
    """As ``| head -c 3``: no message, no traceback, no complaint at exit, code 141."""
    with subprocess.Popen(long_run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert len(os.read(running.stdout.fileno(), 3)) > 0
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 141


def test_sigterm_keeps_the_text(long_run):
    with subprocess.Popen(long_run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        first = os.read(running.stdout.fileno(), 3)
        running.send_signal(signal.SIGTERM)
        rest, stats = running.communicate(timeout=60)
        assert running.returncode == 143
    assert (first + rest).endswith(b"\n")
    assert stats.decode().rstrip().endswith("interrupted")
    assert "Traceback" not in stats.decode()


def test_ctrl_c_on_a_terminal(long_run):
    """Bar, text with a live line below, ^C: the text stays, the stats follow, code 130."""
    terminal = on_terminal(long_run, NO_COLOR="1")
    terminal.expect_exact("loading tiny")
    terminal.expect(r"(\d+) tok · .* tok/s .* plain\x1b8")
    terminal.sendintr()
    assert exit_code(terminal) == 130
    tail = CURSOR_CODES.sub("", terminal.before)
    assert "interrupted" in tail
    assert "equal to plain: not checked" in tail
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.before), "NO_COLOR"
    assert "Traceback" not in terminal.before


def test_ctrl_c_while_loading_stops_at_once(workplace):
    """Nothing runs yet that could end in good order."""
    words = specx("summarize", workplace.short, "-m", workplace.preset)
    terminal = on_terminal(words)
    terminal.expect_exact("loading tiny")
    terminal.sendintr()
    assert exit_code(terminal) == 130
    assert "Traceback" not in terminal.before


def test_a_terminal_without_input_is_told_at_once():
    words = specx("generate")
    terminal = on_terminal(words)
    terminal.expect_exact("specx generate report.txt")
    assert exit_code(terminal) == 2


def test_a_closed_stdout_is_an_error_and_not_silence():
    program = f"{sys.executable} -m specx --version >&-"
    done = subprocess.run(["sh", "-c", program], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "standard output" in done.stderr


def test_a_shell_loop_keeps_its_list(tmp_path):
    """``while read`` gives specx the list as stdin; a named file must not eat it."""
    names = [str(tmp_path / name) for name in ("one.txt", "two.txt", "three.txt")]
    loop = f'while read f; do {sys.executable} -m specx summarize "$f"; done'
    done = subprocess.run(
        ["sh", "-c", loop],
        input="\n".join(names) + "\n",
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stderr.splitlines() == [f"error: there is no file {name}" for name in names]
