"""Checkpoints: what specx runs, and that a damaged file is named, never a traceback."""

import json
import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

from specx.checkpoints.config import (
    ModelConfig,
    model_config,
    read_config,
)
from specx.checkpoints.tokenizer import quiet, read_tokenizer
from specx.checkpoints.weights import check_weights
from specx.core.architecture import Rope
from specx.errors import ModelError
from tests.helpers import PairDirs, edit_json, tiny_config


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
        model_config(tiny_config(family).to_dict())
        model_config(tiny_config(family, tie_word_embeddings=True).to_dict())

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
        model_config(tiny_config(rope_parameters=rope | {"rope_theta": 1e4}).to_dict())

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
            (tiny_config(vocab_size=10**12), "vocab_size is 1000000000000: it must be"),
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
            model_config(config.to_dict())
        assert said in str(caught.value)

    def test_old_spellings_in_files_are_understood(self, damaged: Path) -> None:
        """Hub configs of 2023 say rope_scaling and type; they must not slip through."""
        edit_json(damaged / "config.json", rope_parameters=..., rope_scaling={"type": "dynamic"})
        with pytest.raises(ModelError, match="rope type dynamic"):
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
            ({"hidden_size": "wide"}, "config.json: hidden_size is wide"),
            ({"num_attention_heads": 0}, "config.json"),
            ({"hidden_act": "nonsense"}, "config.json: hidden_act is nonsense"),
            ({"hidden_act": "gelu"}, "hidden_act is gelu"),
            ({"rms_norm_eps": "small"}, "rms_norm_eps is small"),
            ({"num_key_value_heads": 0}, "num_key_value_heads is 0: it must be a whole"),
            ({"vocab_size": True}, "vocab_size is True"),
            ({"intermediate_size": ...}, "intermediate_size is None"),
            ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
            ({"rope_parameters": {"rope_type": "linear"}}, "rotation is damaged: factor is None"),
            ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "not one layer's"),
            ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partially rotated heads"),
            ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
            ({"model_type": "rwkv9"}, "models of type rwkv9 are not supported"),
            ({"model_type": ...}, "models of type None"),
            ({"architectures": 7}, "config.json: architectures is 7"),
        ],
    )
    def test_config(self, damaged: Path, changes: dict[str, Any], said: str) -> None:
        edit_json(damaged / "config.json", **changes)
        with pytest.raises(ModelError, match=said):
            examine(damaged)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (
                {"hidden_size": 66, "head_dim": ...},
                "hidden_size 66 is no multiple of num_attention_heads 4",
            ),
            ({"hidden_size": 66, "head_dim": None}, "no multiple of num_attention_heads 4"),
            ({"hidden_size": 66}, "no multiple of num_attention_heads 4"),
            ({"hidden_size": 66, "head_dim": ..., "model_type": "qwen2"}, "as qwen2 models need"),
            (
                {
                    "hidden_size": 66,
                    "head_dim": ...,
                    "model_type": "mistral",
                    "sliding_window": None,
                },
                "head_dim is not given",
            ),
            ({"hidden_size": 60, "head_dim": ...}, "attention heads are 15 wide"),
            ({"head_dim": 17}, "attention heads are 17 wide"),
            ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ],
    )
    def test_heads_that_do_not_add_up_are_told_without_a_weight(
        self, damaged: Path, changes: dict[str, Any], said: str
    ) -> None:
        (damaged / "model.safetensors").unlink()
        family = {"architectures": ...} if "model_type" in changes else {}
        edit_json(damaged / "config.json", **changes, **family)
        with pytest.raises(ModelError) as caught:
            read_config(damaged)
        assert str(caught.value).startswith(f"{damaged / 'config.json'}: ")
        assert said in str(caught.value)
        assert "Class validation" not in str(caught.value)
        assert caught.value.hints == ("take the config.json that the weights were published with",)

    @pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
    def test_a_width_that_is_no_multiple_may_have_heads_of_their_own(
        self, tmp_path: Path, family: str
    ) -> None:
        tiny_config(family, hidden_size=66, head_dim=16).save_pretrained(tmp_path)
        assert read_config(tmp_path).shape.head_dim == 16

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


class TestFacts:
    """What a file says in its own spelling, and what it leaves out."""

    def read(self, directory: Path, **changes: Any) -> ModelConfig:
        edit_json(directory / "config.json", **changes)
        return read_config(directory)

    @pytest.mark.parametrize(
        ("settings", "ids"),
        [
            (None, {1}),  # config.json's own
            ({"eos_token_id": [3, 4]}, {1, 3, 4}),
            ({"eos_token_id": 5}, {1, 5}),
            ({"eos_token_id": None}, {1}),
            ({}, {1}),
        ],
    )
    def test_who_ends_the_text(
        self, damaged: Path, settings: dict[str, Any] | None, ids: set[int]
    ) -> None:
        path = damaged / "generation_config.json"
        path.unlink(missing_ok=True)
        if settings is not None:
            path.write_text(json.dumps(settings))
        assert read_config(damaged).end_tokens == ids

    @pytest.mark.parametrize(
        ("fields", "rope"),
        [
            ({}, Rope(base=10000.0)),
            ({"rope_theta": 5e5}, Rope(base=5e5)),
            ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}}, Rope(base=1e6)),
            (
                {
                    "rope_scaling": {"type": "linear", "factor": 2.0},
                    "rope_parameters": {"rope_theta": 1e6},
                    "rope_theta": 3e4,
                },
                Rope("linear", 3e4, 2.0),
            ),
            (  # trained at the length that the model is said to have
                {"rope_scaling": {"rope_type": "yarn", "factor": 1.0}},
                Rope("yarn", 10000.0, 1.0, 4096),
            ),
            (
                {
                    "rope_scaling": {
                        "type": "yarn",
                        "factor": None,
                        "original_max_position_embeddings": 1024,
                    }
                },
                Rope("yarn", 10000.0, 4.0, 1024, table_factor=0.1 * math.log(4.0) + 1.0),
            ),
        ],
    )
    def test_rotations_in_old_and_new_files(
        self, damaged: Path, fields: dict[str, Any], rope: Rope
    ) -> None:
        found = self.read(damaged, **({"rope_parameters": ..., "rope_theta": ...} | fields))
        assert found.decoder.rope == rope

    def test_old_files_leave_out_what_was_not_there_yet(self, damaged: Path) -> None:
        left_out = dict.fromkeys(
            ("num_key_value_heads", "max_position_embeddings", "head_dim"), ...
        )
        found = self.read(damaged, **left_out)
        assert (found.shape.kv_heads, found.shape.head_dim, found.positions) == (4, 16, 2048)

    def test_other_families_are_not_guessed_at(self, damaged: Path) -> None:
        """transformers takes 32 key heads for a Qwen that does not say."""
        other = {"model_type": "qwen2", "architectures": ..., "num_key_value_heads": ...}
        with pytest.raises(ModelError, match="num_key_value_heads is None"):
            self.read(damaged, **other)
        assert self.read(damaged, num_key_value_heads=None).shape.kv_heads == 4

    def test_a_qwen3_has_its_own_width_of_heads(self, damaged: Path) -> None:
        other = {"model_type": "qwen3", "architectures": ..., "head_dim": ...}
        assert self.read(damaged, **other).shape.head_dim == 128

    def test_a_mistral_that_does_not_say_has_a_window(self, damaged: Path) -> None:
        other = {"model_type": "mistral", "architectures": ..., "sliding_window": ...}
        with pytest.raises(ModelError, match="window of 4096 tokens"):
            self.read(damaged, **other)


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
