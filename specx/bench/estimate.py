"""``--dry-run``: what a plan will cost, from this hardware's measured speed and the models' shapes,
laid out on torch's meta device: no weights are read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from specx.bench.prepare import Setup, find_pair
from specx.bench.render.numbers import count, size
from specx.bench.roofline import cost_of, measure_floor
from specx.bench.schema import Plan
from specx.checkpoints import load as hub
from specx.checkpoints.config import ModelConfig
from specx.checkpoints.eagle.config import read_head
from specx.checkpoints.weights import outline
from specx.core.architecture import Shape
from specx.core.decoder import Footprint, Model
from specx.preset.preset import Preset
from specx.preset.sections import HeadShapeSpec
from specx.standin.head_implant import tensor_shapes
from specx.trace.records import Record


@dataclass(slots=True)
class Outline:  # a model without weights: what ``roofline`` has to know of one
    shape: Shape
    dtype: torch.dtype
    device: torch.device
    footprint: Footprint


class EstimateRow(Record):
    """The runs of one preset at one length: each takes at least so long and so much memory."""

    preset: str
    length: int
    runs: int
    prefill_s: float
    decode_s: float
    memory_bytes: int


class Estimate(Record):
    schema_name: Literal["specx.bench-plan/1"] = Field(default="specx.bench-plan/1", alias="schema")
    plan: Plan
    runs: int
    rows: list[EstimateRow]
    least_s: float
    likely_s: float


def estimate(setup: Setup) -> Estimate:
    rows = [row for name in setup.presets for row in _rows(setup, name)]
    runs = sum(row.runs for row in rows)
    least_s = sum(row.runs * (row.prefill_s + row.decode_s) for row in rows)
    # Real runs of the bundled pair take about twice the least possible time.
    return Estimate(plan=setup.plan, runs=runs, rows=rows, least_s=least_s, likely_s=2 * least_s)


def estimate_lines(found: Estimate) -> Iterator[str]:
    plan = found.plan
    yield (
        f"{count(found.runs, 'run')}: {count(len(plan.modes), 'mode')} ({', '.join(plan.modes)}), "
        f"{count(len(plan.data.documents), 'document')} of {plan.data.name}, "
        f"{count(plan.reps, 'repetition')}, warm-up included"
    )
    for row in found.rows:
        yield (
            f"  {row.preset} {row.length:>9,}: {count(row.runs, 'run'):>8}, at least "
            f"{row.prefill_s:.1f} s prefill and {row.decode_s:.1f} s decode each, "
            f"{size(row.memory_bytes)} of weights and caches"
        )
    least, likely = (
        f"{time_s:.0f} s" if time_s < 120 else f"{time_s / 60:.0f} minutes"
        for time_s in (found.least_s, found.likely_s)
    )
    yield f"time: at least {least} at this machine's floor, likely about {likely}"
    for skipped in plan.data.skipped:
        yield f"skipped: {skipped.where}: {skipped.reason}"


def _rows(setup: Setup, name: str) -> Iterator[EstimateRow]:
    plan, preset = setup.plan, setup.presets[name]
    files = find_pair(preset, setup.options)
    target = _outline(files.target_config, preset.target.dtype, setup)
    config = files.draft_config
    draft = None if config is None else _outline(config, preset.draft.dtype, setup)
    costs = [cost_of(model) for model in (target, draft) if model is not None]
    for length in plan.lengths:
        floor = measure_floor(preset, target, draft, length)
        tokens = length + plan.max_tokens
        head_bytes = _head_numbers(preset, files, tokens) * target.dtype.itemsize
        # A mode that drafts takes fewer steps than this, and more time in each.
        yield EstimateRow(
            preset=name,
            length=length,
            runs=len(plan.modes) * (len(plan.data.documents) * plan.reps + plan.warmup),
            prefill_s=floor.prefill_s,
            decode_s=(plan.max_tokens - 1) * floor.step_s,
            memory_bytes=sum(cost.step_bytes(tokens) for cost in costs) + head_bytes,
        )


def _head_numbers(preset: Preset, files: hub.PairFiles, rows: int) -> int:
    """Of a head's weights, and of its keys and values of ``rows`` tokens; 0 for other drafts."""
    if files.head_config is None:
        return 0
    generation, shape = preset.draft.generation, preset.draft.head_shape
    if shape is None:
        facts = read_head(files.head_config)
        names = ("hidden", "mlp", "heads", "kv_heads", "head_dim")
        sizes = {name: getattr(facts, name) for name in names}
        shape = HeadShapeSpec(**sizes, vocabulary=facts.draft_vocabulary, features=generation)
    weights = tensor_shapes(shape, generation, files.target_config.shape.vocabulary).values()
    return sum(map(math.prod, weights)) + 2 * shape.kv_heads * shape.head_dim * rows


def _outline(config: ModelConfig, dtype: str, setup: Setup) -> Outline:
    device = torch.device(setup.plan.device)
    chosen = hub.choose_dtype(setup.options.dtype, dtype, device.type)
    footprint = Model(config.decoder, outline(config, chosen)).footprint
    return Outline(shape=config.shape, dtype=chosen, device=device, footprint=footprint)
