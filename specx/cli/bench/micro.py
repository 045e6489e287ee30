"""``specx bench --micro``: the pieces of a step, each alone against its floor.

Goes in: the options of ``specx bench``. Comes out: two tables on stdout, exports, an exit code. It
does not know how a piece is timed.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Context

from specx.cli.bench.exports import Exports, write_whole
from specx.cli.bench.view import fitting, print_lines
from specx.cli.console import Screen, out_console
from specx.cli.errors import SOME_FAILED
from specx.cli.fetching import downloads_shown
from specx.cli.options import sources_of
from specx.cli.output_file import Sink
from specx.cli.result_json import dumps
from specx.cli.settings import chosen_presets, parse_assignments
from specx.errors import UsageError

if TYPE_CHECKING:
    from specx.cli.bench.command import BenchRequest

_KINDS = ("json", "md")
#: Fields of the request that mean something here; every other option that is given is a mistake.
_TAKEN = frozenset(
    (
        *(
            "micro",
            "lengths",
            "preset",
            "target",
            "draft",
            "stand_in",
            "export",
            "force",
            "set_",
            "device",
            "dtype",
        ),
        *("offline", "output", "quiet", "verbose", "color"),
    )
)
_OPTIONS = {"saved": "--from"}  # where an option is not named as its field


def run_micro(context: Context, request: "BenchRequest", screen: Screen) -> int:
    """Measure and show the pieces. Raises ``SpecxError``."""
    _check(context, request)
    Exports(request.export, force=request.force, inputs=[])  # refuses places before the long run
    found = _measure(request, screen)
    for path in map(Path, request.export):
        write_whole(path, _as_text(found, path.suffix[1:].lower()).encode())
        screen.note(f"wrote {path}")
    if request.output == "auto" and sys.stdout.isatty():
        _render(found, request.color)
    else:
        Sink().write(_as_text(found, "md" if request.output == "auto" else request.output))
    return SOME_FAILED if any(each["what"] == "all pieces" for each in found["skipped"]) else 0


def _check(context: Context, request: "BenchRequest") -> None:
    """Refuse what ``--micro`` has no use for, rather than leave it unsaid."""
    for name, given in sources_of(context).items():
        if name not in _TAKEN and given.startswith("--"):
            raise UsageError(
                f"{_OPTIONS.get(name, given)} does not go with --micro",
                reason="it times pieces of a step on random tokens: no documents, modes or journal",
                hints=["--lengths, -m, --stand-in, --set, --export FILE.json or .md"],
            )
    if len(request.preset) > 1:
        raise UsageError("--micro measures one preset at a time")
    if request.output not in ("auto", *_KINDS):
        raise UsageError(f"--micro has no {request.output}", hints=["-o md or -o json"])
    for name in request.export:
        if Path(name).suffix[1:].lower() not in _KINDS:
            raise UsageError(f"--micro cannot export to {name}", hints=[".json and .md"])


def _measure(request: "BenchRequest", screen: Screen) -> dict[str, Any]:
    from specx.bench.lengths import parse_lengths

    lengths = parse_lengths(request.lengths)
    overrides = parse_assignments(request.set_)
    chosen = chosen_presets(request.preset, request.target, request.draft, offline=request.offline)
    began = time.perf_counter()
    progress = screen.progress("bench", shows_text=False)
    progress.busy("loading")
    try:
        from specx.bench import micro

        (name, *_), stand_in = chosen, request.stand_in
        preset = micro.prepare(name, overrides, lengths, stand_in=stand_in)
        with downloads_shown(screen, progress):
            engine = micro.load_engine(
                preset,
                device=request.device,
                dtype=request.dtype,
                offline=request.offline,
                stand_in=stand_in,
            )
        measured = micro.measure(engine, lengths, tell=progress.busy)
    finally:
        progress.close()
    if engine.kernels_note:
        screen.warn(engine.kernels_note)
    elapsed_s = time.perf_counter() - began
    return micro.micro_object(engine, measured, elapsed_s=elapsed_s, stand_in=stand_in)


def _as_text(found: dict[str, Any], kind: str) -> str:
    from specx.bench.render.micro import to_markdown

    return dumps(found, "json") if kind == "json" else to_markdown(found)


def _render(found: dict[str, Any], color: str) -> None:
    from specx.bench.render.micro import floor_lines, memory_table, notes, pieces_table, settings
    from specx.bench.render.numbers import stand_in_lines

    console = out_console(color)
    print_lines(console, [f"{line}." for line in stand_in_lines(found)], "bold")
    print_lines(console, floor_lines(found))
    for model in (pieces_table(found), memory_table(found)):
        fitting(console, [model])
    console.print()
    print_lines(console, notes(found), "dim")
    console.print()
    print_lines(console, settings(found))
