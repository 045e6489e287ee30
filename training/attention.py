"""Which attention kernel trains faster here: measured, not guessed.

In: a shape. Out: the global choice of `scaled_dot_product_attention`'s backend. Knows no model.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_HEADS, _WIDTH = 4, 128


def fastest_attention(wanted: str, batch: int, length: int, device: torch.device) -> str:
    """Enable one kernel for causal attention, `wanted` or with "auto" the faster; its name.

    A kernel that fails or differs from flash attention is never chosen. On the CPU nothing is
    changed.
    """
    if device.type != "cuda":
        return "cpu"
    if wanted == "auto":
        generator = torch.Generator(device).manual_seed(0)
        shape = (batch, length, _HEADS, _WIDTH)
        inputs = [
            torch.randn(shape, device=device, dtype=torch.bfloat16, generator=generator)
            for _ in range(3)
        ]
        flash_s, reference = _measure("flash", inputs)
        try:
            cudnn_s, result = _measure("cudnn", inputs)
            close = all(
                (a - b).float().norm() < 0.03 * b.float().norm()
                for a, b in zip(result, reference, strict=True)
            )
        except RuntimeError:
            close, cudnn_s = False, float("inf")
        wanted = "cudnn" if close and cudnn_s < flash_s else "flash"
    _enable(wanted)
    return wanted


def _enable(name: str) -> None:
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def _measure(name: str, inputs: list[Tensor]) -> tuple[float, list[Tensor]]:
    """(seconds of a forward and backward pass, output and gradients)."""
    _enable(name)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]

    def once() -> list[Tensor]:
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        gradients = torch.autograd.grad(out, leaves, out)
        return [out.detach(), *gradients]

    for _ in range(2):
        result = once()
    return _seconds(once), result


def _seconds(function: Callable[[], object], repeats: int = 3) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats
