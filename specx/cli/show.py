"""``--show``: what a terminal shows while an answer is made: plain text, two looks, or the map.

A run or a recording feeds a ``Scene``. Model text is never read as markup.
"""

import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specx.cli.console import Screen, plain_console, wants_color
from specx.cli.format import prefill_line, status_line
from specx.cli.options import RunRequest, Show
from specx.cli.output_file import Sink, split_space
from specx.cli.progress import Progress
from specx.errors import one_line, printable
from specx.trace.map import DocumentMap, Retrievals

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

    from specx.core.stats import GenerationStats, Prefill
    from specx.stream import TextChunk

_CODES = {  # of accepted text, and of the target's own, by the terminal's colours
    "truecolor": ("\x1b[38;2;86;180;233m", "\x1b[4;38;2;230;159;0m"),
    "256": ("\x1b[38;5;74m", "\x1b[4;38;5;214m"),
    "standard": ("\x1b[36m", "\x1b[4;33m"),
    "": ("", "\x1b[4m"),
}
# Okabe and Ito's sky blue, orange and bluish green: colour-blind eyes see them apart too.
ACCEPTED, OWN, STRIP = "#56b4e9", "underline #e69f00", "#009e73"
SHADES = "·░▒▓█"
SHADE_STYLES = ("dim", "#00785a", "#009e73", "#2cc89c", "#7de8c8")
HELD = "▀"
_DIM, _THOUGHT = "\x1b[2m", "thought:\n"
_TEXT_COLUMNS = 100
_TEXT_PIECES = 5_000  # of the end of the text, all that is laid out
_QUOTE_ROWS = 4
_LEAST_LABEL = 10

Piece = tuple[str, bool]  # text, and whether the draft guessed it


@dataclass(frozen=True, slots=True)
class TextLook:
    """What ``--show`` can do on this terminal: the choice, and the codes of both looks of text."""

    show: Show = "none"
    accepted: str = ""
    own: str = ""
    color: str = "auto"


