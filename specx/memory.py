"""Memory: what has been used at most, what is free, what a request needs, what would make it fit.

It does not know engines, requests or the screen, and importing it does not import torch.
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
from typing import TYPE_CHECKING, Protocol, TypeVar

from specx.core.config import Parts
from specx.errors import ResourceError

if TYPE_CHECKING:
    import torch

    from specx.core.architecture import Shape

T = TypeVar("T")

PROC = Path("/proc")  # there on Linux alone
#: torch has no class of its own for what the CPU's allocator and some libraries report.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
_FLOAT_BYTES = 4
_SMALL_CHUNK = 512  # below, a prompt is read noticeably slower
_SHORTEST = 256  # tokens of a document that is worth proposing
_GIB, _MIB = 1 << 30, 1 << 20


def reset_peak(device: "torch.device") -> bool:
    """Start a new high mark: the GPU allocator's, or on Linux that of this process.

    Returns whether there is a new one. Where the system has no such switch or forbids it (some
    containers), the mark stays that of the whole process since it started.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        # 5: the resident set's high mark, see proc(5)
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
    mark = _proc_bytes("self/status", "VmHWM")
    if mark is not None:
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
    import torch

    # Some of these questions want an index, and "cuda" has none.
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    unused = held - torch.cuda.memory_allocated(device)
    free = max(0, min(free, allowed - held)) + unused
    return Room(free, total, torch.cuda.get_device_name(device))


def host_room() -> Room:
    """Memory of this machine; what is free is known on Linux alone."""
    free, total = (_proc_bytes("meminfo", field) for field in ("MemAvailable", "MemTotal"))
    if total is None:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(free, total, "this machine")


