"""Samples → the report of a bench: a summary of every preset, mode and length.

Medians, extremes and outliers are over samples; estimates with an interval are over documents,
whose repetitions are combined first (see ``statistics``). What is not defined is None.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from statistics import median_low

from specx.bench.journal import Finished
from specx.bench.schema import (
    PHASES,
    Bench,
    BenchRow,
    Build,
    Equality,
    Floor,
    Interval,
    LocatedDifference,
    MachineFacts,
    MemoryBytes,
    MissingCell,
    OverFloor,
    Phases,
    Plan,
    Sample,
    Spread,
    Summary,
    ratio_of,
)
from specx.bench.statistics import geometric_interval, ratio_of_sums_interval, spread
from specx.bench.warnings import by_document, grouped, warnings_of_files, warnings_of_samples

Samples = Sequence[Sample]
_SPREADS = ("prefill_tok_s", "decode_tok_s", "end_to_end_tok_s", "ttft_s")


def report(
    plan: Plan,
    finished: Finished,
    *,
    environment: MachineFacts,
    build: Build,
    elapsed_s: float,
    stopped: str = "",
) -> Bench:
    """The whole bench so far; cells that are neither measured nor impossible are missing too.

    ``stopped``: why the run ended early, "" when it did not.
    """
    samples = _judged(plan, finished)
    missing = [
        MissingCell(cell=cell, reason=finished.missing.get(cell, stopped or "not run"))
        for cell in plan.cells()
        if cell not in finished.samples
    ]
    return Bench(
        specx=build,
        created=finished.created,
        elapsed_s=elapsed_s,
        finished=not missing and not stopped,
        plan=plan,
        env=environment,
        floors=list(finished.floors.values()),
        cells=rows(plan, samples, list(finished.floors.values())),
        missing=missing,
        warnings=[*warnings_of_files(plan, finished.notes), *warnings_of_samples(plan, samples)],
    )


def _judged(plan: Plan, finished: Finished) -> list[Sample]:
    """The samples in the plan's order, each compared with plain decoding where there is a run."""
    samples = []
    for cell in plan.cells():
        sample = finished.samples.get(cell)
        if sample is None:
            continue
        plain = finished.samples.get(cell.model_copy(update={"mode": "plain"}))
        if plan.verify and plain is not None and plain is not sample:
            update = {
                "equal": sample.tokens == plain.tokens,
                "first_difference": finished.differences.get(cell),
            }
            sample = sample.model_copy(update=update)
        samples.append(sample)
    return samples


def rows(plan: Plan, samples: Samples, floors: Sequence[Floor]) -> list[BenchRow]:
    """Samples in any order as rows in the plan's order; their names must be the plan's."""
    groups = grouped(plan, samples)
    least = {(floor.preset, floor.length): floor for floor in floors}
    found = []
    for place, group in groups.items():
        baseline: Samples = ()
        if plan.baseline is not None and place.mode != plan.baseline:
            baseline = groups.get(place._replace(mode=plan.baseline), ())
        summary = summarize(group, baseline, least.get((place.preset, place.length)))
        found.append(BenchRow(**place._asdict(), samples=group, summary=summary))
    return found


def summarize(samples: Samples, baseline: Samples, floor: Floor | None) -> Summary:
    """What the samples of one preset, mode and length say; ``baseline`` empty: no speed-ups."""
    steps = [sample.steps for sample in samples]
    accepted = _accepted_per_step(samples)
    return Summary(
        n=len(samples),
        documents=len(by_document(samples)),
        prompt_tokens=median_low([sample.prompt_tokens for sample in samples]),
        steps=None if None in steps else sum(count or 0 for count in steps),
        **{metric: _spread(samples, metric) for metric in _SPREADS},
        tokens_per_step=accepted and accepted.plus(1.0),
        accepted_per_step=accepted,
        speedup=_speedup(samples, baseline, "decode_tok_s"),
        end_to_end_speedup=_speedup(samples, baseline, "end_to_end_tok_s"),
        floor=_over_floor(samples, floor) if floor else None,
        memory=_most_memory(samples),
        energy_j_per_token=_energy_j_per_token(samples),
        equal=_equal(samples),
        profile_ms=_profile_ms(samples),
        first_difference=_first_difference(samples),
    )


