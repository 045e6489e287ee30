"""Flag over variable over preset, and ``--show-settings`` that says which it was."""

import json

import pytest

from specx.cli.options import RunRequest
from specx.cli.settings import parse_assignments, parse_check, resolve
from specx.errors import UsageError
from tests.cli.support import Workplace, write_preset
from tests.helpers import edit_json, save_pair

SAYS = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.fixture
def settings(cli, workplace):
    """``settings("-t", "0.5")["temperature"]`` is ``(0.5, "--temperature")``."""

    def read(*words):
        done = cli("generate", "-m", workplace.preset, "--show-settings", *words, "-o", "json")
        assert done.code == 0, done.err
        return {
            row["key"]: (row["value"], row["source"]) for row in json.loads(done.out)["settings"]
        }

    return read


def test_the_order_of_precedence(settings, monkeypatch):
    assert settings()["mode"] == ("auto", "preset tiny")
    assert settings("--set", "mode=spec")["mode"] == ("spec", "--set")
    monkeypatch.setenv("SPECX_MODE", "plain")
    monkeypatch.setenv("SPECX_SEED", "11")
    assert settings("--set", "mode=spec")["mode"] == ("plain", "SPECX_MODE")
    assert settings()["seed"] == (11, "SPECX_SEED")
    assert settings("--mode", "specx")["mode"] == ("specx", "--mode")
    assert settings("--seed", "12")["seed"] == (12, "--seed")


def test_preset_fields_are_listed_with_their_source(settings):
    rows = settings("--set", "tree.nodes=8", "-t", "0.5", "-n", "7")
    assert rows["tree.nodes"] == (8, "--set")
    assert rows["tree.depth"] == (4, "preset tiny")
    assert rows["temperature"] == (0.5, "--temperature")
    assert rows["max_tokens"] == (7, "--max-tokens")
    assert rows["device"] == ("auto", "default")


def test_settings_as_text_are_three_columns(cli, workplace):
    done = cli("summarize", "-m", workplace.preset, "--show-settings")
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["key", "value", "source"]
    assert {len(row) for row in rows} == {3}
    assert ["offline", "false", "default"] in rows


def test_variables_are_checked_like_options(cli, workplace, monkeypatch):
    monkeypatch.setenv("SPECX_MODE", "fast")
    done = cli("summarize", workplace.short)
    assert done.code == 2
    assert "SPECX_MODE" in done.err


def test_an_output_format_from_the_environment(cli, workplace, monkeypatch):
    monkeypatch.setenv("SPECX_OUTPUT", "json")
    done = cli("summarize", workplace.short, "-m", workplace.preset, "-n", "2")
    assert json.loads(done.out)["schema"] == "specx.result/1"


def test_sampling_falls_back_field_by_field(workplace):
    request = RunRequest(preset=str(workplace.preset), top_p=0.5, set_=["sampling.top_k=9"])
    sampling = resolve(request).sampling
    assert (sampling.top_p, sampling.top_k, sampling.temperature) == (0.5, 9, 0.0)


def test_a_random_seed_is_shown_so_that_the_run_can_be_repeated(cli, workplace, monkeypatch):
    words = ("summarize", workplace.short, "-m", workplace.preset, "-n", "12", "-t", "1.2")
    assert "temperature 1.2, seed 0" in cli(*words).err
    assert "seed" not in cli(*words[:-2], "--seed", "random").err  # greedy draws nothing
    first, second = (json.loads(cli(*words, "--seed", "random", "-o", "json").out) for _ in "ab")
    seed = first["sampling"]["seed"]
    assert seed != second["sampling"]["seed"]
    again = cli(*words, "--seed", str(seed))
    assert f"seed {seed}" in again.err
    assert again.out.rstrip("\n") == first["text"].rstrip("\n")
    monkeypatch.setenv("SPECX_SEED", "random")
    drawn = json.loads(cli(*words, "-o", "json").out)["sampling"]["seed"]
    assert drawn not in (0, seed)
    monkeypatch.setenv("SPECX_SEED", "dice")
    done = cli(*words)
    assert done.code == 2
    assert "dice" in done.err


