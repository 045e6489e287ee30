"""The order of cells, and the sentences that say how two plans differ."""

from collections import Counter

from specx.bench.journal import differences
from specx.bench.schema import StandInFacts
from tests.bench.fakes import plan


def test_every_cell_is_there_once() -> None:
    of = plan(reps=2, presets=("a", "b"), documents=3)
    cells = list(of.cells())
    assert len(cells) == len(set(cells)) == of.size == 2 * 2 * 3 * 2 * 3


def test_modes_take_turns_at_being_first() -> None:
    """A mode that always ran first would pay for whatever the length change costs."""
    of = plan(documents=3)
    firsts = Counter(group[0].mode for group in of.groups("tiny"))
    assert firsts == {"plain": 2, "spec": 2, "specx": 2}


def test_a_run_that_ends_early_has_all_lengths() -> None:
    of = plan(documents=3)
    first_document = list(of.cells())[: 2 * 3]
    assert {cell.length for cell in first_document} == {1000, 2000}
    assert {cell.document for cell in first_document} == {0}


def test_differences_name_the_setting_and_both_values() -> None:
    ours, theirs = plan(max_tokens=9).as_json(), plan(max_tokens=12).as_json()
    assert differences(ours, theirs) == ["max_tokens: 12 → 9"]
    assert differences(ours, ours) == []


def test_differences_reach_into_presets_and_documents() -> None:
    ours, theirs = plan(documents=2).as_json(), plan(documents=1).as_json()
    theirs["presets"][0]["sha256"] = "f" * 64
    found = "\n".join(differences(ours, theirs))
    assert "presets[0].sha256" in found
    assert "data.documents[1].name: absent → doc-1" in found


def test_other_weights_are_a_difference() -> None:
    """So a journal of stand-in weights is never gone on with on real ones."""
    facts = StandInFacts(pair="pocket", trained_tokens=2000, about="stand-in weights")
    found = differences(plan(stand_in=facts).as_json(), plan().as_json())
    assert "presets[0].stand_in.pair: absent → pocket" in found
