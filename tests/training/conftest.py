"""A small made-up corpus, tokenised with the real tokenizer of the bundled pair."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.batches import Source
from training.tasks import SequenceWriter
from training.train import TOKENIZER

_WORDS = np.array([
    "agency", "program", "budget", "committee", "report", "water", "energy", "review", "office",
    "region", "officials", "guidance", "funding", "survey", "harvest", "village", "river", "treaty",
    "election", "market", "school", "method", "protein", "climate", "council", "minister", "farmer",
])  # fmt: skip
_CONSONANTS = np.array(list("bdfgklmnprstv"))


def sentence(rng: np.random.Generator) -> str:
    """A sentence of 9 to 20 words, now and then with a lead-in or an insertion in brackets."""
    words = list(rng.choice(_WORDS, rng.integers(7, 18)))
    words.insert(3, f"{''.join(rng.choice(_CONSONANTS, 3))}or")
    if rng.random() < 0.3:
        words.insert(5, f"(see {rng.choice(_WORDS)})")
    text = f"the {' '.join(words)}."
    if rng.random() < 0.2:
        return f"However, {text}"
    return text[0].upper() + text[1:]


def document(rng: np.random.Generator) -> str:
    """Paragraphs of a few sentences each."""
    paragraphs = [
        " ".join(sentence(rng) for _ in range(rng.integers(2, 7)))
        for _ in range(rng.integers(8, 30))
    ]
    return "\n\n".join(paragraphs)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder: Path = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(5)
    rows = [
        {"text": document(rng), "cat": ["gov", "book"][n % 2], "source": f"made-up/{n}"}
        for n in range(150)
    ]
    for row in rows[:60]:
        row |= {"type": "textbook_chapter", "summary": sentence(rng)}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train_text.jsonl").write_text(lines, encoding="utf-8")
    made = Source(folder, folder / "cache", TOKENIZER / "tokenizer.json")
    made.load(processes=1)
    return made


@pytest.fixture(scope="session")
def writer(source: Source) -> SequenceWriter:
    return source.writer()
