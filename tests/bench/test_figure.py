"""Figures and terminal plots of a bench."""

import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from specx.bench.render import chart, figure
from specx.bench.render.numbers import plain_text
from specx.bench.render.tables import profiles
from specx.bench.render.terminal_plot import step_bars, terminal_plot
from specx.errors import UsageError
from tests.bench.hostile import MODE, hostile_bench
from tests.bench.objects import bench_object, edited

ALL = ("plain", "spec", "specx", "auto", "lookup", "standard", "standard+flash", "hf")


@pytest.fixture
def matplotlib() -> Any:
    return pytest.importorskip("matplotlib")


@pytest.fixture
def plotext() -> Any:
    return pytest.importorskip("plotext")


def texts_of(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]


@pytest.mark.usefixtures("matplotlib")
def test_png_and_svg_are_what_they_say() -> None:
    bench = bench_object()
    assert figure.figure_bytes(bench, "png").startswith(b"\x89PNG\r\n\x1a\n")
    texts = texts_of(figure.figure_bytes(bench, "svg").decode())
    assert {"1K", "2K", "spec", "specx", "plain = 1", "decode speed-up"} <= set(texts)
    assert "specx bench: pocket" in texts
    assert any("paired bootstrap" in text for text in texts)


@pytest.mark.usefixtures("matplotlib")
def test_equal_benches_give_equal_bytes() -> None:
    for kind in ("png", "svg"):
        first, second = (figure.figure_bytes(bench_object(), kind) for _ in range(2))
        assert first == second
        assert b"dc:date" not in first


def test_a_users_settings_are_put_back_and_change_nothing(matplotlib: Any) -> None:
    plain = figure.figure_bytes(bench_object(), "svg")
    with matplotlib.rc_context({"font.size": 30.0, "axes.grid": False, "svg.hashsalt": "mine"}):
        assert figure.figure_bytes(bench_object(), "svg") == plain
        kept = matplotlib.rcParams["font.size"], matplotlib.rcParams["svg.hashsalt"]
    assert kept == (30.0, "mine")


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    "shape",
    [
        {"lengths": (1024,)},
        {"lengths": (1000, 2048), "presets": ("pocket", "large")},
        {"modes": ALL},
        {"documents": 1},
        {"modes": ("plain",)},
    ],
)
def test_figure_of_any_shape(shape: dict[str, Any]) -> None:
    svg = figure.figure_bytes(bench_object(**shape), "svg").decode()
    titles = [text for text in texts_of(svg) if text.endswith("tokens a step")]
    assert len(titles) == len(shape.get("presets", ("pocket",)))


@pytest.mark.usefixtures("matplotlib")
def test_an_empty_bench_is_an_empty_figure() -> None:
    bench = edited(bench_object(), lambda each: each.update(cells=[]))
    assert texts_of(figure.figure_bytes(bench, "svg").decode())


@pytest.mark.usefixtures("matplotlib")
def test_names_are_neither_formulas_nor_markup() -> None:
    bench = hostile_bench()
    texts = texts_of(figure.figure_bytes(bench, "svg").decode())
    assert plain_text(MODE, 40) in texts
    assert figure.figure_bytes(bench, "png")


def test_series_are_the_summaries() -> None:
    bench = bench_object()
    ((preset, (decode, overall, _)),) = chart.chart_of(bench).rows
    assert preset == ""  # a single one needs no name
    assert [look.name for look in decode.series] == ["spec", "specx"]
    summaries = [row.summary.speedup for row in bench.cells if row.mode == "specx"]
    assert [*decode.series.values()][1] == dict(zip((1024, 2048), summaries, strict=True))
    assert (decode.low, decode.high) == (overall.low, overall.high)
    assert decode.low < 1
    assert decode.high > max(summary.high for summary in summaries if summary and summary.high)


def test_every_mode_looks_different() -> None:
    looks = chart.looks_of((*ALL, "a", "b", "c", "d"))
    assert len({(look.color, look.repeat) for look in looks.values()}) == len(looks)
    assert looks["specx"].color == chart.BLUE
    assert looks["plain"].color == chart.GREY


