"""Checkpoints: what specx runs, and that a damaged file is named, never a traceback."""

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

from specx.checkpoint import (
    check_architecture,
    check_template,
    check_weights,
    quiet,
    read_config,
    read_tokenizer,
)
from specx.errors import ModelError
from tests.helpers import PairDirs, edit_json, save_pair, tiny_config, tiny_tokenizer


@pytest.fixture
def damaged(tiny_pair: PairDirs, tmp_path: Path) -> Path:
    """A copy of the tiny target to be damaged."""
    return Path(shutil.copytree(tiny_pair.target, tmp_path / "model"))


def examine(directory: Path) -> None:
    """Everything that is looked at before weights are read."""
    config = read_config(directory)
    read_tokenizer(directory)
    check_weights(directory, config)


class TestArchitectures:
    def test_the_four_families_pass(self, family: str) -> None:
        check_architecture(tiny_config(family))
        check_architecture(tiny_config(family, tie_word_embeddings=True))

    @pytest.mark.parametrize(
        "rope",
        [
            {"rope_type": "linear", "factor": 2.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        ],
    )
    def test_fixed_rotations_pass(self, rope: dict[str, Any]) -> None:
        check_architecture(tiny_config(rope_parameters=rope | {"rope_theta": 1e4}))

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            (tiny_config("mistral", sliding_window=4096), "mistral with a sliding window of 4096"),
            (
                tiny_config("qwen2", use_sliding_window=True, max_window_layers=1),
                "qwen2 with a sliding window of 4096",
            ),
            (
                tiny_config(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
                "rope type dynamic is not supported: its rotation changes with the length",
            ),
            (tiny_config(architectures=["LlamaForSequenceClassification"]), "LlamaForCausalLM is"),
            (tiny_config(architectures=["LlamaForCausalLMEagle3"]), "is not supported"),
            (tiny_config(auto_map={"AutoModel": "x.Y"}), "asks for code of its own"),
            (tiny_config(quantization_config={"quant_method": "gptq"}), "quantised"),
            (tiny_config(vocab_size=10**12), "vocab_size = 1000000000000 is out of range"),
            (tiny_config(num_hidden_layers=10**6), "num_hidden_layers"),
            (tiny_config(num_key_value_heads=3), "4 attention heads cannot share 3"),
            (AutoConfig.for_model("gemma2"), "gemma2 are not supported: its layers alternate"),
            (AutoConfig.for_model("gpt_neox"), "specx runs llama, mistral, qwen2, qwen3"),
        ],
    )
    def test_the_others_are_refused_with_the_reason(
        self, config: PreTrainedConfig, said: str
    ) -> None:
        with pytest.raises(ModelError) as caught:
            check_architecture(config)
        assert said in str(caught.value)

    def test_old_spellings_in_files_are_understood(self, damaged: Path) -> None:
        """Hub configs of 2023 say rope_scaling and type; they must not slip through."""
        edit_json(damaged / "config.json", rope_parameters=..., rope_scaling={"type": "dynamic"})
        with pytest.raises(ModelError, match=r"rope type dynamic|does not hold together"):
            read_config(damaged)

    def test_code_in_a_checkpoint_is_never_run(self, damaged: Path) -> None:
        (damaged / "evil.py").write_text("raise SystemExit('it ran')")
        edit_json(damaged / "config.json", auto_map={"AutoConfig": "evil.C"}, model_type="evil")
        with pytest.raises(ModelError, match="runs no code that comes with a model"):
            read_config(damaged)


