"""The error tree: exit codes, codes for JSON, and the three fields that a caller reads."""

import inspect
import re

import pytest

from specx import errors
from specx.errors import SpecxError

EXIT_CODES = {
    "SpecxError": 1,
    "UsageError": 2,
    "DocumentError": 3,
    "ModelUnavailableError": 4,
    "ModelError": 4,
    "PairError": 5,
    "ResourceError": 6,
    "ContextError": 7,
    "VerifyError": 8,
}
CLASSES = {
    name: thing
    for name, thing in inspect.getmembers(errors, inspect.isclass)
    if issubclass(thing, SpecxError)
}


def test_every_class_has_its_exit_code() -> None:
    assert {name: thing.exit_code for name, thing in CLASSES.items()} == EXIT_CODES


def test_codes_are_unique_words() -> None:
    codes = [thing.code for thing in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_fields_and_text(name: str) -> None:
    error = CLASSES[name]("it broke", reason="too old", hints=iter(["mend it", "buy another"]))
    assert isinstance(error, SpecxError)
    assert (error.message, error.reason) == ("it broke", "too old")
    assert error.hints == ("mend it", "buy another")
    assert str(error) == "it broke: too old"
    assert error.__doc__


def test_reason_and_hints_may_be_left_out() -> None:
    error = SpecxError("it broke")
    assert str(error) == error.message == "it broke"
    assert (error.reason, error.hints) == ("", ())
