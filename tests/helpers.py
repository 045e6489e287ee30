"""Tiny real models and a tiny real tokenizer, made on the spot: no download, no network.

``tiny_config`` → ``save_pair`` → ``preset_for`` is the way from nothing to a preset that
``specx.load`` accepts. Everything is seeded, so two calls with equal arguments give equal files.
"""

import copy
import functools
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from specx.checkpoints.config import ModelConfig, model_config
from specx.checkpoints.tokenizer import Tokenizer, quiet
from specx.preset.preset import Preset

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VOCABULARY = 512
BOS, EOS = "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
DraftWeights = Literal["random", "target", "noisy"]


@dataclass(frozen=True, slots=True)
class PairDirs:
    """Two checkpoint directories; the tokenizer is the target's unless it was asked for twice."""

    target: Path
    draft: Path


def tiny_config(family: str = "llama", **changes: Any) -> PreTrainedConfig:
    """A two-layer config of ``family``, 64 wide, 512 rows; ``changes`` replace its fields."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,  # large enough for texts that do not repeat one token
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    if family == "mistral":
        fields["sliding_window"] = None
    return _CONFIGS[family](**(fields | changes))


def tiny_facts(family: str = "llama", **changes: Any) -> ModelConfig:
    """The same as specx reads it."""
    return model_config(tiny_config(family, **changes).to_dict())


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model with seeded random weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.float32
        )
    return model.eval()


def tiny_tokenizer(
    template: str | None = CHAT_TEMPLATE, *, begins: bool = False, extra: Sequence[AddedToken] = ()
) -> Tokenizer:
    """A byte-level BPE tokenizer of 512 tokens with BOS 0, EOS 1, three roles, a chat template.

    ``begins``: it puts BOS before every text. ``extra``: tokens added after the 512.
    """
    inner = tokenizers.Tokenizer.from_str(_trained_tokenizer())
    inner.add_tokens(list(extra))
    if begins:
        inner.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return Tokenizer(inner, {"bos_token": BOS, "eos_token": EOS}, template, "tiny")


def save_tokenizer(
    directory: Path, template: str | None = CHAT_TEMPLATE, extra: Sequence[AddedToken] = ()
) -> None:
    """Write the files of ``tiny_tokenizer()`` as a checkpoint has them."""
    directory.mkdir(parents=True, exist_ok=True)
    inner = tokenizers.Tokenizer.from_str(_trained_tokenizer())
    inner.add_tokens(list(extra))
    (directory / "tokenizer.json").write_text(inner.to_str(), encoding="utf-8")
    settings = {"bos_token": BOS, "eos_token": EOS}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def save_scripted_pair(
    directory: Path, script: Sequence[int], template: str, extra: Sequence[AddedToken] = ()
) -> PairDirs:
    """A target that says each token of ``script`` after the one before it, whatever else is in the
    text, and a draft that knows it by heart. No token may be in the script twice."""
    pair = PairDirs(directory / "target", directory / "draft")
    model = tiny_model(tiny_config(vocab_size=VOCABULARY + len(extra)))
    weights = model.state_dict()
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            weight.zero_()
    for before, after in itertools.pairwise(script):
        weights["lm_head.weight"][after] = 10 * weights["model.embed_tokens.weight"][before]
    with quiet():
        model.save_pretrained(pair.target)
        model.save_pretrained(pair.draft)
    save_tokenizer(pair.target, template, extra)
    return pair


def save_pair(
    directory: Path,
    family: str = "llama",
    *,
    draft_family: str | None = None,
    draft_weights: DraftWeights = "random",
    draft_tokenizer: bool = False,
    target_changes: dict[str, Any] | None = None,
    draft_changes: dict[str, Any] | None = None,
    shard_size: str = "5GB",
    seed: int = 0,
) -> PairDirs:
    """Write a target and a draft below ``directory`` in Hugging Face format.

    ``draft_weights``: ``random`` is a smaller one-layer model that accepts almost nothing;
    ``target`` repeats the target, so all guesses hold; ``noisy`` is the target disturbed a little.
    """
    pair = PairDirs(directory / "target", directory / "draft")
    target = tiny_model(tiny_config(family, **(target_changes or {})), seed)
    if draft_weights == "random":
        small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
        config = tiny_config(
            draft_family or family, **(small | {"num_key_value_heads": 1} | (draft_changes or {}))
        )
        draft = tiny_model(config, seed + 1)
    else:
        draft = copy.deepcopy(target)
        if draft_weights == "noisy":
            _disturb(draft, seed)
    with quiet():
        target.save_pretrained(pair.target, max_shard_size=shard_size)
        draft.save_pretrained(pair.draft)
    save_tokenizer(pair.target)
    if draft_tokenizer:
        save_tokenizer(pair.draft)
    return pair


def preset_for(pair: PairDirs, overrides: Mapping[str, object] | None = None) -> Preset:
    """A preset that runs ``pair`` in float32; ``overrides`` as ``{"tree.nodes": 8}``."""
    preset = Preset.model_validate(
        {
            "schema": 1,
            "name": "tiny",
            "target": {"repo": str(pair.target), "dtype": "float32"},
            "draft": {"repo": str(pair.draft), "dtype": "float32"},
            "context_tokens": 4096,
            "tree": {"nodes": 16, "depth": 4, "threshold": 0.0, "size": "fixed"},
            "retrieval": {"chunk_tokens": 16, "top_chunks": 4, "recent_chunks": 2},
            "max_new_tokens": 32,
        }
    )
    return preset.with_overrides(overrides or {})


def edit_json(path: Path, **changes: Any) -> None:
    """Replace keys of a JSON file, to damage a config; a value of ``...`` removes its key."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in data.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def story(words: int, seed: int = 0) -> str:
    """English-like text of so many words, with sentences and paragraphs."""
    rng = random.Random(seed)
    vocabulary = _SAMPLE.replace(".", "").replace(",", "").lower().split()
    chosen = [rng.choice(vocabulary) for _ in range(words)]
    for start in range(0, words, 12):
        chosen[start] = chosen[start].capitalize()
        chosen[min(start + 11, words - 1)] += ".\n\n" if start % 60 == 48 else "."
    return " ".join(chosen).replace("\n\n ", "\n\n")


def _disturb(model: PreTrainedModel, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for weight in model.parameters():
            spread = 0.05 * weight.std() if weight.numel() > 1 else 0.0
            weight += torch.randn(weight.shape, generator=noise) * spread


@functools.cache
def _trained_tokenizer() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator([_SAMPLE] * 4, trainer)
    text: str = tokenizer.to_str()
    return text


_SAMPLE = """The harbour was quiet before the storm came over the hills. Nobody in the village had
seen such clouds, and the old keeper of the lighthouse counted the boats twice, because one of them
was missing. He wrote the number into the book, put on his coat and walked down to the water. There
were lights on the other shore, small and yellow, where the children of the teacher were waiting for
their father. The report of that night says that the wind turned at four, that the last boat came
home without its mast, and that nothing else was lost. Later the council bought a new bell for the
tower, and every year in autumn somebody rings it in memory of the long night. What the report does
not say is who lit the second fire on the rocks, although many people have claimed it since then."""
