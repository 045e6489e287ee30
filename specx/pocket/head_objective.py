"""What the EAGLE heads are trained for: to draft as the target would go on, several steps deep.

In: a head, its target, a batch. Out: a scalar loss and named values for the log; the agreement of a
head with its target. Knows no optimizer, clock or file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specx.pocket.batches import Batch
from specx.pocket.forward import Forward, Weights
from specx.pocket.heads import HeadWeights, for_logits, target_features, unroll
from specx.pocket.objectives import two_means


def compare(hidden: Tensor, matrix: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of softmax(hidden @ matrix.T) to `wanted` [..., V], a distribution.

    Returns the values [...], 1 where both are largest at the same token [...], and the gradient of
    each value for its row of `hidden`.
    """
    logits = F.linear(hidden, matrix).float()
    log = logits.log_softmax(-1)
    gradient = F.linear(log.exp() - wanted, matrix.t()).to(hidden.dtype)
    agree = (logits.argmax(-1) == wanted.argmax(-1)).float()
    return -(wanted * log).sum(-1), agree, gradient


class _FrozenMatrixLoss(torch.autograd.Function):
    """`compare` for a matrix that is not trained: no logits are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, wanted: Tensor, function: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        values, agree, gradient = function(hidden, matrix, wanted)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(agree)
        return values, agree

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][..., None], None, None, None


def frozen_loss(
    hidden: Tensor, matrix: Tensor, wanted: Tensor, function: Callable[..., Any] = compare
) -> tuple[Tensor, Tensor]:
    """(cross entropies [...], agreement [...]) as in `compare`; gradients reach `hidden` only."""
    values, agree = _FrozenMatrixLoss.apply(hidden, matrix, wanted, function)  # type: ignore[no-untyped-call]
    return values, agree


ANSWER_ROOTS = 8.0
"""How much likelier an answer's position is drawn as a root than one of plain text: a head drafts
answers, and of a sequence of 1024 tokens only every eighth belongs to one."""


def draw_roots(is_answer: Tensor, count: int) -> Tensor:
    """[B, count] int64, ascending: different random positions of each row of `is_answer` [B, T]
    bool, with the odds of `ANSWER_ROOTS`. (Gumbel's trick: the largest of noisy logarithms.)"""
    noise = -torch.empty_like(is_answer, dtype=torch.float32).exponential_().log()
    odds = torch.where(is_answer, math.log(ANSWER_ROOTS), 0.0)
    return (odds + noise).topk(count, dim=1).indices.sort(dim=1).values


@dataclass(slots=True)
class HeadObjective:
    """KL divergence from the target at each of `steps` drafting steps, weighted by `decay` to the
    power of the step; for EAGLE-1 also the smooth L1 distance to the target's next feature.

    Steps after the first run from `roots` random positions of each sequence (`draw_roots`).
    """

    head: HeadWeights
    target: Weights
    steps: int
    roots: int
    decay: float
    feature_weight: float
    forward: Forward | None = None
    names: tuple[str, ...] = (
        "kl_text", "kl_answer", "feature", "text_1", "text_last", "answer_1", "answer_last",
    )  # fmt: skip
    _compare: Callable[..., Any] = compare

    def prepare(self, *, compiled: bool) -> None:
        """Make the functions for the next sequence length."""
        self.forward = Forward.make(compiled=compiled)
        self._compare = (
            torch.compile(compare, dynamic=False, fullgraph=True) if compiled else compare
        )

    def __call__(self, batch: Batch, text_weight: float) -> tuple[Tensor, Tensor]:
        """The head's loss on a batch."""
        features, taught = self._teach(batch.tokens[:, :-1])
        length, device = taught.last.shape[1], taught.last.device
        # the first token that the further steps of root r guess is r + 3
        is_answer = batch.kinds[:, 3 : length - self.steps + 3] > 0
        roots = draw_roots(is_answer, min(self.roots, length - self.steps))
        everywhere = torch.arange(length - 1, device=device).expand(len(roots), -1)
        outputs = unroll(
            self.head, self.target.embedding, features, batch.tokens, roots, self.steps
        )
        share = sum(self.decay**step for step in range(self.steps))
        total = torch.zeros((), device=device)
        parts = torch.zeros(3, device=device)
        agreed: list[Tensor] = []
        for step, output in enumerate(outputs):
            rows = everywhere if step == 0 else roots
            # at these positions the target predicts what this step predicts
            at = rows + step + 1
            kinds = batch.kinds.gather(1, at + 1)
            means, agree = self._compared(output[:, : rows.shape[1]], taught, at, kinds)
            text, answer, feature = means
            weight = self.decay**step / share
            loss = text_weight * text + answer + self.feature_weight * feature
            total = total + weight * loss
            parts += weight * torch.stack(means).detach()
            agreed.append(agree)
        text_and_answer = torch.stack([agreed[0], agreed[-1]], 1)
        return total, torch.cat([parts, text_and_answer.flatten()])

    @torch.no_grad()
    def _teach(self, tokens: Tensor) -> tuple[Tensor, "_Taught"]:
        assert self.forward is not None
        features, last = target_features(self.forward, self.target, tokens, eagle3=self.head.eagle3)
        log = F.linear(last, self.target.embedding).float().log_softmax(-1)
        wanted = log.exp()
        return features, _Taught(last, wanted, -(wanted * log).sum(-1))

    def _compared(
        self, guess: Tensor, taught: "_Taught", at: Tensor, kinds: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """((mean KL of text, of answers, mean distance of features), agreement [2] of both) where
        `guess` [B, n, D] stands for the target's positions `at` [B, n]."""
        rows = for_logits(self.head, guess)
        sequences = torch.arange(len(at), device=at.device)[:, None]
        wanted, entropy = taught.wanted[sequences, at], taught.entropy[sequences, at]
        ce, agree = frozen_loss(rows, self.target.embedding, wanted, self._compare)
        text, answer = two_means(ce - entropy, kinds)
        feature = torch.zeros_like(text)
        if self.feature_weight and not self.head.eagle3:
            distance = F.smooth_l1_loss(guess, taught.last[sequences, at], reduction="none").mean(
                -1
            )
            feature = sum(two_means(distance, kinds), start=feature)
        return (text, answer, feature), torch.stack(two_means(agree, kinds))


@dataclass(frozen=True, slots=True)
class _Taught:
    """A target's normed last states [B, T, D], its distributions [B, T, V], their entropies."""

    last: Tensor
    wanted: Tensor
    entropy: Tensor


@torch.no_grad()
def agreement(
    forward: Forward, head: HeadWeights, target: Weights, tokens: Tensor, steps: int
) -> Tensor:
    """[steps, T - steps] bool: whether head and target choose the same token at each drafting
    step from each root of a text `tokens` [T + 1], given the true text up to there."""
    matrix, length = target.embedding, len(tokens) - 1
    features, last = target_features(forward, target, tokens[None, :-1], eagle3=head.eagle3)
    chosen = F.linear(last[0], matrix).argmax(-1)
    roots = torch.arange(length - steps, device=tokens.device)
    outputs = unroll(head, matrix, features, tokens[None], roots[None], steps)
    guesses = [
        F.linear(for_logits(head, output[0, : len(roots)]), matrix).argmax(-1) for output in outputs
    ]
    return torch.stack([guess == chosen[roots + j + 1] for j, guess in enumerate(guesses)])
