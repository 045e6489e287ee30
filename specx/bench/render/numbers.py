"""The words around the tables of a bench: numbers, floor, definitions, settings, warnings.

Lines come out without control characters; a name in the bench may say anything.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import UTC, datetime
from typing import TypeVar

from specx.bench.modes import WITNESSES
from specx.bench.schema import (
    Bench,
    BenchRow,
    DraftFacts,
    Floor,
    PresetFacts,
    PublishedRow,
    TargetFacts,
)
from specx.errors import size as rounded_size

T = TypeVar("T")
#: Shown where nothing was measured.
NOTHING = "–"

# With more lengths, a line for each would push the tables off the first screen.
_FEW_LENGTHS = 4
_MOST_DIFFERENCES = 5
_SEPARATOR = " · "
_DOUBT = "?"  # beside a published number that cannot be right
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def plain_text(value: object, limit: int = 160) -> str:
    """``value`` on one line: without escape sequences, control and format characters."""
    signs = _ESCAPE.sub("", " ".join(str(value).split()))
    text = "".join(sign for sign in signs if unicodedata.category(sign)[0] != "C")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
    """``1 document``, ``5 documents``."""
    return f"{many:,} {noun}" if many == 1 else f"{many:,} {noun}s"


def moment(created: str) -> str:
    """``2026-11-22 15:00 UTC``."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return plain_text(created, 40)


def baseline_name(bench: Bench) -> str:
    """The mode that speed-ups are over; "" if the bench has none."""
    return plain_text(bench.plan.baseline or "", 40)


def preset_names(bench: Bench) -> str:
    """``pocket, large`` for a title."""
    return ", ".join(plain_text(preset.name, 40) for preset in bench.plan.presets)


def has_presets(bench: Bench) -> bool:
    """Whether there are several, so that each must be named."""
    return len(bench.plan.presets) > 1


def hardware(bench: Bench) -> str:
    """``NVIDIA H100`` or ``AMD EPYC, 2 threads``."""
    if bench.env.gpu:
        return plain_text(bench.env.gpu)
    return f"{plain_text(bench.env.cpu or bench.env.device)}, {count(bench.env.threads, 'thread')}"


def program(bench: Bench) -> str:
    """``0.1.0 (abc1234)``."""
    commit = bench.specx.commit
    return f"{bench.specx.version} ({commit})" if commit else bench.specx.version


def headline(bench: Bench) -> tuple[str, str]:
    """The first of the largest speed-ups as a sentence, and how sure that is.

    Witnesses compete for nothing.
    """
    ranked = [
        (row, row.summary.speedup)
        for row in bench.cells
        if row.summary.speedup and row.mode not in WITNESSES
    ]
    if not ranked:
        return "No speed-up to report", ""
    row, speedup = max(ranked, key=lambda each: each[1].value)
    mode, baseline, ratio = plain_text(row.mode, 40), baseline_name(bench), times(speedup.value)
    of = f" ({plain_text(row.preset, 40)})" if has_presets(bench) else ""
    place = f"at {row.length:,} prompt tokens{of}"
    line = f"{mode} decodes {ratio[:-1]} times as fast as {baseline} {place}"
    if speedup.value < 1:
        line = f"Nothing decodes faster than {baseline}; {mode} comes nearest, {ratio} {place}"
    documents = count(row.summary.documents, "document")
    low, high = speedup.low, speedup.high
    if low is None or high is None:
        return line, f"Measured on {documents}, so without an interval."
    unsure = ", which includes 1: no clear difference" if low <= 1 <= high else ""
    interval = f"95 % interval {low:.2f} to {high:.2f}{unsure}."
    return line, f"Geometric mean over {documents}; {interval}"


def equality(bench: Bench) -> tuple[int, int]:
    """Runs whose tokens are those of plain decoding, of the runs that were compared."""
    found = [row.summary.equal for row in bench.cells if row.summary.equal]
    return sum(one.equal for one in found), sum(one.checked for one in found)


def stand_in_lines(bench: Bench) -> list[str]:
    """What must precede every number that was measured on stand-in weights."""
    facts = [preset.stand_in for preset in bench.plan.presets]
    texts = [plain_text(each.about, 400) for each in facts if each]
    return [text[:1].upper() + text[1:] for text in texts]


def stand_in_label(bench: Bench) -> str:
    """``stand-in weights`` for a title; "" where all weights are the checkpoints' own."""
    return "stand-in weights" if stand_in_lines(bench) else ""


