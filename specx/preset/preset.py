"""Presets: which models run, and with which settings, as one small YAML file.

Names are the user's presets, then those shipped with specx, never files of the current directory.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from specx.core.config import Mode, RetrievalConfig, SamplingConfig, TreeConfig
from specx.environment import user_folder
from specx.errors import UsageError
from specx.preset import sections
from specx.preset.yaml import Lines, did_you_mean, parse_mapping, parse_scalar, validate

Name = Annotated[str, Field(pattern=r"^[a-z0-9._-]+$")]

MAX_PRESET_BYTES = 1 << 20
_IDENTITY = ("schema", "name", "extends")  # belong to the file, so no override may change them
_DOCUMENTATION = ("about", "requires", "measured", "paper")  # change nothing that is computed
_NOT_INHERITED = ("name", "measured", "paper")  # numbers of another preset


class Preset(sections.Frozen):
    """All settings of a model pair, checked; change some with ``with_overrides``."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    about: str = ""
    target: sections.TargetSpec
    draft: sections.DraftSpec
    context_tokens: int = Field(ge=64, le=1 << 24)  # prompt and new tokens together
    prompt: sections.PromptSpec = sections.PromptSpec()
    mode: Mode = "auto"
    tree: TreeConfig = TreeConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    sampling: SamplingConfig = SamplingConfig()  # see has_sampling
    max_new_tokens: int = Field(default=256, ge=1)  # of the answer
    max_think_tokens: int | None = Field(default=None, ge=0)  # of a thought before it
    prefill_chunk_tokens: int = Field(default=2048, ge=1)
    parts: sections.PartsOverrides = Field(default_factory=dict)
    requires: sections.Requirements = sections.Requirements()
    measured: tuple[sections.Measurement, ...] = ()
    paper: tuple[sections.PaperRow, ...] = ()
    extends: Name | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Preset":
        new, context, drafter = self.max_new_tokens, self.context_tokens, self.parts.get("drafter")
        thought = self.max_think_tokens or 0
        if new >= context:
            raise ValueError(f"max_new_tokens ({new}) must be less than context_tokens ({context})")
        if new + thought >= context:
            together = f"max_think_tokens ({thought}) and max_new_tokens together must be"
            raise ValueError(f"{together} less than context_tokens ({context})")
        if drafter in sections.WITH_WEIGHTS and drafter != self.draft.kind:
            raise ValueError(f"parts.drafter is {drafter}, but draft.kind is {self.draft.kind}")
        budget, trained = self.retrieval.budget_tokens, self.draft.trained_context_tokens
        if self.draft.has_weights and budget > trained:
            raise ValueError(
                f"retrieval keeps up to {budget} tokens for a draft trained on {trained} "
                "(draft.trained_context_tokens); lower retrieval.top_chunks"
            )
        return self

    def with_overrides(self, overrides: Mapping[str, object]) -> "Preset":
        """A copy with settings replaced: ``{"tree.nodes": "8"}``.

        A string is read as YAML reads a scalar unless the setting is a text. Raises
        ``UsageError`` for an unknown key or a value that the preset file could not hold either.
        """
        data = self.as_mapping()
        for key, value in overrides.items():
            if key in _IDENTITY:
                reason = "it belongs to the preset file"
                raise UsageError(f"{key} cannot be overridden", reason=reason)
            change = _scalar(value, _leaves().get(key, frozenset()))
            for name in reversed(key.split(".", 4)):  # no setting is deeper
                change = {name: change}
            data = _merged(data, change)
        return preset_from(data, f"preset {self.name}")

    @property
    def has_sampling(self) -> bool:
        """Whether it says how tokens are drawn, be it greedily. Otherwise the target does, in its
        generation_config.json."""
        return "sampling" in self.model_fields_set

    def as_mapping(self) -> dict[str, Any]:
        """Plain values under the keys of the YAML file, defaults included, but for ``sampling``
        where the preset does not have it."""
        silent = None if self.has_sampling else {"sampling"}
        return self.model_dump(mode="json", by_alias=True, exclude=silent)

    def to_yaml(self) -> str:
        """The preset as a file that ``load_preset`` reads back."""
        return yaml.safe_dump(self.as_mapping(), sort_keys=False, allow_unicode=True, width=100)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all settings that change what is computed, overrides included."""
        data = {k: v for k, v in self.as_mapping().items() if k not in _DOCUMENTATION}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class PresetEntry:
    """A preset file as found. ``problem`` says why it does not load; the rest is empty then."""

    name: str
    path: Path
    origin: Literal["user", "shipped", "file"]
    about: str = ""
    target: str = ""
    draft_kind: str = ""
    license: str | None = None
    gated: bool = False
    download_gib: float | None = None
    memory_at_16k_gib: float | None = None
    problem: str = ""


def load_preset(
    name_or_path: "str | Preset", overrides: Mapping[str, object] | None = None
) -> Preset:
    """Find, read and check a preset, then apply ``overrides`` (see ``Preset.with_overrides``).

    A ``Preset`` is taken as it is. Raises ``UsageError`` when there is no such preset or anything
    in it is wrong.
    """
    if isinstance(name_or_path, Preset):
        return name_or_path.with_overrides(overrides) if overrides else name_or_path
    entry = find_preset(name_or_path)
    data, lines = _read(entry.path)
    if isinstance(data.get("extends"), str):
        data = _extended(data, entry.name)
    preset = preset_from(data, f"preset file {entry.path}", lines)
    if preset.name != entry.name:
        raise UsageError(
            f"preset file {entry.path} calls itself {preset.name}",
            reason="the name in a preset file must be the name of the file",
            hints=[f"write name: {entry.name}, or rename the file to {preset.name}.yaml"],
        )
    return preset.with_overrides(overrides) if overrides else preset


def preset_from(data: dict[str, Any], source: str, lines: Lines | None = None) -> Preset:
    """A preset of plain values; ``source`` names it in messages. Raises ``UsageError``."""
    return validate(Preset, data, source, known_keys=preset_keys(), lines=lines or {})


def find_preset(name_or_path: str) -> PresetEntry:
    """Where a preset is. A value with a path separator or ending in .yaml is a file.

    Raises ``UsageError`` with the closest names when there is none.
    """
    is_path = os.sep in name_or_path or (os.altsep or os.sep) in name_or_path
    if is_path or name_or_path.lower().endswith((".yaml", ".yml")):
        path = Path(os.path.expanduser(name_or_path))
        return PresetEntry(name=path.stem, path=path, origin="file")
    return _named(name_or_path)


def available_presets() -> list[PresetEntry]:
    """Every preset that has a name, sorted; a broken file is listed with its ``problem``."""
    found = []
    for _, entry in sorted(_entries().items()):
        try:
            preset = load_preset(str(entry.path))
        except UsageError as error:
            found.append(dataclasses.replace(entry, problem=str(error)))
            continue
        facts = preset.requires.model_dump(exclude={"sources", "unverified"})
        facts |= {"target": preset.target.repo, "draft_kind": preset.draft.kind}
        found.append(dataclasses.replace(entry, about=preset.about, **facts))
    return found


def user_preset_files() -> list[Path]:
    """The user's presets; none where the folder is missing or may not be entered."""
    folder = user_folder("config")
    if folder is None or not os.path.isdir(folder / "presets"):
        return []
    return sorted((folder / "presets").glob("*.yaml"))


