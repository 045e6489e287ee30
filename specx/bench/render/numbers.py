"""The words around the tables of a bench: numbers, floor, definitions, settings, warnings.

In: a ``specx.bench/1`` object. Out: plain lines and short strings without control characters; a
name in the object may say anything. It does not know tables, files or the screen.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from specx.bench.modes import WITNESSES
from specx.bench.record import Object

#: Stands where nothing was measured.
NOTHING = "–"

# From here on a line for every length would push the tables off the first screen.
_FEW_LENGTHS = 4
_MOST_DIFFERENCES = 5
_SEPARATOR = " · "
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def plain_text(value: object, limit: int = 160) -> str:
    """``value`` on one line: without escape sequences, control and format characters."""
    signs = _ESCAPE.sub("", " ".join(str(value).split()))
    text = "".join(sign for sign in signs if unicodedata.category(sign)[0] != "C")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: float) -> str:
    """``4,900``, ``47.5``, ``0.42``."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.995 or value == 0 else f"{value:.2f}"


def times(value: float) -> str:
    """A ratio: ``2.13x``, ``12.4x``."""
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x"


def size(value_bytes: float) -> str:
    """``612 MiB`` or ``1.2 GiB``."""
    mib = value_bytes / 2**20
    if mib < 1000:
        return f"{mib:,.0f} MiB" if mib >= 9.95 or mib == 0 else f"{mib:.1f} MiB"
    return f"{mib / 1024:,.1f} GiB"


def milliseconds(value_ms: float) -> str:
    """Milliseconds without the unit: ``0.42``, ``8.13``, ``48.2``, ``1,204``."""
    if value_ms >= 99.95:
        return f"{value_ms:,.0f}"
    return f"{value_ms:.1f}" if value_ms >= 9.995 else f"{value_ms:.2f}"


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


def preset_names(bench: Object) -> list[str]:
    """Names of the presets, in the order of the plan."""
    return [str(preset["name"]) for preset in bench["plan"]["presets"]]


def baseline_name(bench: Object) -> str:
    """The mode that speed-ups are over; "" if the bench has none."""
    return plain_text(bench["plan"]["baseline"] or "", 40)


def hardware(bench: Object) -> str:
    """``NVIDIA H100`` or ``AMD EPYC, 2 threads``."""
    env = bench["env"]
    if env["gpu"]:
        return plain_text(env["gpu"])
    cpu = plain_text(env["cpu"] or env["device"])
    return f"{cpu}, {count(env['threads'], 'thread')}" if env["threads"] else cpu


def headline(bench: Object) -> str:
    """The largest speed-up as a sentence; witnesses compete for nothing."""
    best = best_cell(bench)
    baseline = baseline_name(bench)
    if best is None:
        return "No speed-up to report"
    value, mode = best["summary"]["speedup"]["value"], plain_text(best["mode"], 40)
    several = f" ({plain_text(best['preset'], 40)})" if len(preset_names(bench)) > 1 else ""
    place = f"at {best['length']:,} prompt tokens{several}"
    if value < 1:
        return (
            f"Nothing decodes faster than {baseline}; {mode} comes nearest, {times(value)} {place}"
        )
    return f"{mode} decodes {times(value)[:-1]} times as fast as {baseline} {place}"


def headline_details(bench: Object) -> str:
    """How sure the headline is."""
    best = best_cell(bench)
    if best is None:
        return ""
    found = best["summary"]["speedup"]
    documents = count(best["summary"]["documents"], "document")
    if found["low"] is None or found["high"] is None:
        return f"Measured on {documents}, so without an interval."
    unsure = ", which includes 1: no clear difference" if found["low"] <= 1 <= found["high"] else ""
    interval = f"{found['low']:.2f} to {found['high']:.2f}{unsure}"
    return f"Geometric mean over {documents}; 95 % interval {interval}."


