"""What a plot of a bench shows: lines, limits, colours and signs.

In: a ``specx.bench/1`` object. Out: numbers and names to draw. It does not know who draws them.
"""

from dataclasses import dataclass

from specx.bench.record import Object
from specx.bench.render.numbers import baseline_name, plain_text, preset_names

#: Key in a cell's summary → title of its panel.
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


@dataclass(frozen=True, slots=True)
class Series:
    """One mode over lengths. ``lows`` and ``highs`` are None where there is no interval."""

    mode: str
    lengths: tuple[int, ...]
    values: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """How a mode is told from the others. ``index``: its place in the plan, for a marker.

    Modes of one ``color`` differ in ``repeat``, 0, 1, …
    """

    name: str
    color: str
    index: int
    repeat: int


def series(bench: Object, preset: str, metric: str) -> list[Series]:
    """What a panel shows, in the plan's order of modes; modes without a value are left out.

    Plain decoding's one token a step is the line at 1 and no series.
    """
    found = []
    for mode in bench["plan"]["modes"]:
        points = [
            (cell["length"], cell["summary"][metric])
            for cell in bench["cells"]
            if cell["preset"] == preset and cell["mode"] == mode and cell["summary"][metric]
        ]
        if points and not (metric == "tokens_per_step" and mode == "plain"):
            points.sort(key=lambda point: point[0])
            marks = [mark for _, mark in points]
            found.append(
                Series(
                    mode,
                    tuple(length for length, _ in points),
                    tuple(mark["value"] for mark in marks),
                    tuple(mark["low"] for mark in marks),
                    tuple(mark["high"] for mark in marks),
                )
            )
    return found


def lengths(found: list[Series]) -> list[int]:
    """All lengths of the series, ascending."""
    return sorted({length for one in found for length in one.lengths})


def limits(bench: Object, preset: str, metric: str) -> tuple[float, float]:
    """All values and intervals, and 1 off the frame, so that being below it can be seen.

    Both speed-ups have one scale: they are read against each other.
    """
    together = [name for name in METRICS if name.endswith("speedup")]
    marks = [1.0]
    for name in together if metric in together else [metric]:
        for one in series(bench, preset, name):
            marks += [mark for mark in (*one.values, *one.lows, *one.highs) if mark is not None]
    room = 0.07 * (max(marks) - min(marks)) or 0.1
    return min(marks) - room, max(marks) + room


def looks(bench: Object) -> dict[str, Look]:
    """Mode → look: a usual mode keeps its colour, the others take what is free, then repeat."""
    modes = bench["plan"]["modes"]
    chosen = {mode: _USUAL[mode] for mode in modes if mode in _USUAL}
    free = [color for color in _PALETTE if color not in chosen.values()]
    for mode in modes:
        if mode not in chosen:
            chosen[mode] = free.pop(0)
        free = free or list(_PALETTE)
    return {
        mode: Look(
            name=plain_text(mode, 40),
            color=chosen[mode],
            index=index,
            repeat=[chosen[name] for name in modes[:index]].count(chosen[mode]),
        )
        for index, mode in enumerate(modes)
    }


def shown_modes(bench: Object) -> list[str]:
    """Modes with a value in some panel, in the plan's order."""
    drawn = {
        one.mode
        for preset in preset_names(bench)
        for metric in METRICS
        for one in series(bench, preset, metric)
    }
    return [mode for mode in bench["plan"]["modes"] if mode in drawn]


def reference_label(bench: Object) -> str:
    """What the line at 1 is: the baseline, or with another baseline than plain its speed."""
    baseline = baseline_name(bench)
    return f"speed of {baseline} = 1" if baseline not in ("", "plain") else "plain = 1"


def length_label(length: int) -> str:
    """``16K`` for 16384; a length that is no multiple of 1024 stays a number."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"
