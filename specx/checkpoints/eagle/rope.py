"""How an EAGLE head rotates: a base and a stretch, decided from what is known to be true of it.

In: the head's raw config and what the preset says. Out: frequencies. A wrong base loads, runs and
costs a few per cent of what is accepted, so nothing here is taken from the target, and a config
that is known to say what its training did not do is not believed.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specx.checkpoints.config import DAMAGE, quiet, summary
from specx.errors import ModelError
from specx.preset.sections import DraftSpec

if TYPE_CHECKING:
    from torch import Tensor

BASE = 10000.0  # of every head whose config names none: their training code has no other
#: Owners whose configs name a base that the training did not use.
_TRAINED_WITH_BASE = {"AngelSlim": BASE, "TanBaby": BASE}
_STRETCHES = ("default", "linear", "llama3", "yarn")
_LARGEST_BASE = 1e15
_POSITIONS = 2048  # of nearly every head's training


def rotation(layer: Mapping[str, Any], spec: DraftSpec, width: int) -> "tuple[Tensor, float, str]":
    """Inverse frequencies [width / 2] float32, a factor of cosines and sines, and a note ("" if
    there is nothing to tell).

    ``layer`` is the part of the config that has the rotation. Raises ``ModelError`` for a base or
    a stretch that is unknown or damaged.
    """
    import torch

    theta, note = _base(layer, spec)
    stretch = _stretch(layer, spec)
    kind = stretch.get("rope_type", stretch.get("type", "default"))
    if kind == "dynamic":
        kind = "default"  # it changes nothing within the trained length, and no row is beyond it
    if kind not in _STRETCHES:
        reason = f"specx knows {', '.join(_STRETCHES)}"
        raise ModelError(f"{spec.repo}: rope type {kind} is not supported", reason=reason)
    if kind == "default":
        steps = torch.arange(0, width, 2, dtype=torch.float32) / width
        return theta**-steps, 1.0, note
    rest = {key: value for key, value in stretch.items() if key not in ("type", "rope_theta")}
    parameters = {**rest, "rope_type": kind, "rope_theta": theta}
    return *_stretched(layer, spec, width, parameters), note


def _stretched(
    layer: Mapping[str, Any], spec: DraftSpec, width: int, parameters: dict[str, Any]
) -> "tuple[Tensor, float]":
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    try:
        with quiet():
            config = LlamaConfig(
                hidden_size=width,
                num_attention_heads=1,
                num_key_value_heads=1,
                head_dim=width,
                max_position_embeddings=layer.get("max_position_embeddings", _POSITIONS),
                rope_parameters=parameters,
            )
            initialise = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
            frequencies, scaling = initialise(config, torch.device("cpu"))
        frequencies, scaling = frequencies.float(), float(scaling)
    except (*DAMAGE, RuntimeError, StrictDataclassError) as error:
        raise ModelError(f"{spec.repo}: its rotation is damaged", reason=summary(error)) from error
    is_sound = bool((frequencies.isfinite() & (frequencies > 0)).all()) and 0 < scaling < math.inf
    if frequencies.shape != (width // 2,) or not is_sound:
        kept = {key: str(value)[:20] for key, value in parameters.items()}
        raise ModelError(f"{spec.repo}: its rotation is damaged", reason=f"it says {kept}")
    return frequencies, scaling


def _base(layer: Mapping[str, Any], spec: DraftSpec) -> tuple[float, str]:
    """The preset's, else the one that its owner trained with, else the config's."""
    head = spec.head
    if head is not None and head.rope_theta is not None:
        return head.rope_theta, ""
    said = layer.get("rope_theta")
    said = _nested(layer, spec).get("rope_theta") if said is None else said
    if said is not None and (type(said) not in (int, float) or not 1 < said < _LARGEST_BASE):
        raise ModelError(
            f"{spec.repo}: rope_theta is {str(said)[:40]}", reason="it must be a number above 1"
        )
    known = _TRAINED_WITH_BASE.get((spec.repo or "").partition("/")[0])
    if known is None:
        return BASE if said is None else float(said), ""
    if said in (None, known):
        return known, ""
    return known, f"{spec.repo} says rope_theta {said:g} but was trained with {known:g}"


def _stretch(layer: Mapping[str, Any], spec: DraftSpec) -> Mapping[str, Any]:
    head = spec.head
    if head is not None and head.rope_scaling is not None:
        return dict(head.rope_scaling)
    stretch = layer.get("rope_scaling") or _nested(layer, spec)
    if not isinstance(stretch, Mapping):
        raise ModelError(f"{spec.repo}: rope_scaling is {str(stretch)[:40]}, no object")
    return stretch


def _nested(layer: Mapping[str, Any], spec: DraftSpec) -> Mapping[str, Any]:
    """``rope_parameters``, where transformers 5 keeps base and stretch."""
    nested = layer.get("rope_parameters")
    if nested is None:
        return {}
    if not isinstance(nested, Mapping) or any(isinstance(each, dict) for each in nested.values()):
        reason = f"it is {str(nested)[:60]}, not one layer's"
        raise ModelError(f"{spec.repo}: rope_parameters cannot be used", reason=reason)
    return nested
