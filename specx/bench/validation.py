"""Is a JSON object a ``specx.bench/1``? Asked of files that come from anywhere.

In: a parsed object. Out: what this specx knows of it, fit to be indexed and printed; or a
``ValueError`` of one line that names the place. It does not know files, nor what names and numbers
inside one bench mean to each other.
"""

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from specx.bench.record import Object

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

_LONGEST = 160  # letters of a message from the library, which quotes values of any size
_LONGEST_VALUE = 60
# Control characters and changes of writing direction: a file must not steer the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def known(data: Object) -> Object:
    """The part of ``data`` that ``bench.schema.json`` describes; ``data`` is used up.

    Fields that a newer specx added within version 1 are left out; control characters in texts
    become visible. Raises ``ValueError`` for the first thing that is not as the schema wants it.
    """
    error = next(_validator().iter_errors(data), None)
    if error is not None:
        raise ValueError(_complaint(error))
    cleaned: Object = _cleaned(data)
    return cleaned


def shown(value: object) -> str:
    """``value`` as JSON in ASCII, cut short."""
    try:
        return json.dumps(value)[:_LONGEST_VALUE]
    except RecursionError:  # what the parser could just take
        return "something nested too deeply"


@cache
def _validator() -> "Validator":
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # The library takes 1.0 for an integer, which indexes nothing, and infinity for a number.
    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: type(value) is int,
            "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
        }
    )
    words = {"additionalProperties": _drop_further, "items": _items, "pattern": _match}
    reader = extend(Draft202012Validator, words, type_checker=types)  # type: ignore[no-untyped-call]
    schema = json.loads(files("specx").joinpath("schemas", "bench.schema.json").read_bytes())
    validator: Validator = reader(schema)
    return validator


def _drop_further(
    validator: "Validator", allowed: bool, instance: Any, schema: Object
) -> Iterator["ValidationError"]:
    """What a writer may not add, a reader of a later file leaves out."""
    if not allowed and isinstance(instance, dict):
        for name in instance.keys() - schema["properties"].keys():
            del instance[name]
    return iter(())


def _items(
    validator: "Validator", items: Object, instance: Any, schema: Object
) -> Iterator["ValidationError"]:
    """As the library, but token ids, most of a file, are spared one call each."""
    from jsonschema import Draft202012Validator

    is_plain = items == {"type": "integer"} and isinstance(instance, list)
    if not is_plain or any(type(item) is not int for item in instance):
        yield from Draft202012Validator.VALIDATORS["items"](validator, items, instance, schema)


def _match(
    validator: "Validator", pattern: str, instance: Any, schema: Object
) -> Iterator["ValidationError"]:
    """As the library, but ``$`` is the very end: Python's also stands before a last line break."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield ValidationError(f"{shown(instance)} does not match {pattern}")


def _complaint(error: "ValidationError") -> str:
    """``cells[1].samples[0].decode_s must be at least 0, not -1``."""
    while error.context:  # of an anyOf, which is always "this or null": what is wrong with this
        error = error.context[0]
    where = error.json_path.removeprefix("$").removeprefix(".")
    value: Any = error.validator_value
    instance: Any = error.instance
    if error.validator == "required":
        name = next(name for name in value if name not in instance)
        return f"{where}.{name} is missing".removeprefix(".")
    wanted = _wanted(str(error.validator), value, instance)
    if wanted:
        return f"{where} must {wanted}, not {shown(instance)}"
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", f"{where}: {error.message[:_LONGEST]}")


def _wanted(word: str, value: Any, instance: object) -> str:
    """What a word of JSON Schema asks for in plain English; "" for one that is not used so far."""
    match word:
        case "type" if isinstance(instance, float) and not math.isfinite(instance):
            return "be finite"
        case "type":
            return f"be {value if isinstance(value, str) else ' or '.join(value)}"
        case "enum":
            return f"be {' or '.join(map(str, value))}"
        case "const":
            return f"be {value}"
        case "minimum":
            return f"be at least {value}"
        case "exclusiveMinimum":
            return f"be more than {value}"
        case "minLength" | "minItems":
            return "not be empty"
        case "pattern":  # there is but one
            return "be 64 hexadecimal digits"
    return ""


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cleaned(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value
