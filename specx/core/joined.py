"""Matrices that read the same rows, laid in one: a layer multiplies once where files have several.
Names are those of files, without a leading ``model.``; ``JOINED`` has what the decoder reads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from specx.core.architecture import Shape

#: Name of one product → the projections whose rows it has, in this order.
JOINED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def join(
    tensors: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors on ``device``, those of floating point in ``dtype``; ``tensors`` is empty
    afterwards, so that a part can be freed as soon as it has its place.

    What is there already in that type is handed on as it is. Raises ``KeyError`` for a group with
    a missing member.
    """
    found: dict[str, Tensor] = {}
    for name in list(tensors):
        if name not in tensors:
            continue  # taken with its group
        whole, names = _group(name)
        parts = [tensors.pop(each) for each in names]
        kind = dtype if parts[0].is_floating_point() else parts[0].dtype
        if len(parts) == 1:
            found[whole] = parts[0].to(device, kind)
            continue
        rows = [len(part) for part in parts]
        found[whole] = torch.empty((sum(rows), *parts[0].shape[1:]), dtype=kind, device=device)
        for place, part in zip(found[whole].split_with_sizes(rows), parts, strict=True):
            place.copy_(part)
    return found


def separate(tensors: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The opposite of ``join``: views of the same memory, under the names of files."""
    rows = {"self_attn.qkv_proj": [*shape.qkv_rows], "mlp.gate_up_proj": [shape.mlp, shape.mlp]}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = next((each for each in JOINED if f".{each}." in name), None)
        if whole is None:
            found[name] = tensor
            continue
        for part, view in zip(JOINED[whole], tensor.split_with_sizes(rows[whole]), strict=True):
            found[name.replace(whole, part)] = view
    return found


def _group(name: str) -> tuple[str, tuple[str, ...]]:
    """The name of the joined tensor that ``name`` goes into, and of all that go there."""
    for whole, parts in JOINED.items():
        for part in parts:
            if f".{part}." in name:
                return name.replace(part, whole), tuple(name.replace(part, p) for p in parts)
    return name, (name,)
