"""Samples → the ``specx.bench/1`` object: rates, summaries of cells, and warnings with advice.

In: the header of a bench (what was planned, and where it ran) and its raw records. Out: one plain
mapping that ``bench.schema.json`` describes; nothing in it is rounded, and what is not defined is
None. It does not know engines, files or tables.

Medians, extremes and outliers are over samples; estimates with an interval are over documents,
whose repetitions are combined first (see ``statistics``).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from statistics import median, median_low
from types import MappingProxyType
from typing import Any, NamedTuple

from specx.bench.record import PHASES, Cell, Floor, Object, Sample
from specx.bench.statistics import Interval, geometric_interval, ratio_of_sums_interval, spread

SCHEMA = "specx.bench/1"
Key = tuple[str, int, str]  # preset, length, mode
Measure = Callable[[Sample], float | None]
Samples = Sequence[Sample]
Plan = Mapping[str, Any]
Groups = Mapping[Key, Samples]

NOISY = 0.10  # spread of the decode rate between repetitions of one document
SLOW_START = 1.10  # first repetition over the slowest later one
FEW_DOCUMENTS = 5  # of fewer, no bootstrap covers 95 %: see ``statistics``
LOW_TOKENS_PER_STEP = 1.05


class Advice(NamedTuple):
    """A warning: what was seen, where it was worst, and what to do."""

    code: str
    message: str


def prefill_tok_s(sample: Sample) -> float | None:
    """Prompt tokens over the prefill time of target and draft."""
    return _ratio(sample.prompt_tokens, sample.prefill_target_s + sample.prefill_draft_s)


def decode_tok_s(sample: Sample) -> float | None:
    """Tokens after the prefill's over decode time: (new − 1) / decode time but for a witness that
    drafts in its prefill. None where no token is left."""
    later = sample.new_tokens - sample.first_tokens
    return _ratio(later, sample.decode_s) if later > 0 else None


def end_to_end_tok_s(sample: Sample) -> float | None:
    """New tokens over the whole time of the request, loading excluded."""
    return _ratio(sample.new_tokens, sample.total_s)


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "prefill_tok_s": prefill_tok_s,
        "decode_tok_s": decode_tok_s,
        "end_to_end_tok_s": end_to_end_tok_s,
        "ttft_s": lambda sample: sample.ttft_s,  # from the request to the first token
    }
)


def bench_object(
    header: Mapping[str, Any],
    samples: Samples,
    floors: Sequence[Floor] = (),
    missing: Sequence[tuple[Cell, str]] = (),
    warnings: Sequence[tuple[str, str]] = (),
) -> Object:
    """The whole object. ``header``: specx, created, elapsed_s, finished, plan and env as plain
    mappings; ``missing``: cells that were not run and why; ``warnings``: (code, message) of the
    run, before those that the samples give rise to.

    Samples may come in any order; their presets, modes and lengths must be the plan's.
    """
    plan = header["plan"]
    groups = grouped(samples, plan)
    least = {(floor.preset, floor.length): floor for floor in floors}
    told = (*warnings, *advice(plan, groups))
    cells = []
    for (preset, length, mode), group in groups.items():
        is_baseline = mode == plan["baseline"]
        baseline = [] if is_baseline else groups.get((preset, length, plan["baseline"]), [])
        cells.append(
            {
                "preset": preset,
                "mode": mode,
                "length": length,
                "samples": [sample.model_dump(mode="json") for sample in group],
                "summary": summary(group, baseline, least.get((preset, length))),
            }
        )
    return {
        "schema": SCHEMA,
        **{name: header[name] for name in ("specx", "created", "elapsed_s", "finished")},
        "plan": plan,
        "env": header["env"],
        "floors": [_floor(floor) for floor in floors],
        "cells": cells,
        "missing": [{"cell": cell.model_dump(mode="json"), "reason": why} for cell, why in missing],
        "warnings": [{"code": code, "message": message} for code, message in told],
    }


def grouped(samples: Samples, plan: Plan) -> dict[Key, list[Sample]]:
    """Samples by preset, length and mode in the plan's order, each by document and repetition."""
    groups: dict[Key, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: (sample.cell.document, sample.cell.rep)):
        groups[sample.cell.preset, sample.cell.length, sample.cell.mode].append(sample)
    presets = [preset["name"] for preset in plan["presets"]]
    modes = list(plan["modes"])
    order = sorted(groups, key=lambda key: (presets.index(key[0]), key[1], modes.index(key[2])))
    return {key: groups[key] for key in order}


def summary(samples: Samples, baseline: Samples, floor: Floor | None) -> Object:
    """What the samples of one preset, mode and length say; ``baseline`` empty: no speed-ups."""
    steps = [sample.steps for sample in samples]
    accepted = accepted_per_step(samples)
    return {
        "n": len(samples),
        "documents": len({sample.cell.document for sample in samples}),
        "prompt_tokens": median_low([sample.prompt_tokens for sample in samples]),
        "steps": None if None in steps else sum(count or 0 for count in steps),
        **{name: _spread(samples, measure) for name, measure in MEASURES.items()},
        "tokens_per_step": _bounds(accepted, plus=1.0),
        "accepted_per_step": _bounds(accepted),
        "speedup": _speedup(samples, baseline, decode_tok_s),
        "end_to_end_speedup": _speedup(samples, baseline, end_to_end_tok_s),
        "floor": _over_floor(samples, floor) if floor else None,
        "memory": {
            owner: max(getattr(sample.memory, owner) for sample in samples)
            for owner in ("weights", "kv_target", "kv_draft", "peak")
        },
        "energy_j_per_token": _energy_j_per_token(samples),
        "equal": _equal(samples),
        "profile_ms": _profile_ms(samples),
        "first_difference": _first_difference(samples),
    }


def by_document(samples: Samples) -> dict[int, list[Sample]]:
    """Samples by the number of their document, in the order given."""
    documents: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        documents[sample.cell.document].append(sample)
    return dict(documents)


def accepted_per_step(samples: Samples) -> Interval | None:
    """Σ accepted / Σ steps over documents; None where some steps are not known, or none is."""
    pairs = []
    for group in by_document(samples).values():
        accepted = [sample.accepted for sample in group if sample.accepted is not None]
        steps = [sample.steps for sample in group if sample.steps is not None]
        if len(accepted) < len(group) or len(steps) < len(group):
            return None
        pairs.append((sum(accepted), sum(steps)))
    return ratio_of_sums_interval(pairs)


def paired_ratios(samples: Samples, baseline: Samples, measure: Measure) -> dict[int, list[float]]:
    """Document → ``measure`` over the baseline's in the same repetition, where both have one.

    Runs of one repetition are interleaved, so that a machine that slows down hits both.
    """
    below = {(sample.cell.document, sample.cell.rep): measure(sample) for sample in baseline}
    ratios: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        top, bottom = measure(sample), below.get((sample.cell.document, sample.cell.rep))
        ratio = _ratio(top, bottom) if top is not None and bottom is not None else None
        if ratio:
            ratios[sample.cell.document].append(ratio)
    return dict(ratios)


def _ratio(top: float, bottom: float) -> float | None:
    """None where it is not defined or not finite, so that it never reaches JSON."""
    ratio = top / bottom if bottom > 0 else math.inf
    return ratio if ratio < math.inf else None


def _floor(floor: Floor) -> Object:
    derived = {"step_s": floor.step_s, "prefill_s": floor.prefill_s, "bound": floor.bound}
    return floor.model_dump(mode="json") | derived


def _spread(samples: Samples, measure: Measure) -> Object | None:
    found = [measure(sample) for sample in samples]
    described = spread([value for value in found if value is not None])
    return asdict(described) if described else None


def _bounds(interval: Interval | None, plus: float = 0.0) -> Object | None:
    if interval is None:
        return None
    bounds = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if bound is None else bound + plus for name, bound in bounds.items()}


