"""What a journal holds, as the ``specx.bench/1`` object.

In: a setup and its journal. Out: the object that tables, plots, exports and comparisons are made
from. It does not know how samples were taken.
"""

from specx.bench.journal import Finished
from specx.bench.plan import Plan
from specx.bench.record import Object, Sample
from specx.bench.report import bench_object


def judged(plan: Plan, finished: Finished) -> list[Sample]:
    """The samples in the plan's order, each compared with plain decoding where there is a run."""
    samples = []
    for cell in plan.cells():
        sample = finished.samples.get(cell)
        if sample is None:
            continue
        plain = finished.samples.get(cell.model_copy(update={"mode": "plain"}))
        if plan.verify and plain is not None and plain is not sample:
            sample = sample.model_copy(
                update={
                    "equal": sample.tokens == plain.tokens,
                    "first_difference": finished.differences.get(cell),
                }
            )
        samples.append(sample)
    return samples


def result_object(
    plan: Plan,
    finished: Finished,
    *,
    environment: Object,
    build: Object,
    elapsed_s: float,
    stopped: str = "",
) -> Object:
    """The whole bench so far; cells that are neither measured nor impossible are missing too.

    ``stopped``: why the run ended early, "" when it did not.
    """
    missing = [
        (cell, finished.missing.get(cell, stopped or "not run"))
        for cell in plan.cells()
        if cell not in finished.samples
    ]
    header = {
        "schema": "specx.bench/1",
        "specx": build,
        "created": finished.created,
        "elapsed_s": elapsed_s,
        "finished": not missing and not stopped,
        "plan": plan.as_object(),
        "env": environment,
    }
    return bench_object(
        header,
        judged(plan, finished),
        list(finished.floors.values()),
        missing,
        warnings=[*_of_files(plan, finished), *_beyond_trained(plan)],
    )


def _of_files(plan: Plan, finished: Finished) -> list[tuple[str, str]]:
    """What the loader said of the models' files, preset by preset."""
    return [
        ("model_files", f"{preset.name}: {note}")
        for preset in plan.presets
        for note in finished.notes.get(preset.name, ())
    ]


def _beyond_trained(plan: Plan) -> list[tuple[str, str]]:
    """Where a stand-in's acceptance is no longer that of a pair that was trained for it."""
    warnings = []
    for preset in plan.presets:
        facts = preset.stand_in
        beyond = [
            length
            for length in plan.lengths
            if facts and length + plan.max_tokens > facts.trained_tokens
        ]
        if facts and beyond:
            message = (
                f"at {', '.join(map(str, beyond))} tokens the text and the acceptance of "
                f"{preset.name} mean nothing: the {facts.pair} pair inside was trained on up to "
                f"{facts.trained_tokens} tokens; times of steps and of the prefill, and memory hold"
            )
            warnings.append(("beyond_trained", message))
    return warnings
