"""What the target and the draft are trained for: a batch into a loss and its parts.

In: weights, a batch. Out: a scalar loss and named values for the log, as tensors. Knows no
optimizer, clock or file.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import Batch
from training.forward import Forward, Weights, normalise


class Objective(Protocol):
    """A loss over batches; `names` says what the values beside the loss are."""

    names: tuple[str, ...]

    def prepare(self, *, compiled: bool) -> None:
        """Make the functions for the next sequence length."""

    def __call__(self, batch: Batch, text_weight: float) -> tuple[Tensor, Tensor]:
        """(loss, values [len(names)]). `text_weight` weighs tokens that are no answers."""


@dataclass(slots=True)
class TargetObjective:
    """Next-token loss, text and answers averaged apart, and the pointer loss of the last layer."""

    weights: Weights
    pointer_weight: float
    forward: Forward | None = None
    names: tuple[str, ...] = ("loss_text", "loss_answer", "loss_pointer", "pointer_mass")

    def prepare(self, *, compiled: bool) -> None:
        """Make the functions for the next sequence length."""
        self.forward = Forward.make(compiled=compiled)

    def __call__(self, batch: Batch, text_weight: float) -> tuple[Tensor, Tensor]:
        """The target's loss on a batch."""
        assert self.forward is not None
        weights, tokens = self.weights, batch.tokens[:, :-1]
        entering, hidden = self.forward.hidden_states(weights, tokens)
        losses = self.forward.losses(
            hidden, weights.norm, weights.embedding, batch.tokens[:, 1:], weights.shape.epsilon
        )
        text, answer = two_means(losses, batch.kinds[:, 1:])
        pointer, mass = self.forward.point(weights, entering, batch.rows, batch.sources)
        loss = text_weight * text + answer + self.pointer_weight * pointer
        return loss, torch.stack([text, answer, pointer, mass]).detach()


def two_means(values: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """The means of [B, T] `values` over text tokens and over answer tokens (0 where none)."""
    answer = (kinds > 0).float()
    text = 1.0 - answer
    return (
        (values * text).sum() / text.sum().clamp(min=1.0),
        (values * answer).sum() / answer.sum().clamp(min=1.0),
    )


@dataclass(slots=True)
class DistilObjective:
    """The draft imitates the target's distribution at every position, and the text a little."""

    student: Weights
    teacher: Weights
    text_share: float = 0.1
    forward: Forward | None = None
    names: tuple[str, ...] = ("kl_text", "kl_answer", "agree_text", "agree_answer")
    _compare: object = None

    def prepare(self, *, compiled: bool) -> None:
        """Make the functions for the next sequence length."""
        self.forward = Forward.make(compiled=compiled)
        self._compare = (
            torch.compile(divergence, dynamic=False, fullgraph=True) if compiled else divergence
        )

    def __call__(self, batch: Batch, text_weight: float) -> tuple[Tensor, Tensor]:
        """The draft's loss on a batch."""
        assert self.forward is not None
        assert callable(self._compare)
        tokens, labels = batch.tokens[:, :-1], batch.tokens[:, 1:]
        with torch.no_grad():
            _, taught = self.forward.hidden_states(self.teacher, tokens)
        _, hidden = self.forward.hidden_states(self.student, tokens)
        pair = (self.student, self.teacher)
        norms, heads = [one.norm for one in pair], [one.embedding for one in pair]
        epsilons = [one.shape.epsilon for one in pair]
        kl, ce, agree = self._compare(hidden, taught, norms, heads, epsilons, labels)
        text, answer = two_means(kl + self.text_share * ce, batch.kinds[:, 1:])
        with torch.no_grad():
            values = [*two_means(kl, batch.kinds[:, 1:]), *two_means(agree, batch.kinds[:, 1:])]
        return text_weight * text + answer, torch.stack(values).detach()


def divergence(
    hidden: Tensor, taught: Tensor, norms: list[Tensor], heads: list[Tensor],
    epsilons: list[float], labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Each [B, T]: KL(teacher || student), the student's cross entropy, 1 where both agree."""
    logits = F.linear(normalise(hidden, norms[0], epsilons[0]), heads[0]).float()
    with torch.no_grad():
        wanted = F.linear(normalise(taught, norms[1], epsilons[1]), heads[1]).float()
        wanted_log = wanted.log_softmax(-1)
    log = logits.log_softmax(-1)
    kl = (wanted_log.exp() * (wanted_log - log)).sum(-1)
    ce = -log.gather(-1, labels[:, :, None])[:, :, 0]
    return kl, ce, (logits.argmax(-1) == wanted.argmax(-1)).float()
