"""What an absent option means: flag over ``SPECX_*`` over preset, each with its source."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from specx.cli.options import RunRequest, Sources
from specx.core.config import Mode, SamplingConfig, Think
from specx.errors import ModelError, ModelUnavailableError, UsageError, is_text
from specx.preset.preset import Preset, load_preset

# Keys of a preset that are listed as options, or that decide nothing.
_NOT_LISTED = (
    *("mode", "max_new_tokens", "max_think_tokens", "sampling"),
    *("schema", "name", "about", "requires", "measured", "extends"),
)
_NOT_OF_A_PRESET = (
    *("stop", "ignore_eos", "device", "dtype", "offline", "verify"),
    *("output", "show", "trace", "out"),
)

_AS_OPTIONS = {
    "max_new_tokens": "max_tokens",
    "prompt.think": "think",
    "max_think_tokens": "think_tokens",
}
_GENERATION = "generation_config.json"

#: Sources of a request that came from no command line.
NOTHING_GIVEN: Sources = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of ``--show-settings``."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides the text, resolved."""

    preset: Preset
    mode: Mode
    max_tokens: int
    think: Think
    think_tokens: int | None  # None: a usual bound, as far as the context has room
    sampling: SamplingConfig
    stop: tuple[str, ...]
    ignore_eos: bool
    device: str
    dtype: str
    offline: bool
    check_tokens: int | None  # how many --verify checks: 0 none, None all


def resolve(
    request: RunRequest, sources: Sources = NOTHING_GIVEN, preset: Preset | None = None
) -> Settings:
    """Load the preset, unless it is there, and fill every gap of the request.

    Raises ``UsageError``, and what looking at a pair of ``--target`` and ``--draft`` raises.
    """
    if preset is None:
        named = chosen_preset(
            request.preset, request.target, request.draft, sources, offline=request.offline
        )
        preset = load_preset(named, parse_assignments(request.set_))
    max_tokens = preset.max_new_tokens if request.max_tokens is None else request.max_tokens
    if max_tokens < 1:
        raise UsageError(f"--max-tokens must be ≥ 1, not {max_tokens}")
    think_tokens = request.think_tokens
    if think_tokens is not None and think_tokens < 0:
        raise UsageError(f"--think-tokens must be ≥ 0, not {think_tokens}")
    if "" in request.stop:
        raise UsageError("--stop must not be empty", reason="every text contains the empty text")
    if not all(map(is_text, request.stop)):
        raise UsageError("--stop is not UTF-8", reason="so no text of a model can contain it")
    return Settings(
        preset=preset,
        mode=request.mode or preset.mode,
        max_tokens=max_tokens,
        think=request.think or preset.prompt.think,
        think_tokens=preset.max_think_tokens if think_tokens is None else think_tokens,
        sampling=_sampling(request, preset),
        stop=tuple(request.stop),
        ignore_eos=request.ignore_eos,
        device=request.device,
        dtype=request.dtype,
        offline=request.offline,
        check_tokens=parse_check(request.verify),
    )


def chosen_preset(
    preset: str, target: str | None, draft: str | None, sources: Sources, *, offline: bool
) -> str | Preset:
    """What ``-m``, ``--target`` and ``--draft`` name together: a preset's name, or a preset.

    Raises ``UsageError`` for a preset and a target at once, and what reading configs raises.
    """
    if target is None and draft is None:
        return preset
    if "" in (target, draft):
        raise UsageError("--target and --draft must not be empty")
    from specx.checkpoints.adhoc import adhoc_preset, with_draft

    if target is None:
        return with_draft(load_preset(preset), str(draft), offline=offline)
    if sources.get("preset", "").startswith("--"):  # a variable gives way
        raise UsageError(
            "-m and --target name two targets",
            hints=["give one of them", f"another draft for the preset: -m {preset} --draft REPO"],
        )
    return adhoc_preset(target, draft, offline=offline)


def chosen_presets(
    names: Sequence[str], target: str | None, draft: str | None, *, offline: bool
) -> tuple[str | Preset, ...]:
    """As ``chosen_preset`` where ``-m`` is repeatable and may be absent."""
    if draft is not None and len(names) > 1:
        raise UsageError("--draft replaces the draft of one preset", hints=["give -m once"])
    given = {"preset": "--preset"} if names else NOTHING_GIVEN
    return tuple(
        chosen_preset(name, target, draft, given, offline=offline) for name in names or ["pocket"]
    )


