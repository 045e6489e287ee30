"""The names of a head's tensors, over all layouts that are published.

In: tensors as a file names them. Out: the same under one set of names, or a refusal of what is no
EAGLE head. It does not know shapes, targets or configs' numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from specx.checkpoints.eagle.config import other_kind
from specx.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

#: Where the one layer's tensors stand.
LAYER = "layers.0."
#: Tensors of whole numbers: the head's vocabulary within the target's.
TABLES = ("d2t", "t2d")
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
