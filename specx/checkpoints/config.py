"""A checkpoint's config.json, examined before any weight is read.

In goes a directory in Hugging Face format; out come the facts, or a ``ModelError`` that names the
file at fault. Decides which architectures specx runs; runs no code from a checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specx.checkpoints import fields
from specx.core.architecture import DecoderConfig, Shape
from specx.core.config import SamplingConfig
from specx.errors import ModelError


@dataclass(frozen=True, slots=True)
class _Family:
    """What the models of one model_type have in common."""

    architecture: str  # the class that must be under ``architectures``
    biased: tuple[str, ...] = ()  # projections that always have a bias
    attention_bias: bool = False  # whether the config's field of this name adds one to all four
    mlp_bias: bool = False  # the same of the MLP
    norms_heads: bool = False  # queries and keys, each head by itself
    head_dim: int | None = None  # where the config does not say; None: hidden / heads
    window: int | None = None  # where the config does not say


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "mistral": _Family("MistralForCausalLM", window=4096),
    "qwen2": _Family("Qwen2ForCausalLM", biased=_QKV),
    "qwen3": _Family("Qwen3ForCausalLM", attention_bias=True, norms_heads=True, head_dim=128),
}
_WHY_NOT = {  # other model_types that users try
    "gemma2": "its layers alternate with a sliding window and cap their logits",
    "gemma3": "its layers alternate with a sliding window",
    "gemma3_text": "its layers alternate with a sliding window",
    "gpt2": "its positions are learned, so a draft's context cannot be re-indexed",
    "mixtral": "mixtures of experts are not tested",
    "opt": "its positions are learned, so a draft's context cannot be re-indexed",
    "qwen3_moe": "mixtures of experts are not tested",
    "qwen3_next": "its linear attention keeps a state that cannot be rolled back to a tree's path",
}
_ROPE_WHY_NOT = {
    "dynamic": "its rotation changes with the length, so cached keys stop fitting",
    "longrope": "it switches rotations at a length, so cached keys stop fitting",
}
_HEADS, _KV_HEADS = "num_attention_heads", "num_key_value_heads"
_POSITIONS = "max_position_embeddings"
#: The most that is believed: a tampered file must not exhaust the machine.
_SIZES = dict.fromkeys(("hidden_size", "vocab_size", "intermediate_size", _POSITIONS), 1 << 26)
_SIZES |= dict.fromkeys(("num_hidden_layers", _HEADS, _KV_HEADS, "head_dim"), 1 << 10)
_PART = "partial_rotary_factor"
_QUANTISED = ("quantization_config", "compression_config", "quantization")
_QWEN_WINDOW = 4096  # where the config does not say
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

#: Beside whole weights, or instead of them: a low-rank change of another model (LoRA).
ADAPTER = "adapter_config.json"

#: What transformers, tokenizers and json raise for a damaged file; each is a builtin.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A checkpoint's config.json as specx understands it; ``raw`` is the file itself."""

    family: str  # its model_type
    decoder: DecoderConfig
    positions: int  # that it was built for, without a stretch
    end_tokens: frozenset[int]  # that end a text, by the checkpoint's own word
    is_tied: bool  # the embedding makes the logits, unless the file has another matrix for them
    biased: frozenset[str]  # projections that have a bias
    norms_heads: bool
    raw: Mapping[str, Any] = field(repr=False)
    #: By generation_config.json; greedy without one.
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def shape(self) -> Shape:
        """The model's sizes."""
        return self.decoder.shape


