"""What was decided about a head's file reaches the user: one line on stderr, and the JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints.eagle.files import LAYOUTS, write_head
from tests.cli.support import Outcome
from tests.helpers import PairDirs, preset_for, save_pair, story

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head whose config counts layers in the other way."""
    directory = tmp_path_factory.mktemp("head")
    pair = save_pair(directory, target_changes={"num_hidden_layers": 8})
    files = write_head(directory / "modelopt", "modelopt")
    (directory / "text.txt").write_text(story(30), encoding="utf-8")
    pair = PairDirs(pair.target, files.directory)
    chosen = preset_for(pair, {"draft.kind": LAYOUTS["modelopt"].kind})
    path = directory / "tiny.yaml"
    path.write_text(chosen.to_yaml(), encoding="utf-8")
    return path


def test_notes_are_told_once(cli: Cli, preset: Path) -> None:
    run = ("generate", preset.parent / "text.txt", "-m", preset, "-n", "4", "-o", "json")
    done = cli(*run)
    said = "lists the layers 1, 2, 5: taken as the inputs of layers 2, 3, 6"
    assert done.code == 0
    assert len([line for line in done.err.splitlines() if said in line]) == 1
    (warning,) = json.loads(done.out)["warnings"]
    assert said in warning["message"]
    quiet = cli(*run, "-q")
    assert said not in quiet.err
    assert said in quiet.out
    named = cli(*run, "--set", "draft.head.feature_layers=[2, 3, 6]")
    assert json.loads(named.out)["warnings"] == []
    assert json.loads(named.out)["text"] == json.loads(done.out)["text"]


def test_a_bench_and_a_comparison_keep_what_was_said(cli: Cli, preset: Path) -> None:
    said = "lists the layers 1, 2, 5: taken as the inputs of layers 2, 3, 6"
    text = preset.parent / "text.txt"
    plan = ("--data", text, "--lengths", "64", "-n", "4", "--samples", "1", "--modes", "specx")
    found = cli("bench", "-m", preset, *plan, "-o", "json")
    assert found.code == 0, found.err
    assert said in found.err
    warnings = json.loads(found.out)["warnings"]
    (message,) = [each["message"] for each in warnings if each["code"] == "model_files"]
    assert message.startswith("tiny: ")
    assert said in message
    found = cli("compare", text, "-m", preset, "-n", "4", "-o", "json")
    assert found.code == 0, found.err
    plain, specx = json.loads(found.out)["runs"]
    assert said in specx["warnings"][0]["message"]
    assert plain["warnings"] == specx["warnings"], "one pair, loaded once"
