"""Small, realistic benches for tests: every number follows from its arguments, none is random.

``sample`` makes one run, ``samples`` all runs of a bench, ``bench_object`` the whole
bench as specx itself would make it, ``edited`` one with other JSON in it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specx.bench import summary
from specx.bench.schema import (
    Bench,
    BenchCell,
    BenchDifference,
    Floor,
    Joules,
    MemoryBytes,
    Phases,
    Plan,
    Sample,
)
from specx.bench.warnings import warnings_of_samples

NEW_TOKENS = 33
PLAIN_STEP_S = 0.010
#: Tokens a step and cost of a step, in plain steps: speed-up = tokens / cost.
MODES: Mapping[str, tuple[int, float]] = {
    "plain": (1, 1.0),
    "spec": (2, 1.6),
    "specx": (4, 1.6),
    "auto": (4, 1.6),
    "lookup": (2, 1.25),
    "standard": (2, 2.0),
    "hf": (1, 1.25),
    "hf-assisted": (2, 2.5),
}
#: Time of a document's runs, relative; the last one is the slowest.
DOCUMENT_TIME = (1.0, 1.02, 0.97, 1.01, 1.06)


def sha256(text: str) -> str:
    """What stands for a document or a preset called ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def sample(
    preset: str = "pocket",
    mode: str = "specx",
    length: int = 1024,
    document: int = 0,
    rep: int = 0,
    **changes: Any,
) -> Sample:
    """One run of ``NEW_TOKENS`` tokens; ``changes`` replace fields of the record."""
    tokens_a_step, step_cost = MODES.get(mode.split("+")[0], (2, 1.6))
    later = NEW_TOKENS - 1
    steps = later // tokens_a_step
    # A draft does not help equally: each later one of five documents needs a step more.
    steps += document % 5 if tokens_a_step > 1 else 0
    accepted = later - steps
    noise = DOCUMENT_TIME[document % len(DOCUMENT_TIME)] * (1 + 0.01 * rep)
    step_s = PLAIN_STEP_S * step_cost * (1 + length / 4096) * noise
    prefill_s = 0.0001 * length * noise
    drafts = mode not in ("plain", "hf")
    draft_prefill_s = prefill_s / 8 if drafts else 0.0
    is_witness, is_opaque = mode.startswith("hf"), mode == "hf-assisted"
    ttft_s = prefill_s + draft_prefill_s + 0.002
    fields: dict[str, Any] = {
        "cell": BenchCell(preset=preset, mode=mode, length=length, document=document, rep=rep),
        "prompt_tokens": length,
        "new_tokens": NEW_TOKENS,
        "finish_reason": "length",
        "prefill_target_s": prefill_s,
        "prefill_draft_s": draft_prefill_s,
        "ttft_s": ttft_s,
        "decode_s": steps * step_s,
        "total_s": ttft_s + steps * step_s,
        "steps": None if is_opaque else steps,
        "drafted": None if is_opaque else 8 * steps if drafts else 0,
        "accepted": None if is_opaque else accepted,
        "draft_forwards": 3 * steps if drafts and not is_witness else None,
        "histogram": [] if is_witness else _histogram(steps, accepted),
        "phases": None if is_witness else _phases(steps * step_s, drafts),
        "memory": MemoryBytes(
            weights=4_000_000,
            kv_target=1024 * (length + NEW_TOKENS),
            kv_draft=256 * length if drafts else 0,
            peak=200_000_000 + 2048 * length,
        ),
        "tokens": [(document + 1) * 100 + place for place in range(NEW_TOKENS)],
        "equal": None if mode == "plain" else True,
    }
    return Sample(**fields | changes)


def _histogram(steps: int, accepted: int) -> list[int]:
    """As even as it gets: ``accepted`` tokens over ``steps`` steps."""
    each, more = divmod(accepted, steps)
    return [*[0] * each, steps - more, *([more] if more else [])]


def _phases(decode_s: float, drafts: bool) -> Phases:
    if not drafts:
        return Phases(verify=0.9 * decode_s, accept=0.06 * decode_s, host=0.04 * decode_s)
    return Phases(
        draft_levels=[0.12 * decode_s, 0.10 * decode_s, 0.08 * decode_s],
        draft_tree=0.02 * decode_s,
        verify=0.56 * decode_s,
        accept=0.03 * decode_s,
        commit=0.02 * decode_s,
        retrieve=0.04 * decode_s,
        host=0.03 * decode_s,
    )


def samples(
    presets: Sequence[str] = ("pocket",),
    modes: Sequence[str] = ("plain", "spec", "specx"),
    lengths: Sequence[int] = (1024, 2048),
    documents: int = 3,
    reps: int = 1,
) -> list[Sample]:
    """Every run of a bench, in the order of measuring (modes interleaved)."""
    return [
        sample(preset, mode, length, document, rep)
        for preset in presets
        for document in range(documents)
        for rep in range(reps)
        for length in lengths
        for mode in modes
    ]


