"""The report: rates and summaries worked by hand, order, schema, and every warning."""

import json
import math

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.bench.schema import (
    BenchCell,
    Equality,
    Interval,
    OverFloor,
    Phases,
    Sample,
)
from specx.bench.summary import summarize
from specx.cli.help import read_schema
from tests.bench.objects import (
    NEW_TOKENS,
    bench_object,
    bench_of,
    floor,
    header,
    sample,
    samples,
    with_difference,
    with_energy,
)


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(read_schema("bench"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def run(mode="specx", document=0, rep=0, **changes):
    """A run of round numbers: 11 tokens in 2 s after 1 s of prefill."""
    fields = {
        "prompt_tokens": 1000,
        "new_tokens": 11,
        "prefill_target_s": 0.8,
        "prefill_draft_s": 0.2,
        "ttft_s": 1.0,
        "decode_s": 2.0,
        "total_s": 3.0,
        "steps": 4,
        "accepted": 6,
        "drafted": 32,
        "draft_forwards": 12,
        "tokens": list(range(11)),
    }
    return sample(mode=mode, document=document, rep=rep, **fields | changes)


def summary(runs, baseline=(), bound=None):
    return summarize(runs, baseline, bound)


def codes(bench):
    """Of all warnings but the one that most of these benches, of three documents, have."""
    found = [warning.code for warning in bench.warnings]
    return [code for code in found if code != "few_documents"]


def message(bench, code):
    return next(warning.message for warning in bench.warnings if warning.code == code)


def changed(mode=None, **fields):
    """A change of all runs, or of one mode's, for ``bench_object``."""

    def change(each: Sample) -> Sample:
        return each.model_copy(update=fields) if mode in (None, each.cell.mode) else each

    return change


# LiveRates


def test_rates_worked_by_hand():
    one = run()
    assert one.prefill_tok_s == pytest.approx(1000 / (0.8 + 0.2))
    assert one.decode_tok_s == pytest.approx((11 - 1) / 2.0)
    assert one.end_to_end_tok_s == pytest.approx(11 / 3.0)


@pytest.mark.parametrize("new_tokens", [0, 1])
def test_one_token_has_no_decode_rate(new_tokens):
    assert run(new_tokens=new_tokens, decode_s=0.0).decode_tok_s is None
    found = summary([run(new_tokens=new_tokens, decode_s=0.0, steps=0, accepted=0)])
    assert found.decode_tok_s is None
    assert found.tokens_per_step is None


def test_a_clock_that_stood_still_gives_no_rate():
    assert run(decode_s=0.0).decode_tok_s is None
    assert run(decode_s=5e-324).decode_tok_s is None  # would be infinite
    assert run(prefill_target_s=0.0, prefill_draft_s=0.0).prefill_tok_s is None
    assert run(total_s=0.0).end_to_end_tok_s is None


# Summaries


def test_a_summary_worked_by_hand():
    found = summary(
        [run(decode_s=2.0), run(document=1, decode_s=5.0), run(document=2, decode_s=1.0)]
    )
    assert (found.n, found.documents, found.steps) == (3, 3, 12)
    # 10 / 2, 10 / 5, 10 / 1 = 5, 2, 10; mean 17 / 3; squares of −2/3, −11/3, 13/3 sum to 294 / 9
    spread = found.decode_tok_s
    assert (spread.median, spread.low, spread.high, spread.outliers) == (5.0, 2.0, 10.0, 0)
    assert spread.mean == pytest.approx(17 / 3)
    assert spread.sd == pytest.approx(math.sqrt(294 / 9 / 2))
    assert found.accepted_per_step == Interval(value=1.5, low=1.5, high=1.5, n=3)
    assert found.tokens_per_step == Interval(value=2.5, low=2.5, high=2.5, n=3)


def test_tokens_a_step_is_a_ratio_of_sums_over_documents():
    found = summary([run(steps=2, accepted=8), run(document=1, steps=4, accepted=1)])
    assert found.tokens_per_step == Interval(value=1 + 9 / 6, low=1.25, high=5.0, n=2)


def test_one_document_has_no_bounds():
    found = summary([run(rep=0), run(rep=1)])
    assert found.tokens_per_step == Interval(value=2.5, low=None, high=None, n=1)
    assert (found.n, found.documents) == (2, 1)


def test_unknown_steps_stay_unknown():
    found = summary([run("hf-assisted", steps=None, accepted=None, drafted=None)], bound=floor())
    assert found.steps is None
    assert found.tokens_per_step is None
    assert found.floor.decode is None
    assert found.floor.prefill is not None


def test_speedup_is_the_geometric_mean_over_documents():
    # Decode rates over plain's on the same document: 4/2 = 2 and 16/2 = 8; √(2 · 8) = 4.
    plain = [run("plain", decode_s=4.0), run("plain", document=1, decode_s=16.0)]
    found = summary([run(), run(document=1)], plain)
    assert found.speedup.value == pytest.approx(4.0)
    assert found.speedup.low == pytest.approx(2.0)
    assert found.speedup.high == pytest.approx(8.0)
    assert found.speedup.n == 2
    # Total times are 3.0 in all of these.
    assert found.end_to_end_speedup.value == pytest.approx(1.0)


def test_speedup_pairs_repetitions_and_takes_their_median():
    plain = [run("plain", rep=rep, decode_s=time_s) for rep, time_s in enumerate((2.0, 4.0, 40.0))]
    found = summary([run(rep=rep) for rep in range(3)], plain)
    assert found.speedup.value == pytest.approx(2.0)  # of 1, 2 and 20
    assert found.speedup.low is None


def test_documents_without_a_pair_do_not_count():
    plain = [run("plain", document=1, decode_s=4.0)]
    found = summary([run(document=0), run(document=1)], plain)
    assert found.speedup == Interval(value=found.speedup.value, low=None, high=None, n=1)
    assert summary([run()], []).speedup is None
    assert summary([run()], [run("plain", document=1)]).speedup is None


def test_the_floor_worked_by_hand():
    # A step reads 50 MB at 10 GB/s: 5 ms. A level of the draft 5 MB: 0.5 ms. 4 steps and 12 levels:
    # 4 · 5 + 12 · 0.5 = 26 ms. Prefill 4,000,000 · 1024 / 10¹¹ = 40.96 ms.
    found = summary([run(decode_s=0.052), run(document=1, decode_s=0.104)], bound=floor())
    assert found.floor.decode == pytest.approx((0.052 + 0.104) / (2 * 0.026))
    assert found.floor.prefill == pytest.approx(2 * (0.8 + 0.2) / (2 * 0.04096))


def test_a_witness_is_held_against_its_own_steps():
    witness = run("hf", steps=10, draft_forwards=None, decode_s=0.1)
    assert summary([witness], bound=floor()).floor.decode == pytest.approx(0.1 / 0.05)


def test_no_floor_no_ratio():
    assert summary([run()]).floor is None
    nothing = floor(step_bytes=0, step_flop=0, draft_level_bytes=0, prefill_flop=0)
    assert summary([run()], bound=nothing).floor == OverFloor(decode=None, prefill=None)


def test_the_profile_is_milliseconds_a_step():
    deep = Phases(draft_levels=[0.4, 0.2], verify=1.2, host=0.04)
    flat = Phases(draft_levels=[0.4], verify=0.8)
    found = summary([run(phases=deep), run(document=1, phases=flat)]).profile_ms
    assert found.draft_levels == pytest.approx([800 / 8, 200 / 8])  # over all 8 steps
    assert found.verify == pytest.approx(2000 / 8)
    assert found.host == pytest.approx(40 / 8)
    assert list(found.as_json()) == [
        "draft_levels",
        "draft_tree",
        "verify",
        "accept",
        "commit",
        "retrieve",
        "host",
    ]


def test_no_phases_no_profile():
    assert summary([run("hf", phases=None)]).profile_ms is None
    assert summary([run(steps=0, accepted=0)]).profile_ms is None


def test_energy_is_that_of_decoding():
    assert summary([with_energy(run()), run(document=1)]).energy_j_per_token == 0.5
    assert summary([run()]).energy_j_per_token is None


def test_memory_is_the_largest():
    small, large = run(), sample(length=4096, document=1)
    found = summary([small, large]).memory
    assert found == large.memory


def test_equality_counts_what_was_compared():
    different = with_difference(sample(document=1, rep=1))
    found = summary([sample(), different, sample(document=2, equal=None)])
    assert found.equal == Equality(checked=2, equal=1)
    assert found.first_difference.model_dump() == {
        "document": 1,
        "rep": 1,
        "index": 17,
        "expected": 217,
        "got": 9,
        "margin": 0.0001,
    }
    assert summary([sample(equal=None)]).equal is None


# The whole object


def test_cells_stand_in_the_plan_s_order_whatever_was_measured_first():
    names = {"presets": ("zeta", "alpha"), "modes": ("specx", "plain"), "lengths": (512, 2048)}
    runs = samples(**names, documents=2, reps=2)
    bench = bench_of(header(**names), runs[::-1])
    assert [(cell.preset, cell.length, cell.mode) for cell in bench.cells] == [
        (preset, length, mode)
        for preset in ("zeta", "alpha")
        for length in (512, 2048)
        for mode in ("specx", "plain")
    ]
    for cell in bench.cells:
        order = [(each.cell.document, each.cell.rep) for each in cell.samples]
        assert order == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert bench == bench_of(header(**names), runs)


def test_the_schema_describes_all_of_it(validator):
    modes = ("plain", "spec", "specx", "lookup", "hf", "hf-assisted", "standard+window")
    missing = [(BenchCell(preset="pocket", mode="hf", length=1024, document=0, rep=1), "budget")]
    bench = bench_object(
        modes=modes, reps=2, missing=missing, warnings=[("swap", "close programs")]
    )
    validator.validate(json.loads(json.dumps(bench.as_json(), allow_nan=False)))
    assert list(bench.as_json())[:8] == [
        *("schema", "specx", "created", "elapsed_s", "finished", "plan", "env", "floors"),
    ]
    assert [each.as_json() for each in bench.missing] == [
        {
            "cell": {"preset": "pocket", "mode": "hf", "length": 1024, "document": 0, "rep": 1},
            "reason": "budget",
        }
    ]
    assert bench.warnings[0].as_json() == {"code": "swap", "message": "close programs"}


@pytest.mark.parametrize("change", [with_difference, with_energy, changed(decode_s=0.0, steps=0)])
def test_the_schema_describes_unusual_runs(validator, change):
    validator.validate(
        json.loads(json.dumps(bench_object(change=change).as_json(), allow_nan=False))
    )


def test_a_bench_without_runs_is_a_bench(validator):
    bench = bench_of(header(), [])
    validator.validate(bench.as_json())
    assert (bench.cells, bench.warnings) == ([], [])


def test_every_sample_is_kept_as_it_was():
    bench = bench_object(reps=2)
    kept = [each for row in bench.cells for each in row.samples]
    key = BenchCell.model_dump_json
    assert sorted(kept, key=lambda each: key(each.cell)) == sorted(
        samples(reps=2), key=lambda each: key(each.cell)
    )


def test_floors_say_what_follows_from_them():
    first = bench_object().floors[0]
    assert (first.step_s, first.bound) == (0.005, "memory")
    assert first.prefill_s == pytest.approx(0.04096)
    assert bench_object(floors=False).cells[0].summary.floor is None


def test_the_baseline_has_no_speedup_and_the_others_are_over_it():
    bench = bench_object(documents=1)
    by_mode = {cell.mode: cell.summary for cell in bench.cells if cell.length == 1024}
    assert by_mode["plain"].speedup is None
    # 32 plain steps of 10 ms against 8 of 16 ms and 16 of 16 ms
    assert by_mode["specx"].speedup.value == pytest.approx(32 / (8 * 1.6))
    assert by_mode["spec"].speedup.value == pytest.approx(32 / (16 * 1.6))
    other = bench_object(documents=1, baseline="spec").cells[0].summary
    assert other.speedup.value == pytest.approx(16 * 1.6 / 32)


@given(
    times=st.lists(st.sampled_from([0.0, 1e-9, 0.5, 3.0, 1e6]), min_size=6, max_size=6),
    tokens=st.lists(st.integers(0, NEW_TOKENS), min_size=6, max_size=6),
)
@settings(max_examples=25)
def test_no_run_can_put_nan_or_infinity_into_the_object(validator, times, tokens):
    wild = [
        each.model_copy(update={"decode_s": time_s, "total_s": time_s, "new_tokens": count})
        for each, time_s, count in zip(
            samples(modes=("plain", "specx"), lengths=(1024,)), times, tokens, strict=True
        )
    ]
    bench = bench_of(header(), wild, [floor()])
    validator.validate(json.loads(json.dumps(bench.as_json(), allow_nan=False)))


# Warnings


def test_a_calm_bench_warns_of_nothing():
    assert bench_object(modes=("plain", "spec", "specx"), documents=5, reps=3).warnings == []


def test_noisy_names_the_worst_row():
    def shake(each):
        if each.cell.mode == "specx" and each.cell.length == 2048 and each.cell.rep == 1:
            return each.model_copy(update={"decode_s": each.decode_s * 1.25})
        return each

    bench = bench_object(reps=3, change=shake)
    assert codes(bench) == ["noisy"]
    # Repetitions take 1, 1.01 · 1.25 and 1.02: rates 1, 0.792 and 0.980; (1 − 0.792) / 0.980 = 21 %
    assert "21%" in message(bench, "noisy")
    assert "specx at 2048 tokens; 1 row over 10%" in message(bench, "noisy")


def test_documents_that_differ_are_not_noise():
    def slow_document(each):
        factor = 3.0 if each.cell.document == 1 else 1.0
        return each.model_copy(update={"decode_s": each.decode_s * factor})

    assert codes(bench_object(reps=2, change=slow_document)) == []


def test_a_slow_first_repetition_asks_for_warmup():
    def cold(each):
        update = {"total_s": each.total_s * 1.5}
        return each.model_copy(update=update) if each.cell.rep == 0 else each

    bench = bench_object(reps=3, change=cold)
    assert codes(bench) == ["first_run_slow"]
    assert "--warmup (now 1)" in message(bench, "first_run_slow")
    assert "6 rows" in message(bench, "first_run_slow")


def test_one_slow_document_is_no_slow_start():
    def cold(each):
        slow = each.cell.rep == 0 and each.cell.document == 0
        return each.model_copy(update={"total_s": each.total_s * 1.5}) if slow else each

    assert codes(bench_object(reps=3, change=cold)) == []


def test_short_outputs_are_counted():
    bench = bench_object(change=changed("spec", new_tokens=7, finish_reason="eos"))
    assert codes(bench) == ["short_output"]
    said = message(bench, "short_output")
    assert "before 33 tokens in 2 rows, the shortest after 7 (spec at 1024 tokens)" in said
    assert "finish_reason" in said


@pytest.mark.parametrize(("documents", "warns"), [(1, True), (4, True), (5, False)])
def test_few_documents(documents, warns):
    bench = bench_object(documents=documents)
    found = [warning.code for warning in bench.warnings]
    assert found == (["few_documents"] if warns else [])
    if warns:
        assert f"plain at 1024 tokens: {documents}" in message(bench, "few_documents")


def test_low_acceptance_is_of_drafting_runs_only():
    bench = bench_object(change=changed("spec", accepted=0))
    assert codes(bench) == ["low_acceptance"]
    assert "1.00 tokens a step (spec at 1024 tokens; 2 rows" in message(bench, "low_acceptance")
    left = bench_object(change=changed("spec", accepted=0, mode_reason="drafting costs more"))
    assert codes(left) == []  # auto has left drafting and said so


def test_unequal_says_where_and_how_close():
    bench = bench_object(
        change=lambda run: with_difference(run) if run.cell.mode == "spec" else run
    )
    assert codes(bench) == ["unequal"]
    assert "6 of 12 outputs differ" in message(bench, "unequal")
    assert "spec at 1024 tokens, document 0, token 17, logit margin 0.0001" in message(
        bench, "unequal"
    )


def test_prompts_of_another_length():
    bench = bench_object(change=changed("spec", prompt_tokens=1000))
    assert codes(bench) == ["shorter_prompts"]
    assert "2 rows" in message(bench, "shorter_prompts")


def test_several_presets_are_told_apart():
    bench = bench_object(presets=("pocket", "other"), documents=1)
    assert "plain of pocket at 1024 tokens" in message(bench, "few_documents")
