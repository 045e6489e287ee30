"""How an EAGLE head rotates: a base and a stretch, decided from what is known to be true of it.

In: the head's raw config and what the preset says. Out: a ``Rope``. A wrong base loads, runs and
costs a few per cent of what is accepted, so nothing here is taken from the target, and a config
that is known to say what its training did not do is not believed.
"""

from collections.abc import Mapping
from typing import Any

from specx.checkpoints.fields import whole
from specx.checkpoints.rope import (
    DEFAULT_BASE,
    read_rope,
    rope_base,
    rope_kind,
    rope_parameters,
)
from specx.core.architecture import Rope
from specx.errors import ModelError
from specx.preset.sections import DraftSpec

#: Owners whose configs name a base that the training did not use.
_TRAINED_WITH_BASE = {"AngelSlim": DEFAULT_BASE, "TanBaby": DEFAULT_BASE}
_POSITIONS = 2048  # of nearly every head's training


def rotation(layer: Mapping[str, Any], spec: DraftSpec) -> tuple[Rope, str]:
    """The rotation, and a note ("" if there is nothing to tell).

    ``layer`` is the part of the config that has the rotation. Raises ``ModelError`` for a base or
    a stretch that is unknown or damaged.
    """
    try:
        base, note = _base(layer, spec)
        said = spec.head.rope_scaling if spec.head else None
        stretch = rope_parameters(layer) if said is None else said
        # Dynamic changes nothing within the trained length, and no row is beyond it.
        kind = rope_kind(stretch, {"dynamic": "default"})
        if kind != "default" and stretch.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError("its rotation is damaged", reason="it turns a part of each head only")
        positions = whole(layer, "max_position_embeddings", 1 << 26, _POSITIONS)
        return read_rope(kind, base, stretch, positions), note
    except ModelError as error:
        raise ModelError(f"{spec.repo}: {error.message}", reason=error.reason) from error


def _base(layer: Mapping[str, Any], spec: DraftSpec) -> tuple[float, str]:
    """The preset's, else the one that its owner trained with, else the config's."""
    if spec.head is not None and spec.head.rope_theta is not None:
        return spec.head.rope_theta, ""
    nested = layer.get("rope_parameters")  # where transformers 5 keeps base and stretch
    said = rope_base(layer, nested if isinstance(nested, Mapping) else {})
    known = _TRAINED_WITH_BASE.get((spec.repo or "").partition("/")[0])
    if known is None:
        return DEFAULT_BASE if said is None else said, ""
    if said in (None, known):
        return known, ""
    return known, f"{spec.repo} says rope_theta {said:g} but was trained with {known:g}"
