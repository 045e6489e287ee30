"""Cross-model Retrieval: scores against float64, and which chunks survive."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specx.core.config import RetrievalConfig
from specx.core.retrieval import Selection, chunk_scores, select, select_recent

_WIDTH = 16
_SCALE = _WIDTH**-0.5


def _query_keys(
    rows: int, heads: int = 8, kv_heads: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    query = torch.randn(heads, _WIDTH, generator=noise)
    return query, torch.randn(kv_heads, rows, _WIDTH, generator=noise)


def _select(config: RetrievalConfig, query: Tensor, keys: Tensor) -> Selection:
    scores = chunk_scores(query, keys, _SCALE, config.chunk_tokens)
    return select(config, scores, torch.tensor(keys.shape[1]))


def _rows(selection: Selection) -> list[int]:
    return selection.rows[: int(selection.count)].tolist()


def _chunks(selection: Selection) -> list[int]:
    return [chunk for chunk in selection.chunks.tolist() if chunk >= 0]


def _naive_scores(query: Tensor, keys: Tensor, chunk_tokens: int) -> Tensor:
    """Float64, head by head and chunk by chunk."""
    group = query.shape[0] // keys.shape[0]
    mean = torch.zeros(keys.shape[1], dtype=torch.float64)
    for head, vector in enumerate(query.double()):
        mean += (keys[head // group].double() @ vector * _SCALE).softmax(dim=0) / query.shape[0]
    return torch.stack([chunk.mean() for chunk in mean.split(chunk_tokens)])


def _keys_with_masses(masses: Tensor) -> tuple[Tensor, Tensor]:
    """One head whose attention probability at row i is proportional to ``masses[i]``."""
    query = torch.zeros(1, _WIDTH)
    query[0, 0] = 1.0 / _SCALE
    keys = torch.zeros(1, masses.shape[0], _WIDTH)
    keys[0, :, 0] = masses.double().log().float()
    return query, keys


@st.composite
def configs(draw: st.DrawFn) -> RetrievalConfig:
    return RetrievalConfig(
        chunk_tokens=draw(st.integers(1, 9)),
        top_chunks=draw(st.integers(0, 5)),
        sink_chunks=draw(st.integers(0, 3)),
        recent_chunks=draw(st.integers(1, 4)),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (7, 1), (8, 1)])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 500])
def test_scores_are_those_of_float64(heads: int, kv_heads: int, rows: int) -> None:
    query, keys = _query_keys(rows, heads, kv_heads)
    got = chunk_scores(query, keys, _SCALE, 32)
    assert got.dtype == torch.float32
    want = _naive_scores(query, keys, 32)
    torch.testing.assert_close(got.double(), want, atol=0.0, rtol=1e-4)


def test_a_partial_last_chunk_is_averaged_over_its_own_rows() -> None:
    """Equal attention everywhere must give equal scores, also where the chunk has one row."""
    query, keys = _keys_with_masses(torch.ones(65))
    scores = chunk_scores(query, keys, _SCALE, 32)
    torch.testing.assert_close(scores, torch.full((3,), 1 / 65), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_keys_are_computed_in_float32(dtype: torch.dtype) -> None:
    """One row against the keys is cheap; its products rounded to bfloat16 are off by several
    per cent where scores are large, as they are in trained models."""
    query, keys = _query_keys(100)
    query, keys = (4.0 * query).to(dtype), (4.0 * keys).to(dtype)
    got = chunk_scores(query, keys, _SCALE, 8)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), _naive_scores(query, keys, 8), atol=0.0, rtol=1e-3)


def test_large_products_do_not_overflow_float16() -> None:
    """A product before scaling may exceed 65504; scores of NaN would choose chunks by chance."""
    query, keys = _query_keys(100)
    query, keys = (100.0 * query).half(), (100.0 * keys).half()
    assert torch.isfinite(chunk_scores(query, keys, 1e-4, 8)).all()


def test_a_sink_with_most_of_the_mass_does_not_disturb_the_ranking() -> None:
    """Regression of the method's reference code: a running sum in float16 stands between 0.5 and 1
    behind a sink of mass 0.9, where its steps are 5e-4; hundreds of chunks got a score of exactly
    0 and a third to two thirds of the 32 best were wrong."""
    chunks, chunk_tokens = 512, 32
    noise = torch.Generator().manual_seed(5)
    order = torch.randperm(chunks - 1, generator=noise) + 1
    masses = torch.empty(chunks * chunk_tokens, dtype=torch.float64)
    per_chunk = 0.1 * torch.arange(1, chunks).double() / torch.arange(1, chunks).sum()
    for rank, chunk in enumerate(order.tolist()):
        rows = slice(chunk * chunk_tokens, (chunk + 1) * chunk_tokens)
        masses[rows] = per_chunk[rank] / chunk_tokens
    masses[:chunk_tokens] = 1e-9
    masses[0] = 0.9
    query, keys = _keys_with_masses(masses)
    scores = chunk_scores(query, keys, _SCALE, chunk_tokens)
    assert (scores > 0).all()
    assert scores[1:].argsort().tolist() == (order - 1).tolist()
    config = RetrievalConfig(chunk_tokens=32, top_chunks=32, sink_chunks=1, recent_chunks=1)
    best = [chunk for chunk in order.flip(0).tolist() if chunk != chunks - 1][:32]
    assert set(_chunks(_select(config, query, keys))) == {
        0,
        chunks - 1,
        *best,
    }


def test_a_selection_tells_the_attention_that_it_was_made_by() -> None:
    """Without the infinities of what is kept anyway, and nothing behind the text's end."""
    query, keys = _query_keys(70, heads=4, kv_heads=2)
    config = RetrievalConfig(chunk_tokens=8, top_chunks=1, sink_chunks=1, recent_chunks=2)
    expected = chunk_scores(query, keys, _SCALE, 8)
    assert torch.equal(_select(config, query, keys).attention, expected)
    whole = torch.cat([expected, torch.full((4,), torch.nan)])
    fixed = select(config, whole, torch.tensor(70))
    assert torch.equal(fixed.attention, torch.cat([expected, torch.zeros(4)]))