def read_config(directory: Path) -> ModelConfig:
    """The checkpoint's config, with what generation_config.json adds: more end tokens, and how
    tokens are drawn.

    Raises ``ModelError`` for a missing or damaged file and for what ``model_config`` refuses.
    """
    path = directory / "config.json"
    if not path.is_file() and (directory / ADAPTER).is_file():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path")
        hint = "merge it with peft's merge_and_unload(), and give the directory of the result"
        reason = f"it changes the weights of {str(base)[:80]}" if base else ""
        raise ModelError(f"{directory} is a LoRA adapter, no model", reason=reason, hints=[hint])
    raw = read_json(path)
    with fields.naming(path):
        config = model_config(raw)
    generation = read_generation(directory)
    # transformers takes no ids from config.json then; some fine-tunes have their own only there.
    ends = config.end_tokens | generation.end_tokens
    return replace(config, end_tokens=ends, sampling=generation.sampling)


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What a checkpoint's generation_config.json says about drawing tokens, and what of it that
    specx knows; greedy and nothing without such a file."""

    said: Mapping[str, Any]  # sampling values as they are in the file
    sampling: SamplingConfig
    end_tokens: frozenset[int]


def read_generation(directory: Path) -> GenerationConfig:
    """The checkpoint's generation_config.json. Without ``do_sample`` its choice is greedy, as in
    transformers; a repetition penalty holds then too. Raises ``ModelError`` for a damaged one."""
    path = directory / "generation_config.json"
    raw = read_json(path) if path.is_file() else {}
    said = {name: raw[name] for name in ("do_sample", *_SAMPLING) if raw.get(name) is not None}
    with fields.naming(f"{path} is damaged"):
        values = {name: _sampling_value(name, said[name]) for name in _SAMPLING if name in said}
        if said.get("do_sample") is True:
            values = {"temperature": 1.0, **values}
        else:
            values = {name: values[name] for name in values if name == "repetition_penalty"}
        try:
            return GenerationConfig(said, SamplingConfig(**values), end_ids(raw))
        except ValueError as error:
            raise ModelError(str(error)) from error


def end_tokens_by_file(directory: Path) -> dict[str, list[int | str]]:
    """What ends a text by the word of each file that says so: ids, and the tokenizer's token by its
    name. Raises ``ModelError``."""
    path = directory / "tokenizer_config.json"
    named = read_json(path).get("eos_token") if path.is_file() else None
    named = named.get("content") if isinstance(named, dict) else named
    ends: dict[str, list[int | str]] = {
        "config.json": [*sorted(end_ids(read_json(directory / "config.json")))],
        "generation_config.json": [*sorted(read_generation(directory).end_tokens)],
        path.name: [named] if isinstance(named, str) else [],
    }
    return {name: found for name, found in ends.items() if found}


def _sampling_value(name: str, value: object) -> Any:
    """A value as ``SamplingConfig`` has it: −1 is off for top_k elsewhere."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fields.wrong(name, value, "it must be a number")
    return max(0, int(value)) if name == "top_k" else float(value)


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The facts in a raw config.json.

    Raises ``ModelError`` with the reason for models that specx does not run, and for sizes that
    are missing or impossible.
    """
    name = str(raw.get("model_type"))[:80]
    family = _checked_family(raw, name)
    shape, positions = _sizes(raw, name, family)
    fields.check_activation(raw, f"{name} models")
    epsilon = 0.0  # none at all; stand-in weights can ask for that
    if raw.get("rms_norm_eps") != 0:
        epsilon = fields.number({"rms_norm_eps": 1e-6, **raw}, "rms_norm_eps", 0, 1)
    rope = fields.rope_parameters(raw)
    base, part = fields.rope_base(rope, raw), {_PART: raw.get(_PART)}
    biased = set(family.biased)
    if family.attention_bias and raw.get("attention_bias"):
        biased |= {*_QKV, "self_attn.o_proj"}
    if family.mlp_bias and raw.get("mlp_bias"):
        biased |= {*_MLP}
    facts = DecoderConfig(
        shape,
        epsilon=epsilon,
        rope=fields.read_rope(part | dict(rope), base, positions, _ROPE_WHY_NOT),
        score_scale=shape.head_dim**-0.5,
    )
    return ModelConfig(
        family=name,
        decoder=facts,
        positions=positions,
        end_tokens=end_ids(raw),
        is_tied=raw.get("tie_word_embeddings", False) is True,
        biased=frozenset(biased),
        norms_heads=family.norms_heads,
        raw=raw,
    )


def _checked_family(raw: Mapping[str, Any], name: str) -> _Family:
    """What is known of the model's family, where specx runs such a model."""
    if raw.get("auto_map"):
        reason = "auto_map names Python files, and specx runs no code that comes with a model"
        raise ModelError("it asks for code of its own", reason=reason)
    family = _FAMILIES.get(name)
    if family is None:
        reason = _WHY_NOT.get(name, f"specx runs {', '.join(_FAMILIES)}")
        raise ModelError(f"models of type {name} are not supported", reason=reason)
    classes = raw.get("architectures") or []
    if not isinstance(classes, list):
        raise fields.wrong("architectures", classes, "it must be a list")
    for other in (str(each)[:80] for each in classes):
        if other.lower() != family.architecture.lower():
            reason = f"{family.architecture} is needed"
            raise ModelError(f"{other} is not supported", reason=reason)
    if any(raw.get(setting) for setting in _QUANTISED):
        reason = "specx reads weights in float32, float16 or bfloat16"
        raise ModelError("quantised checkpoints are not supported", reason=reason)
    window = raw.get("sliding_window", family.window)
    if name.startswith("qwen"):
        window = (window or _QWEN_WINDOW) if raw.get("use_sliding_window") else None
    if window is not None or "sliding_attention" in (raw.get("layer_types") or []):
        raise ModelError(
            f"{name} with a sliding window of {window} tokens is not supported",
            reason="its layers forget the text beyond the window, so a tree's path cannot be kept",
        )
    return family