def parse_assignments(words: Sequence[str]) -> dict[str, str]:
    """``["tree.nodes=8"]`` as a mapping. Raises ``UsageError`` for a word without key or ``=``."""
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            hint = "for example --set tree.nodes=8"
            raise UsageError(f"--set takes KEY=VALUE, not {word!r}", hints=[hint])
        pairs[key.strip()] = value.strip()
    return pairs


def parse_check(value: str) -> int | None:
    """``--verify`` as a number of tokens: ``off`` is 0, ``on`` all (None). ``UsageError``."""
    if value in ("on", "off"):
        return None if value == "on" else 0
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise UsageError(f"--verify takes on, off or a number of tokens ≥ 1, not {value!r}")


def setting_rows(request: RunRequest, settings: Settings, sources: Sources) -> list[Setting]:
    """Every setting with where it came from: a flag, a variable, ``--set`` or the preset."""
    preset = settings.preset
    assigned = parse_assignments(request.set_)

    def from_preset(key: str) -> str:
        if key in assigned:
            return "--set"
        group = key.split(".")[0]
        if request.draft is not None and group in ("draft", "retrieval"):
            return "--draft"
        return "--target" if request.target is not None else f"preset {preset.name}"

    named, source = request.preset, sources.get("preset", "default")
    if request.target is not None:
        named, source = preset.name, "--target"
    rows = [Setting("preset", named, source)]
    resolved: dict[str, Any] = {"mode": settings.mode, "max_new_tokens": settings.max_tokens}
    resolved |= {"prompt.think": settings.think, "max_think_tokens": settings.think_tokens}
    for key, value in resolved.items():
        name = _AS_OPTIONS.get(key, key)
        rows.append(Setting(name, value, sources.get(name, from_preset(key))))
    said, ends = _said_by_target(preset)
    for name, value in asdict(settings.sampling).items():
        is_said = "do_sample" in said if name == "temperature" else value == said.get(name)
        source = _GENERATION if is_said else "default"
        if preset.has_sampling:
            source = from_preset(f"sampling.{name}")
        rows.append(Setting(name, value, sources.get(name, source)))
    if said:
        why = f", not used: preset {preset.name} has sampling values"
        source = f"{_GENERATION}{why if preset.has_sampling else ''}"
        rows.append(Setting("generation_config", said, source))
    listed = list(dict.fromkeys(end for found in ends.values() for end in found))
    rows.append(Setting("end_tokens", listed, ", ".join(ends) or "no file of the target here"))
    for name in _NOT_OF_A_PRESET:
        rows.append(Setting(name, getattr(request, name), sources.get(name, "default")))
    for key, value in _flat(preset.as_mapping()).items():
        if key.split(".")[0] not in _NOT_LISTED and key not in resolved:
            rows.append(Setting(key, value, from_preset(key)))
    return rows


def _sampling(request: RunRequest, preset: Preset) -> SamplingConfig:
    given = {each.name: getattr(request, each.name) for each in fields(SamplingConfig)}
    for name, value in given.items():
        if value is not None and not math.isfinite(value):  # JSON knows no infinity
            raise UsageError(f"--{name.replace('_', '-')} must be a number, not {value}")
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        own = preset.sampling if preset.has_sampling else _own_sampling(preset, request.offline)
        return replace(own, **changes)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise UsageError(f"--{name.replace('_', '-')} {rest}") from error


def _own_sampling(preset: Preset, offline: bool) -> SamplingConfig:
    """What the target's checkpoint asks for. Raises what reading its files raises."""
    from specx.checkpoints.config import read_generation

    return read_generation(_target_directory(preset, offline=offline)).sampling


def _target_directory(preset: Preset, *, offline: bool) -> Path:
    """The target's small files; ``checkpoints.load`` has this too, and imports tokenizers."""
    from specx.checkpoints.download import fetch_metadata
    from specx.checkpoints.repository import find

    source = find(preset.target.repo, preset.target.revision, offline=offline)
    fetch_metadata(source)
    return source.directory


def _said_by_target(preset: Preset) -> tuple[Mapping[str, Any], Mapping[str, Sequence[int | str]]]:
    """Sampling values and end tokens in the files of the target, where those are here."""
    from specx.checkpoints.config import end_tokens_by_file, read_generation

    try:
        directory = _target_directory(preset, offline=True)
        return read_generation(directory).said, end_tokens_by_file(directory)
    except (ModelUnavailableError, ModelError):
        return {}, {}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one mapping: ``{"tree.nodes": 8}``."""
    rows: dict[str, Any] = {}
    for key, value in data.items():
        is_group = isinstance(value, Mapping) and bool(value)
        rows |= _flat(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return rows
