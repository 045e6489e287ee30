"""The first signal asks, the second stops; in a run of several documents none follows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specx.cli.signals import Interrupts, Stopped


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_asks_second_stops(signum):
    asked = []
    with Interrupts() as interrupts:
        interrupts.on_first(lambda: asked.append(signum))
        assert interrupts.exit_code is None
        signal.raise_signal(signum)
        assert asked == [signum]
        assert interrupts.exit_code == 128 + signum
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(signum)
        assert stopped.value.exit_code == 128 + signum
    assert asked == [signum]


def test_without_anything_to_ask_the_first_one_stops():
    with Interrupts(), pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_at_once_the_first_one_stops_whatever_could_be_asked():
    asked = []
    with Interrupts() as interrupts:
        interrupts.on_first(lambda: asked.append(1))
        with pytest.raises(Stopped), interrupts.at_once():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped), interrupts.at_once():
            pytest.fail("begun although a signal had come before")
    with Interrupts() as interrupts:
        interrupts.on_first(lambda: asked.append(1))
        with pytest.raises(Stopped), interrupts.at_once(), contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
    assert not asked
    with Interrupts() as interrupts:
        interrupts.on_first(lambda: asked.append(1))
        with interrupts.at_once():
            pass
        signal.raise_signal(signal.SIGINT)
    assert asked


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_after(monkeypatch, chunks):
    """SIGINT, as from Ctrl-C, when that many pieces of text have been made."""
    from specx.prompts import TextStream

    push, count = TextStream.push, [0]

    def counting(self, tokens):
        count[0] += 1
        if count[0] == chunks:
            signal.raise_signal(signal.SIGINT)
        return push(self, tokens)

    monkeypatch.setattr(TextStream, "push", counting)


def test_an_interrupted_answer_is_complete_as_far_as_it_goes(cli, workplace, monkeypatch):
    words = ("summarize", workplace.short, "-m", workplace.preset, "--mode", "plain", "-n", "40")
    whole = cli(*words).out
    interrupt_after(monkeypatch, 5)
    done = cli(*words)
    assert done.code == 130
    assert done.out.endswith("\n")
    assert whole.startswith(done.out[:-1])
    assert done.err.splitlines()[-1].endswith("interrupted")
    interrupt_after(monkeypatch, 5)
    found = json.loads(cli(*words, "-o", "json", "--verify").out)
    assert found["finish_reason"] == "interrupted"
    assert found["verify"] is None
    assert 5 <= found["tokens"]["new"] <= 6


def test_no_document_follows_an_interrupted_one(cli, workplace, monkeypatch, tmp_path):
    out = tmp_path / "answers.jsonl"
    interrupt_after(monkeypatch, 3)
    files = (workplace.short, workplace.document)
    words = ("-m", workplace.preset, "-n", "20", "-o", "jsonl", "--out", out, "--keep-going")
    assert cli("summarize", *files, *words).code == 130
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["finish_reason"] == "interrupted"


def test_a_signal_during_the_check_keeps_the_answer(cli, workplace, monkeypatch):
    from specx.engine import Engine

    monkeypatch.setattr(Engine, "verify", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    words = ("summarize", workplace.short, "-m", workplace.preset, "-n", "4", "--verify")
    done = cli(*words)
    assert done.code == 130
    assert done.out.strip()
    assert "equal to plain: not checked" in done.err


def test_a_stop_that_an_import_swallowed_is_still_a_stop():
    """Regression: one Ctrl-C in twenty, in the midst of importing torch, vanished there; the next
    import then failed, and the user read of a bug in specx."""

    def importing():
        with Interrupts():
            with contextlib.suppress(BaseException):
                signal.raise_signal(signal.SIGINT)
            raise ModuleNotFoundError("Could not import module")

    with pytest.raises(Stopped) as stopped:
        importing()
    assert stopped.value.exit_code == 130


def ignored_interrupts():
    """What a script's background job inherits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_an_inherited_ignore_is_kept():
    """Regression: Ctrl-C in a script's terminal must not reach its background jobs."""
    program = """
import os, signal
import specx.cli.main as main, specx.cli.run as run
from specx.cli.signals import Interrupts
def interrupted(*_):
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
    print("went on")
    raise SystemExit(7)
run.resolve = interrupted
main.main()
"""
    for ignores, expected in ((ignored_interrupts, (7, "went on\n")), (None, (130, ""))):
        done = subprocess.run(
            [sys.executable, "-c", program, "summarize", "x"],
            preexec_fn=ignores,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == expected


def test_the_tests_do_not_depend_on_who_starts_them():
    """Regression: 25 tests failed under ``nohup`` and from a script's background."""
    here, root = Path(__file__).parent, Path(__file__).parent.parent.parent
    tests = (
        f"{here / 'test_cli_signals.py'}::test_first_asks_second_stops",
        f"{here / 'test_cli_processes.py'}::test_ctrl_c_while_loading_stops_at_once",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        preexec_fn=ignored_interrupts,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
