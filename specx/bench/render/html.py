"""A bench as one self-contained HTML page, which loads nothing and carries its data.

Names in a bench are hostile: every value of the template is cleaned and escaped. What is put in
unescaped is made here: style, script, the figure's SVG and the data, in which no ``<`` is left.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import Any

from specx.bench.render import chart as charts
from specx.bench.render import numbers, tables
from specx.bench.render.figure import panel_svg
from specx.bench.schema import Bench
from specx.errors import UsageError


def to_html(bench: Bench) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    js, css, page = (
        (files("specx.bench.render") / name).read_text(encoding="utf-8").strip()
        for name in ("page.js", "page.css", "page.html")
    )

    def clean(value: Any) -> Any:
        """A value of the template without control characters; a header's line breaks stay."""
        if isinstance(value, Markup):
            return value
        return "\n".join(numbers.plain_text(line, 600) for line in str(value).split("\n"))

    environment = Environment(
        autoescape=True,
        finalize=clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chart = charts.chart_of(bench)
    try:
        charts.require_matplotlib()
        draw = partial(_svg, chart)
    except UsageError:
        draw = None  # bars then
    return environment.from_string(page).render(
        bench=bench,
        numbers=numbers,
        tables=tables,
        chart=chart,
        draw=draw,
        colors=charts.PHASE_COLORS,
        steps=[(row, phases, sum(phases.values())) for row, phases in tables.profiles(bench)],
        lead=list(_lead(bench)),
        plan=_plan(bench),
        environment=_environment(bench),
        policy=_policy(js),
        css=Markup(css),
        js=Markup(js),
        data=Markup(_data(bench)),
    )


def _policy(js: str) -> str:
    """Nothing may be loaded; one script may run, ours."""
    digest = base64.b64encode(hashlib.sha256(js.encode("utf-8")).digest()).decode("ascii")
    rules = (
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",  # widths of bars and the figure's own marks
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _data(bench: Bench) -> str:
    """JSON in which no markup can begin or end, whatever a name says."""
    text = json.dumps(bench.as_json(), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _lead(bench: Bench) -> Iterator[tuple[str, bool]]:
    """Sentences, and whether each is an alarm."""
    for line in numbers.stand_in_lines(bench):
        yield line, True
    if how_sure := numbers.headline(bench)[1]:
        yield how_sure, False
    found = [row.summary.equal for row in bench.cells if row.summary.equal]
    checked = sum(one.checked for one in found)
    unequal = checked - sum(one.equal for one in found)
    texts = numbers.count(checked, "compared text")
    if unequal:
        verb = "differs" if unequal == 1 else "differ"
        yield f"{unequal} of {texts} {verb} from plain decoding.", True
    elif checked:
        yield f"Every one of {texts} is that of plain decoding.", False
    if not bench.finished:
        yield f"Stopped early: {numbers.count(len(bench.missing), 'run')} missing.", False


def _plan(bench: Bench) -> list[tuple[str, str]]:
    plan = bench.plan
    return [
        ("modes", ", ".join(plan.modes)),
        ("baseline", plan.baseline or "none"),
        ("prompt tokens", ", ".join(f"{length:,}" for length in plan.lengths)),
        ("data", f"{plan.data.name}, {numbers.count(len(plan.data.documents), 'document')}"),
        ("repetitions", f"{plan.reps}, after {plan.warmup} to warm up"),
        ("new tokens", f"up to {plan.max_tokens:,}"),
        ("end of text", "ignored" if plan.ignore_eos else "ends a run"),
        ("compared with plain", "yes" if plan.verify else "no"),
        ("sampling", ", ".join(f"{key} {value:g}" for key, value in asdict(plan.sampling).items())),
        *(("pair", numbers.preset_line(preset)) for preset in plan.presets),
        *(("left out", line) for line in numbers.left_out(bench)),
    ]


def _environment(bench: Bench) -> list[tuple[str, object]]:
    return [
        ("hardware", numbers.hardware(bench)),
        ("specx", numbers.program(bench.specx).removeprefix("specx ")),
        *((name, value) for name, value in bench.env if value is not None),
        ("dtype", bench.plan.dtype),
        ("date", numbers.moment(bench.created)),
        ("took", numbers.duration(bench.elapsed_s)),
    ]


def _svg(chart: charts.Chart, panel: charts.Panel, prefix: str, preset: str) -> Any:
    """matplotlib's element made fit for a page that holds several: its namespaces and its style
    for every element go, its ids are made the page's own, its size is the page's matter."""
    from markupsafe import Markup, escape

    svg = panel_svg(chart, panel)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}", svg)
    label = escape(f"{panel.title} of {preset} over prompt tokens")
    view = re.search(r'viewBox="[\d. -]+"', svg)
    start = f'<svg {view[0] if view else ""} role="img" aria-label="{label}">'
    return Markup(start + svg[svg.index(">") + 1 :].strip())
