"""Time each piece of a step against its floor: `python -m tools.profile_step -m pocket`.

In: a preset and prompt lengths. Out: a table, and JSON with ``--json FILE``. The prompt is random
tokens, the step is the one of ``core.decode``; drafts grow to their full size, so that a piece
costs the same every time. Pieces take turns, so that a disturbance does not hit one of them alone,
and the median turn counts.

Floor: the bytes that a piece has to read over the bandwidth measured here; for a prefill its
operations over the measured rate of large products.
"""

import argparse
import json
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from specx.bench import roofline
from specx.bench.lengths import parse_lengths
from specx.core.clock import now
from specx.core.config import Parts, SamplingConfig, parts_for
from specx.core.decode import Step, launch, settle
from specx.core.drafts import Drafter
from specx.core.drafts.eagle import EagleHead
from specx.core.drafts.model import DraftSettings, ModelDrafter, drafter_in
from specx.core.kernels.choice import choose_kernels
from specx.core.sampling import Sampler
from specx.core.target import Target
from specx.core.tree import TokenTree
from specx.core.workspace import Workspace
from specx.engine import Engine, load
from specx.preset.preset import Preset, load_preset
from specx.standin import build as standin

FORWARD_ROWS = (1, 8, 16, 32, 64)
ATTENTION_ROWS = (1, 64)
_WARM = 3  # the first executes, the second records
_SEED = 5


@dataclass(frozen=True, slots=True)
class Piece:
    """What one piece took, in seconds: a sample a turn."""

    name: str
    length: int
    samples_s: tuple[float, ...]
    floor_s: float | None  # None: no limit is counted
    rows: int | None = None

    @property
    def median_s(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples_s)


@dataclass(frozen=True, slots=True)
class Task:
    """``work`` does ``count`` equal pieces, each of which reads ``read_bytes``."""

    name: str
    work: Callable[[], object]
    read_bytes: int = 0
    rows: int | None = None
    count: int = 1


class Bench:
    """One request whose prompt of ``length`` tokens is read, and its pieces."""

    def __init__(self, engine: Engine, length: int, rounds: int) -> None:
        preset, model = engine.preset, engine.target
        self._engine, self._length, self._device = engine, length, model.device
        self.parts = _parts(engine)
        self._kernels, _ = choose_kernels(model, self.parts)
        tree = replace(preset.tree, size="fixed", threshold=0.0)
        self._retrieval = preset.retrieval
        self._steps = 2 * preset.retrieval.every_steps  # in a row
        turns = (rounds + _WARM) * (self._steps + 1)
        rows = length + (turns + 3) * (tree.depth + 1) + 2 * max(FORWARD_ROWS)
        workspace = Workspace(model, max(rows, preset.retrieval.budget_tokens))
        self.target = Target(model, workspace.capacity, self.parts, self._kernels, workspace)
        self._sampler, self._levels = Sampler(SamplingConfig()), tree.depth
        self._drafter: ModelDrafter | None = None
        if engine.draft is not None:
            settings = DraftSettings(
                model=engine.draft,
                vocabulary=model.shape.vocabulary,
                trained_tokens=preset.draft.trained_context_tokens,
                parts=self.parts,
                tree=tree,
                retrieval=preset.retrieval,
                kernels=self._kernels,
            )
            self._drafter = drafter_in(workspace, settings, self._sampler)

    @torch.inference_mode()
    def prefill(self) -> tuple[float, float]:
        """Read the prompt; seconds of the target and of the draft."""
        known = self._engine.target.shape.vocabulary
        if self._engine.draft is not None:
            known = min(known, self._engine.draft.shape.vocabulary)
        seeded = torch.Generator().manual_seed(_SEED)
        prompt = torch.randint(known, (self._length,), generator=seeded).to(self._device)
        target_s = draft_s = 0.0
        for chunk in torch.split(prompt, self._engine.preset.prefill_chunk_tokens):
            start = now(self._device)
            _, features = self.target.read(chunk)
            middle = now(self._device)
            if self._drafter is not None:
                self._drafter.prefill(chunk, features)
            target_s += middle - start
            draft_s += now(self._device) - middle
        self.target.begin(prompt, prompt[:1], features[-1:])
        if self._drafter is not None:
            if self._retrieves:
                self._drafter.refocus(self.target.select(self._retrieval, None))
            self._drafter.begin(None)
            self._drafter.extend([0])
        return target_s, draft_s

    def tasks(self) -> Iterator[Task]:
        """All pieces. Needs a ``prefill``."""
        cost = roofline.cost_of(self._engine.target)
        forward_bytes = cost.step_bytes(self._length)
        shape = self._engine.target.shape
        if self._drafter is not None:
            yield Task("step", partial(self._decode, True), forward_bytes, count=self._steps)
            yield Task("draft", self._draft, self._levels * self._level_bytes())
        else:
            yield Task("step", partial(self._decode, False), forward_bytes, 1, self._steps)
        yield from (
            Task("verify", self._forward(rows), forward_bytes, rows) for rows in FORWARD_ROWS
        )
        layer_bytes = cost.kv_row_bytes * self._length // shape.layers
        for rows in ATTENTION_ROWS:
            yield Task("tree attention", self._attention(rows), layer_bytes, rows, shape.layers)

    def _decode(self, drafts: bool) -> None:
        """Some steps as ``Decoding`` makes them: the next one launched before one is settled."""
        drafter = self._drafter if drafts else None
        ahead = 1 if self.target.launcher.is_fixed else 0
        launched: deque[Step] = deque()
        for number in range(self._steps):
            is_due = self._retrieves and self._retrieval.due(number)
            retrieval = self._retrieval if is_due else None
            launched.append(launch(self.target, drafter, self._sampler, retrieval=retrieval))
            while len(launched) > (ahead if number + 1 < self._steps else 0):
                settled = settle(launched.popleft(), self.target, drafter or Drafter())
                if drafter is not None:
                    drafter.extend(settled.tokens)

    def _draft(self) -> None:
        """A draft, and one more token of output for the next one."""
        assert self._drafter is not None
        tree, progress = self._drafter.draft(), self.target.progress
        self._drafter.observe(0.0, tree.reaches, tree.depths)
        progress.advance(progress.root, torch.ones_like(progress.length))
        self.target.settle(1)
        self._drafter.extend([0])

    def _forward(self, rows: int) -> Callable[[], object]:
        tree = _random_tree(rows, self._device)
        return lambda: self.target.verify(self.target.place(tree))

    def _attention(self, rows: int) -> Callable[[], object]:
        """A tree's attention in every layer, one after the other, so that no cache of the device
        holds what is read."""
        shape, cache, launcher = self._engine.target.shape, self.target.cache, self.target.launcher
        mask = _random_tree(rows, self._device).mask
        # As a layer hands it over: heads beside each other in a row.
        query = torch.randn(rows, shape.heads, shape.head_dim, device=self._device)
        query = query.to(self._engine.target.dtype).transpose(0, 1)

        def attend() -> Tensor:
            prefix = launcher.length(self.target.progress.length)
            for cached in zip(cache.keys, cache.values, strict=True):
                out = self._kernels.tree(query, cached, prefix, mask, shape.head_dim**-0.5)
            return out

        return lambda: launcher.run(attend, "tree attention", rows)

    @property
    def _retrieves(self) -> bool:
        is_asked = self._drafter is not None and self.parts.draft_cache == "retrieval"
        return is_asked and self._retrieval.is_needed(self._length)

    def _level_bytes(self) -> int:
        """Weights of the draft, and its working cache at its budget."""
        draft = self._engine.draft
        assert draft is not None
        rows = min(self._length, self._engine.preset.retrieval.budget_tokens)
        weights = draft.weights_bytes
        if isinstance(draft, EagleHead):  # merges the target's features once a draft
            weights = draft.footprint.forward_bytes - draft.fuse_bytes
        return weights + roofline.cost_of(draft).kv_row_bytes * rows


