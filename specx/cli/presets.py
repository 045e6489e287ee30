"""``specx presets``: which model pairs there are, what is in them, and whether they fit."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Context, Option, Typer

from specx.cli.console import out_console
from specx.cli.errors import SOME_FAILED, error_object
from specx.cli.format import tab_separated, table
from specx.cli.options import Offline
from specx.cli.output_file import Sink
from specx.cli.result_json import dumps
from specx.cli.settings import parse_assignments
from specx.errors import UsageError

if TYPE_CHECKING:
    from specx.checkpoints.check_pair import Outcome
    from specx.preset.preset import PresetEntry

_UNKNOWN = "?"
Format = Annotated[
    Literal["text", "json"],
    Option("-o", "--output", metavar="FORMAT", help="text or json [text].", show_default=False),
]

presets = Typer(rich_markup_mode=None)


@presets.callback(invoke_without_command=True)
def _presets(context: Context) -> int:
    """List, show and check presets: the model pairs that specx can run."""
    return list_presets() if context.invoked_subcommand is None else 0


@presets.command("list")
def list_presets(output: Format = "text") -> int:
    """List the presets that a name reaches."""
    from specx.preset.preset import available_presets

    entries = available_presets()
    if output == "json":
        rows = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
        Sink().write(dumps({"schema": "specx.presets/1", "presets": rows}, output))
        return 0
    header = ("name", "target", "draft", "license", "gated", "download", "memory at 16K", "from")
    _print(header, [_cells(entry) for entry in entries])
    return 0


@presets.command("show")
def show_preset(
    name: Annotated[str, Argument(metavar="NAME", help="Preset name or YAML file.")],
    set_: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a field (repeatable).")
    ] = None,
    output: Format = "text",
) -> int:
    """Print a preset with all its fields, defaults included, as YAML."""
    from specx.preset.preset import load_preset

    preset = load_preset(name, parse_assignments(set_ or []))
    Sink().write(preset.to_yaml() if output == "text" else dumps(preset.as_mapping(), output))
    return 0


@presets.command("schema")
def print_schema() -> int:
    """Print the JSON Schema of a preset file."""
    from specx.preset.preset import preset_json_schema

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
        Option(
            "--recorded",
            metavar="DIR",
            help="Take repositories from DIR/owner__name where it has them.",
            show_default=False,
        ),
    ] = None,
    offline: Offline = False,
    output: Format = "text",
) -> int:
    """Check that target and draft fit together, from configs and tokenizers: no weights."""
    if (name is None) != every:
        raise UsageError("name a preset, or give --all", hints=["specx presets check pocket"])
    results = _checked(name, recorded, offline)
    failed = [each for each, found in results.items() if any(o.problem for o in found)]
    if output == "json":
        rows = [_check_object(each, found) for each, found in results.items()]
        Sink().write(dumps({"schema": "specx.presets-check/1", "presets": rows}, output))
    else:
        lines = [
            _check_cells(each, outcome) for each, found in results.items() for outcome in found
        ]
        _print(("preset", "check", "result", "about"), lines)
    problem = next((o.problem for found in results.values() for o in found if o.problem), None)
    if problem is None:
        return 0
    if every:
        return SOME_FAILED if len(failed) < len(results) else problem.exit_code
    if output == "text":
        raise problem  # with its reason and hints
    return problem.exit_code


def _checked(
    name: str | None, recorded_in: Path | None, offline: bool
) -> "dict[str, list[Outcome]]":
    """Preset → how its checks ended."""
    from specx.checkpoints import load as hub
    from specx.checkpoints.check_pair import Check, Locate, Outcome, outcomes, recorded
    from specx.errors import SpecxError
    from specx.preset.preset import available_presets, load_preset

    def on_hub(repo: str, revision: str | None) -> Path:
        return hub.resolve(repo, revision, offline=offline)

    locate: Locate = on_hub if recorded_in is None else recorded(recorded_in, on_hub)
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


def _check_cells(name: str, outcome: "Outcome") -> tuple[str, str, str, str]:
    check, problem = outcome.check, outcome.problem
    if problem is not None:
        return name, check.name, "fail", str(problem)
    return name, check.name, "odd" if outcome.doubt else "ok", outcome.doubt or check.about


def _check_object(name: str, found: "list[Outcome]") -> dict[str, Any]:
    checks = [
        {
            "check": outcome.check.name,
            "about": outcome.check.about,
            "result": _check_cells(name, outcome)[2],
            "doubt": outcome.doubt or None,
            "error": error_object(outcome.problem) if outcome.problem else None,
        }
        for outcome in found
    ]
    return {"name": name, "fits": not any(o.problem for o in found), "checks": checks}


def _cells(entry: "PresetEntry") -> tuple[str, ...]:
    if entry.problem:
        return entry.name, f"broken: {entry.problem}", *[""] * 5, entry.origin
    sizes = [
        _UNKNOWN if size is None else f"{size:.1f} GiB" if size else "none"
        for size in (entry.download_gib, entry.memory_at_16k_gib)
    ]
    gated = "yes" if entry.gated else "no"
    license_ = entry.license or _UNKNOWN
    return entry.name, entry.target, entry.draft_kind, license_, gated, *sizes, entry.origin


def _print(header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        out_console().print(table(header, cells))
    else:
        Sink().write(tab_separated(header, cells))
