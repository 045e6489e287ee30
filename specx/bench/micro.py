"""The pieces of a step, each timed alone and held against the least time that it can take.

In: a loaded engine and prompt lengths. Out: ``Measured``, and from it the ``specx.micro/1`` object.
It does not know files, tables, or what a piece does.

Pieces of one length take turns, so that a disturbance does not hit one of them alone, and the
median turn counts. On a GPU a turn is a row of launches between two events, handed over while the
device still does something else: what is recorded does not wait for the host.

floor = (all weights + keys and values of the prompt, in bytes) / the bandwidth measured here.
"""

import datetime
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from specx._version import __version__
from specx.bench import roofline as floor
from specx.bench.plan import StandInFacts, preset_facts
from specx.bench.record import Object
from specx.bench.rig import Rig, Task, levels_of, now, parts_of
from specx.core.drafts.growth import WIDTH
from specx.engine import Engine, load
from specx.environment import environment, source_commit
from specx.errors import ContextError
from specx.memory import is_out_of_memory, peak_bytes, release, reset_peak
from specx.preset.preset import Preset, load_preset
from specx.standin import build as standin

_ROUNDS = 20  # turns of every piece
_ROUNDS_WITHOUT_GPU = 3
_WARM = 3  # the first executes, the second records, the third tells how long it takes
_ROW_S = 0.01  # a row of launches should take about so long
_LONGEST_ROW = 20
_PREFILLS = 3
_LONG_TOKENS = 32768  # a longer prompt is read once

Clock = Callable[[], float]
Tell = Callable[[str], object]
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one piece took at one length: a sample a turn, in seconds."""

    name: str
    length: int
    samples_s: tuple[float, ...]
    nodes: int | None = None
    variant: str = ""  # what is changed in the forward
    repeats: int = 1  # in a row, for one sample
    first_s: float | None = None  # the first call, with compiling and setting up
    floor_bytes: int = 0  # what it has to read
    floor_flop: int = 0  # what it has to compute, if that takes longer
    floor_s: float | None = None  # None: no such limit is counted

    @property
    def median_s(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples_s)

    @property
    def ratio(self) -> float | None:
        """How many times its floor the piece takes."""
        return None if self.floor_s is None else self.median_s / self.floor_s

    def within(self, limits: "Limits") -> "Piece":
        """The same with its floor in seconds."""
        reading_s = self.floor_bytes / limits.bandwidth_bytes_s
        computing_s = self.floor_flop / limits.rate_flop_s
        return replace(self, floor_s=max(reading_s, computing_s) or None)

    def as_object(self) -> Object:
        """JSON values, nothing rounded."""
        values = {**asdict(self), "samples_s": list(self.samples_s)}
        return {**values, "median_s": self.median_s, "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the models' shapes and this machine allow at one length."""

    length: int
    forward_bytes: int  # all weights, and keys and values of the prompt
    least_forward_bytes: int  # the same without an input embedding that is not the head too
    prefill_flop: int  # of the target
    bandwidth_bytes_s: float
    rate_flop_s: float

    def as_object(self) -> Object:
        """JSON values; ``forward_s`` is the floor of a forward."""
        return {**asdict(self), "forward_s": self.forward_bytes / self.bandwidth_bytes_s}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a request that has read its prompt and made some steps."""

    length: int
    weights: int
    kv_target: int
    kv_draft: int
    peak: int  # of the allocator (GPU) or of the process (CPU)

    def as_object(self) -> Object:
        """JSON values; ``rest`` is what neither weights nor keys and values account for."""
        rest = self.peak - self.weights - self.kv_target - self.kv_draft
        return {**asdict(self), "rest": rest}


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was left out at a length, and why."""

    length: int
    what: str
    reason: str


@dataclass(slots=True)
class Measured:
    """All that was found."""

    pieces: list[Piece] = field(default_factory=list)
    limits: list[Limits] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    static: bool = False  # drafts have exactly their levels, not as many as are worth it


def prepare(
    name: str | Preset, overrides: dict[str, str], lengths: Sequence[int], *, stand_in: bool
) -> Preset:
    """The preset as it will be measured. Raises ``UsageError`` and ``ContextError``."""
    preset = load_preset(name, overrides)
    if stand_in:  # what is set by hand counts more than what a stand-in needs
        preset = standin.adapted(preset).with_overrides(overrides)
    if max(lengths) > preset.context_tokens:
        raise ContextError(
            f"{max(lengths):,} tokens exceed the context of preset {preset.name}",
            reason=f"it has {preset.context_tokens:,}",
            hints=["give shorter --lengths"],
        )
    return preset


