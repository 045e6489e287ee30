"""What a draft head's config.json says, before any of its weights is there.

In goes the raw JSON object; out come the head's kind, sizes and limits, or an error that names
what it is instead. Read raw, because these files follow three layouts and borrow the names of
ordinary models: transformers would take them for whole models. The weights decide in the end;
this module does not know them, targets, presets or torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from specx.checkpoints.fields import check_activation, flag, number, whole
from specx.errors import ModelError, PairError

HeadKind = Literal["eagle", "eagle3"]

KIND_NAMES: dict[str, str] = {"eagle": "EAGLE-1 or -2", "eagle3": "EAGLE-3"}
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"

_LARGEST = 1 << 26
_USUAL = {"rms_norm_eps": 1e-6}  # of every published config that leaves it out
_FEWEST_LAYERS = 7  # below, the three default layers coincide or change their order
#: What may stand in model_type, speculators_model_type or architectures → what that is.
_OTHERS = {
    "peagle": "a P-EAGLE head",
    "dflash": "a DFlash drafter",
    "dspark": "a DSpark drafter",
    "medusa": "Medusa heads",
    "hydra": "Hydra heads",
    "mlp_speculator": "an MLP speculator",
    "mlpspeculator": "an MLP speculator",
    "glide": "a GliDe drafter, which attends to the target's cache",
    "longspec": "a GliDe drafter, which attends to the target's cache",
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
#: Settings that are on or off: nothing else may stand there.
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
    try:
        for name in _FLAGS:
            flag(config, name)
        check_activation(layer, "heads")
        return _facts(kind, config, layer, scaling)
    except ModelError as error:
        message = f"the head's config.json is damaged: {error.message}"
        raise ModelError(message, reason=error.reason) from error


def _facts(
    kind: HeadKind | None,
    config: Mapping[str, Any],
    layer: Mapping[str, Any],
    scaling: Mapping[str, Any] | None,
) -> HeadFacts:
    def size(name: str, otherwise: int | None = None) -> int:
        return whole(layer, name, _LARGEST, otherwise)

    hidden, heads, vocabulary = map(size, ("hidden_size", "num_attention_heads", "vocab_size"))
    own = config.get("draft_vocab_size") or config.get("truncated_vocab_size") or vocabulary
    target = config.get("target_hidden_size")
    longest = size("max_position_embeddings", _LARGEST)
    return HeadFacts(
        kind=kind,
        hidden=hidden,
        target_hidden=target if target is None else whole(config, "target_hidden_size", _LARGEST),
        mlp=size("intermediate_size"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", max(1, hidden // heads)),
        vocabulary=vocabulary,
        draft_vocabulary=whole({"draft_vocab_size": own}, "draft_vocab_size", _LARGEST),
        positions=position_limit(longest, scaling or rope_scaling(layer)),
        epsilon=number(_USUAL | dict(layer), "rms_norm_eps", 0, 1),
    )


def layer_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a head's sizes and rotation stand. Raises ``ModelError``."""
    layer = config.get("transformer_layer_config", config)  # vLLM's speculators nest it
    if not isinstance(layer, Mapping):
        raise ModelError("the head's config.json is damaged: transformer_layer_config is no object")
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
    architectures = config.get("architectures")
    words = [config.get("speculators_model_type"), config.get("model_type")]
    words += architectures if isinstance(architectures, list) else []
    said = " ".join(word.lower() for word in words if isinstance(word, str))
    other = next((what for name, what in _OTHERS.items() if name in said), None)
    if other is None and any(str(key).startswith("medusa_") for key in config):
        other = _OTHERS["medusa"]
    own = config.get("speculators_model_type")
    if other is None and own not in (None, "eagle", "eagle3"):
        other = f"a speculator of type {str(own)[:40]}"
    if other is not None:
        raise other_kind(other)
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
    config: Mapping[str, Any], layers: int, override: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], str]:
    """Which of a target's hidden states an EAGLE-3 head reads, and a note ("" if there is none).

    i is the input of layer i; ``layers`` are the target's, ``override`` is the preset's word. Two
    conventions of counting are published; see the comments. Raises ``PairError`` for layers that
    the target does not have, and for a head that reads none.
    """
    chosen, note = _chosen_layers(config, layers, override)
    if max(chosen) >= layers:
        raise PairError(
            f"the head reads the input of layer {max(chosen)}",
            reason=f"the target has {layers} layers, counted from 0",
            hints=["choose a head that was trained for this target"],
        )
    return chosen, note


def _chosen_layers(
    config: Mapping[str, Any], layers: int, override: tuple[int, ...] | None
) -> tuple[tuple[int, ...], str]:
    formula = (2, layers // 2, layers - 3)
    nested, named = config.get("eagle_config"), config.get(LAYER_IDS)
    nested = nested if isinstance(nested, Mapping) else {}
    if False in (flag(config, "use_aux_hidden_state"), flag(nested, "use_aux_hidden_state")):
        raise PairError("the head reads no layers of the target, as those of EAGLE-3 do",
                        reason="its use_aux_hidden_state is false")  # fmt: skip
    if override is not None:
        return override, ""
    if named is not None:
        return _layer_list(named), ""  # vLLM's: counted as here
    if nested.get(LAYER_IDS):
        as_is = _layer_list(nested[LAYER_IDS])
        if as_is == formula:
            return as_is, ""
        # SGLang's and ModelOpt's name the layer that makes the state, but not all of them do.
        is_counted_here = max(as_is) + 1 >= layers
        chosen = as_is if is_counted_here else tuple(i + 1 for i in as_is)
        return chosen, (
            f"the head lists the layers {_listed(as_is)}: taken as the inputs of layers "
            f"{_listed(chosen)}; --set draft.head.feature_layers overrides it"
        )
    if layers < _FEWEST_LAYERS:
        raise PairError(
            f"the head names no layers, and the target has {layers}",
            reason=f"the usual three need a target of at least {_FEWEST_LAYERS}",
            hints=["name them in the preset: draft.head.feature_layers"],
        )
    return formula, (
        f"the head names no layers: taken are the inputs of layers {_listed(formula)}, as in the "
        "paper's code; --set draft.head.feature_layers overrides it"
    )


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
        raise ModelError(
            "the head's config.json is damaged", reason=f"its layers are {str(value)[:60]}"
        )
    return tuple(value)


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
