"""``specx presets``: which model pairs there are, what is in them, and whether they fit."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Context, Option, Typer

from specx.cli.console import print_table
from specx.cli.errors import SOME_FAILED
from specx.cli.options import Assignments, Offline, option
from specx.cli.output_file import Sink
from specx.cli.result_json import (
    CheckedPreset,
    CheckFacts,
    PresetsCheckObject,
    PresetsObject,
    dumps,
)
from specx.cli.settings import parse_assignments
from specx.errors import SpecxError, UsageError
from specx.preset.preset import PresetEntry, available_presets, load_preset, preset_json_schema
from specx.trace.result import error_object

if TYPE_CHECKING:
    from specx.checkpoints.check_pair import Outcome

Format = Annotated[
    Literal["text", "json"], option("-o --output FORMAT", help="text or json [text].")
]

presets = Typer(rich_markup_mode=None)


@presets.callback(invoke_without_command=True)
def _presets(context: Context) -> int:
    """List, show and check presets: the model pairs that specx can run."""
    return list_presets() if context.invoked_subcommand is None else 0


@presets.command("list")
def list_presets(output: Format = "text") -> int:
    """List the presets that have a name."""
    entries = available_presets()
    if output == "json":
        Sink().write(dumps(PresetsObject(schema="specx.presets/1", presets=entries), output))
        return 0
    header = ("name", "target", "draft", "license", "gated", "download", "memory at 16K", "from")
    print_table(header, map(_cells, entries))
    return 0


@presets.command("show")
def show_preset(
    name: Annotated[str, Argument(metavar="NAME", help="Preset name or YAML file.")],
    set_: Assignments = [],  # noqa: B006 (Typer wants a list)
    output: Format = "text",
) -> int:
    """Print a preset with all its fields, defaults included, as YAML."""
    preset = load_preset(name, parse_assignments(set_))
    Sink().write(preset.to_yaml() if output == "text" else dumps(preset.as_mapping(), output))
    return 0


@presets.command("schema")
def print_schema() -> int:
    """Print the JSON Schema of a preset file."""
    Sink().write(dumps(preset_json_schema(), "json"))
    return 0


@presets.command("check")
def check_presets(
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Preset name or YAML file.", show_default=False)
    ] = None,
    every: Annotated[bool, Option("--all", help="Check every preset.")] = False,
    recorded: Annotated[
        Path | None,
        option("--recorded DIR", help="Take repositories from DIR/owner__name where it has them."),
    ] = None,
    offline: Offline = False,
    output: Format = "text",
) -> int:
    """Check that target and draft fit together, from configs and tokenizers: no weights."""
    if (name is None) != every:
        raise UsageError("name a preset, or give --all", hints=["specx presets check pocket"])
    results = _checked(name, recorded, offline)
    # A preset's checks end with its first problem.
    problems = [found[-1].problem for found in results.values() if found[-1].problem]
    if output == "json":
        rows = [_facts(each, found) for each, found in results.items()]
        listed = PresetsCheckObject(schema="specx.presets-check/1", presets=rows)
        Sink().write(dumps(listed, output))
    else:
        cells = [
            (each, one.check.name, _result(one), str(one.problem or one.doubt or one.check.about))
            for each, found in results.items()
            for one in found
        ]
        print_table(("preset", "check", "result", "about"), cells)
    if not problems:
        return 0
    if every:
        return SOME_FAILED if len(problems) < len(results) else problems[0].exit_code
    if output == "text":
        raise problems[0]  # with its reason and hints
    return problems[0].exit_code


def _checked(
    name: str | None, recorded_in: Path | None, offline: bool
) -> "dict[str, list[Outcome]]":
    """Preset → how its checks ended."""
    from specx.checkpoints import load as hub
    from specx.checkpoints.check_pair import Check, Locate, Outcome, outcomes, recorded

    locate: Locate = functools.partial(hub.resolve, offline=offline)
    if recorded_in is not None:
        locate = recorded(recorded_in, locate)
    if name is not None:
        preset = load_preset(name)
        return {preset.name: outcomes(preset, locate)}
    results: dict[str, list[Outcome]] = {}
    for entry in available_presets():
        try:
            results[entry.name] = outcomes(load_preset(str(entry.path)), locate)
        except SpecxError as error:
            results[entry.name] = [Outcome(Check("preset file", str(entry.path)), error)]
    return results


def _result(outcome: "Outcome") -> Literal["ok", "odd", "fail"]:
    if outcome.problem is not None:
        return "fail"
    return "odd" if outcome.doubt else "ok"


def _facts(name: str, found: "list[Outcome]") -> CheckedPreset:
    checks = [
        CheckFacts(
            check=each.check.name,
            about=each.check.about,
            result=_result(each),
            doubt=each.doubt or None,
            error=error_object(each.problem) if each.problem else None,
        )
        for each in found
    ]
    return CheckedPreset(name=name, fits=found[-1].problem is None, checks=checks)


def _cells(entry: PresetEntry) -> tuple[str, ...]:
    if entry.problem:
        return entry.name, f"broken: {entry.problem}", *[""] * 5, entry.origin
    sizes = [
        "?" if size is None else f"{size:.1f} GiB" if size else "none"
        for size in (entry.download_gib, entry.memory_at_16k_gib)
    ]
    facts = entry.target, entry.draft_kind, entry.license or "?", "yes" if entry.gated else "no"
    return entry.name, *facts, *sizes, entry.origin