def load_engine(
    preset: Preset, *, device: str, dtype: str, offline: bool, stand_in: bool
) -> Engine:
    """The weights of a ``prepare``d preset; raises what finding and loading models raises."""
    if not stand_in:
        return load(preset, device=device, dtype=dtype, offline=offline)
    began = time.perf_counter()
    pair = standin.load_pair(preset, device=device, dtype=dtype)
    return Engine(preset, pair, load_s=time.perf_counter() - began)


def measure(
    engine: Engine,
    lengths: Sequence[int],
    *,
    tell: Tell = lambda what: None,
    clock: Clock = time.perf_counter,
) -> Measured:
    """Time every piece at every length; ``tell`` hears what is going on.

    ``clock`` is the host's, for devices without events. What does not fit into memory is skipped.
    The hardware is measured before and after, and the better figures stand.
    """
    found = Measured()
    for length in lengths:
        tell(f"{length:,} tokens: bandwidth and matmul rate")
        _limits(engine, length)
        session = _Session(engine, length, found, tell, clock)
        try:
            found.pieces += session.run(with_variants=length == max(lengths))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found.skipped.append(Skipped(length, "all pieces", _line(error)))
            release(error, engine.target.device)
        _tidy(engine.target.device)
    _limits(engine, max(lengths), again=True)
    found.limits = [_limits(engine, length) for length in lengths]
    limits = {each.length: each for each in found.limits}
    found.pieces = [each.within(limits[each.length]) for each in found.pieces]
    return found


def micro_object(engine: Engine, found: Measured, *, elapsed_s: float, stand_in: bool) -> Object:
    """``found`` as ``specx.micro/1``."""
    about, trained = standin.about(engine.preset), standin.TRAINED_TOKENS
    facts = StandInFacts(pair="pocket", trained_tokens=trained, about=about) if stand_in else None
    shown = preset_facts(engine.preset, engine.kernels, facts).model_dump(mode="json")
    shown["target"]["dtype"] = engine.dtype
    return {
        "schema": "specx.micro/1",
        "specx": {"version": __version__, "commit": source_commit()},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "elapsed_s": elapsed_s,
        "env": environment(engine.device),
        "plan": {
            "presets": [shown],
            "lengths": [each.length for each in found.limits],
            "levels": levels_of(engine),
            "static": found.static,
            "rounds": _rounds(engine.target.device),
            "parts": asdict(parts_of(engine)),
            "device": engine.device,
            "dtype": engine.dtype,
        },
        "limits": [each.as_object() for each in found.limits],
        "pieces": [each.as_object() for each in found.pieces],
        "memory": [each.as_object() for each in found.memory],
        "skipped": [asdict(each) for each in found.skipped],
    }


