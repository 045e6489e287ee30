"""Flag over variable over preset, and ``--show-settings`` that says which it was."""

import json

import pytest

from specx.cli.options import RunRequest
from specx.cli.settings import parse_assignments, parse_check, resolve
from specx.errors import UsageError


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
