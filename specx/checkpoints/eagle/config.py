"""What a draft head's config.json says, before any of its weights is there. Read raw, because these
files follow three layouts and borrow the names of ordinary models; the weights decide in the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from specx.checkpoints import fields
from specx.core.architecture import Rope
from specx.errors import ModelError, PairError
from specx.preset.sections import DraftSpec

HeadKind = Literal["eagle", "eagle3"]

KIND_NAMES: dict[str, str] = {"eagle": "EAGLE-1 or -2", "eagle3": "EAGLE-3"}
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"

_LARGEST = 1 << 26
_USUAL = {"rms_norm_eps": 1e-6}  # of every published config that leaves it out
_FEWEST_LAYERS = 7  # below, the three default layers coincide or change their order
_POSITIONS = 2048  # of nearly every head's training
#: Owners whose configs name a base that the training did not use.
_TRAINED_WITH_BASE = {"AngelSlim": fields.DEFAULT_BASE, "TanBaby": fields.DEFAULT_BASE}
_DAMAGED = "the head's config.json is damaged"
_GLIDE = "a GliDe drafter, which attends to the target's cache"
#: Words in a config's types and in names of tensors → what has them.
OTHERS = {
    "peagle": "a P-EAGLE head",
    "dflash": "a DFlash drafter",
    "dspark": "a DSpark drafter",
    "medusa": "Medusa heads",
    "hydra": "Hydra heads",
    "mlp_speculator": "an MLP speculator",
    "mlpspeculator": "an MLP speculator",
    "glide": _GLIDE,
    "longspec": _GLIDE,
    "cross_attn": _GLIDE,
    "mtp": "a multi-token prediction module",
}
#: Fields that only EAGLE-3's configs have.
_EAGLE3_FIELDS = (
    "draft_vocab_size",
    "truncated_vocab_size",
    "target_hidden_size",
    "eagle_config",
    LAYER_IDS,
)
#: Settings that are on or off.
_FLAGS = ("bias", "qkv_bias", "fc_norm", "norm_before_fc", "norm_before_residual", "norm_output")


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """A head as its config describes it; None: the config does not say."""

    kind: HeadKind | None
    hidden: int
    target_hidden: int | None
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int  # rows of the target
    draft_vocabulary: int  # rows of its own logits
    positions: int  # it was built for, scaling included; very many where it does not say
    epsilon: float  # of its norms


def read_head(config: Mapping[str, Any], scaling: Mapping[str, Any] | None = None) -> HeadFacts:
    """The facts in a head's ``config``; ``scaling`` replaces what it says of its rotation's.

    Raises ``PairError`` for other kinds of drafters, by name, and ``ModelError`` for sizes that
    are missing or no sizes, and for flags that are none.
    """
    kind, layer = head_kind(config), layer_config(config)

    def size(name: str, otherwise: int | None = None, place: Mapping[str, Any] = layer) -> int:
        return fields.whole(place, name, _LARGEST, otherwise)

    with fields.naming(_DAMAGED):
        for name in _FLAGS:
            fields.flag(config, name)
        fields.check_activation(layer, "heads")
        hidden, heads, vocabulary = map(size, ("hidden_size", "num_attention_heads", "vocab_size"))
        own = config.get("draft_vocab_size") or config.get("truncated_vocab_size") or vocabulary
        has_target = config.get("target_hidden_size") is not None
        longest = size("max_position_embeddings", _LARGEST)
        return HeadFacts(
            kind=kind,
            hidden=hidden,
            target_hidden=size("target_hidden_size", place=config) if has_target else None,
            mlp=size("intermediate_size"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", max(1, hidden // heads)),
            vocabulary=vocabulary,
            draft_vocabulary=size("draft_vocab_size", place={"draft_vocab_size": own}),
            positions=position_limit(longest, scaling or rope_scaling(layer)),
            epsilon=fields.number(_USUAL | dict(layer), "rms_norm_eps", 0, 1),
        )


def layer_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of it that has a head's sizes and rotation. Raises ``ModelError``."""
    layer = config.get("transformer_layer_config", config)  # vLLM's speculators nest it
    if not isinstance(layer, Mapping):
        raise ModelError(f"{_DAMAGED}: transformer_layer_config is no object")
    return layer


def rope_scaling(layer: Mapping[str, Any]) -> Any:
    """What the part of a config that has the rotation says of it, unchecked."""
    return layer.get("rope_scaling") or layer.get("rope_parameters")


def check_kind(found: HeadKind | None, wanted: str, repo: str, proof: str = "") -> None:
    """Raise ``PairError`` unless a head is of the kind that its preset wants; ``proof`` tells."""
    if found is None or found == wanted:
        return
    raise PairError(
        f"{repo} is a head of kind {found} ({KIND_NAMES[found]})",
        reason=f"the preset says {wanted}" + (f"; {proof}" if proof else ""),
        hints=[f"--set draft.kind={found}"],
    )


def head_kind(config: Mapping[str, Any]) -> HeadKind | None:
    """Which kind of head a ``config`` is of; None where nothing in it says so.

    Raises ``PairError`` for a drafter that specx does not run.
    """
    own, classes = config.get("speculators_model_type"), config.get("architectures")
    words = [own, config.get("model_type"), *(classes if isinstance(classes, list) else [])]
    words += [key for key in config if str(key).startswith("medusa_")]
    said = " ".join(word.lower() for word in words if isinstance(word, str))
    for name, what in OTHERS.items():
        if name in said:
            raise other_kind(what)
    if own not in (None, "eagle", "eagle3"):
        raise other_kind(f"a speculator of type {str(own)[:40]}")
    if "eagle3" in said or any(config.get(field) is not None for field in _EAGLE3_FIELDS):
        return "eagle3"
    return "eagle" if "eagle" in said else None


