"""How an EAGLE head rotates: a base and a stretch, decided from what is known to be true of it.

In: the head's raw config and what the preset says. Out: frequencies. A wrong base loads, runs and
costs a few per cent of what is accepted, so nothing here is taken from the target, and a config
that is known to say what its training did not do is not believed.
"""

from typing import TYPE_CHECKING, Any

from specx.checkpoint import DAMAGE, summary
from specx.errors import ModelError
from specx.preset import DraftSpec

if TYPE_CHECKING:
    from torch import Tensor

BASE = 10000.0  # of every head whose config names none: their training code has no other
#: Owners whose configs name a base that the training did not use.
_TRAINED_WITH_BASE = {"AngelSlim": BASE}
_STRETCHES = ("default", "linear", "llama3", "yarn")


def rotation(layer: dict[str, Any], spec: DraftSpec, width: int) -> "tuple[Tensor, float, str]":
    """Inverse frequencies [width / 2] float32, a factor of cosines and sines, and a note ("" if
    there is nothing to tell).

    Raises ``ModelError`` for a stretch that is unknown or damaged.
    """
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters, note = _parameters(layer, spec)
    kind = parameters["rope_type"]
    theta = float(parameters["rope_theta"])
    plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    if kind == "default":
        return plain, 1.0, note
    try:
        config = LlamaConfig(
            hidden_size=width,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=width,
            max_position_embeddings=layer.get("max_position_embeddings", 2048),
            rope_parameters=parameters,
        )
        frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    except DAMAGE as error:
        raise ModelError(f"{spec.repo}: its rotation is damaged", reason=summary(error)) from error
    return frequencies.float(), float(scaling), note


def _parameters(layer: dict[str, Any], spec: DraftSpec) -> tuple[dict[str, Any], str]:
    """``rope_type``, ``rope_theta`` and what the type needs: the preset's before the config's."""
    nested = layer.get("rope_parameters")
    nested = nested if isinstance(nested, dict) else {}
    said = layer.get("rope_theta", nested.get("rope_theta"))
    stretch = layer.get("rope_scaling") or nested
    note = ""
    owner = (spec.repo or "").partition("/")[0]
    head = spec.head
    if head is not None and head.rope_theta is not None:
        theta: object = head.rope_theta
    elif owner in _TRAINED_WITH_BASE:
        theta = _TRAINED_WITH_BASE[owner]
        if said not in (None, theta):
            note = f"{spec.repo} says rope_theta {said:g} but was trained with {theta:g}"
    else:
        theta = BASE if said is None else said
    if head is not None and head.rope_scaling is not None:
        stretch = dict(head.rope_scaling)
    if not isinstance(stretch, dict):
        raise ModelError(f"{spec.repo}: rope_scaling is {stretch!r}")
    kind = stretch.get("rope_type", stretch.get("type", "default"))
    if kind == "dynamic":
        kind = "default"  # it changes nothing within the trained length, and no row is beyond it
    if kind not in _STRETCHES:
        reason = f"specx knows {', '.join(_STRETCHES)}"
        raise ModelError(f"{spec.repo}: rope type {kind} is not supported", reason=reason)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 1:
        raise ModelError(f"{spec.repo}: rope_theta is {theta!r}")
    rest = {key: value for key, value in stretch.items() if key not in ("type", "rope_theta")}
    return {**rest, "rope_type": kind, "rope_theta": float(theta)}, note
