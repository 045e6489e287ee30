"""A bench as a figure: what a plot shows, and PNG or SVG of it with matplotlib.

In: a bench. Out: lines and looks for whoever draws; bytes, or SVG text. It does not know files or
the screen and leaves no state: pyplot is never used, and settings of matplotlib are put back.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specx.bench.render.numbers import (
    baseline_name,
    count,
    hardware,
    has_presets,
    moment,
    plain_text,
    stand_in_label,
)
from specx.bench.schema import Bench, Interval
from specx.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import LayoutEngine

#: What a panel shows: a name in a summary → its title.
METRICS = {
    "speedup": "decode speed-up",
    "end_to_end_speedup": "end-to-end speed-up",
    "tokens_per_step": "tokens a step",
}

# Okabe and Ito's colours without black and yellow, which vanish on one of the two backgrounds.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
_PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
# The usual modes keep their colour from one report to the next.
_USUAL = {
    "plain": GREY,
    "specx": BLUE,
    "spec": ORANGE,
    "auto": GREEN,
    "standard": RED,
    "lookup": PURPLE,
    "hf": SKY,
}

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


@dataclass(frozen=True, slots=True)
class Series:
    """One mode: what was measured by prompt length, ascending."""

    mode: str
    marks: Mapping[int, Interval]


@dataclass(frozen=True, slots=True)
class ModeLook:
    """How a mode is distinguished from the others. ``index``: its place in the plan, for a marker.

    Modes of one ``color`` differ in ``repeat``, 0, 1, …
    """

    name: str
    color: str
    index: int
    repeat: int


def series(bench: Bench, preset: str, metric: str) -> list[Series]:
    """What a panel shows, in the plan's order of modes; modes without a value are left out.

    Plain decoding's one token a step is the line at 1 and no series.
    """
    found = []
    for mode in bench.plan.modes:
        marks: dict[int, Interval] = {}
        for row in bench.cells:
            mark = getattr(row.summary, metric)
            if (row.preset, row.mode) == (preset, mode) and mark:
                marks[row.length] = mark
        if marks and (metric, mode) != ("tokens_per_step", "plain"):
            found.append(Series(mode, dict(sorted(marks.items()))))
    return found


def lengths(found: list[Series]) -> list[int]:
    """All lengths of the series, ascending."""
    return sorted({length for one in found for length in one.marks})


def limits(bench: Bench, preset: str, metric: str) -> tuple[float, float]:
    """All values and intervals, and 1 off the frame, so that being below it can be seen.

    Both speed-ups have one scale: they are read against each other.
    """
    together = [name for name in METRICS if name.endswith("speedup")]
    marks = [1.0]
    for name in together if metric in together else [metric]:
        for one in series(bench, preset, name):
            for mark in one.marks.values():
                marks += [end for end in (mark.value, mark.low, mark.high) if end is not None]
    room = 0.07 * (max(marks) - min(marks)) or 0.1
    return min(marks) - room, max(marks) + room


def looks(bench: Bench) -> dict[str, ModeLook]:
    """Mode → look: a usual mode keeps its colour, the others take what is free, then repeat."""
    modes = bench.plan.modes
    chosen = {mode: _USUAL[mode] for mode in modes if mode in _USUAL}
    free = [color for color in _PALETTE if color not in chosen.values()]
    for mode in modes:
        if mode not in chosen:
            chosen[mode] = free.pop(0)
        free = free or list(_PALETTE)
    return {
        mode: ModeLook(
            name=plain_text(mode, 40),
            color=chosen[mode],
            index=index,
            repeat=[chosen[name] for name in modes[:index]].count(chosen[mode]),
        )
        for index, mode in enumerate(modes)
    }


def shown_modes(bench: Bench) -> list[str]:
    """Modes with a value in some panel, in the plan's order."""
    drawn = {
        one.mode
        for preset in bench.plan.presets
        for metric in METRICS
        for one in series(bench, preset.name, metric)
    }
    return [mode for mode in bench.plan.modes if mode in drawn]


def has_lengths(bench: Bench) -> bool:
    """Whether there are several, so that there is a line to draw."""
    return len({row.length for row in bench.cells}) > 1


def most_documents(bench: Bench) -> int:
    """Of the row with the most."""
    return max((row.summary.documents for row in bench.cells), default=0)