class Sized(Protocol):
    """What has to be known of a model or a head."""

    shape: "Shape"
    dtype: "torch.dtype"
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of a request, beside the weights.

    An estimate: trees, recorded graphs and what an allocator loses between blocks are left out.
    """

    target_bytes: int  # keys and values
    draft_bytes: int  # of the whole context, and of the short cache that it works on
    chunk_bytes: int  # what exists at once while one prompt chunk is read
    token_bytes: int  # what one more token of context adds
    weights_bytes: int = 0  # there already, not in the total

    @property
    def total_bytes(self) -> int:
        """What has to be free."""
        return self.target_bytes + self.draft_bytes + self.chunk_bytes

    def table(self, room: Room) -> str:
        """Two aligned lines, need over have."""
        unit, name = (_GIB, "GiB") if self.total_bytes >= _GIB else (_MIB, "MiB")

        def number(size: int | None) -> str:
            return "?" if size is None else f"{size / unit:,.1f}"

        parts = [f"target's keys and values {number(self.target_bytes)}"]
        parts += [f"the draft's {number(self.draft_bytes)}"] if self.draft_bytes else []
        parts.append(f"one prompt chunk {number(self.chunk_bytes)}")
        need, have = number(self.total_bytes), number(room.free_bytes)
        width = max(len(need), len(have))
        where = f"free of {number(room.total_bytes)} on {room.place}"
        return (
            f"need  {need:>{width}} {name}   {', '.join(parts)}\n"
            f"have  {have:>{width}} {name}   {where}; the weights hold {number(self.weights_bytes)}"
        )


def needs_of(
    target: Sized,
    draft: Sized | None,
    parts: Parts,
    *,
    rows: int,
    chunk_tokens: int,
    trained_tokens: int,
) -> Needs:
    """What a request of ``rows`` rows, read by chunks of ``chunk_tokens``, needs.

    ``trained_tokens``: context that the draft was trained at; its working cache is no longer.
    """
    row, draft_row, working = _row_bytes(target), 0, 0
    chunk = _chunk_bytes(target, parts, rows, min(rows, chunk_tokens))
    if draft is not None and parts.has_draft_model:
        draft_row = _row_bytes(draft)
        working = rows if parts.draft_cache == "full" else min(rows, trained_tokens)
        window = rows if parts.draft_prefill == "full" else min(rows, trained_tokens)
        # Keys of one layer, rotated: twice in float32 and once in their own type.
        keys = window * draft.shape.kv_heads * draft.shape.head_dim
        rotated = keys * (2 * _FLOAT_BYTES + draft.dtype.itemsize)
        block = _chunk_bytes(draft, parts, window, min(rows, max(1, trained_tokens // 2)))
        chunk = max(chunk, block + rotated)
    return Needs(
        target_bytes=rows * row,
        draft_bytes=(rows + working) * draft_row,
        chunk_bytes=chunk,
        token_bytes=row + draft_row,
        weights_bytes=target.weights_bytes + (0 if draft is None else draft.weights_bytes),
    )


def _row_bytes(model: Sized) -> int:
    return model.shape.numbers_per_token * model.dtype.itemsize


def _chunk_bytes(model: Sized, parts: Parts, rows: int, chunk: int) -> int:
    """The larger half of a layer, and float32 logits of the chunk's last row.

    In the MLP: residual and normed rows, both halves of the first product, their product. In
    attention: residual and normed rows, queries, keys and values, and the output over the chunk,
    over what comes before it, and merged.
    """
    shape, size = model.shape, model.dtype.itemsize
    heads, keys = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    mlp = (2 * shape.hidden + 3 * shape.mlp) * size
    attention = (2 * shape.hidden + keys + 4 * heads) * size
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
        tokens = self.prompt_tokens + self.max_tokens
        message = f"no memory for a context of {tokens:,} tokens"
        return ResourceError(message, reason=reason, hints=self.hints())

    def hints(self) -> tuple[str, ...]:
        """Three ways out: those that suffice alone, then by how much they save."""
        short = max(1, self.needs.total_bytes - (self.room.free_bytes or 0))
        ways = sorted(self._ways(), key=lambda way: -min(way[0], short))
        last = f"end other programs that use the memory of {self.room.place}"
        return (*(text for _, text in ways), last)[:3]

    def _ways(self) -> Iterator[tuple[int, str]]:
        """Bytes that each way out saves, the least costly way first."""
        needs, chunk, on_gpu = self.needs, self.chunk_tokens, self.device.startswith("cuda")
        if chunk > 1:
            smaller = _SMALL_CHUNK if chunk > _SMALL_CHUNK else max(1, chunk // 4)
            saved = needs.chunk_bytes * (chunk - smaller) // chunk
            yield saved, f"--set prefill_chunk_tokens={smaller} saves about {_size(saved)}"
        if needs.draft_bytes:
            saved = needs.draft_bytes
            yield saved, f"--mode plain keeps no draft's caches: {_size(saved)} less"
        if self.dtype == "float32":
            kind = "float16" if on_gpu else "bfloat16"
            saved = (needs.total_bytes + needs.weights_bytes) // 2
            yield saved, f"--dtype {kind} halves weights and caches: {_size(saved)} less"
        over = needs.total_bytes - (self.room.free_bytes or 0)
        fitting = self.prompt_tokens - -(-over // max(1, needs.token_bytes))
        if not _SHORTEST <= fitting < self.prompt_tokens:
            fitting = self.prompt_tokens // 2
        saved = (self.prompt_tokens - fitting) * needs.token_bytes
        which = f"of about {fitting:,} tokens, not {self.prompt_tokens:,}"
        yield saved, f"a document {which}: {_size(saved)} less"
        if on_gpu:
            free, all_bytes = host_room().free_bytes, needs.total_bytes + needs.weights_bytes
            saved = needs.total_bytes if free is not None and free >= all_bytes else 0
            there = "" if free is None else f" ({_size(free)} free)"
            yield saved, f"--device cpu is slower and has the machine's own memory{there}"
        if self.max_tokens > 1:
            fewer = self.max_tokens // 2
            saved = (self.max_tokens - fewer) * needs.token_bytes
            yield saved, f"-n {fewer} asks for half the new tokens: {_size(saved)} less"
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
    """Let go of what the frames of ``error`` hold, and give free memory back to ``device``.

    A traceback keeps the variables of its frames, and so the tensors of the failed request.
    """
    known: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in known:
            known.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]
    gc.collect()  # also requests that were given up half-way
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def _size(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB else f"{size / _MIB:,.1f} MiB"
