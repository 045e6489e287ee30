"""A bench as one self-contained HTML page, which loads nothing and carries its data.

Names in a bench are hostile: the template escapes every value, and what is put in unescaped is
made here: style, script, the figure's SVG and the data, in which no ``<`` is left.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from itertools import groupby
from typing import Any

from specx.bench.render import numbers, tables
from specx.bench.render.chart import GREY, Chart, Panel, chart_of, require_matplotlib
from specx.bench.render.figure import panel_svg
from specx.bench.render.numbers import NOTHING, count, known, milliseconds, number, plain_text
from specx.bench.render.tables import ColumnOf, TableModel, tabulated
from specx.bench.schema import Bench, BenchDocument, BenchRow, Floor, Sample
from specx.errors import UsageError

# As in figure: the same order of markers and of dashes.
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


def to_html(bench: Bench) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    js, css, template = (_part(name) for name in ("page.js", "page.css", "page.html"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    samples, warnings = _samples(bench), numbers.warning_lines(bench)
    names, documents = numbers.preset_names(bench), bench.plan.data.documents
    kicker = (
        "specx bench",
        names,
        numbers.stand_in_label(bench),
        numbers.hardware(bench),
        numbers.moment(bench.created),
    )
    return environment.from_string(template).render(
        title=f"specx bench: {names}",
        kicker=" · ".join(filter(None, kicker)),
        headline=numbers.headline(bench)[0],
        lead=[(text, is_alarm) for text, is_alarm in _lead(bench) if text],
        warnings=warnings,
        warnings_label=count(len(warnings), "warning"),
        floor=_floor(bench),
        figure=_figure(bench),
        main=tables.main_table(bench),
        paper=tables.paper_table(bench),
        memory=tables.memory_table(bench),
        profile=tables.profile_table(bench),
        phases=_PHASE_COLORS,
        stacks=list(_stacks(bench)),
        samples=samples,
        samples_label=f"All {count(len(samples.rows), 'run')}",
        plan=_plan(bench),
        documents=_documents(bench),
        documents_label=count(len(documents), "document"),
        environment=_environment(bench),
        definitions=numbers.definitions(bench),
        version=plain_text(bench.specx.version),
        policy=_policy(js),
        css=Markup(css),
        js=Markup(js),
        data=Markup(_data(bench)),
    )


def _part(name: str) -> str:
    return (files("specx.bench.render") / name).read_text(encoding="utf-8").strip()


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
        yield f"{line}.", True
    yield numbers.headline(bench)[1], False
    equal, checked = numbers.equality(bench)
    texts = count(checked, "compared text")
    if checked and equal == checked:
        yield f"Every one of {texts} is that of plain decoding.", False
    elif checked:
        verb = "differs" if checked - equal == 1 else "differ"
        yield f"{checked - equal} of {texts} {verb} from plain decoding.", True
    if not bench.finished:
        yield f"Stopped early: {count(len(bench.missing), 'run')} missing.", False


def _floor(bench: Bench) -> TableModel:
    columns: list[ColumnOf[Floor]] = [
        ("prompt", lambda floor: f"{floor.length:,}"),
        ("a step\nms", lambda floor: milliseconds(floor.step_s * 1e3)),
        ("plain at most\ntok/s", lambda floor: number(numbers.per_second(floor.step_s))),
        ("<limited by", lambda floor: floor.bound),
        ("prefill at most\ntok/s", lambda floor: number(numbers.prefill_rate(floor))),
        ("bandwidth\nGB/s", lambda floor: number(floor.bandwidth_bytes_s / 1e9)),
        ("rate\nTFLOP/s", lambda floor: number(floor.rate_flop_s / 1e12)),
    ]
    if numbers.has_presets(bench):  # a single one is named on the page's first line
        columns.insert(0, ("<preset", lambda floor: plain_text(floor.preset, 40)))
    return tabulated("Floor", columns, bench.floors)


def _samples(bench: Bench) -> TableModel:
    columns: list[ColumnOf[Sample]] = [
        ("prompt", lambda run: f"{run.cell.length:,}"),
        ("<mode", lambda run: plain_text(run.cell.mode, 40)),
        ("<document", lambda run: numbers.document_name(bench, run.cell.document)),
        ("rep.", lambda run: str(run.cell.rep)),
        ("prompt\ntokens", lambda run: f"{run.prompt_tokens:,}"),
        ("new\ntokens", lambda run: f"{run.new_tokens:,}"),
        ("<end", lambda run: run.finish_reason),
        ("prefill\ns", lambda run: f"{run.prefill_target_s + run.prefill_draft_s:.3f}"),
        ("first token\ns", lambda run: f"{run.ttft_s:.3f}"),
        ("decode\ns", lambda run: f"{run.decode_s:.3f}"),
        ("total\ns", lambda run: f"{run.total_s:.3f}"),
        ("steps", lambda run: known(run.steps, "{:,}".format)),
        ("accepted", lambda run: known(run.accepted, "{:,}".format)),
        ("peak", lambda run: numbers.size(run.memory.peak)),
        ("<equal", lambda run: {None: NOTHING, True: "yes", False: "NO"}[run.equal]),
    ]
    if numbers.has_presets(bench):
        columns.insert(0, ("<preset", lambda run: plain_text(run.cell.preset, 40)))
    return tabulated("Samples", columns, [run for row in bench.cells for run in row.samples])


def _documents(bench: Bench) -> TableModel:
    columns: list[ColumnOf[BenchDocument]] = [
        ("<name", lambda document: plain_text(document.name)),
        ("characters", lambda document: f"{document.characters:,}"),
        ("<sha256", lambda document: document.sha256),
    ]
    return tabulated("Documents", columns, bench.plan.data.documents)


def _plan(bench: Bench) -> list[tuple[str, str]]:
    plan = bench.plan
    sampling = ", ".join(f"{key} {value:g}" for key, value in asdict(plan.sampling).items())
    pairs = [
        ("modes", ", ".join(plan.modes)),
        ("baseline", plan.baseline or "none"),
        ("prompt tokens", ", ".join(f"{length:,}" for length in plan.lengths)),
        ("data", f"{plan.data.name}, {count(len(plan.data.documents), 'document')}"),
        ("repetitions", f"{plan.reps}, after {plan.warmup} to warm up"),
        ("new tokens", f"up to {plan.max_tokens:,}"),
        ("end of text", "ignored" if plan.ignore_eos else "ends a run"),
        ("compared with plain", "yes" if plan.verify else "no"),
        ("sampling", sampling),
        *(("pair", numbers.preset_line(preset)) for preset in plan.presets),
        *(("left out", line) for line in numbers.left_out(bench)),
    ]
    return [(name, plain_text(value, 400)) for name, value in pairs]


def _environment(bench: Bench) -> list[tuple[str, str]]:
    pairs = [
        ("hardware", numbers.hardware(bench)),
        ("specx", numbers.program(bench)),
        *((name, value) for name, value in bench.env if value is not None),
        ("dtype", bench.plan.dtype),
        ("date", numbers.moment(bench.created)),
        ("took", numbers.duration(bench.elapsed_s)),
    ]
    return [(name, plain_text(value, 200)) for name, value in pairs]


def _figure(bench: Bench) -> dict[str, Any]:
    """Panels, legend and a note on how to read them."""
    has_matplotlib = True
    try:
        require_matplotlib()
    except UsageError:
        has_matplotlib = False
    chart = chart_of(bench)
    note = f"Dashed: {chart.reference}"
    if chart.documents > 1:
        shown = "bars: 95 % interval by a paired bootstrap over documents"
        hidden = "without intervals, which need matplotlib to be drawn"
        note += f"; {shown if has_matplotlib else hidden}"
    rows = []
    for r, (preset, panels) in enumerate(chart.rows if chart.looks else []):
        name = plain_text(preset, 40)
        drawn = [
            {"title": panel.title, "svg": _svg(chart, panel, f"p{r}{panel.metric}", name)}
            if has_matplotlib
            else {"title": panel.title, "svg": None, **_bars(panel)}
            for panel in panels
        ]
        rows.append({"name": name if numbers.has_presets(bench) else "", "panels": drawn})
    return {"panels": rows, "legend": _legend(chart, has_matplotlib), "note": f"{note}."}


def _svg(chart: Chart, panel: Panel, prefix: str, preset: str) -> Any:
    """matplotlib's element made fit for a page that holds several.

    Its namespaces, its style for every element and its fixed size go; ids that are referred to
    are made the page's own, the others go.
    """
    from markupsafe import Markup, escape

    svg = panel_svg(chart, panel)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", svg
    )
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg)
    view = re.search(r'viewBox="[\d. -]+"', svg)
    label = escape(f"{panel.title} of {preset} over prompt tokens")
    start = f'<svg {view[0] if view else ""} role="img" aria-label="{label}">'
    return Markup(start + svg[svg.index(">") + 1 :].strip())


def _bars(panel: Panel) -> dict[str, Any]:
    groups = []
    for length in panel.lengths:
        values = [
            (one.look, one.marks[length].value) for one in panel.series if length in one.marks
        ]
        bars = [(look, f"{value:.2f}", f"{100 * value / panel.high:.1f}") for look, value in values]
        groups.append({"label": f"{length:,} prompt tokens", "bars": bars})
    return {"groups": groups, "one_percent": f"{100 / panel.high:.1f}"}


def _legend(chart: Chart, has_matplotlib: bool) -> list[dict[str, Any]]:
    """A sign on a line for matplotlib's figure, a patch for bars; rows of a dot plot are named."""
    items = [
        {
            "name": look.name,
            "color": look.color,
            "style": _BORDERS[look.repeat % len(_BORDERS)] if has_matplotlib else "",
            "sign": _SIGNS[look.index % len(_SIGNS)],
        }
        for look in (chart.looks if chart.has_lengths or not has_matplotlib else [])
    ]
    return [*items, {"name": chart.reference, "color": GREY, "style": "dashed", "sign": ""}]


def _stacks(bench: Bench) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Stacked bars, one for every profile, under a heading for every preset and length."""
    bars = tables.profile_bars(bench, 1000)
    for (preset, length), group in groupby(bars, lambda bar: (bar[0].preset, bar[0].length)):
        several = f"{plain_text(preset, 40)}, " if numbers.has_presets(bench) else ""
        stack = []
        for row, _, segments in group:
            parts = [
                (f"{share / 10:.1f}", _PHASE_COLORS[name], f"{name} {milliseconds(ms)} ms")
                for name, share, ms in segments
                if share
            ]
            value = _yield(row, sum(ms for _, _, ms in segments))
            stack.append({"name": plain_text(row.mode, 40), "parts": parts, "value": value})
        yield f"{several}{length:,} prompt tokens", stack


def _yield(row: BenchRow, step_ms: float) -> str:
    """``5.27 ms / 4.10 tok = 1.29 ms a token``."""
    tokens = row.summary.tokens_per_step
    if not tokens or tokens.value == 1:
        return f"{milliseconds(step_ms)} ms a token"
    each = milliseconds(step_ms / tokens.value)
    return f"{milliseconds(step_ms)} ms / {tokens.value:.2f} tok = {each} ms a token"
