"""The document's map: nothing of the text is lost, ticks stand where their heading does, counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.config import RetrievalConfig
from specx.documents.blocks import Section
from specx.trace.map import (
    DocumentMap,
    Retrievals,
    Tick,
    chunk_texts,
    map_prompt,
    token_text,
    why_nothing_is_retrieved,
)
from tests.helpers import preset_for, story, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=120)
RETRIEVAL = RetrievalConfig(chunk_tokens=8, top_chunks=2, sink_chunks=1, recent_chunks=2)


def tokens_of(text):
    return TOKENIZER.encode(text)


def labels(text):
    found = map_prompt(tokens_of(text), TOKENIZER, RETRIEVAL, text)
    return [(tick.kind, tick.label) for tick in found.ticks]


@given(TEXTS, st.integers(1, 9))
@settings(max_examples=200)
def test_the_chunks_are_the_text(text, chunk_tokens):
    tokens = tokens_of(text)
    chunks = chunk_texts(tokens, TOKENIZER, chunk_tokens)
    assert len(chunks) == -(-len(tokens) // chunk_tokens)
    assert "".join(chunks) == text


def test_a_character_is_not_cut_in_two():
    chunks = chunk_texts(tokens_of("日本語 😀😀"), TOKENIZER, 2)
    assert "".join(chunks) == "日本語 😀😀"
    assert not any("\ufffd" in chunk for chunk in chunks)


def test_special_tokens_are_no_text_of_a_chunk_but_of_a_token():
    assert chunk_texts([0, *tokens_of("harbour")], TOKENIZER, 64) == ["harbour"]
    assert token_text(TOKENIZER, 0) == "<|begin|>"
    (space, *_) = tokens_of(" storm")
    assert token_text(TOKENIZER, space).startswith(" ")


@given(TEXTS)
@settings(max_examples=200)
def test_any_text_has_a_map(text):
    tokens = tokens_of(text)
    found = map_prompt(tokens, TOKENIZER, RETRIEVAL, text)
    places = [tick.chunk for tick in found.ticks]
    assert places == sorted(places)
    assert all(0 <= place < len(found.chunks) for place in places)
    assert all(tick.label and "\n" not in tick.label for tick in found.ticks)


def test_markdown_headings_outside_code():
    text = "# One\n\ntext\n\n```\n# no heading\n```\n\n## Two  words ##\n\nShort title\n\n#tag\n"
    assert labels(text) == [("heading", "One"), ("heading", "Two words")]


def test_titles_where_there_is_no_markdown():
    text = "Background\n\nIt was a long night.\n\nNo title.\n\n12 Findings\n\n" + "word " * 40
    assert labels(text) == [("heading", "Background"), ("heading", "12 Findings")]


def test_pages_begin_behind_a_form_feed():
    text = "first page.\n\fsecond page.\n\f\n"
    assert labels(text) == [("page", "p. 2")]


def test_a_tick_stands_at_its_chunk():
    text = "# One\n\n" + story(60) + "\n\n# Two\n\n" + story(20)
    found = map_prompt(tokens_of(text), TOKENIZER, RETRIEVAL, text)
    second = found.ticks[1]
    before = len("".join(found.chunks[: second.chunk]))
    assert before <= text.index("# Two") < before + len(found.chunks[second.chunk])
    assert found.place_of(second.chunk + 1) == "Two"
    assert found.place_of(0) == "One"


def test_ticks_are_the_documents_and_not_the_instructions():
    document = "# One\n\ntext"
    prompt = tokens_of(f"# Instruction\n\n{document}\n\n# Another")
    found = map_prompt(prompt, TOKENIZER, RETRIEVAL, document)
    assert [tick.label for tick in found.ticks] == ["One"]
    whole = map_prompt(prompt, TOKENIZER, RETRIEVAL, "not in the prompt")
    assert [tick.label for tick in whole.ticks] == ["Instruction", "One", "Another"]


def test_sections_that_the_format_names_are_the_ticks():
    text = "# not a heading here\n\n" + story(60) + "\n\n" + story(40)
    places = ((0, "page", "p. 4"), (30, "heading", "Real"), (len(text) - 9, "page", "p. 5"))
    sections = [Section(*place) for place in places]
    found = map_prompt(tokens_of(text), TOKENIZER, RETRIEVAL, text, sections)
    assert [tick.label for tick in found.ticks] == ["p. 4", "Real", "p. 5"]
    assert found.place_of(found.ticks[1].chunk) == "p. 4 · Real"
    assert found.place_of(len(found.chunks) - 1) == "p. 5 · Real"


def a_map(chunks):
    return DocumentMap(("x",) * chunks, (Tick(0, "heading", "h"),), RETRIEVAL)


def test_chosen_chunks_are_counted_and_the_forced_ones_only_held():
    counts = Retrievals(a_map(10))
    counts.add(None)
    assert (counts.refreshes, counts.most) == (0, None)
    counts.add((0, 3, 5, 8, 9))  # 0: sink; 8 and 9: recent
    counts.add((0, 3, 6, 9, 10))  # 10 is the output's
    assert counts.refreshes == 2
    assert [counts.counts[chunk] for chunk in (0, 3, 5, 6, 8, 9)] == [0, 2, 1, 1, 0, 0]
    assert counts.held == {0, 3, 6, 9}
    assert counts.most == 3


def test_of_equals_the_one_that_is_held_is_quoted():
    counts = Retrievals(a_map(10))
    counts.add((0, 2, 8, 9))
    counts.add((0, 6, 8, 9))
    assert counts.most == 6


@given(
    st.lists(st.sets(st.integers(0, 40), min_size=3, max_size=6), max_size=5),
    st.integers(1, 40),
    st.integers(1, 90),
)
def test_cells_cover_every_chunk(refreshes, chunks, width):
    counts = Retrievals(a_map(chunks))
    for found in refreshes:
        counts.add(sorted(found))
    cells = counts.cells(width)
    assert len(cells) == width
    assert all(0 <= share <= 1 for share, _ in cells)
    assert any(share == 1 for share, _ in cells) == any(counts.counts)
    assert any(is_held for _, is_held in cells) == bool(counts.held)


def test_a_map_of_nothing():
    assert Retrievals(a_map(0)).cells(20) == []
    assert Retrievals(a_map(0)).most is None


@pytest.mark.parametrize(
    ("mode", "overrides", "prompt_tokens", "words"),
    [
        ("plain", {}, 9000, "no draft"),
        ("spec", {}, 9000, "whole text"),
        ("specx", {"parts.draft_cache": "window"}, 9000, "latest"),
        ("specx", {"parts.drafter": "lookup"}, 9000, "without a model"),
        ("auto", {}, 64, "fits"),
        ("auto", {}, 9000, ""),
    ],
)
def test_why_nothing_is_retrieved(tiny_pair, mode, overrides, prompt_tokens, words):
    reason = why_nothing_is_retrieved(preset_for(tiny_pair, overrides), mode, prompt_tokens)
    assert words in reason
    assert bool(reason) == bool(words)
