"""``specx presets``: which model pairs there are, whether they fit; ``specx pull``: their files."""

import functools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Context, Option, Typer

from specx.cli.console import Screen, print_table
from specx.cli.errors import SOME_FAILED
from specx.cli.options import Assignments, ColorChoice, Offline, counter, option
from specx.cli.output_file import Sink
from specx.cli.progress import downloads_shown
from specx.cli.result_json import (
    CheckedPreset,
    CheckFacts,
    PresetsCheckObject,
    PresetsObject,
    dumps,
)
from specx.cli.settings import parse_assignments
from specx.cli.signals import Interrupts
from specx.errors import SpecxError, UsageError, size
from specx.preset.preset import (
    Preset,
    PresetEntry,
    available_presets,
    load_preset,
    preset_json_schema,
)
from specx.trace.result import error_object

if TYPE_CHECKING:
    from specx.checkpoints.check_pair import Outcome
    from specx.checkpoints.download import DownloadPlan

_HERE = {"bundled": "comes with specx", "directory": "a directory", "cache": "in the cache"}
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
    rows = [_facts(each, found) for each, found in results.items()]
    if output == "json":
        listed = PresetsCheckObject(schema="specx.presets-check/1", presets=rows)
        Sink().write(dumps(listed, output))
    else:
        cells = [
            (row.name, fact.check, fact.result, str(one.problem or one.doubt or fact.about))
            for row in rows
            for fact, one in zip(row.checks, results[row.name], strict=True)
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


def _facts(name: str, found: "list[Outcome]") -> CheckedPreset:
    checks = [
        CheckFacts(
            check=each.check.name,
            about=each.check.about,
            result="fail" if each.problem else "odd" if each.doubt else "ok",
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
        "?" if gib is None else f"{gib:.1f} GiB" if gib else "none"
        for gib in (entry.download_gib, entry.memory_at_16k_gib)
    ]
    facts = entry.target, entry.draft_kind, entry.license or "?", "yes" if entry.gated else "no"
    return entry.name, *facts, *sizes, entry.origin


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one command found before the download, and whether it was only asked to look."""

    preset: str
    plans: "list[tuple[Literal['target', 'draft'], DownloadPlan]]"
    free_bytes: int | None  # None: the Hub has no part in it
    is_dry: bool

    @property
    def total_bytes(self) -> int:
        return sum(plan.total_bytes for _, plan in self.plans)

    @property
    def missing_bytes(self) -> int:
        return sum(plan.missing_bytes for _, plan in self.plans)


def pull(
    name: Annotated[str, Argument(metavar="NAME", help="Preset name or YAML file.")],
    dry_run: Annotated[
        bool, Option("--dry-run", help="Say what would be downloaded; no weights.")
    ] = False,
    set_: Assignments = [],  # noqa: B006 (Typer wants a list)
    offline: Offline = False,
    output: Format = "text",
    quiet: Annotated[int, counter("-q", "--quiet", help="No progress; -qq: errors only.")] = 0,
    color: ColorChoice = "auto",
) -> int:
    """Download a preset's models, after checking that the pair fits together."""
    screen = Screen(color=color, quiet=quiet)
    with Interrupts():
        found = _pull(load_preset(name, parse_assignments(set_)), offline, dry_run, screen)
    if output == "json":
        Sink().write(dumps(_object(found), output))
    else:
        _print(found, color)
        screen.note(_closing(found))
    return 0


def _pull(preset: Preset, offline: bool, is_dry: bool, screen: Screen) -> Pulled:
    progress = screen.progress("", shows_text=False)
    with closing(progress), downloads_shown(screen, progress):
        progress.busy(f"checking {preset.name}")
        from specx.checkpoints import load as hub
        from specx.checkpoints.download import Notice, file_notes, free_bytes, plan, tell

        files, sources = hub.located(preset, offline=offline)
        plans = [plan(source) for source in sources]
        for note in (note for source in sources for note in file_notes(source)):
            tell(Notice(note))
        room = next((free_bytes(each.source.folder) for each in plans if each.files), None)
        if not is_dry:
            hub.fetch_weights(files, sources)
    return Pulled(preset.name, list(zip(("target", "draft"), plans, strict=False)), room, is_dry)


def _print(found: Pulled, color: str) -> None:
    if found.is_dry:
        files = [row for role, plan in found.plans for row in _file_cells(role, plan)]
        print_table(("model", "repository", "file", "size", "here"), files, color)
        return
    rows = []
    for role, plan in found.plans:
        shown = size(plan.total_bytes) if plan.files else _HERE.get(plan.source.origin, "")
        rows.append((role, plan.source.repo, shown, str(plan.source.directory)))
    print_table(("model", "repository", "size", "directory"), rows, color)


def _file_cells(role: str, plan: "DownloadPlan") -> Iterator[tuple[str, ...]]:
    if not plan.files:
        yield role, plan.source.repo, "", "", _HERE.get(plan.source.origin, "no files")
    for file in plan.files:
        here = size(file.kept_bytes) if file.kept_bytes else "no"
        here = "yes" if file.kept_bytes == file.size_bytes else here
        yield role, plan.source.repo, file.name, size(file.size_bytes), here


def _closing(found: Pulled) -> str:
    total, missing = size(found.total_bytes), size(found.missing_bytes)
    if found.free_bytes is None:
        return f"{found.preset}: nothing to download"
    if found.is_dry:
        return f"{found.preset}: {total}, to download {missing} · {size(found.free_bytes)} free"
    return f"{found.preset}: {missing} downloaded, {total} here"


def _object(found: Pulled) -> dict[str, Any]:
    models = [
        {
            "role": role,
            "repo": plan.source.repo,
            "commit": plan.source.commit or None,
            "origin": plan.source.origin,
            "directory": str(plan.source.directory),
            "files": [
                {"name": file.name, "bytes": file.size_bytes, "cached_bytes": file.kept_bytes}
                for file in plan.files
            ],
        }
        for role, plan in found.plans
    ]
    return {
        "schema": "specx.pull/1",
        "preset": found.preset,
        "dry_run": found.is_dry,
        "total_bytes": found.total_bytes,
        "cached_bytes": found.total_bytes - found.missing_bytes,
        "downloaded_bytes": 0 if found.is_dry else found.missing_bytes,
        "free_bytes": found.free_bytes,
        "models": models,
    }
