"""``--show``: what a terminal shows while an answer is made: plain text, two looks, or the map.

Goes in: a stream's events. Comes out: text in the sink, progress or a map on stderr. It does not
know how text is made; model text is never read as markup.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specx.cli.console import Screen
from specx.cli.format import prefill_line, status_line
from specx.cli.options import Request, Show
from specx.cli.output_file import Sink
from specx.cli.progress import Progress
from specx.cli.show.mapview import MapView, Scene, head_rows, legend, quote_rows
from specx.core.stats import Prefill

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from specx.stream import TextChunk

_FRAMES_PER_S = 10
_CODES = {  # what starts accepted text, and the target's own, by the terminal's colours
    "truecolor": ("\x1b[38;2;86;180;233m", "\x1b[4;38;2;230;159;0m"),
    "256": ("\x1b[38;5;74m", "\x1b[4;38;5;214m"),
    "standard": ("\x1b[36m", "\x1b[4;33m"),
    "": ("", "\x1b[4m"),
}


@dataclass(frozen=True, slots=True)
class Look:
    """A choice of ``--show`` that this terminal can follow, with the codes of both looks."""

    show: Show = "none"
    accepted: str = ""
    own: str = ""
    color: str = "auto"


def choose_look(request: Request, sink: Sink, screen: Screen) -> Look:
    """The look of a request; a warning and plain text where it is not possible."""
    if request.show == "none":
        return Look()
    problem = _why_not(request, sink, screen)
    if problem:
        advice = "" if request.trace else "; --trace run.jsonl records the run for specx trace"
        screen.warn(f"--show {request.show}: {problem}{advice}")
        return Look()
    accepted, own = codes_for(request.color)
    return Look(request.show, accepted, own, request.color)


def codes_for(color: str, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """What starts accepted text and the target's own on stdout; without colours a line remains."""
    from rich.console import Console

    if not _wants_color(color, environ):
        return _CODES[""]
    system = Console(force_terminal=True, _environ=environ).color_system
    return _CODES.get(system or "standard", _CODES["standard"])


def view_console(color: str, environ: Mapping[str, str] = os.environ) -> "Console":
    """stderr for views: without colours, underlines and shades remain."""
    from rich.console import Console

    return Console(
        stderr=True,
        force_terminal=True,
        no_color=not _wants_color(color, environ),
        highlight=False,
        markup=False,
        emoji=False,
    )


def show_legend(look: Look, screen: Screen) -> None:
    """One line about the two looks; the map brings its own."""
    if look.show != "accept" or screen.quiet:
        return
    if not screen.is_terminal:
        screen.note("accepted draft tokens, and underlined the target's own")
        return
    console = view_console(look.color)
    console.print(legend(is_coloured=not console.no_color))


class Display:
    """Text in the sink as it comes, and progress that makes room for it."""

    def __init__(self, progress: Progress, sink: Sink, *, shows_text: bool, heading: str) -> None:
        self._progress, self._sink, self._shows_text = progress, sink, shows_text
        if shows_text:
            sink.write(heading)

    def prefill(self, event: Prefill) -> None:
        """The prompt has been read this far."""
        self._progress.prefill(event)

    def chunk(self, chunk: "TextChunk") -> None:
        """A step has ended."""
        if chunk.text and self._shows_text:
            self._progress.before_text(chunk.text)
            self._write(chunk)
        self._progress.step(chunk.stats)

    def close(self) -> None:
        """Progress is wiped and the last line of text is whole; also when the run ended badly."""
        # What stderr says next must not stand in a line of text.
        self._progress.close()
        if self._shows_text:
            self._sink.end_line()

    def _write(self, chunk: "TextChunk") -> None:
        self._sink.write(chunk.text)


class AcceptDisplay(Display):
    """The same with accepted draft tokens and the target's own told apart."""

    def __init__(self, progress: Progress, sink: Sink, look: Look, *, heading: str) -> None:
        super().__init__(progress, sink, shows_text=True, heading=heading)
        self._look = look

    def _write(self, chunk: "TextChunk") -> None:
        own = chunk.text[len(chunk.accepted_text) :]
        self._sink.write(chunk.accepted_text, self._look.accepted)
        self._sink.write(own, self._look.own)


class MapDisplay(Display):
    """The map with the growing text on a screen of its own, then map and text in ordinary rows."""

    def __init__(self, scene: Scene, sink: Sink, look: Look, *, mode: str, heading: str) -> None:
        super().__init__(Progress(), sink, shows_text=False, heading="")
        self._scene, self._look, self._heading, self._mode = scene, look, heading, mode
        self._console = view_console(look.color)
        self._live: Live | None = open_live(self._console, scene)

    def prefill(self, event: Prefill) -> None:
        """The strip fills while the prompt is read."""
        self._scene.read = event.done_tokens / max(event.total_tokens, 1)
        self._scene.status = prefill_line(event)

    def chunk(self, chunk: "TextChunk") -> None:
        """A step's text, and what its refresh retrieved."""
        scene, own = self._scene, chunk.text[len(chunk.accepted_text) :]
        scene.read = 1.0
        scene.retrievals.add(chunk.retrieved_chunks)
        scene.pieces += [(chunk.accepted_text, True), (own, False)]
        scene.status = status_line(chunk.stats, self._mode)

    def close(self) -> None:
        """Leave the screen; the map as it was last stays above the text."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        print_map(self._console, self._scene)
        self._sink.write(self._heading)
        write_pieces(self._sink, self._scene.pieces, self._look)


def open_live(console: "Console", scene: Scene) -> "Live":
    """A started view on the terminal's second screen, which a change of size does not garble."""
    from rich.live import Live

    live = Live(
        MapView(scene),
        console=console,
        screen=True,
        refresh_per_second=_FRAMES_PER_S,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    live.start(refresh=True)
    return live


def print_map(console: "Console", scene: Scene) -> None:
    """The map in ordinary rows, to stay."""
    width = max(console.width - 1, 1)
    for row in [*head_rows(scene, width), *quote_rows(console, scene, width, rows=6)]:
        row.truncate(width, overflow="ellipsis")
        console.print(row, soft_wrap=True)
    console.print()


def write_pieces(sink: Sink, pieces: list[tuple[str, bool]], look: Look) -> None:
    """All the text at once, in its two looks."""
    for text, is_accepted in pieces:
        sink.write(text, look.accepted if is_accepted else look.own)
    sink.end_line()


def _why_not(request: Request, sink: Sink, screen: Screen) -> str:
    if request.output != "text":
        return f"-o {request.output} writes no text to look at"
    if os.environ.get("TERM") == "dumb":
        return "a dumb terminal cannot show it"
    if request.show == "map":
        both = sink.is_terminal and screen.is_terminal
        return "" if both else "standard output and error must both be terminals"
    if sink.is_terminal or (request.color == "always" and request.out is None):
        return ""
    return "standard output is not a terminal (--color always insists)"


def _wants_color(color: str, environ: Mapping[str, str]) -> bool:
    return color == "always" or (color == "auto" and not environ.get("NO_COLOR"))
