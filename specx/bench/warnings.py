"""What a reader of a bench should know before believing it, and what to do about it: warnings with
advice, one a kind, each with the place where it is worst."""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from specx.bench.schema import BenchWarning, Place, Plan, Sample

Samples = Sequence[Sample]
Groups = Mapping[Place, Samples]

_TEXTS = {
    "noisy": "decode rates of the same document differ by up to {worst:.0%} between repetitions "
    "({where}; {rows} over {limit:.0%}): close other programs, fix the clocks, or raise --reps",
    "first_run_slow": "the first repetition is more than 10% slower than all later ones "
    "({where}; {rows}): raise --warmup (now {warmup})",
    "short_output": "runs ended before {limit} tokens in {rows}, the shortest after {worst} "
    "({where}), so their rates are of few tokens: finish_reason says why; without --eos every run "
    "has the full length",
    "few_documents": "fewer than {limit} documents in {rows} ({where}: {worst}), where an interval "
    "says little or is not given: raise --samples",
    "low_acceptance": "the draft is hardly ever right: {worst:.2f} tokens a step ({where}; {rows} "
    "below {limit}): try --modes lookup, another draft, or check that prompt and text are in the "
    "draft's language",
    "unequal": "{bad} of {checked} outputs differ from plain decoding ({first}): a margin near 0 "
    "is a tie that rounding decides, and --dtype float32 makes it rare",
    "shorter_prompts": "{rows} measured prompts of another length than asked for, by up to {worst} "
    "tokens ({where}): compare them by prompt_tokens, or use longer documents",
}


def grouped(plan: Plan, samples: Samples) -> dict[Place, list[Sample]]:
    """Samples by place, preset by preset, then by length, each by document and repetition."""
    groups: dict[Place, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: (sample.cell.document, sample.cell.rep)):
        groups[sample.cell.place].append(sample)
    places = (
        Place(preset.name, mode, length)
        for preset in plan.presets
        for length in sorted(plan.lengths)
        for mode in plan.modes
    )
    return {place: groups[place] for place in places if place in groups}


def by_document(samples: Samples) -> dict[int, list[Sample]]:
    """Samples by the number of their document, in the order given."""
    documents: dict[int, list[Sample]] = {}
    for sample in samples:
        documents.setdefault(sample.cell.document, []).append(sample)
    return documents


def warnings_of_files(plan: Plan, notes: Mapping[str, Sequence[str]]) -> Iterator[BenchWarning]:
    """What the loader said of the presets' files (``notes`` by preset), and where a stand-in's
    acceptance is no longer that of a pair that was trained for it."""
    for preset in plan.presets:
        for note in notes.get(preset.name, ()):
            yield BenchWarning(code="model_files", message=f"{preset.name}: {note}")
    for preset in plan.presets:
        facts = preset.stand_in
        most = facts.trained_tokens - plan.max_tokens if facts else 0
        beyond = [str(length) for length in plan.lengths if length > most]
        if facts and beyond:
            message = (
                f"at {', '.join(beyond)} tokens the text and the acceptance of "
                f"{preset.name} mean nothing: the {facts.pair} pair inside was trained on up to "
                f"{facts.trained_tokens} tokens; times of steps and of the prefill, and memory hold"
            )
            yield BenchWarning(code="beyond_trained", message=message)


def warnings_of_samples(plan: Plan, samples: Samples) -> Iterator[BenchWarning]:
    groups = grouped(plan, samples)
    for code in _TEXTS:
        facts = _unequal(plan, groups) if code == "unequal" else _worst_row(code, plan, groups)
        if facts:
            yield BenchWarning(code=code, message=_TEXTS[code].format(**facts))


def _worst_row(code: str, plan: Plan, groups: Groups) -> dict[str, object]:
    """What the text says of the rows whose value is beyond the limit; nothing if none is."""
    value_of, worst, limit = _ROW_CHECKS[code]
    limit = plan.max_tokens if limit is None else limit
    is_beyond = operator.gt if worst is max else operator.lt
    values = {place: value_of(samples) for place, samples in groups.items()}
    bad = {place: value for place, value in values.items() if is_beyond(value, limit)}
    if not bad:
        return {}
    place = worst(bad, key=lambda each: bad[each])
    rows = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    found = {"worst": bad[place], "where": _where(plan, place), "rows": rows}
    return {**found, "limit": limit, "warmup": plan.warmup}


def _where(plan: Plan, place: Place) -> str:
    of = f" of {place.preset}" if len(plan.presets) > 1 else ""
    return f"{place.mode}{of} at {place.length} tokens"


def _noise(samples: Samples) -> float:
    widths = [0.0]
    for runs in by_document(samples).values():
        if rates := [rate for run in runs if (rate := run.decode_tok_s)]:
            widths.append((max(rates) - min(rates)) / median(rates))
    return max(widths)


def _slow_starts(samples: Samples) -> float:
    """Share of the documents whose first repetition took 10 % longer than every later one."""
    slow = [
        first.total_s > 1.1 * max(run.total_s for run in later)
        for first, *later in by_document(samples).values()
        if later and first.cell.rep == 0
    ]
    return sum(slow) / len(slow) if slow else 0.0


def _tokens_per_step(samples: Samples) -> float:
    drafting = [run for run in samples if run.drafted and not run.mode_reason]
    steps = sum(run.steps or 0 for run in drafting)
    return 1 + sum(run.accepted or 0 for run in drafting) / steps if steps else math.inf


def _unequal(plan: Plan, groups: Groups) -> dict[str, object]:
    checked = [run for samples in groups.values() for run in samples if run.equal is not None]
    unequal = [run for run in checked if not run.equal]
    if not unequal:
        return {}
    cell, difference = unequal[0].cell, unequal[0].first_difference
    first = f"first in {_where(plan, cell.place)}, document {cell.document}"
    if difference is not None:
        margin = difference.margin
        first += f", token {difference.index}"
        first += "" if margin is None else f", logit margin {margin:.3g}"
    return {"bad": len(unequal), "checked": len(checked), "first": first}


#: The value of a row, the worst of several, and the limit (None: the tokens asked for).
_ROW_CHECKS: Mapping[str, tuple[Callable[[Samples], float], Any, float | None]] = {
    "noisy": (_noise, max, 0.10),
    "first_run_slow": (_slow_starts, max, 0.5),
    "short_output": (lambda samples: min(run.new_tokens for run in samples), min, None),
    # Of fewer documents, no bootstrap covers 95 %: see ``statistics``.
    "few_documents": (lambda samples: len(by_document(samples)), min, 5),
    "low_acceptance": (_tokens_per_step, min, 1.05),
    "shorter_prompts": (
        lambda samples: max(abs(run.prompt_tokens - run.cell.length) for run in samples),
        max,
        0,
    ),
}
