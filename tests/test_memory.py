"""Peak memory, bytes against what is really allocated, the table, the ways out, and what counts as
a lack of memory."""

import gc
import subprocess
import sys
import traceback
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import specx
from specx import memory
from specx.core.config import Parts, parts_for
from specx.core.decoder import Model
from specx.engine import Engine
from specx.errors import ResourceError
from specx.memory import (
    Needs,
    Room,
    Shortage,
    host_room,
    is_out_of_memory,
    needs_of,
    peak_bytes,
    release,
    reset_peak,
    room_on,
    with_room,
)
from tests.helpers import PairDirs, preset_for, story

CPU = torch.device("cpu")
BLOCK_BYTES = 300 << 20
GIB = 1 << 30
NEEDS = Needs(
    target_bytes=8 * GIB,
    draft_bytes=GIB,
    chunk_bytes=GIB,
    token_bytes=1 << 17,
    weights_bytes=14 * GIB,
)
SHORTAGE = Shortage(
    NEEDS,
    Room(4 * GIB, 80 * GIB, "NVIDIA H100"),
    prompt_tokens=65_000,
    max_tokens=536,
    chunk_tokens=2048,
    dtype="float16",
    device="cuda:0",
    preset="big",
)


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without /proc."""
    monkeypatch.setattr(memory, "PROC", tmp_path)


def touch_and_free(count: int) -> int:
    """Fill so many bytes; the peak while they are held."""
    block = torch.ones(count, dtype=torch.uint8)
    during = peak_bytes(CPU)
    del block
    return during


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such counter")
def test_the_peak_is_in_bytes() -> None:
    # An interpreter with torch holds tens of MiB; KiB taken for bytes would be far below.
    assert 32 << 20 < peak_bytes(CPU) < 1 << 42


def test_the_peak_outlasts_what_was_freed() -> None:
    during = touch_and_free(64 << 20)
    assert peak_bytes(CPU) >= 0.99 * during >= 0.99 * (64 << 20)


def test_after_a_reset_what_was_freed_no_longer_counts() -> None:
    if not reset_peak(CPU):
        pytest.skip("this system has no resettable high mark")
    before = peak_bytes(CPU)
    during = touch_and_free(BLOCK_BYTES)
    assert during >= before + 0.9 * BLOCK_BYTES
    assert reset_peak(CPU)
    assert peak_bytes(CPU) < during - 0.5 * BLOCK_BYTES


@pytest.mark.usefixtures("no_proc")
def test_where_no_reset_is_possible_the_peak_stays() -> None:
    before = peak_bytes(CPU)
    assert not reset_peak(CPU)
    assert peak_bytes(CPU) >= before


@pytest.mark.usefixtures("no_proc")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such counter")
def test_without_proc_the_usage_counter_answers_in_bytes() -> None:
    assert 32 << 20 < peak_bytes(CPU) < 1 << 42


@pytest.mark.parametrize("text", ["", "VmRSS:\t  12 kB\n", "VmHWM:\t  ? kB\n"])
def test_a_status_without_the_mark_falls_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(text, encoding="ascii")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_bytes(CPU) == 0


@pytest.mark.usefixtures("no_proc")
def test_an_unknown_peak_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_bytes(CPU) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_of_a_gpu_is_the_allocators() -> None:
    device = torch.device("cuda")
    assert reset_peak(device)
    before = peak_bytes(device)
    block = torch.empty(1 << 20, dtype=torch.uint8, device=device)
    del block
    assert peak_bytes(device) >= before + (1 << 20)
    reset_peak(device)
    assert peak_bytes(device) < before + (1 << 20)


@pytest.fixture(scope="module")
def engine(tiny_pair: PairDirs) -> Engine:
    return specx.load(preset_for(tiny_pair), device="cpu", offline=True)


def needs(target: Model, draft: Model | None, parts: Parts, rows: int = 600) -> Needs:
    return needs_of(target, draft, parts, rows=rows, chunk_tokens=128, trained_tokens=512)


class Products(TorchDispatchMode):
    """Bytes of the results of all products with weights, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "linear" in str(func) or "addmm" in str(func):
            self.sizes.append(made.nbytes)
        return made


