"""A bench as a figure: PNG or SVG with matplotlib.

In: a ``specx.bench/1`` object. Out: bytes, or SVG text. It does not know files or the screen and
leaves no state behind: pyplot is never used, and settings of matplotlib are put back.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from specx.bench.record import Object
from specx.bench.render.numbers import (
    count,
    hardware,
    moment,
    plain_text,
    preset_names,
    stand_in_label,
)
from specx.bench.render.series import (
    GREY,
    METRICS,
    Look,
    Series,
    length_label,
    lengths,
    limits,
    looks,
    reference_label,
    series,
    shown_modes,
)
from specx.bench.render.terminal import require_plotext, terminal_plot
from specx.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import LayoutEngine

__all__ = ["figure_bytes", "panel_svg", "require_matplotlib", "require_plotext", "terminal_plot"]

_WIDTH_IN, _PANEL_IN, _HEADER_IN, _CAPTION_IN = 11.0, 2.9, 0.62, 0.3
_LEGEND_ROW_IN, _LEGEND_COLUMNS = 0.22, 6
_REFERENCE = (0, (6, 3))
_MARKERS = "osD^vPX*<>ph"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)))
_STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "text.parse_math": False,  # a name with $ is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "specx",
    "savefig.dpi": 160,
}


def require_matplotlib() -> None:
    """Raises ``UsageError`` with the command to install it; to be asked before a long run."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a PNG or SVG figure needs matplotlib",
            reason=str(error),
            hints=["pip install 'specx[plot]'"],
        ) from error


def figure_bytes(bench: Object, kind: Literal["png", "svg"]) -> bytes:
    """The figure: a row a preset, a panel a metric. Equal benches give equal bytes."""
    require_matplotlib()
    from matplotlib.figure import Figure

    presets = preset_names(bench)
    with _drawing():
        legend_rows = 1 + len(_legend_modes(bench)) // _LEGEND_COLUMNS
        bottom_in = _CAPTION_IN + _LEGEND_ROW_IN * legend_rows
        height_in = _HEADER_IN + _PANEL_IN * len(presets) + bottom_in
        layout = _layout(bottom_in / height_in, 1 - _HEADER_IN / height_in)
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout=layout)
        rows = figure.subplots(len(presets), len(METRICS), squeeze=False)
        for axes_row, preset in zip(rows, presets, strict=True):
            for axes, metric in zip(axes_row, METRICS, strict=True):
                _draw_panel(axes, bench, preset, metric)
                several = f"{plain_text(preset, 30)}: " if len(presets) > 1 else ""
                axes.set_title(f"{several}{METRICS[metric]}", loc="left")
        _add_legend(figure, bench, height_in)
        _add_texts(figure, bench, height_in)
        return _saved(figure, kind)


def panel_svg(bench: Object, preset: str, metric: str) -> str:
    """One panel alone as an ``<svg>`` element for a page: no background, no title, no legend."""
    require_matplotlib()
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=(3.7, 2.8), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        _draw_panel(axes, bench, preset, metric)
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
        matplotlib.rcParams.update(_STYLE)
        yield


