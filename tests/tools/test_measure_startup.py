"""The program that measures the start-up: what it times, what it counts, what it prints."""

import json
import os

import pytest

from tools import measure_startup as startup

ENV = {"gpu": None, "cpu": "Some CPU", "threads": 2, "torch": "2.13.0", "python": "3.11"}


def test_words_are_timed_as_they_come() -> None:
    program = "import sys, time; print('a', flush=True); time.sleep(0.3); print('b', flush=True)"
    finished = startup.run(["-c", program + "; time.sleep(0.2)"])
    timing = finished.timing
    assert finished.out == "a\nb\n"
    assert timing.last_word_s - timing.first_word_s > 0.25
    assert timing.exit_s - timing.last_word_s > 0.15


def test_a_command_that_fails_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="ended with code 3:\nbroken"):
        startup.run(["-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"])


def test_commands_take_turns_and_the_first_round_does_not_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = [startup.Command("a", ("-c", "pass")), startup.Command("b", ("-c", "pass"), True)]
    timings = startup.measure(commands, 2)
    assert {name: len(found) for name, found in timings.items()} == {"a": 2, "b": 2}
    shown = capsys.readouterr().err
    assert shown.index("round 1 of 2: b") < shown.index("round 2 of 2: a")


def test_a_cold_command_finds_empty_caches_each_time() -> None:
    program = "import os; print(os.environ['TRITON_CACHE_DIR'], os.environ['SPECX_CACHE_DIR'])"
    command = startup.Command("cold", ("-c", program), is_cold=True)
    folders = [startup.run_command(command).out.split() for _ in range(2)]
    assert len({*folders[0], *folders[1]}) == 4
    assert not any(os.path.exists(folder) for pair in folders for folder in pair)


def test_modules_of_transformers_are_counted_when_the_command_ends() -> None:
    assert startup.count_transformers_modules(["--version"]) == 0


def test_imports_are_added_up_by_package() -> None:
    report = """specx: a line of its own
import time: self [us] | cumulative | imported package
import time:      1500 |       1500 |   torch._C
import time:   2000000 |    2001500 | torch
import time:       300 |        300 |     rich.text
"""
    assert startup.import_seconds(report) == {"torch": 2.0015, "rich": 0.0003}


def test_the_table_has_medians_and_their_ratio_to_importing_torch() -> None:
    found = {
        "date": "2026-11-30",
        "env": ENV,
        "repetitions": 3,
        "seconds": {
            startup.IMPORT_TORCH: [[2.0, 2.0, 2.0]] * 3,
            startup.ONE_TOKEN: [[2.5, 2.5, 3.0], [9.0, 9.0, 9.0], [2.4, 2.4, 2.9]],
        },
        "transformers_modules": 0,
        "import_s": {"torch": 2.0},
        "phase_s": {startup.ONE_TOKEN: {"load": 0.25}},
        "tokens": {startup.ONE_TOKEN: {"prompt": 247, "new": 1}},
    }
    lines = startup.table(json.loads(json.dumps(found))).splitlines()
    assert lines[0] == "2026-11-30 · Some CPU · 2 · 2.13.0 · 3.11"
    row = next(line for line in lines if line.startswith(startup.ONE_TOKEN))
    assert row.split()[-4:] == ["2.50", "2.50", "3.00", "1.50"]
    assert "   0.250  load" in lines


def test_a_draft_needs_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        startup.parse(["--draft", "somewhere"])
    assert "--draft needs --target" in capsys.readouterr().err
