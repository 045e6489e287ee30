"""The pictures of the page: panels from matplotlib or bars of the page's own, and stacked bars.

In: a ``specx.bench/1`` object. Out: plain values for the template, and SVG that is safe to be put
into a page as it is. It does not know the page around them.
"""

import re
from typing import Any

from specx.bench.record import Object
from specx.bench.render.numbers import milliseconds, plain_text, preset_names
from specx.bench.render.plots import panel_svg, require_matplotlib
from specx.bench.render.series import (
    GREY,
    METRICS,
    limits,
    looks,
    reference_label,
    series,
    shown_modes,
)
from specx.bench.render.tables import profile_bars
from specx.errors import UsageError

# As in plots: the same order of markers and of dashes.
_SIGNS = "●■◆▲▼✚✖★◀▶⬟⬢"
_BORDERS = ("solid", "dashed", "dotted")
_PHASE_COLORS = {
    "draft 1": "#56B4E9",
    "draft 2": "#2F93CC",
    "draft 3+": "#0072B2",
    "tree": "#CC79A7",
    "verify": "#E69F00",
    "accept": "#D55E00",
    "commit": "#8C6D31",
    "retrieve": "#009E73",
    "host": "#8A8F96",
}


def figure(bench: Object) -> dict[str, Any]:
    """Panels, legend and a note on how to read them."""
    has_matplotlib = True
    try:
        require_matplotlib()
    except UsageError:
        has_matplotlib = False
    notes = [f"Dashed: {reference_label(bench)}"]
    if max((cell["summary"]["documents"] for cell in bench["cells"]), default=0) > 1:
        shown = "bars: 95 % interval by a paired bootstrap over documents"
        hidden = "without intervals, which need matplotlib to be drawn"
        notes.append(shown if has_matplotlib else hidden)
    return {
        "panels": _panels(bench, has_matplotlib),
        "legend": _legend(bench, has_matplotlib),
        "note": f"{'; '.join(notes)}.",
    }


def _panels(bench: Object, has_matplotlib: bool) -> list[dict[str, Any]]:
    presets = preset_names(bench)
    if not shown_modes(bench):
        return []
    rows = []
    for r, preset in enumerate(presets):
        panels = []
        for metric, title in METRICS.items():
            panel: dict[str, Any] = {"title": title, "svg": None, "groups": []}
            if has_matplotlib:
                title = f"{title} of {plain_text(preset, 40)} over prompt tokens"
                panel["svg"] = _inline(panel_svg(bench, preset, metric), f"p{r}{metric}", title)
            else:
                panel |= _bars(bench, preset, metric)
            panels.append(panel)
        rows.append({"name": plain_text(preset, 40) if len(presets) > 1 else "", "panels": panels})
    return rows


def _inline(svg: str, prefix: str, title: str) -> Any:
    """matplotlib's element made fit for a page that holds several.

    Its namespaces, its style for every element and its fixed size go; ids that are referred to
    are made the page's own, the others go.
    """
    from markupsafe import Markup, escape

    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", svg
    )
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg)
    view = re.search(r'viewBox="[\d. -]+"', svg)
    start = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(title)}">'
    return Markup(start + svg[svg.index(">") + 1 :].strip())


def _bars(bench: Object, preset: str, metric: str) -> dict[str, Any]:
    found, look = series(bench, preset, metric), looks(bench)
    _, high = limits(bench, preset, metric)
    groups = []
    for length in bench["plan"]["lengths"]:
        bars = [
            {
                "name": look[one.mode].name,
                "color": look[one.mode].color,
                "value": f"{one.values[one.lengths.index(length)]:.2f}",
                "percent": f"{100 * one.values[one.lengths.index(length)] / high:.1f}",
            }
            for one in found
            if length in one.lengths
        ]
        if bars:
            groups.append({"label": f"{length:,} prompt tokens", "bars": bars})
    return {"groups": groups, "one_percent": f"{100 / high:.1f}"}


def _legend(bench: Object, has_matplotlib: bool) -> list[dict[str, Any]]:
    """A sign on a line for matplotlib's figure, a patch for bars; rows of a dot plot are named."""
    look = looks(bench)
    is_over_length = len({cell["length"] for cell in bench["cells"]}) > 1
    items = [
        {
            "name": look[mode].name,
            "color": look[mode].color,
            "style": _BORDERS[look[mode].repeat % len(_BORDERS)] if has_matplotlib else "",
            "sign": _SIGNS[look[mode].index % len(_SIGNS)],
        }
        for mode in (shown_modes(bench) if is_over_length or not has_matplotlib else [])
    ]
    reference = {"name": reference_label(bench), "color": GREY, "style": "dashed", "sign": ""}
    return [*items, reference]


def stacks(bench: Object) -> dict[str, Any]:
    """A stacked bar for every profile, under a heading for every preset and length."""
    several = len(preset_names(bench)) > 1
    cells = [cell for cell in bench["cells"] if cell["summary"]["profile_ms"]]
    bars: list[dict[str, Any]] = []
    last = ""
    for cell, (_, segments) in zip(cells, profile_bars(bench, 1000), strict=True):
        preset = f"{plain_text(cell['preset'], 40)}, " if several else ""
        heading = f"{preset}{cell['length']:,} prompt tokens"
        parts = [
            {
                "percent": f"{share / 10:.1f}",
                "color": _PHASE_COLORS[name],
                "title": f"{name} {milliseconds(ms)} ms",
            }
            for name, share, ms in segments
            if share
        ]
        bars.append(
            {
                "heading": heading if heading != last else "",
                "name": plain_text(cell["mode"], 40),
                "parts": parts,
                "value": _yield(cell, sum(ms for _, _, ms in segments)),
            }
        )
        last = heading
    phases = [{"name": name, "color": color} for name, color in _PHASE_COLORS.items()]
    return {"bars": bars, "phases": phases}


def _yield(cell: Object, step_ms: float) -> str:
    """``5.27 ms / 4.10 tok = 1.29 ms a token``."""
    tokens = cell["summary"]["tokens_per_step"]
    if not tokens or tokens["value"] == 1:
        return f"{milliseconds(step_ms)} ms a token"
    each = milliseconds(step_ms / tokens["value"])
    return f"{milliseconds(step_ms)} ms / {tokens['value']:.2f} tok = {each} ms a token"