def floor_lines(bench: Bench) -> list[str]:
    """The least time that this machine allows: said before anything measured.

    A line for every preset and length, or with many lengths three lines a preset.
    """
    lines: list[str] = []
    for preset in bench.plan.presets:
        floors = [floor for floor in bench.floors if floor.preset == preset.name]
        label = f"floor {plain_text(preset.name)} " if has_presets(bench) else "floor "
        if len(floors) <= _FEW_LENGTHS:
            lines += [f"{label}{floor.length:,}: {_floor(floor)}" for floor in floors]
            continue
        decode = [f"{floor.length:,}: {number(per_second(floor.step_s))}" for floor in floors]
        prefill = [f"{floor.length:,}: {number(prefill_rate(floor))}" for floor in floors]
        flop_rate, bandwidth = _machine(floors[0])
        lines += [
            f"{label}on {bandwidth} and {flop_rate}, tok/s at each prompt length",
            f"  plain decode {_SEPARATOR.join(decode)}",
            f"  prefill {_SEPARATOR.join(prefill)}",
        ]
    return lines


def _floor(floor: Floor) -> str:
    flop_rate, bandwidth = _machine(floor)
    cause = f"{_amount(floor.step_bytes, 'B')} over {bandwidth}"
    if floor.bound == "compute":
        cause = f"{_amount(floor.step_flop, 'FLOP')} over {flop_rate}"
    return (
        f"{milliseconds(floor.step_s * 1e3)} ms a token = "
        f"{number(per_second(floor.step_s))} tok/s plain ({cause})"
        f"{_SEPARATOR}prefill {number(prefill_rate(floor))} tok/s "
        f"({_amount(floor.prefill_flop, 'FLOP')} over {flop_rate})"
    )


def _machine(floor: Floor) -> tuple[str, str]:
    return _amount(floor.rate_flop_s, "FLOP/s"), _amount(floor.bandwidth_bytes_s, "B/s")


def per_second(value_s: float) -> float:
    """A rate from a time; 0 where there is no time."""
    return 1 / value_s if value_s else 0.0


def prefill_rate(floor: Floor) -> float:
    """Prompt tokens a second at most."""
    return floor.length * per_second(floor.prefill_s)


def _amount(value: float, unit: str) -> str:
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
    lines = [
        "prefill = prompt tokens / prefill time of target and draft; "
        "decode = (new tokens - 1) / decode time; "
        "overall (end to end) = new tokens / total time",
        "rates are medians over runs; loading and warm-up are excluded",
        "speed-up = geometric mean over documents of the decode rate over that of "
        f"{baseline_name(bench) or 'a baseline'} on the same document; in brackets its 95 % "
        "interval, by a paired bootstrap over documents (none for a single document)",
        "acc/step = draft tokens kept a step, bonus token excluded; "
        "tok/step = that + 1 (plain = 1)",
        "floor = the least time that this machine's measured bandwidth and matmul rate allow; "
        "decode/floor and prefill/floor = how many times that long it took",
        f"equal = runs with exactly the tokens of plain decoding, of the runs compared; "
        f"{NOTHING} = not compared",
        "peak = high mark of the allocator (GPU) or of the process (CPU)",
    ]
    if any(row.summary.energy_j_per_token is not None for row in bench.cells):
        lines.append("J/token = energy of the whole GPU while decoding / (new tokens - 1)")
    if any(row.summary.profile_ms for row in bench.cells):
        lines.append(
            "profile = milliseconds of a verify step, mean over all steps; draft n = the draft's "
            "forward at tree level n; tree = choosing guesses; ms/token = total / (tok/step)"
        )
    lines += [
        f"{name} = {meaning}" for name, meaning in WITNESSES.items() if name in bench.plan.modes
    ]
    return [*lines, *_paper_definitions(bench)]


def _paper_definitions(bench: Bench) -> list[str]:
    """Whose the published numbers are, how they were counted, and which of them are doubtful."""
    rows, plan = bench.paper, bench.plan
    if not rows:
        return []
    origins = dict.fromkeys((row.source, row.device, row.data) for row in rows)
    lines = [f"paper = {', '.join(plain_text(each) for each in origin)}" for origin in origins]
    lines.append(
        "paper's tok/s = new tokens / total time, the prefill included: compare it with overall, "
        "not with decode; its speed-up is that rate over its own plain decoding on its device"
    )
    if not all(row.same_data for row in rows):
        lines.append(f"the texts here are others: {plain_text(plan.data.name)}")
    baseline = baseline_name(bench) or NOTHING
    lines.append(f"overall speed-up is over {baseline}; {plan.max_tokens:,} new tokens")
    lines += [  # rows that have no prompt length, and so no row in the table
        f"paper, {plain_text(row.data)} without a prompt length, {plain_text(row.mode)}: "
        f"{row.tokens_per_step:.2f} tok/step, {number(row.tok_s)} tok/s"
        for row in rows
        if row.length is None
    ]
    reasons = dict.fromkeys(row.reason for row in rows if row.suspect)
    return lines + [f"{_DOUBT} = suspect: {plain_text(reason)}" for reason in reasons]


