"""The words around the tables of a bench: numbers, floor, definitions, settings, warnings.

Lines come out without control characters; a name in the bench may say anything.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, TypeVar

from specx.bench.modes import WITNESSES
from specx.bench.schema import Bench, BenchRow, Build, PresetFacts
from specx.errors import size as rounded_size

T = TypeVar("T")
#: Shown where nothing was measured.
NOTHING = "–"
_MOST_NAMED = 5  # differences, or reasons
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def plain_text(value: object, limit: int = 160) -> str:
    """``value`` on one line: without escape sequences, control and format characters."""
    signs = _ESCAPE.sub("", " ".join(str(value).split()))
    text = "".join(sign for sign in signs if unicodedata.category(sign)[0] != "C")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def short(name: str) -> str:
    """A name that is no wider than a table's column may be."""
    return plain_text(name, 40)


def known(value: T | None, form: Callable[[T], str]) -> str:
    """``form(value)``, or the sign for what was not measured."""
    return NOTHING if value is None else form(value)


def number(value: float) -> str:
    """``4,900``, ``47.5``, ``0.42``."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.995 or value == 0 else f"{value:.2f}"


def times(value: float) -> str:
    """A ratio: ``2.13x``, ``12.4x``."""
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x"


def size(value_bytes: float) -> str:
    """``612 MiB``, ``1.2 GiB``; below ten MiB ``9.5 MiB``."""
    mib = value_bytes / 2**20
    return rounded_size(value_bytes) if mib >= 9.95 or mib == 0 else f"{mib:.1f} MiB"


def milliseconds(value_ms: float) -> str:
    """Milliseconds without the unit: ``0.42``, ``8.13``, ``48.2``, ``1,204``."""
    return number(value_ms) if value_ms >= 9.995 else f"{value_ms:.2f}"


def duration(value_s: float) -> str:
    """``3.2 s``, ``2 min 05 s``, ``1 h 04 min``."""
    whole = round(value_s)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 120 else f"{value_s:.1f} s"


def count(many: int, noun: str) -> str:
    return f"{many:,} {noun}" if many == 1 else f"{many:,} {noun}s"


def moment(created: str) -> str:
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return short(created)


def joined(parts: Iterable[object], separator: str = " · ") -> str:
    """Those parts that are not empty, in a row."""
    return separator.join(str(part) for part in parts if part)


def baseline_name(bench: Bench) -> str:
    """The mode that speed-ups are over; "" if the bench has none."""
    return short(bench.plan.baseline or "")


def preset_names(bench: Bench) -> str:
    return ", ".join(short(preset.name) for preset in bench.plan.presets)


def has_presets(bench: Bench) -> bool:
    return len(bench.plan.presets) > 1


def hardware(bench: Bench) -> str:
    env = bench.env
    return plain_text(env.gpu or f"{env.cpu or env.device}, {count(env.threads, 'thread')}", 200)


def program(build: Build) -> str:
    commit = f" ({plain_text(build.commit, 20)})" if build.commit else ""
    return f"specx {plain_text(build.version, 40)}{commit}"


def headline(bench: Bench) -> tuple[str, str]:
    """The first of the largest speed-ups as a sentence, and how sure that is; no witness's."""
    speedups = [(row, row.summary.speedup) for row in bench.cells if row.mode not in WITNESSES]
    ranked = [(row, speedup) for row, speedup in speedups if speedup]
    if not ranked:
        return "No speed-up to report", ""
    row, speedup = max(ranked, key=lambda each: each[1].value)
    mode, baseline, ratio = short(row.mode), baseline_name(bench), times(speedup.value)
    of = f" ({short(row.preset)})" if has_presets(bench) else ""
    place = f"at {row.length:,} prompt tokens{of}"
    line = f"{mode} decodes {ratio[:-1]} times as fast as {baseline} {place}"
    if speedup.value < 1:
        line = f"Nothing decodes faster than {baseline}; {mode} comes nearest, {ratio} {place}"
    documents = count(row.summary.documents, "document")
    if speedup.low is None:
        return line, f"Measured on {documents}, so without an interval."
    low, high = speedup.ends
    unsure = ", which includes 1: no clear difference" if low <= 1 <= high else ""
    interval = f"95 % interval {low:.2f} to {high:.2f}{unsure}"
    return line, f"Geometric mean over {documents}; {interval}."


def stand_in_lines(bench: Bench) -> list[str]:
    """What must precede every number that was measured on stand-in weights."""
    presets = bench.plan.presets
    texts = [plain_text(each.stand_in.about, 400) for each in presets if each.stand_in]
    return [f"{text[:1].upper()}{text[1:]}." for text in texts]


def stand_in_label(bench: Bench) -> str:
    return "stand-in weights" if stand_in_lines(bench) else ""


def floor_lines(bench: Bench) -> list[str]:
    """The least time that this machine allows: said before anything measured.

    A line for every preset and length, or with many lengths three lines a preset.
    """
    return [line for line in filled("floor.txt", bench).splitlines() if line]