class TestDamage:
    """One damaged file each; the message names it."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"hidden_size": 128}, "config.json asks|the config asks for 512x128"),
            ({"vocab_size": 600}, "has the shape 512x64, and the config asks for 600x64"),
            ({"num_hidden_layers": 3}, "9 tensors are not there"),
            ({"num_hidden_layers": 1}, "model.layers.1.* has no place in it"),
            ({"num_key_value_heads": 4}, "k_proj.weight has the shape 32x64"),
            ({"hidden_size": "wide"}, "config.json does not hold together"),
            ({"num_attention_heads": 0}, "config.json"),
            ({"hidden_act": "nonsense"}, "config.json does not hold together"),
            ({"model_type": "rwkv9"}, "models of type rwkv9 are not supported"),
            ({"model_type": ...}, "models of type None"),
            ({"architectures": 7}, "config.json does not hold together"),
        ],
    )
    def test_config(self, damaged: Path, changes: dict[str, Any], said: str) -> None:
        edit_json(damaged / "config.json", **changes)
        with pytest.raises(ModelError, match=said):
            examine(damaged)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("config.json", "is no checkpoint: config.json is missing"),
            ("tokenizer.json", "tokenizer.json is missing"),
            ("model.safetensors", "has no model.safetensors"),
        ],
    )
    def test_missing_files(self, damaged: Path, name: str, said: str) -> None:
        (damaged / name).unlink()
        with pytest.raises(ModelError, match=said):
            examine(damaged)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
    def test_broken_json(self, damaged: Path, name: str, content: bytes) -> None:
        (damaged / name).write_bytes(content)
        with pytest.raises(ModelError, match=name.partition(".")[0].partition("_")[0]):
            examine(damaged)

    def test_end_tokens_are_not_lost_silently(self, damaged: Path) -> None:
        """transformers skips a broken generation_config.json, and the text never ended."""
        for content in ("{", '{"eos_token_id": "</s>"}'):
            (damaged / "generation_config.json").write_text(content)
            with pytest.raises(ModelError, match=r"generation_config.json is damaged"):
                examine(damaged)

    def test_chat_template(self, damaged: Path) -> None:
        (damaged / "chat_template.jinja").write_text("{% for message in messages %}")
        with pytest.raises(ModelError, match="chat template") as caught:
            check_template(read_tokenizer(damaged))
        assert "prompt.template=raw" in caught.value.hints[0]
        check_template(tiny_tokenizer())


class TestWeights:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda raw: raw[:-1], "its header describes"),
            (lambda raw: raw + b"\0", "its header describes"),
            (lambda raw: raw[:200], "cut off"),
            (lambda raw: raw[:5], "cut off"),
            (lambda raw: b"", "cut off"),
            (lambda raw: b"\xff" * len(raw), "cut off or no safetensors file"),
            (lambda raw: raw[:8] + b"{" * 300 + raw[308:], "its header is unreadable"),
            (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ],
    )
    def test_damaged_files(
        self, damaged: Path, change: Callable[[bytes], bytes], said: str
    ) -> None:
        path = damaged / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ModelError, match=said) as caught:
            examine(damaged)
        assert "model.safetensors" in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"dtype": "F8_E4M3"}, "is of type F8_E4M3"),
            ({"dtype": "F16"}, "wrong number of bytes"),
            ({"shape": [-512, -64]}, "has the shape|wrong number"),
            ({"shape": [512.5, 64]}, "its header is unreadable"),
            ({"data_offsets": [0]}, "its header is unreadable"),
            ({"data_offsets": [0, 10**15]}, "its header describes"),
        ],
    )
    def test_tampered_headers(self, damaged: Path, change: dict[str, Any], said: str) -> None:
        path = damaged / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header["model.embed_tokens.weight"] |= change
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])
        with pytest.raises(ModelError, match=said):
            examine(damaged)

    def test_shards(self, tmp_path: Path) -> None:
        """Half a download must not load as half a model."""
        pair = save_pair(tmp_path, shard_size="100KB")
        index = pair.target / "model.safetensors.index.json"
        examine(pair.target)
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        assert len(shards) > 1
        (pair.target / shards[1]).unlink()
        with pytest.raises(ModelError, match=f"the shard {shards[1]} is missing"):
            examine(pair.target)
        wrong: list[Any] = [{"a": "../draft/model.safetensors"}, {}, [], {"a": 1}]
        for weight_map in wrong:
            edit_json(index, weight_map=weight_map)
            with pytest.raises(ModelError):
                examine(pair.target)

    def test_pickled_weights_are_not_opened(self, damaged: Path) -> None:
        (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
        with pytest.raises(ModelError, match="pickles, which specx does not read"):
            examine(damaged)

    def test_tied_models_need_no_output_weights(self, tmp_path: Path) -> None:
        pair = save_pair(tmp_path, "qwen2", target_changes={"tie_word_embeddings": True})
        examine(pair.target)


def test_quiet_restores_what_it_changes() -> None:
    from transformers.utils import logging as transformers_logging

    before = (logging.getLogger("transformers").level, transformers_logging.get_verbosity())
    with quiet():
        assert not transformers_logging.is_progress_bar_enabled()
        warnings.warn("not shown", stacklevel=1)
    assert transformers_logging.is_progress_bar_enabled()
    assert before == (
        logging.getLogger("transformers").level,
        transformers_logging.get_verbosity(),
    )
