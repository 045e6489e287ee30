"""The optimizer of the pair: Muon for matrices, AdamW for embeddings and norms, one flat gradient.

In: parameters with gradients. Out: updated parameters. All matrices of one shape are orthogonalised
as one batch, which keeps the number of kernels small. Knows no model and no schedule.
"""

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz coefficients that drive all singular values to about 1 in five steps."""


class FlatGradients:
    """One buffer, `values`, that holds every parameter's gradient: one sum over all ranks."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        size = sum(parameter.numel() for parameter in parameters)
        self.values = torch.zeros(size, device=parameters[0].device)
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.grad = self.values[start:stop].view_as(parameter)
            start = stop

    def clip(self, largest: float) -> Tensor:
        """Scale the gradient down to norm `largest`; the norm before."""
        norm: Tensor = self.values.norm()
        self.values.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm


class Muon:
    """Momentum, orthogonalised; step sizes are scaled to AdamW's typical update of 0.2 RMS."""

    def __init__(
        self, matrices: list[nn.Parameter], *, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        self._momentum, self._decay = momentum, decay
        shapes = sorted({tuple(matrix.shape) for matrix in matrices})
        self._groups = [[m for m in matrices if tuple(m.shape) == shape] for shape in shapes]
        self._velocities = [
            torch.zeros(len(group), *group[0].shape, device=group[0].device)
            for group in self._groups
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix from its gradient."""
        for group, velocity in zip(self._groups, self._velocities, strict=True):
            gradients = torch.stack([_gradient(matrix) for matrix in group])
            velocity.lerp_(gradients, 1 - self._momentum)
            updates = orthogonal(gradients.lerp(velocity, self._momentum))
            size = rate * 0.2 * max(group[0].shape) ** 0.5
            matrices: list[Tensor] = list(group)
            torch._foreach_mul_(matrices, 1 - rate * self._decay)
            torch._foreach_add_(matrices, list(updates.float().unbind()), alpha=-size)


def _gradient(matrix: nn.Parameter) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad


def orthogonal(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """[n, rows, columns] with the same singular vectors and all singular values near 1; bf16."""
    a, b, c = _QUINTIC
    x: Tensor = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Both update rules over `parameters`; an `embedding` among them is AdamW's."""

    def __init__(self, parameters: list[nn.Parameter], embedding: nn.Parameter | None) -> None:
        others = [p for p in parameters if p.ndim < 2 or p is embedding]
        self.gradients = FlatGradients(parameters)
        self._muon = Muon([p for p in parameters if p.ndim == 2 and p is not embedding])
        self._adam = torch.optim.AdamW(
            others, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-10, fused=others[0].is_cuda
        )

    def step(self, rate: float, adam_rate: float) -> None:
        """Apply the gradients with Muon's `rate` and AdamW's, then zero them."""
        self._muon.step(rate)
        for group in self._adam.param_groups:
            group["lr"] = adam_rate
        self._adam.step()
        self.gradients.values.zero_()


def trapezoid(progress: float, *, warm: float, flat: float) -> float:
    """Learning-rate factor at `progress` in 0..1: up to `warm`, 1 to `flat`, then falling to 0."""
    if progress < warm:
        return max(progress, 0.1 * warm) / warm
    if progress <= flat:
        return 1.0
    return max(0.0, (1.0 - progress) / (1.0 - flat))
