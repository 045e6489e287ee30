"""Heads on disk in every published layout, tiny and random, with the exact names of the files.

``LAYOUTS`` says of each layout which tensors it has, under which names, what its config says and
what kind of file it is. ``write_head`` makes one; ``HeadFiles.tensors`` are its tensors under the
names that the core knows, so that a test can tell what a loader should have found.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from specx.checkpoints.config import ModelConfig
from specx.checkpoints.eagle.loader import LoadedHead, load_head
from specx.preset.sections import DraftSpec
from tests.helpers import VOCABULARY, tiny_facts

IDS = "eagle_aux_hidden_state_layer_ids"
LAYERS = 8  # of the target
TARGET_HIDDEN, OWN_WORDS = 64, 200
Dims = dict[str, int]
#: The head's sizes, unlike the target's where they may be; k: the features of EAGLE-3.
DIMS: Dims = {"H": 64, "Ht": 64, "I": 48, "nh": 8, "nkv": 2, "hd": 8, "k": 3, "V": VOCABULARY}

_EAGLE1 = {
    "embed_tokens.weight": "V H",
    "fc.weight": "H 2H",
    "fc.bias": "H",
    "layers.0.self_attn.q_proj.weight": "nh*hd H",
    "layers.0.self_attn.k_proj.weight": "nkv*hd H",
    "layers.0.self_attn.v_proj.weight": "nkv*hd H",
    "layers.0.self_attn.o_proj.weight": "H nh*hd",
    "layers.0.mlp.gate_proj.weight": "I H",
    "layers.0.mlp.up_proj.weight": "I H",
    "layers.0.mlp.down_proj.weight": "H I",
    "layers.0.post_attention_layernorm.weight": "H",
}
_QKV_BIAS = {
    "layers.0.self_attn.q_proj.bias": "nh*hd",
    "layers.0.self_attn.k_proj.bias": "nkv*hd",
    "layers.0.self_attn.v_proj.bias": "nkv*hd",
}
_EAGLE3 = {
    "fc.weight": "H k*Ht",
    "layers.0.self_attn.q_proj.weight": "nh*hd 2H",
    "layers.0.self_attn.k_proj.weight": "nkv*hd 2H",
    "layers.0.self_attn.v_proj.weight": "nkv*hd 2H",
    "layers.0.self_attn.o_proj.weight": "H nh*hd",
    "layers.0.hidden_norm.weight": "H",
    "layers.0.input_layernorm.weight": "H",
    "layers.0.post_attention_layernorm.weight": "H",
    "layers.0.mlp.gate_proj.weight": "I H",
    "layers.0.mlp.up_proj.weight": "I H",
    "layers.0.mlp.down_proj.weight": "H I",
    "norm.weight": "H",
    "lm_head.weight": "Vd H",
    "d2t": "Vd",
    "t2d": "V",
}
_EMBEDDING = {"embed_tokens.weight": "V H"}
_QK_NORM = {f"layers.0.self_attn.{name}_norm.weight": "hd" for name in "qk"}
_FC_NORM = {f"fc_norm.{index}.weight": "Ht" for index in range(3)}


@dataclass(frozen=True)
class Layout:
    """One published form. ``config`` replaces fields of the official config; ... removes one."""

    kind: Literal["eagle", "eagle3"]
    has: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    rename: Callable[[str], str] = str
    dims: Mapping[str, int] = field(default_factory=dict)
    file: Literal["safetensors", "bin", "shards"] = "bin"
    dtype: torch.dtype = torch.float32
    extra: tuple[str, ...] = ()  # tensors that nobody reads
    nests: bool = False  # sizes below transformer_layer_config
    tables: Literal["offsets", "zeros"] = "offsets"


def _midlayer(name: str) -> str:
    return name.replace("layers.0.", "midlayer.")


def _prefixed(name: str) -> str:
    return f"model.{name}"


def _first_speculators(name: str) -> str:
    return name.replace("layers.0.", "transformer.").replace("fc.", "fusion_fc.")


def _without(has: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: shape for name, shape in has.items() if name not in names}


_TABLES = ("d2t", "t2d")
_NO_BIAS = _without(_EAGLE1, "fc.bias")
_ROTARY = ("layers.0.self_attn.rotary_emb.inv_freq",)
_SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "/home/a/model"}},
    "norm_before_residual": False,
    IDS: None,
    "target_hidden_size": None,
}
LAYOUTS: dict[str, Layout] = {
    # num_key_value_heads and the field bias are absent, fc.bias is there
    "vicuna": Layout("eagle", _EAGLE1, {"num_key_value_heads": ...}, dims={"nkv": 8},
                     extra=_ROTARY),
    "llama3": Layout("eagle", _NO_BIAS, {"bias": False, "rope_theta": 500000.0},
                     dtype=torch.float16),
    "qwen2": Layout("eagle", _EAGLE1 | _QKV_BIAS, {"qkv_bias": True}, dims={"nkv": 8},
                    file="safetensors", dtype=torch.bfloat16),
    "sglang": Layout("eagle", _without(_NO_BIAS, "embed_tokens.weight"),
                     {"bias": False, "architectures": ["LlamaForCausalLMEagle"]},
                     rename=_prefixed, file="safetensors"),
    "speculators-1": Layout("eagle", _without(_EAGLE1, "embed_tokens.weight"),
                            {"speculators_model_type": "eagle", "fusion_bias": True},
                            rename=_first_speculators, file="safetensors", nests=True),
    "official": Layout("eagle3", _EAGLE3, rename=_midlayer, dtype=torch.float16),
    # without tables, and with the target's layers in num_hidden_layers
    "vicuna-13b": Layout("eagle3", _without(_EAGLE3, *_TABLES),
                         {"num_hidden_layers": 40, "draft_vocab_size": VOCABULARY},
                         rename=_midlayer, dims={"Vd": VOCABULARY}),
    "zero-tables": Layout("eagle3", _EAGLE3, {"draft_vocab_size": VOCABULARY}, rename=_midlayer,
                          dims={"Vd": VOCABULARY}, tables="zeros"),
    "llama-70b": Layout("eagle3", _EAGLE3 | _EMBEDDING, {"target_hidden_size": TARGET_HIDDEN},
                        rename=_midlayer, dims={"H": 48}),
    "angelslim": Layout("eagle3", _EAGLE3, {"tie_word_embeddings": True, "rope_theta": 1e6,
                        "architectures": ["Eagle3LlamaForCausalLM"]}, file="safetensors"),
    "modelopt": Layout("eagle3", _EAGLE3, {"eagle_config": {IDS: [1, 2, 5],
                       "use_aux_hidden_state": True}}, rename=_prefixed, file="shards"),
    "listed": Layout("eagle3", _EAGLE3, {IDS: [1, 3, 7]}, file="safetensors"),
    "speculators": Layout("eagle3", _EAGLE3 | _EMBEDDING, _SPECULATORS, file="safetensors",
                          extra=("verifier_norm.weight", "verifier_lm_head.weight"), nests=True),
    "speculators-residual": Layout("eagle3", _EAGLE3 | _EMBEDDING,
                                   _SPECULATORS | {"norm_before_residual": True},
                                   file="safetensors", nests=True),
    "speculators-qwen3": Layout("eagle3", _EAGLE3 | _EMBEDDING | _QK_NORM,
                                _SPECULATORS | {"norm_before_residual": True},
                                file="safetensors", nests=True),
    "input-norm": Layout("eagle3", _EAGLE3 | {"input_norm.weight": "k*Ht"},
                         _SPECULATORS | {"norm_before_fc": True}, file="safetensors", nests=True),
    "fc-norm": Layout("eagle3", _EAGLE3 | _FC_NORM, {"fc_norm": True, "norm_output": True},
                      rename=_midlayer, file="safetensors"),
    # one state, named by the preset's override or a list
    "one-feature": Layout("eagle3", _EAGLE3, {IDS: [4]}, dims={"k": 1}, rename=_midlayer),
    "no-lm-head": Layout("eagle3", _without(_EAGLE3, "lm_head.weight", *_TABLES),
                         {"draft_vocab_size": None, "target_hidden_size": None,
                          "architectures": ["LlamaForCausalLMEagle3"]},
                         rename=_midlayer, file="safetensors"),
}  # fmt: skip


@dataclass
class HeadFiles:
    """A head in a directory: its config, and its tensors under the core's names."""

    directory: Path
    layout: Layout
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def write(self) -> "HeadFiles":
        """Put what is here, changed or not, to disk."""
        for old in self.directory.glob("*"):
            old.unlink()
        text = json.dumps(self.config)
        (self.directory / "config.json").write_text(text, encoding="utf-8")
        layout = self.layout
        named = {layout.rename(name): each for name, each in self.tensors.items()}
        named |= {layout.rename(name): torch.ones(4) for name in layout.extra}
        if layout.file == "bin":
            torch.save(named, self.directory / "pytorch_model.bin")
        elif layout.file == "safetensors":
            save_file(named, self.directory / "model.safetensors")
        else:
            self._write_shards(named)
        return self

    def _write_shards(self, named: dict[str, Tensor]) -> None:
        names = sorted(named)
        halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, share in halves.items():
            save_file({name: named[name] for name in share}, self.directory / file)
        placed = {name: file for file, share in halves.items() for name in share}
        index = self.directory / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": placed}), encoding="utf-8")

    def load(self, target: ModelConfig | None = None, **spec: Any) -> LoadedHead:
        """As a preset with these fields of ``draft`` would load it."""
        fields = {"kind": self.layout.kind, "repo": str(self.directory)} | spec
        target = target_config() if target is None else target
        return load_head(self.directory, DraftSpec(**fields), target, VOCABULARY)


