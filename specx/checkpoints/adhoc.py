"""Pairs that no preset names: ``--target`` and ``--draft``, settled from their config files.

In: repositories or directories. Out: a ``Preset`` in memory, as a file could hold it. Fetches
configs and tokenizers alone. Whether the pair fits is found out where every other pair's is, by
``specx.checkpoints.check_pair``; this module does not know weights, commands or the screen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from specx.checkpoints import load as hub
from specx.checkpoints.config import has_tokenizer, read_json
from specx.checkpoints.eagle.config import head_kind, position_limit
from specx.core.config import RetrievalConfig
from specx.errors import ModelError
from specx.preset.preset import Preset, preset_from
from specx.preset.sections import DType

NAME = "adhoc"
WITHOUT_WEIGHTS = ("none", "lookup")

_HEAD_TRAINED = 2048  # longest texts of nearly every head's training, whatever its config says
_WINDOW = 8192  # of a small model's context that is used; longer ones cost more than they bring
_LONGEST = 1 << 24
_HEAD_CHUNKS, _MODEL_CHUNKS = 59, 28  # chosen by attention, beside the first and the last ones
_FALLBACK_POSITIONS = 2048


def adhoc_preset(target: str, draft: str | None, *, offline: bool) -> Preset:
    """The pair of ``target`` and ``draft``: Hub ids or directories, or ``none`` or ``lookup``.

    ``draft`` None is ``lookup``, which needs no model. Raises ``ModelUnavailableError``,
    ``ModelError``, ``UsageError``, and ``PairError`` for a drafter of a kind that specx lacks.
    """
    config = _config(target, offline)
    data = {
        "schema": 1,
        "name": NAME,
        "about": f"{target} with {draft or 'lookup'}, named on the command line",
        "target": {"repo": target, "dtype": _dtype(config)},
        "context_tokens": max(64, min(_positions(config), _LONGEST)),
        **_draft_part(draft or "lookup", config, offline),
    }
    # Short contexts keep some room for a prompt.
    data["max_new_tokens"] = min(256, data["context_tokens"] // 2)
    return preset_from(data, f"the pair of {target} and {draft}")


def with_draft(preset: Preset, draft: str, *, offline: bool) -> Preset:
    """``preset`` with another draft; raises as ``adhoc_preset`` does.

    Retrieval becomes what suits the kind of draft. What was measured or published with the
    preset's own draft is left out.
    """
    is_wanted = draft not in WITHOUT_WEIGHTS
    config = _config(preset.target.repo, offline, preset.target.revision) if is_wanted else {}
    data = preset.as_mapping() | _draft_part(draft, config, offline)
    data["parts"] = {name: part for name, part in data["parts"].items() if name != "drafter"}
    for key in ("requires", "measured", "paper"):
        del data[key]
    return preset_from(data, f"preset {preset.name} with the draft {draft}")


def _draft_part(draft: str, target: Mapping[str, Any], offline: bool) -> dict[str, Any]:
    """``draft`` and ``retrieval`` of a preset."""
    if draft in WITHOUT_WEIGHTS:
        return {"draft": {"kind": draft}}
    directory = hub.resolve(draft, None, offline=offline)
    config = read_json(directory / "config.json")
    kind = _kind(directory, config, target)
    longest = _positions(config)
    if kind == "lm":
        trained, chunks = min(longest, _WINDOW), _MODEL_CHUNKS
    else:
        trained = longest if _is_stretched(config) else min(longest, _HEAD_TRAINED)
        chunks = _HEAD_CHUNKS
    trained = max(64, trained)
    usual = RetrievalConfig()
    fixed = usual.sink_chunks + usual.recent_chunks
    chunks = max(0, min(chunks, trained // usual.chunk_tokens - fixed))
    spec = {
        "kind": kind,
        "repo": draft,
        "dtype": _dtype(config),
        "trained_context_tokens": trained,
    }
    return {"draft": spec, "retrieval": {"top_chunks": chunks} | _tiny(trained, usual)}


def _tiny(trained: int, usual: RetrievalConfig) -> dict[str, int]:
    """Smaller chunks for a draft that is too short for the usual ones."""
    fixed = usual.sink_chunks + usual.recent_chunks
    return {} if trained >= fixed * usual.chunk_tokens else {"chunk_tokens": trained // fixed}


def _kind(directory: Path, config: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """``lm``, ``eagle`` or ``eagle3``.

    The official EAGLE-1 configs look like those of a model with one layer; what gives them away is
    the target's own width, and no tokenizer.
    """
    kind = head_kind(config)
    if kind is not None:
        return kind
    is_alone = config.get("num_hidden_layers") == 1 and not has_tokenizer(directory)
    same = all(
        config.get(name) == target.get(name) is not None for name in ("hidden_size", "vocab_size")
    )
    return "eagle" if is_alone and same else "lm"


def _config(repo: str, offline: bool, revision: str | None = None) -> dict[str, Any]:
    return read_json(hub.resolve(repo, revision, offline=offline) / "config.json")


def _layer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("transformer_layer_config")
    return nested if isinstance(nested, Mapping) else config


def _is_stretched(config: Mapping[str, Any]) -> bool:
    layer = _layer(config)
    scaling = layer.get("rope_scaling") or layer.get("rope_parameters")
    kind = (
        scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else "default"
    )
    return kind != "default"


def _positions(config: Mapping[str, Any]) -> int:
    layer = _layer(config)
    longest = layer.get("max_position_embeddings", _FALLBACK_POSITIONS)
    if type(longest) is not int or longest < 1:
        raise ModelError(
            f"max_position_embeddings = {str(longest)[:40]} is out of range",
            reason="a config.json says it",
        )
    return position_limit(longest, layer.get("rope_scaling") or layer.get("rope_parameters"))


def _dtype(config: Mapping[str, Any]) -> str:
    said = config.get("dtype") or config.get("torch_dtype")
    return said if isinstance(said, str) and said in get_args(DType) else "auto"
