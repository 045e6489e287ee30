"""Every sample of a bench on a line of its own, as raw values: CSV and JSON lines."""

import csv
import io
import json
from typing import Any

from specx.bench.render.numbers import document_name, plain_text
from specx.bench.schema import PHASES, Bench, Sample


def to_csv(bench: Bench) -> str:
    """One row a sample, raw values, units in the header; texts are quoted, unknown is empty."""
    out = io.StringIO()
    rows = [_flat(bench, sample) for row in bench.cells for sample in row.samples]
    if rows:
        writer = csv.DictWriter(out, rows[0], quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def _flat(bench: Bench, sample: Sample) -> dict[str, Any]:
    cell, phases, energy = sample.cell, sample.phases, sample.energy
    spent_s = {name: getattr(phases, name, None) for name in PHASES}
    if phases is not None:
        spent_s["draft_levels"] = sum(phases.draft_levels)
    names = (
        *("prompt_tokens", "new_tokens", "finish_reason"),
        *("prefill_target_s", "prefill_draft_s", "tune_s", "ttft_s", "decode_s", "total_s"),
        *("steps", "drafted", "accepted", "draft_forwards"),
    )
    return {
        "preset": plain_text(cell.preset),
        "mode": plain_text(cell.mode),
        "length_tokens": cell.length,
        "document": cell.document,
        "document_name": document_name(bench, cell.document),
        "rep": cell.rep,
        **{name: getattr(sample, name) for name in names},
        **{f"phase_{name}_s": value for name, value in spent_s.items()},
        **{f"memory_{owner}_bytes": value for owner, value in sample.memory},
        **{f"energy_{half}_j": getattr(energy, half, None) for half in ("prefill", "decode")},
        "equal": None if sample.equal is None else int(sample.equal),
        "first_difference_index": getattr(sample.first_difference, "index", None),
        "mode_reason": plain_text(sample.mode_reason),
    }


def to_jsonl(bench: Bench) -> str:
    """One sample a line, with preset, mode, length, document and repetition at its top level."""
    lines = []
    for sample in (sample for row in bench.cells for sample in row.samples):
        name = document_name(bench, sample.cell.document)
        rest = sample.as_json()
        fields = {**rest.pop("cell"), "document_name": name, **rest}
        # ASCII: what is printed holds no control character, whatever a name says
        lines.append(json.dumps(fields, allow_nan=False) + "\n")
    return "".join(lines)