class TestGenerationConfig:
    """What the target's own file says about sampling, where the preset is silent."""

    @pytest.fixture
    def place(self, tmp_path):
        pair = save_pair(tmp_path)
        edit_json(pair.target / "generation_config.json", **SAYS, eos_token_id=[1, 9])
        return Workplace(tmp_path, write_preset(tmp_path, pair), pair.target, pair.draft)

    def rows(self, cli, *words):
        done = cli("generate", "--show-settings", *words, "-o", "json")
        assert done.code == 0, done.err
        return {
            row["key"]: (row["value"], row["source"]) for row in json.loads(done.out)["settings"]
        }

    def test_a_silent_preset_takes_it(self, cli, place):
        for words in (["-m", place.preset], ["--target", place.document, "--draft", place.short]):
            rows = self.rows(cli, *words, "--top-p", "0.5")
            assert rows["temperature"] == (0.6, "generation_config.json")
            assert rows["top_k"] == (20, "generation_config.json")
            assert rows["top_p"] == (0.5, "--top-p")
            assert rows["min_p"] == (0.0, "default")
            assert rows["generation_config"] == (SAYS, "generation_config.json")
            files = "config.json, generation_config.json, tokenizer_config.json"
            assert rows["end_tokens"] == ([1, 9, "<|end|>"], files)

    def test_a_preset_that_says_anything_decides_all(self, cli, place):
        rows = self.rows(cli, "-m", place.preset, "--set", "sampling.temperature=0.0")
        assert rows["temperature"] == (0.0, "--set")
        assert rows["top_k"] == (0, "preset tiny")
        assert rows["generation_config"][1].startswith("generation_config.json, not used")

    def test_it_changes_the_text_as_the_options_would(self, cli, place, tmp_path):
        (tmp_path / "a.txt").write_text("A text.")
        words = ("generate", tmp_path / "a.txt", "-m", place.preset, "-n", "12")
        own = cli(*words)
        assert "temperature 0.6, seed 0" in own.err
        given = ("-t", "0.6", "--top-k", "20", "--top-p", "0.95")
        assert cli(*words, "--set", "sampling.temperature=0", *given).out == own.out
        greedy = cli(*words, "-t", "0")
        assert "seed" not in greedy.err
        assert greedy.out == cli(*words, "--set", "sampling.temperature=0").out

    @pytest.mark.parametrize("do_sample", [False, ...])
    def test_without_do_sample_it_is_greedy(self, cli, place, do_sample):
        path = place.document / "generation_config.json"
        edit_json(path, do_sample=do_sample, repetition_penalty=1.1)
        rows = self.rows(cli, "-m", place.preset)
        assert rows["temperature"][0] == 0.0
        assert rows["top_k"][0] == 0
        assert rows["repetition_penalty"] == (1.1, "generation_config.json")

    def test_a_damaged_one_is_named(self, cli, place):
        edit_json(place.document / "generation_config.json", temperature="hot")
        done = cli("generate", "--show-settings", "-m", place.preset)
        assert done.code != 0
        assert "generation_config.json is damaged" in done.err

    def test_the_target_may_not_be_here(self, cli):
        rows = self.rows(cli, "-m", "qwen3-8b", "--offline")
        assert rows["end_tokens"] == ([], "no file of the target here")
        assert rows["temperature"] == (0.0, "preset qwen3-8b")


def test_assignments():
    assert parse_assignments(["a.b = c=d", "e="]) == {"a.b": "c=d", "e": ""}
    for wrong in ("novalue", "=x", ""):
        with pytest.raises(UsageError):
            parse_assignments([wrong])


def test_checks():
    assert parse_check("on") is None
    assert parse_check("off") == 0
    assert parse_check("64") == 64
    for wrong in ("0", "-1", "yes", "1.5", ""):
        with pytest.raises(UsageError):
            parse_check(wrong)
