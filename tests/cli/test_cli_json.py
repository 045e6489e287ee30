"""``specx.result/1``: the schema describes every field, and the numbers agree with each other."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from pydantic import TypeAdapter

from specx.cli.help import SCHEMAS, read_schema
from specx.cli.result_json import dumps
from specx.trace.result import AnyResult

OLD = Path(__file__).parent.parent / "data" / "version1"


def closed(schema):
    """The schema with every object closed: a field that it does not describe is an error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        shut["additionalProperties"] = False
    return shut


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(read_schema("result"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(closed(schema))


@pytest.mark.parametrize("mode", ["plain", "spec", "specx", "auto"])
@pytest.mark.parametrize("tokens", [1, 24])
def test_a_result_is_valid_and_adds_up(cli, workplace, validator, mode, tokens):
    words = ("-m", workplace.preset, "--mode", mode, "-n", str(tokens), "--ignore-eos")
    done = cli("summarize", workplace.short, *words, "-o", "json")
    assert done.code == 0
    result = json.loads(done.out)
    validator.validate(result)
    accept, times, rate = result["accept"], result["time_s"], result["rate"]
    assert result["tokens"]["new"] == tokens == result["sampling"]["max_tokens"]
    assert (
        sum(accepted * count for accepted, count in enumerate(accept["histogram"]))
        == (accept["accepted"])
    )
    assert sum(accept["histogram"]) == accept["steps"]
    assert accept["copied"] <= accept["accepted"] <= accept["drafted"]
    assert all(1 <= each <= 1 + accept["accepted"] for each in accept["by_position"])
    if accept["steps"]:
        assert accept["tokens_per_step"] == pytest.approx(accept["accepted_per_step"] + 1)
    prefill = times["prefill_target"] + times["prefill_draft"]
    assert prefill + times["decode"] <= times["total"] * (1 + 1e-9)
    assert times["ttft"] <= times["total"]
    if tokens > 1:
        assert rate["decode_tok_s"] == pytest.approx((tokens - 1) / times["decode"])
    if mode == "plain":
        assert accept["drafted"] == 0
    assert (result["spec"]["mode"], result["finish_reason"]) == (mode, "length")


def test_the_text_is_the_one_that_is_streamed(cli, workplace, validator):
    words = ("generate", workplace.short, "-p", "Who?", "-m", workplace.preset, "-n", "9")
    done = cli(*words, "-o", "json", "--verify", "-t", "0.7", "--seed", "3")
    result = json.loads(done.out)
    validator.validate(result)
    assert cli(*words, "-t", "0.7", "--seed", "3").out == result["text"].removesuffix("\n") + "\n"
    new = result["tokens"]["new"]
    assert result["verify"] == {"checked": new, "equal": True, "first_difference": None}
    assert result["input"]["bytes"] == workplace.short.stat().st_size
    assert 0 < result["input"]["tokens"] < result["tokens"]["prompt"]
    assert result["sampling"]["temperature"] == 0.7


def test_a_line_for_every_document_and_failure(cli, workplace, validator, tmp_path):
    files = (workplace.short, tmp_path / "none.txt", workplace.document)
    words = ("-m", workplace.preset, "-n", "3", "-o", "jsonl", "--keep-going")
    lines = cli("summarize", *files, *words).out.splitlines()
    objects = [json.loads(line) for line in lines]
    for each in objects:
        validator.validate(each)
    assert [each["input"]["path"] for each in objects] == [str(path) for path in files]
    assert [each["schema"] for each in objects] == [
        "specx.result/1",
        "specx.error/1",
        "specx.result/1",
    ]


def test_a_bare_question_and_stdin(cli, workplace, validator):
    words = ("-m", workplace.preset, "-n", "2", "-o", "json")
    bare = json.loads(cli("generate", "-p", "Who?", *words, stdin=b"x").out)
    assert bare["input"]["path"] is None
    validator.validate(bare)


def test_a_difference_is_in_the_object(cli, workplace, validator, monkeypatch):
    from specx.engine import Engine
    from specx.stream import Difference, Verification

    found = Verification(2, False, Difference(1, None, 5, None))
    monkeypatch.setattr(Engine, "verify", lambda *_, **__: found)
    done = cli("summarize", workplace.short, "-m", workplace.preset, "-o", "json", "--verify")
    assert done.code == 8
    result = json.loads(done.out)
    validator.validate(result)
    assert result["verify"]["first_difference"]["got"] == 5


def test_a_token_that_a_filter_removed_has_no_margin(cli, workplace, validator, monkeypatch):
    """Regression: its logit is infinitely far away, which JSON cannot write, so exit 1 replaced
    exit 8 and the answers were lost."""
    from specx.engine import Engine

    generate = Engine.generate

    def another_first_token(engine, prompt, **settings):
        result = generate(engine, prompt, **settings)
        first, *rest = result.tokens
        return replace(result, tokens=(first - 1, *rest))

    monkeypatch.setattr(Engine, "generate", another_first_token)
    words = ("-m", workplace.preset, "-t", "0.8", "--top-k", "1", "-n", "4", "--verify")
    done = cli("summarize", workplace.short, workplace.short, *words, "-o", "jsonl")
    assert done.code == 8
    for line in done.out.splitlines():
        result = json.loads(line)
        validator.validate(result)
        assert result["verify"]["first_difference"]["margin"] is None
    assert len(done.out.splitlines()) == 2


def test_errors_are_valid_and_nonsense_is_not(cli, validator, tmp_path):
    error = json.loads(cli("summarize", tmp_path / "none", "-o", "json").out)
    validator.validate(error)
    wrong = copy.deepcopy(error)
    wrong["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(wrong)


def test_other_lists_follow_their_schemas(cli, workplace):
    for name, words in (
        ("settings", ("generate", "--show-settings", "-m", workplace.preset)),
        ("presets", ("presets", "list")),
        ("presets-check", ("presets", "check", workplace.preset)),
    ):
        found = json.loads(cli(*words, "-o", "json").out)
        assert found["schema"] == f"specx.{name}/1"
        schema = closed(json.loads(read_schema(name)))
        jsonschema.Draft202012Validator(schema).validate(found)


def test_the_schemas_are_printed(cli):
    assert cli("help", "schema").out == read_schema("result")
    for name in (*SCHEMAS, "bench", "compare"):
        printed = cli("help", "schema", name).out
        assert printed == read_schema(name)
        jsonschema.Draft202012Validator.check_schema(json.loads(printed))
    assert cli("help", "schema", "nonsense").code == 2


@pytest.mark.parametrize("name", ["result", "error"])
def test_an_object_of_the_first_version_is_still_read(name, validator):
    """Written by specx 0.1.0; what was constant in it is gone, all the rest is there."""
    old = json.loads((OLD / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(dumps(TypeAdapter(AnyResult).validate_python(old), "json"))
    validator.validate(found)
    del_constant(old)
    assert found == old


def del_constant(old):
    old.pop("energy", None)
    for group, key in (("input", "dropped_tokens"), ("verify", "mode")):
        old.get(group, {}).pop(key, None)
