"""The places for a head's tensors: which there must be, which there may be, and their shapes.

In: tensors under one set of names, and the head's sizes. Out: nothing, or an error that names the
tensor. It does not know files, rotation, vocabularies or the target beyond its width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specx.checkpoints.eagle.config import flag
from specx.checkpoints.eagle.layout import LAYER, TABLES
from specx.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_ATTENTION, _MLP = f"{LAYER}self_attn.", f"{LAYER}mlp."
_ANY = -1  # as many rows as there are
_SHOWN = 100  # characters of a name that a stranger chose
Shapes = dict[str, tuple[int, ...]]
_NAMES = {1: "EAGLE-1 or -2", 3: "EAGLE-3"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """A head's sizes as its tensors have them. ``features``: the target's states that it reads."""

    generation: Literal[1, 3]
    hidden: int
    target_hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    features: int


def check_places(
    directory: Path, tensors: "Mapping[str, Tensor]", sizes: Sizes, config: Mapping[str, Any]
) -> None:
    """Strictly: every tensor has a place and every place its tensor. Raises ``ModelError``."""
    needed, optional = needed_shapes(sizes), _optional(sizes)
    tables = TABLES if sizes.generation == 3 else ()
    for name, tensor in tensors.items():
        if name in tables:
            continue
        wanted = needed.get(name) or optional.get(name)
        if wanted is None:
            raise ModelError(
                f"{directory} has a tensor that no head of {_NAMES[sizes.generation]} has",
                reason=f"it is {name[:_SHOWN]}",
            )
        _check_shape(directory, name, tensor, wanted)
        if not tensor.is_floating_point():
            raise ModelError(
                f"{name} in {directory} is of type {str(tensor.dtype).removeprefix('torch.')}",
                reason="weights must be of floating point",
            )
    missing = sorted(needed.keys() - tensors.keys())
    if missing:
        raise ModelError(f"{directory} is incomplete", reason=f"{missing[0]} is missing")
    _check_groups(directory, tensors, sizes)
    _check_flags(directory, tensors, sizes, config)


def by(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    return "x".join("?" if n == _ANY else str(n) for n in shape) or "a single number"


def _check_shape(directory: Path, name: str, tensor: "Tensor", wanted: tuple[int, ...]) -> None:
    found = tuple(tensor.shape)
    fits = len(found) == len(wanted) and all(
        has == wants or (wants == _ANY and has > 0)
        for has, wants in zip(found, wanted, strict=True)
    )
    if not fits:
        raise ModelError(
            f"the tensors in {directory} do not fit together",
            reason=f"{name} is {by(found)}, and the others ask for {by(wanted)}",
        )


def needed_shapes(sizes: Sizes) -> Shapes:
    """Name → shape of the tensors that every head of these sizes has."""
    hidden, mlp = sizes.hidden, sizes.mlp
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    inputs = hidden if sizes.generation == 1 else 2 * hidden
    features = 2 * hidden if sizes.generation == 1 else sizes.features * sizes.target_hidden
    needed: Shapes = {
        "fc.weight": (hidden, features),
        f"{_ATTENTION}q_proj.weight": (queries, inputs),
        f"{_ATTENTION}k_proj.weight": (keys, inputs),
        f"{_ATTENTION}v_proj.weight": (keys, inputs),
        f"{_ATTENTION}o_proj.weight": (hidden, queries),
        f"{_MLP}gate_proj.weight": (mlp, hidden),
        f"{_MLP}up_proj.weight": (mlp, hidden),
        f"{_MLP}down_proj.weight": (hidden, mlp),
        f"{LAYER}post_attention_layernorm.weight": (hidden,),
    }
    if sizes.generation == 3:
        norms = (f"{LAYER}hidden_norm", f"{LAYER}input_layernorm", "norm")
        needed |= {f"{name}.weight": (hidden,) for name in norms}
    return needed


def _optional(sizes: Sizes) -> Shapes:
    hidden, wide = sizes.hidden, sizes.target_hidden
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    optional: Shapes = {
        "embed_tokens.weight": (_ANY, hidden),
        "fc.bias": (hidden,),
        f"{_ATTENTION}q_proj.bias": (queries,),
        f"{_ATTENTION}k_proj.bias": (keys,),
        f"{_ATTENTION}v_proj.bias": (keys,),
    }
    if sizes.generation == 1:  # its output matrix is the target's
        return optional
    optional |= {
        "lm_head.weight": (_ANY, hidden),
        "input_norm.weight": (sizes.features * wide,),
        f"{_ATTENTION}q_norm.weight": (sizes.head_dim,),
        f"{_ATTENTION}k_norm.weight": (sizes.head_dim,),
    }
    return optional | {f"fc_norm.{index}.weight": (wide,) for index in range(sizes.features)}


def _check_groups(directory: Path, tensors: "Mapping[str, Tensor]", sizes: Sizes) -> None:
    """All of a group or none."""
    groups = {
        "query, key and value biases": [f"{_ATTENTION}{name}_proj.bias" for name in "qkv"],
        "query and key norms": [f"{_ATTENTION}{name}_norm.weight" for name in "qk"],
        "norms of features": [f"fc_norm.{index}.weight" for index in range(sizes.features)],
    }
    for what, names in groups.items():
        there = [name for name in names if name in tensors]
        if there and len(there) < len(names):
            absent = next(name for name in names if name not in tensors)
            reason = f"{absent} is missing beside {there[0]}"
            raise ModelError(f"{directory} has only some {what}", reason=reason)


def _check_flags(
    directory: Path, tensors: "Mapping[str, Tensor]", sizes: Sizes, config: Mapping[str, Any]
) -> None:
    """What the config says is there must be there, and what it denies must not."""
    flags: dict[str, tuple[str, ...]] = {
        "bias": ("fc.bias",),
        "qkv_bias": (f"{_ATTENTION}q_proj.bias",),
    }
    if sizes.generation == 3:  # either place of such a norm is before fc
        flags = {"norm_before_fc": ("input_norm.weight", "fc_norm.0.weight")}
        flags |= {"fc_norm": ("fc_norm.0.weight",)}
    for name, places in flags.items():
        said = flag(config, name)
        there = [place for place in places if place in tensors]
        if said is True and not there:
            problem = f"{places[0]} is missing"
        elif said is False and places[0] in there:
            problem = f"{places[0]} is there"
        else:
            continue
        raise ModelError(
            f"{directory}/config.json does not fit the weights",
            reason=f"{name} is {str(said).lower()}, and {problem}",
        )
