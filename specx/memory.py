"""Memory: what has been used at most, what is free, what a request needs, what would make it fit.

Importing it does not import torch.
"""

import contextlib
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from specx.core.config import Parts
from specx.errors import ResourceError, size

if TYPE_CHECKING:
    import torch

    from specx.core.decoder import Model
    from specx.core.drafts.eagle import EagleHead

T = TypeVar("T")

PROC = Path("/proc")  # there on Linux alone
#: torch has no class of its own for what the CPU's allocator and some libraries report.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
_FLOAT_BYTES = 4
_SMALL_CHUNK = 512  # below, a prompt is read noticeably slower
_SHORTEST = 256  # tokens of a document that is worth proposing


def reset_peak(device: "torch.device") -> bool:
    """Start a new high mark: the GPU allocator's, or on Linux that of this process.

    Returns whether there is a new one: some systems and containers have no such switch.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:  # 5: the resident set's high mark, see proc(5)
        (PROC / "self" / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes(device: "torch.device") -> int:
    """High mark: the allocator's on a GPU, the process's resident set elsewhere (0: unknown).

    Since the last ``reset_peak`` that returned True, otherwise since the process started.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if (mark := _proc_bytes("self/status", "VmHWM")) is not None:
        return mark
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _proc_bytes(file: str, field: str) -> int | None:
    """A line such as ``VmHWM:   1234 kB`` of a file in /proc, in bytes; None: not there."""
    try:
        text = (PROC / file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:[ \t]*(\d+)\b", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of a device that a request may still take, and all of it; None: unknown."""

    free_bytes: int | None
    total_bytes: int | None
    place: str


def room_on(device: "torch.device") -> Room:
    """Memory of ``device``: the GPU's, less what this process may not take, or the machine's."""
    if device.type != "cuda":
        return host_room()
    from torch import cuda

    # Some of these questions want an index, and "cuda" has none.
    index = cuda.current_device() if device.index is None else device.index
    free, total = cuda.mem_get_info(index)
    held = cuda.memory_reserved(index)
    allowed = int(cuda.get_per_process_memory_fraction(index) * total)
    free = max(0, min(free, allowed - held)) + held - cuda.memory_allocated(index)
    return Room(free, total, cuda.get_device_name(index))


def host_room() -> Room:
    """Memory of this machine; what is free is known on Linux alone."""
    free, total = (_proc_bytes("meminfo", field) for field in ("MemAvailable", "MemTotal"))
    if total is None:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(free, total, "this machine")


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of a request, about: trees, recorded graphs and lost blocks are left out."""

    target_bytes: int  # keys and values
    draft_bytes: int  # of the whole context, and of the short cache that it works on
    chunk_bytes: int  # what exists at once while one prompt chunk is read
    token_bytes: int  # what one more token of context adds
    weights_bytes: int = 0  # there already, not in the total

    @property
    def total_bytes(self) -> int:
        return self.target_bytes + self.draft_bytes + self.chunk_bytes

    def table(self, room: Room) -> str:
        free, total = ("?" if n is None else size(n) for n in (room.free_bytes, room.total_bytes))
        need = size(self.total_bytes)
        width = max(len(need), len(free))
        draft = f"the draft's {size(self.draft_bytes)}, " if self.draft_bytes else ""
        return (
            f"need  {need:>{width}}   target's keys and values {size(self.target_bytes)}, "
            f"{draft}one prompt chunk {size(self.chunk_bytes)}\n"
            f"have  {free:>{width}}   free of {total} on {room.place}; "
            f"the weights hold {size(self.weights_bytes)}"
        )


def needs_of(
    target: "Model",
    draft: "Model | EagleHead | None",
    parts: Parts,
    *,
    rows: int,
    chunk_tokens: int,
    trained_tokens: int,
) -> Needs:
    """What a request of ``rows`` rows, read by chunks of ``chunk_tokens``, needs.

    ``trained_tokens``: context that the draft was trained at; its working cache is no longer.
    """
    row, draft_row, working = target.shape.numbers_per_token * target.dtype.itemsize, 0, 0
    chunk = _chunk_bytes(target, parts, rows, min(rows, chunk_tokens))
    if draft is not None and parts.has_draft_model:
        draft_row = draft.shape.numbers_per_token * draft.dtype.itemsize
        working = rows if parts.draft_cache == "full" else min(rows, trained_tokens)
        window = rows if parts.draft_prefill == "full" else min(rows, trained_tokens)
        # Keys of one layer, rotated: twice in float32 and once in their own type.
        keys = window * draft.shape.kv_heads * draft.shape.head_dim
        rotated = keys * (2 * _FLOAT_BYTES + draft.dtype.itemsize)
        block = _chunk_bytes(draft, parts, window, min(rows, max(1, trained_tokens // 2)))
        chunk = max(chunk, block + rotated)
    weights = target.weights_bytes + (0 if draft is None else draft.weights_bytes)
    return Needs(rows * row, (rows + working) * draft_row, chunk, row + draft_row, weights)


def _chunk_bytes(model: "Model | EagleHead", parts: Parts, rows: int, chunk: int) -> int:
    """The larger half of a layer, and float32 logits of the chunk's last row."""
    shape, itemsize = model.shape, model.dtype.itemsize
    heads, keys = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    # Residual and normed rows, both halves of the first product, their product.
    mlp = (2 * shape.hidden + 3 * shape.mlp) * itemsize
    # The same rows, queries, keys and values, the output over chunk and past, and merged.
    attention = (2 * shape.hidden + keys + 4 * heads) * itemsize
    if parts.prefill_attention == "eager":  # scores, masked scores and their exponentials
        attention += 3 * shape.heads * rows * _FLOAT_BYTES
    return chunk * max(mlp, attention) + shape.vocabulary * _FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class Shortage:
    """A request that does not fit where it was to run."""

    needs: Needs
    room: Room
    prompt_tokens: int
    max_tokens: int
    chunk_tokens: int
    dtype: str
    device: str
    preset: str

    def error(self, cause: BaseException) -> ResourceError:
        """What was asked, the table, the allocator's own words, and three ways out."""
        reason = self.needs.table(self.room)
        # The first sentences of the first line: what the allocator was asked for.
        words = re.match(r".*?tried to allocate [\d.,]+ ?\w*|.+", str(cause), re.IGNORECASE)
        if words:
            reason += f"\nsaid  {words[0][:160]}"
        message = f"no memory for a context of {self.prompt_tokens + self.max_tokens:,} tokens"
        return ResourceError(message, reason=reason, hints=self.hints())

    def hints(self) -> tuple[str, ...]:
        """Three ways out: those that suffice alone, then by how much they save."""
        short = self.needs.total_bytes - (self.room.free_bytes or 0)
        ways = sorted(self._ways(short), key=lambda way: -min(way[0], max(1, short)))
        texts = [text if saved == 0 else f"{text}: {size(saved)} less" for saved, text in ways]
        return (*texts, f"end other programs that use the memory of {self.room.place}")[:3]

    def _ways(self, short: int) -> Iterator[tuple[int, str]]:
        """Bytes that each way out saves, the least costly way first; ``short``: what is missing."""
        needs, chunk, on_gpu = self.needs, self.chunk_tokens, self.device.startswith("cuda")
        all_bytes, row = needs.total_bytes + needs.weights_bytes, max(1, needs.token_bytes)
        if chunk > 1:
            smaller = _SMALL_CHUNK if chunk > _SMALL_CHUNK else max(1, chunk // 4)
            saved = needs.chunk_bytes * (chunk - smaller) // chunk
            yield saved, f"--set prefill_chunk_tokens={smaller} reads in smaller pieces"
        if needs.draft_bytes:
            yield needs.draft_bytes, "--mode plain keeps no draft's caches"
        if self.dtype == "float32":
            kind = "float16" if on_gpu else "bfloat16"
            yield all_bytes // 2, f"--dtype {kind} halves weights and caches"
        prompt = self.prompt_tokens
        fitting = prompt - -(-short // row)
        if not _SHORTEST <= fitting < prompt:
            fitting = prompt // 2
        yield (prompt - fitting) * row, f"a document of about {fitting:,} tokens, not {prompt:,}"
        if on_gpu and (free := host_room().free_bytes or 0) >= all_bytes:
            text = f"--device cpu is slower and has the machine's memory ({size(free)} free)"
            yield needs.total_bytes, text
        if self.max_tokens > 1:
            fewer = self.max_tokens // 2
            yield (self.max_tokens - fewer) * row, f"-n {fewer} asks for half the new tokens"
        if self.preset != "pocket":
            yield 0, "-m NAME with a smaller preset (specx presets), or -m pocket to try it out"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out.

    Recording a CUDA graph turns that into an error of its own, with the first one as its context.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text, first = str(error), error.__context__
    if isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS):
        return True
    return "captur" in text and first is not None and is_out_of_memory(first)


def with_room(
    allocate: Callable[[], T],
    make_room: Callable[[BaseException], None],
    explain: Callable[[BaseException], ResourceError],
) -> T:
    """``allocate()``; where memory is short, once more after ``make_room``.

    Raises what ``explain`` says if that fails too. Other errors pass through.
    """
    is_second = False
    while True:
        try:
            return allocate()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_second:
                raise explain(error) from error
            make_room(error)
        is_second = True


def release(error: BaseException, device: "torch.device") -> None:
    """Let go of what the frames of ``error`` hold: the tensors of the failed request too."""
    known: list[BaseException | None] = [error]
    for each in known:  # grows on the way; a cause may lead back to where it was met
        if each is not None:
            traceback.clear_frames(each.__traceback__)
            known += [one for one in (each.__cause__, each.__context__) if one not in known]
    gc.collect()  # also requests that were given up half-way
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
