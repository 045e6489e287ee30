"""Weights of the pair and of its heads on disk, in Hugging Face's and in EAGLE's form.

In: a model and the tokenizer's folder, or a head. Out: a folder with float16 safetensors in shards
of at most 15 MB, configuration, tokenizer. Optimizer state is never saved. Knows no training.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM

from specx.checkpoints.eagle.config import LAYER_IDS
from training.heads import THETA, HeadWeights

SHARD = "15MB"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save(model: LlamaForCausalLM, folder: Path, tokenizer: Path, log: Mapping[str, object]) -> None:
    """Replace `folder` with the model in float16, the files of the `tokenizer` folder and
    `training.json`."""
    fresh = _fresh(folder)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict({name: t.detach().cpu() for name, t in model.state_dict().items()})
    half = half.to(torch.float16)
    half.config.dtype = torch.float16
    half.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    half.save_pretrained(fresh, max_shard_size=SHARD)
    for path in fresh.glob("*.safetensors"):
        path.chmod(0o644)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, fresh / name)
    _replace(folder, fresh, log)


def save_head(
    head: HeadWeights, folder: Path, vocabulary: int, length: int, log: Mapping[str, object]
) -> None:
    """Replace `folder` with the head in float16, under the key names of the published heads.

    Embedding and output matrix are the target's and not in the file. `length` is the number of
    positions that the head was trained on.
    """
    fresh = _fresh(folder)
    fresh.mkdir(parents=True)
    tensors = {name: t.cpu().half().contiguous() for name, t in head.folded().items()}
    save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
    hidden, mlp = head.layer("mlp.down_proj.weight").shape
    own: dict[str, object] = {"bias": True}
    if head.eagle3:
        own = {"draft_vocab_size": vocabulary, LAYER_IDS: head.reads}
    config = {
        "architectures": ["LlamaForCausalLMEagle3" if head.eagle3 else "LlamaForCausalLM"],
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp,
        "num_attention_heads": head.shape.heads, "num_key_value_heads": head.shape.kv_heads,
        "head_dim": head.shape.head_dim, "num_hidden_layers": 1, "vocab_size": vocabulary,
        "hidden_act": "silu", "rms_norm_eps": head.shape.epsilon, "rope_theta": THETA,
        "max_position_embeddings": length, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1, "dtype": "float16", **own,
    }  # fmt: skip
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (fresh / "config.json").write_text(text, encoding="utf-8")
    _replace(folder, fresh, log)


def _fresh(folder: Path) -> Path:
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    return fresh


def _replace(folder: Path, fresh: Path, log: Mapping[str, object]) -> None:
    (fresh / "training.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> LlamaForCausalLM:
    """The model of `folder` in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_head(folder: Path, like: HeadWeights) -> dict[str, Tensor]:
    """The tensors of a head's folder in float32.

    Raises ValueError where names, shapes or the target's layers are not those of `like`.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reads = tuple(config.get(LAYER_IDS, ()))
    if reads != like.reads:
        raise ValueError(f"{folder}: this head reads the layers {reads}, not {like.reads}")
    tensors = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != {name: tuple(t.shape) for name, t in like.tensors.items()}:
        raise ValueError(f"{folder}: this is no head of the wanted shape")
    return tensors
