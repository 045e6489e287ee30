"""The judging programs: the arithmetic of the model card's tables."""

import json
from pathlib import Path
from typing import Any

import pytest

import specx
from training import evaluate


def test_repeated_4grams_are_counted_once_per_repetition() -> None:
    assert evaluate.repeated_share(list("abcde"), 4) == 0.0
    # a b c d | b c d a | c d a b | d a b c | a b c d: one of five occurred before.
    assert evaluate.repeated_share(list("abcdabcd"), 4) == pytest.approx(0.2)
    assert evaluate.repeated_share(["a", "b"], 4) == 0.0


def test_tokens_per_step_weighs_documents_by_their_steps() -> None:
    rows = [{"steps": 10, "accepted": 30}, {"steps": 30, "accepted": 10}]
    assert evaluate.tokens_per_step(rows) == pytest.approx(2.0)
    assert evaluate.tokens_per_step([]) == 0.0


def test_a_sentence_is_planted_between_sentences() -> None:
    text = "One is here. Two is there. Three is gone."
    assert evaluate.plant(text, "NOTE.", 0.4) == "One is here. Two is there. NOTE. Three is gone."
    assert evaluate.plant(text, "NOTE.", 0.0).startswith("One is here. NOTE. Two")


def test_the_frame_of_shipped_prompts_is_removed(tmp_path: Path) -> None:
    """Regression: the closing "### Summary:" of the prompts stayed in the document."""
    path = tmp_path / "rows.jsonl"
    framed = "Summarize this.\n### Text:\n\nThe text itself.\n\n### Summary:\n"
    path.write_text(json.dumps({"text": framed, "answer": "short"}) + "\n")
    assert evaluate.read_documents(path) == [{"text": "The text itself.", "answer": "short"}]


def test_short_documents_are_continued_by_the_next() -> None:
    rows = [{"text": "a" * 10}, {"text": "b" * 10}, {"text": "c" * 10}]
    assert evaluate.joined(rows, 15)[2] == "c" * 10 + "\n\n" + "a" * 10


def test_a_cut_prompt_has_the_length_asked_for() -> None:
    engine = specx.load("pocket", device="cpu", offline=True)
    report = (Path(specx.__file__).parent / "pocket" / "report.txt").read_text(encoding="utf-8")
    for tokens in (200, 777):
        prompt = engine.prompt(evaluate.cut(engine, report, tokens))
        assert tokens - 3 <= len(prompt.tokens) <= tokens


def test_the_card_has_a_row_for_everything_measured() -> None:
    row: dict[str, Any] = {"steps": 10, "accepted": 20}
    results = {
        "date": "2026-01-01", "device": "cpu", "torch": "2.13",
        "needle": {"1024": {"tries": 50, "hits": 49}},
        "acceptance": {"spec": {"1024": [row]}, "specx": {"1024": [row]}},
    }  # fmt: skip
    card = evaluate.card(results)
    assert "| 1024 | 49 of 50 |" in card
    assert "| `specx` | 3.00 |" in card
