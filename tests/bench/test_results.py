"""From fake runs to the finished object and its table, number by number.

``UPDATE_SNAPSHOTS=1`` rewrites the files in ``snapshots``; read the difference before you
commit it.
"""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from specx.bench.render.html import to_html
from specx.bench.render.markdown import to_markdown
from specx.bench.schema import Bench as BenchReport
from specx.bench.schema import Equality, StandInFacts
from specx.bench.summary import report
from specx.cli.help import read_schema
from tests.bench.fakes import BUILD, ENVIRONMENT, Bench, new_journal, plan, resumed_journal

_SNAPSHOTS = Path(__file__).parent / "snapshots"


def _bench(path: Path, **changes: Any) -> BenchReport:
    of = plan(**changes)
    bench = Bench(of, new_journal(path, of))
    bench.subject().wrong = frozenset({"spec"})
    bench.events()
    assert bench.runner is not None
    return report(
        of,
        bench.journal.finished,
        environment=ENVIRONMENT,
        build=BUILD,
        elapsed_s=bench.runner.elapsed_s,
        stopped=bench.runner.stopped,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> BenchReport:
    return _bench(tmp_path_factory.mktemp("bench") / "journal.jsonl", documents=3)


def _validate(found: BenchReport) -> None:
    jsonschema.Draft202012Validator(json.loads(read_schema("bench"))).validate(found.as_json())


def _check(name: str, text: str) -> None:
    path = _SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_json_is_the_snapshot(found: BenchReport) -> None:
    # Sums of floats may differ in the last digit between machines.
    rounded = json.loads(
        json.dumps(found.as_json()), parse_float=lambda text: round(float(text), 9)
    )
    _check("bench.json", json.dumps(rounded, indent=1) + "\n")


def test_the_table_is_the_snapshot(found: BenchReport) -> None:
    _check("bench.md", to_markdown(found, profile=True))


def test_the_object_fits_its_schema(found: BenchReport) -> None:
    _validate(found)


def test_rates_and_speedups_by_hand(found: BenchReport) -> None:
    """plain: 8 tokens in 8 × 0.1 s; spec: 8 in 4 × 0.25 s; specx: 8 in 2 × 0.2 s."""
    rows = {(cell.mode, cell.length): cell.summary for cell in found.cells}
    assert rows["plain", 1000].decode_tok_s.high == pytest.approx(8 / 0.8)
    assert rows["spec", 1000].decode_tok_s.high == pytest.approx(8 / 1.0)
    assert rows["specx", 2000].decode_tok_s.high == pytest.approx(8 / 0.4)
    assert rows["plain", 1000].speedup is None
    assert rows["spec", 1000].speedup.value == pytest.approx(0.8)
    assert rows["specx", 1000].speedup.value == pytest.approx(2.0)
    assert rows["specx", 1000].speedup.low == pytest.approx(2.0), "no spread, no interval"
    assert rows["specx", 1000].tokens_per_step.value == pytest.approx(4.0)
    assert rows["specx", 1000].accepted_per_step.value == pytest.approx(3.0)
    assert rows["plain", 1000].prefill_tok_s.median == pytest.approx(1000.0)
    end_to_end = rows["specx", 1000].end_to_end_speedup.value
    by_document = [(1 + 0.8 * slow) / (1 + 0.4 * slow) for slow in (1.0, 1.1, 1.2)]
    assert end_to_end == pytest.approx(
        (by_document[0] * by_document[1] * by_document[2]) ** (1 / 3)
    )


def test_distance_from_the_floor_by_hand(found: BenchReport) -> None:
    """A step reads 50 MB at 1 GB/s: 50 ms; specx drafts two levels of 5 MB more: 60 ms."""
    rows = {(cell.mode, cell.length): cell.summary for cell in found.cells}
    slower = (1.0 + 1.1 + 1.2) / 3
    assert rows["plain", 1000].floor.decode == pytest.approx(0.1 * slower / 0.05)
    assert rows["specx", 1000].floor.decode == pytest.approx(0.2 * slower / 0.06)
    assert rows["plain", 1000].floor.prefill == pytest.approx(1.0 / 0.5)


def test_unequal_outputs_are_counted_and_located(found: BenchReport) -> None:
    rows = {cell.mode: cell.summary for cell in found.cells if cell.length == 1000}
    assert rows["spec"].equal == Equality(checked=3, equal=0)
    assert rows["specx"].equal == Equality(checked=3, equal=3)
    assert rows["spec"].first_difference.index == 2
    assert "unequal" in {warning.code for warning in found.warnings}


def test_a_bench_that_stopped_says_which_cells_are_missing(tmp_path: Path) -> None:
    of = plan()
    bench = Bench(of, new_journal(tmp_path / "j.jsonl", of), budget_s=20.0)
    bench.events()
    assert bench.runner is not None
    found = report(
        of,
        bench.journal.finished,
        environment=ENVIRONMENT,
        build=BUILD,
        elapsed_s=20.0,
        stopped=bench.runner.stopped,
    )
    assert not found.finished
    measured = sum(len(cell.samples) for cell in found.cells)
    assert len(found.missing) == of.size - measured > 0
    assert {row.reason for row in found.missing} == {"budget"}
    to_markdown(found, profile=False)


def test_a_bench_without_any_sample_is_an_object_too() -> None:
    from specx.bench.journal import Finished

    found = report(
        plan(), Finished(), environment=ENVIRONMENT, build=BUILD, elapsed_s=0.0, stopped="budget"
    )
    assert found.cells == []
    assert not found.finished


def test_what_the_loader_said_is_kept_and_shown(tmp_path: Path) -> None:
    """Preset by preset, also after a resumption that had nothing to load."""
    of = plan(presets=("one", "other", "silent"))
    bench = Bench(of, new_journal(tmp_path / "j.jsonl", of))
    bench.subject("one").notes = ("weights from a .bin", "rotary base 10000")
    bench.subject("other").notes = ("rotary base 10000",)
    bench.events()
    again = Bench(of, resumed_journal(tmp_path / "j.jsonl", of))
    again.events()
    assert again.subjects == {}, "nothing was loaded"
    for each in (bench, again):
        found = report(
            of, each.journal.finished, environment=ENVIRONMENT, build=BUILD, elapsed_s=1.0
        )
        told = [item.message for item in found.warnings if item.code == "model_files"]
        assert told == [
            "one: weights from a .bin",
            "one: rotary base 10000",
            "other: rotary base 10000",
        ]
        _validate(found)
        assert "- one: weights from a .bin\n" in to_markdown(found, profile=False)
        assert "one: weights from a .bin" in to_html(found)


def test_lengths_that_a_stand_in_was_not_trained_on_are_warned_of(tmp_path: Path) -> None:
    """Its times hold there, its acceptance means nothing."""
    facts = StandInFacts(pair="pocket", trained_tokens=2008, about="stand-in weights: …")
    found = _bench(tmp_path / "journal.jsonl", stand_in=facts)
    (message,) = [each.message for each in found.warnings if each.code == "beyond_trained"]
    assert message.startswith("at 2000 tokens the text and the acceptance of tiny mean nothing")
    assert "mean nothing" in to_markdown(found, profile=False)
    _validate(found)
    fits = facts.model_copy(update={"trained_tokens": 2009})
    found = _bench(tmp_path / "other.jsonl", stand_in=fits)
    assert "beyond_trained" not in [each.code for each in found.warnings]
