"""``specx pull``: bring a preset's files to this disk before they are needed."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from specx.cli.console import Screen, print_table
from specx.cli.fetching import downloads_shown
from specx.cli.options import Assignments, ColorChoice, Offline, counter
from specx.cli.output_file import Sink
from specx.cli.presets import Format
from specx.cli.result_json import dumps
from specx.cli.settings import parse_assignments
from specx.cli.signals import Interrupts
from specx.errors import size
from specx.preset.preset import Preset, load_preset

if TYPE_CHECKING:
    from specx.checkpoints.download import DownloadPlan

_HERE = {"bundled": "comes with specx", "directory": "a directory", "cache": "in the cache"}


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one command found before the download, and whether it was only asked to look."""

    preset: Preset
    plans: "dict[Literal['target', 'draft'], DownloadPlan]"
    free_bytes: int | None  # None: the Hub has no part in it
    is_dry: bool

    @property
    def total_bytes(self) -> int:
        return sum(plan.total_bytes for plan in self.plans.values())

    @property
    def missing_bytes(self) -> int:
        return sum(plan.missing_bytes for plan in self.plans.values())


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
    return Pulled(preset, dict(zip(("target", "draft"), plans, strict=False)), room, is_dry)


def _print(found: Pulled, color: str) -> None:
    if found.is_dry:
        rows = [row for role, plan in found.plans.items() for row in _file_cells(role, plan)]
        print_table(("model", "repository", "file", "size", "here"), rows, color)
        return
    models = [
        (role, plan.source.repo, _size(plan), str(plan.source.directory))
        for role, plan in found.plans.items()
    ]
    print_table(("model", "repository", "size", "directory"), models, color)


def _file_cells(role: str, plan: "DownloadPlan") -> Iterator[tuple[str, ...]]:
    if not plan.files:
        yield role, plan.source.repo, "", "", _HERE.get(plan.source.origin, "no files")
    for file in plan.files:
        here = size(file.kept_bytes) if file.kept_bytes else "no"
        if file.kept_bytes == file.size_bytes:
            here = "yes"
        yield role, plan.source.repo, file.name, size(file.size_bytes), here


def _size(plan: "DownloadPlan") -> str:
    return size(plan.total_bytes) if plan.files else _HERE.get(plan.source.origin, "")


def _closing(found: Pulled) -> str:
    name, total, missing = found.preset.name, size(found.total_bytes), size(found.missing_bytes)
    if found.free_bytes is None:
        return f"{name}: nothing to download"
    if found.is_dry:
        return f"{name}: {total}, to download {missing} · {size(found.free_bytes)} free"
    return f"{name}: {missing} downloaded, {total} here"


def _object(found: Pulled) -> dict[str, Any]:
    """``specx.pull/1``."""
    return {
        "schema": "specx.pull/1",
        "preset": found.preset.name,
        "dry_run": found.is_dry,
        "total_bytes": found.total_bytes,
        "cached_bytes": found.total_bytes - found.missing_bytes,
        "downloaded_bytes": 0 if found.is_dry else found.missing_bytes,
        "free_bytes": found.free_bytes,
        "models": [_model(role, plan) for role, plan in found.plans.items()],
    }


def _model(role: str, plan: "DownloadPlan") -> dict[str, Any]:
    source = plan.source
    return {
        "role": role,
        "repo": source.repo,
        "commit": source.commit or None,
        "origin": source.origin,
        "directory": str(source.directory),
        "files": [
            {"name": file.name, "bytes": file.size_bytes, "cached_bytes": file.kept_bytes}
            for file in plan.files
        ],
    }