@torch.inference_mode()
def measure(engine: Engine, length: int, rounds: int) -> list[Piece]:
    """Every piece at one length."""
    bench, device = Bench(engine, length, rounds), engine.target.device
    cost = roofline.cost_of(engine.target)
    target_s, draft_s = bench.prefill()
    rate = roofline.matmul_rate(device, engine.target.dtype)
    floor_s = cost.prefill_flop(length) / rate
    pieces = [Piece("prefill target", length, (target_s,), floor_s)]
    if draft_s:
        pieces.append(Piece("prefill draft", length, (draft_s,), None))
    tasks = list(bench.tasks())
    for task in tasks:
        for _ in range(_WARM):
            task.work()
    samples: list[list[float]] = [[] for _ in tasks]
    for turn in range(rounds):
        for index in range(len(tasks)):
            at = (index + turn) % len(tasks)
            start = now(device)
            tasks[at].work()
            samples[at].append((now(device) - start) / tasks[at].count)
    bandwidth = roofline.bandwidth(device, cost.step_bytes(length))
    for task, taken in zip(tasks, samples, strict=True):
        floor = task.read_bytes / bandwidth or None
        pieces.append(Piece(task.name, length, tuple(taken), floor, task.rows))
    return pieces


def load_engine(options: argparse.Namespace) -> Engine:
    """The preset's weights, or stand-ins of their shape."""
    overrides = dict(each.split("=", 1) for each in options.set)
    preset: Preset = load_preset(options.preset, overrides)
    if not options.stand_in:
        return load(preset, device=options.device, dtype=options.dtype)
    preset = standin.adapted(preset).with_overrides(overrides)
    return Engine(preset, standin.load_pair(preset, device=options.device, dtype=options.dtype))


def as_table(pieces: list[Piece]) -> str:
    """One line a piece; milliseconds."""
    lines = [f"{'tokens':>8}  {'piece':<16}{'rows':>5}{'ms':>10}{'floor ms':>10}{'ratio':>7}"]
    for piece in pieces:
        rows = "" if piece.rows is None else str(piece.rows)
        line = f"{piece.length:>8,}  {piece.name:<16}{rows:>5}{1e3 * piece.median_s:>10.3f}"
        if piece.floor_s is not None:
            line += f"{1e3 * piece.floor_s:>10.3f}{piece.median_s / piece.floor_s:>7.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("-m", "--preset", default="pocket", help="name or YAML file")
    parser.add_argument("--lengths", default="1k", help="prompt tokens: 1k,16k")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--stand-in", action="store_true", help="real shapes without a download")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    engine = load_engine(options)
    pieces = []
    for length in parse_lengths(options.lengths):
        pieces += measure(engine, length, options.rounds)
    print(f"{engine.preset.name} on {engine.device}, {engine.dtype}, {engine.kernels} attention")
    print(as_table(pieces))
    if options.json is not None:
        found = [{**asdict(piece), "median_s": piece.median_s} for piece in pieces]
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _parts(engine: Engine) -> Parts:
    """Those of mode ``specx`` as the preset changes them."""
    preset = engine.preset
    parts = parts_for("specx", {"drafter": preset.draft.kind, **preset.parts})
    return parts if engine.draft is not None else replace(parts, drafter="none")


def _random_tree(nodes: int, device: torch.device) -> TokenTree:
    """A tree of ``nodes``, the same every time."""
    rng = random.Random(_SEED)
    parents = [0, *(rng.randrange(node) for node in range(1, nodes))]
    return TokenTree.build(range(nodes), parents, device)


if __name__ == "__main__":
    main()
