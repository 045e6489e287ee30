"""``--target`` and ``--draft`` on every command that runs a pair."""

import json
from collections.abc import Callable

import pytest

from tests.cli.support import Outcome, Workplace

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def words(workplace: Workplace) -> list[str]:
    place = workplace.directory
    return ["--target", str(place / "target"), "--draft", str(place / "draft")]


def test_generate(cli: Cli, workplace: Workplace, words: list[str]) -> None:
    run = ("generate", workplace.short, "-n", "8", "-o", "json")
    found = json.loads(cli(*run, *words).out)
    assert found["preset"]["name"] == "adhoc"
    assert found["models"]["draft"]["kind"] == "lm"
    assert found["text"] == json.loads(cli(*run, *words[:2]).out)["text"]
    assert json.loads(cli(*run, "-m", workplace.preset, "--draft", "none").out)["text"]


def test_settings_say_where_they_come_from(
    cli: Cli, workplace: Workplace, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sources(*given: object) -> dict[str, str]:
        out = cli("generate", "--show-settings", *map(str, given)).out
        return {row.split("\t")[0]: row.split("\t")[2] for row in out.splitlines()}

    monkeypatch.setenv("SPECX_PRESET", "vicuna-7b")  # a variable gives way to --target
    found = sources(*words, "--set", "tree.nodes=4")
    assert found["preset"] == "--target"
    assert found["target.repo"] == "--target"
    assert found["draft.repo"] == "--draft"
    assert found["tree.nodes"] == "--set"
    found = sources("-m", workplace.preset, "--draft", "lookup")
    assert found["draft.kind"] == "--draft"
    assert found["target.repo"] == "preset tiny"


def test_compare(cli: Cli, workplace: Workplace, words: list[str]) -> None:
    run = ("compare", workplace.short, "-n", "6", "-o", "json")
    found = json.loads(cli(*run, *words, "--with", "specx").out)
    assert [each["mode"] for each in found["runs"]] == ["plain", "specx"]
    assert {each["preset"] for each in found["runs"]} == {"adhoc"}


def test_bench(cli: Cli, workplace: Workplace, words: list[str]) -> None:
    run = ("bench", "--lengths", "64", "--samples", "1", "-n", "4", "--warmup", "0", "-o", "json")
    done = cli(*run, *words, "--modes", "plain,specx", "--data", workplace.document)
    (preset,) = json.loads(done.out)["plan"]["presets"]
    assert preset["name"] == "adhoc"
    assert preset["draft"]["kind"] == "lm"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("-m", "pocket", "--target", "./x"), "-m and --target name two targets"),
        (("--target", ""), "must not be empty"),
        (("--draft", ""), "must not be empty"),
    ],
)
def test_what_does_not_go_together(
    cli: Cli, workplace: Workplace, given: tuple[str, ...], said: str
) -> None:
    for command in ("generate", "summarize", "compare"):
        done = cli(command, workplace.short, *given)
        assert done.code == 2
        assert said in done.err
    done = cli("bench", *given)
    assert done.code == 2
    assert said in done.err


def test_one_draft_for_several_presets(cli: Cli) -> None:
    done = cli("bench", "-m", "pocket", "-m", "vicuna-7b", "--draft", "none")
    assert done.code == 2
    assert "replaces the draft of one preset" in done.err


def test_a_target_that_is_not_there(cli: Cli, workplace: Workplace) -> None:
    done = cli("generate", workplace.short, "--target", "./nowhere")
    assert done.code == 4
    assert "not a model directory" in done.err
