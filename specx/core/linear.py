"""Linear layers packed for products with few rows, on a CPU in float32.

oneDNN can lay a weight matrix out in blocks once, so that a product with 1–64 rows streams it at
full bandwidth: half the time of ``F.linear`` at one row, a third at eight (measured on two
AVX-512 cores). Each row is then also computed in the same order whatever the row count, which
makes a verify row equal a plain row to the last bit.

It knows nothing of models beyond their ``nn.Linear`` modules. The two operators are the ones that
TorchInductor emits; where a build lacks them, nothing is packed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Module):
    """``nn.Linear`` with the weight in oneDNN's own layout; inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """[…, in_features] → […, out_features]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return out


def pack_linears(model: nn.Module) -> int:
    """Replace every float32 CPU ``nn.Linear`` of ``model`` in place; returns how many.

    A layer whose packed product disagrees with the ordinary one is left as it is.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            packed = _pack(child) if type(child) is nn.Linear else None
            if packed is not None:
                setattr(parent, name, packed)
                count += 1
    return count


@torch.inference_mode()
def _pack(linear: nn.Linear) -> PackedLinear | None:
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    inputs = torch.linspace(-1.0, 1.0, 3 * linear.in_features).view(3, -1)
    expected = F.linear(inputs, weight, linear.bias)
    try:
        packed = PackedLinear(linear)
        product = packed(inputs)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None  # a build of PyTorch without these operators
    bound = 1e-3 * float(expected.abs().max())
    return packed if torch.allclose(product, expected, rtol=1e-3, atol=bound) else None
