"""From a preset to a loaded pair: finding, refusing, loading, all from directories."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from specx.checkpoints import load as hub
from specx.core.decoder import Model
from specx.errors import (
    ModelError,
    ModelUnavailableError,
    PairError,
    ResourceError,
    UsageError,
)
from specx.preset.preset import Preset
from tests.helpers import PairDirs, edit_json, preset_for, save_pair, tiny_config, tiny_tokenizer


def load(preset: Preset, device: str = "cpu", dtype: str = "auto") -> hub.ModelPair:
    return hub.load_pair(preset, device=device, dtype=dtype, offline=True)


class TestLoading:
    def test_every_family(self, tiny_pair_of: Callable[[str], PairDirs], family: str) -> None:
        pair = load(preset_for(tiny_pair_of(family)))
        assert pair.draft is not None
        assert pair.tokenizer.chat_template
        for model in (pair.target, pair.draft):
            assert model.config.model_type == family
            assert not model.training
            assert model.dtype == torch.float32
            assert model.device.type == "cpu"
            assert not any(p.requires_grad for p in model.parameters())
        tokens = torch.tensor([pair.tokenizer.encode("The harbour was quiet.")])
        assert pair.target(tokens).logits.shape == (1, tokens.shape[1], 512)

    def test_the_weights_are_those_on_disk(self, tiny_pair: PairDirs) -> None:
        from safetensors.torch import load_file

        model = load(preset_for(tiny_pair)).target
        for name, tensor in load_file(tiny_pair.target / "model.safetensors").items():
            assert torch.equal(model.state_dict()[name], tensor)

    def test_two_models_never_share_a_config(self, tiny_pair: PairDirs) -> None:
        """transformers keeps the attention's name on it: switching one switched both."""
        same = PairDirs(tiny_pair.target, tiny_pair.target)
        first, second = load(preset_for(same)), load(preset_for(same))
        assert first.draft is not None
        configs = {id(m.config) for m in (first.target, first.draft, second.target)}
        assert len(configs) == 3

    def test_nothing_is_printed(
        self, tiny_pair: PairDirs, capfd: pytest.CaptureFixture[str]
    ) -> None:
        load(preset_for(tiny_pair))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("kind", ["none", "lookup"])
    def test_other_drafts_have_no_weights(self, tiny_pair: PairDirs, kind: str) -> None:
        assert load(preset_for(tiny_pair, {"draft.kind": kind})).draft is None

    def test_dtypes_by_name(self, tiny_pair: PairDirs) -> None:
        pair = load(preset_for(tiny_pair), dtype="bfloat16")
        assert pair.draft is not None
        assert pair.target.dtype == pair.draft.dtype == torch.bfloat16

    def test_bytes_count_tied_weights_once(self, tmp_path: Path) -> None:
        tied = save_pair(tmp_path, target_changes={"tie_word_embeddings": True})
        model = load(preset_for(tied)).target
        on_disk = (tied.target / "model.safetensors").stat().st_size
        assert 0 <= on_disk - Model(model, pack=False).weights_bytes < 4096


