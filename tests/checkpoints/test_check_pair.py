"""Pairs checked from configs and tokenizers alone: all that are shipped, every way to differ."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specx.checkpoints import check_pair as paircheck
from specx.checkpoints import load as hub
from specx.checkpoints.check_pair import Locate, check_head, examine, outcomes, recorded
from specx.checkpoints.config import model_config
from specx.checkpoints.tokenizer import Tokenizer, read_tokenizer
from specx.errors import ModelError, PairError
from specx.preset.preset import Preset, available_presets, load_preset
from specx.prompts import Prompter
from tests import recorded as facts
from tests.helpers import PairDirs, edit_json, preset_for, save_pair

SHIPPED = [entry.name for entry in available_presets() if entry.origin == "shipped"]


@pytest.fixture(scope="module", autouse=True)
def tokenizers_read_once() -> Iterator[None]:
    """Links to one file are one tokenizer; 150,000 tokens take half a second to read."""
    known: dict[tuple[int, int], Tokenizer] = {}

    def read(directory: Path) -> Tokenizer:
        file = (directory / "tokenizer.json").stat()
        key = (file.st_ino, file.st_mtime_ns)
        if key not in known:
            known[key] = read_tokenizer(directory)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paircheck, "read_tokenizer", read)
        yield


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return facts.build(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def own_copy(repositories: Path, tmp_path: Path) -> Path:
    """The configs once more, for a test to change; tokenizers are links."""
    for folder in repositories.iterdir():
        (tmp_path / folder.name).mkdir()
        for file in folder.iterdir():
            if file.name == "config.json":
                shutil.copy(file, tmp_path / folder.name)
            elif file.is_file():
                (tmp_path / folder.name / file.name).hardlink_to(file)
    return tmp_path


def nowhere(repo: str, revision: str | None) -> Path:
    return hub.resolve(repo, revision, offline=True)


def here(directory: Path) -> Locate:
    return recorded(directory, nowhere)


def changed(directory: Path, repo: str, **changes: Any) -> Path:
    edit_json(directory / repo.replace("/", "__") / "config.json", **changes)
    return directory


class TestShipped:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_every_preset_fits_what_was_recorded(self, repositories: Path, name: str) -> None:
        found = outcomes(load_preset(name), here(repositories))
        problems = [f"{o.check.name}: {o.problem or o.doubt}" for o in found]
        assert [each for each in problems if not each.endswith(": ")] == []
        assert found[-1].check.name == "draft context"

    @pytest.mark.parametrize("name", SHIPPED)
    def test_a_prompt_begins_with_bos_once(self, repositories: Path, name: str) -> None:
        """A template that writes BOS and a tokenizer that adds it are two ways to one token."""
        preset = load_preset(name)
        tokenizer = paircheck.read_tokenizer(here(repositories)(preset.target.repo, None))
        tokens = Prompter(tokenizer, preset.prompt).prompt("w10 w11", "w12").tokens
        begins = tokenizer.begin_ids
        assert list(tokens[: len(begins)]) == begins
        assert tokens[:2].count(tokenizer.bos_id) <= 1

    def test_qwens_padding_rows_are_no_disagreement(self, repositories: Path) -> None:
        files = examine(load_preset("qwen2.5-7b"), here(repositories))
        assert files.draft_config is not None
        rows = (files.target_config.shape.vocabulary, files.draft_config.shape.vocabulary)
        assert rows == (152064, 151936)
        assert len(files.tokenizer) == 151665

    def test_a_base_model_is_not_an_instruct_models_draft(self, repositories: Path) -> None:
        """The same number of rows, other special tokens: sizes alone would let it pass."""
        other = {"target.repo": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"}
        preset = load_preset("llama3.1-8b", other)
        with pytest.raises(PairError, match="token 128000 is"):
            examine(preset, here(repositories))


class TestContext:
    def test_a_targets_limit_is_its_scaled_one(self, repositories: Path) -> None:
        for name in ("vicuna-7b", "longchat-7b"):  # factor 4 over 4096, factor 8 over 2048
            examine(load_preset(name, {"context_tokens": 16384}), here(repositories))
            with pytest.raises(PairError, match=r"built for 16,384 positions.*16,385"):
                examine(load_preset(name, {"context_tokens": 16385}), here(repositories))

    def test_a_drafts_window_cannot_be_longer_than_the_draft(self, repositories: Path) -> None:
        preset = load_preset("vicuna-7b", {"draft.trained_context_tokens": 4096})
        with pytest.raises(PairError, match=r"vicuna-68m was built for 2,048 positions.*4,096"):
            examine(preset, here(repositories))

    def test_a_heads_limit_counts_its_yarn(self, own_copy: Path) -> None:
        repo = "TanBaby/EAGLE3-Qwen3-8B-YARN-64K"
        directory = changed(own_copy, repo, rope_scaling=None, max_position_embeddings=2048)
        with pytest.raises(PairError, match=r"built for 2,048 positions.*32,768"):
            examine(load_preset("qwen3-8b-eagle3-yarn"), here(directory))
        stretched = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 2048}
        scaling = {f"draft.head.rope_scaling.{key}": value for key, value in stretched.items()}
        examine(load_preset("qwen3-8b-eagle3-yarn", scaling), here(directory))


class TestHeads:
    def check(
        self, config: dict[str, Any], preset: str = "llama3.1-8b-eagle3", **overrides: Any
    ) -> None:
        path = facts.CONFIGS / "meta-llama__Llama-3.1-8B-Instruct" / "config.json"
        target = model_config(json.loads(path.read_text(encoding="utf-8")))
        check_head(config, target, load_preset(preset, overrides))

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        path = facts.CONFIGS / "yuhuili__EAGLE3-LLaMA3.1-Instruct-8B" / "config.json"
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return data

    def test_the_published_one_fits(self, config: dict[str, Any]) -> None:
        self.check(config)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"hidden_size": 2560}, "2560 wide, the target's are 4096 wide"),
            ({"target_hidden_size": 8192}, "8192 wide, the target's are 4096 wide"),
            ({"vocab_size": 151936}, "the head has 151936 rows, the target 128256"),
            ({"draft_vocab_size": 200000}, "200000 logits.*128256 rows"),
            ({"eagle_aux_hidden_state_layer_ids": [2, 16, 32]}, "layer 32.*32 layers"),
            ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 40, 60]}}, "layer 60"),
            ({"draft_vocab_size": None, "architectures": ["LlamaForCausalLMEagle"]}, "kind eagle "),
            ({"speculators_model_type": "peagle"}, "a P-EAGLE head"),
            ({"speculators_model_type": "dflash"}, "a DFlash drafter"),
            ({"architectures": ["MedusaModel"]}, "Medusa heads"),
            ({"medusa_num_heads": 4}, "Medusa heads"),
        ],
    )
    def test_names_what_does_not_fit(
        self, config: dict[str, Any], changes: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(PairError, match=said) as caught:
            self.check(config | changes)
        assert caught.value.exit_code == 5

    def test_layers_that_a_preset_names_come_first(self, config: dict[str, Any]) -> None:
        wrong = config | {"eagle_aux_hidden_state_layer_ids": [90, 91, 92]}
        self.check(wrong, **{"draft.head.feature_layers": "2,16,29"})
        with pytest.raises(PairError, match="layer 33"):
            self.check(config, **{"draft.head.feature_layers": "[2, 16, 33]"})

    def test_an_eagle_1_preset_refuses_an_eagle_3_head(self, config: dict[str, Any]) -> None:
        with pytest.raises(PairError, match=r"kind eagle3 .EAGLE-3.: the preset says eagle"):
            self.check(config, "llama3.1-8b-eagle")

    @pytest.mark.parametrize("value", [None, "4096", 4096.0, True, -1, 0, 1 << 40, [], {}])
    def test_a_damaged_size_is_named(self, config: dict[str, Any], value: object) -> None:
        with pytest.raises(ModelError, match="hidden_size is"):
            self.check(config | {"hidden_size": value})

    def test_a_token_that_the_head_has_no_row_for(self, own_copy: Path) -> None:
        directory = changed(own_copy, "AngelSlim/Qwen3-8B_eagle3", vocab_size=151000)
        with pytest.raises(PairError, match=r"151000 rows.*token 151000"):
            examine(load_preset("qwen3-8b-eagle3"), here(directory))

    def test_a_shape_that_is_not_true_is_a_doubt(self, own_copy: Path) -> None:
        """It is what stand-in weights are made of; the real head may still run."""
        directory = changed(own_copy, "AngelSlim/Qwen3-8B_eagle3", num_key_value_heads=4)
        found = outcomes(load_preset("qwen3-8b-eagle3"), here(directory))
        assert [o.problem for o in found] == [None] * len(found)
        assert found[-1].doubt == "draft.head_shape: kv_heads is 4, not 8"


class TestOwnPairs:
    def test_a_token_order_of_its_own(self, tmp_path: Path) -> None:
        """More rows on the target's side are padding; a real token there is not."""
        pair = save_pair(tmp_path, draft_tokenizer=True, target_changes={"vocab_size": 640})
        assert self.problem(pair) == ""
        path = pair.target / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["added_tokens"].append(data["added_tokens"][-1] | {"id": 512, "content": "<|new|>"})
        path.write_text(json.dumps(data), encoding="utf-8")
        assert "token 512, '<|new|>', is unknown to the draft" in self.problem(pair)

    def test_a_damaged_draft_config_is_the_last_check(self, own_pair: PairDirs) -> None:
        edit_json(own_pair.draft / "config.json", hidden_size="wide")
        found = outcomes(preset_for(own_pair), nowhere)
        assert found[-1].check.name == "draft config"
        assert isinstance(found[-1].problem, ModelError)

    def test_a_pair_without_a_draft_ends_at_the_target(self, tiny_pair: PairDirs) -> None:
        found = outcomes(preset_for(tiny_pair, {"draft.kind": "lookup"}), nowhere)
        assert found[-1].check.name == "target context"

    def problem(self, pair: PairDirs) -> str:
        preset: Preset = preset_for(pair)
        return " ".join(str(o.problem) for o in outcomes(preset, nowhere) if o.problem)
