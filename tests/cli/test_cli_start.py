"""What must be quick and light: help, version, topics; and that none of it imports torch."""

import subprocess
import sys
import time

import pytest

from specx._version import __version__
from specx.cli.main import COMMANDS as COMMANDS_OF_THE_PROGRAM
from tests.cli.support import process

COMMANDS = ([], ["generate"], ["summarize"], ["presets"], ["help"])
HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "tokenizers")


def test_version_in_under_a_second():
    """The best of three starts: the machine may be busy with other tests."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = process("--version")
        seconds.append(time.perf_counter() - began)
        assert (done.returncode, done.stdout.decode()) == (0, f"specx {__version__}\n")
        if seconds[-1] < 1:
            return
    pytest.fail(f"specx --version took {min(seconds):.2f} s")


def test_nothing_light_imports_torch():
    program = f"""
import sys
from specx.cli.main import run
for words in {COMMANDS!r}:
    assert run([*words, "--help"]) == 0
assert run([]) == 0
assert run(["presets", "list"]) == 0
assert run(["presets", "show", "pocket"]) == 0
assert run(["generate", "--show-settings"]) == 0
assert run(["summarize", "no-such-file.txt"]) == 3
assert run(["help", "exit-codes"]) == 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "specx")
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_a_screen(cli, words, option):
    lines = cli(*words, option).out.splitlines()
    assert lines[0].startswith("Usage: specx")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 43


def test_a_command_that_is_not_loaded_is_listed_by_its_own_words(cli):
    shown = cli("--help").out.splitlines()
    loaded = cli("--help", *COMMANDS_OF_THE_PROGRAM).out.splitlines()
    assert sorted(loaded) == sorted(shown)
    for name, summary in COMMANDS_OF_THE_PROGRAM.items():
        assert summary in " ".join(cli(name, "--help").out.split())


def test_help_imports_no_command_and_nothing_slow():
    """``specx --help`` answers in half a second: pydantic, Rich and YAML alone cost as much."""
    program = f"""
import sys
from specx.cli.main import run
assert run(["--help"]) == 0
slow = {HEAVY!r} + ("pydantic", "rich", "yaml", "platformdirs", "specx.cli.run", "specx.bench")
loaded = [name for name in slow if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_no_arguments_are_help(cli):
    assert cli() == cli("--help")


def test_unknown_words_get_a_suggestion(cli):
    command = cli("summarise", "x.txt")
    assert command.code == 2
    assert "summarize" in command.err
    option = cli("generate", "--max-token", "3")
    assert option.code == 2
    assert "--max-tokens" in option.err
    assert option.err.startswith("error: ")


def test_topics(cli):
    codes = cli("help", "exit-codes").out
    for code in (0, 2, 3, 4, 5, 6, 7, 8, 10, 130, 141, 143):
        assert any(line.split()[0] == str(code) for line in codes.splitlines())
    assert "SPECX_PRESET" in cli("help", "environment").out
    assert "jsonl" in cli("help", "output").out
    assert cli("help", "nonsense").code == 2


def test_presets_are_listed_and_shown(cli):
    listed = cli("presets", "list")
    header, *rows = [line.split("\t") for line in listed.out.splitlines()]
    assert header[:3] == ["name", "target", "draft"]
    assert ["pocket", "pocket/target", "lm"] in [row[:3] for row in rows]
    assert cli("presets").out == listed.out
    shown = cli("presets", "show", "pocket", "--set", "tree.nodes=9")
    assert "nodes: 9" in shown.out
    assert cli("presets", "show", "pokcet").code == 2
    assert '"tree"' in cli("presets", "schema").out


def test_an_unexpected_exception_is_one_line(workplace):
    program = """
import sys, specx.cli.main as main, specx.cli.run as job
def broken(*_): raise KeyError("surprise")
job.resolve = broken
main.main()
"""
    words = ["generate", str(workplace.short), "-o", "json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, check=False, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: unexpected KeyError: 'surprise'"
    assert "Traceback" not in done.stderr
    assert "SPECX_DEBUG" in done.stderr
    assert '"specx.error/1"' in done.stdout