def _saved(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    out = io.BytesIO()
    names = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    figure.savefig(out, format=kind, metadata=dict.fromkeys(names))
    return out.getvalue()


def _layout(bottom: float, top: float) -> "LayoutEngine":
    """Panels between two heights, as shares of the figure; texts and legend are placed by us."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rect = (0.0, bottom, 1.0, top - bottom)
    return ConstrainedLayoutEngine(rect=rect, w_pad=0.1, h_pad=0.06, wspace=0.02, hspace=0.02)


def _draw_panel(axes: "Axes", bench: Object, preset: str, metric: str) -> None:
    found = series(bench, preset, metric)
    low, high = limits(bench, preset, metric)
    if len(lengths(found)) > 1:
        _draw_over_length(axes, found, looks(bench))
        axes.set_ylim(low, high)
    else:
        _draw_by_mode(axes, found, looks(bench), shown_modes(bench))
        axes.set_xlim(low, high + 0.12 * (high - low))  # for the number behind the last point


def _draw_over_length(axes: "Axes", found: list[Series], look: Mapping[str, Look]) -> None:
    axes.set_xscale("log", base=2)
    axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle=_REFERENCE, zorder=1.5)
    for place, one in enumerate(found):
        # a hair apart, so that intervals at the same length can be told from each other
        shift = 2 ** (0.05 * (place - (len(found) - 1) / 2) * min(1.0, 5 / len(found)))
        axes.errorbar(
            [length * shift for length in one.lengths],
            one.values,
            yerr=_reach(one),
            markersize=5,
            linewidth=1.5,
            elinewidth=1.0,
            capsize=2,
            **_line(look[one.mode]),
        )
    ticks = lengths(found)
    axes.set_xticks(ticks, [length_label(length) for length in ticks])
    axes.minorticks_off()
    axes.margins(x=0.06)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("prompt tokens")


def _draw_by_mode(
    axes: "Axes", found: list[Series], look: Mapping[str, Look], modes: Sequence[str]
) -> None:
    """A single length: a row a mode, the same rows in every panel, as there is no line to draw."""
    axes.axvline(1.0, color=GREY, linewidth=1.2, linestyle=_REFERENCE, zorder=1.5)
    for one in found:
        row, value, high = modes.index(one.mode), one.values[0], one.highs[0]
        line = _line(look[one.mode])
        axes.errorbar([value], [row], xerr=_reach(one), markersize=6, capsize=3, **line)
        axes.annotate(
            f"{value:.2f}",
            (value if high is None else high, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(modes)), [look[mode].name for mode in modes])
    axes.set_ylim(max(len(modes), 1) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    if found:
        axes.set_xlabel(f"at {found[0].lengths[0]:,} prompt tokens")


def _line(look: Look) -> dict[str, Any]:
    return {
        "color": look.color,
        "marker": _MARKERS[look.index % len(_MARKERS)],
        "linestyle": _DASHES[look.repeat % len(_DASHES)],
    }


def _reach(one: Series) -> list[list[float]]:
    """Distances below and above the values; none where there is no interval."""
    marks = list(zip(one.values, one.lows, one.highs, strict=True))
    below = [0.0 if low is None else max(0.0, value - low) for value, low, _ in marks]
    above = [0.0 if high is None else max(0.0, high - value) for value, _, high in marks]
    return [below, above]


def _add_legend(figure: "Figure", bench: Object, height_in: float) -> None:
    from matplotlib.lines import Line2D

    look = looks(bench)
    modes = _legend_modes(bench)
    handles = [Line2D([], [], **_line(look[mode])) for mode in modes]
    handles.append(Line2D([], [], color=GREY, linewidth=1.2, linestyle=_REFERENCE))
    names = [*(look[mode].name for mode in modes), reference_label(bench)]
    legend = figure.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0.003, (_CAPTION_IN - 0.08) / height_in),
        ncols=min(_LEGEND_COLUMNS, len(names)),
        frameon=False,
    )
    legend.set_in_layout(False)


def _legend_modes(bench: Object) -> list[str]:
    """None with a single length: every row says its mode."""
    several = len({cell["length"] for cell in bench["cells"]}) > 1
    return shown_modes(bench) if several else []


def _add_texts(figure: "Figure", bench: Object, height_in: float) -> None:
    left = 0.14 / _WIDTH_IN
    names = ", ".join(plain_text(name, 40) for name in preset_names(bench))
    label = stand_in_label(bench)
    place = f"{plain_text(hardware(bench), 90)} · {moment(bench['created'])}"
    place = f"{label} · {place}" if label else place
    top = [(0.27, f"specx bench: {names}", 12, "bold"), (0.49, place, 9, "normal")]
    for depth_in, text, points, weight in top:
        figure.text(left, 1 - depth_in / height_in, text, fontsize=points, fontweight=weight)
    documents = max((cell["summary"]["documents"] for cell in bench["cells"]), default=0)
    caption = f"speed-up = geometric mean over {count(documents, 'document')}"
    if documents > 1:
        caption += "; bars = 95 % paired bootstrap interval over documents"
    figure.text(left, 0.1 / height_in, caption, fontsize=7.5)