def best_cell(bench: Object) -> Object | None:
    """The cell with the largest speed-up of decoding; None where nothing was compared."""
    cells = [
        cell
        for cell in bench["cells"]
        if cell["summary"]["speedup"] and cell["mode"] not in WITNESSES
    ]
    return max(cells, key=lambda cell: float(cell["summary"]["speedup"]["value"]), default=None)


def equality(bench: Object) -> tuple[int, int]:
    """Runs whose tokens are those of plain decoding, of the runs that were compared."""
    found = [cell["summary"]["equal"] for cell in bench["cells"] if cell["summary"]["equal"]]
    return sum(one["equal"] for one in found), sum(one["checked"] for one in found)


def stand_in_lines(bench: Object) -> list[str]:
    """What must stand above every number that was measured on stand-in weights."""
    facts = [preset.get("stand_in") for preset in bench["plan"]["presets"]]
    texts = [plain_text(each["about"], 400) for each in facts if each]
    return [text[:1].upper() + text[1:] for text in texts]


def stand_in_label(bench: Object) -> str:
    """``stand-in weights`` for a title; "" where all weights are the checkpoints' own."""
    return "stand-in weights" if stand_in_lines(bench) else ""


def floor_lines(bench: Object) -> list[str]:
    """The least time that this machine allows: said before anything measured.

    A line for every preset and length, or with many lengths three lines a preset.
    """
    several = len(preset_names(bench)) > 1
    lines: list[str] = []
    for name in preset_names(bench):
        floors = [floor for floor in bench["floors"] if floor["preset"] == name]
        label = f"floor {plain_text(name)} " if several else "floor "
        if len(floors) <= _FEW_LENGTHS:
            lines += [f"{label}{floor['length']:,}: {_floor(floor)}" for floor in floors]
        else:
            lines += _compact_floors(label, floors)
    return lines


def _floor(floor: Object) -> str:
    per_s = floor["length"] * per_second(floor["prefill_s"])
    prefill = f"{_amount(floor['prefill_flop'], 'FLOP')} over {_flop_rate(floor)}"
    step_s = floor["step_s"]
    return (
        f"{milliseconds(step_s * 1e3)} ms a token = {number(per_second(step_s))} tok/s plain "
        f"({_step_cause(floor)}){_SEPARATOR}prefill {number(per_s)} tok/s ({prefill})"
    )


def _compact_floors(label: str, floors: Sequence[Object]) -> list[str]:
    decode = [f"{floor['length']:,}: {number(per_second(floor['step_s']))}" for floor in floors]
    prefill = [
        f"{floor['length']:,}: {number(floor['length'] * per_second(floor['prefill_s']))}"
        for floor in floors
    ]
    bandwidth = _amount(floors[0]["bandwidth_bytes_s"], "B/s")
    return [
        f"{label}on {bandwidth} and {_flop_rate(floors[0])}, tok/s at each prompt length",
        f"  plain decode {_SEPARATOR.join(decode)}",
        f"  prefill {_SEPARATOR.join(prefill)}",
    ]


def per_second(value_s: float) -> float:
    """A rate from a time; 0 where there is no time."""
    return 1 / value_s if value_s else 0.0


def _step_cause(floor: Object) -> str:
    if floor["bound"] == "compute":
        return f"{_amount(floor['step_flop'], 'FLOP')} over {_flop_rate(floor)}"
    bandwidth = _amount(floor["bandwidth_bytes_s"], "B/s")
    return f"{_amount(floor['step_bytes'], 'B')} over {bandwidth}"


def _flop_rate(floor: Object) -> str:
    return _amount(floor["rate_flop_s"], "FLOP/s")


