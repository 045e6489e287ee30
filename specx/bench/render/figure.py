"""A bench as PNG or SVG, with matplotlib.

It leaves no state: pyplot is never used, and settings of matplotlib are put back.
"""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.bench.render import chart as charts
from specx.bench.render import numbers
from specx.bench.schema import Bench, Interval

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
                _draw_panel(axes, chart, panel)
                axes.set_title(numbers.joined((preset, panel.title), ": "))
        title = f"specx bench: {numbers.preset_names(bench)}\n"  # with room for a second line
        figure.suptitle(title, x=0.012, ha="left")
        figure.text(0.012, 1 - 0.29 / height_in, numbers.joined(facts), va="top")
        looks = chart.looks if chart.has_lengths else []  # else every row says its mode
        lines = [*map(_line, looks), _REFERENCE]
        names = [*(look.name for look in looks), chart.reference]
        figure.legend([Line2D([], [], **line) for line in lines], names, title=caption, **_LEGEND)
        return _saved(figure, kind)


def panel_svg(chart: charts.Chart, panel: charts.Panel) -> str:
    """One panel alone as an ``<svg>`` element for a page: no background, no title, no legend."""
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(3.7, 2.8), layout="constrained")
        axes = figure.subplots()
        _draw_panel(axes, chart, panel)
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


def _draw_panel(axes: "Axes", chart: charts.Chart, panel: charts.Panel) -> None:
    if len(panel.lengths) > 1:
        _draw_over_length(axes, panel)
    else:
        _draw_by_mode(axes, panel, chart.looks)


def _draw_over_length(axes: "Axes", panel: charts.Panel) -> None:
    axes.set_xscale("log", base=2)
    axes.axhline(1.0, zorder=1.5, **_REFERENCE)
    many = len(panel.series)
    for place, (look, marks) in enumerate(panel.series.items()):
        # a hair apart, so that intervals at the same length can be seen apart
        shift = 2 ** (0.05 * (place - (many - 1) / 2) * min(1.0, 5 / many))
        x, y = [length * shift for length in marks], [mark.value for mark in marks.values()]
        axes.errorbar(x, y, yerr=_reach(marks), **_SIZES, **_line(look))
    axes.set_xticks(panel.lengths, [charts.length_label(length) for length in panel.lengths])
    axes.minorticks_off()
    axes.margins(x=0.06)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("prompt tokens")
    axes.set_ylim(panel.low, panel.high)


def _draw_by_mode(axes: "Axes", panel: charts.Panel, looks: list[charts.Look]) -> None:
    """A single length: a row a mode, the same rows in every panel, as there is no line to draw."""
    axes.axvline(1.0, zorder=1.5, **_REFERENCE)
    for look, marks in panel.series.items():
        row, [mark] = looks.index(look), marks.values()
        axes.errorbar(
            [mark.value], [row], xerr=_reach(marks), markersize=6, capsize=3, **_line(look)
        )
        axes.annotate(f"{mark.value:.2f}", (mark.ends[1], row), fontsize=8, **_BESIDE)
    axes.set_yticks(range(len(looks)), [look.name for look in looks])
    axes.set_ylim(max(len(looks), 1) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    for length in panel.lengths:
        axes.set_xlabel(f"at {length:,} prompt tokens")
    room = 0.12 * (panel.high - panel.low)  # for the number after the last point
    axes.set_xlim(panel.low, panel.high + room)


def _line(look: charts.Look) -> dict[str, Any]:
    dash = _DASHES[look.repeat % len(_DASHES)]
    return {"color": look.color, "marker": look.of(_MARKERS), "linestyle": dash}


def _reach(marks: Mapping[int, Interval]) -> list[list[float]]:
    """Distances of the ends below and above the values."""
    below = [mark.value - mark.ends[0] for mark in marks.values()]
    return [below, [mark.ends[1] - mark.value for mark in marks.values()]]
