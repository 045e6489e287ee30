"""A bench as one self-contained HTML page.

In: a bench. Out: the text of a page that loads nothing, runs one script of its own and carries its
data. It does not know files or the network; matplotlib is used if present, else bars of the page's
own take the place of its panels.

Names in a bench are hostile: the template escapes every value, and what is put in unescaped is
made here: style, script, the figure's SVG and the data, in which no ``<`` is left.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, TypeVar

from specx.bench.render.figure import (
    GREY,
    METRICS,
    has_lengths,
    limits,
    looks,
    most_documents,
    panel_svg,
    reference_label,
    require_matplotlib,
    series,
    shown_modes,
)
from specx.bench.render.numbers import (
    NOTHING,
    count,
    definitions,
    document_name,
    duration,
    equality,
    hardware,
    has_presets,
    headline,
    headline_details,
    left_out,
    milliseconds,
    moment,
    number,
    per_second,
    plain_text,
    prefill_rate,
    preset_line,
    program,
    size,
    stand_in_label,
    stand_in_lines,
    warning_lines,
)
from specx.bench.render.tables import (
    TableModel,
    main_table,
    memory_table,
    paper_table,
    profile_bars,
    profile_table,
)
from specx.bench.schema import Bench, BenchDocument, BenchRow, Floor, Sample
from specx.errors import UsageError

T = TypeVar("T")
# A header and a cell's text; text to the left has a header that begins with "<".
_Column = tuple[str, Callable[[T], str]]
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
    page = environment.from_string(template)
    return page.render(
        **_content(bench),
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


def _content(bench: Bench) -> dict[str, Any]:
    names = ", ".join(plain_text(preset.name, 40) for preset in bench.plan.presets)
    warnings = warning_lines(bench)
    samples = _samples(bench)
    documents = _documents(bench)
    kicker = (
        "specx bench",
        names,
        stand_in_label(bench),
        hardware(bench),
        moment(bench.created),
    )
    return {
        "title": f"specx bench: {names}",
        "kicker": " · ".join(filter(None, kicker)),
        "headline": headline(bench),
        "lead": _lead(bench),
        "warnings": warnings,
        "warnings_label": count(len(warnings), "warning"),
        "floor": _cells(_floor(bench)),
        "figure": _figure(bench),
        "main": _cells(main_table(bench)),
        "paper": _cells(paper_table(bench)),
        "memory": _cells(memory_table(bench)),
        "profile": _cells(profile_table(bench)),
        "stacks": _stacks(bench),
        "samples": _cells(samples),
        "samples_label": f"All {count(len(samples.rows), 'run')}",
        "plan": _plan(bench),
        "documents": _cells(documents),
        "documents_label": count(len(documents.rows), "document"),
        "environment": _environment(bench),
        "definitions": definitions(bench),
        "version": plain_text(bench.specx.version),
    }


def _lead(bench: Bench) -> list[dict[str, Any]]:
    equal, checked = equality(bench)
    texts = count(checked, "compared text")
    lines = [(f"{line}.", True) for line in stand_in_lines(bench)]
    lines.append((headline_details(bench), False))
    if checked and equal == checked:
        lines.append((f"Every one of {texts} is that of plain decoding.", False))
    elif checked:
        verb = "differs" if checked - equal == 1 else "differ"
        lines.append((f"{checked - equal} of {texts} {verb} from plain decoding.", True))
    if not bench.finished:
        lines.append((f"Stopped early: {count(len(bench.missing), 'run')} missing.", False))
    return [{"text": text, "is_alarm": is_alarm} for text, is_alarm in lines if text]


def _cells(table: TableModel) -> dict[str, Any]:
    """A table as the template walks it."""
    header = [
        {"text": text.strip(), "align": align}
        for text, align in zip(table.header, table.align, strict=True)
    ]
    rows = [
        {
            "is_break": r in table.group_breaks,
            "cells": [
                {"text": text, "align": align, "is_alarm": (r, c) in table.alarms}
                for c, (text, align) in enumerate(zip(row, table.align, strict=True))
            ],
        }
        for r, row in enumerate(table.rows)
    ]
    return {"title": table.title, "header": header, "rows": rows}


def _table(title: str, columns: Sequence[_Column[T]], items: Iterable[T]) -> TableModel:
    """Texts to the left, numbers to the right, as the header's first sign says."""
    return TableModel(
        title=title,
        header=tuple(header.lstrip("<") for header, _ in columns),
        rows=[tuple(text(item) for _, text in columns) for item in items],
        align=tuple("left" if header.startswith("<") else "right" for header, _ in columns),
    )