def other_kind(what: str, proof: str = "") -> PairError:
    """The error for a drafter that specx does not run; ``proof`` is what gives it away."""
    reason = "specx runs heads of EAGLE-1, EAGLE-2 and EAGLE-3"
    return PairError(
        f"the draft is {what}",
        reason=f"{proof}; {reason}" if proof else reason,
        hints=["choose a head of those kinds, or a small model of the target's family"],
    )


def feature_layers(
    config: Mapping[str, Any],
    layers: int,
    override: tuple[int, ...] | None = None,
    count: int | None = None,
) -> tuple[tuple[int, ...], str]:
    """Which of a target's hidden states an EAGLE-3 head reads, and a note ("" if there is none).

    i is the input of layer i; ``layers`` are the target's, ``override`` is the preset's word,
    ``count`` what the weights ask for. Two conventions of counting are published; see the comments.
    Raises ``PairError`` for layers that the target does not have, and for a head that reads none.
    """
    nested = config.get("eagle_config")
    nested = nested if isinstance(nested, Mapping) else {}
    if False in (
        fields.flag(config, "use_aux_hidden_state"),
        fields.flag(nested, "use_aux_hidden_state"),
    ):
        message = "the head reads no layers of the target, as those of EAGLE-3 do"
        raise PairError(message, reason="its use_aux_hidden_state is false")
    formula, hint, note = (2, layers // 2, layers - 3), "draft.head.feature_layers", ""
    if override is not None:
        chosen = override
    elif config.get(LAYER_IDS) is not None:
        chosen = _layer_list(config[LAYER_IDS])  # vLLM's: counted as here
    elif nested.get(LAYER_IDS):
        as_is = chosen = _layer_list(nested[LAYER_IDS])
        # SGLang's and ModelOpt's name the layer that makes the state, but not all of them do.
        if as_is != formula:
            chosen = as_is if max(as_is) + 1 >= layers else tuple(i + 1 for i in as_is)
            note = f"lists the layers {_listed(as_is)}: taken as the inputs of layers"
            note = f"the head {note} {_listed(chosen)}; --set {hint} overrides it"
    elif layers < _FEWEST_LAYERS:
        raise PairError(
            f"the head names no layers, and the target has {layers}",
            reason=f"the usual three need a target of at least {_FEWEST_LAYERS}",
            hints=[f"name them in the preset: {hint}"],
        )
    else:
        chosen = formula
        note = f"the head names no layers: taken are the inputs of layers {_listed(formula)}, "
        note += f"as in the paper's code; --set {hint} overrides it"
    if max(chosen) >= layers:
        raise PairError(
            f"the head reads the input of layer {max(chosen)}",
            reason=f"the target has {layers} layers, counted from 0",
            hints=["choose a head that was trained for this target"],
        )
    if count not in (None, len(chosen)):
        reason = f"fc.weight reads {count}, and they are {_listed(chosen)}"
        hints = [f"name them: --set {hint}=[2, 16, 29]"]
        raise PairError(
            "the head does not fit the layers that it reads", reason=reason, hints=hints
        )
    return chosen, note


def rotation(layer: Mapping[str, Any], spec: DraftSpec) -> tuple[Rope, str]:
    """How the head rotates, and a note ("" if there is nothing to say).

    ``layer`` is the part of the config that has the rotation. A wrong base loads, runs and costs a
    few per cent of what is accepted: the preset's comes first, then what its owner is known to have
    trained with, then the config's, and never the target's. Raises ``ModelError``.
    """
    head, note = spec.head, ""
    base = head.rope_theta if head else None
    if base is None:
        nested = layer.get("rope_parameters")  # where transformers 5 keeps base and stretch
        said = fields.rope_base(layer, nested if isinstance(nested, Mapping) else {})
        base = _TRAINED_WITH_BASE.get((spec.repo or "").partition("/")[0], said)
        if said is not None and base is not None and said != base:
            note = f"{spec.repo} says rope_theta {said:g} but was trained with {base:g}"
    stretch = head.rope_scaling if head else None
    parameters = fields.rope_parameters(layer) if stretch is None else stretch
    positions = fields.whole(layer, "max_position_embeddings", _LARGEST, _POSITIONS)
    # Dynamic changes nothing within the trained length, and no row is beyond it.
    return fields.read_rope(parameters, base, positions, {"dynamic": "default"}), note


def position_limit(longest: int, scaling: object) -> int:
    """Positions that a model was built for: ``longest``, stretched by its rotation's scaling."""
    if not isinstance(scaling, Mapping):
        return longest
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor < _LARGEST:
        return longest
    if kind in ("linear", "dynamic"):
        return int(longest * factor)
    original = scaling.get("original_max_position_embeddings") or longest
    if kind == "yarn" and isinstance(original, int):
        return max(longest, int(original * factor))
    return longest  # llama3's is included already


def _layer_list(value: object) -> tuple[int, ...]:
    is_list = isinstance(value, list) and value and all(type(i) is int and i >= 0 for i in value)
    if not isinstance(value, list) or not is_list:
        raise ModelError(_DAMAGED, reason=f"its layers are {str(value)[:60]}")
    return tuple(value)


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
