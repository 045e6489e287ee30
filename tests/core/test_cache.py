"""The key/value store against a plain Python list that does the same."""

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from specx.core.cache import KVCache

_LAYERS, _HEADS, _WIDTH, _CAPACITY = 2, 3, 2, 24


def _cache(capacity: int = _CAPACITY) -> KVCache:
    return KVCache(_LAYERS, _HEADS, capacity, _WIDTH, dtype=torch.float32, device="cpu")


def _payload(layer: int, rows: list[int]) -> torch.Tensor:
    """[Hkv, n, D]: a number that names layer, head, row and column."""
    row = torch.tensor(rows, dtype=torch.float32)[None, :, None]
    head = torch.arange(_HEADS)[:, None, None] * 0.25
    column = torch.arange(_WIDTH)[None, None, :] * 0.125
    return row + head + column + 1000.0 * layer


def _fill(cache: KVCache, rows: list[int]) -> None:
    start = cache.stage(len(rows))
    for layer in range(_LAYERS):
        cache.write(layer, start, _payload(layer, rows), -_payload(layer, rows))


def _assert_holds(cache: KVCache, committed: list[int], staged: list[int]) -> None:
    assert (cache.length, cache.staged) == (len(committed), len(staged))
    assert cache.end == len(committed) + len(staged)
    for layer in range(_LAYERS):
        expected = _payload(layer, committed + staged)
        assert torch.equal(cache.keys[layer, :, : cache.end], expected)
        assert torch.equal(cache.values[layer, :, : cache.end], -expected)


def _keep(cache: KVCache, chosen: list[int]) -> None:
    """Commit the staged rows ``chosen``."""
    cache.compact(torch.tensor(chosen, dtype=torch.int64), cache.length)
    cache.commit(len(chosen))


class CacheMachine(RuleBasedStateMachine):
    """Random sequences of the cache's operations, mirrored on two lists of row names."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = _cache()
        self.committed: list[int] = []
        self.staged: list[int] = []
        self.made = 0

    @rule(count=st.integers(0, 9))
    def stage_and_write(self, count: int) -> None:
        if self.cache.end + count > _CAPACITY:
            with pytest.raises(ValueError, match="exceed"):
                self.cache.stage(count)
            return
        rows = list(range(self.made, self.made + count))
        self.made += count
        _fill(self.cache, rows)
        self.staged += rows

    @rule(data=st.data())
    def keep(self, data: Any) -> None:
        chosen = [index for index in range(len(self.staged)) if data.draw(st.booleans())]
        _keep(self.cache, chosen)
        self.committed += [self.staged[index] for index in chosen]
        self.staged = []

    @rule(count=st.integers(0, 12))
    def commit(self, count: int) -> None:
        if count > len(self.staged):
            with pytest.raises(ValueError, match="cannot commit"):
                self.cache.commit(count)
            return
        self.cache.commit(count)
        self.committed += self.staged[:count]
        self.staged = []

    @rule()
    def drop(self) -> None:
        self.cache.drop()
        self.staged = []

    @rule(length=st.integers(0, _CAPACITY))
    def truncate(self, length: int) -> None:
        if length > len(self.committed):
            with pytest.raises(ValueError, match="cannot truncate"):
                self.cache.truncate(length)
            return
        self.cache.truncate(length)
        self.committed, self.staged = self.committed[:length], []

    @invariant()
    def holds_the_same_rows(self) -> None:
        _assert_holds(self.cache, self.committed, self.staged)
        assert 0 <= self.cache.length <= self.cache.end <= self.cache.capacity


TestCacheAgainstLists = CacheMachine.TestCase
TestCacheAgainstLists.settings = settings(max_examples=40, stateful_step_count=25)


def test_rows_that_overlap_their_new_places_are_kept_right() -> None:
    """Rows 1 … 5 of six move to 0 … 4: every source but the last is also a destination."""
    cache = _cache()
    _fill(cache, [100, 101])
    cache.commit(2)
    _fill(cache, [0, 1, 2, 3, 4, 5])
    _keep(cache, [1, 2, 3, 4, 5])
    _assert_holds(cache, [100, 101, 1, 2, 3, 4, 5], [])


def test_padding_of_a_path_moves_nothing() -> None:
    """Behind an accepted path stand the slots' own numbers."""
    cache = _cache()
    _fill(cache, [0, 1, 2, 3])
    cache.compact(torch.tensor([0, 2, 2, 3]), cache.length)
    _assert_holds(cache, [], [0, 2, 2, 3])


def test_keeping_nothing_forgets_the_tree() -> None:
    cache = _cache()
    _fill(cache, [0, 1])
    _keep(cache, [])
    _assert_holds(cache, [], [])


def test_the_first_staged_row_may_be_a_device_scalar() -> None:
    cache = _cache()
    _fill(cache, [100])
    cache.commit(1)
    _fill(cache, [0, 1, 2])
    cache.compact(torch.tensor([0, 2]), torch.tensor(1))
    cache.commit(2)
    _assert_holds(cache, [100, 0, 2], [])


def test_levels_staged_one_after_the_other_lie_behind_each_other() -> None:
    cache = _cache()
    _fill(cache, [0])
    cache.commit(1)
    _fill(cache, [1, 2])
    _fill(cache, [3])
    _assert_holds(cache, [0], [1, 2, 3])


def test_a_refused_stage_changes_nothing() -> None:
    cache = _cache(capacity=3)
    _fill(cache, [0, 1])
    with pytest.raises(ValueError, match="2 rows after 2 exceed the cache's 3"):
        cache.stage(2)
    _assert_holds(cache, [], [0, 1])


def test_row_bytes_counts_keys_and_values_of_all_layers() -> None:
    assert _cache().row_bytes == 2 * _LAYERS * _HEADS * _WIDTH * 4
    half = KVCache(1, 1, 4, 8, dtype=torch.float16, device="cpu")
    assert half.row_bytes == 2 * 8 * 2


def test_rows_that_the_device_wrote_are_told_afterwards() -> None:
    cache = _cache(capacity=4)
    cache.reach(3)
    assert (cache.length, cache.staged) == (3, 0)
    with pytest.raises(ValueError, match="5 rows exceed the cache's 4"):
        cache.reach(5)
