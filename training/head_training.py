"""Training of an EAGLE head for a trained target: what `train` needs beside the pair's.

In: the command line's options, a place, the source of sequences. Out: a `Job` for the training
loop, which saves the head in the published form. Knows no clock.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from training import checkpoint
from training.batches import Source
from training.forward import Forward, Weights, weights_of
from training.head_objective import HeadObjective, agreement
from training.heads import HeadWeights, make_head
from training.loop import Place
from training.objectives import Objective

HEADS = ("eagle", "eagle3")
LENGTH = 1024
MLP, MICRO_MLP = 1280, 128
PROBE_STEPS = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained: `embedding` is the parameter among `parameters` that AdamW updates though
    it is a matrix; `save` takes the summary of the run, `score` tells how good it is now."""

    parameters: list[nn.Parameter]
    embedding: nn.Parameter | None
    objective: Objective
    save: Callable[[Mapping[str, object]], None]
    score: Callable[[], dict[str, float]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of heads."""
    add = parser.add_argument_group("heads (eagle, eagle3)").add_argument
    add("--steps", type=int, default=8, help="drafting steps to unroll")
    add("--roots", type=int, default=256, help="positions of a sequence to draft from")
    add("--decay", type=float, default=0.9, help="weight of a step's loss, by that of the last")
    add("--feature", type=float, default=0.2, help="weight of EAGLE-1's distance to the feature")
    add("--text", type=float, default=0.3, help="weight of plain text, by that of answers")


def head_job(options: argparse.Namespace, place: Place, source: Source) -> Job:
    """The job of a head. Raises SystemExit where there is no target."""
    if options.target is None:
        raise SystemExit(f"{options.model}: --target is missing: the folder of the trained target")
    teacher = checkpoint.load(options.target).to(place.device).requires_grad_(False)
    target = weights_of(teacher)
    head = trainable(initial(options, target), place.device)
    probe = HeadProbe(source, head, target, options.probe_count)

    def save(summary: Mapping[str, object]) -> None:
        checkpoint.save_head(head, options.out, len(target.embedding), LENGTH, summary)

    objective = HeadObjective(
        head, target, options.steps, options.roots, options.decay, options.feature
    )
    parameters = [p for p in head.tensors.values() if isinstance(p, nn.Parameter)]
    return Job(parameters, None, objective, save, probe.score)


def initial(options: argparse.Namespace, target: Weights) -> HeadWeights:
    """The head to start from, on the CPU."""
    mlp = MICRO_MLP if options.micro else MLP
    head = make_head(target, eagle3=options.model == "eagle3", mlp=mlp, seed=options.seed)
    if options.resume:
        tensors = checkpoint.load_head(options.resume, head)
        tensors["fc.weight"] = tensors["fc.weight"] / head.scales
        head = replace(head, tensors=tensors)
    return head


def trainable(head: HeadWeights, device: torch.device) -> HeadWeights:
    """The head on `device`, its tensors as parameters."""
    tensors = {name: nn.Parameter(tensor.to(device)) for name, tensor in head.tensors.items()}
    return replace(head, scales=head.scales.to(device), tensors=tensors)


class HeadProbe:
    """Agreement of a head with its target on fixed held-out conversations of `LENGTH` tokens."""

    def __init__(self, source: Source, head: HeadWeights, target: Weights, count: int) -> None:
        self._source, self._head, self._target, self._count = source, head, target, count
        self._texts: list[tuple[Tensor, np.ndarray]] = []
        self._forward = Forward.make(compiled=False)

    def score(self) -> dict[str, float]:
        """`text_j` and `answer_j`: agreement at step j, given the true text before; `text_run`,
        `answer_run`: steps agreed on before the first that is not, of `PROBE_STEPS`."""
        device = self._target.embedding.device
        if not self._texts:
            writer = self._source.writer(held_out=True)
            for number in range(self._count):
                one = writer.example(np.random.default_rng([99, LENGTH, number]), LENGTH + 1)
                tokens = torch.from_numpy(one.tokens.astype(np.int64)).to(device)
                self._texts.append((tokens, one.kinds))
        cuda = device.type == "cuda"
        agreed: list[np.ndarray] = []
        answers: list[np.ndarray] = []
        for tokens, kinds in self._texts:
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                right = agreement(self._forward, self._head, self._target, tokens, PROBE_STEPS)
            agreed.append(right.cpu().numpy())
            answers.append(kinds > 0)
        return _scores(agreed, answers)


def _scores(agreed: list[np.ndarray], answers: list[np.ndarray]) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, wanted in (("text", False), ("answer", True)):
        runs: list[np.ndarray] = []
        for step in range(PROBE_STEPS):
            values = [
                right[step][is_answer[step + 2 :][: right.shape[1]] == wanted]
                for right, is_answer in zip(agreed, answers, strict=True)
            ]
            out[f"{name}_{step + 1}"] = round(float(np.concatenate(values).mean()), 4)
        for right, is_answer in zip(agreed, answers, strict=True):
            inside = is_answer[2:][: right.shape[1]] == wanted
            runs.append(np.cumprod(right, 0).sum(0)[inside])
        out[f"{name}_run"] = round(float(np.concatenate(runs).mean()), 3)
    return out