def _amount(value: float, unit: str) -> str:
    """Decimal steps, as data sheets count: ``117 MB``, ``0.21 TFLOP``, ``1.0 TFLOP/s``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        # a tenth of the next unit reads better than hundreds of this one, but only for FLOP
        if value >= (factor / 10 if unit.startswith("FLOP") else factor):
            scaled = value / factor
            digits = 0 if scaled >= 9.95 else 1 if scaled >= 0.95 else 2
            return f"{scaled:,.{digits}f} {letter}{unit}"
    return f"{value:,.0f} {unit}"


def definitions(bench: Object) -> list[str]:
    """What every column means, one line each; only of what this bench shows."""
    baseline = baseline_name(bench)
    lines = [
        "prefill = prompt tokens / prefill time of target and draft; "
        "decode = (new tokens - 1) / decode time; "
        "overall (end to end) = new tokens / total time",
        "rates are medians over runs; loading and warm-up are excluded",
        "speed-up = geometric mean over documents of the decode rate over that of "
        f"{baseline or 'a baseline'} on the same document; in brackets its 95 % interval, by a "
        "paired bootstrap over documents (none for a single document)",
        "acc/step = draft tokens kept a step, bonus token excluded; "
        "tok/step = that + 1 (plain = 1)",
        "floor = the least time that this machine's measured bandwidth and matmul rate allow; "
        "decode/floor and prefill/floor = how many times that long it took",
        f"equal = runs with exactly the tokens of plain decoding, of the runs compared; "
        f"{NOTHING} = not compared",
        "peak = high mark of the allocator (GPU) or of the process (CPU)",
    ]
    summaries = [cell["summary"] for cell in bench["cells"]]
    if any(summary["energy_j_per_token"] is not None for summary in summaries):
        lines.append("J/token = energy of the whole GPU while decoding / (new tokens - 1)")
    if any(summary["profile_ms"] for summary in summaries):
        lines.append(
            "profile = milliseconds of a verify step, mean over all steps; draft n = the draft's "
            "forward at tree level n; tree = choosing guesses; ms/token = total / (tok/step)"
        )
    modes = bench["plan"]["modes"]
    lines += [f"{name} = {meaning}" for name, meaning in WITNESSES.items() if name in modes]
    return lines


def settings(bench: Object) -> list[str]:
    """Hardware, versions, models, data, date: what the numbers hold for."""
    env, specx, plan = bench["env"], bench["specx"], bench["plan"]
    commit = f" ({specx['commit']})" if specx["commit"] else ""
    versions = [
        f"specx {specx['version']}{commit}",
        f"torch {env['torch']}",
        f"transformers {env['transformers']}" if env["transformers"] else "",
        f"Python {env['python']}",
        env["os"],
    ]
    if env["cuda"]:
        driver = f", driver {env['driver']}" if env["driver"] else ""
        versions.insert(1, f"CUDA {env['cuda']}{driver}")
    lines = [
        f"{hardware(bench)}{_SEPARATOR}{plan['device']}{_SEPARATOR}{plan['dtype']}",
        _join(versions),
        *(preset_line(preset) for preset in plan["presets"]),
        _data_line(bench),
        _join([moment(bench["created"]), f"took {duration(bench['elapsed_s'])}"]),
    ]
    lines += left_out(bench)
    return [plain_text(line, 400) for line in lines]


def preset_line(preset: Object) -> str:
    """``pocket: target … · draft … · sdpa kernels``."""
    target, draft = preset["target"], preset["draft"]
    shape_of = "stand-in weights in the shape of " if preset.get("stand_in") else ""
    parts = [f"{preset['name']}: target {shape_of}{_model(target)} {target['dtype']}"]
    if draft and draft["kind"] != "none":
        trained = draft.get("trained_context_tokens")
        extent = f", trained at {trained:,} tokens" if trained else ""
        parts.append(f"draft {_model(draft) or draft['kind']} ({draft['kind']}{extent})")
    return _join([*parts, f"{preset['kernels']} kernels" if preset["kernels"] else ""])


def _model(model: Object) -> str:
    repo, revision = model.get("repo") or "", model.get("revision")
    return f"{repo}@{str(revision)[:12]}" if revision else str(repo)


def _data_line(bench: Object) -> str:
    plan = bench["plan"]
    sampling = plan["sampling"]
    drawn = "greedy"
    if sampling["temperature"]:
        names = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        other = [
            f"{name} {sampling[name]}" for name, usual in names.items() if sampling[name] != usual
        ]
        drawn = ", ".join([f"temperature {sampling['temperature']}", *other])
    ends = ", end of text ignored" if plan["ignore_eos"] else ""
    return _join(
        [
            f"data {plan['data']['name']}: {count(len(plan['data']['documents']), 'document')}",
            f"n = {_range([cell['summary']['documents'] for cell in bench['cells']])} a row",
            count(plan["reps"], "repetition"),
            f"{plan['warmup']} warm-up",
            f"up to {count(plan['max_tokens'], 'new token')}{ends}",
            f"{drawn}, seed {sampling['seed']}",
        ]
    )


def _range(values: Sequence[int]) -> str:
    if not values:
        return "0"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def left_out(bench: Object) -> list[str]:
    """What was skipped or not run, counted by reason; nothing if nothing was."""
    lines = []
    skipped = [item["reason"] for item in bench["plan"]["data"]["skipped"]]
    missing = [item["reason"] for item in bench["missing"]]
    if skipped:
        lines.append(f"skipped {count(len(skipped), 'text')}: {_tally(skipped)}")
    if missing or not bench["finished"]:
        what = f"missing {count(len(missing), 'run')}: {_tally(missing)}" if missing else ""
        early = "" if bench["finished"] else "stopped early"
        lines.append(_join([early, what]))
    return lines


def _tally(reasons: Iterable[str], most: int = 5) -> str:
    found = Counter(plain_text(reason) for reason in reasons).most_common()
    parts = [f"{reason} ({many})" for reason, many in found[:most]]
    return ", ".join([*parts, "…"] if len(found) > most else parts)


def warning_lines(bench: Object) -> list[str]:
    """Texts that differ from plain decoding first, then the warnings with their advice."""
    lines = [_difference(bench, cell) for cell in bench["cells"] if _differs(cell["summary"])]
    if len(lines) > _MOST_DIFFERENCES:
        more = len(lines) - _MOST_DIFFERENCES
        lines[_MOST_DIFFERENCES:] = [f"NOT EQUAL in {count(more, 'further row')}"]
    told = [item for item in bench["warnings"] if item["code"] != "unequal" or not lines]
    lines += [item["message"] for item in told]
    return [plain_text(line, 600) for line in lines]


def _differs(summary: Object) -> bool:
    equal = summary["equal"]
    return bool(equal) and equal["equal"] < equal["checked"]


def _difference(bench: Object, cell: Object) -> str:
    summary = cell["summary"]
    equal = summary["equal"]
    place = f"{cell['preset']} {cell['mode']} at {cell['length']:,}"
    line = f"NOT EQUAL: {place}: {equal['equal']} of {equal['checked']} texts are those of plain"
    first = summary["first_difference"]
    if not first:
        return line
    margin = "" if first["margin"] is None else f", logit margin {first['margin']:.2g}"
    where = f"{document_name(bench, first['document'])}, repetition {first['rep']}"
    got, expected = (_token(first[key]) for key in ("got", "expected"))
    return f"{line}; first: {where}, token {first['index']} is {got}, not {expected}{margin}"


def _token(token: int | None) -> str:
    return "the end" if token is None else str(token)


def document_name(bench: Object, index: int) -> str:
    """The document's name, or its number when the plan does not list it."""
    documents: list[dict[str, Any]] = bench["plan"]["data"]["documents"]
    return plain_text(documents[index]["name"]) if index < len(documents) else f"document {index}"


def footer(bench: Object) -> list[str]:
    """Everything below the tables but the definitions; warnings come last, to be read."""
    return [*settings(bench), *(f"warning: {line}" for line in warning_lines(bench))]


def _join(parts: Iterable[object]) -> str:
    return _SEPARATOR.join(str(part) for part in parts if part)
