"""``specx bench --paper``: published numbers beside ours."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.support import Outcome, Workplace

Cli = Callable[..., Outcome]
ROW = {"source": "Table 2", "data": "pg19", "prompt_tokens": 64, "mode": "specx"}
ROW |= {"tokens_per_step": 3.5, "tok_s": 123.4, "speedup_vs_ar": 2.5}


@pytest.fixture
def preset(workplace: Workplace, tmp_path: Path) -> Path:
    """The tiny pair, with a row of a paper."""
    data = yaml.safe_load(workplace.preset.read_text(encoding="utf-8")) | {"paper": [ROW]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def run(workplace: Workplace, preset: Path) -> list[str]:
    words = ["bench", "-m", preset, "--lengths", "64", "--samples", "1", "-n", "4"]
    words += ["--warmup", "0", "--modes", "plain,specx", "--data", workplace.document]
    return [*map(str, words), "--paper"]


def test_the_row_stands_beside_ours(
    cli: Cli, workplace: Workplace, preset: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.json"
    done = cli(*run(workplace, preset), "-o", "md", "--export", saved)
    assert done.code == 0
    assert "## Beside the paper" in done.out
    (line,) = [line for line in done.out.splitlines() if "2.50x" in line]
    assert [part.strip() for part in line.split("|")][1:3] == ["64", "specx"]
    assert "123" in line
    (row,) = json.loads(saved.read_text(encoding="utf-8"))["paper"]
    assert row["tok_s"] == 123.4
    again = cli("bench", "--from", saved, "-o", "json")
    assert json.loads(again.out)["paper"] == [row]


def test_nothing_is_measured_where_there_is_none(cli: Cli) -> None:
    done = cli("bench", "--paper", "--lengths", "64")
    assert done.code == 2
    assert "preset pocket names no rows of a paper" in done.err
    assert done.out == ""


def test_stand_ins_have_no_acceptance_of_the_papers(cli: Cli) -> None:
    done = cli("bench", "--paper", "-m", "vicuna-7b", "--stand-in", "--lengths", "64")
    assert done.code == 2
    assert "--paper does not go with --stand-in" in done.err


def test_a_saved_bench_may_name_any_preset(
    cli: Cli, workplace: Workplace, preset: Path, tmp_path: Path
) -> None:
    """Also a path to a file that it has no business to open."""
    saved = tmp_path / "saved.json"
    cli(*run(workplace, preset), "-o", "json", "--export", saved)
    done = cli("bench", "--from", saved, "--paper")
    assert done.code == 2
    assert "there is no preset named 'tiny' any more" in done.err