class _Session:
    """One length."""

    def __init__(
        self, engine: Engine, length: int, found: Measured, tell: Tell, clock: Clock
    ) -> None:
        self._engine, self._length, self._found = engine, length, found
        self._listener, self._clock, self._device = tell, clock, engine.target.device

    @torch.inference_mode()
    def run(self, *, with_variants: bool) -> list[Piece]:
        """Every piece; ``with_variants``: also forwards with one part changed."""
        self._tell("prefill")
        reset_peak(self._device)
        rig = Rig(self._engine, self._length)
        timed = self._prefills(rig)
        self._found.static = rig.is_static
        rig.fill()
        tasks = list(rig.tasks())
        warm_s = {tasks[0]: self._warm(tasks[0])}  # a step
        self._found.memory.append(self._memory(rig))
        if with_variants:
            variants, lost = rig.variants()
            tasks += variants
            self._found.skipped += [Skipped(self._length, *each) for each in lost.items()]
        self._tell("compiling and recording")
        for task in tasks[1:]:
            try:
                warm_s[task] = self._warm(task)
            except (RuntimeError, MemoryError) as error:
                if not task.variant or not is_out_of_memory(error):
                    raise
                self._found.skipped.append(Skipped(self._length, task.variant, _line(error)))
        return timed + self._turns([task for task in tasks if task in warm_s], warm_s, rig)

    def _tell(self, what: str) -> None:
        self._listener(f"{self._length:,} tokens: {what}")

    def _prefills(self, rig: Rig) -> list[Piece]:
        """On a GPU the first one is thrown away; a long prompt is read once in any case."""
        is_once = self._device.type != "cuda" or self._length > _LONG_TOKENS
        tokens = rig.tokens()
        first = None if is_once else rig.prefill(tokens)
        runs = [rig.prefill(tokens) for _ in range(1 if is_once else _PREFILLS)]
        flop = floor.cost_of(self._engine.target).prefill_flop(self._length)
        columns: list[tuple[str, Callable[[tuple[float, float]], float], int]]
        columns = [("prefill target", lambda run: run[0], flop)]
        if rig.drafts:
            columns += [("prefill draft", lambda run: run[1], 0), ("prefill", sum, flop)]
        return [
            Piece(
                name,
                self._length,
                tuple(map(seconds, runs)),
                floor_flop=count,
                first_s=None if first is None else seconds(first),
            )
            for name, seconds, count in columns
        ]

    def _memory(self, rig: Rig) -> Memory:
        cache = rig.target.cache
        return Memory(
            length=self._length,
            weights=self._engine.weights_bytes,
            kv_target=cache.row_bytes * cache.capacity,
            kv_draft=rig.draft_kv_bytes,
            peak=peak_bytes(self._device),
        )

    def _warm(self, task: Task) -> tuple[float, float]:
        """Run it until it is recorded; seconds of the first call and of the last one."""
        began = now(self._device)
        first_s = last_s = 0.0
        for _ in range(_WARM):
            task.prepare()
            start = now(self._device)
            task.work()
            end = now(self._device)
            first_s, last_s = first_s or end - began, end - start
        return first_s, last_s

    def _turns(
        self, tasks: list[Task], warm_s: dict[Task, tuple[float, float]], rig: Rig
    ) -> list[Piece]:
        self._tell(f"{len(tasks)} pieces in turns")
        lead, rounds = rig.lead(), _rounds(self._device)
        repeats = {task: task.repeats or _row(warm_s[task][1]) for task in tasks}
        samples: dict[Task, list[float]] = {task: [] for task in tasks}
        levels_s: list[float] = []  # as the drafter tells them
        for turn in range(rounds):
            shift = turn % len(tasks)
            for task in tasks[shift:] + tasks[:shift]:
                task.prepare()
                seconds = self._row_s(task.work, repeats[task], lead if task.is_queued else None)
                samples[task].append(seconds / repeats[task] / task.pieces)
                if task.name == "draft" and rig.told_level_s is not None:
                    levels_s.append(rig.told_level_s)
        timed = [
            Piece(
                task.name,
                self._length,
                tuple(samples[task]),
                nodes=task.nodes,
                variant=task.variant,
                repeats=repeats[task],
                first_s=warm_s[task][0],
                floor_bytes=task.floor_bytes,
            )
            for task in tasks
        ]
        by_name = {task.name: samples[task] for task in tasks}
        if rig.levels > 1 and "draft of one level" in by_name:
            pairs = zip(by_name["draft"], by_name["draft of one level"], strict=True)
            levels_s = [max(0.0, many - one) / (rig.levels - 1) for many, one in pairs]
        if levels_s:
            found, count = tuple(levels_s), rig.level_bytes
            timed.append(Piece("draft level", self._length, found, nodes=WIDTH, floor_bytes=count))
        return timed

    def _row_s(self, work: Work, times: int, lead: Work | None) -> float:
        """Seconds of ``times`` calls in a row, without what comes before them."""
        if self._device.type != "cuda":
            start = self._clock()
            for _ in range(times):
                work()
            now(self._device)
            return self._clock() - start
        if lead is not None:
            lead()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        for _ in range(times):
            work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000.0


def _limits(engine: Engine, length: int, *, again: bool = False) -> Limits:
    """Measures the hardware where that has not been done for such sizes, or ``again``."""
    target = engine.target
    cost = floor.cost_of(target)
    forward_bytes = target.weights_bytes + cost.kv_row_bytes * length
    return Limits(
        length=length,
        forward_bytes=forward_bytes,
        least_forward_bytes=cost.step_bytes(length),
        prefill_flop=cost.prefill_flop(length),
        bandwidth_bytes_s=floor.bandwidth(target.device, forward_bytes, again=again),
        rate_flop_s=floor.matmul_rate(target.device, target.dtype, again=again),
    )


def _tidy(device: torch.device) -> None:
    """Give back what a length held, before the next one's high mark."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _line(error: BaseException) -> str:
    return str(error).split("\n")[0] or "out of memory"


def _row(seconds: float) -> int:
    return max(1, min(_LONGEST_ROW, round(_ROW_S / max(seconds, 1e-9))))


def _rounds(device: torch.device) -> int:
    return _ROUNDS if device.type == "cuda" else _ROUNDS_WITHOUT_GPU