def reference_label(bench: Bench) -> str:
    """What the line at 1 is: the baseline, or with another baseline than plain its speed."""
    baseline = baseline_name(bench)
    return f"speed of {baseline} = 1" if baseline not in ("", "plain") else "plain = 1"


def length_label(length: int) -> str:
    """``16K`` for 16384; a length that is no multiple of 1024 stays a number."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


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


def figure_bytes(bench: Bench, kind: Literal["png", "svg"]) -> bytes:
    """The figure: a row a preset, a panel a metric. Equal benches give equal bytes."""
    require_matplotlib()
    from matplotlib.figure import Figure

    presets = [preset.name for preset in bench.plan.presets]
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
                several = f"{plain_text(preset, 30)}: " if has_presets(bench) else ""
                axes.set_title(f"{several}{METRICS[metric]}", loc="left")
        _add_legend(figure, bench, height_in)
        _add_texts(figure, bench, height_in)
        return _saved(figure, kind)


def panel_svg(bench: Bench, preset: str, metric: str) -> str:
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


def _draw_panel(axes: "Axes", bench: Bench, preset: str, metric: str) -> None:
    found = series(bench, preset, metric)
    low, high = limits(bench, preset, metric)
    if len(lengths(found)) > 1:
        _draw_over_length(axes, found, looks(bench))
        axes.set_ylim(low, high)
    else:
        _draw_by_mode(axes, found, looks(bench), shown_modes(bench))
        axes.set_xlim(low, high + 0.12 * (high - low))  # for the number after the last point


def _draw_over_length(axes: "Axes", found: list[Series], look: Mapping[str, ModeLook]) -> None:
    axes.set_xscale("log", base=2)
    axes.axhline(1.0, color=GREY, linewidth=1.2, linestyle=_REFERENCE, zorder=1.5)
    for place, one in enumerate(found):
        # a hair apart, so that intervals at the same length can be seen apart
        shift = 2 ** (0.05 * (place - (len(found) - 1) / 2) * min(1.0, 5 / len(found)))
        axes.errorbar(
            [length * shift for length in one.marks],
            [mark.value for mark in one.marks.values()],
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
    axes: "Axes", found: list[Series], look: Mapping[str, ModeLook], modes: Sequence[str]
) -> None:
    """A single length: a row a mode, the same rows in every panel, as there is no line to draw."""
    axes.axvline(1.0, color=GREY, linewidth=1.2, linestyle=_REFERENCE, zorder=1.5)
    for one in found:
        row, [mark] = modes.index(one.mode), one.marks.values()
        line = _line(look[one.mode])
        axes.errorbar([mark.value], [row], xerr=_reach(one), markersize=6, capsize=3, **line)
        axes.annotate(
            f"{mark.value:.2f}",
            (mark.value if mark.high is None else mark.high, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(modes)), [look[mode].name for mode in modes])
    axes.set_ylim(max(len(modes), 1) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    if found:
        axes.set_xlabel(f"at {lengths(found)[0]:,} prompt tokens")


def _line(look: ModeLook) -> dict[str, Any]:
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


def _add_legend(figure: "Figure", bench: Bench, height_in: float) -> None:
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


def _legend_modes(bench: Bench) -> list[str]:
    """None with a single length: every row says its mode."""
    return shown_modes(bench) if has_lengths(bench) else []


def _add_texts(figure: "Figure", bench: Bench, height_in: float) -> None:
    left = 0.14 / _WIDTH_IN
    names = ", ".join(plain_text(preset.name, 40) for preset in bench.plan.presets)
    label = stand_in_label(bench)
    place = f"{plain_text(hardware(bench), 90)} · {moment(bench.created)}"
    place = f"{label} · {place}" if label else place
    top = [(0.27, f"specx bench: {names}", 12, "bold"), (0.49, place, 9, "normal")]
    for depth_in, text, points, weight in top:
        figure.text(left, 1 - depth_in / height_in, text, fontsize=points, fontweight=weight)
    documents = most_documents(bench)
    caption = f"speed-up = geometric mean over {count(documents, 'document')}"
    if documents > 1:
        caption += "; bars = 95 % paired bootstrap interval over documents"
    figure.text(left, 0.1 / height_in, caption, fontsize=7.5)
