"""``specx pull``: bring a preset's files to this disk before they are needed.

Goes in: a preset's name and options. Comes out: a table or a JSON object on stdout, progress on
stderr, an exit code. It does not know how files travel or how a pair is checked.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from specx.cli.console import Screen, out_console
from specx.cli.fetching import downloads_shown
from specx.cli.format import tab_separated, table
from specx.cli.options import Assignments, ColorChoice, Offline, counter
from specx.cli.output_file import Sink
from specx.cli.presets import Format
from specx.cli.result_json import dumps
from specx.cli.settings import parse_assignments
from specx.cli.signals import Interrupts
from specx.wording import size

if TYPE_CHECKING:
    from specx.checkpoints.download import DownloadPlan
    from specx.preset.preset import Preset

_HERE = {"bundled": "comes with specx", "directory": "a directory", "cache": "in the cache"}


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one command found out, or did."""

    preset: "Preset"
    plans: "Sequence[DownloadPlan]"
    free_bytes: int | None
    is_dry: bool

    @property
    def roles(self) -> "list[tuple[Literal['target', 'draft'], DownloadPlan]]":
        """The plans, each with whose it is."""
        return list(zip(("target", "draft"), self.plans, strict=False))


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
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with Interrupts():
        found = _pull(name, parse_assignments(set_), offline, dry_run, screen)
    if output == "json":
        Sink().write(dumps(_object(found), output))
    else:
        _print(found, color)
        screen.note(_closing(found))
    return 0


def _pull(
    name: str, changes: dict[str, str], offline: bool, is_dry: bool, screen: Screen
) -> Pulled:
    from specx.preset.preset import load_preset

    preset = load_preset(name, changes)
    progress = screen.progress("", shows_text=False)
    progress.busy(f"checking {preset.name}")
    try:
        with downloads_shown(screen, progress):
            from specx.checkpoints import load as hub
            from specx.checkpoints.download import Notice, free_bytes, pickle_notice, plan, tell

            files, sources = hub.located(preset, offline=offline)
            plans = [plan(source) for source in sources]
            for note in filter(None, map(pickle_notice, sources)):
                tell(Notice(note))
            on_hub = [each for each in plans if each.files]
            room = free_bytes(on_hub[0].source.folder) if on_hub else None
            if not is_dry:
                hub.fetch_weights(files, sources)
    finally:
        progress.close()
    return Pulled(preset, plans, room, is_dry)


def _print(found: Pulled, color: str) -> None:
    if found.is_dry:
        header: tuple[str, ...] = ("model", "repository", "file", "size", "here")
        cells = [row for role, plan in found.roles for row in _file_cells(role, plan)]
    else:
        header = ("model", "repository", "size", "directory")
        cells = [
            (role, plan.source.repo, _size(plan), str(plan.source.directory))
            for role, plan in found.roles
        ]
    if sys.stdout.isatty():
        out_console(color).print(table(header, cells))
    else:
        Sink().write(tab_separated(header, cells))


def _file_cells(role: str, plan: "DownloadPlan") -> list[tuple[str, ...]]:
    source = plan.source
    if not plan.files:
        return [(role, source.repo, "", "", _HERE.get(source.origin, "no files"))]
    return [
        (role, source.repo, file.name, size(file.size_bytes), _share(file)) for file in plan.files
    ]


def _share(file: Any) -> str:
    """How much of a file is here, in words."""
    if file.kept_bytes == file.size_bytes:
        return "yes"
    return size(file.kept_bytes) if file.kept_bytes else "no"


def _size(plan: "DownloadPlan") -> str:
    return size(plan.total_bytes) if plan.files else _HERE.get(plan.source.origin, "")


def _closing(found: Pulled) -> str:
    """The one line below the table."""
    missing_bytes = sum(plan.missing_bytes for plan in found.plans)
    total_bytes = sum(plan.total_bytes for plan in found.plans)
    if found.free_bytes is None:
        return f"{found.preset.name}: nothing to download"
    if not found.is_dry:
        return f"{found.preset.name}: {size(missing_bytes)} downloaded, {size(total_bytes)} here"
    return (
        f"{found.preset.name}: {size(total_bytes)}, to download {size(missing_bytes)}"
        f" · {size(found.free_bytes)} free"
    )


def _object(found: Pulled) -> dict[str, Any]:
    """``specx.pull/1``: before the download with ``--dry-run``, after it without."""
    is_dry = found.is_dry
    return {
        "schema": "specx.pull/1",
        "preset": found.preset.name,
        "dry_run": is_dry,
        "total_bytes": sum(plan.total_bytes for plan in found.plans),
        "cached_bytes": sum(plan.kept_bytes for plan in found.plans),
        "downloaded_bytes": 0 if is_dry else sum(plan.missing_bytes for plan in found.plans),
        "free_bytes": found.free_bytes,
        "models": [
            {
                "role": role,
                "repo": plan.source.repo,
                "commit": plan.source.commit or None,
                "origin": plan.source.origin,
                "directory": str(plan.source.directory),
                "files": [
                    {
                        "name": file.name,
                        "bytes": file.size_bytes,
                        "cached_bytes": file.kept_bytes,
                    }
                    for file in plan.files
                ],
            }
            for role, plan in found.roles
        ],
    }
