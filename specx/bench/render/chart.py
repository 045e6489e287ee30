"""What the plots of a bench show, whoever draws them: panels of series, and how modes look."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from specx.bench.render.numbers import baseline_name, has_presets, plain_text, short
from specx.bench.schema import Bench, Interval
from specx.errors import UsageError

#: A name in a summary → the title of the panel that shows it. Both speed-ups have one scale.
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
_USUAL_MODES = ("specx", "spec", "auto", "standard", "lookup", "hf")
_USUAL = {"plain": GREY, **dict(zip(_USUAL_MODES, _PALETTE, strict=True))}

#: The nearest of a terminal's 256 colours that can be read on black and on white.
INKS = {BLUE: 33, ORANGE: 172, GREEN: 36, RED: 166, PURPLE: 175, SKY: 74, GREY: 244}
INKS |= {"#2F93CC": 32, "#8C6D31": 94, "#8A8F96": 245}
_DRAFT_PHASES = ("draft 1", "draft 2", "draft 3+")
_PHASES = (*_DRAFT_PHASES, "tree", "verify", "accept", "commit", "retrieve", "host")
_INKED = (SKY, "#2F93CC", BLUE, PURPLE, ORANGE, RED, "#8C6D31", GREEN, "#8A8F96")
PHASE_COLORS = dict(zip(_PHASES, _INKED, strict=True))  # of a step


@dataclass(frozen=True, slots=True)
class Look:
    """How a mode differs from the others. ``index``: its place in the plan, for a marker.

    Modes of one ``color`` differ in ``repeat``, 0, 1, …
    """

    name: str
    color: str
    index: int
    repeat: int

    def of(self, signs: Sequence[str]) -> str:
        return signs[self.index % len(signs)]


@dataclass(frozen=True, slots=True)
class Panel:
    """One metric of one preset: by mode what was measured by prompt length, ascending.

    The limits hold all values, intervals and 1.
    """

    metric: str
    title: str
    series: Mapping[Look, Mapping[int, Interval]]
    low: float
    high: float

    @property
    def lengths(self) -> list[int]:
        return sorted({length for marks in self.series.values() for length in marks})


@dataclass(frozen=True, slots=True)
class Chart:
    """``rows``: a preset's name, "" for the only one, and its panels. ``looks``: of modes with a
    value in some panel. ``documents``: of the row with the most. ``reference``: the line at 1.
    """

    rows: list[tuple[str, list[Panel]]]
    looks: list[Look]
    has_lengths: bool
    documents: int
    reference: str


def chart_of(bench: Bench) -> Chart:
    """All that is to be drawn, in the plan's order of presets and modes."""
    looks, length = looks_of(bench.plan.modes), 30 if has_presets(bench) else 0
    names = [preset.name for preset in bench.plan.presets]
    rows = [(plain_text(name, 30)[:length], _panels(bench, name, looks)) for name in names]
    drawn = {look for _, panels in rows for panel in panels for look in panel.series}
    baseline = baseline_name(bench)
    return Chart(
        rows=rows,
        looks=[look for look in looks.values() if look in drawn],
        has_lengths=len({row.length for row in bench.cells}) > 1,
        documents=max((row.summary.documents for row in bench.cells), default=0),
        reference="plain = 1" if baseline in ("", "plain") else f"speed of {baseline} = 1",
    )


def _panels(bench: Bench, preset: str, looks: Mapping[str, Look]) -> list[Panel]:
    """Modes without a value have no series; the limits leave room, so that 1 is off the frame."""
    rows = sorted((row for row in bench.cells if row.preset == preset), key=lambda row: row.length)
    found: dict[str, dict[Look, dict[int, Interval]]] = {metric: {} for metric in METRICS}
    for (metric, series), (mode, look) in itertools.product(found.items(), looks.items()):
        marks = {row.length: getattr(row.summary, metric) for row in rows if row.mode == mode}
        marks = {length: mark for length, mark in marks.items() if mark}
        # plain decoding's one token a step is the line at 1
        if marks and (metric, mode) != ("tokens_per_step", "plain"):
            series[look] = marks
    panels = []
    for metric, title in METRICS.items():
        scale = [each for each in METRICS if ("speedup" in each) == ("speedup" in metric)]
        drawn = [marks for each in scale for marks in found[each].values()]
        ends = [1.0, *(end for marks in drawn for mark in marks.values() for end in mark.ends)]
        room = 0.07 * (max(ends) - min(ends)) or 0.1
        panels.append(Panel(metric, title, found[metric], min(ends) - room, max(ends) + room))
    return panels


def looks_of(modes: Sequence[str]) -> dict[str, Look]:
    """Mode → look: a usual mode keeps its colour, the others take what is free, then repeat."""
    colors = {mode: _USUAL[mode] for mode in modes if mode in _USUAL}
    free = [color for color in _PALETTE if color not in colors.values()]
    others = itertools.chain(free, itertools.cycle(_PALETTE))
    looks: dict[str, Look] = {}
    for index, mode in enumerate(modes):
        color = colors.get(mode) or next(others)
        repeat = sum(look.color == color for look in looks.values())
        looks[mode] = Look(short(mode), color, index, repeat)
    return looks


def length_label(length: int) -> str:
    """``16K`` for 16384; a length that is no multiple of 1024 stays a number."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def _require(what: str, module: str, package: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        needs = f"{what} needs {module.split('.')[0]}"
        reason = str(error).split("\n")[0]
        raise UsageError(needs, reason=reason, hints=[f"pip install {package}"]) from error


#: Raise ``UsageError`` with the command to install it; to be asked before a long run.
require_matplotlib = partial(_require, "a PNG or SVG figure", "matplotlib.figure", "'specx[plot]'")
require_plotext = partial(_require, "a plot in the terminal", "plotext", "plotext")
