"""Pairs that no preset names: ``--target`` and ``--draft``, settled from their config files.

Fetches configs and tokenizers alone; ``check_pair`` finds out whether the pair fits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from specx.checkpoints import load as hub
from specx.checkpoints.config import read_json
from specx.checkpoints.eagle.config import head_kind, layer_config, position_limit, rope_scaling
from specx.checkpoints.fields import whole
from specx.checkpoints.tokenizer import has_tokenizer
from specx.core.config import RetrievalConfig
from specx.preset.preset import Preset, preset_from
from specx.preset.sections import DType

NAME = "adhoc"
WITHOUT_WEIGHTS = ("none", "lookup")

_HEAD_TRAINED = 2048  # longest texts of nearly every head's training, whatever its config says
_WINDOW = 8192  # of a small model's context that is used; longer ones cost more than they bring
_LONGEST = 1 << 24
_SHORTEST = 64  # the least that a preset can hold
_HEAD_CHUNKS, _MODEL_CHUNKS = 59, 28  # chosen by attention, beside the first and the last ones
_FALLBACK_POSITIONS, _MOST_POSITIONS = 2048, 1 << 26


def adhoc_preset(target: str, draft: str | None, *, offline: bool) -> Preset:
    """The pair of ``target`` and ``draft``: Hub ids or directories, or ``none`` or ``lookup``.

    ``draft`` None is ``lookup``, which needs no model. Raises ``ModelUnavailableError``,
    ``ModelError``, ``UsageError``, and ``PairError`` for a drafter of a kind that specx lacks.
    """
    config = read_json(hub.resolve(target, None, offline=offline) / "config.json")
    context = max(_SHORTEST, min(_positions(config), _LONGEST))
    data = {
        "schema": 1,
        "name": NAME,
        "about": f"{target} with {draft or 'lookup'}, named on the command line",
        "target": {"repo": target, "dtype": _dtype(config)},
        "context_tokens": context,
        "max_new_tokens": min(256, context // 2),  # short contexts keep some room for a prompt
        **_draft_part(draft or "lookup", config, offline),
    }
    return preset_from(data, f"the pair of {target} and {draft}")


def with_draft(preset: Preset, draft: str, *, offline: bool) -> Preset:
    """``preset`` with another draft; raises as ``adhoc_preset`` does.

    Retrieval becomes what suits the kind of draft. What was measured or published with the
    preset's own draft is left out.
    """
    config: dict[str, Any] = {}
    if draft not in WITHOUT_WEIGHTS:
        spec = preset.target
        config = read_json(hub.resolve(spec.repo, spec.revision, offline=offline) / "config.json")
    data = preset.as_mapping() | _draft_part(draft, config, offline)
    data["parts"] = {name: part for name, part in data["parts"].items() if name != "drafter"}
    for key in ("requires", "measured", "paper"):
        del data[key]
    return preset_from(data, f"preset {preset.name} with the draft {draft}")


def _draft_part(draft: str, target: Mapping[str, Any], offline: bool) -> dict[str, Any]:
    if draft in WITHOUT_WEIGHTS:
        return {"draft": {"kind": draft}}
    directory = hub.resolve(draft, None, offline=offline)
    config = read_json(directory / "config.json")
    kind, trained = _kind(directory, config, target), _positions(config)
    if kind == "lm":
        trained = min(trained, _WINDOW)
    else:
        scaling = rope_scaling(layer_config(config))
        is_given = isinstance(scaling, Mapping)
        if not is_given or scaling.get("rope_type", scaling.get("type")) == "default":
            trained = min(trained, _HEAD_TRAINED)
    trained = max(_SHORTEST, trained)
    usual = RetrievalConfig()
    fixed = usual.sink_chunks + usual.recent_chunks
    # Smaller chunks for a draft that is too short for the usual ones.
    chunk_tokens = min(usual.chunk_tokens, trained // fixed)
    most = _MODEL_CHUNKS if kind == "lm" else _HEAD_CHUNKS
    chosen = max(0, min(most, trained // usual.chunk_tokens - fixed))
    return {
        "draft": {
            "kind": kind,
            "repo": draft,
            "dtype": _dtype(config),
            "trained_context_tokens": trained,
        },
        "retrieval": {"top_chunks": chosen, "chunk_tokens": chunk_tokens},
    }


def _kind(directory: Path, config: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """``lm``, ``eagle`` or ``eagle3``. The official EAGLE-1 configs look like those of a model with
    one layer; what gives them away is the target's own width, and no tokenizer."""
    if kind := head_kind(config):
        return kind
    is_alone = config.get("num_hidden_layers") == 1 and not has_tokenizer(directory)
    names = ("hidden_size", "vocab_size")
    same = all(config.get(name) == target.get(name) is not None for name in names)
    return "eagle" if is_alone and same else "lm"


def _positions(config: Mapping[str, Any]) -> int:
    layer = layer_config(config)
    longest = whole(layer, "max_position_embeddings", _MOST_POSITIONS, _FALLBACK_POSITIONS)
    return position_limit(longest, rope_scaling(layer))


def _dtype(config: Mapping[str, Any]) -> str:
    said = config.get("dtype") or config.get("torch_dtype")
    return said if isinstance(said, str) and said in get_args(DType) else "auto"
