"""Every copied token has its source, and every answer says what it should."""

import numpy as np
import pytest

from training.batches import pointers
from training.tasks import Mixture, Sequence, SequenceWriter
from training.tokenizer import ASSISTANT, BOS, EOS, USER
from training.turns import SUMMARIZE, Kind, segments

CHAT = Mixture(text=0.0, abstract=0.0)


def sequences(writer: SequenceWriter, length: int, count: int) -> list[Sequence]:
    return [writer.write(np.random.default_rng([3, n]), length, CHAT) for n in range(count)]


def answers(sequence: Sequence) -> list[tuple[int, int]]:
    """(start, stop) of the complete answers; `stop` is where `</s>` stands."""
    out = []
    for stop in np.flatnonzero((sequence.tokens == EOS) & (sequence.kinds > 0)):
        start = stop
        while sequence.kinds[start - 1] > 0:
            start -= 1
        out.append((int(start), int(stop)))
    return out


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("length", [300, 1025, 4096])
def test_length_is_exact(writer: SequenceWriter, length: int):
    for mixture in (CHAT, Mixture(1.0, 0.0), Mixture(0.0, 1.0)):
        sequence = writer.write(np.random.default_rng(1), length, mixture)
        assert len(sequence.tokens) == len(sequence.kinds) == len(sequence.sources) == length
        assert sequence.tokens[0] == BOS


def test_same_seed_same_sequence(writer: SequenceWriter):
    one, two = (writer.write(np.random.default_rng(9), 2048, CHAT) for _ in range(2))
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.sources, two.sources)


def test_sources_hold_the_copied_token(writer: SequenceWriter):
    """Equal, or the first token of a respelled word: then both words read the same."""
    vocabulary = writer.vocabulary
    copied = loose = 0
    for sequence in sequences(writer, 3000, 12):
        for place in np.flatnonzero(sequence.sources >= 0):
            source = sequence.sources[place]
            assert source < place
            assert sequence.kinds[place] > 0
            assert sequence.kinds[source] == Kind.TEXT
            copied += 1
            if sequence.tokens[source] != sequence.tokens[place]:
                loose += 1
                there = vocabulary.texts[sequence.tokens[source]].strip().lower()
                here = vocabulary.texts[sequence.tokens[place]].strip().lower()
                assert there.startswith(here) or here.startswith(there)
    assert copied > 1000
    assert loose < 0.1 * copied


def test_quotes_and_notes_are_in_the_document_word_for_word(writer: SequenceWriter):
    checked = 0
    for sequence in sequences(writer, 3000, 12):
        for start, stop in answers(sequence):
            if sequence.kinds[start] == Kind.SUMMARY:
                continue
            opening = int(np.flatnonzero(sequence.tokens[:start] == BOS)[-1])
            read = flat(writer.vocabulary.decode(sequence.tokens[opening : start - 1]))
            answer = flat(writer.vocabulary.decode(sequence.tokens[start:stop]))
            assert not answer.startswith(" ")
            assert answer in read
            checked += 1
    assert checked > 50


def test_a_note_is_answered_with_its_content(writer: SequenceWriter):
    checked = 0
    for sequence in sequences(writer, 3000, 12):
        for start, stop in answers(sequence):
            if sequence.kinds[start] != Kind.NEEDLE:
                continue
            asked = int(np.flatnonzero(np.isin(sequence.tokens[:start], [USER]))[-1])
            text = writer.vocabulary.decode(sequence.tokens[asked:start])
            number = "".join(c if c.isdigit() else " " for c in text.splitlines()[-1]).split()[-1]
            opening = int(np.flatnonzero(sequence.tokens[:start] == BOS)[-1])
            read = flat(writer.vocabulary.decode(sequence.tokens[opening:start]))
            answer = flat(writer.vocabulary.decode(sequence.tokens[start:stop]))
            assert any(
                f" {number} {says}: {answer}" in read for says in ("says", "states", "reads")
            )
            checked += 1
    assert checked > 30


def test_summaries_march_through_the_document(writer: SequenceWriter):
    found = 0
    for sequence in sequences(writer, 3000, 20):
        for start, stop in answers(sequence):
            if sequence.kinds[start] != Kind.SUMMARY:
                continue
            found += 1
            assert sequence.tokens[start - 1] == ASSISTANT
            text = writer.vocabulary.decode(sequence.tokens[start:stop])
            assert "(" not in text
            assert "However" not in text
            sources = sequence.sources[start:stop]
            sources = sources[sources >= 0]
            assert (np.diff(sources) > 0).all()
            assert 2 <= text.count(".") <= 6
    assert found > 10


def test_default_instruction_is_the_usual_one(writer: SequenceWriter):
    usual = other = 0
    for sequence in sequences(writer, 2048, 30):
        for start, _ in answers(sequence):
            if sequence.kinds[start] == Kind.SUMMARY:
                text = writer.vocabulary.decode(sequence.tokens[start - 30 : start - 1])
                usual, other = usual + text.endswith(SUMMARIZE), other + 1
    assert usual > 0.65 * other


def test_segments_grow_with_the_document():
    assert [segments(size) for size in (399, 400, 799, 800, 1599, 1600, 16000)] == [
        2, 3, 3, 4, 4, 6, 6,
    ]  # fmt: skip


def test_the_query_stands_one_before_the_copied_token(writer: SequenceWriter):
    sequence = sequences(writer, 2048, 1)[0]
    rows, sources = pointers(sequence, np.random.default_rng(0), 64)
    assert len(rows) == 64
    assert np.array_equal(sequence.sources[rows + 1], sources)
    equal = sequence.tokens[rows + 1] == sequence.tokens[sources]
    assert equal.mean() > 0.8


def test_held_out_documents_are_others(source, writer: SequenceWriter):
    held = source.writer(held_out=True)

    def members(one: SequenceWriter) -> set[int]:
        return {int(n) for pool, _ in one.library._pools.values() for n in pool}

    assert members(held)
    assert not members(held) & members(writer)