@dataclass(slots=True)
class Scene:
    """What is on display; its owner changes it while it is drawn."""

    title: str
    document_map: DocumentMap
    mode: str = ""
    note: str = ""  # why nothing is retrieved
    status: str = ""
    read: float = 0.0  # share of the prompt that has been read
    pieces: list[Piece] = field(default_factory=list)
    retrievals: Retrievals = field(init=False)

    def __post_init__(self) -> None:
        self.retrievals = Retrievals(self.document_map)

    def show_prefill(self, event: "Prefill") -> None:
        self.read = event.done_tokens / max(event.total_tokens, 1)
        self.status = prefill_line(event)

    def show_step(
        self, pieces: list[Piece], retrieved: Sequence[int] | None, stats: "GenerationStats"
    ) -> None:
        self.read = 1.0
        self.retrievals.add(retrieved)
        self.pieces += pieces
        self.status = status_line(stats, self.mode)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["Text"]:
        rows = options.height or console.height
        margin = 1 if options.max_width > 2 else 0
        width = options.max_width - 2 * margin
        upper = head_rows(self, width, is_low=rows < 16)
        if rows >= 12:
            upper += quote_rows(console, self, width, min(_QUOTE_ROWS, rows // 6))
        room = max(rows - len(upper) - 2, 1)
        lower = text_rows(console, self, min(width, _TEXT_COLUMNS), room)
        has_legend = len(lower) < room - 1
        lower += [_text() for _ in range(room - len(lower))]
        if has_legend:
            lower[-1] = legend(is_coloured=not console.no_color)
        status = _text(one_line(self.status), "cyan")
        shown = [*upper[: rows - 3], _text(), *lower, status][:rows]
        for number, row in enumerate(shown):
            row.truncate(width, overflow="ellipsis")
            row.pad_left(margin)
            row.end = "" if number == len(shown) - 1 else "\n"
            yield row


def choose_look(request: RunRequest, sink: Sink, screen: Screen) -> TextLook:
    """The look of a request; a warning and plain text where it is not possible."""
    if request.show == "none":
        return TextLook()
    problem = _why_not(request, sink, screen)
    if problem:
        advice = "" if request.trace else "; --trace run.jsonl records the run for specx trace"
        screen.warn(f"--show {request.show}: {problem}{advice}")
        return TextLook()
    return look_of(request.show, request.color)


def _why_not(request: RunRequest, sink: Sink, screen: Screen) -> str:
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


def look_of(show: Show, color: str) -> TextLook:
    """With the codes that the terminal knows; without colours, an underline remains."""
    from rich.console import Console

    system = Console(force_terminal=True).color_system or "standard"
    codes = _CODES.get(system, _CODES["standard"]) if wants_color(color) else _CODES[""]
    return TextLook(show, *codes, color)


def show_legend(look: TextLook, screen: Screen) -> None:
    """One line about the two looks; the map brings its own."""
    if look.show != "accept" or screen.quiet:
        return
    if screen.is_terminal:
        _view_console(look).print(legend(is_coloured=wants_color(look.color)))
    else:
        screen.note("accepted draft tokens, and underlined the target's own")


class AnswerDisplay:
    """Text in the sink as it comes, in the looks of ``look``; progress makes room for it.

    ``look`` None: the text is not shown. ``thoughts`` is where the model's thoughts go, if
    anywhere.
    """

    def __init__(
        self,
        progress: Progress,
        sink: Sink,
        look: TextLook | None,
        heading: str,
        thoughts: "ThoughtSink | None" = None,
    ) -> None:
        self._progress, self._sink, self._look = progress, sink, look
        self._thoughts = thoughts
        self.prefill = progress.prefill
        if look is not None:
            sink.write(heading)

    def step(self, chunk: "TextChunk") -> None:
        if self._thoughts is not None and chunk.thought:
            self._progress.before_text(self._thoughts.shown(chunk.thought))
            self._thoughts.write(chunk.thought)
        if chunk.text:
            self._end_thought()
        if chunk.text and self._look is not None:
            self._progress.before_text(chunk.text)
            _write_pieces(self._sink, _pieces_of(chunk), self._look)
        self._progress.step(chunk.stats)

    def close(self) -> None:
        self._progress.close()  # what stderr says next must not be in a line of text
        self._end_thought()
        if self._look is not None:
            self._sink.end_line()

    def _end_thought(self) -> None:
        if self._thoughts is not None and self._thoughts.is_begun:
            self._progress.before_text("\n")
            self._thoughts.end()


class ThoughtSink:
    """A terminal's stderr, for thoughts: dim, under a heading, a blank line after them."""

    def __init__(self, color: str) -> None:
        self._sink = Sink(sys.stderr, "standard error")
        self._code = _DIM if wants_color(color) else ""
        self.is_begun = False

    def shown(self, text: str) -> str:
        """What ``write`` will show of ``text``."""
        return text if self.is_begun else f"{_THOUGHT}{text}"

    def write(self, text: str) -> None:
        shown, self.is_begun = self.shown(text), True
        self._sink.write(shown, self._code)

    def end(self) -> None:
        """The thought is over."""
        self._sink.end_line()
        self._sink.write("\n")
        self.is_begun = False


class MapDisplay:
    """The map with the growing text on a screen of its own (``is_live``), which a change of size
    does not garble; then map and text in ordinary rows, to stay."""

    def __init__(
        self, scene: Scene, sink: Sink, look: TextLook, heading: str = "", *, is_live: bool = True
    ) -> None:
        from rich.live import Live

        self._scene, self._sink, self._look, self._heading = scene, sink, look, heading
        self.prefill = scene.show_prefill
        self._console = _view_console(look)
        self._live = Live(
            scene,
            console=self._console,
            screen=True,
            refresh_per_second=10,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        if is_live:
            self._live.start(refresh=True)

    def step(self, chunk: "TextChunk") -> None:
        self._scene.show_step(_pieces_of(chunk), chunk.retrieved_chunks, chunk.stats)

    def close(self) -> None:
        self._live.stop()
        scene, console = self._scene, self._console
        width = max(console.width - 1, 1)
        for row in [*head_rows(scene, width), *quote_rows(console, scene, width, rows=6)]:
            row.truncate(width, overflow="ellipsis")
            console.print(row, soft_wrap=True)
        console.print()
        self._sink.write(self._heading)
        _write_pieces(self._sink, scene.pieces, self._look)
        self._sink.end_line()


def _view_console(look: TextLook) -> "Console":
    """stderr for views: without colours, underlines and shades remain."""
    return plain_console(stderr=True, force_terminal=True, no_color=not wants_color(look.color))


def _pieces_of(chunk: "TextChunk") -> list[Piece]:
    return [(chunk.accepted_text, True), (chunk.text[len(chunk.accepted_text) :], False)]


def _write_pieces(sink: Sink, pieces: Iterable[Piece], look: TextLook) -> None:
    for text, is_accepted in pieces:
        sink.write(text, look.accepted if is_accepted else look.own)


def head_rows(scene: Scene, width: int, *, is_low: bool = False) -> list["Text"]:
    """Title, ticks, strip and key; fewer rows where the screen is low."""
    cells = scene.retrievals.cells(width)
    strip = _text()
    for share, _ in cells:
        shade = math.ceil(share * (len(SHADES) - 1))  # 0: never
        strip.append(SHADES[shade], SHADE_STYLES[shade])
    if scene.read < 1.0:
        done = round(scene.read * len(cells))
        strip = _text("━" * done, STRIP).append("─" * (len(cells) - done), "dim")
    held = _text("".join(HELD if is_held else " " for _, is_held in cells))
    key = _text(one_line(scene.note), "yellow") if scene.note else _key(scene, width)
    ticks = _text(_tick_row(scene.document_map, width), "dim")
    rows = [_text(one_line(scene.title), "bold"), _text(), ticks, strip]
    return [*rows, held] if is_low else [*rows, strip.copy(), held, key]


def quote_rows(console: "Console", scene: Scene, width: int, rows: int) -> list["Text"]:
    """The passage that was retrieved most often, and the place it has in the document."""
    texts, retrievals = scene.document_map.chunks, scene.retrievals
    if (most := retrievals.most) is None:
        return []
    place = one_line(scene.document_map.place_of(most))
    found = f"most retrieved: chunk {most + 1:,} of {len(texts):,}"
    times = f"{retrievals.counts[most]:,} of {retrievals.refreshes:,} times"
    title = _text(" · ".join(filter(None, (found, times, place))), STRIP)
    passage = " ".join(one_line(texts[most]).replace("␊", " ").split())
    lines = list(_text(f"“…{passage}…”", "italic").wrap(console, max(width - 2, 1)))
    if len(lines) > rows:
        lines = lines[:rows]
        lines[-1] = _text(lines[-1].plain.rstrip()[: max(width - 4, 1)] + " …", "italic")
    return [_text(), title, *(_text().append("│ ", STRIP).append_text(line) for line in lines)]


def text_rows(console: "Console", scene: Scene, width: int, rows: int) -> list["Text"]:
    """The end of the text so far, in both looks."""
    whole = _text()
    for text, is_accepted in scene.pieces[-_TEXT_PIECES:]:
        start, rest = split_space(printable(text))
        whole.append(start).append(rest, ACCEPTED if is_accepted else OWN)
    return list(whole.wrap(console, width))[-rows:]


def legend(*, is_coloured: bool) -> "Text":
    """What the two looks of text mean, in these looks."""
    row = _text("accepted draft tokens", ACCEPTED).append(" and ", "dim")
    row.append("the target's own tokens", OWN)
    return row if is_coloured else row.append(" (underlined)", "dim")


def _key(scene: Scene, width: int) -> "Text":
    """What the shades and marks mean, shorter where it does not fit."""
    held, count = len(scene.retrievals.held), len(scene.document_map.chunks)
    words = "retrieved more often   ", f"in the draft's cache now: {held:,} of {count:,} chunks"
    if len("".join(words)) + 7 > width:
        words = "retrieved  ", f"held {held:,}/{count:,}"
    return _text("░▒▓█ ", STRIP).append(words[0], "dim").append(f"{HELD} ").append(words[1], "dim")


def _tick_row(document_map: DocumentMap, width: int) -> str:
    """Labels that begin in the column of their chunk, as far as they fit beside each other.

    A document without headings and pages gets a scale of tokens.
    """
    from rich.cells import cell_len, set_cell_size

    chunks = max(len(document_map.chunks), 1)
    ticks = [(tick.chunk * width // chunks, one_line(tick.label)) for tick in document_map.ticks]
    if not ticks:
        tokens, most = chunks * document_map.retrieval.chunk_tokens, max(width // 18, 1)
        steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
        step = next(step for step in steps if step * most >= tokens)
        scale = [(at * width // tokens, f"{at:,}") for at in range(0, tokens, step)]
        ticks = [(column, label) for column, label in scale if column + len(label) < width]
    row = ""
    for number, (column, label) in enumerate(ticks):
        later = (other for other, _ in ticks[number + 1 :] if other > column)
        room = max(next(later, width) - column - 2, _LEAST_LABEL)  # a long one may hide the next
        room = min(room, width - column - 1)
        if column >= cell_len(row) and room >= min(_LEAST_LABEL, len(label)):
            shown = set_cell_size(label, room).rstrip() if cell_len(label) > room else label
            row += " " * (column - cell_len(row)) + "╷" + shown + " "
    return row


def _text(text: str = "", style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style=style, end="")