def _speedup(samples: Samples, baseline: Samples, measure: Measure) -> Object | None:
    ratios = paired_ratios(samples, baseline, measure)
    return asdict(geometric_interval(list(ratios.values()))) if ratios else None


def _over_floor(samples: Samples, floor: Floor) -> Object:
    """Measured time over the least possible time, of decoding and of reading the prompt."""
    decode: float | None = None
    if all(sample.steps is not None for sample in samples):
        level_s = floor.draft_level_bytes / floor.bandwidth_bytes_s
        least_s = sum(
            (sample.steps or 0) * floor.step_s + (sample.draft_forwards or 0) * level_s
            for sample in samples
        )
        decode = _ratio(sum(sample.decode_s for sample in samples), least_s)
    prefill_s = sum(sample.prefill_target_s + sample.prefill_draft_s for sample in samples)
    return {"decode": decode, "prefill": _ratio(prefill_s, floor.prefill_s * len(samples))}


def _energy_j_per_token(samples: Samples) -> float | None:
    """Joules of decoding over the tokens that it made, as in the decode rate."""
    measured = [
        (sample.energy.decode, sample.new_tokens - 1) for sample in samples if sample.energy
    ]
    made = [(joules, tokens) for joules, tokens in measured if tokens > 0]
    return _ratio(sum(joules for joules, _ in made), sum(tokens for _, tokens in made))


def _equal(samples: Samples) -> Object | None:
    checked = [sample.equal for sample in samples if sample.equal is not None]
    return {"checked": len(checked), "equal": sum(checked)} if checked else None


def _first_difference(samples: Samples) -> Object | None:
    for sample in samples:
        if sample.first_difference is not None:
            run = {"document": sample.cell.document, "rep": sample.cell.rep}
            return run | sample.first_difference.model_dump(mode="json")
    return None


def _profile_ms(samples: Samples) -> Object | None:
    """Mean milliseconds a step by phase; a level that few steps reach counts over all steps."""
    known = [(sample.phases, sample.steps) for sample in samples if sample.phases and sample.steps]
    if not known:
        return None
    phases = [phase for phase, _ in known]
    ms_a_step = 1000 / sum(steps for _, steps in known)
    levels = zip_longest(*(phase.draft_levels for phase in phases), fillvalue=0.0)
    return {
        "draft_levels": [sum(level) * ms_a_step for level in levels],
        **{name: sum(getattr(phase, name) for phase in phases) * ms_a_step for name in PHASES[1:]},
    }


def advice(plan: Plan, groups: Groups) -> list[Advice]:
    """Warnings that the samples give rise to, one a kind; ``groups`` as ``grouped`` makes them."""
    checks = (_noisy, _first_run_slow, _short_output, _few, _low_acceptance, _unequal, _shorter)
    found = [check(plan, groups) for check in checks]
    return [warning for warning in found if warning]


def _where(plan: Plan, key: Key) -> str:
    preset, length, mode = key
    of = f" of {preset}" if len(plan["presets"]) > 1 else ""
    return f"{mode}{of} at {length} tokens"


def _runs(groups: Groups) -> list[tuple[Key, Sample]]:
    return [(key, run) for key, samples in groups.items() for run in samples]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _noisy(plan: Plan, groups: Groups) -> Advice | None:
    spreads: dict[Key, float] = {}
    for key, samples in groups.items():
        for runs in by_document(samples).values():
            rates = [rate for rate in map(decode_tok_s, runs) if rate]
            if len(rates) > 1:
                width = (max(rates) - min(rates)) / median(rates)
                spreads[key] = max(spreads.get(key, 0.0), width)
    noisy = {key: width for key, width in spreads.items() if width > NOISY}
    if not noisy:
        return None
    worst = max(noisy, key=lambda key: noisy[key])
    return Advice(
        "noisy",
        f"decode rates of the same document differ by up to {noisy[worst]:.0%} between "
        f"repetitions ({_where(plan, worst)}; {_rows(len(noisy))} over {NOISY:.0%}): close other "
        "programs, fix the clocks, or raise --reps",
    )


