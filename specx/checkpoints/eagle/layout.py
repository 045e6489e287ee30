"""A head's tensors: their names over all published layouts, and the shapes that fit together.
A ``ModelError`` names the tensor, and the file not yet."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from specx.checkpoints.eagle.config import KIND_NAMES, OTHERS, other_kind
from specx.checkpoints.fields import flag
from specx.checkpoints.weights import by, kind_of, projections
from specx.errors import ModelError
from specx.preset.sections import HeadShapeSpec

if TYPE_CHECKING:
    from torch import Tensor

#: Where the one layer's tensors are.
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
}
_IGNORED = ("verifier_", "rotary_emb.", f"{LAYER}self_attn.rotary_emb.")
#: Beginnings and ends of names that come all together or not at all.
_GROUPS = ((_ATTENTION, ".bias"), (_ATTENTION, "_norm.weight"), ("fc_norm.", ".weight"))
#: Generation → a flag of the config, and where a tensor must be if it is on; the first of them
#: must not be there if it is off.
_FLAGGED: dict[Generation, dict[str, tuple[str, ...]]] = {
    1: {"bias": ("fc.bias",), "qkv_bias": (f"{_ATTENTION}q_proj.bias",)},
    3: {  # either place of such a norm is before fc
        "norm_before_fc": ("input_norm.weight", "fc_norm.0.weight"),
        "fc_norm": ("fc_norm.0.weight",),
    },
}


def named(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors under the names that ``core.eagle`` knows; what nothing reads is left out. Raises
    ``ModelError`` when two are the same one, ``PairError`` for other kinds of drafters."""
    found: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = original.removeprefix("model.")
        for old, new in _RENAMED.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name.startswith(_IGNORED):
            continue
        if name in found:
            raise ModelError(f"it has two tensors for {name}", reason=f"one is {original}")
        found[name] = tensor
        for word, what in OTHERS.items():
            if word in name:
                raise other_kind(what, f"it has {name[:100]}")
    return found


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


def _optional_shapes(shape: HeadShapeSpec, generation: Generation, target_hidden: int) -> Shapes:
    hidden, wide = shape.hidden, target_hidden
    rows = zip("qkv", (shape.heads, shape.kv_heads, shape.kv_heads), strict=True)
    optional: Shapes = {"embed_tokens.weight": (_ANY, hidden), "fc.bias": (hidden,)}
    optional |= {f"{_ATTENTION}{name}_proj.bias": (n * shape.head_dim,) for name, n in rows}
    if generation == 1:  # its output matrix is the target's
        return optional
    optional |= {f"{_ATTENTION}{name}_norm.weight": (shape.head_dim,) for name in "qk"}
    optional |= {"lm_head.weight": (_ANY, hidden), "input_norm.weight": (shape.features * wide,)}
    return optional | {f"fc_norm.{index}.weight": (wide,) for index in range(shape.features)}


def check_places(
    tensors: "Mapping[str, Tensor]",
    shape: HeadShapeSpec,
    generation: Generation,
    target_hidden: int,
    config: Mapping[str, Any],
) -> None:
    """Strictly: every tensor has a place and every place its tensor, whole groups or none of one,
    and what the ``config`` says is there is there. Raises ``ModelError``."""
    needed = needed_shapes(shape, generation, target_hidden)
    optional = _optional_shapes(shape, generation, target_hidden)
    for name in sorted(needed.keys() - tensors.keys()):
        raise ModelError(f"{name} is missing")
    for name, tensor in tensors.items():
        if generation == 3 and name in _TABLES:
            continue
        wanted, found = needed.get(name) or optional.get(name), tuple(tensor.shape)
        if wanted is None:
            kind = KIND_NAMES["eagle3" if generation == 3 else "eagle"]
            raise ModelError(f"{name[:100]} is there, which no head of {kind} has")
        rows = wanted[0] if wanted[0] != _ANY else max((1, *found[:1]))
        if found != (rows, *wanted[1:]):
            reason = f"the others ask for {by(wanted)}"
            raise ModelError(f"{name} is {by(found)}", reason=reason)
        if not tensor.is_floating_point():
            raise ModelError(f"{name} is of type {kind_of(tensor)}, not of real numbers")
    for start, end in _GROUPS:
        whole = [name for name in optional if name.startswith(start) and name.endswith(end)]
        there = [name for name in whole if name in tensors]
        if there and there != whole:
            absent = next(name for name in whole if name not in tensors)
            raise ModelError(f"{absent} is missing", reason=f"{there[0]} is there")
    for name, places in _FLAGGED[generation].items():
        said = flag(config, name)
        if said is True and not any(place in tensors for place in places):
            raise ModelError(f"its config says that {name} is true, and {places[0]} is missing")
        if said is False and places[0] in tensors:
            raise ModelError(f"its config says that {name} is false, and {places[0]} is there")


def check_table(table: "Tensor", marks: "Tensor | None", own: int, rows: int) -> None:
    """``target id = id + d2t[id]`` must rise within the target's ``rows`` for the head's ``own``,
    and t2d, the ``marks``, must mark the same ids. Raises ``ModelError``."""
    import torch

    if table.shape != (own,) or table.is_floating_point() or table.dtype == torch.bool:
        found = f"d2t is {by(tuple(table.shape))} of type {kind_of(table)}"
        raise ModelError(found, reason=f"lm_head.weight has {own} rows")
    ids = table.to(torch.int64) + torch.arange(own)
    marked = None if marks is None else marks.bool().flatten().nonzero()[:, 0]
    agrees = marked is not None and torch.equal(marked, ids)
    if own < rows and not table.any() and not agrees:
        raise ModelError("d2t is empty", reason="all of it is 0")
    # The bounds first: within them, no difference overflows.
    is_inside = int(ids.min()) >= 0 and int(ids.max()) < rows
    if not is_inside or not bool((ids.diff() > 0).all()):
        raise ModelError("d2t is damaged", reason=f"its ids do not rise within the target's {rows}")
    if marked is not None and not agrees:
        raise ModelError("d2t is damaged", reason="t2d marks other tokens")