def _floor(bench: Bench) -> TableModel:
    columns: list[_Column[Floor]] = [
        ("prompt", lambda floor: f"{floor.length:,}"),
        ("a step\nms", lambda floor: milliseconds(floor.step_s * 1e3)),
        ("plain at most\ntok/s", lambda floor: number(per_second(floor.step_s))),
        ("<limited by", lambda floor: floor.bound),
        ("prefill at most\ntok/s", lambda floor: number(prefill_rate(floor))),
        ("bandwidth\nGB/s", lambda floor: number(floor.bandwidth_bytes_s / 1e9)),
        ("rate\nTFLOP/s", lambda floor: number(floor.rate_flop_s / 1e12)),
    ]
    if has_presets(bench):  # a single one is named on the page's first line
        columns.insert(0, ("<preset", lambda floor: plain_text(floor.preset, 40)))
    return _table("Floor", columns, bench.floors)


def _samples(bench: Bench) -> TableModel:
    columns: list[_Column[Sample]] = [
        ("prompt", lambda run: f"{run.cell.length:,}"),
        ("<mode", lambda run: plain_text(run.cell.mode, 40)),
        ("<document", lambda run: document_name(bench, run.cell.document)),
        ("rep.", lambda run: str(run.cell.rep)),
        ("prompt\ntokens", lambda run: f"{run.prompt_tokens:,}"),
        ("new\ntokens", lambda run: f"{run.new_tokens:,}"),
        ("<end", lambda run: run.finish_reason),
        ("prefill\ns", lambda run: f"{run.prefill_target_s + run.prefill_draft_s:.3f}"),
        ("first token\ns", lambda run: f"{run.ttft_s:.3f}"),
        ("decode\ns", lambda run: f"{run.decode_s:.3f}"),
        ("total\ns", lambda run: f"{run.total_s:.3f}"),
        ("steps", lambda run: _whole(run.steps)),
        ("accepted", lambda run: _whole(run.accepted)),
        ("peak", lambda run: size(run.memory.peak)),
        ("<equal", lambda run: {None: NOTHING, True: "yes", False: "NO"}[run.equal]),
    ]
    if has_presets(bench):
        columns.insert(0, ("<preset", lambda run: plain_text(run.cell.preset, 40)))
    return _table("Samples", columns, [run for row in bench.cells for run in row.samples])


def _documents(bench: Bench) -> TableModel:
    columns: list[_Column[BenchDocument]] = [
        ("<name", lambda document: plain_text(document.name)),
        ("characters", lambda document: f"{document.characters:,}"),
        ("<sha256", lambda document: document.sha256),
    ]
    return _table("Documents", columns, bench.plan.data.documents)


def _whole(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


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
    ]
    pairs += [("pair", preset_line(preset)) for preset in plan.presets]
    pairs += [("left out", line) for line in left_out(bench)]
    return [(name, plain_text(value, 400)) for name, value in pairs]


def _environment(bench: Bench) -> list[tuple[str, str]]:
    pairs = [
        ("hardware", hardware(bench)),
        ("specx", program(bench)),
        *((name, value) for name, value in bench.env if value is not None),
        ("dtype", bench.plan.dtype),
        ("date", moment(bench.created)),
        ("took", duration(bench.elapsed_s)),
    ]
    return [(name, plain_text(value, 200)) for name, value in pairs]


