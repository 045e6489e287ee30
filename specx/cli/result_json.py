"""The JSON that the commands write, besides ``specx.result/1``: lists of settings and presets,
each a pydantic model that its JSON Schema comes from.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from specx.cli.settings import Setting
from specx.errors import SpecxError
from specx.preset.preset import PresetEntry
from specx.trace.records import Record
from specx.trace.result import ErrorObject, error_object


class SettingsObject(Record):
    """What ``--show-settings`` writes."""

    schema_name: Literal["specx.settings/1"] = Field(alias="schema")
    settings: list[Setting]


class PresetsObject(Record):
    """What ``specx presets list`` writes."""

    schema_name: Literal["specx.presets/1"] = Field(alias="schema")
    presets: list[PresetEntry]


class CheckFacts(Record):
    """One check of a pair; ``error`` says why it failed, ``doubt`` what is odd."""

    check: str
    about: str
    result: Literal["ok", "odd", "fail"]
    doubt: str | None
    error: ErrorObject | None


class CheckedPreset(Record):
    """A preset and whether its target and draft fit together."""

    name: str
    fits: bool
    checks: list[CheckFacts]


class PresetsCheckObject(Record):
    """What ``specx presets check`` writes."""

    schema_name: Literal["specx.presets-check/1"] = Field(alias="schema")
    presets: list[CheckedPreset]


def dumps(value: Any, output: str) -> str:
    """``value``, a model or plain data, as JSON: indented for ``json``, a line for ``jsonl``.

    Raises ``ValueError`` for a number that JSON does not know.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    indent = 2 if output == "json" else None
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def error_json(error: SpecxError, output: str, *, document: str | None = None) -> str:
    """``specx.error/1``; ``document`` is the path of the failed input, where there are several."""
    return dumps(error_object(error, document=document), output)
