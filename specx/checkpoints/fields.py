"""Typed values out of a config.json that a stranger wrote, and the rotation that they describe.

Every error names the field; who knows the file names it. ``null`` counts as not said. Rotations
are in the spellings of transformers 4 and 5. All functions raise ``ModelError``.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from specx.core.architecture import Rope, RopeKind
from specx.errors import ModelError

DEFAULT_BASE = 10000.0
_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)
_LARGEST = 1e15
_LONGEST = 1 << 26


def whole(fields: Mapping[str, Any], name: str, most: int, otherwise: int | None = None) -> int:
    value = fields.get(name)
    value = otherwise if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise wrong(name, value, f"it must be a whole number between 1 and {most}")
    return value


def number(
    fields: Mapping[str, Any], name: str, above: float, below: float, otherwise: object = None
) -> float:
    """A number between ``above`` and ``below``, and neither of them."""
    value = fields.get(name)
    value = otherwise if value is None else value
    if type(value) not in (int, float) or not above < value < below:  # type: ignore[operator]
        raise wrong(name, value, f"it must be a number between {above:g} and {below:g}")
    return float(value)  # type: ignore[arg-type]


def flag(fields: Mapping[str, Any], name: str) -> bool | None:
    """A setting that is on or off; None where ``fields`` do not say."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, value, "it must be true or false")
    return value


def check_activation(fields: Mapping[str, Any], what: str) -> None:
    """Refuse every activation but SiLU, which ``what`` has."""
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise wrong("hidden_act", fields["hidden_act"], f"specx runs {what} with silu")


def wrong(name: str, value: object, reason: str) -> ModelError:
    """The error for a ``value`` that cannot be in the field ``name``."""
    return ModelError(f"{name} is {str(value)[:40]}", reason=reason)


@contextlib.contextmanager
def naming(place: object) -> Iterator[None]:
    """Begin the message of a ``ModelError`` from this block with ``place``."""
    try:
        yield
    except ModelError as error:
        message = f"{place}: {error.message}"
        raise ModelError(message, reason=error.reason, hints=error.hints) from error


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``config`` says of its rotation. The older field wins where both are filled in, as in
    transformers."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise wrong(name, found, "it must be an object")
    if any(isinstance(each, Mapping) for each in found.values()):
        raise wrong(name, found, "specx needs that of all layers, not one layer's")
    return found


def rope_base(*places: Mapping[str, Any]) -> float | None:
    """``rope_theta`` of the first of ``places`` that says one."""
    for place in places:
        if place.get("rope_theta") is not None:
            return number(place, "rope_theta", 1, _LARGEST)
    return None


def read_rope(
    parameters: Mapping[str, Any],
    base: float | None,
    positions: object,
    otherwise: Mapping[str, str],
) -> Rope:
    """The rotation of ``parameters``; ``positions`` are the model's, used where those of its
    training are not given. ``otherwise``: why a kind is not run, or ``default``: it is run as that.
    """
    base = DEFAULT_BASE if base is None else base
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    why_not = otherwise.get(str(kind), f"specx knows {', '.join(_KINDS)}")
    if kind not in _KINDS and why_not != "default":
        raise ModelError(f"rope type {str(kind)[:40]} is not supported", reason=why_not)
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise ModelError(
            "partially rotated heads are not supported",
            reason="a draft's keys are rotated again, over the whole head",
        )
    if kind not in _KINDS or kind == "default":
        return Rope(base=base)
    with naming("its rotation is damaged"):
        return _stretched(kind, base, parameters, positions)


def _stretched(kind: RopeKind, base: float, said: Mapping[str, Any], positions: object) -> Rope:
    def get(name: str, otherwise: object = None) -> float:
        return number(said, name, 0, _LARGEST, otherwise)

    if kind == "linear":
        return Rope(kind, base, get("factor"))
    original = int(get("original_max_position_embeddings", positions))
    if not 1 <= original <= _LONGEST:
        raise wrong("original_max_position_embeddings", original, f"it is not within {_LONGEST}")
    if kind == "llama3":
        low, high = get("low_freq_factor"), get("high_freq_factor")
        if low >= high:
            raise wrong("low_freq_factor", low, f"high_freq_factor is {high:g}")
        return Rope(kind, base, get("factor"), original, low, high)
    if "factor" in said and said["factor"] is None:  # the two lengths say it
        factor = number({"positions": positions}, "positions", 0, _LARGEST) / original
    else:
        factor = get("factor")

    def growth(scale: float) -> float:  # of cosines and sines, by YaRN
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    usual = growth(1.0)
    if said.get("mscale") and said.get("mscale_all_dim"):
        usual = growth(get("mscale")) / growth(get("mscale_all_dim"))
    return Rope(
        kind,
        base,
        factor,
        original,
        beta_fast=get("beta_fast", 32),
        beta_slow=get("beta_slow", 1),
        rounds_range=said.get("truncate", True) is not False,
        table_factor=get("attention_factor", usual),
    )
