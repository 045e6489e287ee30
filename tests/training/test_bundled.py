"""The pair inside the package: it loads without a network, reads its document, and decodes
losslessly; and the effect that the method is for is there."""

from pathlib import Path

import pytest

import specx
from specx.engine import Engine
from training.evaluate import cut

_REPORT = Path(specx.__file__).parent / "pocket" / "report.txt"
_FIXED = {"tree.size": "fixed", "tree.nodes": 24, "tree.depth": 6}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return specx.load("pocket", overrides=_FIXED, device="cpu", offline=True)


@pytest.fixture(scope="module")
def report() -> str:
    return _REPORT.read_text(encoding="utf-8")


def test_the_pair_and_its_tokenizer_fit_the_promised_size() -> None:
    folder = _REPORT.parent
    files = [*folder.glob("target/*"), *folder.glob("draft/*")]
    assert sum(path.stat().st_size for path in files) < 64e6
    assert max(path.stat().st_size for path in files) < 16e6


def test_a_planted_sentence_is_copied_out(engine: Engine, report: str) -> None:
    start = cut(engine, report, 1200)
    middle = start.index(". ", len(start) // 2) + 2
    note = "Note 7301 says: the amber telescope of Galway weighs 219 pounds. "
    document = start[:middle] + note + start[middle:]
    result = engine.generate(engine.prompt(document, "What does note 7301 say?"), max_tokens=48)
    assert result.text == "the amber telescope of Galway weighs 219 pounds."
    assert result.finish_reason == "eos"


def test_every_mode_writes_the_same_summary(engine: Engine, report: str) -> None:
    prompt = engine.prompt(cut(engine, report, 1500))
    results = [
        engine.generate(prompt, mode=mode, max_tokens=24) for mode in ("plain", "spec", "specx")
    ]
    assert len({result.tokens for result in results}) == 1
    assert len({result.text for result in results}) == 1
    assert results[0].text.startswith("Medicare is the national health insurance program")


def test_retrieval_keeps_acceptance_where_a_full_cache_and_a_window_lose_it(
    engine: Engine, report: str
) -> None:
    """At twice the draft's trained length, as at sixteen: see the model card.
    Without copies from the text, which make up for much of what the window loses."""
    prompt = engine.prompt(cut(engine, report, 2048))
    window = specx.load("pocket", overrides=_FIXED | {"parts.draft_cache": "window"}, device="cpu")
    steps = {
        name: pair.generate(
            prompt, mode=mode, max_tokens=32, parts={"copies": "none"}
        ).stats.tokens_per_step
        for name, pair, mode in (
            ("full", engine, "spec"),
            ("window", window, "specx"),
            ("retrieval", engine, "specx"),
        )
    }
    assert steps["retrieval"] > 3.0 > steps["window"], steps
    assert steps["retrieval"] > 2.0 * steps["full"], steps
