"""A bench as PNG or SVG, with matplotlib.

It leaves no state: pyplot is never used, and settings of matplotlib are put back.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.bench.render.chart import (
    GREY,
    METRICS,
    Chart,
    Look,
    Panel,
    Series,
    chart_of,
    length_label,
    require_matplotlib,
)
from specx.bench.render.numbers import (
    count,
    hardware,
    has_presets,
    moment,
    plain_text,
    preset_names,
    stand_in_label,
)
from specx.bench.schema import Bench

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN, _PANEL_IN, _HEADER_IN, _CAPTION_IN = 11.0, 2.9, 0.62, 0.3
_LEGEND_ROW_IN, _LEGEND_COLUMNS = 0.22, 6
_REFERENCE: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (6, 3))}
_MARKERS = "osD^vPX*<>ph"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)))


def figure_bytes(bench: Bench, kind: str) -> bytes:
    """A ``png`` or ``svg``: a row a preset, a panel a metric. Equal benches give equal bytes."""
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    chart = chart_of(bench)
    with _drawing():
        legend = chart.looks if chart.has_lengths else []  # else every row says its mode
        legend_rows = 1 + len(legend) // _LEGEND_COLUMNS
        bottom_in = _CAPTION_IN + _LEGEND_ROW_IN * legend_rows
        height_in = _HEADER_IN + _PANEL_IN * len(chart.rows) + bottom_in
        # Panels are laid out between two heights; texts and legend are placed by us.
        bottom, top = bottom_in / height_in, 1 - _HEADER_IN / height_in
        layout = ConstrainedLayoutEngine(
            rect=(0.0, bottom, 1.0, top - bottom), w_pad=0.1, h_pad=0.06, wspace=0.02, hspace=0.02
        )
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout=layout)
        grid = figure.subplots(len(chart.rows), len(METRICS), squeeze=False)
        for axes_row, (preset, panels) in zip(grid, chart.rows, strict=True):
            several = f"{plain_text(preset, 30)}: " if has_presets(bench) else ""
            for axes, panel in zip(axes_row, panels, strict=True):
                _draw_panel(axes, chart, panel)
                axes.set_title(f"{several}{panel.title}", loc="left")
        _add_legend(figure, legend, chart.reference, height_in)
        _add_texts(figure, bench, chart.documents, height_in)
        return _saved(figure, kind)


def panel_svg(chart: Chart, panel: Panel) -> str:
    """One panel alone as an ``<svg>`` element for a page: no background, no title, no legend."""
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(3.7, 2.8), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        _draw_panel(axes, chart, panel)
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


def _draw_panel(axes: "Axes", chart: Chart, panel: Panel) -> None:
    if len(panel.lengths) > 1:
        _draw_over_length(axes, panel)
    else:
        _draw_by_mode(axes, panel, chart.looks)


def _draw_over_length(axes: "Axes", panel: Panel) -> None:
    axes.set_xscale("log", base=2)
    axes.axhline(1.0, zorder=1.5, **_REFERENCE)
    many = len(panel.series)
    for place, one in enumerate(panel.series):
        # a hair apart, so that intervals at the same length can be seen apart
        shift = 2 ** (0.05 * (place - (many - 1) / 2) * min(1.0, 5 / many))
        axes.errorbar(
            [length * shift for length in one.marks],
            [mark.value for mark in one.marks.values()],
            yerr=_reach(one),
            markersize=5,
            linewidth=1.5,
            elinewidth=1.0,
            capsize=2,
            **_line(one.look),
        )
    axes.set_xticks(panel.lengths, [length_label(length) for length in panel.lengths])
    axes.minorticks_off()
    axes.margins(x=0.06)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("prompt tokens")
    axes.set_ylim(panel.low, panel.high)


def _draw_by_mode(axes: "Axes", panel: Panel, looks: list[Look]) -> None:
    """A single length: a row a mode, the same rows in every panel, as there is no line to draw."""
    axes.axvline(1.0, zorder=1.5, **_REFERENCE)
    for one in panel.series:
        row, [mark] = looks.index(one.look), one.marks.values()
        line = _line(one.look)
        axes.errorbar([mark.value], [row], xerr=_reach(one), markersize=6, capsize=3, **line)
        axes.annotate(
            f"{mark.value:.2f}",
            (mark.value if mark.high is None else mark.high, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(looks)), [look.name for look in looks])
    axes.set_ylim(max(len(looks), 1) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    for length in panel.lengths:
        axes.set_xlabel(f"at {length:,} prompt tokens")
    room = 0.12 * (panel.high - panel.low)  # for the number after the last point
    axes.set_xlim(panel.low, panel.high + room)


def _line(look: Look) -> dict[str, Any]:
    return {
        "color": look.color,
        "marker": _MARKERS[look.index % len(_MARKERS)],
        "linestyle": _DASHES[look.repeat % len(_DASHES)],
    }


def _reach(one: Series) -> list[list[float]]:
    """Distances below and above the values; none where there is no interval."""
    marks = one.marks.values()
    below = [0.0 if mark.low is None else max(0.0, mark.value - mark.low) for mark in marks]
    above = [0.0 if mark.high is None else max(0.0, mark.high - mark.value) for mark in marks]
    return [below, above]


def _add_legend(figure: "Figure", looks: list[Look], reference: str, height_in: float) -> None:
    from matplotlib.lines import Line2D

    lines = [*map(_line, looks), _REFERENCE]
    legend = figure.legend(
        [Line2D([], [], **line) for line in lines],
        [*(look.name for look in looks), reference],
        loc="lower left",
        bbox_to_anchor=(0.003, (_CAPTION_IN - 0.08) / height_in),
        ncols=min(_LEGEND_COLUMNS, len(lines)),
        frameon=False,
    )
    legend.set_in_layout(False)


def _add_texts(figure: "Figure", bench: Bench, documents: int, height_in: float) -> None:
    left = 0.14 / _WIDTH_IN
    place = (stand_in_label(bench), plain_text(hardware(bench), 90), moment(bench.created))
    title, subtitle = f"specx bench: {preset_names(bench)}", " · ".join(filter(None, place))
    for depth_in, text, points, weight in (
        (0.27, title, 12, "bold"),
        (0.49, subtitle, 9, "normal"),
    ):
        figure.text(left, 1 - depth_in / height_in, text, fontsize=points, fontweight=weight)
    caption = f"speed-up = geometric mean over {count(documents, 'document')}"
    if documents > 1:
        caption += "; bars = 95 % paired bootstrap interval over documents"
    figure.text(left, 0.1 / height_in, caption, fontsize=7.5)
