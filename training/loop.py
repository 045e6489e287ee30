"""The training loop: phases of wall-clock length, on one CPU, one GPU or several.

In: an objective, an optimizer, a plan. Out: a trained model, a log. Every rank computes the same
update: gradients are averaged in one flat buffer, and rank 0's clock decides for all. Knows no task
and no file format; saving is a callback.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from training.attention import fastest_attention
from training.batches import Batch, Recipe, Source, batches
from training.objectives import Objective
from training.optim import Optimizer, trapezoid
from training.tasks import Mixture
from training.turns import Kind

_ENDING_S = 12.0
"""Kept free for the last probe and save."""


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` of training, compilation excluded, on sequences of `length` tokens."""

    length: int
    seconds: float
    mixture: Mixture
    text_weight: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `step_tokens` are per GPU and optimizer step, `micro_tokens` per forward pass;
    `rate` is Muon's peak learning rate, `adam_rate` AdamW's. `limit_s` bounds the whole run, start
    and compilation included: phases shrink to keep it, and the learning rate still ends at 0."""

    phases: tuple[Phase, ...]
    step_tokens: int
    micro_tokens: int
    rate: float
    adam_rate: float
    warm: float
    flat: float
    seed: int
    workers: int
    compiled: bool
    attention: str
    sync_steps: int
    max_steps: int | None
    limit_s: float | None
    save_every_s: float
    probe_every_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device

    def agree(self, value: float) -> float:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], device=self.device, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared.item())

    def average(self, buffer: Tensor) -> None:
        """Replace `buffer` by its mean over all ranks."""
        if self.world > 1:
            dist.all_reduce(buffer, op=dist.ReduceOp.SUM)
            buffer.div_(self.world)

    def wait(self) -> None:
        """Until all ranks and this device are here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.world > 1:
            dist.barrier()