class TestDamagedPairs:
    def test_weights_are_checked_before_any_is_read(
        self, own_pair: PairDirs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A truncated 15 GB download must be reported in a second, not after a minute."""
        monkeypatch.setattr(hub, "_load_model", lambda *_: pytest.fail("weights were read"))
        path = own_pair.draft / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ModelError, match=r"draft/model.safetensors is damaged"):
            load(preset_for(own_pair))

    def test_a_broken_template_matters_only_where_it_is_used(self, own_pair: PairDirs) -> None:
        (own_pair.target / "chat_template.jinja").write_text("{{ nonsense(")
        with pytest.raises(ModelError, match="chat template"):
            load(preset_for(own_pair))
        assert load(preset_for(own_pair, {"prompt.template": "raw"})).draft is not None

    def test_no_memory_is_not_a_broken_model(
        self, tiny_pair: PairDirs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_memory(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(torch.nn.Module, "to", no_memory)
        with pytest.raises(ResourceError, match="no memory on cpu"):
            load(preset_for(tiny_pair))


class TestPairs:
    def find(self, pair: PairDirs) -> hub.PairFiles:
        return hub.find_pair(preset_for(pair), offline=True)

    def test_a_draft_without_a_tokenizer_shares_the_targets(self, own_pair: PairDirs) -> None:
        assert self.find(own_pair).draft_dir == own_pair.draft
        edit_json(own_pair.draft / "config.json", vocab_size=500)
        with pytest.raises(PairError, match="the target has 512 rows, the draft 500"):
            self.find(own_pair)

    def test_equal_tokenizers_may_have_different_padding(self, tmp_path: Path) -> None:
        """Qwen2.5 has 151936 rows in small models and 152064 in large ones."""
        wide = {"vocab_size": 640}
        for i, changes in enumerate(({"target_changes": wide}, {"draft_changes": wide})):
            pair = save_pair(tmp_path / str(i), draft_tokenizer=True, **changes)  # type: ignore
            assert load(preset_for(pair)).draft is not None

    def test_names_the_first_token_that_differs(self, tmp_path: Path) -> None:
        pair = save_pair(tmp_path, draft_tokenizer=True)
        path = pair.draft / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = data["model"]["vocab"]
        texts = {number: text for text, number in vocabulary.items()}
        vocabulary[texts[300]], vocabulary[texts[301]] = 301, 300
        path.write_text(json.dumps(data), encoding="utf-8")
        with pytest.raises(PairError) as caught:
            self.find(pair)
        assert caught.value.exit_code == 5
        assert "2 of 512 differ" in caught.value.reason
        assert f"token 300 is {texts[300]!r} to the target and {texts[301]!r}" in str(caught.value)

    def test_a_draft_with_too_few_rows(self) -> None:
        """An embedding lookup beyond the last row would fail in the middle of a text."""
        tokenizer = tiny_tokenizer()
        with pytest.raises(PairError, match=r"token 500, '.+', is unknown to the draft"):
            hub.check_pair(tokenizer, tokenizer, tiny_config(), tiny_config(vocab_size=500))
        with pytest.raises(ModelError, match=r"token 500, .* is beyond the 500 rows"):
            hub.check_pair(tokenizer, None, *[tiny_config(vocab_size=500)] * 2)

    def test_a_special_token_without_a_row_is_harmless(self) -> None:
        """Some fine-tunes add <pad> to the tokenizer alone."""
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        hub.check_pair(tokenizer, tiny_tokenizer(), tiny_config(), tiny_config())


class TestDevices:
    def test_automatic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert hub.choose_device("auto") == "cuda"
        assert hub.choose_device("CUDA:1") == "cuda:1"
        with pytest.raises(UsageError, match="torch sees 2 CUDA devices"):
            hub.choose_device("cuda:2")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert hub.choose_device("auto") == hub.choose_device("cpu") == "cpu"
        with pytest.raises(UsageError, match="there is no device cuda"):
            hub.choose_device("cuda")

    @pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:1", "", "cuda:", "meta"])
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(UsageError):
            hub.choose_device(name)

    def test_dtypes(self) -> None:
        """float32 on a CPU is what makes the text provably equal; a GPU wants half precision."""
        assert hub.choose_dtype("auto", "float16", "cpu") == torch.float32
        assert hub.choose_dtype("auto", "float32", "cuda:0") == torch.float16
        assert hub.choose_dtype("auto", "bfloat16", "cuda") == torch.bfloat16
        assert hub.choose_dtype("float32", "float16", "cuda") == torch.float32
        with pytest.raises(UsageError, match="'fp16' is not a dtype"):
            hub.choose_dtype("fp16", "auto", "cpu")


class TestDirectories:
    def test_the_bundled_pair_is_found_beside_the_code(self) -> None:
        expected = Path(hub.__file__).parent.parent / "pocket" / "target"
        if not (expected / "config.json").is_file():
            with pytest.raises(ModelUnavailableError, match="not part of this installation"):
                hub.resolve("pocket/target", None, offline=True)
        else:
            assert hub.resolve("pocket/target", None, offline=True) == expected

    def test_a_directory_is_used_as_it_is(self, tmp_path: Path) -> None:
        assert hub.resolve(str(tmp_path), "any", offline=False) == tmp_path

    @pytest.mark.parametrize("repo", ["./nothing", "/no/such/model", "../x", "a/b/c", "~/none"])
    def test_a_path_that_is_none_never_reaches_the_hub(self, repo: str) -> None:
        with pytest.raises(ModelUnavailableError, match="there is no such directory"):
            hub.resolve(repo, None, offline=False)


@pytest.mark.parametrize(
    ("ends", "expected"), [(None, {1}), (7, {1, 7}), ([9, 1], {1, 9})], ids=str
)
def test_end_tokens_are_the_checkpoints_and_the_tokenizers(
    tiny_pair: PairDirs, ends: int | list[int] | None, expected: set[int]
) -> None:
    pair = hub.load_pair(preset_for(tiny_pair), device="cpu", dtype="float32", offline=True)
    pair.target.generation_config = GenerationConfig(eos_token_id=ends)
    assert hub.end_tokens(pair) == expected
    pair.target.generation_config = None
    assert hub.end_tokens(pair) == {1}
