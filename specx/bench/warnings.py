"""What a reader of a bench should know before believing it, and what to do about it.

In: a plan, its samples, what the loader said. Out: warnings with advice, one a kind, each with the
place where it is worst. It does not know summaries or tables.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from specx.bench.schema import BenchWarning, Place, Plan, Sample

Groups = Mapping[Place, Sequence[Sample]]

NOISY = 0.10  # spread of the decode rate between repetitions of one document
SLOW_START = 1.10  # first repetition over the slowest later one
FEW_DOCUMENTS = 5  # of fewer, no bootstrap covers 95 %: see ``statistics``
LOW_TOKENS_PER_STEP = 1.05


def grouped(plan: Plan, samples: Sequence[Sample]) -> dict[Place, list[Sample]]:
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


def by_document(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """Samples by the number of their document, in the order given."""
    documents: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        documents[sample.cell.document].append(sample)
    return dict(documents)


def warnings_of_files(plan: Plan, notes: Mapping[str, Sequence[str]]) -> Iterator[BenchWarning]:
    """What the loader said of the presets' files (``notes`` by preset), and where a stand-in's
    acceptance is no longer that of a pair that was trained for it."""
    for preset in plan.presets:
        for note in notes.get(preset.name, ()):
            yield BenchWarning(code="model_files", message=f"{preset.name}: {note}")
    for preset in plan.presets:
        facts = preset.stand_in
        if facts is None:
            continue
        most = facts.trained_tokens - plan.max_tokens
        beyond = [str(length) for length in plan.lengths if length > most]
        if beyond:
            message = (
                f"at {', '.join(beyond)} tokens the text and the acceptance of "
                f"{preset.name} mean nothing: the {facts.pair} pair inside was trained on up to "
                f"{facts.trained_tokens} tokens; times of steps and of the prefill, and memory hold"
            )
            yield BenchWarning(code="beyond_trained", message=message)


def warnings_of_samples(plan: Plan, samples: Sequence[Sample]) -> Iterator[BenchWarning]:
    """What the samples give rise to."""
    groups = grouped(plan, samples)
    checks = {
        "noisy": _noisy,
        "first_run_slow": _first_run_slow,
        "short_output": _short_output,
        "few_documents": _few_documents,
        "low_acceptance": _low_acceptance,
        "unequal": _unequal,
        "shorter_prompts": _shorter_prompts,
    }
    for code, check in checks.items():
        if message := check(plan, groups):
            yield BenchWarning(code=code, message=message)


def _where(plan: Plan, place: Place) -> str:
    of = f" of {place.preset}" if len(plan.presets) > 1 else ""
    return f"{place.mode}{of} at {place.length} tokens"


def _runs(groups: Groups) -> list[tuple[Place, Sample]]:
    return [(key, run) for key, samples in groups.items() for run in samples]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _noisy(plan: Plan, groups: Groups) -> str:
    spreads: dict[Place, float] = {}
    for key, samples in groups.items():
        for runs in by_document(samples).values():
            rates = [rate for rate in (run.decode_tok_s for run in runs) if rate]
            if len(rates) > 1:
                width = (max(rates) - min(rates)) / median(rates)
                spreads[key] = max(spreads.get(key, 0.0), width)
    noisy = {key: width for key, width in spreads.items() if width > NOISY}
    if not noisy:
        return ""
    worst = max(noisy, key=lambda key: noisy[key])
    return (
        f"decode rates of the same document differ by up to {noisy[worst]:.0%} between "
        f"repetitions ({_where(plan, worst)}; {_rows(len(noisy))} over {NOISY:.0%}): close other "
        "programs, fix the clocks, or raise --reps"
    )


def _first_run_slow(plan: Plan, groups: Groups) -> str:
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
        return ""
    return (
        f"the first repetition is more than {SLOW_START - 1:.0%} slower than all later ones "
        f"({_where(plan, slow[0])}; {_rows(len(slow))}): raise --warmup (now {plan.warmup})"
    )


def _short_output(plan: Plan, groups: Groups) -> str:
    runs, wanted = _runs(groups), plan.max_tokens
    short = [run.new_tokens for _, run in runs if run.new_tokens < wanted]
    if not short:
        return ""
    full = "without --eos every run has the full length"
    remedy = "their finish_reason says why" if plan.ignore_eos else full
    return (
        f"{len(short)} of {len(runs)} runs ended before {wanted} tokens, the shortest after "
        f"{min(short)}, so their rates are of few tokens: {remedy}"
    )


def _few_documents(plan: Plan, groups: Groups) -> str:
    counts = {key: len(by_document(samples)) for key, samples in groups.items()}
    few = {key: count for key, count in counts.items() if count < FEW_DOCUMENTS}
    if not few:
        return ""
    least = min(few, key=lambda key: few[key])
    return (
        f"fewer than {FEW_DOCUMENTS} documents in {_rows(len(few))} ({_where(plan, least)}: "
        f"{few[least]}), where an interval says little or is not given: raise --samples"
    )


def _low_acceptance(plan: Plan, groups: Groups) -> str:
    low: dict[Place, float] = {}
    for key, samples in groups.items():
        drafting = [run for run in samples if run.drafted and not run.mode_reason]
        steps = sum(run.steps or 0 for run in drafting)
        tokens = sum(run.accepted or 0 for run in drafting) + steps
        if tokens < LOW_TOKENS_PER_STEP * steps:
            low[key] = tokens / steps
    if not low:
        return ""
    worst = min(low, key=lambda key: low[key])
    return (
        f"the draft is hardly ever right: {low[worst]:.2f} tokens a step ({_where(plan, worst)}; "
        f"{_rows(len(low))} below {LOW_TOKENS_PER_STEP}): try --modes lookup, another draft, or "
        "check that prompt and text are in the draft's language"
    )


def _unequal(plan: Plan, groups: Groups) -> str:
    runs = _runs(groups)
    unequal = [(key, run) for key, run in runs if run.equal is False]
    if not unequal:
        return ""
    checked = sum(run.equal is not None for _, run in runs)
    key, run = unequal[0]
    first = f"first in {_where(plan, key)}, document {run.cell.document}"
    if run.first_difference is not None:
        margin = run.first_difference.margin
        first += f", token {run.first_difference.index}"
        first += "" if margin is None else f", logit margin {margin:.3g}"
    return (
        f"{len(unequal)} of {checked} outputs differ from plain decoding ({first}): a margin near "
        "0 is a tie that rounding decides, and --dtype float32 makes it rare"
    )


def _shorter_prompts(plan: Plan, groups: Groups) -> str:
    other = {
        key: run.prompt_tokens for key, run in _runs(groups) if run.prompt_tokens != key.length
    }
    if not other:
        return ""
    key, tokens = next(iter(other.items()))
    return (
        f"{_rows(len(other))} measured prompts of another length than asked for "
        f"({_where(plan, key)}: {tokens}): compare them by prompt_tokens, or use longer documents"
    )
