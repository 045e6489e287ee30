"""Stand-in weights: a preset's shapes at full size, computing what a bundled pocket pair does.

So a bench measures time, memory and attention of the real shapes, with the text and the acceptance
of a real, if small, pair. Nothing is downloaded.
"""

import math
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from specx.checkpoints import load as hub
from specx.checkpoints.config import ModelConfig, model_config, read_config, read_json
from specx.checkpoints.eagle.config import read_head
from specx.checkpoints.eagle.loader import LoadedHead
from specx.checkpoints.weights import outline
from specx.errors import ResourceError, UsageError, size
from specx.memory import room_on
from specx.preset.preset import Preset, load_preset
from specx.preset.sections import DraftSpec, HeadShapeSpec, ShapeSpec, TargetSpec
from specx.standin.head_implant import HeadImplant, head_misfit, tensor_shapes
from specx.standin.implant import Implant, epsilon, misfit

#: Tokens of prompt and output together on which the pair inside was trained.
TRAINED_TOKENS = 17408
SUFFIX = "-stand-in"

Sizes = TypeVar("Sizes", ShapeSpec, HeadShapeSpec)

#: Kind of draft → the preset of the bundled pair whose draft is of that kind, and that draft.
_POCKETS = {
    "lm": ("pocket", "pocket/draft"),
    "eagle": ("pocket-eagle", "pocket/eagle"),
    "eagle3": ("pocket-eagle3", "pocket/eagle3"),
}
_ROOM_TOKENS = 4096  # behind a prompt as long as the preset's context


def adapted(preset: Preset) -> Preset:
    """The settings with which ``preset``'s shapes are measured on stand-in weights.

    Whatever acceptance depends on is pocket's: what the draft was trained on, retrieval, prompt,
    sampling. The tree stays the preset's. Positions are pocket's as well, so the context is at
    least pocket's, with some room after a prompt that fills it. Raises ``UsageError`` for a preset
    without shapes and for shapes that cannot hold pocket.
    """
    pocket = _pocket(preset)
    _configs(preset)
    trained = {"trained_context_tokens": pocket.draft.trained_context_tokens}
    changes = {
        "name": f"{preset.name}{SUFFIX}",
        "context_tokens": max(preset.context_tokens, pocket.context_tokens) + _ROOM_TOKENS,
        "draft": preset.draft.model_copy(update=trained),
        **{name: getattr(pocket, name) for name in ("prompt", "retrieval", "sampling")},
        "measured": (),
        "extends": None,
    }
    return preset.model_copy(update=changes).with_overrides({})


def about(preset: Preset) -> str:
    """What numbers measured on an ``adapted`` preset are, in a sentence."""
    draft = preset.draft
    head = "of the head " if draft.is_head else ""
    shapes = f" and {head}{draft.repo}" if draft.has_weights else ""
    pair = f"pocket target and its {draft.kind} head compute" if head else "pocket pair computes"
    return (
        f"stand-in weights: {preset.name} has the shapes of {preset.target.repo}{shapes} and "
        f"computes what specx's {pair}, so time and memory are those of the shapes, "
        "text and acceptance are pocket's"
    )


def find_pair(preset: Preset) -> hub.PairFiles:
    """As ``hub.find_pair``: the configs that ``load_pair`` builds, and pocket's tokenizer."""
    target, draft = _configs(preset)
    files = hub.find_pair(_pocket(preset), offline=True)
    return replace(files, target_config=target, draft_config=draft)


