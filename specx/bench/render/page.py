"""A bench as one self-contained HTML page.

In: a ``specx.bench/1`` object. Out: the text of a page that loads nothing, runs one script of its
own and carries its data. It does not know files or the network; matplotlib is used if present.

Names in the object are hostile: the template escapes every value, and what is put in unescaped is
made here: style, script, the figure's SVG and the data, in which no ``<`` is left.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any

from specx.bench.record import Object
from specx.bench.render.numbers import (
    NOTHING,
    count,
    definitions,
    document_name,
    duration,
    equality,
    hardware,
    headline,
    headline_details,
    left_out,
    milliseconds,
    moment,
    number,
    per_second,
    plain_text,
    preset_line,
    preset_names,
    size,
    stand_in_label,
    stand_in_lines,
    warning_lines,
)
from specx.bench.render.page_figures import figure, stacks
from specx.bench.render.paper import paper_lines, paper_table
from specx.bench.render.tables import TableModel, main_table, memory_table, profile_table

# The plan's and the samples' tables belong to the page alone: a terminal has no room for them.
_Column = tuple[str, Callable[[Object], str]]


def to_html(bench: Object) -> str:
    """The page. Raises no error for want of matplotlib: bars of its own stand in for the figure."""
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


def _data(bench: Object) -> str:
    """JSON in which no markup can begin or end, whatever a name says."""
    text = json.dumps(bench, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _content(bench: Object) -> dict[str, Any]:
    names = ", ".join(plain_text(name, 40) for name in preset_names(bench))
    warnings = warning_lines(bench)
    samples = _samples(bench)
    documents = _documents(bench)
    kicker = (
        "specx bench",
        names,
        stand_in_label(bench),
        hardware(bench),
        moment(bench["created"]),
    )
    return {
        "title": f"specx bench: {names}",
        "kicker": " · ".join(filter(None, kicker)),
        "headline": headline(bench),
        "lead": _lead(bench),
        "warnings": warnings,
        "warnings_label": count(len(warnings), "warning"),
        "floor": _cells(_floor(bench)),
        "figure": figure(bench),
        "main": _cells(main_table(bench)),
        "paper": _cells(paper_table(bench)),
        "memory": _cells(memory_table(bench)),
        "profile": _cells(profile_table(bench)),
        "stacks": stacks(bench),
        "samples": _cells(samples),
        "samples_label": f"All {count(len(samples.rows), 'run')}",
        "plan": _plan(bench),
        "documents": _cells(documents),
        "documents_label": count(len(documents.rows), "document"),
        "environment": _environment(bench),
        "definitions": [*definitions(bench), *paper_lines(bench)],
        "version": plain_text(bench["specx"]["version"]),
    }


def _lead(bench: Object) -> list[dict[str, Any]]:
    equal, checked = equality(bench)
    texts = count(checked, "compared text")
    lines = [{"text": f"{line}.", "is_alarm": True} for line in stand_in_lines(bench)]
    lines.append({"text": headline_details(bench), "is_alarm": False})
    if checked and equal == checked:
        lines.append(
            {"text": f"Every one of {texts} is that of plain decoding.", "is_alarm": False}
        )
    elif checked:
        verb = "differs" if checked - equal == 1 else "differ"
        text = f"{checked - equal} of {texts} {verb} from plain decoding."
        lines.append({"text": text, "is_alarm": True})
    if not bench["finished"]:
        missing = count(len(bench["missing"]), "run")
        lines.append({"text": f"Stopped early: {missing} missing.", "is_alarm": False})
    return [line for line in lines if line["text"]]


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


def _table(title: str, columns: Sequence[_Column], items: Iterable[Object]) -> TableModel:
    """Texts to the left, numbers to the right, as the header's first sign says."""
    return TableModel(
        title=title,
        header=tuple(header.lstrip("<") for header, _ in columns),
        rows=[tuple(text(item) for _, text in columns) for item in items],
        align=tuple("left" if header.startswith("<") else "right" for header, _ in columns),
    )


def _preset_column(bench: Object, name: Callable[[Object], str]) -> list[_Column]:
    """Where there is a single preset, the page's first line names it."""
    if len(preset_names(bench)) < 2:
        return []
    return [("<preset", lambda item: plain_text(name(item), 40))]


