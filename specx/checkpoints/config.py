"""A checkpoint in a directory, examined before any weight is read.

In goes a directory in Hugging Face format; out comes its config, or a ``ModelError`` that names
the file at fault. Decides which architectures specx runs. This module does not know
presets, the Hub, pairs or devices, and it never runs code or unpickles data from a checkpoint.
"""

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: model_type → the class that must stand under ``architectures``.
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_WHY_NOT = {
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
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_SIZES = {  # config field → upper bound that keeps a tampered file from exhausting the machine
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_position_embeddings": 1 << 26,
}
_NO_REMOTE_CODE = "auto_map names Python files, and specx runs no code that comes with a model"
_OF_HEADS = ("hidden_size", "num_attention_heads", "head_dim")
_AS_PUBLISHED = "take the config.json that the weights were published with"

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the Hub's client from writing to stderr, then restore them."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    showed_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if showed_bars:
            transformers_logging.enable_progress_bar()


def read_config(directory: Path) -> "PreTrainedConfig":
    """The checkpoint's config, its architecture checked.

    Raises ``ModelError`` for a missing or damaged config.json and for what
    ``check_architecture`` refuses.
    """
    path = directory / "config.json"
    raw = read_json(path)
    if "auto_map" in raw:
        raise ModelError(f"{path} asks for code of its own", reason=_NO_REMOTE_CODE)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise _unsupported_family(str(family), path)
    _check_heads(raw, family, path)

    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        check_architecture(config)
    except ModelError as error:
        reason, hints = error.reason, error.hints
        raise ModelError(f"{path}: {error.message}", reason=reason, hints=hints) from error
    except (*DAMAGE, StrictDataclassError) as error:
        raise ModelError(f"{path} does not hold together", reason=summary(error)) from error
    _check_end_tokens(directory / "generation_config.json")
    return config


def _check_heads(raw: Mapping[str, Any], family: str, path: Path) -> None:
    """Raise ``ModelError`` where the width cannot be divided among the heads as ``family`` does.

    Said here because transformers says it without the file, or builds another model. What is no
    size is left to ``check_architecture``.
    """
    hidden, heads, width = (raw.get(name) for name in _OF_HEADS)
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        return
    # Llama's width is divided whatever head_dim says; qwen3 has a head_dim without being told.
    if hidden % heads and (family == "llama" or (width is None and family != "qwen3")):
        raise ModelError(
            f"{path}: hidden_size {hidden} is no multiple of num_attention_heads {heads}",
            reason=f"{family} models divide it evenly among the heads"
            + ("" if family == "llama" else ", where head_dim is not given"),
            hints=[_AS_PUBLISHED],
        )
    width = hidden // heads if width is None and family != "qwen3" else width
    if type(width) is int and width % 2:
        raise ModelError(
            f"{path}: attention heads are {width} wide",
            reason="positions rotate the numbers of a head in pairs, so it must be an even number",
            hints=[_AS_PUBLISHED],
        )


def _check_end_tokens(path: Path) -> None:
    """transformers skips a damaged generation_config.json; then no text would ever end."""
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = ends if isinstance(ends, list) else [ends]
    if not all(i is None or (isinstance(i, int) and i >= 0) for i in ids):
        raise ModelError(f"{path} is damaged", reason=f"eos_token_id is {ends!r}")


def check_architecture(config: "PreTrainedConfig") -> None:
    """Raise ``ModelError`` with the reason unless specx can run models of this ``config``."""
    family = config.model_type
    if family not in FAMILIES:
        raise _unsupported_family(family)
    if getattr(config, "auto_map", None):
        raise ModelError("the model asks for code of its own", reason=_NO_REMOTE_CODE)
    for name in config.architectures or []:
        if str(name).lower() != FAMILIES[family].lower():
            raise ModelError(f"{name} is not supported", reason=f"{FAMILIES[family]} is needed")
    if getattr(config, "quantization_config", None):
        raise ModelError(
            "quantised checkpoints are not supported",
            reason="specx reads weights in float32, float16 or bfloat16",
        )
    _check_sizes(config)
    _check_attention(config)


def _check_sizes(config: "PreTrainedConfig") -> None:
    sizes = {name: getattr(config, name, None) for name in _SIZES}
    if sizes["head_dim"] is None:  # qwen2 and old llama leave it out
        del sizes["head_dim"]
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _SIZES[name]:
            raise ModelError(
                f"{name} = {size!r} is out of range",
                reason=f"it must be a whole number between 1 and {_SIZES[name]}",
            )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ModelError(
            f"{heads} attention heads cannot share {groups} key/value heads",
            reason="num_attention_heads must be a multiple of num_key_value_heads",
            hints=[_AS_PUBLISHED],
        )


def _check_attention(config: "PreTrainedConfig") -> None:
    family = config.model_type
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or []
    if window is not None or "sliding_attention" in layers:
        raise ModelError(
            f"{family} with a sliding window of {window} tokens is not supported",
            reason="its layers forget the text beyond the window, so a tree's path cannot be kept",
        )
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in _ROPE_TYPES:
        raise ModelError(
            f"{family} with rope type {kind} is not supported",
            reason=_ROPE_WHY_NOT.get(kind, f"specx knows {', '.join(_ROPE_TYPES)}"),
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"{family} with partially rotated heads is not supported",
            reason="a draft's keys are rotated again, over the whole head",
        )


def expected_shapes(config: "PreTrainedConfig", directory: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape of the model that ``config`` describes.

    Raises ``ModelError``, naming config.json in ``directory``, when there is no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):  # builds the modules without memory for weights
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except (*DAMAGE, RuntimeError) as error:
        path = directory / "config.json"
        raise ModelError(f"{path} does not hold together", reason=summary(error)) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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


def _unsupported_family(family: str, path: Path | None = None) -> ModelError:
    where = f"{path}: " if path else ""
    return ModelError(
        f"{where}models of type {family} are not supported",
        reason=_WHY_NOT.get(family, f"specx runs {', '.join(FAMILIES)}"),
    )


def summary(error: BaseException) -> str:
    """A foreign error as one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
