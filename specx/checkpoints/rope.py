"""The rotation that a config.json describes, in the spellings of transformers 4 and 5.

In: the raw JSON object. Out: a ``Rope``, or a ``ModelError`` that says what cannot be used. It
does not know tensors: ``core.rope`` makes the frequencies.
"""

import math
from collections.abc import Mapping
from typing import Any, get_args

from specx.checkpoints.fields import number
from specx.core.architecture import Rope, RopeKind
from specx.errors import ModelError

KINDS: tuple[RopeKind, ...] = get_args(RopeKind)
DEFAULT_BASE = 10000.0
_LARGEST = 1e15
_LONGEST = 1 << 26


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``config`` says of its rotation. The older field wins where both are filled in, as in
    transformers. Raises ``ModelError``."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ModelError(f"{name} is {str(found)[:40]}, no object")
    if any(isinstance(each, Mapping) for each in found.values()):
        reason = f"it is {str(found)[:60]}, not one layer's"
        raise ModelError(f"{name} cannot be used", reason=reason)
    return found


def rope_kind(parameters: Mapping[str, Any], otherwise: Mapping[str, str]) -> RopeKind:
    """The kind of rotation. ``otherwise``: why another one is not run, or ``default`` for one that
    is run as that. Raises ``ModelError``."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    why_not = otherwise.get(str(kind), f"specx knows {', '.join(KINDS)}")
    if kind in KINDS or why_not == "default":
        return kind if kind in KINDS else "default"
    raise ModelError(f"rope type {str(kind)[:40]} is not supported", reason=why_not)


def rope_base(*places: Mapping[str, Any]) -> float | None:
    """``rope_theta`` of the first of ``places`` that says one. Raises ``ModelError``."""
    for place in places:
        if place.get("rope_theta") is not None:
            return number(place, "rope_theta", 1, _LARGEST)
    return None


def read_rope(
    kind: RopeKind, base: float, parameters: Mapping[str, Any], positions: object
) -> Rope:
    """The rotation with the numbers of ``parameters``; ``positions`` are the model's, which stand
    in for those of its training where these are not given.

    Raises ``ModelError`` for a number that is missing or is none.
    """
    if kind == "default":
        return Rope(base=base)
    if kind == "linear":
        return Rope(kind, base, _number(parameters, "factor"))
    original = int(_number(parameters, "original_max_position_embeddings", positions))
    if not 1 <= original <= _LONGEST:
        raise _damaged("original_max_position_embeddings", original)
    if kind == "llama3":
        low, high = (_number(parameters, f"{name}_freq_factor") for name in ("low", "high"))
        if low >= high:
            raise _damaged("low_freq_factor", low)
        return Rope(kind, base, _number(parameters, "factor"), original, low, high)
    if "factor" in parameters and parameters["factor"] is None:  # the two lengths say it
        factor = _number({"max_position_embeddings": positions}, "max_position_embeddings")
        factor /= original
    else:
        factor = _number(parameters, "factor")
    return Rope(
        kind,
        base,
        factor,
        original,
        beta_fast=_number(parameters, "beta_fast", 32),
        beta_slow=_number(parameters, "beta_slow", 1),
        rounds_range=parameters.get("truncate", True) is not False,
        table_factor=_table_factor(parameters, factor),
    )


def _table_factor(parameters: Mapping[str, Any], factor: float) -> float:
    """Of cosines and sines, by YaRN: it grows with the logarithm of ``factor``."""

    def growth(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    usual = growth(1.0)
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        scale, all_dim = (_number(parameters, name) for name in ("mscale", "mscale_all_dim"))
        usual = growth(scale) / growth(all_dim)
    return _number(parameters, "attention_factor", usual)


def _number(parameters: Mapping[str, Any], name: str, otherwise: object = None) -> float:
    try:
        return number(parameters, name, 0, _LARGEST, otherwise)
    except ModelError as error:
        raise ModelError("its rotation is damaged", reason=error.message) from error


def _damaged(name: str, value: object) -> ModelError:
    return ModelError("its rotation is damaged", reason=f"{name} is {str(value)[:40]}")