def test_a_selection_among_the_chunks_of_a_whole_cache_is_the_same() -> None:
    """Chunks after the text's end are padding: rows of the text again, which do not count."""
    for rows in (3, 20, 70):
        query, keys = _query_keys(rows)
        config = RetrievalConfig(chunk_tokens=8, top_chunks=2, sink_chunks=1, recent_chunks=2)
        scores = chunk_scores(query, keys, _SCALE, 8)
        whole = torch.cat([scores, torch.full((20 - len(scores),), -torch.inf)])
        exact, fixed = (select(config, each, torch.tensor(rows)) for each in (scores, whole))
        assert fixed.rows.shape[0] == config.budget_tokens
        assert int(fixed.rows.max()) < rows
        assert _rows(fixed) == _rows(exact)
        assert _chunks(fixed) == _chunks(exact)


@pytest.mark.parametrize("needle", [1, 7, 40, 57])
def test_a_planted_chunk_is_chosen(needle: int) -> None:
    """All the attention that sink and recent text leave over falls on one chunk of 64."""
    query, keys = _query_keys(64 * 8, heads=4, kv_heads=2)
    keys[:, needle * 8 + 3] = 4.0 * query.view(2, 2, _WIDTH).mean(dim=1)
    config = RetrievalConfig(chunk_tokens=8, top_chunks=1, sink_chunks=1, recent_chunks=2)
    selection = _select(config, query, keys)
    assert tuple(_chunks(selection)) == tuple(sorted({0, needle, 62, 63}))
    assert set(range(needle * 8, needle * 8 + 8)) <= set(_rows(selection))


@settings(max_examples=150)
@given(configs(), st.integers(1, 120), st.integers(0, 5))
def test_a_selection_is_sorted_complete_and_within_budget(
    config: RetrievalConfig, rows: int, seed: int
) -> None:
    query, keys = _query_keys(rows, seed=seed)
    selection = _select(config, query, keys)
    chosen, size = _rows(selection), config.chunk_tokens
    chunks = -(-rows // size)
    assert chosen == sorted(set(chosen)), "rows are increasing and unique"
    assert list(_chunks(selection)) == sorted(set(_chunks(selection)))
    assert min(chosen) >= 0
    assert max(chosen) == rows - 1, "the newest row is always kept"
    assert len(chosen) <= config.budget_tokens
    recent = max(0, chunks - config.recent_chunks)
    forced = sorted({*range(min(config.sink_chunks, chunks)), *range(recent, chunks)})
    assert set(forced) <= set(_chunks(selection)), "sink and recent chunks are always kept"
    assert chosen == [row for row in range(rows) if row // size in _chunks(selection)]
    assert len(_chunks(selection)) == min(chunks, len(forced) + config.top_chunks)
    scores = _naive_scores(query, keys, size)
    free = [chunk for chunk in range(chunks) if chunk not in forced]
    best = sorted(free, key=lambda chunk: -float(scores[chunk]))[: config.top_chunks]
    assert set(_chunks(selection)) == {*forced, *best}


@settings(max_examples=150)
@given(configs(), st.integers(1, 120))
def test_the_recent_window_has_the_size_of_a_retrieval(config: RetrievalConfig, rows: int) -> None:
    """An ablation compares choices, not sizes: as many chunks and (the last may be partial, and
    both keep it) as many rows."""
    query, keys = _query_keys(rows)
    recent = select_recent(config, 130, torch.tensor(rows))
    chosen, window = _select(config, query, keys), _rows(recent)
    assert len(_chunks(recent)) == len(_chunks(chosen))
    assert len(window) == len(_rows(chosen)) <= config.budget_tokens
    assert window == sorted(set(window))
    assert window[-1] == rows - 1
    sinks = min(config.sink_chunks, -(-rows // config.chunk_tokens))
    assert tuple(_chunks(recent))[:sinks] == tuple(range(sinks))
    tail = tuple(_chunks(recent))[sinks:]
    assert not tail or tail == tuple(range(tail[0], tail[-1] + 1)), "the rest is one stretch"


def test_a_text_within_the_budget_is_kept_whole() -> None:
    config = RetrievalConfig(chunk_tokens=8, top_chunks=2, sink_chunks=1, recent_chunks=2)
    query, keys = _query_keys(40)
    assert config.budget_tokens == 40
    assert _rows(_select(config, query, keys)) == list(range(40))
    assert _rows(select_recent(config, 64, torch.tensor(40))) == list(range(40))


def test_a_retrieval_is_needed_only_beyond_the_budget() -> None:
    config = RetrievalConfig(chunk_tokens=8, top_chunks=2, sink_chunks=1, recent_chunks=2)
    retrieval = config
    assert [retrieval.is_needed(rows) for rows in (1, 40, 41)] == [False, False, True]


def test_refreshes_are_due_every_so_many_steps() -> None:
    retrieval = RetrievalConfig(every_steps=3)
    assert [step for step in range(10) if retrieval.due(step)] == [0, 3, 6, 9]