def _floor(bench: Object) -> TableModel:
    columns: list[_Column] = [
        *_preset_column(bench, lambda floor: floor["preset"]),
        ("prompt", lambda floor: f"{floor['length']:,}"),
        ("a step\nms", lambda floor: milliseconds(floor["step_s"] * 1e3)),
        ("plain at most\ntok/s", lambda floor: number(per_second(floor["step_s"]))),
        ("<limited by", lambda floor: plain_text(floor["bound"], 20)),
        (
            "prefill at most\ntok/s",
            lambda floor: number(floor["length"] * per_second(floor["prefill_s"])),
        ),
        ("bandwidth\nGB/s", lambda floor: number(floor["bandwidth_bytes_s"] / 1e9)),
        ("rate\nTFLOP/s", lambda floor: number(floor["rate_flop_s"] / 1e12)),
    ]
    return _table("Floor", columns, bench["floors"])


def _samples(bench: Object) -> TableModel:
    columns: list[_Column] = [
        *_preset_column(bench, lambda run: run["cell"]["preset"]),
        ("prompt", lambda run: f"{run['cell']['length']:,}"),
        ("<mode", lambda run: plain_text(run["cell"]["mode"], 40)),
        ("<document", lambda run: document_name(bench, run["cell"]["document"])),
        ("rep.", lambda run: str(run["cell"]["rep"])),
        ("prompt\ntokens", lambda run: f"{run['prompt_tokens']:,}"),
        ("new\ntokens", lambda run: f"{run['new_tokens']:,}"),
        ("<end", lambda run: plain_text(run["finish_reason"])),
        ("prefill\ns", lambda run: f"{run['prefill_target_s'] + run['prefill_draft_s']:.3f}"),
        ("first token\ns", lambda run: f"{run['ttft_s']:.3f}"),
        ("decode\ns", lambda run: f"{run['decode_s']:.3f}"),
        ("total\ns", lambda run: f"{run['total_s']:.3f}"),
        ("steps", lambda run: _whole(run["steps"])),
        ("accepted", lambda run: _whole(run["accepted"])),
        ("peak", lambda run: size(run["memory"]["peak"])),
        ("<equal", lambda run: {None: NOTHING, True: "yes", False: "NO"}[run["equal"]]),
    ]
    runs = [run for cell in bench["cells"] for run in cell["samples"]]
    return _table("Samples", columns, runs)


def _documents(bench: Object) -> TableModel:
    columns: list[_Column] = [
        ("<name", lambda document: plain_text(document["name"])),
        ("characters", lambda document: f"{document['characters']:,}"),
        ("<sha256", lambda document: plain_text(document["sha256"], 70)),
    ]
    return _table("Documents", columns, bench["plan"]["data"]["documents"])


def _whole(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _plan(bench: Object) -> list[tuple[str, str]]:
    plan = bench["plan"]
    sampling = ", ".join(f"{key} {value:g}" for key, value in plan["sampling"].items())
    pairs = [
        ("modes", ", ".join(plan["modes"])),
        ("baseline", plan["baseline"] or "none"),
        ("prompt tokens", ", ".join(f"{length:,}" for length in plan["lengths"])),
        ("data", f"{plan['data']['name']}, {count(len(plan['data']['documents']), 'document')}"),
        ("repetitions", f"{plan['reps']}, after {plan['warmup']} to warm up"),
        ("new tokens", f"up to {plan['max_tokens']:,}"),
        ("end of text", "ignored" if plan["ignore_eos"] else "ends a run"),
        ("compared with plain", "yes" if plan["verify"] else "no"),
        ("sampling", sampling),
    ]
    pairs += [("pair", preset_line(preset)) for preset in plan["presets"]]
    pairs += [("left out", line) for line in left_out(bench)]
    return [(name, plain_text(value, 400)) for name, value in pairs]


def _environment(bench: Object) -> list[tuple[str, str]]:
    specx = bench["specx"]
    commit = f" ({specx['commit']})" if specx["commit"] else ""
    pairs = [
        ("hardware", hardware(bench)),
        ("specx", f"{specx['version']}{commit}"),
        *((name, value) for name, value in bench["env"].items() if value is not None),
        ("dtype", bench["plan"]["dtype"]),
        ("date", moment(bench["created"])),
        ("took", duration(bench["elapsed_s"])),
    ]
    return [(name, plain_text(value, 200)) for name, value in pairs]