@pytest.mark.parametrize("length", [1024, 16384, 1000])
def test_length_label(length: int) -> None:
    assert chart.length_label(length) == {1024: "1K", 16384: "16K", 1000: "1,000"}[length]


@pytest.mark.usefixtures("plotext")
@pytest.mark.parametrize("width", [40, 79, 100, 131])
@pytest.mark.parametrize("lengths", [(1024,), (1024, 4096, 16384)])
def test_terminal_plot_keeps_its_width(width: int, lengths: tuple[int, ...]) -> None:
    bench = bench_object(modes=ALL, lengths=lengths, presets=("pocket", "large"))
    plain = terminal_plot(bench, width, 12, color=False)
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= width
    colored = terminal_plot(bench, width, 12, color=True)
    stripped = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", colored).splitlines()]
    assert stripped == plain.splitlines()
    assert "\x1b[48" not in colored  # the terminal's own background stays


@pytest.mark.usefixtures("plotext")
def test_terminal_plot_shows_signs_and_legend() -> None:
    lines = terminal_plot(bench_object(), 80, 14, color=False).splitlines()
    assert len(lines) == 29
    assert lines[-1] == "x spec   + specx   ─ plain = 1"
    assert lines[0].strip() == "decode speed-up"
    assert lines[14].strip() == "tokens a step"
    panel = "\n".join(lines[1:13])
    assert panel.count("x") == panel.count("+") == 2


def test_plotext_is_left_clean(plotext: Any) -> None:
    empty = plotext.figure.clear().build().string(colorless=True)
    limit = list(plotext.terminal._limit)
    first = terminal_plot(bench_object(), 90, 12, color=True)
    assert plotext.figure.build().string(colorless=True) == empty
    assert plotext.terminal._limit == limit
    assert terminal_plot(bench_object(), 90, 12, color=True) == first


@pytest.mark.usefixtures("plotext")
def test_terminal_plot_of_little() -> None:
    bench = bench_object(modes=("plain", "spec"))
    little = [row for row in bench.cells if (row.mode, row.length) != ("spec", 2048)]
    bench = bench.model_copy(update={"cells": little})
    assert "x" in terminal_plot(bench, 60, 10, color=False)
    assert terminal_plot(bench.model_copy(update={"cells": []}), 60, 10, color=False)


@pytest.mark.parametrize("width", [20, 35, 52, 90])
def test_bars_of_a_step_scale_with_the_longest(width: int) -> None:
    bench = bench_object()
    *rows, legend = step_bars(bench, width, color=False).splitlines()
    while len(rows) > len(bench.cells):  # a narrow legend has several rows
        legend = f"{rows.pop()} {legend}"
    assert [row[:13].strip() for row in rows][:3] == ["1,024 plain", "1,024 spec", "1,024 specx"]
    assert " ".join(legend.split()).startswith("█ draft 1 ▓ draft 2 ▒ draft 3+ ")
    totals_ms = [sum(phases.values()) for _, phases in profiles(bench)]
    room = max(10, min(60, width - 13))
    assert [len(row[13:]) for row in rows] == [
        round(room * total_ms / max(totals_ms)) for total_ms in totals_ms
    ]
    for row, (_, phases) in zip(rows, profiles(bench), strict=True):
        exact = room * phases["verify"] / max(totals_ms)
        assert abs(row.count("▚") - exact) <= 1.01


@pytest.mark.parametrize(
    ("module", "check", "draw", "hint"),
    [
        (
            "matplotlib",
            chart.require_matplotlib,
            lambda bench: figure.figure_bytes(bench, "png"),
            "pip install 'specx[plot]'",
        ),
        (
            "plotext",
            chart.require_plotext,
            lambda bench: terminal_plot(bench, 80, 10, color=False),
            "pip install plotext",
        ),
    ],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, check: Any, draw: Any, hint: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"needs {module}") as caught:
        check()
    assert caught.value.hints == (hint,)
    with pytest.raises(UsageError):
        draw(bench_object())