def target_config(**changes: Any) -> ModelConfig:
    """A target that every layout fits."""
    return tiny_facts(**({"num_hidden_layers": LAYERS} | changes))


def write_head(directory: Path, name: str, seed: int = 0) -> HeadFiles:
    """A random head in the layout ``name``."""
    layout = LAYOUTS[name]
    dims = DIMS | {"Vd": OWN_WORDS} | dict(layout.dims)
    generator = torch.Generator().manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        tensor: _random(tensor, _shape(shape, dims), generator).to(layout.dtype)
        for tensor, shape in layout.has.items()
        if tensor not in _TABLES
    }
    if "d2t" in layout.has:
        tensors |= _tables(layout.tables, dims, generator)
    return HeadFiles(directory, layout, _config(layout, dims), tensors).write()


def _shape(words: str, dims: Dims) -> tuple[int, ...]:
    sizes = dims | {"2H": 2 * dims["H"]}
    shape = []
    for word in words.split():
        size = 1
        for factor in word.split("*"):
            size *= sizes[factor]
        shape.append(size)
    return tuple(shape)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.3 * drawn
    is_wide = name.startswith(("embed_tokens", "lm_head"))
    return drawn * (1.5 / shape[-1] ** 0.5) * (4 if is_wide else 1)


def _tables(kind: str, dims: Dims, generator: torch.Generator) -> dict[str, Tensor]:
    rows, own = dims["V"], dims["Vd"]
    chosen = torch.randperm(rows, generator=generator)[:own].sort().values
    if kind == "zeros":
        chosen = torch.arange(own)
    marks = torch.zeros(rows, dtype=torch.bool)
    marks[chosen] = True
    return {"d2t": chosen - torch.arange(own), "t2d": marks}


def _config(layout: Layout, dims: Dims) -> dict[str, Any]:
    """The official config's fields, then the layout's own."""
    layer: dict[str, Any] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": dims["H"],
        "intermediate_size": dims["I"],
        "num_attention_heads": dims["nh"],
        "num_key_value_heads": dims["nkv"],
        "num_hidden_layers": 1,
        "vocab_size": dims["V"],
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    }
    top: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    if layout.kind == "eagle3":
        top["draft_vocab_size"] = dims["Vd"]
    if layout.nests:
        top["transformer_layer_config"] = layer
        top |= layout.config
    else:
        top |= layer | dict(layout.config)
    return {key: value for key, value in top.items() if value is not ...}