def _figure(bench: Bench) -> dict[str, Any]:
    """Panels, legend and a note on how to read them."""
    has_matplotlib = True
    try:
        require_matplotlib()
    except UsageError:
        has_matplotlib = False
    notes = [f"Dashed: {reference_label(bench)}"]
    if most_documents(bench) > 1:
        shown = "bars: 95 % interval by a paired bootstrap over documents"
        hidden = "without intervals, which need matplotlib to be drawn"
        notes.append(shown if has_matplotlib else hidden)
    return {
        "panels": _panels(bench, has_matplotlib),
        "legend": _legend(bench, has_matplotlib),
        "note": f"{'; '.join(notes)}.",
    }


def _panels(bench: Bench, has_matplotlib: bool) -> list[dict[str, Any]]:
    if not shown_modes(bench):
        return []
    rows = []
    for r, preset in enumerate(preset.name for preset in bench.plan.presets):
        panels = []
        for metric, title in METRICS.items():
            panel: dict[str, Any] = {"title": title, "svg": None, "groups": []}
            if has_matplotlib:
                title = f"{title} of {plain_text(preset, 40)} over prompt tokens"
                panel["svg"] = _inline(panel_svg(bench, preset, metric), f"p{r}{metric}", title)
            else:
                panel |= _bars(bench, preset, metric)
            panels.append(panel)
        rows.append(
            {"name": plain_text(preset, 40) if has_presets(bench) else "", "panels": panels}
        )
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


def _bars(bench: Bench, preset: str, metric: str) -> dict[str, Any]:
    found, look = series(bench, preset, metric), looks(bench)
    _, high = limits(bench, preset, metric)
    groups = []
    for length in bench.plan.lengths:
        bars = [
            {
                "name": look[one.mode].name,
                "color": look[one.mode].color,
                "value": f"{one.marks[length].value:.2f}",
                "percent": f"{100 * one.marks[length].value / high:.1f}",
            }
            for one in found
            if length in one.marks
        ]
        if bars:
            groups.append({"label": f"{length:,} prompt tokens", "bars": bars})
    return {"groups": groups, "one_percent": f"{100 / high:.1f}"}


def _legend(bench: Bench, has_matplotlib: bool) -> list[dict[str, Any]]:
    """A sign on a line for matplotlib's figure, a patch for bars; rows of a dot plot are named."""
    look = looks(bench)
    items = [
        {
            "name": look[mode].name,
            "color": look[mode].color,
            "style": _BORDERS[look[mode].repeat % len(_BORDERS)] if has_matplotlib else "",
            "sign": _SIGNS[look[mode].index % len(_SIGNS)],
        }
        for mode in (shown_modes(bench) if has_lengths(bench) or not has_matplotlib else [])
    ]
    reference = {"name": reference_label(bench), "color": GREY, "style": "dashed", "sign": ""}
    return [*items, reference]


def _stacks(bench: Bench) -> dict[str, Any]:
    """A stacked bar for every profile, under a heading for every preset and length."""
    cells = [row for row in bench.cells if row.summary.profile_ms]
    bars: list[dict[str, Any]] = []
    last = ""
    for cell, (_, segments) in zip(cells, profile_bars(bench, 1000), strict=True):
        preset = f"{plain_text(cell.preset, 40)}, " if has_presets(bench) else ""
        heading = f"{preset}{cell.length:,} prompt tokens"
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
                "name": plain_text(cell.mode, 40),
                "parts": parts,
                "value": _yield(cell, sum(ms for _, _, ms in segments)),
            }
        )
        last = heading
    phases = [{"name": name, "color": color} for name, color in _PHASE_COLORS.items()]
    return {"bars": bars, "phases": phases}


def _yield(cell: BenchRow, step_ms: float) -> str:
    """``5.27 ms / 4.10 tok = 1.29 ms a token``."""
    tokens = cell.summary.tokens_per_step
    if not tokens or tokens.value == 1:
        return f"{milliseconds(step_ms)} ms a token"
    each = milliseconds(step_ms / tokens.value)
    return f"{milliseconds(step_ms)} ms / {tokens.value:.2f} tok = {each} ms a token"
