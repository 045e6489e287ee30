"""Strict YAML: what it refuses, and that nothing but ``UsageError`` ever comes out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.errors import UsageError
from specx.preset.yaml import did_you_mean, parse_mapping, parse_scalar


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1, 2", "line 1, column 9"),
        ("a: 1\nb: {c: 2\nd: 3\n", "line 3"),
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' is given twice"),
        ("a: &x [1]\nb: *x\n", "line 2, column 4: aliases"),
        ("a: !!python/object/apply:os.system [id]", "tags (!name) are not allowed"),
        ("a: !!binary aGk=", "tags"),
        ("no: 1\n", "the key no is not a text"),
        ("? [1]\n: 2\n", "is not a text"),
        ("<<: {a: 1}\n", "line 1"),
        ("a: .inf\n", "not finite"),
        ("a: 2026-13-01\n", "month"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: 1\n--- \nb: 2\n", "another document"),
        ("a: \0", "special characters"),
        ("\ta: 1", "line 1"),
        ("", "a mapping of keys"),
        ("- 1\n- 2\n", "a mapping of keys"),
    ],
)
def test_refuses_with_the_place(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mapping(text, "the file")
    assert reason in caught.value.reason
    assert caught.value.message.startswith("the file")


def test_tells_where_every_key_stands() -> None:
    data, lines = parse_mapping("a: 1\nb:\n  c: x\n  d: [1, {e: 2026-01-02}]\n", "file")
    assert data == {"a": 1, "b": {"c": "x", "d": [1, {"e": "2026-01-02"}]}}
    assert lines[("a",)] == 1
    assert lines[("b", "c")] == 3
    assert lines[("b", "d", 1, "e")] == 4


@given(st.text() | st.text(alphabet="abc:{}[]&*!?|>-'\"#%@`, \n\t0123456789.e<=~"))
def test_any_text_is_json_or_a_usage_error(text: str) -> None:
    try:
        data, _ = parse_mapping(text, "file")
    except UsageError:
        return
    assert json.loads(json.dumps(data)) == data


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_scalars_survive(value: int | bool | float) -> None:
    text = json.dumps(value)
    parsed = parse_scalar(text)
    if len(text) > 64 or ("e" in text and isinstance(value, float) and "." not in text):
        assert parsed == text  # 1e-07 is a text to YAML
    else:
        assert parsed == value


def test_suggests_by_the_last_part() -> None:
    keys = ["tree.nodes", "sampling.top_k"]
    assert did_you_mean("nodes", keys) == ["did you mean tree.nodes?"]
    assert did_you_mean("smapling.topk", keys) == ["did you mean sampling.top_k?"]
    assert did_you_mean("zzz", keys) == []
