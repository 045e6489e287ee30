"""YAML read strictly: no aliases, no tags, no duplicate keys, and types taken at their word.

Whatever is wrong becomes one ``UsageError`` that names key, line and remedy.
"""

import datetime
import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from specx.errors import UsageError

_WORDS = (  # pydantic speaks of JSON, the user wrote YAML
    ("Input should be", "must be"),
    ("String should", "must"),
    ("an object", "a mapping"),
    ("a valid array", "a list"),
)
Model = TypeVar("Model", bound=BaseModel)

#: Path of a key (``("tree", "nodes")``, list items by number) → line number, from 1.
Lines = dict[tuple[str | int, ...], int]


def parse_mapping(text: str, source: str) -> tuple[dict[str, Any], Lines]:
    """The mapping in ``text`` and the lines of its keys; ``source`` names it in messages.

    Raises ``UsageError`` with line and column where YAML knows them.
    """
    lines: Lines = {}
    try:
        data = _parse(text, lines)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, yaml.MarkedYAMLError):
            reason = str(error.problem or error.context)
            if mark := error.problem_mark or error.context_mark:
                reason = f"line {mark.line + 1}, column {mark.column + 1}: {reason}"
        raise UsageError(f"{source} is not valid YAML", reason=reason) from error
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise UsageError(f"{source} {what}", reason="a mapping of keys to values is needed")
    return data, lines


def parse_scalar(text: str) -> int | float | bool | str | None:
    """What YAML takes an unquoted ``text`` for; anything but a plain scalar stays a text."""
    if len(text) > 64:  # no number is longer, and nothing is gained by parsing a paragraph
        return text
    try:
        value = _parse(text, {})
    except (yaml.YAMLError, ValueError):
        return text
    return value if value is None or isinstance(value, int | float) else text


def validate(
    model: type[Model], data: object, source: str, *, known_keys: Sequence[str], lines: Lines
) -> Model:
    """``data`` as a ``model``, types taken strictly; ``known_keys`` are dotted, for suggestions.

    Raises ``UsageError`` that names up to three wrong keys.
    """
    try:
        # JSON makes strict types usable: a list is a tuple, a mapping a dataclass, "8" no number.
        return model.model_validate_json(json.dumps(data, allow_nan=False), strict=True)
    except ValidationError as error:
        found = [_explain(detail, lines, known_keys) for detail in error.errors()[:3]]
        reasons = "; ".join(reason for reason, _ in found)
        hints = list(dict.fromkeys(hint for _, several in found for hint in several))[:3]
        raise UsageError(f"{source} is not valid", reason=reasons, hints=hints) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source} is not valid", reason=str(error)) from error


def did_you_mean(word: str, known: Iterable[str]) -> list[str]:
    """At most one hint; for a dotted key its last part alone may be the one that is known."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close:
        by_tail = {name.rpartition(".")[2]: name for name in reversed(names)}
        tails = difflib.get_close_matches(word.rpartition(".")[2], by_tail, n=1, cutoff=0.7)
        close = [by_tail[tail] for tail in tails]
    return [f"did you mean {close[0]}?"] if close else []


def _explain(detail: Any, lines: Lines, known_keys: Sequence[str]) -> tuple[str, list[str]]:
    """One complaint of pydantic as a sentence that names the key, and what to do about it."""
    loc, kind, value = tuple(detail["loc"]), detail["type"], detail["input"]
    key = ".".join(str(part) for part in loc)
    where = f"line {lines[loc]}: " if loc in lines else ""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        groups = {known.partition(".")[0] for known in known_keys}
        hints = did_you_mean(key, [*known_keys, *sorted(groups)])
        return f"{where}{key} is not a known key", hints or [f"known: {', '.join(known_keys)}"]
    if kind == "missing":
        return f"{key} is missing", []
    if kind == "json_invalid":  # the one thing that YAML's escapes can write and JSON cannot
        return "it holds half of a surrogate pair", []
    if kind == "value_error":
        text = str(detail["ctx"]["error"])[:200]
        named = not key or text.startswith(key.split(".")[0])
        return f"{where}{text if named else f'{key}: {text}'}", []
    wanted = detail["msg"]
    for theirs, ours in _WORDS:
        wanted = wanted.replace(theirs, ours)
    hints = did_you_mean(str(value), re.findall(r"'([^']+)'", wanted))
    if inside := [known for known in known_keys if known.startswith(f"{key}.")]:
        hints = [f"set one of {', '.join(inside)}"]
    number = re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", value) if isinstance(value, str) else None
    if isinstance(value, bool):
        hints = ["YAML reads no, off, yes and on as false and true: put the word in quotes"]
    elif number and number[1]:
        hints = [f"YAML reads {value} as a text: write the number out, as in 0.001"]
    elif number:
        hints = [f"{value} is a text because of its quotes: leave them out"]
    elif isinstance(value, int | float) and "string" in wanted:
        hints = [f"{value} is a number to YAML: put it in quotes"]
    return f"{where}{key} {wanted}, not {json.dumps(value)[:60]}", hints


def _parse(text: str, lines: Lines) -> Any:
    """The value of ``text`` in JSON's types; ``lines`` receives the line of each key."""
    loader = _Loader(text)
    node = loader.get_single_node()
    return None if node is None else _plain(loader, node, (), lines)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # nested aliases grow without bound when copied
            _refuse("aliases (*name) are not allowed here", self.current_event)
        if self.check_event(yaml.NodeEvent) and getattr(self.current_event, "tag", None):
            _refuse("tags (!name) are not allowed here", self.current_event)
        return super().compose_node(parent, index)


def _plain(loader: _Loader, node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> Any:
    if path:
        lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*path, at), lines) for at, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                shown = key_node.value if isinstance(key_node.value, str) else key
                _refuse(f"the key {shown} is not a text: quote it", key_node)
            if key in mapping:
                _refuse(f"the key {key!r} is given twice", key_node)
            lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = _plain(loader, value_node, (*path, key), lines)
        return mapping
    value = loader.construct_object(node, deep=True)
    if isinstance(value, float) and not math.isfinite(value):
        _refuse("the number is not finite", node)
    return value.isoformat() if isinstance(value, datetime.date) else value


def _refuse(problem: str, at: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