def _first_run_slow(plan: Plan, groups: Groups) -> Advice | None:
    slow = []
    for key, samples in groups.items():
        firsts: list[bool] = []  # one a document: is repetition 0 slower than every later one?
        for runs in by_document(samples).values():
            later = [run.total_s for run in runs if run.cell.rep > 0]
            if later and runs[0].cell.rep == 0:
                firsts.append(runs[0].total_s > SLOW_START * max(later))
        if firsts and sum(firsts) > len(firsts) / 2:
            slow.append(key)
    if not slow:
        return None
    return Advice(
        "first_run_slow",
        f"the first repetition is more than {SLOW_START - 1:.0%} slower than all later ones "
        f"({_where(plan, slow[0])}; {_rows(len(slow))}): raise --warmup (now {plan['warmup']})",
    )


def _short_output(plan: Plan, groups: Groups) -> Advice | None:
    runs, wanted = _runs(groups), plan["max_tokens"]
    short = [run.new_tokens for _, run in runs if run.new_tokens < wanted]
    if not short:
        return None
    all_alike = "--ignore-eos gives every run the full length"
    remedy = "their finish_reason says why" if plan["ignore_eos"] else all_alike
    return Advice(
        "short_output",
        f"{len(short)} of {len(runs)} runs ended before {wanted} tokens, the shortest after "
        f"{min(short)}, so their rates stand on few tokens: {remedy}",
    )


def _few(plan: Plan, groups: Groups) -> Advice | None:
    counts = {key: len(by_document(samples)) for key, samples in groups.items()}
    few = {key: count for key, count in counts.items() if count < FEW_DOCUMENTS}
    if not few:
        return None
    least = min(few, key=lambda key: few[key])
    return Advice(
        "few_documents",
        f"fewer than {FEW_DOCUMENTS} documents in {_rows(len(few))} ({_where(plan, least)}: "
        f"{few[least]}), where an interval says little or is not given: raise --samples",
    )


def _low_acceptance(plan: Plan, groups: Groups) -> Advice | None:
    low: dict[Key, float] = {}
    for key, samples in groups.items():
        drafting = [run for run in samples if run.drafted and not run.mode_reason]
        steps = sum(run.steps or 0 for run in drafting)
        tokens = sum(run.accepted or 0 for run in drafting) + steps
        if tokens < LOW_TOKENS_PER_STEP * steps:
            low[key] = tokens / steps
    if not low:
        return None
    worst = min(low, key=lambda key: low[key])
    return Advice(
        "low_acceptance",
        f"the draft is hardly ever right: {low[worst]:.2f} tokens a step ({_where(plan, worst)}; "
        f"{_rows(len(low))} below {LOW_TOKENS_PER_STEP}): try --modes lookup, another draft, or "
        "check that prompt and text are in the draft's language",
    )


def _unequal(plan: Plan, groups: Groups) -> Advice | None:
    runs = _runs(groups)
    unequal = [(key, run) for key, run in runs if run.equal is False]
    if not unequal:
        return None
    checked = sum(run.equal is not None for _, run in runs)
    key, run = unequal[0]
    first = f"first in {_where(plan, key)}, document {run.cell.document}"
    if run.first_difference is not None:
        margin = run.first_difference.margin
        first += f", token {run.first_difference.index}"
        first += "" if margin is None else f", logit margin {margin:.3g}"
    return Advice(
        "unequal",
        f"{len(unequal)} of {checked} outputs differ from plain decoding ({first}): a margin near "
        "0 is a tie that rounding decides, and --dtype float32 makes it rare",
    )


def _shorter(plan: Plan, groups: Groups) -> Advice | None:
    other = {key: run.prompt_tokens for key, run in _runs(groups) if run.prompt_tokens != key[1]}
    if not other:
        return None
    key, tokens = next(iter(other.items()))
    return Advice(
        "shorter_prompts",
        f"{_rows(len(other))} measured prompts of another length than asked for "
        f"({_where(plan, key)}: {tokens}): compare them by prompt_tokens, or use longer documents",
    )
