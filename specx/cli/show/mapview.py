"""The document's map as rows of text: strip, ticks, the passage retrieved most, the growing text.

Goes in: a ``Scene``. Comes out: Rich text that fits the console, whatever its size. It does not
know engines or files, nor whether a run or a recording feeds the scene.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specx.cli.terminal import one_line, printable, split_space
from specx.trace.map import DocumentMap, Retrievals

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

# Okabe and Ito's sky blue, orange and bluish green: told apart by colour-blind eyes too.
ACCEPTED = "#56b4e9"
OWN = "underline #e69f00"
STRIP = "#009e73"
SHADES = "·░▒▓█"
SHADE_STYLES = ("dim", "#00785a", "#009e73", "#2cc89c", "#7de8c8")
HELD = "▀"

_TEXT_COLUMNS = 100
_TEXT_CHARACTERS = 20_000  # of the end of the text, all that is laid out
_QUOTE_ROWS = 4
_MARGIN = 1
_LEAST_LABEL = 10


@dataclass(slots=True)
class Scene:
    """What is on display; whoever owns it changes it while it is drawn."""

    title: str
    document_map: DocumentMap
    note: str = ""  # why nothing is retrieved
    status: str = ""
    read: float = 0.0  # share of the prompt that has been read
    pieces: list[tuple[str, bool]] = field(default_factory=list)  # text, accepted
    retrievals: Retrievals = field(init=False)

    def __post_init__(self) -> None:
        self.retrievals = Retrievals(self.document_map)


class MapView:
    """The whole scene on as many rows as the console has."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["Text"]:
        scene, rows = self._scene, options.height or console.height
        margin = _MARGIN if options.max_width > 2 * _MARGIN else 0
        width = options.max_width - 2 * margin
        upper = head_rows(scene, width, is_low=rows < 16)
        if rows >= 12:
            upper += quote_rows(console, scene, width, min(_QUOTE_ROWS, rows // 6))
        room = max(rows - len(upper) - 2, 1)
        lower = text_rows(console, scene, min(width, _TEXT_COLUMNS), room)
        has_legend = len(lower) < room - 1
        lower += [_text() for _ in range(room - len(lower))]
        if has_legend:
            lower[-1] = legend(is_coloured=not console.no_color)
        status = _text(one_line(scene.status), "cyan")
        shown = [*upper[: rows - 3], _text(), *lower, status][:rows]
        for number, row in enumerate(shown):
            row.truncate(width, overflow="ellipsis")
            row.pad_left(margin)
            row.end = "" if number == len(shown) - 1 else "\n"
            yield row


def head_rows(scene: Scene, width: int, *, is_low: bool = False) -> list["Text"]:
    """Title, ticks, strip and key; fewer rows where the screen is low."""
    cells = scene.retrievals.cells(width)
    shades = [_shade(cell.share) for cell in cells]
    reads_all = bool(scene.note)
    strip = _text()
    for shade in shades:
        strip.append(SHADES[shade], SHADE_STYLES[shade])
    if scene.read < 1.0:
        done = round(scene.read * len(cells))
        strip = _text("━" * done, STRIP).append("─" * (len(cells) - done), "dim")
    held = "".join(HELD if cell.is_held else " " for cell in cells)
    rows = [_text(one_line(scene.title), "bold"), _text()]
    rows.append(_text(_tick_row(scene.document_map, width), "dim"))
    rows.append(strip)
    if not is_low:
        rows.append(strip.copy())
    rows.append(_text(held))
    if not is_low:
        rows.append(_text(one_line(scene.note), "yellow") if reads_all else _key(scene, width))
    return rows


def quote_rows(console: "Console", scene: Scene, width: int, rows: int) -> list["Text"]:
    """The passage that was retrieved most often, with where it stands."""
    most = scene.retrievals.most
    if most is None:
        return []
    texts, retrievals = scene.document_map.chunks, scene.retrievals
    place = one_line(scene.document_map.heading_of(most))
    found = f"most retrieved: chunk {most + 1:,} of {len(texts):,}"
    times = f"{retrievals.counts[most]:,} of {retrievals.refreshes:,} times"
    parts = [found, times, *([place] if place else [])]
    title = _text(" · ".join(parts), STRIP)
    quote = _text("“…" + " ".join(one_line(texts[most]).replace("␊", " ").split()) + "…”")
    lines = list(quote.wrap(console, max(width - 2, 1)))
    if len(lines) > rows:
        lines = lines[:rows]
        lines[-1] = _text(lines[-1].plain.rstrip()[: max(width - 4, 1)] + " …")
    for line in lines:
        line.stylize("italic")
    bar = [_text().append("│ ", STRIP).append_text(line) for line in lines]
    return [_text(), title, *bar]


def text_rows(console: "Console", scene: Scene, width: int, rows: int) -> list["Text"]:
    """The end of the text so far, accepted and own tokens told apart."""
    whole = _text()
    for text, is_accepted in _tail(scene.pieces, _TEXT_CHARACTERS):
        start, rest = split_space(printable(text))
        whole.append(start).append(rest, ACCEPTED if is_accepted else OWN)
    return list(whole.wrap(console, width))[-rows:]


def legend(*, is_coloured: bool = True) -> "Text":
    """What the two looks of text mean, in these looks."""
    row = _text()
    row.append("accepted draft tokens", ACCEPTED)
    row.append(" and ", "dim")
    row.append("the target's own tokens", OWN)
    if not is_coloured:
        row.append(" (underlined)", "dim")
    return row


def _key(scene: Scene, width: int) -> "Text":
    retrievals, count = scene.retrievals, len(scene.document_map.chunks)
    held = len(retrievals.held)
    row = _text().append("░▒▓█ ", STRIP)
    row.append("retrieved more often   ", "dim")
    row.append(f"{HELD} ")
    row.append(f"in the draft's cache now: {held:,} of {count:,} chunks", "dim")
    if row.cell_len > width:
        row = _text().append("░▒▓█ ", STRIP)
        row.append("retrieved  ", "dim").append(f"{HELD} ").append(
            f"held {held:,}/{count:,}", "dim"
        )
    return row


def _shade(share: float) -> int:
    """0 for never, then by quarters of the most."""
    return math.ceil(share * (len(SHADES) - 1))


def _tick_row(document_map: DocumentMap, width: int) -> str:
    """Labels that begin in the column of their chunk, as far as they fit beside each other.

    A document without headings and pages gets a scale of tokens.
    """
    from rich.cells import cell_len, set_cell_size

    chunks = max(len(document_map.chunks), 1)
    ticks = [(tick.chunk * width // chunks, one_line(tick.label)) for tick in document_map.ticks]
    if not ticks:
        tokens = chunks * document_map.retrieval.chunk_tokens
        step = _round_step(tokens, max(width // 18, 1))
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


def _round_step(tokens: int, parts: int) -> int:
    """1, 2 or 5 times a power of ten, so that ``tokens`` has at most ``parts`` such parts."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if tokens <= factor * power * parts:
                return factor * power
        power *= 10


def _tail(pieces: Sequence[tuple[str, bool]], characters: int) -> list[tuple[str, bool]]:
    taken: list[tuple[str, bool]] = []
    for piece in reversed(pieces):
        if characters <= 0:
            break
        characters -= len(piece[0])
        taken.append(piece)
    return taken[::-1]


def _text(text: str = "", style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style=style, end="")