def paired_ratios(samples: Samples, baseline: Samples, metric: str) -> dict[int, list[float]]:
    """Document → ``metric`` over the baseline's in the same repetition, where both have one.

    Runs of one repetition are interleaved, so that a machine that slows down hits both.
    """
    below = {
        (sample.cell.document, sample.cell.rep): getattr(sample, metric) for sample in baseline
    }
    ratios: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        top, bottom = getattr(sample, metric), below.get((sample.cell.document, sample.cell.rep))
        ratio = ratio_of(top, bottom) if top is not None and bottom is not None else None
        if ratio:
            ratios[sample.cell.document].append(ratio)
    return dict(ratios)


def _accepted_per_step(samples: Samples) -> Interval | None:
    """Σ accepted / Σ steps over documents; None where some steps are not known, or none is."""
    if any(sample.accepted is None or sample.steps is None for sample in samples):
        return None
    return ratio_of_sums_interval(
        [
            (sum(run.accepted or 0 for run in group), sum(run.steps or 0 for run in group))
            for group in by_document(samples).values()
        ]
    )


def _spread(samples: Samples, metric: str) -> Spread | None:
    values = (getattr(sample, metric) for sample in samples)
    return spread([value for value in values if value is not None])


def _speedup(samples: Samples, baseline: Samples, metric: str) -> Interval | None:
    ratios = paired_ratios(samples, baseline, metric)
    return geometric_interval(list(ratios.values())) if ratios else None


def _over_floor(samples: Samples, floor: Floor) -> OverFloor:
    prefill_s = sum(sample.prefill_target_s + sample.prefill_draft_s for sample in samples)
    prefill = ratio_of(prefill_s, floor.prefill_s * len(samples))
    if any(sample.steps is None for sample in samples):
        return OverFloor(decode=None, prefill=prefill)
    level_s = floor.draft_level_bytes / floor.bandwidth_bytes_s
    steps_s = sum(sample.steps or 0 for sample in samples) * floor.step_s
    least_s = steps_s + sum(sample.draft_forwards or 0 for sample in samples) * level_s
    decode_s = sum(sample.decode_s for sample in samples)
    return OverFloor(decode=ratio_of(decode_s, least_s), prefill=prefill)


def _most_memory(samples: Samples) -> MemoryBytes:
    owners = MemoryBytes.model_fields
    most = {owner: max(getattr(run.memory, owner) for run in samples) for owner in owners}
    return MemoryBytes(**most)


def _energy_j_per_token(samples: Samples) -> float | None:
    """Joules of decoding over the tokens that it made, as in the decode rate."""
    measured = [
        (sample.energy.decode, sample.new_tokens - 1)
        for sample in samples
        if sample.energy and sample.new_tokens > 1
    ]
    return ratio_of(sum(joules for joules, _ in measured), sum(tokens for _, tokens in measured))


def _equal(samples: Samples) -> Equality | None:
    checked = [sample.equal for sample in samples if sample.equal is not None]
    return Equality(checked=len(checked), equal=sum(checked)) if checked else None


def _first_difference(samples: Samples) -> LocatedDifference | None:
    for sample in samples:
        if sample.first_difference is not None:
            run = {"document": sample.cell.document, "rep": sample.cell.rep}
            return LocatedDifference(**run, **sample.first_difference.as_json())
    return None


def _profile_ms(samples: Samples) -> Phases | None:
    """Mean milliseconds a step by phase; a level that few steps reach counts over all steps."""
    known = [(sample.phases, sample.steps) for sample in samples if sample.phases and sample.steps]
    if not known:
        return None
    phases = [phase for phase, _ in known]
    ms_a_step = 1000 / sum(steps for _, steps in known)
    levels = zip_longest(*(phase.draft_levels for phase in phases), fillvalue=0.0)
    rest = {name: sum(getattr(phase, name) for phase in phases) for name in PHASES[1:]}
    return Phases(
        draft_levels=[sum(level) * ms_a_step for level in levels],
        **{name: total * ms_a_step for name, total in rest.items()},
    )
