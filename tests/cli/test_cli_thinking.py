"""Thoughts on the command line: never on stdout, dim on a terminal's stderr, a field in JSON."""

import json

import pytest

from tests.cli.support import write_preset
from tests.helpers import save_scripted_pair
from tests.test_thinking import ALWAYS, ANSWER, EXTRA, SCRIPT, SWITCHED, THOUGHT, text_of


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Presets of models that think: ``switched`` on demand, ``always`` whatever is asked."""
    found = {}
    for name, template in (("switched", SWITCHED), ("always", ALWAYS)):
        directory = tmp_path_factory.mktemp(name)
        pair = save_scripted_pair(directory, SCRIPT, template, EXTRA)
        found[name] = write_preset(directory, pair)
    return found


@pytest.fixture
def ask(cli, presets):
    def run(*words, command="generate", name="switched", **streams):
        return cli(command, "-m", presets[name], *words, stdin=b"A text.", **streams)

    return run


def test_stdout_has_the_answer_alone(ask):
    done = ask("-p", "What?")
    assert done.out == f"{text_of(ANSWER)}\n"
    assert text_of(THOUGHT) not in done.err
    assert "+ 21 new (12 of them thought)" in done.err


def test_a_summary_does_not_think_unless_it_is_told_to(ask):
    quiet = ask(command="summarize")
    assert quiet.out == f"\n{text_of(ANSWER)}\n"  # the model's own line break
    assert "thought" not in quiet.err
    assert "12 of them thought" in ask("--think", "on", command="summarize").err
    assert "12 of them thought" in ask("--set", "prompt.think=on", command="summarize").err
    assert "11 of them thought" in ask(command="summarize", name="always").err


def test_a_terminal_shows_the_thought_dim_on_stderr(ask):
    done = ask("-p", "What?", "--color", "always", err_to_terminal=True)
    assert done.out == f"{text_of(ANSWER)}\n"
    shown = "".join(part.partition("\x1b[0m")[0] for part in done.err.split("\x1b[2m")[1:])
    assert f"thought:\n{text_of(THOUGHT)[:1]}" in shown
    assert all(letter in shown for letter in text_of(THOUGHT))
    assert text_of(THOUGHT) not in ask("-p", "What?", "-q", err_to_terminal=True).err


def test_json_has_a_field_for_it(ask):
    found = json.loads(ask("-p", "What?", "-o", "json", "--verify").out)
    assert found["text"] == text_of(ANSWER)
    assert found["thought"].pop("max_tokens") > 3000  # what the context leaves
    assert found["thought"] == {"text": text_of(THOUGHT), "tokens": 12, "end": "model"}
    assert (found["tokens"]["new"], found["verify"]["equal"]) == (21, True)
    assert found["verify"]["checked"] == 21
    line = json.loads(ask("-p", "What?", "-o", "jsonl", "--think", "off").out)
    assert line["thought"] is None


def test_the_bound_is_said(ask):
    done = ask("-p", "What?", "--think-tokens", "4", "-n", "3", "--verify")
    assert (done.code, done.out) == (0, f"{text_of(ANSWER[:2])}\n")
    assert "warning: the thought was closed after 4 tokens" in done.err
    found = json.loads(ask("-p", "What?", "--set", "max_think_tokens=4", "-o", "json").out)
    assert (found["thought"]["end"], found["thought"]["max_tokens"]) == ("bound", 4)


@pytest.mark.parametrize(
    ("words", "name", "reason"),
    [
        (["-p", "What?", "--think", "off"], "always", "always begins a thought"),
        (["--raw", "--think", "on"], "switched", "needs a chat template"),
        (["-p", "What?", "--think", "maybe"], "switched", "--think"),
        (["-p", "What?", "--think-tokens", "-1"], "switched", "--think-tokens must be"),
    ],
)
def test_what_cannot_be_is_refused(ask, words, name, reason):
    done = ask(*words, name=name)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err


def test_settings_say_where_they_come_from(ask):
    done = ask("--show-settings", "-o", "json", "--think", "on", "--set", "max_think_tokens=9")
    rows = {row["key"]: (row["value"], row["source"]) for row in json.loads(done.out)["settings"]}
    assert rows["think"] == ("on", "--think")
    assert rows["think_tokens"] == (9, "--set")
    assert "prompt.think" not in rows


def test_a_trace_keeps_both(ask, cli, tmp_path):
    path = tmp_path / "run.jsonl"
    assert ask("-p", "What?", "--trace", path).code == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert "".join(line.get("thought", "") for line in lines).strip() == text_of(THOUGHT)
    assert lines[-1]["text"] == text_of(ANSWER)
    replayed = cli("trace", path)
    assert replayed.code == 0
    assert text_of(ANSWER) in replayed.out


def test_compare_shows_the_answer(ask):
    done = ask("-o", "json", "--text", command="compare", name="always")
    assert done.code == 0, done.err
    assert text_of(THOUGHT) not in done.out
