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
        from specx.checkpoints.download import Notice, free_bytes, pickle_notice, plan, tell

        files, sources = hub.located(preset, offline=offline)
        plans = [plan(source) for source in sources]
        for note in filter(None, map(pickle_notice, sources)):
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
    """``specx.pull/1``."""
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
