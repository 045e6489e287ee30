"""``specx bench --stand-in``: nothing is downloaded, and no number goes without its label."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from specx.cli.help import read_schema
from tests.cli.support import Outcome, Workplace, process
from tests.helpers import story

PRESET = """\
schema: 1
name: big
target:
  repo: owner/big
  shape: {layers: 8, hidden: 640, heads: 4, kv_heads: 4, head_dim: 128, mlp: 1280, vocabulary: 8200}
draft:
  repo: owner/small
  shape: {layers: 2, hidden: 320, heads: 4, kv_heads: 4, head_dim: 64, mlp: 768, vocabulary: 8200}
context_tokens: 1024
tree: {nodes: 4, depth: 2, size: fixed}
"""
LABEL = "stand-in weights"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("standin")
    (directory / "big.yaml").write_text(PRESET, encoding="utf-8")
    (directory / "text.txt").write_text(story(400), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    """A small plan with every kind of run."""
    plan = ("--lengths", "96", "-n", "4", "--samples", "1", "--warmup", "0", "--offline")
    modes = ("--modes", "plain,specx,hf")
    data = ("--data", str(place / "text.txt"))
    return ["bench", "-m", str(place / "big.yaml"), "--stand-in", *plan, *modes, *data]


@pytest.fixture(scope="module")
def state(place: Path) -> dict[str, str]:
    return {"SPECX_STATE_DIR": str(place / "state")}


@pytest.fixture(scope="module")
def saved(place: Path, words: list[str], state: dict[str, str]) -> Path:
    path = place / "run.json"
    done = process(*words, "--export", path, env=state)
    assert done.returncode == 0, done.stderr.decode()
    return path


@pytest.fixture(scope="module")
def found(saved: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(saved.read_text("utf-8"))
    return data


def test_the_json_says_so_and_fits_its_schema(found: dict[str, Any]) -> None:
    schema = json.loads(read_schema("bench"))
    jsonschema.Draft202012Validator(schema).validate(found)
    (preset,) = found["plan"]["presets"]
    assert preset["name"] == "big-stand-in"
    assert preset["stand_in"]["pair"] == "pocket"
    assert "owner/big" in preset["stand_in"]["about"]
    assert {cell["preset"] for cell in found["cells"]} == {"big-stand-in"}


def test_the_witness_runs_on_the_same_weights(found: dict[str, Any]) -> None:
    texts = {cell["mode"]: cell["samples"][0]["tokens"] for cell in found["cells"]}
    assert texts["hf"] == texts["specx"] == texts["plain"]


@pytest.mark.parametrize("suffix", ["md", "html", "svg"])
def test_every_picture_of_it_says_so(
    cli: Callable[..., Outcome], saved: Path, tmp_path: Path, suffix: str
) -> None:
    shown = tmp_path / f"run.{suffix}"
    assert cli("bench", "--from", saved, "--export", shown).code == 0
    text = shown.read_text("utf-8").lower()
    assert LABEL in text
    assert "big-stand-in" in text


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_raw_line_says_so(cli: Callable[..., Outcome], saved: Path, kind: str) -> None:
    lines = cli("bench", "--from", saved, "-o", kind).out.splitlines()
    assert all("big-stand-in" in line for line in lines[kind == "csv" :])


def test_a_terminal_says_so_first(cli: Callable[..., Outcome], saved: Path) -> None:
    out = cli("bench", "--from", saved, to_terminal=True).out
    assert "Stand-in weights: big-stand-in has the shapes of" in out.splitlines()[0]
    assert f"Speed with {LABEL}" in out


def test_a_comparison_says_so(cli: Callable[..., Outcome], saved: Path) -> None:
    done = cli("bench", "diff", saved, saved)
    assert done.out.splitlines()[0].rstrip().endswith(LABEL)
    found = json.loads(cli("bench", "diff", saved, saved, "-o", "json").out)
    schema = json.loads(read_schema("compare"))
    jsonschema.Draft202012Validator(schema).validate(found)
    assert found["a"]["stand_in"] is True


def test_without_shapes_it_says_what_to_add(
    cli: Callable[..., Outcome], workplace: Workplace
) -> None:
    done = cli("bench", "-m", workplace.preset, "--stand-in")
    assert done.code == 2
    assert "has no target.shape" in done.err
    assert "add target.shape" in done.err


def test_a_dry_run_counts_the_large_model(cli: Callable[..., Outcome], words: list[str]) -> None:
    done = cli(*words, "--dry-run", "-o", "json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert row["preset"] == "big-stand-in"
    assert row["memory_bytes"] > 100 << 20


def test_a_head_is_measured_in_its_shape(
    cli: Callable[..., Outcome], place: Path, words: list[str]
) -> None:
    sizes = "hidden: 640, mlp: 1280, heads: 4, kv_heads: 4, head_dim: 128, vocabulary: 8192"
    head = f"kind: eagle3\n  repo: owner/head\n  head_shape: {{{sizes}, features: 3}}"
    lines = PRESET.splitlines()
    start = lines.index("  repo: owner/small")
    lines[start : start + 2] = [f"  {head}"]
    preset_text = "\n".join(lines).replace("name: big", "name: head")
    (place / "head.yaml").write_text(preset_text, encoding="utf-8")
    asked = [*words, "-o", "json"]
    asked[asked.index(str(place / "big.yaml"))] = str(place / "head.yaml")
    done = cli(*asked)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (preset,) = found["plan"]["presets"]
    assert (preset["draft"]["kind"], preset["draft"]["repo"]) == ("eagle3", "owner/head")
    assert "eagle3 head" in preset["stand_in"]["about"]


def test_a_dry_run_counts_the_head(cli: Callable[..., Outcome]) -> None:
    plan = ("--lengths", "64", "-n", "4", "--samples", "1", "--dtype", "float16", "-o", "json")
    sizes = []
    for extra in ((), ("--set", "draft.kind=none")):
        words = ("bench", "-m", "llama3.1-8b-eagle3", "--stand-in", "--dry-run", "--offline")
        done = cli(*words, *plan, *extra)
        assert done.code == 0, done.err
        sizes.append(json.loads(done.out)["rows"][0]["memory_bytes"])
    assert sizes[0] - sizes[1] == pytest.approx(2 * 424.7e6, rel=0.01)
