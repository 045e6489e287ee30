"""The runner over a subject with a clock of its own: which cells run, when, and what is kept."""

from pathlib import Path

import pytest

from specx.bench.runner import Loading, Measured, Missed, Running
from specx.bench.schema import BenchCell, Sample
from specx.bench.summary import report
from tests.bench.fakes import BUILD, ENVIRONMENT, Bench, new_journal, plan, resumed_journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_all_cells_run_in_order_each_mode_and_length_warmed_once(path: Path) -> None:
    of = plan()
    bench = Bench(of, new_journal(path, of))
    events = bench.events()
    measured = [event.sample.cell for event in events if isinstance(event, Measured)]
    assert measured == list(of.cells())
    warmups = [event.cell for event in events if isinstance(event, Running) and event.is_warmup]
    assert len(warmups) == 6
    assert len({(cell.mode, cell.length) for cell in warmups}) == 6
    assert len(bench.subject().ran) == of.size + 6
    assert isinstance(events[0], Loading)
    assert bench.runner is not None
    assert bench.runner.stopped == ""


def test_elapsed_time_is_the_clocks(path: Path) -> None:
    """Per document: 3 modes × (1 s + 2 s) prefill; decode 8 × 0.1, 4 × 0.25, 2 × 0.2 s twice.

    Document 1 decodes 10 % slower; the warm-ups repeat document 0 once.
    """
    of = plan()
    bench = Bench(of, new_journal(path, of))
    bench.events()
    decode_s = 2 * (0.8 + 1.0 + 0.4)
    assert bench.runner is not None
    assert bench.runner.elapsed_s == pytest.approx(3 * 9 + decode_s * (1 + 1 + 1.1))


def test_no_warmup_when_none_is_asked_for(path: Path) -> None:
    of = plan(warmup=0)
    bench = Bench(of, new_journal(path, of))
    bench.events()
    assert len(bench.subject().ran) == of.size


def judged(bench: Bench) -> list[Sample]:
    finished = bench.journal.finished
    found = report(bench.plan, finished, environment=ENVIRONMENT, build=BUILD, elapsed_s=1.0)
    return [sample for row in found.cells for sample in row.samples]


def test_equality_is_judged_against_plain_of_the_same_cell(path: Path) -> None:
    of = plan()
    bench = Bench(of, new_journal(path, of))
    bench.subject().wrong = frozenset({"spec"})
    bench.events()
    found = judged(bench)
    assert {(s.cell.mode, s.equal) for s in found} == {
        *(("plain", None), ("spec", False), ("specx", True)),
    }
    differences = [s.first_difference for s in found if not s.equal]
    assert {d.index for d in differences if d is not None} == {2}
    assert len(bench.journal.finished.differences) == 4


def test_without_verify_nothing_is_compared(path: Path) -> None:
    of = plan(verify=False)
    bench = Bench(of, new_journal(path, of))
    bench.subject().wrong = frozenset({"spec"})
    bench.events()
    assert {sample.equal for sample in judged(bench)} == {None}
    assert bench.journal.finished.differences == {}


def test_a_document_that_is_too_short_is_counted_not_fatal(path: Path) -> None:
    of = plan()
    bench = Bench(of, new_journal(path, of))
    bench.subject().shortest = 1500
    missed = [event for event in bench.events() if isinstance(event, Missed)]
    assert {(event.cell.document, event.cell.length) for event in missed} == {(1, 2000)}
    assert {event.reason for event in missed} == {"the document is too short"}
    assert len(bench.journal.finished.samples) == of.size - 3


def test_a_mode_without_memory_is_missing_and_the_rest_goes_on(path: Path) -> None:
    of = plan()
    bench = Bench(of, new_journal(path, of))
    bench.subject().no_memory = frozenset({"spec"})
    bench.events()
    assert {cell.mode for cell in bench.journal.finished.missing} == {"spec"}
    assert set(bench.journal.finished.missing.values()) == {"a cache of 1 GiB"}
    assert len(bench.journal.finished.samples) == of.size - 4


@pytest.mark.parametrize("budget_s", [1.0, 9.0, 15.0, 30.0, 33.0, 40.0])
def test_the_budget_is_not_exceeded_once_costs_are_known(path: Path, budget_s: float) -> None:
    of = plan(warmup=0)
    bench = Bench(of, new_journal(path, of), budget_s=budget_s)
    bench.events()
    assert bench.runner is not None
    finished = len(bench.journal.finished.samples)
    if finished < of.size:
        assert bench.runner.stopped == "budget"
    if finished > 4:  # both lengths were seen, so predictions hold but for the slower document
        assert bench.runner.elapsed_s <= budget_s * 1.1
    assert bench.journal.finished.missing == {}, "what the budget left out may be resumed"


def test_a_cancelled_run_keeps_what_was_finished(path: Path) -> None:
    of = plan()
    bench = Bench(of, new_journal(path, of))
    seen: list[BenchCell] = []

    def cancel_in_the_fifth(cell: BenchCell) -> None:
        seen.append(cell)
        if len(seen) == 5:
            assert bench.runner is not None
            bench.runner.cancel()

    bench.subject().on_run = cancel_in_the_fifth
    bench.events()
    assert bench.runner is not None
    assert bench.runner.stopped == "interrupted"
    assert len(bench.journal.finished.samples) == 2, "two warm-ups, two samples, one cancelled"


def test_a_resumed_run_measures_exactly_the_missing_cells(path: Path) -> None:
    of = plan()
    first = Bench(of, new_journal(path, of), budget_s=20.0)
    first.events()
    done = set(first.journal.finished.samples)
    assert 0 < len(done) < of.size
    second = Bench(of, resumed_journal(path, of))
    events = second.events()
    measured = {event.sample.cell for event in events if isinstance(event, Measured)}
    assert measured == set(of.cells()) - done
    assert set(second.journal.finished.samples) == set(of.cells())
    assert second.runner is not None
    assert first.runner is not None
    assert second.runner.elapsed_s > first.journal.finished.elapsed_s


def test_a_finished_journal_loads_no_weights(path: Path) -> None:
    of = plan()
    Bench(of, new_journal(path, of)).events()
    again = Bench(of, resumed_journal(path, of))
    assert again.events() == []
    assert again.subjects == {}


def test_presets_are_loaded_one_after_the_other(path: Path) -> None:
    of = plan(presets=("a", "b"))
    events = Bench(of, new_journal(path, of)).events()
    loads = [at for at, event in enumerate(events) if isinstance(event, Loading)]
    assert len(loads) == 2
    before = [e.sample.cell.preset for e in events[: loads[1]] if isinstance(e, Measured)]
    assert set(before) == {"a"}
