"""A bench as a plot of characters, with plotext.

plotext has one figure for the whole process: it is cleared before and after use.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from specx.bench.render.chart import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Chart,
    Look,
    Panel,
    chart_of,
    length_label,
    require_plotext,
)
from specx.bench.render.numbers import has_presets, plain_text
from specx.bench.schema import Bench

T = TypeVar("T")
_SIDE_BY_SIDE_FROM = 100
_GLYPHS = "ox+*#@%&=$~^"
# The nearest of a terminal's 256 colours that can be read on black and on white.
_INKS = {BLUE: 33, ORANGE: 172, GREEN: 36, RED: 166, PURPLE: 175, SKY: 74, GREY: 244}


def terminal_plot(bench: Bench, width: int, height: int, *, color: bool) -> str:
    """Speed-up and tokens a step over length, as lines of at most ``width`` cells.

    ``height``: rows of one panel. Panels are side by side from 100 columns on. Without
    ``color`` there is no escape sequence; every mode has a sign of its own in either case.
    """
    require_plotext()
    chart = chart_of(bench)
    is_wide = width >= _SIDE_BY_SIDE_FROM
    panel_width = (width - 2) // 2 if is_wide else width
    draw = _drawn if chart.has_lengths else _bars
    lines = []
    for preset, (speedup, _, tokens_per_step) in chart.rows:
        several = f"{plain_text(preset, 20)}: " if has_presets(bench) else ""
        left, right = (
            draw(
                chart, panel, f"{several}{panel.title}"[:panel_width], (panel_width, height), color
            )
            for panel in (speedup, tokens_per_step)
        )
        lines += (
            ["  ".join(both) for both in zip(left, right, strict=True)]
            if is_wide
            else [*left, *right]
        )
    lines += _legend(chart, width, color) if chart.has_lengths else []  # a bar says its mode
    return "\n".join(line.rstrip() for line in lines)


def _drawn(chart: Chart, panel: Panel, title: str, size: tuple[int, int], color: bool) -> list[str]:
    """Rows of a panel over prompt length; ``size`` is its width and height in cells."""
    import plotext

    def signal(lengths: Iterable[int], y: list[float], glyph: str, color: str) -> Any:
        ink = plotext.pixel(foreground=_INKS[color])
        x = [math.log2(length) for length in lengths]
        return plotext.figure.signal(x, y, marker=plotext.marker(glyph, ink))

    width, height = size
    lengths = panel.lengths
    plotext.terminal.limit(False, False)  # the caller's width counts, not what plotext finds
    try:
        figure = plotext.figure.clear().theme("colorless").plot_size(width, height).title(title)
        if lengths:
            places = [math.log2(length) for length in lengths]
            figure.ruler("x").ticks(places, [length_label(length) for length in lengths])
            marks, labels = _nice_ticks(panel.low, panel.high, max(2, height // 3))
            figure.ruler("y").lim(panel.low, panel.high).ticks(marks, labels)
            figure.draw(signal((lengths[0], lengths[-1]), [1.0, 1.0], "─", GREY).lines())
        # signs after all lines: a sign is what tells the mode
        for is_sign in (False, True):
            for one in panel.series:
                glyph = _glyph(one.look) if is_sign else "·"
                y = [mark.value for mark in one.marks.values()]
                figure.draw(signal(one.marks, y, glyph, one.look.color).lines(not is_sign))
        return str(figure.build().string(colorless=not color)).split("\n")[:height]
    finally:
        plotext.figure.theme("default").clear()
        plotext.terminal.limit()


def _nice_ticks(low: float, high: float, most: int) -> tuple[list[float], list[str]]:
    """Round numbers inside the limits, about ``most``, with their labels."""
    rough = (high - low) / most
    decade = math.floor(math.log10(rough))
    step = next(n * 10.0**decade for n in (1, 2, 5, 10) if n * 10.0**decade >= rough)
    digits = max(0, -math.floor(math.log10(step)))
    marks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return marks, [f"{mark:.{digits}f}" for mark in marks]


def _bars(chart: Chart, panel: Panel, title: str, size: tuple[int, int], color: bool) -> list[str]:
    """A single length: a bar a mode, from 0; the same rows in every panel."""
    width, _ = size
    label = max((len(_short(look)) for look in chart.looks), default=0)
    room = max(width - label - 8, 1)
    values = {one.look: mark.value for one in panel.series for mark in one.marks.values()}
    most = max(values.values(), default=1.0)
    lines = [title.ljust(width)]
    for look in chart.looks:
        bar, number = "", ""
        if look in values:
            bar, number = "█" * max(1, round(room * values[look] / most)), f"{values[look]:.2f}"
        rest = " " * max(0, width - label - 2 - len(bar) - len(number))
        name = _short(look).rjust(label)
        lines.append(f"{name} {_inked(bar, look.color, color)} {number}{rest}")
    return lines


def _legend(chart: Chart, width: int, color: bool) -> list[str]:
    parts = [(f"{_glyph(look)} {_short(look)}", look.color) for look in chart.looks]
    parts.append((f"─ {chart.reference}"[:width], GREY))
    rows = flowed(parts, lambda part: len(part[0]), 3, width)
    return ["   ".join(_inked(text, ink, color) for text, ink in row) for row in rows]


def flowed(items: Iterable[T], cells: Callable[[T], int], gap: int, width: int) -> list[list[T]]:
    """Rows of whole items, ``gap`` cells apart; only an item alone may be wider than ``width``."""
    rows: list[list[T]] = [[]]
    used = 0
    for item in items:
        if rows[-1] and used + gap + cells(item) > width:
            rows.append([])
        used = cells(item) + (used + gap if rows[-1] else 0)
        rows[-1].append(item)
    return rows


def _short(look: Look) -> str:
    return look.name if len(look.name) <= 20 else f"{look.name[:19]}…"


def _glyph(look: Look) -> str:
    return _GLYPHS[look.index % len(_GLYPHS)]


def _inked(text: str, color: str, is_on: bool) -> str:
    return f"\x1b[38;5;{_INKS[color]}m{text}\x1b[0m" if is_on and text else text
