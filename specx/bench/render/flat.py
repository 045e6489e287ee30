"""Every sample of a bench on a line of its own: CSV and JSON lines.

In: a ``specx.bench/1`` object. Out: a whole text of raw values. It does not know tables, files or
how a value was measured.
"""

import csv
import io
import json

from specx.bench.record import PHASES, Object
from specx.bench.render.numbers import document_name, plain_text


def to_csv(bench: Object) -> str:
    """One row a sample, raw values, units in the header; texts are quoted, unknown is empty."""
    out = io.StringIO()
    rows = [_flat(bench, sample) for sample in _samples(bench)]
    if rows:
        writer = csv.DictWriter(
            out, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def _flat(bench: Object, sample: Object) -> Object:
    cell, memory = sample["cell"], sample["memory"]
    energy = sample["energy"] or {}
    phases = sample["phases"] or {}
    row: Object = {
        "preset": plain_text(cell["preset"]),
        "mode": plain_text(cell["mode"]),
        "length_tokens": cell["length"],
        "document": cell["document"],
        "document_name": document_name(bench, cell["document"]),
        "rep": cell["rep"],
        "prompt_tokens": sample["prompt_tokens"],
        "new_tokens": sample["new_tokens"],
        "finish_reason": plain_text(sample["finish_reason"]),
    }
    for key in ("prefill_target_s", "prefill_draft_s", "tune_s", "ttft_s", "decode_s", "total_s"):
        row[key] = sample[key]
    for key in ("steps", "drafted", "accepted", "draft_forwards"):
        row[key] = sample[key]
    for name in PHASES:
        value = phases.get(name)
        row[f"phase_{name}_s"] = sum(value) if isinstance(value, list) else value
    row |= {f"memory_{owner}_bytes": memory[owner] for owner in memory}
    row |= {f"energy_{half}_j": energy.get(half) for half in ("prefill", "decode")}
    row["equal"] = None if sample["equal"] is None else int(sample["equal"])
    row["first_difference_index"] = (sample["first_difference"] or {}).get("index")
    row["mode_reason"] = plain_text(sample["mode_reason"])
    return row


def to_jsonl(bench: Object) -> str:
    """One sample a line, with preset, mode, length, document and repetition at its top level."""
    lines = []
    for sample in _samples(bench):
        cell = sample["cell"]
        rest = {key: value for key, value in sample.items() if key != "cell"}
        name = {"document_name": document_name(bench, cell["document"])}
        # ASCII: what is printed holds no control character, whatever a name says
        lines.append(json.dumps({**cell, **name, **rest}, allow_nan=False) + "\n")
    return "".join(lines)


def _samples(bench: Object) -> list[Object]:
    return [sample for cell in bench["cells"] for sample in cell["samples"]]
