"""The hardware floor: bytes and operations by hand for tiny models, plausible measured rates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specx.bench import roofline as floor
from specx.bench.roofline import (
    bandwidth,
    cost_of,
    free_bytes,
    matmul_rate,
    measure_floor,
    rounded,
)
from specx.core.decoder import Model
from specx.preset.preset import load_preset
from tests.core.tiny import config, hf_model, own

CPU = torch.device("cpu")

# Hidden 32, two layers, four query heads and two key heads of 8, MLP 64, vocabulary 97.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64  # q; k, v; o; gate, up, down
LINEAR = 2 * LAYER
HEAD = 97 * 32
NORMS = 2 * 2 * 32 + 32
KV_ROW = 2 * 2 * 2 * 8 * 4  # keys and values, layers, key heads, width, float32


def loaded(name: str = "llama", **changes: Any) -> Model:
    return own(hf_model(config(name, **changes)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a few repetitions, forgotten afterwards."""
    monkeypatch.setattr(floor, "_BANDWIDTH_S", 0.02)
    monkeypatch.setattr(floor, "_RATE_S", 0.02)
    monkeypatch.setattr(floor, "_PRODUCTS", floor._PRODUCTS[:1])
    monkeypatch.setattr(floor, "_BANDWIDTHS", {})
    monkeypatch.setattr(floor, "_RATES", {})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Buffer sizes that were read; each at 1 GB/s."""
    read: list[int] = []
    monkeypatch.setattr(floor, "_BANDWIDTHS", {})
    monkeypatch.setattr(floor, "free_bytes", lambda device: 64 << 30)
    monkeypatch.setattr(floor, "_read_bytes_s", lambda device, count: read.append(count) or 1e9)
    return read


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_bytes_and_operations_of_a_tiny_llama(tied: bool) -> None:
    model = loaded(tie_word_embeddings=tied)
    cost = cost_of(model)
    assert cost.weights.forward_bytes == 4 * (LINEAR + HEAD + NORMS)
    assert cost.weights.layer_parameters == LINEAR
    assert cost.weights.head_parameters == HEAD
    assert cost.kv_row_bytes == KV_ROW
    assert cost.step_bytes(100) == 4 * (LINEAR + HEAD + NORMS) + 100 * KV_ROW
    assert cost.step_flop(100) == 2 * (LINEAR + HEAD) + 2 * 4 * 4 * 8 * 100
    assert cost.prefill_flop(100) == 2 * (LINEAR * 100 + HEAD) + 2 * 2 * 4 * 8 * 100 * 100
    unread = 0 if tied else 4 * HEAD
    assert cost.weights.forward_bytes == model.weights_bytes - unread


def test_biases_are_read_too() -> None:
    plain, biased = loaded("llama"), loaded("qwen2")
    biases = 2 * (32 + 16 + 16)  # q, k, v of two layers
    assert (
        cost_of(biased).weights.forward_bytes == cost_of(plain).weights.forward_bytes + 4 * biases
    )
    assert cost_of(biased).weights.layer_parameters == LINEAR


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_shared_key_heads_save_bytes_but_no_operations(kv_heads: int) -> None:
    cost = cost_of(loaded(num_key_value_heads=kv_heads))
    assert cost.kv_row_bytes == KV_ROW * kv_heads // 2
    assert cost.attention_flop == 2 * 4 * 4 * 8


def test_half_precision_halves_the_bytes() -> None:
    single = loaded()
    half = own(hf_model(config("llama")).to(torch.bfloat16))
    assert 2 * cost_of(half).step_bytes(7) == cost_of(single).step_bytes(7)
    assert cost_of(half).step_flop(7) == cost_of(single).step_flop(7)


def test_the_prefill_is_the_sum_of_its_rows() -> None:
    cost = cost_of(loaded())
    rows = sum(cost.step_flop(row) - 2 * HEAD for row in range(1, 65)) + 2 * HEAD
    # Rows 1 … L see 1 … L tokens: L·(L + 1)/2, of which the closed form drops the L/2.
    assert rows - cost.prefill_flop(64) == cost.attention_flop * 32


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("length", [50, 5000])
def test_a_floor_of_a_pair(length: int) -> None:
    preset = load_preset("pocket", {})
    target, draft = loaded(), loaded(num_hidden_layers=1)
    found = measure_floor(preset, target, draft, length)
    budget = min(length, preset.retrieval.budget_tokens)
    assert (found.preset, found.length) == ("pocket", length)
    assert found.step_bytes == cost_of(target).step_bytes(length)
    assert found.step_flop == cost_of(target).step_flop(length)
    assert found.prefill_flop == cost_of(target).prefill_flop(length)
    assert found.draft_level_bytes == cost_of(draft).step_bytes(budget)
    assert found.step_s > 0
    assert measure_floor(preset, target, None, length).draft_level_bytes == 0


@pytest.mark.usefixtures("quick")
def test_measured_rates_are_plausible() -> None:
    assert 1e9 < bandwidth(CPU, 1) < 1e13
    assert 1e9 < matmul_rate(CPU, torch.float32) < 1e15


def test_a_size_is_measured_once(sizes: list[int]) -> None:
    bandwidth(CPU, 1)
    bandwidth(CPU, 64 << 20)
    assert sizes == [64 << 20]
    bandwidth(CPU, 1, again=True)
    assert sizes == [64 << 20] * 2
    bandwidth(CPU, 1 << 40)
    assert sizes[2:] == [1 << 30]


def test_the_buffer_leaves_memory_for_others(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "free_bytes", lambda device: 40 << 20)
    bandwidth(CPU, 1 << 40)
    assert sizes == [10 << 20]


def test_a_disturbed_figure_gives_way_to_a_better_one(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([3e9, 1e9, 5e9, 2e9])
    monkeypatch.setattr(floor, "_read_bytes_s", lambda device, count: next(speeds))
    assert bandwidth(CPU, 128 << 20) == 3e9
    assert bandwidth(CPU, 256 << 20) == 1e9  # more bytes may well be slower
    assert bandwidth(CPU, 256 << 20, again=True) == 5e9
    assert bandwidth(CPU, 128 << 20) == 5e9  # but fewer bytes are not
    assert bandwidth(CPU, 512 << 20) == 2e9
    assert bandwidth(CPU, 256 << 20) == 5e9


@pytest.mark.usefixtures("quick")
def test_a_rate_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([2e9, 1e9, 4e9])
    monkeypatch.setattr(floor, "_product_flop_s", lambda device, dtype: next(speeds))
    assert matmul_rate(CPU, torch.float32) == matmul_rate(CPU, torch.float32) == 2e9
    assert matmul_rate(CPU, torch.float32, again=True) == 2e9
    assert matmul_rate(CPU, torch.float32, again=True) == 4e9


def test_free_memory_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert free_bytes(CPU) > 0
    monkeypatch.setattr("specx.memory.PROC", tmp_path)
    assert free_bytes(CPU) > 0
    monkeypatch.delattr(floor.os, "sysconf", raising=False)  # as on Windows
    assert free_bytes(CPU) > 0


@given(st.integers(1, 1 << 42))
def test_a_rounded_size_is_near_and_stays(count: int) -> None:
    size = rounded(count)
    assert abs(size - count) <= count / 8
    assert rounded(size) == size


@given(st.integers(8, 40))
def test_an_octave_has_four_sizes(bits: int) -> None:
    start = 1 << bits
    assert len({rounded(start + start * part // 64) for part in range(64)}) <= 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_measured_with_its_own_clock() -> None:
    device = torch.device("cuda")
    assert 1e10 < bandwidth(device, 1 << 30) < 1e14
    assert 1e11 < matmul_rate(device, torch.float16) < 1e16
