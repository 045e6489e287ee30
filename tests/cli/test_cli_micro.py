"""``specx bench --micro``: tables, exports, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from specx.cli.help import read_schema
from tests.cli.support import Outcome, Workplace

pytestmark = pytest.mark.usefixtures("quick_floors")
Micro = Callable[..., Outcome]
BIG = """\
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


@pytest.fixture
def micro(cli: Callable[..., Outcome], workplace: Workplace) -> Micro:
    def call(*words: str | Path, **settings: Any) -> Outcome:
        return cli("bench", "--micro", "-m", workplace.preset, *words, **settings)

    return call


def test_a_pipe_gets_markdown_and_files_get_the_rest(micro: Micro, tmp_path: Path) -> None:
    kept = [tmp_path / "run.json", tmp_path / "run.md"]
    words = ["--lengths", "64,160", *(word for path in kept for word in ("--export", path))]
    done = micro(*words)
    assert done.code == 0, done.err
    assert done.out.startswith("# specx bench --micro: tiny\n\n- floor 64: ")
    assert "| verify 64 nodes " in done.out
    assert "verify 64 nodes, masked" in done.out
    assert "\x1b" not in done.out
    assert kept[1].read_text("utf-8") == done.out
    found = json.loads(kept[0].read_text("utf-8"))
    jsonschema.Draft202012Validator(json.loads(read_schema("micro"))).validate(found)
    assert found["plan"]["lengths"] == [64, 160]
    assert "wrote " in done.err
    before = kept[0].read_bytes()
    again = micro(*words)
    assert again.code == 2
    assert "--force" in again.err
    assert kept[0].read_bytes() == before


def test_a_terminal_gets_tables(micro: Micro) -> None:
    done = micro("--lengths", "64", to_terminal=True)
    assert done.code == 0, done.err
    assert done.out.startswith("floor 64: ")
    assert "Pieces of a step" in done.out
    assert "Memory" in done.out
    assert "|" not in done.out


def test_stand_in_weights_are_labelled(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text(BIG, encoding="utf-8")
    words = ("bench", "--micro", "-m", path, "--stand-in", "--lengths", "64", "--offline")
    done = cli(*words, "-o", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (preset,) = found["plan"]["presets"]
    assert preset["name"] == "big-stand-in"
    assert "owner/big" in preset["stand_in"]["about"]
    assert found["plan"]["levels"] == 2
    assert {each["name"] for each in found["pieces"]} >= {"step", "draft level"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--resume", "last"), "--resume does not go with --micro"),
        (("--from", "x.json"), "--from does not go with --micro"),
        (("--fail-if", "speedup<1"), "--fail-if does not go with --micro"),
        (("--samples", "5"), "--samples does not go with --micro"),
        (("--modes", "plain"), "--modes does not go with --micro"),
        (("--no-verify",), "--verify does not go with --micro"),
        (("--plot",), "--plot does not go with --micro"),
        (("-m", "pocket"), "one preset at a time"),
        (("-o", "csv"), "--micro has no csv"),
        (("--export", "run.html"), "--micro cannot export to run.html"),
        (("--export", "no/such/run.json"), "there is no directory"),
    ],
)
def test_what_makes_no_sense_is_refused(micro: Micro, words: tuple[str, ...], says: str) -> None:
    done = micro("--lengths", "64", *words)
    assert done.code == 2
    assert says in done.err
    assert not done.out


def test_a_length_beyond_the_context_is_refused(micro: Micro) -> None:
    done = micro("--lengths", "8k")
    assert done.code == 7
    assert "8,192 tokens exceed the context of preset tiny" in done.err


def test_its_schema_is_printed(cli: Callable[..., Outcome]) -> None:
    done = cli("help", "schema", "micro")
    assert done.code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(done.out))
