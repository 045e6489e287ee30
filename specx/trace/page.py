"""A recorded run as one HTML page that needs nothing else: no network, no specx.

Its texts are of unknown origin. ``page.html`` is the template.
"""

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

from specx.errors import printable
from specx.trace.records import StepLine, StepTimes, Trace, TreeFacts

_PLACE = re.compile(r"\{\{([a-z]+)\}\}")
_CODE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)
_PHASES = tuple(phase for phase in StepTimes.model_fields if phase != "draft_levels")
_OF_HEADER = {
    *("command", "created", "mode", "device", "dtype", "prompt_tokens", "note"),
    *("chunk_tokens", "chunks"),
}
_OF_STATS = (
    *("new_tokens", "tokens_per_step", "accepted_per_step", "prefill_s"),
    *("decode_s", "decode_tokens_per_s"),
)


def trace_page(trace: Trace) -> str:
    """The page. Script and style are allowed by their hashes alone; all data stays data."""
    template = (files("specx.trace") / "page.html").read_text(encoding="utf-8")
    allowed = (f"{kind}-src '{_hash(code)}'; " for kind, code in _CODE.findall(template))
    values = {
        "policy": f"default-src 'none'; {''.join(allowed)}base-uri 'none'; form-action 'none'",
        "title": html.escape(printable(trace.header.title)),
        "text": html.escape(printable(trace.text)),
        "data": _embedded(page_data(trace)),
    }
    # One pass: a document that contains "{{data}}" stays as it is.
    return _PLACE.sub(lambda place: values[place[1]], template)


def page_data(trace: Trace) -> dict[str, Any]:
    """What the page's script reads: short keys for what comes with every step."""
    header, stats, end = trace.header, trace.stats(), trace.end
    texts: dict[str, int] = {}
    steps = [_step(step, texts) for step in trace.steps]
    return {
        **header.model_dump(include=_OF_HEADER),
        **header.retrieval.model_dump(include={"sink_chunks", "recent_chunks"}),
        "title": header.title,
        "version": header.specx.version,
        "preset": header.preset.name,
        "temperature": header.sampling.temperature,
        "ticks": [[tick.chunk, tick.kind, tick.label] for tick in header.ticks],
        "read_s": trace.prefill[-1].elapsed_s if trace.prefill else 0.0,
        "phases": list(_PHASES),
        "texts": list(texts),
        "steps": steps,
        "finish_reason": end and end.finish_reason,
        "mode_reason": end.mode_reason if end else "",
        "warnings": list(trace.warnings),
        "totals": {name: getattr(stats, name) for name in _OF_STATS} | {"steps": len(stats.steps)},
    }


def _step(step: StepLine, texts: dict[str, int]) -> dict[str, Any]:
    times = None if step.times_s is None else dict(step.times_s)
    return {
        "p": [[piece.text, int(piece.accepted)] for piece in step.pieces],
        "n": step.new_tokens,
        "a": step.accepted,
        "t": None if step.tree is None else _tree(step.tree, texts),
        "r": step.retrieved,
        "c": step.draft_context_tokens,
        "ms": times and [round(1000 * times[phase], 3) for phase in _PHASES],
        "s": step.elapsed_s,
    }


def _tree(tree: TreeFacts, texts: dict[str, int]) -> dict[str, Any]:
    """Nodes with their texts by number; the target's own token is the last node."""
    known = [texts.setdefault(text, len(texts)) for text in (*tree.texts, tree.bonus.text)]
    return {
        "x": known,
        "i": [*tree.ids, tree.bonus.id],
        "u": [*tree.parents, tree.path[-1]],
        "path": tree.path,
    }


def _embedded(value: Any) -> str:
    """JSON that no parser of HTML can mistake for anything else."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(code: str) -> str:
    digest = hashlib.sha256(code.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