def floor(preset: str = "pocket", length: int = 1024, **changes: Any) -> Floor:
    """A machine of 10 GB/s and 100 GFLOP/s: a step takes at least 5 ms, bound by memory."""
    fields: dict[str, Any] = {
        "preset": preset,
        "length": length,
        "step_bytes": 50_000_000,
        "step_flop": 20_000_000,
        "draft_level_bytes": 5_000_000,
        "prefill_flop": 4_000_000 * length,
        "bandwidth_bytes_s": 1e10,
        "rate_flop_s": 1e11,
    }
    return Floor(**fields | changes)


def header(
    presets: Sequence[str] = ("pocket",),
    modes: Sequence[str] = ("plain", "spec", "specx"),
    lengths: Sequence[int] = (1024, 2048),
    documents: int = 3,
    reps: int = 1,
    **plan_changes: Any,
) -> dict[str, Any]:
    """All of the object that is not measured; ``plan_changes`` replace keys of the plan."""
    return {
        "specx": {"version": "0.1.0", "commit": "abc1234"},
        "created": "2026-01-02T03:04:05+00:00",
        "elapsed_s": 12.5,
        "finished": True,
        "plan": {
            "presets": [_preset(name) for name in presets],
            "modes": list(modes),
            "baseline": "plain",
            "lengths": list(lengths),
            "data": {
                "name": "sample",
                "documents": [_document(number) for number in range(documents)],
                "skipped": [{"where": "line 3", "reason": "not JSON"}],
            },
            "reps": reps,
            "warmup": 1,
            "max_tokens": NEW_TOKENS,
            "ignore_eos": True,
            "verify": True,
            "energy": False,
            "sampling": {
                "temperature": 0.0,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "seed": 0,
            },
            "device": "cpu",
            "dtype": "float32",
            **plan_changes,
        },
        "env": {
            "device": "cpu",
            "gpu": None,
            "cuda": None,
            "driver": None,
            "cpu": "Example CPU",
            "threads": 2,
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "python": "3.12.1",
            "os": "Linux",
        },
    }


def _preset(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "sha256": sha256(name),
        "target": {"repo": f"{name}/target", "revision": None, "dtype": "float32"},
        "draft": {
            "kind": "lm",
            "repo": f"{name}/draft",
            "revision": None,
            "trained_context_tokens": 1024,
        },
        "kernels": "sdpa",
    }


def _document(number: int) -> dict[str, Any]:
    name = f"text-{number}"
    return {"name": name, "sha256": sha256(name), "characters": 80_000 + number}


def plan_of(*args: Any, **changes: Any) -> Plan:
    """The plan of ``header`` with the same arguments."""
    return Plan.model_validate(header(*args, **changes)["plan"])


def bench_object(
    presets: Sequence[str] = ("pocket",),
    modes: Sequence[str] = ("plain", "spec", "specx"),
    lengths: Sequence[int] = (1024, 2048),
    documents: int = 3,
    reps: int = 1,
    *,
    change: Callable[[Sample], Sample] | None = None,
    floors: bool = True,
    missing: Sequence[tuple[BenchCell, str]] = (),
    warnings: Sequence[tuple[str, str]] = (),
    **plan_changes: Any,
) -> Bench:
    """A whole bench. ``change`` maps every sample; ``plan_changes`` replace keys of the plan."""
    runs = samples(presets, modes, lengths, documents, reps)
    if change is not None:
        runs = [change(run) for run in runs]
    head = header(presets, modes, lengths, documents, reps, **plan_changes)
    bounds = [floor(preset, length) for preset in presets for length in lengths] if floors else []
    return bench_of(head, runs, bounds, missing, warnings)


def bench_of(
    head: Mapping[str, Any],
    runs: Sequence[Sample],
    bounds: Sequence[Floor] = (),
    missing: Sequence[tuple[BenchCell, str]] = (),
    warnings: Sequence[tuple[str, str]] = (),
) -> Bench:
    """A bench of a ``header`` and runs; those of ``warnings`` come before the samples'."""
    plan = Plan.model_validate(head["plan"])
    told = [{"code": code, "message": message} for code, message in warnings]
    return Bench.model_validate(
        {
            **head,
            "plan": plan,
            "floors": list(bounds),
            "cells": summary.rows(plan, runs, bounds),
            "missing": [{"cell": cell, "reason": why} for cell, why in missing],
            "warnings": [*told, *warnings_of_samples(plan, runs)],
        }
    )


def edited(bench: Bench, edit: Callable[[dict[str, Any]], object]) -> Bench:
    """``bench`` after ``edit`` has changed it as plain JSON."""
    data = bench.as_json()
    edit(data)
    return Bench.model_validate(data)


def with_difference(run: Sample) -> Sample:
    """``run`` with another token at place 17, and what the judge says about it."""
    tokens = [*run.tokens[:17], 9, *run.tokens[18:]]
    difference = BenchDifference(index=17, expected=run.tokens[17], got=9, margin=0.0001)
    return run.model_copy(update={"tokens": tokens, "equal": False, "first_difference": difference})


def with_energy(run: Sample) -> Sample:
    """``run`` at 3 J for the prefill and 0.5 J a decoded token."""
    joules = Joules(prefill=3.0, decode=0.5 * (run.new_tokens - 1))
    return run.model_copy(update={"energy": joules})
