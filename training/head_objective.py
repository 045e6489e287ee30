"""What the EAGLE heads are trained for: to draft as the target would go on, several steps deep.

In: a head, its target, a batch. Out: a scalar loss and named values for the log; the agreement of a
head with its target. Knows no optimizer, clock or file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import Batch
from training.forward import Forward, Weights
from training.heads import HeadWeights, for_logits, target_features, unroll
from training.objectives import two_means


def compare(hidden: Tensor, taught: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distribution softmax(hidden @ matrix.T) beside that of `taught`; both [..., D].

    Returns KL(taught || hidden) [...], 1 where both are largest at the same token [...], and the
    gradient of each divergence for its row of `hidden`.
    """
    wanted = F.linear(taught, matrix).float().log_softmax(-1)
    guess = F.linear(hidden, matrix).float().log_softmax(-1)
    agree = (guess.argmax(-1) == wanted.argmax(-1)).float()
    chances = wanted.exp()
    gradient = F.linear(guess.exp() - chances, matrix.t()).to(hidden.dtype)
    return (chances * (wanted - guess)).sum(-1), agree, gradient


class _FrozenMatrixLoss(torch.autograd.Function):
    """`compare` for a matrix that is not trained: no logits are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, taught: Tensor, matrix: Tensor, function: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        values, agree, gradient = function(hidden, taught, matrix)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(agree)
        return values, agree

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0][..., None], None, None, None


def frozen_loss(
    hidden: Tensor, taught: Tensor, matrix: Tensor, function: Callable[..., Any] = compare
) -> tuple[Tensor, Tensor]:
    """(divergences [...], agreement [...]) as in `compare`; gradients reach `hidden` only."""
    values, agree = _FrozenMatrixLoss.apply(hidden, taught, matrix, function)  # type: ignore[no-untyped-call]
    return values, agree


ANSWER_ODDS, LEAP_ODDS = 8.0, 64.0
"""How much likelier an answer's position is drawn as a root than one of plain text, and one where
an answer leaps to another sentence: a head drafts answers, an eighth of a sequence, and starts anew
where it failed, which is mostly there."""


def leaps(batch: Batch) -> Tensor:
    """[B, T + 1] bool: the tokens whose source does not follow the source of the token before.

    A sequence with more than `batches.POINTER_ROWS` copied tokens has some at the gaps, too.
    """
    source = torch.full_like(batch.tokens, -1)
    source.scatter_reduce_(1, batch.rows + 1, batch.sources, "amax")
    before = F.pad(source[:, :-1], (1, 0), value=-1)
    return (source >= 0) & ((before < 0) | (source != before + 1))


def root_odds(batch: Batch, count: int) -> Tensor:
    """[B, count] float32: the odds of the positions 0 to `count` - 1 as roots; count <= T - 2.

    Root r first guesses token r + 2. It is near a leap where that is one of the first four tokens
    from a new place, and within an answer where the token after it belongs to one.
    """
    near = F.max_pool1d(F.pad(leaps(batch).float(), (1, 0)), 4, stride=1)[:, :count] > 0
    odds = torch.where(batch.kinds[:, 3 : count + 3] > 0, ANSWER_ODDS, 1.0)
    return torch.where(near, LEAP_ODDS, odds)


def draw_roots(odds: Tensor, count: int) -> Tensor:
    """[B, count] int64, ascending: different random positions of each row of `odds` [B, T].
    (Gumbel's trick: the largest of noisy logarithms.)"""
    noise = -torch.empty_like(odds).exponential_().log()
    return (odds.log() + noise).topk(count, dim=1).indices.sort(dim=1).values


@dataclass(slots=True)
class HeadObjective:
    """KL divergence from the target at each of `steps` drafting steps from `roots` random positions
    of each sequence (`draw_roots`), weighted by `decay` to the power of the step; for EAGLE-1 also
    the smooth L1 distance to the target's next feature."""

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
        assert self.forward is not None
        with torch.no_grad():
            features, last = target_features(
                self.forward, self.target, batch.tokens[:, :-1], self.head.reads
            )
        length = last.shape[1]
        odds = root_odds(batch, length - self.steps)
        roots = draw_roots(odds, min(self.roots, odds.shape[1]))
        outputs = unroll(
            self.head, self.target.embedding, features, batch.tokens, roots, self.steps
        )
        share = sum(self.decay**step for step in range(self.steps))
        total = torch.zeros((), device=last.device)
        parts = torch.zeros(3, device=last.device)
        agreed: list[Tensor] = []
        for step, output in enumerate(outputs):
            at = roots + step + 1  # where the target predicts what this step predicts
            taught = last.gather(1, at[:, :, None].expand_as(output))
            means, agree = self._compared(output, taught, batch.kinds.gather(1, at + 1))
            text, answer, feature = means
            weight = self.decay**step / share
            loss = text_weight * text + answer + self.feature_weight * feature
            total = total + weight * loss
            parts += weight * torch.stack(means).detach()
            agreed.append(agree)
        text_and_answer = torch.stack([agreed[0], agreed[-1]], 1)
        return total, torch.cat([parts, text_and_answer.flatten()])

    def _compared(
        self, guess: Tensor, taught: Tensor, kinds: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """((mean KL of text, of answers, mean distance of features), agreement [2] of both) of
        the head's `guess` and the target's normed last states `taught`, both [B, R, D]."""
        rows = for_logits(self.head, guess)
        kl, agree = frozen_loss(rows, taught, self.target.embedding, self._compare)
        text, answer = two_means(kl, kinds)
        feature = torch.zeros_like(text)
        if self.feature_weight and not self.head.eagle3:
            distance = F.smooth_l1_loss(guess, taught, reduction="none").mean(-1)
            feature = sum(two_means(distance, kinds), start=feature)
        return (text, answer, feature), torch.stack(two_means(agree, kinds))


@torch.no_grad()
def agreement(
    forward: Forward, head: HeadWeights, target: Weights, tokens: Tensor, steps: int
) -> Tensor:
    """[steps, T - steps] bool: whether head and target choose the same token at each drafting
    step from each root of a text `tokens` [T + 1], given the true text up to there."""
    matrix, length = target.embedding, len(tokens) - 1
    features, last = target_features(forward, target, tokens[None, :-1], head.reads)
    chosen = F.linear(last[0], matrix).argmax(-1)
    roots = torch.arange(length - steps, device=tokens.device)
    outputs = unroll(head, matrix, features, tokens[None], roots[None], steps)
    guesses = [F.linear(for_logits(head, output[0]), matrix).argmax(-1) for output in outputs]
    return torch.stack([guess == chosen[roots + j + 1] for j, guess in enumerate(guesses)])