def doubt(row: PublishedRow) -> str:
    """The mark beside a number of ``row`` that cannot be right."""
    return f" {_DOUBT}" if row.suspect else ""


def settings(bench: Bench) -> list[str]:
    """Hardware, versions, models, data, date: what the numbers hold for."""
    env, plan = bench.env, bench.plan
    driver = f", driver {env.driver}" if env.driver else ""
    versions = (
        f"specx {program(bench)}",
        f"CUDA {env.cuda}{driver}" if env.cuda else "",
        f"torch {env.torch}",
        f"transformers {env.transformers}" if env.transformers else "",
        f"Python {env.python}",
        env.os,
    )
    lines = [
        _join((hardware(bench), plan.device, plan.dtype)),
        _join(versions),
        *(preset_line(preset) for preset in plan.presets),
        _data_line(bench),
        _join((moment(bench.created), f"took {duration(bench.elapsed_s)}")),
        *left_out(bench),
    ]
    return [plain_text(line, 400) for line in lines]


def preset_line(preset: PresetFacts) -> str:
    """``pocket: target … · draft … · sdpa kernels``."""
    target, draft = preset.target, preset.draft
    shape_of = "stand-in weights in the shape of " if preset.stand_in else ""
    parts = [f"{preset.name}: target {shape_of}{_model(target)} {target.dtype}"]
    if draft.kind != "none":
        trained = draft.trained_context_tokens
        extent = f", trained at {trained:,} tokens" if trained else ""
        parts.append(f"draft {_model(draft) or draft.kind} ({draft.kind}{extent})")
    return _join([*parts, f"{preset.kernels} kernels" if preset.kernels else ""])


def _model(model: TargetFacts | DraftFacts) -> str:
    repo = model.repo or ""
    return f"{repo}@{model.revision[:12]}" if model.revision else repo


def _data_line(bench: Bench) -> str:
    plan, sampling = bench.plan, bench.plan.sampling
    documents = [row.summary.documents for row in bench.cells] or [0]
    low, high = min(documents), max(documents)
    unusual = [
        f"{each.name} {getattr(sampling, each.name)}"
        for each in fields(sampling)
        if each.name != "seed" and getattr(sampling, each.name) != each.default
    ]
    return _join(
        (
            f"data {plan.data.name}: {count(len(plan.data.documents), 'document')}",
            f"n = {low if low == high else f'{low} to {high}'} a row",
            count(plan.reps, "repetition"),
            f"{plan.warmup} warm-up",
            f"up to {count(plan.max_tokens, 'new token')}"
            f"{', end of text ignored' if plan.ignore_eos else ''}",
            f"{', '.join(unusual) if sampling.temperature else 'greedy'}, seed {sampling.seed}",
        )
    )


def left_out(bench: Bench) -> list[str]:
    """What was skipped or not run, counted by reason; nothing if nothing was."""
    lines = []
    skipped = [text.reason for text in bench.plan.data.skipped]
    missing = [each.reason for each in bench.missing]
    if skipped:
        lines.append(f"skipped {count(len(skipped), 'text')}: {_tally(skipped)}")
    if missing or not bench.finished:
        what = f"missing {count(len(missing), 'run')}: {_tally(missing)}" if missing else ""
        lines.append(_join(("" if bench.finished else "stopped early", what)))
    return lines


def _tally(reasons: Iterable[str], most: int = 5) -> str:
    found = Counter(plain_text(reason) for reason in reasons).most_common()
    parts = [f"{reason} ({many})" for reason, many in found[:most]]
    return ", ".join([*parts, "…"] if len(found) > most else parts)


def warning_lines(bench: Bench) -> list[str]:
    """Texts that differ from plain decoding first, then the warnings with their advice."""
    lines = [_difference(bench, row) for row in bench.cells if row.summary.is_unequal]
    if len(lines) > _MOST_DIFFERENCES:
        more = len(lines) - _MOST_DIFFERENCES
        lines[_MOST_DIFFERENCES:] = [f"NOT EQUAL in {count(more, 'further row')}"]
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


def _join(parts: Iterable[object]) -> str:
    return _SEPARATOR.join(str(part) for part in parts if part)