def preset_keys() -> tuple[str, ...]:
    """Every key of a preset file, dotted (``tree.nodes``)."""
    return tuple(_leaves())


def preset_json_schema() -> dict[str, Any]:
    """The JSON Schema of a preset file; one that extends another may leave most keys out."""
    schema = Preset.model_json_schema(by_alias=True)
    extends = {"required": ["extends"], "properties": {"extends": {"type": "string"}}}
    schema |= {"if": extends, "else": {"required": schema["required"]}}
    schema["required"] = ["schema", "name"]
    return schema


def _named(name: str) -> PresetEntry:
    entries = _entries()
    if name in entries:
        return entries[name]
    raise UsageError(
        f"there is no preset named {name!r}",
        hints=[
            *did_you_mean(name, entries),
            f"available: {', '.join(sorted(entries))}",
            "for a file of your own give its path: ./my-preset.yaml",
        ],
    )


def _entries() -> dict[str, PresetEntry]:
    """By name; the user's replace those of the same name that come with specx."""
    package = Path(__file__).parent.parent
    shipped = package / "presets"  # in a wheel; in a checkout the folder is beside the package
    if not shipped.is_dir():
        shipped = package.parent / "presets"
    found = {path.stem: PresetEntry(path.stem, path, "shipped") for path in shipped.glob("*.yaml")}
    users = user_preset_files()
    return found | {path.stem: PresetEntry(path.stem, path, "user") for path in users}


