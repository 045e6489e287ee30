"""Weights of the pair on disk, in Hugging Face's form.

In: a model, the tokenizer's folder. Out: a folder with float16 safetensors in shards of at most
15 MB, configuration, tokenizer. Optimizer state is never saved. Knows no training.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM

SHARD = "15MB"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save(model: LlamaForCausalLM, folder: Path, tokenizer: Path, log: Mapping[str, object]) -> None:
    """Replace `folder` with the model in float16, the files of the `tokenizer` folder and
    `training.json`."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
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
