"""A bench as one self-contained HTML page, which loads nothing and carries its data.

Names in a bench are hostile: every value of the template is cleaned and escaped. What is put in
as markup is made here: style, script and the figure's SVG.
"""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

from specx.bench.render import chart as charts
from specx.bench.render import numbers, tables
from specx.bench.render.figure import panel_svg
from specx.bench.schema import Bench
from specx.errors import UsageError


def to_html(bench: Bench) -> str:
    from markupsafe import Markup

    folder = files("specx.bench.render")
    js, css = ((folder / f"page.{kind}").read_text("utf-8").strip() for kind in ("js", "css"))
    chart = charts.chart_of(bench)
    try:
        charts.require_matplotlib()
        draw = _svg
    except UsageError:
        draw = None  # bars then
    return numbers.filled(
        "page.html",
        bench,
        tables=tables,
        is_alarm=lambda cell: isinstance(cell, tables.Alarm),
        chart=chart,
        draw=draw,
        colors=charts.PHASE_COLORS,
        steps=[(row, phases, sum(phases.values())) for row, phases in tables.profiles(bench)],
        policy=_policy(js),
        css=Markup(css),
        js=Markup(js),
    )


def _policy(js: str) -> str:
    """Nothing may be loaded; one script may run, ours."""
    digest = base64.b64encode(hashlib.sha256(js.encode("utf-8")).digest()).decode("ascii")
    style = "style-src 'unsafe-inline'"  # widths of bars and the figure's own marks
    sources = f"default-src 'none'; script-src 'sha256-{digest}'; {style}; img-src data:"
    return f"{sources}; base-uri 'none'; form-action 'none'"


def _svg(panel: charts.Panel, prefix: str, preset: str) -> Any:
    """matplotlib's element made fit for a page that holds several: its namespaces and its style
    for every element go, its ids are made the page's own, its size is the page's matter."""
    from markupsafe import Markup, escape

    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", panel_svg(panel), count=1, flags=re.DOTALL
    )
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}", svg)
    label = escape(f"{panel.title} of {preset} over prompt tokens")
    view = re.search(r'viewBox="[\d. -]+"', svg)
    start = f'<svg {view[0] if view else ""} role="img" aria-label="{label}">'
    return Markup(start + svg[svg.index(">") + 1 :].strip())
