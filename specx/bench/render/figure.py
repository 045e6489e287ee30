"""A bench as PNG or SVG, with matplotlib.

It leaves no state: pyplot is never used, and settings of matplotlib are put back.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.bench.render import chart as charts
from specx.bench.render import numbers
from specx.bench.schema import Bench

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REFERENCE: dict[str, Any] = {"color": charts.GREY, "linewidth": 1.2, "linestyle": (0, (6, 3))}
_LEGEND: dict[str, Any] = {"loc": "outside lower left", "ncols": 6, "alignment": "left"}
_SIZES: dict[str, Any] = {"markersize": 5, "linewidth": 1.5, "elinewidth": 1.0, "capsize": 2}
_BESIDE: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
_MARKERS = "osD^vPX*<>ph"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)))


def figure_bytes(bench: Bench, kind: str) -> bytes:
    """A ``png`` or ``svg``: a row a preset, a panel a metric. Equal benches give equal bytes."""
    charts.require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    chart = charts.chart_of(bench)
    facts = numbers.stand_in_label(bench), numbers.hardware(bench), numbers.moment(bench.created)
    caption = f"speed-up = geometric mean over {numbers.count(chart.documents, 'document')}"
    if chart.documents > 1:
        caption += "; bars = 95 % paired bootstrap interval over documents"
    with _drawing():
        height_in = 1.4 + 2.9 * len(chart.rows)
        figure = Figure(figsize=(11.0, height_in), layout="constrained")
        grid = figure.subplots(len(chart.rows), len(charts.METRICS), squeeze=False)
        for axes_row, (preset, panels) in zip(grid, chart.rows, strict=True):
            for axes, panel in zip(axes_row, panels, strict=True):
                _draw_panel(axes, panel)
                axes.set_title(numbers.joined((preset, panel.title), ": "))
        title = f"specx bench: {numbers.preset_names(bench)}\n"  # with room for a second line
        figure.suptitle(title, x=0.012, ha="left")
        figure.text(0.012, 1 - 0.29 / height_in, numbers.joined(facts), va="top")
        lines = [*map(_line, chart.looks), _REFERENCE]
        names = [*(look.name for look in chart.looks), chart.reference]
        figure.legend([Line2D([], [], **line) for line in lines], names, title=caption, **_LEGEND)
        return _saved(figure, kind)


def panel_svg(panel: charts.Panel) -> str:
    """One panel alone as an ``<svg>`` element for a page: no background, no title, no legend."""
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(3.7, 2.8), layout="constrained")
        axes = figure.subplots()
        _draw_panel(axes, panel)
        for patch in (figure.patch, axes.patch):
            patch.set_visible(False)
        text = _saved(figure, "svg").decode("utf-8")
    return text[text.index("<svg") :]


@contextmanager
def _drawing() -> Iterator[None]:
    """Our style on top of matplotlib's own defaults; a user's matplotlibrc changes nothing."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # a name in a script that the font lacks becomes boxes in a PNG, and stays text in an SVG
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rc_file(Path(__file__).with_name("figure.mplstyle"))
        yield


def _saved(figure: "Figure", kind: str) -> bytes:
    out = io.BytesIO()
    names = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    figure.savefig(out, format=kind, metadata=dict.fromkeys(names))
    return out.getvalue()


def _draw_panel(axes: "Axes", panel: charts.Panel) -> None:
    axes.set_xscale("log", base=2)
    axes.axhline(1.0, zorder=1.5, **_REFERENCE)
    many, is_single = len(panel.series), len(panel.lengths) == 1
    for place, (look, marks) in enumerate(panel.series.items()):
        # a hair apart, so that intervals at the same length can be seen apart
        shift = 2 ** (0.05 * (place - (many - 1) / 2) * min(1.0, 5 / many))
        x, y = [length * shift for length in marks], [mark.value for mark in marks.values()]
        ends = [mark.ends for mark in marks.values()]
        below = [value - low for value, (low, _) in zip(y, ends, strict=True)]
        above = [high - value for value, (_, high) in zip(y, ends, strict=True)]
        axes.errorbar(x, y, yerr=[below, above], **_SIZES, **_line(look))
        if is_single:  # there is room for the values
            axes.annotate(f"{y[0]:.2f}", (x[0], y[0]), fontsize=8, **_BESIDE)
    axes.set_xticks(panel.lengths, [charts.length_label(length) for length in panel.lengths])
    axes.minorticks_off()
    axes.margins(x=0.25 if is_single else 0.06)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("prompt tokens")
    axes.set_ylim(panel.low, panel.high)


def _line(look: charts.Look) -> dict[str, Any]:
    dash = _DASHES[look.repeat % len(_DASHES)]
    return {"color": look.color, "marker": look.of(_MARKERS), "linestyle": dash}
