"""Samples → the report of a bench: a summary of every preset, mode and length. Medians, extremes
and outliers are over samples; estimates with an interval are over documents, whose repetitions are
combined first (see ``statistics``). What is not defined is None."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from statistics import median_low

from specx.bench import schema
from specx.bench.journal import Finished
from specx.bench.schema import Bench, BenchRow, Floor, Interval, Plan, Sample, ratio_of
from specx.bench.statistics import geometric_interval, ratio_of_sums_interval, spread
from specx.bench.warnings import by_document, grouped, warnings_of_files, warnings_of_samples

Samples = Sequence[Sample]
_SPREADS = ("prefill_tok_s", "decode_tok_s", "end_to_end_tok_s", "ttft_s")


def report(
    plan: Plan,
    finished: Finished,
    *,
    environment: schema.MachineFacts,
    build: schema.Build,
    elapsed_s: float,
    stopped: str = "",
) -> Bench:
    """The whole bench so far; cells that are neither measured nor impossible are missing too.
    ``stopped``: why the run ended early, "" when it did not."""
    samples, missing = [], []
    for cell in plan.cells():
        if (sample := finished.samples.get(cell)) is None:
            reason = finished.missing.get(cell, stopped or "not run")
            missing.append(schema.MissingCell(cell=cell, reason=reason))
            continue
        plain = finished.samples.get(cell.model_copy(update={"mode": "plain"}))
        if plan.verify and plain is not None and plain is not sample:
            equal, found = sample.tokens == plain.tokens, finished.differences.get(cell)
            sample = sample.model_copy(update={"equal": equal, "first_difference": found})
        samples.append(sample)
    floors = list(finished.floors.values())
    return Bench(
        specx=build,
        created=finished.header.created if finished.header else "",
        elapsed_s=elapsed_s,
        finished=not missing and not stopped,
        plan=plan,
        env=environment,
        floors=floors,
        cells=rows(plan, samples, floors),
        missing=missing,
        warnings=[*warnings_of_files(plan, finished.notes), *warnings_of_samples(plan, samples)],
    )


def rows(plan: Plan, samples: Samples, floors: Sequence[Floor]) -> list[BenchRow]:
    """Samples in any order as rows in the plan's order; their names must be the plan's."""
    groups = grouped(plan, samples)
    least = {(floor.preset, floor.length): floor for floor in floors}
    found = []
    for place, group in groups.items():
        below = place._replace(mode=plan.baseline or "")
        baseline = () if below == place else groups.get(below, ())
        summary = summarize(group, baseline, least.get((place.preset, place.length)))
        found.append(BenchRow(**place._asdict(), samples=group, summary=summary))
    return found


def summarize(samples: Samples, baseline: Samples, floor: Floor | None) -> schema.Summary:
    """What the samples of one preset, mode and length say; ``baseline`` empty: no speed-ups."""
    owners = schema.MemoryBytes.model_fields
    checked = [sample.equal for sample in samples if sample.equal is not None]
    differences = (
        schema.LocatedDifference.of(found, document=run.cell.document, rep=run.cell.rep)
        for run in samples
        if (found := run.first_difference)
    )
    return schema.Summary(
        n=len(samples),
        documents=len(by_document(samples)),
        prompt_tokens=median_low([sample.prompt_tokens for sample in samples]),
        steps=None if any(run.steps is None for run in samples) else _sum(samples, "steps"),
        **{metric: spread(known(samples, metric)) for metric in _SPREADS},
        tokens_per_step=_per_step(samples, bonus=1),
        accepted_per_step=_per_step(samples, bonus=0),
        speedup=_speedup(samples, baseline, "decode_tok_s"),
        end_to_end_speedup=_speedup(samples, baseline, "end_to_end_tok_s"),
        floor=_over_floor(samples, floor) if floor else None,
        memory=schema.MemoryBytes(
            **{owner: max(getattr(run.memory, owner) for run in samples) for owner in owners}
        ),
        energy_j_per_token=_energy_j_per_token(samples),
        equal=schema.Equality(checked=len(checked), equal=sum(checked)) if checked else None,
        profile_ms=_profile_ms(samples),
        first_difference=next(differences, None),
    )


def paired_ratios(samples: Samples, baseline: Samples, metric: str) -> dict[int, list[float]]:
    """Document → ``metric`` over the baseline's in the same repetition, where both have one. Runs
    of one repetition are interleaved, so that a machine that slows down hits both."""
    below = {(run.cell.document, run.cell.rep): getattr(run, metric) for run in baseline}
    ratios: dict[int, list[float]] = defaultdict(list)
    for run in samples:
        top, bottom = getattr(run, metric), below.get((run.cell.document, run.cell.rep))
        if top is not None and bottom is not None and (ratio := ratio_of(top, bottom)):
            ratios[run.cell.document].append(ratio)
    return dict(ratios)


def known(samples: Samples, metric: str) -> list[float]:
    """``metric`` of the samples that have one; a "speedup" is no metric of a single run."""
    values = (getattr(sample, metric, None) for sample in samples)
    return [value for value in values if value is not None]


def _sum(samples: Samples, name: str) -> int:
    return sum(getattr(sample, name) or 0 for sample in samples)


def _per_step(samples: Samples, bonus: int) -> Interval | None:
    """Accepted tokens and ``bonus`` a step; None where some steps are not known, or none is."""
    if any(sample.accepted is None or sample.steps is None for sample in samples):
        return None
    groups = by_document(samples).values()
    sums = [(_sum(group, "accepted"), _sum(group, "steps")) for group in groups]
    return ratio_of_sums_interval([(accepted + bonus * steps, steps) for accepted, steps in sums])


def _speedup(samples: Samples, baseline: Samples, metric: str) -> Interval | None:
    ratios = paired_ratios(samples, baseline, metric)
    return geometric_interval(list(ratios.values())) if ratios else None


def _over_floor(samples: Samples, floor: Floor) -> schema.OverFloor:
    prefill_s = sum(sample.prefill_target_s + sample.prefill_draft_s for sample in samples)
    level_s = floor.draft_level_bytes / floor.bandwidth_bytes_s
    least_s = _sum(samples, "steps") * floor.step_s + _sum(samples, "draft_forwards") * level_s
    decode = ratio_of(sum(sample.decode_s for sample in samples), least_s)
    is_known = all(sample.steps is not None for sample in samples)
    prefill = ratio_of(prefill_s, floor.prefill_s * len(samples))
    return schema.OverFloor(decode=decode if is_known else None, prefill=prefill)


def _energy_j_per_token(samples: Samples) -> float | None:
    """Joules of decoding over the tokens that it made, as in the decode rate."""
    metered = [run for run in samples if run.energy and run.new_tokens > 1]
    joules = sum(run.energy.decode for run in metered if run.energy)
    return ratio_of(joules, _sum(metered, "new_tokens") - len(metered))


def _profile_ms(samples: Samples) -> schema.Phases | None:
    """Mean milliseconds a step by phase; a level that few steps reach counts over all steps."""
    timed = [sample for sample in samples if sample.phases and sample.steps]
    if not timed:
        return None
    phases = [sample.phases for sample in timed if sample.phases]
    ms_a_step = 1000 / _sum(timed, "steps")
    levels = zip_longest(*(phase.draft_levels for phase in phases), fillvalue=0.0)
    rest = {name: sum(getattr(phase, name) for phase in phases) for name in schema.PHASES[1:]}
    return schema.Phases(
        draft_levels=[sum(level) * ms_a_step for level in levels],
        **{name: total * ms_a_step for name, total in rest.items()},
    )