def amount(value: float, unit: str) -> str:
    """Decimal steps, as data sheets count: ``117 MB``, ``0.21 TFLOP``, ``1.0 TFLOP/s``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        # a tenth of the next unit reads better than hundreds of this one, but only for FLOP
        if value >= (factor / 10 if unit.startswith("FLOP") else factor):
            scaled = value / factor
            digits = 0 if scaled >= 9.95 else 1 if scaled >= 0.95 else 2
            return f"{scaled:,.{digits}f} {letter}{unit}"
    return f"{value:,.0f} {unit}"


def definitions(bench: Bench) -> list[str]:
    """What every column means, one line each; only of what this bench shows."""
    lines = filled("definitions.txt", bench, witnesses=WITNESSES).splitlines()
    return [line for line in dict.fromkeys(lines) if line]


def settings(bench: Bench) -> list[str]:
    """Hardware, versions, models, data, date: what the numbers hold for."""
    sampling = bench.plan.sampling
    values = {each.name: (getattr(sampling, each.name), each.default) for each in fields(sampling)}
    values.pop("seed")
    unusual = ", ".join(f"{key} {is_}" for key, (is_, usual) in values.items() if is_ != usual)
    lines = filled("settings.txt", bench, unusual=unusual).splitlines()
    return [plain_text(line, 400) for line in lines if line]


def filled(name: str, bench: Bench, **values: Any) -> str:
    """A template of this folder about ``bench``; it may call all functions of this module.

    Every value in it is cleaned, and in HTML escaped; what is markup already stays as it is.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=name.endswith(".html"),
        finalize=lambda value: value if isinstance(value, Markup) else plain_text(value, 600),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # nor sorted
    template = (files("specx.bench.render") / name).read_text(encoding="utf-8").strip()
    facts = {"bench": bench, "plan": bench.plan, "env": bench.env}
    return environment.from_string(template, globals()).render(**facts, **values)


def preset_line(preset: PresetFacts) -> str:
    """``pocket: target … · draft … · sdpa kernels``."""
    target, draft = preset.target, preset.draft
    names = [joined((each.repo, (each.revision or "")[:12]), "@") for each in (target, draft)]
    shape_of = "stand-in weights in the shape of " if preset.stand_in else ""
    trained = draft.trained_context_tokens
    extent = f", trained at {trained:,} tokens" if trained else ""
    drafted = f"draft {names[1] or draft.kind} ({draft.kind}{extent})"
    return joined(
        (
            f"{preset.name}: target {shape_of}{names[0]} {target.dtype}",
            drafted if draft.kind != "none" else "",
            f"{preset.kernels} kernels" if preset.kernels else "",
        )
    )


def left_out(bench: Bench) -> list[str]:
    """What was skipped or not run, counted by reason; nothing if nothing was."""
    stopped = "" if bench.finished else "stopped early"
    skipped = _tally("skipped", "text", [text.reason for text in bench.plan.data.skipped])
    missing = _tally("missing", "run", [each.reason for each in bench.missing])
    return [line for line in (skipped, joined((stopped, missing))) if line]


def _tally(what: str, noun: str, reasons: list[str]) -> str:
    parts = [f"{cause} ({n})" for cause, n in Counter(map(plain_text, reasons)).most_common()]
    parts[_MOST_NAMED:] = ["…"] if parts[_MOST_NAMED:] else []
    return f"{what} {count(len(reasons), noun)}: {', '.join(parts)}" if reasons else ""


def warning_lines(bench: Bench) -> list[str]:
    """Texts that differ from plain decoding first, then the warnings with their advice."""
    lines = [_difference(bench, row) for row in bench.cells if row.summary.is_unequal]
    if more := len(lines[_MOST_NAMED:]):
        lines[_MOST_NAMED:] = [f"NOT EQUAL in {count(more, 'further row')}"]
    lines += [each.message for each in bench.warnings if each.code != "unequal" or not lines]
    return [plain_text(line, 600) for line in lines]


def _difference(bench: Bench, row: BenchRow) -> str:
    equal, first = row.summary.equal, row.summary.first_difference
    assert equal is not None
    place = f"{row.preset} {row.mode} at {row.length:,}"
    line = f"NOT EQUAL: {place}: {equal.equal} of {equal.checked} texts are those of plain"
    if not first:
        return line
    margin = "" if first.margin is None else f", logit margin {first.margin:.2g}"
    where = f"{document_name(bench, first.document)}, repetition {first.rep}"
    got, expected = ("the end" if token is None else token for token in (first.got, first.expected))
    return f"{line}; first: {where}, token {first.index} is {got}, not {expected}{margin}"


def document_name(bench: Bench, index: int) -> str:
    """The document's name, or its number when the plan does not list it."""
    documents = bench.plan.data.documents
    return plain_text(documents[index].name) if index < len(documents) else f"document {index}"


def footer(bench: Bench) -> list[str]:
    """Everything below the tables but the definitions; warnings come last, to be read."""
    return [*settings(bench), *(f"warning: {line}" for line in warning_lines(bench))]