def _read(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file's mapping with relative directories made absolute, and the line of every key."""
    source = f"preset file {path}"
    try:
        if not path.is_file():
            reason = "it is not a regular file" if path.exists() else "there is no such file"
            raise UsageError(f"cannot read {source}", reason=reason)
        with path.open("rb") as file:
            raw = file.read(MAX_PRESET_BYTES + 1)
        if len(raw) > MAX_PRESET_BYTES:
            raise UsageError(f"{source} is too large", reason="a preset has at most 1 MiB")
        data, lines = parse_mapping(raw.decode("utf-8-sig"), source)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {source}", reason=str(error)) from error
    if data.get("schema") is True or data.get("schema") != 1:
        found = f"schema {data['schema']!r}" if "schema" in data else "no schema number"
        hint = "its first line must be: schema: 1"
        raise UsageError(f"{source} has {found}; this specx reads schema 1", hints=[hint])
    for part in (data.get("target"), data.get("draft")):
        if isinstance(part, dict) and str(part.get("repo")).startswith(("./", "../")):
            part["repo"] = str((path.parent / part["repo"]).resolve())
    return data, lines


def _extended(data: dict[str, Any], name: str) -> dict[str, Any]:
    """``data`` laid over the preset that it extends; measured numbers are not inherited."""
    base, _ = _read(_named(data["extends"]).path)
    if base.get("extends") is not None:
        raise UsageError(
            f"preset {name} extends {data['extends']}, which extends {base['extends']}",
            reason="a preset that is extended must not extend another",
        )
    return _merged({key: base[key] for key in base if key not in _NOT_INHERITED}, data)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both, and of the same key what ``over`` has; groups are merged themselves."""
    merged = base | over
    for key, group in over.items():
        if isinstance(group, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], group)
    return merged


def _scalar(text: object, types: frozenset[str]) -> Any:
    """What ``text`` means to YAML where the setting is no text; a text stays what it is."""
    if not isinstance(text, str) or types == {"string"}:
        return text
    value = parse_scalar(text)
    if "array" in types and value is not None:
        return [parse_scalar(part.strip()) for part in text.strip("[]").split(",")]
    return text if types == {"string", "null"} and value is not None else value


@functools.cache
def _leaves() -> dict[str, frozenset[str]]:
    """Dotted key of every setting, groups opened, with its types as JSON Schema names them."""
    schema = Preset.model_json_schema(by_alias=True)

    def walk(group: dict[str, Any], prefix: str) -> Iterator[tuple[str, frozenset[str]]]:
        for name, part in group["properties"].items():
            choices = part.get("anyOf") or part.get("allOf") or [part]
            groups = [choice["$ref"] for choice in choices if "$ref" in choice]
            for reference in groups:
                yield from walk(schema["$defs"][reference.rpartition("/")[2]], f"{prefix}{name}.")
            if not groups:
                yield f"{prefix}{name}", frozenset(choice.get("type", "") for choice in choices)

    return dict(walk(schema, ""))