def load_pair(preset: Preset, *, device: str, dtype: str) -> hub.ModelPair:
    """Build the pair, as ``hub.load_pair`` loads one; the same weights every time.

    Raises ``UsageError`` as ``adapted`` does, and ``ResourceError`` where memory is short.
    """
    device = hub.choose_device(device)
    specs = preset.target, preset.draft
    dtypes = [hub.choose_dtype(dtype, spec.dtype, device) for spec in specs]
    models = [
        hub.LoadedModel(config, outline(config, kind))
        for config, kind in zip(_configs(preset), dtypes, strict=True)
        if config is not None
    ]
    _check_room(models, dtypes[0], device, preset)
    small = hub.load_pair(_pocket(preset), device="cpu", dtype="float32", offline=True)
    draft: hub.LoadedModel | LoadedHead | None = None
    try:
        target = _filled(models[0], small.target, device)
        if isinstance(small.draft, LoadedHead):
            shape = _head_shapes(preset)[0]
            draft = HeadImplant(small.draft, shape, target, small.target).build()
        elif len(models) > 1 and small.draft is not None:
            draft = _filled(models[1], small.draft, device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(f"no memory on {device} for stand-in weights") from error
    return hub.ModelPair(target, draft, small.tokenizer, small.notes)


def twin(pair: hub.ModelPair) -> hub.ModelPair:
    """The same models once more over the same weights, for a second owner, before the first one.

    A head is left out: transformers runs none, and its first owner copies its tensors.
    """
    target, draft = (
        replace(model, tensors=dict(model.tensors)) if isinstance(model, hub.LoadedModel) else None
        for model in (pair.target, pair.draft)
    )
    assert target is not None
    return hub.ModelPair(target, draft, pair.tokenizer)


def _pocket(preset: Preset) -> Preset:
    """The bundled pair with a draft like the ``preset``'s, whatever the user calls pocket."""
    kind = preset.draft.kind if preset.draft.kind in _POCKETS else "lm"
    name, draft = _POCKETS[kind]
    repos = {"target.repo": "pocket/target", "draft.kind": kind, "draft.repo": draft}
    return load_preset(name).with_overrides(repos)


def _configs(preset: Preset) -> tuple[ModelConfig, ModelConfig | None]:
    """Configs of the large models, checked: each can hold its small one, and so can a head."""
    target, draft = _config("target", preset.target, preset), preset.draft
    if draft.is_head:
        directory = hub.resolve(_POCKETS[draft.kind][1], None, offline=True)
        small = read_head(read_json(directory / "config.json"))
        _refuse(preset, "head", head_misfit(*_head_shapes(preset), small, draft.generation))
    return target, _config("draft", draft, preset) if draft.kind == "lm" else None


def _head_shapes(preset: Preset) -> tuple[HeadShapeSpec, ShapeSpec]:
    head = _given(preset.draft.head_shape, "draft.head_shape", preset)
    return head, _given(preset.target.shape, "target.shape", preset)


def _given(shape: Sizes | None, key: str, preset: Preset) -> Sizes:
    """``shape``; raises ``UsageError`` where the preset leaves it out."""
    if shape is None:
        reason = "stand-in weights are built from it"
        hint = f"add {key} to the preset, as in: specx presets show vicuna-7b-eagle"
        raise UsageError(f"preset {preset.name} has no {key}", reason=reason, hints=[hint])
    return shape


def _refuse(preset: Preset, what: str, reason: str) -> None:
    if reason:
        message = f"no stand-in can be built for preset {preset.name}: {what}"
        raise UsageError(message, reason=reason)


def _config(
    role: Literal["target", "draft"], spec: TargetSpec | DraftSpec, preset: Preset
) -> ModelConfig:
    shape = _given(spec.shape, f"{role}.shape", preset)
    small = read_config(hub.resolve(f"pocket/{role}", None, offline=True))
    _refuse(preset, role, misfit(shape, small))
    raw: dict[str, Any] = {
        "model_type": shape.family,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": preset.context_tokens,
        "rms_norm_eps": epsilon(shape.hidden, small),
        "rope_parameters": small.raw["rope_parameters"],
        "tie_word_embeddings": shape.tied,
        "hidden_act": small.raw["hidden_act"],
        "eos_token_id": sorted(small.end_tokens),
        "sliding_window": None,
    }
    return model_config(raw)


def _check_room(
    models: list[hub.LoadedModel], dtype: torch.dtype, device: str, preset: Preset
) -> None:
    """Raise ``ResourceError`` before memory is touched: a CPU kills whoever asks for too much."""
    need = sum(part.nbytes for model in models for part in model.tensors.values())
    if preset.draft.is_head:
        shape, target = _head_shapes(preset)
        sizes = tensor_shapes(shape, preset.draft.generation, target.vocabulary).values()
        # Whoever puts a head beside its target makes a copy of it.
        need += 2 * dtype.itemsize * sum(map(math.prod, sizes))
    have = room_on(torch.device(device)).free_bytes
    if have is not None and need > have:
        raise ResourceError(
            f"no memory on {device} for stand-in weights of {preset.name}",
            reason=f"they need {size(need)}, and {size(have)} are free",
            hints=["--dtype float16 halves float32", "choose another --device", "-m pocket"],
        )


def _filled(outlined: hub.LoadedModel, small: hub.LoadedModel, device: str) -> hub.LoadedModel:
    """The ``outlined`` model on ``device``, computing what ``small`` computes."""
    tensors = {n: torch.empty_like(t, device=device) for n, t in outlined.tensors.items()}
    model = replace(outlined, tensors=tensors)
    Implant(model, small).fill()
    return model