@dataclass(slots=True)
class Log:
    """JSON lines on disk and on the terminal, and what the summary at the end tells."""

    path: Path
    place: Place
    started: float
    tokens: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    phases: list[dict[str, object]] = field(default_factory=list)
    last: dict[str, object] = field(default_factory=dict)
    probe: dict[str, float] = field(default_factory=dict)

    def write(self, **values: object) -> None:
        """One line, from rank 0 only, with the seconds since the start."""
        if self.place.rank:
            return
        line = json.dumps({"s": round(time.monotonic() - self.started, 1), **values})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Trainer:
    """Runs a plan. `save` and `probe` are called by rank 0 from time to time."""

    def __init__(
        self, optimizer: Optimizer, objective: Objective, source: Source, plan: Plan,
        place: Place, log: Log, save: Callable[[], None], probe: Callable[[], dict[str, float]],
    ) -> None:  # fmt: skip
        self.objective, self.source, self.plan, self.place = objective, source, plan, place
        self.log, self._save, self._probe = log, save, probe
        self.optimizer = optimizer
        self.steps = 0
        self._saved_at = self._probed_at = time.monotonic()

    def run(self) -> None:
        """All phases, then a last probe and save."""
        done = 0.0
        total = sum(phase.seconds for phase in self.plan.phases)
        for index, phase in enumerate(self.plan.phases):
            self._phase(index, phase, done, total)
            done += phase.seconds
        if self.place.rank == 0:
            self._look()
            self._save()
        self.place.wait()

    def _phase(self, index: int, phase: Phase, done: float, total: float) -> None:
        plan, place = self.plan, self.place
        size = max(1, plan.micro_tokens // phase.length)
        micros = max(1, round(plan.step_tokens / (size * phase.length)))
        seed = (plan.seed, index, phase.length, place.rank)
        recipe = Recipe(phase.length, size, phase.mixture, seed)
        start = time.monotonic()
        stream = batches(self.source, recipe, plan.workers)
        self._warm_up(phase, stream)
        place.wait()
        begin = time.monotonic()
        seconds = place.agree(self._time_for(index, begin - start))
        tokens, first_step = self.log.tokens, self.steps
        while self.steps - first_step != plan.max_steps:
            if (self.steps - first_step) % plan.sync_steps == 0:
                elapsed = place.agree(time.monotonic() - begin)
                if elapsed >= seconds:
                    break
                progress = (done + phase.seconds * elapsed / seconds) / total
                factor = trapezoid(progress, warm=plan.warm, flat=plan.flat)
            values = self._step(phase, stream, micros, factor)
            if self.steps % (5 * plan.sync_steps) == 0:
                speed = (self.log.tokens - tokens) / (time.monotonic() - begin)
                self._report(phase, values, factor, speed)
        place.wait()
        self.log.phases.append(
            {
                "length": phase.length,
                "seconds": round(time.monotonic() - begin, 1),
                "steps": self.steps - first_step,
                "tokens": self.log.tokens - tokens,
                "micro_batch": size,
                "mixture": {"text": phase.mixture.text, "abstract": phase.mixture.abstract},
            }
        )
        self.log.write(phase_done=self.log.phases[-1])

    def _time_for(self, index: int, warm_up_s: float) -> float:
        """Seconds for phase `index` that leave the later ones theirs, and their compilation."""
        wanted = [phase.seconds for phase in self.plan.phases[index:]]
        if self.plan.limit_s is None:
            return wanted[0]
        used = time.monotonic() - self.log.started
        left = self.plan.limit_s - used - warm_up_s * (len(wanted) - 1) - _ENDING_S
        return max(1.0, min(wanted[0], left * wanted[0] / sum(wanted)))

    def _warm_up(self, phase: Phase, stream: Iterator[Batch]) -> None:
        """Choose the attention kernel, compile, and drop the gradients of a first batch."""
        begin = time.monotonic()
        batch = next(stream).to(self.place.device)
        waited = time.monotonic() - begin
        kernel = fastest_attention(
            self.plan.attention, batch.tokens.shape[0], phase.length, self.place.device
        )
        try:
            self._try_out(batch, phase)
        except (RuntimeError, AssertionError) as error:
            if kernel != "cudnn":
                raise
            self.log.write(cudnn_failed=str(error)[:300])  # measured alone it worked
            kernel = fastest_attention("flash", 1, phase.length, self.place.device)
            self._try_out(batch, phase)
        self.optimizer.gradients.values.zero_()
        self.place.wait()
        seconds = round(time.monotonic() - begin, 1)
        memory = torch.cuda.max_memory_allocated() if self.place.device.type == "cuda" else 0
        self.log.write(
            warm_up=phase.length, seconds=seconds, first_batch_s=round(waited, 1),
            attention=kernel, micro_batch=batch.tokens.shape[0], gib=round(memory / 2**30, 1),
        )  # fmt: skip

    def _try_out(self, batch: Batch, phase: Phase) -> None:
        self.objective.prepare(compiled=self.plan.compiled)
        for _ in range(2):
            self._backward(batch, phase.text_weight, 1.0)

    def _backward(self, batch: Batch, text_weight: float, share: float) -> Tensor:
        cuda = self.place.device.type == "cuda"
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=cuda):
            loss, values = self.objective(batch, text_weight)
        torch.autograd.backward(loss * share)
        return values

    def _step(self, phase: Phase, stream: Iterator[Batch], micros: int, factor: float) -> Tensor:
        for _ in range(micros):
            cpu = next(stream)
            self.log.tokens += cpu.tokens.shape[0] * phase.length * self.place.world
            if self.place.rank == 0 and self.steps % 10 == 0:
                counts = torch.bincount(cpu.kinds.flatten(), minlength=len(Kind)).tolist()
                self.log.kinds.update({k.name.lower(): counts[k] for k in Kind})
            values = self._backward(cpu.to(self.place.device), phase.text_weight, 1 / micros)
        self.place.average(self.optimizer.gradients.values)
        self.optimizer.gradients.clip(1.0)
        self.optimizer.step(self.plan.rate * factor, self.plan.adam_rate * factor)
        self.steps += 1
        return values

    def _report(self, phase: Phase, values: Tensor, factor: float, speed: float) -> None:
        if self.place.rank:
            return
        named = dict(zip(self.objective.names, values.tolist(), strict=True))
        self.log.last = {name: round(value, 4) for name, value in named.items()}
        self.log.write(
            step=self.steps, length=phase.length, tokens=self.log.tokens, **self.log.last,
            lr=round(self.plan.rate * factor, 6), tok_s=int(speed),
        )  # fmt: skip
        now = time.monotonic()
        if now - self._probed_at > self.plan.probe_every_s:
            self._look()
        if now - self._saved_at > self.plan.save_every_s:
            self._save()
            self._saved_at = time.monotonic()

    def _look(self) -> None:
        begin = time.monotonic()
        self.log.probe = self._probe()
        self._probed_at = time.monotonic()
        self.log.write(**self.log.probe, probe_s=round(self._probed_at - begin, 2))
