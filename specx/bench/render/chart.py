"""What the plots of a bench show, whoever draws them: panels of series, and how modes look."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from specx.bench.render.numbers import baseline_name, plain_text
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


@dataclass(frozen=True, slots=True)
class Look:
    """How a mode differs from the others. ``index``: its place in the plan, for a marker.

    Modes of one ``color`` differ in ``repeat``, 0, 1, …
    """

    name: str
    color: str
    index: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Series:
    """One mode: what was measured by prompt length, ascending."""

    look: Look
    marks: Mapping[int, Interval]


@dataclass(frozen=True, slots=True)
class Panel:
    """One metric of one preset. The limits hold all values, intervals and 1."""

    metric: str
    title: str
    series: list[Series]
    low: float
    high: float

    @property
    def lengths(self) -> list[int]:
        """All lengths of the series, ascending."""
        return sorted({length for one in self.series for length in one.marks})


@dataclass(frozen=True, slots=True)
class Chart:
    """``rows``: a preset's name and its panels. ``looks``: of modes with a value in some panel.

    ``has_lengths``: several, so that there is a line to draw. ``documents``: of the row with the
    most. ``reference``: what the line at 1 is.
    """

    rows: list[tuple[str, list[Panel]]]
    looks: list[Look]
    has_lengths: bool
    documents: int
    reference: str


def chart_of(bench: Bench) -> Chart:
    """All that is to be drawn, in the plan's order of presets and modes."""
    looks = looks_of(bench.plan.modes)
    rows = [(each.name, _panels(bench, each.name, looks)) for each in bench.plan.presets]
    drawn = {one.look.index for _, panels in rows for panel in panels for one in panel.series}
    baseline = baseline_name(bench)
    return Chart(
        rows=rows,
        looks=[look for look in looks.values() if look.index in drawn],
        has_lengths=len({row.length for row in bench.cells}) > 1,
        documents=max((row.summary.documents for row in bench.cells), default=0),
        reference="plain = 1" if baseline in ("", "plain") else f"speed of {baseline} = 1",
    )


def _panels(bench: Bench, preset: str, looks: Mapping[str, Look]) -> list[Panel]:
    found = {metric: list(_series(bench, preset, metric, looks)) for metric in METRICS}
    speedups = found["speedup"] + found["end_to_end_speedup"]
    return [
        Panel(metric, title, series, *_limits(speedups if "speedup" in metric else series))
        for (metric, title), series in zip(METRICS.items(), found.values(), strict=True)
    ]


def _series(bench: Bench, preset: str, metric: str, looks: Mapping[str, Look]) -> Iterator[Series]:
    """Modes with a value; plain decoding's one token a step is the line at 1 and no series."""
    for mode, look in looks.items():
        marks = {
            row.length: mark
            for row in sorted(bench.cells, key=lambda row: row.length)
            if (row.preset, row.mode) == (preset, mode) and (mark := getattr(row.summary, metric))
        }
        if marks and (metric, mode) != ("tokens_per_step", "plain"):
            yield Series(look, marks)


def _limits(series: Sequence[Series]) -> tuple[float, float]:
    """1 is off the frame, so that being below it can be seen."""
    marks = [mark for one in series for mark in one.marks.values()]
    ends = [end for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
    low, high = min([1.0, *ends]), max([1.0, *ends])
    room = 0.07 * (high - low) or 0.1
    return low - room, high + room


def looks_of(modes: Sequence[str]) -> dict[str, Look]:
    """Mode → look: a usual mode keeps its colour, the others take what is free, then repeat."""
    chosen = {mode: _USUAL[mode] for mode in modes if mode in _USUAL}
    free = [color for color in _PALETTE if color not in chosen.values()]
    for mode in modes:
        if mode not in chosen:
            free = free or list(_PALETTE)
            chosen[mode] = free.pop(0)
    return {
        mode: Look(
            name=plain_text(mode, 40),
            color=chosen[mode],
            index=index,
            repeat=[chosen[name] for name in modes[:index]].count(chosen[mode]),
        )
        for index, mode in enumerate(modes)
    }


def length_label(length: int) -> str:
    """``16K`` for 16384; a length that is no multiple of 1024 stays a number."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def require_matplotlib() -> None:
    """Raises ``UsageError`` with the command to install it; to be asked before a long run."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise _needs("a PNG or SVG figure needs matplotlib", "'specx[plot]'", error) from error


def require_plotext() -> None:
    """As ``require_matplotlib``."""
    try:
        import plotext  # noqa: F401
    except ImportError as error:
        raise _needs("a plot in the terminal needs plotext", "plotext", error) from error


def _needs(what: str, package: str, error: ImportError) -> UsageError:
    reason = str(error).split("\n")[0]
    return UsageError(what, reason=reason, hints=[f"pip install {package}"])
