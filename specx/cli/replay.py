"""``specx trace``: replay a recorded run in the terminal, or make a page of it."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

from typer import Argument

from specx.cli.console import Screen
from specx.cli.format import acceptance, closing_line, drawn, seconds, tab_separated
from specx.cli.options import ColorChoice, option
from specx.cli.output_file import Sink, open_sink
from specx.cli.show import MapDisplay, Scene, look_of
from specx.cli.signals import Interrupts
from specx.core.stats import GenerationStats, Prefill
from specx.errors import UsageError, one_line
from specx.trace.page import trace_page
from specx.trace.records import Trace, add_step, read_trace

_NAP_S = 0.03  # how long a signal may have to wait


def trace(
    file: Annotated[str, Argument(metavar="FILE", help="What --trace has written.")],
    speed: Annotated[
        float, option("--speed FACTOR", help="4: four times as fast; 0: at once [1].")
    ] = 1.0,
    export: Annotated[
        str | None, option("--export PATH", help="Write one HTML page instead, to be shared.")
    ] = None,
    force: Annotated[
        bool, option("--force", help="Let --export replace an existing file.")
    ] = False,
    color: ColorChoice = "auto",
) -> int:
    """Replay a run that --trace recorded, or make a page of it.

    A trace and its page contain the document's text. In a pipe: totals, then the text.
    """
    if not (math.isfinite(speed) and speed >= 0):
        raise UsageError(f"--speed must be ≥ 0, not {speed}")
    screen = Screen(color=color)
    recorded = read_trace(file)
    for warning in recorded.warnings:
        screen.warn(warning)
    if export is not None:
        with open_sink(export, force=force, inputs=[file]) as sink:
            sink.write(trace_page(recorded))
        if sys.stderr.isatty():
            screen.note(f"{one_line(export)} has the whole run, and the document's text")
        return 0
    sink = Sink()
    if sink.is_terminal and screen.is_terminal and os.environ.get("TERM") != "dumb":
        return _replay(recorded, sink, screen, speed)
    sink.write(f"{summary(recorded)}\n{recorded.text}")
    sink.end_line()
    return 0


def summary(recorded: Trace) -> str:
    """Totals as lines of name and value, tab between them."""
    header, stats = recorded.header, recorded.stats()
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
        ("ended by", "cut short" if recorded.end is None else recorded.end.finish_reason),
    ]
    return tab_separated(("what", "value"), [(name, one_line(value)) for name, value in rows])


def _replay(recorded: Trace, sink: Sink, screen: Screen, speed: float) -> int:
    header = recorded.header
    title = f"{header.title} · {header.prompt_tokens:,} tokens · {header.created[:10]}"
    scene = Scene(title, header.document_map(), header.mode, header.note)
    look = look_of("map", screen.color)
    with Interrupts() as interrupts:
        interrupts.on_first(lambda: None)  # the loop looks itself
        with closing(MapDisplay(scene, sink, look, is_live=speed > 0)):
            began_s = time.monotonic()
            for at_s in _frames(recorded, scene):
                due_s = began_s + at_s / speed if speed > 0 else began_s
                while interrupts.exit_code is None and (left_s := due_s - time.monotonic()) > 0:
                    time.sleep(min(left_s, _NAP_S))
                if interrupts.exit_code is not None:
                    break
    ending = "cut short" if recorded.end is None else ""
    screen.note(closing_line(recorded.stats(), "not checked", drawn(header.sampling), ending))
    return interrupts.exit_code or 0


def _frames(recorded: Trace, scene: Scene) -> Iterator[float]:
    """Changes the scene event by event; yields each event's time before its change is made."""
    stats = GenerationStats(prompt_tokens=recorded.header.prompt_tokens)
    for event in recorded.prefill:
        yield event.elapsed_s
        scene.show_prefill(Prefill(event.done_tokens, event.total_tokens, event.elapsed_s))
    for step in recorded.steps:
        yield step.elapsed_s
        add_step(stats, step)
        pieces = [(piece.text, piece.accepted) for piece in step.pieces]
        scene.show_step(pieces, step.retrieved, stats)
    if recorded.end is not None:
        yield recorded.end.elapsed_s
