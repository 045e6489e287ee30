"""A bench as plots of characters: curves with plotext, and bars.

plotext has one figure for the whole process: it is cleared before and after use.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from specx.bench.render import chart as charts
from specx.bench.render.numbers import joined
from specx.bench.render.tables import flowed, profile_table, profiles
from specx.bench.schema import Bench

_GLYPHS = "ox+*#@%&=$~^"
_PHASE_MARKS = dict(zip(charts.PHASE_COLORS, "█▓▒░▚▞▄▀▌", strict=True))


def terminal_plot(bench: Bench, width: int, height: int, *, color: bool) -> str:
    """Speed-up and tokens a step over length, as lines of at most ``width`` cells.

    ``height``: rows of one panel. Panels are side by side from 100 columns on. Without
    ``color`` there is no escape sequence; every mode has a sign of its own in either case.
    """
    charts.require_plotext()
    chart = charts.chart_of(bench)
    is_wide = width >= 100
    panel_width = (width - 2) // 2 if is_wide else width
    lines: list[str] = []
    for preset, (speedup, _, tokens_per_step) in chart.rows:
        left, right = (
            _curves(panel, title, panel_width, height, color)
            if chart.has_lengths
            else _bars(chart.looks, panel, title, panel_width, color)
            for panel in (speedup, tokens_per_step)
            for title in [joined((preset, panel.title), ": ")[:panel_width]]
        )
        lines += map("  ".join, zip(left, right, strict=True)) if is_wide else left + right
    if chart.has_lengths:  # a bar says its mode
        names = [(f"{look.of(_GLYPHS)} {look.name[:20]}", look.color) for look in chart.looks]
        lines += _legend([*names, (f"─ {chart.reference}"[:width], charts.GREY)], width, color)
    return "\n".join(line.rstrip() for line in lines)


def _curves(panel: charts.Panel, title: str, width: int, height: int, color: bool) -> list[str]:
    """Rows of a panel over prompt length."""
    import plotext

    def signal(lengths: Iterable[int], y: list[float], glyph: str, color: str) -> Any:
        ink = plotext.pixel(foreground=charts.INKS[color])
        x = [math.log2(length) for length in lengths]
        return plotext.figure.signal(x, y, marker=plotext.marker(glyph, ink))

    lengths = panel.lengths
    plotext.terminal.limit(False, False)  # the caller's width counts, not what plotext finds
    try:
        figure = plotext.figure.clear().theme("colorless").plot_size(width, height).title(title)
        if lengths:
            places = [math.log2(length) for length in lengths]
            figure.ruler("x").ticks(places, [charts.length_label(length) for length in lengths])
            marks, labels = _nice_ticks(panel.low, panel.high, max(2, height // 3))
            figure.ruler("y").lim(panel.low, panel.high).ticks(marks, labels)
            figure.draw(signal((lengths[0], lengths[-1]), [1.0, 1.0], "─", charts.GREY).lines())
        # signs after all lines: a sign is what tells the mode
        for is_sign, (look, curve) in itertools.product((False, True), panel.series.items()):
            y = [mark.value for mark in curve.values()]
            glyph = look.of(_GLYPHS) if is_sign else "·"
            figure.draw(signal(curve, y, glyph, look.color).lines(not is_sign))
        return str(figure.build().string(colorless=not color)).split("\n")[:height]
    finally:
        plotext.figure.theme("default").clear()
        plotext.terminal.limit()


def _nice_ticks(low: float, high: float, most: int) -> tuple[list[float], list[str]]:
    """Round numbers inside the limits, about ``most``, with their labels."""
    rough = (high - low) / most
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(n * decade for n in (1, 2, 5, 10) if n * decade >= rough)
    digits = max(0, -math.floor(math.log10(step)))
    marks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return marks, [f"{mark:.{digits}f}" for mark in marks]


def _bars(
    looks: list[charts.Look], panel: charts.Panel, title: str, width: int, color: bool
) -> list[str]:
    """A single length: a bar a mode, from 0; the same rows in every panel."""
    label = max((len(look.name[:20]) for look in looks), default=0)
    room = max(width - label - 8, 1)
    values = {look: mark.value for look, marks in panel.series.items() for mark in marks.values()}
    most = max(values.values(), default=1.0)
    lines = [title.ljust(width)]
    for look in looks:
        bar, number = "", ""
        if look in values:
            bar, number = "█" * max(1, round(room * values[look] / most)), f"{values[look]:.2f}"
        rest = " " * max(0, width - label - 2 - len(bar) - len(number))
        lines.append(f"{look.name[:20]:>{label}} {_inked(bar, look.color, color)} {number}{rest}")
    return lines


def step_bars(bench: Bench, width: int, *, color: bool) -> str:
    """Where a step's time goes, one stacked bar a row; phases differ in colour and in pattern."""
    found = profiles(bench)
    table = profile_table(bench)
    labels = [" ".join(cells[: table.keys]) for cells in table.rows]
    label = max(map(len, labels), default=0)
    longest_ms = max((sum(phases.values()) for _, phases in found), default=0.0)
    scale = max(10, min(60, width - label - 2)) / (longest_ms or 1.0)
    lines, drawn = [], set()
    for name, (_, phases) in zip(labels, found, strict=True):
        # in whole cells whose sum is the rounded sum: ends of segments round
        edges = [round(ms * scale) for ms in itertools.accumulate(phases.values(), initial=0.0)]
        bar = f"{name:<{label}}  "
        for phase, start, end in zip(phases, edges, edges[1:], strict=False):
            bar += _inked(_PHASE_MARKS[phase] * (end - start), charts.PHASE_COLORS[phase], color)
            drawn |= {phase} if end > start else set()
        lines.append(bar)
    inks = charts.PHASE_COLORS.items()
    names = [(f"{_PHASE_MARKS[name]} {name}", ink) for name, ink in inks if name in drawn]
    return "\n".join(lines + _legend(names, width, color))


def _legend(names: list[tuple[str, str]], width: int, color: bool) -> list[str]:
    """Texts in their colours, in rows of at most ``width`` cells."""
    rows = flowed(names, lambda name: len(name[0]), 3, width)
    return ["   ".join(_inked(text, ink, color) for text, ink in row) for row in rows]


def _inked(text: str, color: str, is_on: bool) -> str:
    return f"\x1b[38;5;{charts.INKS[color]}m{text}\x1b[0m" if is_on and text else text
