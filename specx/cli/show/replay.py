"""``specx trace``: replay a recorded run in the terminal, or make a page of it.

Goes in: a trace file. Comes out: the run at its recorded speed, or its totals and text where
nobody watches, or an HTML page. It does not know engines.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from specx.cli.console import Screen
from specx.cli.format import (
    acceptance,
    closing_line,
    prefill_line,
    seconds,
    status_line,
    tab_separated,
)
from specx.cli.options import Color
from specx.cli.output_file import Sink, open_sink
from specx.cli.show.displays import (
    Look,
    codes_for,
    open_live,
    print_map,
    view_console,
    write_pieces,
)
from specx.cli.show.mapview import Scene
from specx.cli.signals import Interrupts
from specx.cli.terminal import one_line
from specx.core.stats import GenerationStats
from specx.core.stats import Prefill as Progress
from specx.errors import UsageError

if TYPE_CHECKING:
    from specx.trace.read import Trace
    from specx.trace.records import Step

_NAP_S = 0.03  # how long a signal may have to wait

_File = Annotated[str, Argument(metavar="FILE", help="What --trace has written.")]
_Speed = Annotated[
    float,
    Option(
        "--speed",
        metavar="FACTOR",
        help="4: four times as fast; 0: at once [1].",
        show_default=False,
    ),
]
_Export = Annotated[
    str | None,
    Option("--export", metavar="PATH", help="Write one HTML page instead, to be shared."),
]
_Force = Annotated[bool, Option("--force", help="Let --export replace an existing file.")]
_Color = Annotated[
    Color,
    Option("--color", metavar="WHEN", help="auto, always or never [auto].", show_default=False),
]


def trace(
    file: _File,
    speed: _Speed = 1.0,
    export: _Export = None,
    force: _Force = False,
    color: _Color = "auto",
) -> int:
    """Replay a run that --trace recorded, or make a page of it.

    A trace and its page contain the document's text. In a pipe: totals, then the text.
    """
    if not (math.isfinite(speed) and speed >= 0):
        raise UsageError(f"--speed must be ≥ 0, not {speed}")
    from specx.trace.read import read_trace

    screen = Screen(color=color)
    recorded = read_trace(file)
    for warning in recorded.warnings:
        screen.warn(warning)
    if export is not None:
        return _export(recorded, export, file, screen, force=force)
    sink = Sink()
    is_watched = sink.is_terminal and screen.is_terminal and os.environ.get("TERM") != "dumb"
    if not is_watched:
        sink.write(summary(recorded))
        sink.write("\n")
        sink.write(recorded.text)
        sink.end_line()
        return 0
    return _replay(recorded, sink, Look("map", *codes_for(color), color), screen, speed)


def summary(recorded: "Trace") -> str:
    """Totals as lines of name and value, tab between them."""
    header, stats = recorded.header, recorded.stats()
    ending = "cut short" if recorded.end is None else recorded.end.finish_reason
    rows = [
        ("document", header.title),
        ("recorded", f"{header.created}, specx {header.specx.version}"),
        ("preset", header.preset.name),
        ("mode", f"{header.mode}, {header.device} {header.dtype}"),
        ("prompt tokens", f"{stats.prompt_tokens}"),
        ("new tokens", f"{stats.new_tokens}"),
        ("steps", f"{len(stats.steps)}"),
        ("acceptance", acceptance(stats)),
        ("prefill", seconds(stats.prefill_s)),
        ("decode", f"{seconds(stats.decode_s)}, {stats.decode_tokens_per_s:.1f} tok/s"),
        ("ended by", ending),
    ]
    return tab_separated(("what", "value"), [(name, one_line(value)) for name, value in rows])


def _replay(recorded: "Trace", sink: Sink, look: Look, screen: Screen, speed: float) -> int:
    header = recorded.header
    title = f"{header.title} · {header.prompt_tokens:,} tokens · {header.created[:10]}"
    scene = Scene(title, header.document_map(), header.note)
    console = view_console(look.color)
    frames = _frames(recorded, scene)
    with Interrupts() as interrupts:
        if speed > 0:
            stops: list[bool] = []
            interrupts.on_first(lambda: stops.append(True))
            live = open_live(console, scene)
            try:
                _play(frames, speed, lambda: bool(stops))
            finally:
                interrupts.on_first(None)
                live.stop()
        if interrupts.exit_code is None:
            for _ in frames:
                pass
        print_map(console, scene)
        write_pieces(sink, scene.pieces, look)
    ending = "cut short" if recorded.end is None else ""
    screen.note(closing_line(recorded.stats(), "not checked", ending))
    return interrupts.exit_code or 0


def _play(frames: Iterator[float], speed: float, is_stopped: Callable[[], bool]) -> None:
    """Let each frame come when its time has, until the last or until told to stop."""
    began_s = time.monotonic()
    for at_s in frames:
        while not is_stopped() and (left_s := at_s / speed - (time.monotonic() - began_s)) > 0:
            time.sleep(min(left_s, _NAP_S))
        if is_stopped():
            return


def _frames(recorded: "Trace", scene: Scene) -> Iterator[float]:
    """Change the scene event by event. Each event's time is yielded before its change is made."""
    stats = GenerationStats(prompt_tokens=recorded.header.prompt_tokens)
    for event in recorded.prefill:
        yield event.elapsed_s
        scene.read = event.done_tokens / max(event.total_tokens, 1)
        scene.status = prefill_line(
            Progress(event.done_tokens, event.total_tokens, event.elapsed_s)
        )
    for step in recorded.steps:
        yield step.elapsed_s
        _apply(step, scene, stats)
        scene.status = status_line(stats, recorded.header.mode)
    if recorded.end is not None:
        yield recorded.end.elapsed_s


def _apply(step: "Step", scene: Scene, stats: GenerationStats) -> None:
    scene.read = 1.0
    scene.retrievals.add(step.retrieved)
    scene.pieces += [(piece.text, piece.accepted) for piece in step.pieces]
    stats.new_tokens += step.new_tokens
    record = step.stats()
    if record is not None:
        stats.steps.append(record)
        stats.decode_s += record.total_s


def _export(recorded: "Trace", export: str, file: str, screen: Screen, *, force: bool) -> int:
    from specx.trace.page import trace_page

    with open_sink(export, force=force, inputs=[file]) as sink:
        sink.write(trace_page(recorded))
    if sys.stderr.isatty():
        screen.note(f"{one_line(export)} has the whole run, and the document's text")
    return 0
