"""A head's tensors: their names over all published layouts, and the shapes that fit together.

In: tensors as a file names them, then the head's sizes. Out: the same under one set of names, or
an error that names the tensor. It does not know rotation, vocabularies or how a head is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specx.checkpoints.eagle.config import KIND_NAMES, other_kind
from specx.checkpoints.fields import flag
from specx.checkpoints.weights import by, projections
from specx.errors import ModelError
from specx.preset.sections import HeadShapeSpec

if TYPE_CHECKING:
    from torch import Tensor

#: Where the one layer's tensors stand.
LAYER = "layers.0."
Generation = Literal[1, 3]
Shapes = dict[str, tuple[int, ...]]
_ATTENTION = f"{LAYER}self_attn."
_TABLES = ("d2t", "t2d")  # of whole numbers: the head's vocabulary within the target's
_ANY = -1  # as many rows as there are
_RENAMED = {
    "midlayer.": LAYER,  # the official EAGLE-3 files
    "fusion_fc.": "fc.",  # speculators' EAGLE-1, before its first release
    "transformer.": LAYER,
    "embedding_layernorm.": "embed_layernorm.",
    "pre_lm_head_layernorm.": "lm_head_layernorm.",
}
_IGNORED = ("verifier_", "rotary_emb.", f"{LAYER}self_attn.rotary_emb.")
_HASS = (
    "embed_layernorm",
    "post_embedding_layernorm",
    "hidden_layernorm",
    "input_layernorm",
    "lm_head_layernorm",
)
_GLIDE = "a GliDe drafter, which attends to the target's cache"
_OTHER_KINDS = {  # a name's beginning → what has it
    "medusa": "Medusa heads",
    "cross_attn": _GLIDE,
    f"{LAYER}cross_attn": _GLIDE,
}


def named(directory: Path, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors under the names that ``core.eagle`` knows; what nothing reads is left out.

    Raises ``ModelError`` when two of them are the same one.
    """
    found: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = original.removeprefix("model.")
        for old, new in _RENAMED.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name.startswith(_IGNORED):
            continue
        if name in found:
            raise ModelError(f"{directory} has two tensors for {name}", reason=f"one is {original}")
        found[name] = tensor
    return found


def refuse_other_kinds(directory: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Refuse drafts that only look like EAGLE's.

    Raises ``PairError`` for other kinds of drafters and ``ModelError`` for variants of EAGLE that
    specx does not run.
    """
    for name in (name[:100] for name in tensors):
        for start, what in _OTHER_KINDS.items():
            if name.startswith(start):
                raise other_kind(what, f"{directory} has {name}")
        if name.startswith(_HASS):
            raise ModelError(
                f"{directory} is a variant of EAGLE that specx does not run",
                reason=f"{name} normalises what EAGLE-1 does not",
            )
        if name.startswith("layers.") and not name.startswith(LAYER):
            raise ModelError(f"{directory} has several layers", reason=f"{name} is in a second one")


def check_places(
    directory: Path,
    tensors: "Mapping[str, Tensor]",
    needed: Shapes,
    optional: Shapes,
    generation: Generation,
) -> None:
    """Strictly: every tensor has a place and every place its tensor, whole groups or none of one.

    Raises ``ModelError``.
    """
    for name, tensor in tensors.items():
        if generation == 3 and name in _TABLES:
            continue
        wanted = needed.get(name) or optional.get(name)
        if wanted is None:
            kind = KIND_NAMES["eagle3" if generation == 3 else "eagle"]
            raise ModelError(
                f"{directory} has a tensor that no head of {kind} has", reason=f"it is {name[:100]}"
            )
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
        if not tensor.is_floating_point():
            raise ModelError(
                f"{name} in {directory} is of type {str(tensor.dtype).removeprefix('torch.')}",
                reason="weights must be of floating point",
            )
    missing = sorted(needed.keys() - tensors.keys())
    if missing:
        raise ModelError(f"{directory} is incomplete", reason=f"{missing[0]} is missing")
    for what, group in {
        "query, key and value biases": [f"{_ATTENTION}{name}_proj.bias" for name in "qkv"],
        "query and key norms": [f"{_ATTENTION}{name}_norm.weight" for name in "qk"],
        "norms of features": [name for name in optional if name.startswith("fc_norm.")],
    }.items():
        there = [name for name in group if name in tensors]
        if there and len(there) < len(group):
            absent = next(name for name in group if name not in tensors)
            reason = f"{absent} is missing beside {there[0]}"
            raise ModelError(f"{directory} has only some {what}", reason=reason)


def needed_shapes(shape: HeadShapeSpec, generation: Generation, target_hidden: int) -> Shapes:
    """Name → shape of the tensors that every head of this ``shape`` has."""
    hidden, is_third = shape.hidden, generation == 3
    features = shape.features * target_hidden if is_third else 2 * hidden
    matrices = projections(shape, 2 * hidden if is_third else hidden)
    needed: Shapes = {"fc.weight": (hidden, features)}
    needed |= {f"{LAYER}{name}.weight": size for name, size in matrices.items()}
    norms = [f"{LAYER}post_attention_layernorm"]
    if is_third:
        norms += [f"{LAYER}hidden_norm", f"{LAYER}input_layernorm", "norm"]
    return needed | {f"{name}.weight": (hidden,) for name in norms}


def optional_shapes(shape: HeadShapeSpec, generation: Generation, target_hidden: int) -> Shapes:
    """Name → shape of the tensors that a head of this ``shape`` may have."""
    hidden, wide = shape.hidden, target_hidden
    matrices = projections(shape, hidden)
    optional: Shapes = {"embed_tokens.weight": (_ANY, hidden), "fc.bias": (hidden,)}
    for name in "qkv":
        optional[f"{_ATTENTION}{name}_proj.bias"] = matrices[f"self_attn.{name}_proj"][:1]
    if generation == 1:  # its output matrix is the target's
        return optional
    optional |= {f"{_ATTENTION}{name}_norm.weight": (shape.head_dim,) for name in "qk"}
    optional |= {"lm_head.weight": (_ANY, hidden), "input_norm.weight": (shape.features * wide,)}
    return optional | {f"fc_norm.{index}.weight": (wide,) for index in range(shape.features)}


def check_flags(
    directory: Path,
    tensors: "Mapping[str, Tensor]",
    generation: Generation,
    config: Mapping[str, Any],
) -> None:
    """What the config says is there must be there, and what it denies must not.

    Raises ``ModelError``.
    """
    flags: dict[str, tuple[str, ...]] = {
        "bias": ("fc.bias",),
        "qkv_bias": (f"{_ATTENTION}q_proj.bias",),
    }
    if generation == 3:  # either place of such a norm is before fc
        flags = {"norm_before_fc": ("input_norm.weight", "fc_norm.0.weight")}
        flags |= {"fc_norm": ("fc_norm.0.weight",)}
    for name, places in flags.items():
        said = flag(config, name)
        if said is True and not any(place in tensors for place in places):
            problem = "missing"
        elif said is False and places[0] in tensors:
            problem = "there"
        else:
            continue
        raise ModelError(
            f"{directory}/config.json does not fit the weights",
            reason=f"{name} is {str(said).lower()}, and {places[0]} is {problem}",
        )
