"""A bench as a plot of characters, with plotext.

In: a bench, a width in cells, a height in rows. Out: text. It does not know
the screen. plotext has one figure for the whole process: it is cleared before and after use.
"""

import math
from typing import Any

from specx.bench.render.figure import (
    BLUE,
    GREEN,
    GREY,
    METRICS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    ModeLook,
    Series,
    has_lengths,
    length_label,
    lengths,
    limits,
    looks,
    reference_label,
    series,
    shown_modes,
)
from specx.bench.render.numbers import has_presets, plain_text
from specx.bench.schema import Bench
from specx.errors import UsageError

_SIDE_BY_SIDE_FROM = 100
_GLYPHS = "ox+*#@%&=$~^"
# The nearest of a terminal's 256 colours that can be read on black and on white.
_INKS = {BLUE: 33, ORANGE: 172, GREEN: 36, RED: 166, PURPLE: 175, SKY: 74, GREY: 244}
_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼·█–…", "-|+++++++++.#-~")


def require_plotext() -> None:
    """Raises ``UsageError`` with the command to install it; to be asked before a long run."""
    try:
        import plotext  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a plot in the terminal needs plotext",
            reason=str(error).split("\n")[0],
            hints=["pip install plotext"],
        ) from error


def terminal_plot(
    bench: Bench, width: int, height: int, *, color: bool, ascii_only: bool = False
) -> str:
    """Speed-up and tokens a step over length, as lines of at most ``width`` cells.

    ``height``: rows of one panel. Panels are side by side from 100 columns on. Without
    ``color`` there is no escape sequence; every mode has a sign of its own in either case.
    """
    require_plotext()
    is_wide = width >= _SIDE_BY_SIDE_FROM
    lines = []
    for preset in bench.plan.presets:
        panels = [
            _panel(
                bench, preset.name, metric, (width - 2) // 2 if is_wide else width, height, color
            )
            for metric in ("speedup", "tokens_per_step")
        ]
        if is_wide:
            lines += [f"{left}  {right}" for left, right in zip(*panels, strict=True)]
        else:
            lines += [line for panel in panels for line in panel]
    text = "\n".join(line.rstrip() for line in [*lines, *_legend(bench, width, color)])
    return text.translate(_ASCII) if ascii_only else text


def _panel(
    bench: Bench, preset: str, metric: str, width: int, height: int, color: bool
) -> list[str]:
    """``height`` rows of ``width`` cells."""
    found = series(bench, preset, metric)
    several = f"{plain_text(preset, 20)}: " if has_presets(bench) else ""
    title = f"{several}{METRICS[metric]}"[:width]
    if not has_lengths(bench):
        return _bars(bench, found, title, width, color)
    import plotext

    ticks = lengths(found)
    x_ends = [math.log2(length) for length in ticks[:1] + ticks[-1:]]
    low, high = limits(bench, preset, metric)
    plotext.terminal.limit(False, False)  # the caller's width counts, not what plotext finds
    try:
        figure = plotext.figure.clear().theme("colorless").plot_size(width, height).title(title)
        if found:
            places = [math.log2(length) for length in ticks]
            figure.ruler("x").ticks(places, [length_label(length) for length in ticks])
            marks, labels = _nice_ticks(low, high, max(2, height // 3))
            figure.ruler("y").lim(low, high).ticks(marks, labels)
            figure.draw(_signal(plotext, x_ends, [1.0] * len(x_ends), "─", GREY).lines())
        # signs after all lines: a sign is what tells the mode
        for sign in (False, True):
            for one in found:
                look = looks(bench)[one.mode]
                x = [math.log2(length) for length in one.marks]
                y = [mark.value for mark in one.marks.values()]
                glyph = _glyph(look) if sign else "·"
                figure.draw(_signal(plotext, x, y, glyph, look.color).lines(not sign))
        return str(figure.build().string(colorless=not color)).split("\n")[:height]
    finally:
        plotext.figure.theme("default").clear()
        plotext.terminal.limit()


def _signal(plotext: Any, x: Any, y: Any, glyph: str, color: str) -> Any:
    ink = plotext.pixel(foreground=_INKS[color])
    return plotext.figure.signal(list(x), list(y), marker=plotext.marker(glyph, ink))


def _nice_ticks(low: float, high: float, most: int) -> tuple[list[float], list[str]]:
    """Round numbers inside the limits, about ``most``, with their labels."""
    rough = (high - low) / most
    decade = math.floor(math.log10(rough))
    step = next(n * 10.0**decade for n in (1, 2, 5, 10) if n * 10.0**decade >= rough)
    digits = max(0, -math.floor(math.log10(step)))
    marks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return marks, [f"{mark:.{digits}f}" for mark in marks]


def _bars(bench: Bench, found: list[Series], title: str, width: int, color: bool) -> list[str]:
    """A single length: a bar a mode, from 0; the same rows in every panel."""
    look = looks(bench)
    modes = shown_modes(bench)
    label = max((len(_short(look[mode])) for mode in modes), default=0)
    room = max(width - label - 8, 1)
    values = {one.mode: mark.value for one in found for mark in one.marks.values()}
    most = max(values.values(), default=1.0)
    lines = [title.ljust(width)]
    for mode in modes:
        bar = "█" * max(1, round(room * values[mode] / most)) if mode in values else ""
        number = f"{values[mode]:.2f}" if mode in values else ""
        rest = " " * max(0, width - label - 2 - len(bar) - len(number))
        name = _short(look[mode]).rjust(label)
        lines.append(f"{name} {_inked(bar, look[mode].color, color)} {number}{rest}")
    return lines


def _legend(bench: Bench, width: int, color: bool) -> list[str]:
    if not has_lengths(bench):
        return []  # every bar says its mode
    look = looks(bench)
    parts = [(f"{_glyph(look[m])} {_short(look[m])}", look[m].color) for m in shown_modes(bench)]
    parts.append((f"─ {reference_label(bench)}"[:width], GREY))
    lines, used = [""], 0
    for text, ink in parts:
        if used and used + 3 + len(text) > width:
            lines.append("")
            used = 0
        lines[-1] += ("   " if used else "") + _inked(text, ink, color)
        used += (3 if used else 0) + len(text)
    return lines


def _short(look: ModeLook) -> str:
    return look.name if len(look.name) <= 20 else f"{look.name[:19]}…"


def _glyph(look: ModeLook) -> str:
    return _GLYPHS[look.index % len(_GLYPHS)]


def _inked(text: str, color: str, is_on: bool) -> str:
    return f"\x1b[38;5;{_INKS[color]}m{text}\x1b[0m" if is_on and text else text
