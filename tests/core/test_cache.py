"""The key/value store against a plain Python list that does the same."""

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from specx.core.architecture import Shape
from specx.core.cache import KVCache

_LAYERS, _HEADS, _WIDTH, _CAPACITY = 2, 3, 2, 24
_SHAPE = Shape(_LAYERS, _HEADS, _HEADS, _WIDTH, vocabulary=9, hidden=6, mlp=6)


def _cache(capacity: int = _CAPACITY) -> KVCache:
    return KVCache(_SHAPE, capacity, torch.float32, "cpu")


def _payload(layer: int, rows: list[int]) -> torch.Tensor:
    """[Hkv, n, D]: a number that names layer, head, row and column."""
    row = torch.tensor(rows, dtype=torch.float32)[None, :, None]
    head = torch.arange(_HEADS)[:, None, None] * 0.25
    column = torch.arange(_WIDTH)[None, None, :] * 0.125
    return row + head + column + 1000.0 * layer


def _stage(cache: KVCache, rows: list[int]) -> None:
    start = cache.stage(len(rows))
    for layer in range(_LAYERS):
        cache.write(layer, start, _payload(layer, rows), -_payload(layer, rows))


def _assert_holds(cache: KVCache, rows: list[int]) -> None:
    assert cache.length == len(rows)
    for layer in range(_LAYERS):
        expected = _payload(layer, rows)
        assert torch.equal(cache.keys[layer, :, : cache.length], expected)
        assert torch.equal(cache.values[layer, :, : cache.length], -expected)


def _keep(cache: KVCache, chosen: list[int]) -> None:
    """Commit the staged rows ``chosen``."""
    cache.compact(torch.tensor(chosen, dtype=torch.int64), torch.tensor(cache.length))
    cache.reach(cache.length + len(chosen))


class CacheMachine(RuleBasedStateMachine):
    """Random sequences of the cache's operations, mirrored on a list of row names."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = _cache()
        self.committed: list[int] = []
        self.made = 0

    @rule(count=st.integers(0, 9), data=st.data())
    def stage_and_keep(self, count: int, data: Any) -> None:
        if self.cache.length + count > _CAPACITY:
            with pytest.raises(ValueError, match="exceed"):
                self.cache.stage(count)
            return
        rows = list(range(self.made, self.made + count))
        self.made += count
        _stage(self.cache, rows)
        chosen = [index for index in range(count) if data.draw(st.booleans())]
        _keep(self.cache, chosen)
        self.committed += [rows[index] for index in chosen]

    @rule(length=st.integers(0, _CAPACITY))
    def shorten(self, length: int) -> None:
        if length <= len(self.committed):
            self.cache.reach(length)
            self.committed = self.committed[:length]

    @invariant()
    def holds_the_same_rows(self) -> None:
        _assert_holds(self.cache, self.committed)
        assert 0 <= self.cache.length <= self.cache.capacity


TestCacheAgainstLists = CacheMachine.TestCase
TestCacheAgainstLists.settings = settings(max_examples=40, stateful_step_count=25)


def test_rows_that_overlap_their_new_places_are_kept_right() -> None:
    """Rows 1 … 5 of six move to 0 … 4: every source but the last is also a destination."""
    cache = _cache()
    _stage(cache, [100, 101])
    cache.reach(2)
    _stage(cache, [0, 1, 2, 3, 4, 5])
    _keep(cache, [1, 2, 3, 4, 5])
    _assert_holds(cache, [100, 101, 1, 2, 3, 4, 5])


def test_padding_of_a_path_moves_nothing() -> None:
    """After an accepted path come the slots' own numbers."""
    cache = _cache()
    _stage(cache, [0, 1, 2, 3])
    _keep(cache, [0, 2, 2, 3])
    _assert_holds(cache, [0, 2, 2, 3])


def test_a_refused_stage_changes_nothing() -> None:
    cache = _cache(capacity=3)
    _stage(cache, [0, 1])
    cache.reach(2)
    with pytest.raises(ValueError, match="2 rows after 2 exceed the cache's 3"):
        cache.stage(2)
    _assert_holds(cache, [0, 1])


def test_row_bytes_counts_keys_and_values_of_all_layers() -> None:
    assert _cache().row_bytes == 2 * _LAYERS * _HEADS * _WIDTH * 4
    half = KVCache(Shape(1, 1, 1, 8, 9, 8, 8), 4, torch.float16, "cpu")
    assert half.row_bytes == 2 * 8 * 2


@pytest.mark.parametrize("length", [-1, 5])
def test_no_more_rows_are_committed_than_there_are(length: int) -> None:
    cache = _cache(capacity=4)
    cache.reach(3)
    with pytest.raises(ValueError, match="rows exceed the cache's 4"):
        cache.reach(length)
    assert cache.length == 3
