"""``specx.result/1``: one run as one JSON object.

Goes in: a finished run's records. Comes out: plain mappings that ``result.schema.json`` describes.
Times are seconds, sizes bytes, rates tokens per second. It does not know streams or terminals.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from specx._version import __version__
from specx.cli.settings import Settings
from specx.core.stats import GenerationStats

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, Verification


@dataclass(frozen=True, slots=True)
class Run:
    """All that one object reports."""

    command: str
    settings: Settings
    engine: "Engine"
    document: "Document | None"
    prompt: "Prompt"
    result: "Result"
    verification: "Verification | None"
    environment: Mapping[str, Any]


def result_object(run: Run) -> dict[str, Any]:
    """The ``specx.result/1`` object of a run."""
    stats = run.result.stats
    return {
        "schema": "specx.result/1",
        "specx": {"version": __version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": run.command,
        "input": _input(run),
        "preset": {
            "name": run.settings.preset.name,
            "sha256": run.settings.preset.fingerprint,
        },
        "models": _models(run),
        "sampling": _sampling(run.settings),
        "spec": _speculation(run),
        "text": run.result.text,
        "finish_reason": run.result.finish_reason,
        "tokens": {"prompt": stats.prompt_tokens, "new": stats.new_tokens},
        "time_s": _times(stats),
        "rate": _rates(stats),
        "accept": _acceptance(stats),
        "memory": {
            "weights": stats.memory.weights_bytes,
            "kv_target": stats.memory.kv_target_bytes,
            "kv_draft": stats.memory.kv_draft_bytes,
            "peak": stats.memory.peak_bytes,
        },
        "energy": None,
        "verify": _verification(run),
        "env": dict(run.environment),
        "warnings": [{"message": message} for message in _warnings(run)],
    }


def dumps(value: Any, output: str) -> str:
    """``value`` as text with its newline: indented for ``json``, one line for ``jsonl``."""
    indent = 2 if output == "json" else None
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def _input(run: Run) -> dict[str, Any] | None:
    document = run.document
    if document is None:
        return None
    return {
        "path": document.path,
        "name": document.name,
        "format": document.format,
        "bytes": document.bytes,
        "sha256": document.sha256,
        "tokens": run.prompt.document_tokens,
        "dropped_tokens": 0,  # a document is never cut
    }


def _models(run: Run) -> dict[str, Any]:
    target, draft = run.settings.preset.target, run.settings.preset.draft
    return {
        "target": {
            "repo": target.repo,
            "revision": target.revision,
            "dtype": run.engine.dtype,
        },
        "draft": {
            "kind": draft.kind,
            "repo": draft.repo,
            "revision": draft.revision,
            "trained_context_tokens": draft.trained_context_tokens,
        },
    }


def _sampling(settings: Settings) -> dict[str, Any]:
    return {
        **asdict(settings.sampling),
        "max_tokens": settings.max_tokens,
        "stop": list(settings.stop),
        "ignore_eos": settings.ignore_eos,
    }


def _speculation(run: Run) -> dict[str, Any]:
    return {
        "mode": run.result.mode,
        "mode_reason": run.result.mode_reason,
        "tree": asdict(run.settings.preset.tree),
        "retrieval": asdict(run.settings.preset.retrieval),
    }


def _times(stats: GenerationStats) -> dict[str, Any]:
    return {
        "load": stats.load_s,
        "prefill_target": stats.prefill_target_s,
        "prefill_draft": stats.prefill_draft_s,
        "tune": stats.tune_s,
        "ttft": stats.ttft_s,
        "decode": stats.decode_s,
        "total": stats.total_s,
        "steps": stats.phases_s,
    }


def _rates(stats: GenerationStats) -> dict[str, float | None]:
    later = stats.new_tokens - 1
    return {
        "prefill_tok_s": stats.prefill_tokens_per_s or None,
        "decode_tok_s": stats.decode_tokens_per_s or None,
        "end_to_end_tok_s": stats.end_to_end_tokens_per_s or None,
        "tpot_ms": 1000 * stats.decode_s / later if later > 0 and stats.decode_s > 0 else None,
    }


def _acceptance(stats: GenerationStats) -> dict[str, Any]:
    return {
        "steps": len(stats.steps),
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "accepted_per_step": stats.accepted_per_step,
        "tokens_per_step": stats.tokens_per_step,
        "rate": stats.accepted / stats.drafted if stats.drafted else None,
        "histogram": stats.accepted_histogram,
        "copied": stats.copied,
        "by_position": stats.tokens_per_step_by_position,
    }


def _warnings(run: Run) -> list[str]:
    """What the engine has to say, then the run."""
    return [*run.engine.remarks, *run.result.warnings]


def _verification(run: Run) -> dict[str, Any] | None:
    if run.verification is None:
        return None
    difference = run.verification.first_difference
    return {
        "mode": "plain",
        "checked": run.verification.checked,
        "equal": run.verification.equal,
        "first_difference": None
        if difference is None
        else {
            "index": difference.index,
            "expected": difference.expected,
            "got": difference.got,
            "margin": difference.margin,
        },
    }