class Echo:
    """Attention that attends to nothing."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        return query


class TestBytes:
    @pytest.mark.parametrize("cache", ["full", "window", "retrieval"])
    def test_the_caches_are_those_that_are_allocated(self, engine: Engine, cache: str) -> None:
        prompt = engine.prompt(story(300))
        result = engine.generate(prompt, mode="specx", parts={"draft_cache": cache}, max_tokens=8)
        parts = parts_for("specx", {"draft_cache": cache})
        rows = len(prompt.tokens) + 8
        found = needs_of(
            engine.target,
            engine.draft,
            parts,
            rows=rows,
            chunk_tokens=128,
            trained_tokens=engine.preset.draft.trained_context_tokens,
        )
        assert found.weights_bytes == engine.weights_bytes
        memory = result.stats.memory
        # Rows for trees, and the rounding up to 256, are left out.
        left_out = (memory.kv_target_bytes - found.target_bytes) / (found.target_bytes / rows)
        assert 0 <= left_out < 256 + 128
        assert 0.5 * memory.kv_draft_bytes < found.draft_bytes < 1.2 * memory.kv_draft_bytes

    def test_a_chunk_is_as_large_as_its_layer(self, engine: Engine) -> None:
        """Against what the products of the first layer make, counted as it is made."""
        target, chunk = engine.target, 128
        with Products() as made, torch.inference_mode():
            target.hidden(torch.zeros(chunk, dtype=torch.int64), torch.arange(chunk), Echo())
        _, _, gate_up, down = made.sizes[:4]
        mlp = gate_up + gate_up // 2 + down  # gate and up, multiplied, and back to the stream
        found = needs(target, None, parts_for("plain")).chunk_bytes
        assert 0.7 * mlp < found < 2 * (mlp + 2 * down)

    def test_parts_change_what_is_needed(self, engine: Engine) -> None:
        models = engine.target, engine.draft
        plain, specx_ = (needs(*models, parts_for(mode)) for mode in ("plain", "specx"))
        assert plain.draft_bytes == 0 < specx_.draft_bytes
        assert plain.target_bytes == specx_.target_bytes
        full = needs(*models, parts_for("spec"), rows=4000)
        short = needs(*models, parts_for("specx"), rows=4000)
        assert full.draft_bytes > 1.7 * short.draft_bytes
        eager = needs(*models, parts_for("spec", {"prefill_attention": "eager"}), rows=4000)
        assert eager.chunk_bytes > 3 * 4 * 4000 * 128 * 4  # float32 scores of four heads

    def test_in_total(self) -> None:
        assert NEEDS.total_bytes == 10 * GIB


class TestTable:
    def test_two_aligned_lines(self) -> None:
        assert NEEDS.table(Room(3 * GIB, 80 * GIB, "NVIDIA H100")) == (
            "need  10.0 GiB   target's keys and values 8.0 GiB, the draft's 1.0 GiB, "
            "one prompt chunk 1.0 GiB\n"
            "have   3.0 GiB   free of 80.0 GiB on NVIDIA H100; the weights hold 14.0 GiB"
        )

    def test_small_and_unknown(self) -> None:
        small = Needs(3 << 20, 0, 1 << 20, 1 << 10)
        need, have = small.table(Room(None, None, "this machine")).splitlines()
        assert need == "need  4 MiB   target's keys and values 3 MiB, one prompt chunk 1 MiB"
        assert have.startswith("have      ?   free of ? on this machine")


class TestWaysOut:
    def test_those_that_suffice_alone_come_first(self) -> None:
        short = replace(SHORTAGE, room=Room(9 * GIB, 80 * GIB, "this machine"), device="cpu")
        assert short.hints() == (
            "--mode plain keeps no draft's caches: 1.0 GiB less",
            "a document of about 56,808 tokens, not 65,000: 1.0 GiB less",
            "--set prefill_chunk_tokens=512 reads in smaller pieces: 768 MiB less",
        )

    @pytest.mark.parametrize("free", [0, 64 * GIB])
    def test_the_cpu_where_it_has_room(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        monkeypatch.setattr("specx.memory.host_room", lambda: Room(free, 2 * free, "this machine"))
        given = [hint for hint in SHORTAGE.hints() if "--device cpu" in hint]
        assert len(given) == (1 if free else 0)
        assert all("the machine's memory (64.0 GiB free)" in hint for hint in given)

    def test_a_document_that_fits(self) -> None:
        hint = next(hint for hint in SHORTAGE.hints() if "document" in hint)
        assert "15,848 tokens, not 65,000" in hint  # 6 GiB less, at 128 KiB a token
        full = replace(SHORTAGE, room=Room(0, None, "NVIDIA H100"))
        assert "32,500 tokens" in next(hint for hint in full.hints() if "document" in hint)

    @pytest.mark.parametrize(("device", "kind"), [("cuda:0", "float16"), ("cpu", "bfloat16")])
    def test_a_smaller_dtype_where_there_is_one(self, device: str, kind: str) -> None:
        wide = replace(SHORTAGE, dtype="float32", device=device)
        assert any(hint.startswith(f"--dtype {kind} ") for hint in wide.hints())
        assert not any("--dtype" in hint for hint in SHORTAGE.hints())

    @pytest.mark.parametrize("chunk", [1, 64, 8192])
    @pytest.mark.parametrize("max_tokens", [0, 1, 500])
    @pytest.mark.parametrize("free", [None, 0, 9 * GIB, 99 * GIB])
    def test_always_three(self, chunk: int, max_tokens: int, free: int | None) -> None:
        bare = Needs(GIB, 0, 1, 1 << 17)
        room = Room(free, None, "this machine")
        for needs in (NEEDS, bare):
            hints = replace(
                SHORTAGE,
                needs=needs,
                room=room,
                chunk_tokens=chunk,
                max_tokens=max_tokens,
                device="cpu",
                preset="pocket",
            ).hints()
            assert len(set(hints)) == len(hints)
            assert 2 <= len(hints) <= 3
            assert len(hints) == 3 or (chunk == 1 and max_tokens < 2)

    def test_the_error(self) -> None:
        cause = torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
        )
        error = SHORTAGE.error(cause)
        assert error.exit_code == 6
        assert str(error).startswith("no memory for a context of 65,536 tokens: need  10.0 GiB")
        assert error.reason.splitlines()[2] == (
            "said  CUDA out of memory. Tried to allocate 2.00 GiB"
        )
        assert SHORTAGE.error(MemoryError()).reason.count("\n") == 1


class TestWhatCounts:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory."),
            torch.OutOfMemoryError("whatever"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        ],
    )
    def test_a_lack_of_memory(self, error: BaseException) -> None:
        assert is_out_of_memory(error)

    @pytest.mark.parametrize(
        "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyboardInterrupt()]
    )
    def test_anything_else(self, error: BaseException) -> None:
        assert not is_out_of_memory(error)

    def test_a_recording_that_broke_because_of_it(self) -> None:
        broken = RuntimeError("operation failed due to a previous error during capture")
        broken.__context__ = torch.OutOfMemoryError("CUDA out of memory.")
        assert is_out_of_memory(broken)
        other = RuntimeError("shape mismatch")  # raised while somebody handled a lack of memory
        other.__context__ = broken.__context__
        assert not is_out_of_memory(other)


class Big:
    """Stands for a tensor."""


class TestSecondTry:
    def test_release_empties_the_frames(self) -> None:
        alive: list[weakref.ref[Big]] = []

        def fail() -> None:
            first, second = Big(), Big()
            alive.extend([weakref.ref(first), weakref.ref(second)])
            try:
                raise MemoryError("first")
            except MemoryError:
                raise RuntimeError("second") from None

        gc.disable()
        try:
            fail()
        except RuntimeError as error:
            assert all(each() is not None for each in alive)
            release(error, CPU)
            assert all(each() is None for each in alive)
            lines = "".join(traceback.format_exception(error))
            assert "in fail" in lines  # for SPECX_DEBUG
        finally:
            gc.enable()

    def test_once_more_and_then_the_explanation(self) -> None:
        freed: list[str] = []
        answers: list[int | BaseException] = [MemoryError("one"), 7]

        def allocate() -> int:
            answer = answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        def explain(error: BaseException) -> ResourceError:
            return ResourceError("too much", reason=str(error))

        assert with_room(allocate, lambda error: freed.append(str(error)), explain) == 7
        assert freed == ["one"]
        answers[:] = [MemoryError("one"), torch.OutOfMemoryError("two")]
        with pytest.raises(ResourceError, match="too much: two"):
            with_room(allocate, lambda error: freed.append(str(error)), explain)
        assert freed == ["one", "one"]
        answers[:] = [RuntimeError("shape mismatch"), 7]
        with pytest.raises(RuntimeError, match="shape mismatch"):
            with_room(allocate, lambda error: freed.append(str(error)), explain)
        answers[:] = [MemoryError("one"), RuntimeError("shape mismatch")]
        with pytest.raises(RuntimeError, match="shape mismatch"):
            with_room(allocate, lambda error: freed.append(str(error)), explain)


def test_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is free changes from one look to the next, so only a written file is compared."""
    room = host_room()
    if room.free_bytes is not None and room.total_bytes is not None:
        assert 0 < room.free_bytes <= room.total_bytes
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable:   300 kB\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert room_on(CPU) == host_room() == Room(300 << 10, 1000 << 10, "this machine")
    path.write_text("MemTotal:  lots\nMemAvailable:\n")
    assert host_room().free_bytes is None
    path.unlink()
    assert host_room().free_bytes is None


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, specx.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