def _sizes(raw: Mapping[str, Any], name: str, family: _Family) -> tuple[Shape, int]:
    """All sizes, none of them guessed, and the positions that the model was built for."""
    is_llama = name == "llama"
    hidden, heads = (fields.whole(raw, each, _SIZES[each]) for each in ("hidden_size", _HEADS))
    otherwise = {"head_dim": family.head_dim or hidden // heads}
    if is_llama:
        otherwise[_POSITIONS] = 2048  # files of its first year leave it out
    if is_llama or _KV_HEADS in raw:
        otherwise[_KV_HEADS] = heads
    found = {
        size: fields.whole(raw, size, most, otherwise.get(size)) for size, most in _SIZES.items()
    }
    width, groups = found["head_dim"], found[_KV_HEADS]
    has_width = raw.get("head_dim") is not None or family.head_dim is not None
    problem = ""
    if (is_llama or not has_width) and hidden % heads:
        problem = f"hidden_size {hidden} is no multiple of {_HEADS} {heads}"
        problem += "" if is_llama else f", as {name} models need where head_dim is not given"
    elif width % 2:
        problem = f"attention heads are {width} wide, and positions rotate pairs of numbers"
    elif heads % groups:
        problem = f"{heads} attention heads cannot share {groups} key/value heads"
    if problem:
        hint = "take the config.json that the weights were published with"
        raise ModelError(problem, hints=[hint])
    shape = Shape(
        layers=found["num_hidden_layers"],
        heads=heads,
        kv_heads=groups,
        head_dim=width,
        vocabulary=found["vocab_size"],
        hidden=hidden,
        mlp=found["intermediate_size"],
    )
    return shape, found[_POSITIONS]


def end_ids(raw: Mapping[str, Any]) -> frozenset[int]:
    """The ids that a file of settings names as ending a text. Raises ``ModelError``."""
    ends = raw.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ModelError(f"eos_token_id is {str(ends)[:80]!r}", reason="ids are whole numbers")
    return frozenset(ids)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ``ModelError`` when the file is missing or holds anything else."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} is no checkpoint: {path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged", reason=summary(error)) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged", reason="it is not a JSON object")
    return data


def summary(error: BaseException) -> str:
    """A foreign error as one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
