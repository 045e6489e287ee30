"""``specx presets``: the list, and pairs checked without weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import recorded as facts
from tests.cli.support import Outcome, Workplace
from tests.helpers import edit_json

Cli = Callable[..., Outcome]


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """One recorded pair: SmolLM2's, whose tokenizer is the smallest."""
    for name in ("SmolLM2-1.7B-Instruct", "SmolLM2-135M-Instruct"):
        folder = tmp_path / f"HuggingFaceTB__{name}"
        folder.mkdir()
        shutil.copy(facts.CONFIGS / folder.name / "config.json", folder)
        facts.save_tokenizer(facts.SMOLLM2, folder)
    return tmp_path


def test_the_list_says_what_a_download_costs(cli: Cli) -> None:
    header, *rows = [line.split("\t") for line in cli("presets", "list").out.splitlines()]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert found["qwen3-8b"]["gated"] == "no"
    assert found["qwen3-8b"]["download"].endswith(" GiB")
    assert found["llama3.1-8b-eagle3"]["draft"] == "eagle3"
    assert found["llama3.1-8b-eagle3"]["gated"] == "yes"
    assert "Apache-2.0" in found["vicuna-7b-v1.3-eagle"]["license"]
    assert found["pocket"]["download"] == "none"
    entries = json.loads(cli("presets", "list", "-o", "json").out)["presets"]
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name["qwen3-8b"]["memory_at_16k_gib"] > 16
    assert by_name["qwen3-8b"]["target"] == "Qwen/Qwen3-8B"


def test_a_pair_that_fits(cli: Cli, repositories: Path) -> None:
    done = cli("presets", "check", "smollm2-1.7b", "--recorded", repositories)
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["preset", "check", "result", "about"]
    assert {(row[0], row[2]) for row in rows} == {("smollm2-1.7b", "ok")}
    assert [row[1] for row in rows][-2:] == ["same tokens", "draft context"]
    assert (done.code, done.err) == (0, "")


def test_a_pair_that_does_not(cli: Cli, repositories: Path) -> None:
    config = repositories / "HuggingFaceTB__SmolLM2-135M-Instruct" / "config.json"
    edit_json(config, vocab_size=49000)
    edit_json(config, max_position_embeddings=2048)
    wrong = ("--recorded", repositories)
    done = cli("presets", "check", "smollm2-1.7b", *wrong)
    assert done.code == 4  # the shape in the preset comes first
    user = repositories / "own.yaml"
    words = ["name: own", "extends: smollm2-1.7b", "draft: {shape: null}", "schema: 1"]
    user.write_text("\n".join(words), encoding="utf-8")
    done = cli("presets", "check", user, *wrong)
    assert done.code == 5
    assert done.out.splitlines()[-1].startswith("own\tsame tokens\tfail\tthe draft has 49000 rows")
    assert done.err.startswith("error: the draft has 49000 rows")
    answer = json.loads(cli("presets", "check", user, *wrong, "-o", "json").out)
    assert answer["schema"] == "specx.presets-check/1"
    (found,) = answer["presets"]
    assert not found["fits"]
    assert found["checks"][-1]["error"]["code"] == "pair_mismatch"
    assert [check["result"] for check in found["checks"]] == ["ok"] * 4 + ["fail"]


def test_all_of_them(cli: Cli, repositories: Path) -> None:
    done = cli("presets", "check", "--all", "--offline", "--recorded", repositories)
    assert done.code == 10  # some fit; others are on the Hub, which nobody may ask
    rows = [line.split("\t") for line in done.out.splitlines()[1:]]
    failed = {row[0] for row in rows if row[2] == "fail"}
    assert {"pocket", "smollm2-1.7b"} & failed == set()
    assert {"qwen3-8b", "vicuna-7b-eagle"} <= failed


def test_an_own_pair_and_a_broken_file(cli: Cli, workplace: Workplace, tmp_path: Path) -> None:
    assert cli("presets", "check", workplace.preset).code == 0
    broken = tmp_path / "broken.yaml"
    broken.write_text("schema: 1\nname: broken\n", encoding="utf-8")
    assert cli("presets", "check", broken).code == 2


@pytest.mark.parametrize("words", [(), ("pocket", "--all")])
def test_a_name_or_all(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli("presets", "check", *words)
    assert done.code == 2
    assert "name a preset, or give --all" in done.err
