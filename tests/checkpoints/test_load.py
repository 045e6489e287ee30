"""From a preset to a loaded pair: finding, refusing, loading, all from directories."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from specx.checkpoints import load as hub
from specx.checkpoints.check_pair import check_pair
from specx.core.decoder import Model
from specx.errors import (
    ModelError,
    ModelUnavailableError,
    PairError,
    ResourceError,
    UsageError,
)
from specx.preset.preset import Preset
from tests.helpers import PairDirs, edit_json, preset_for, save_pair, tiny_facts, tiny_tokenizer


def load(preset: Preset, device: str = "cpu", dtype: str = "auto") -> hub.ModelPair:
    return hub.load_pair(preset, device=device, dtype=dtype, offline=True)


class TestLoading:
    def test_every_family(self, tiny_pair_of: Callable[[str], PairDirs], family: str) -> None:
        pair = load(preset_for(tiny_pair_of(family)))
        assert pair.draft is not None
        assert pair.tokenizer.template is not None
        for loaded in (pair.target, pair.draft):
            assert isinstance(loaded, hub.LoadedModel)
            assert loaded.config.family == family
            model = Model(loaded.config.decoder, loaded.tensors)
            assert (model.dtype, model.device.type) == (torch.float32, "cpu")

    def test_the_weights_are_those_on_disk(self, tiny_pair: PairDirs) -> None:
        tensors = load(preset_for(tiny_pair)).target.separate()
        on_disk = load_file(tiny_pair.target / "model.safetensors")
        assert tensors.keys() == {name.removeprefix("model.") for name in on_disk}
        for name, tensor in on_disk.items():
            assert torch.equal(tensors[name.removeprefix("model.")], tensor)

    @pytest.mark.parametrize("case", ["both", "different", "head alone"])
    def test_a_tied_model_may_bring_its_output_matrix(self, tmp_path: Path, case: str) -> None:
        pair = save_pair(tmp_path, target_changes={"tie_word_embeddings": True})
        path = pair.target / "model.safetensors"
        tensors = load_file(path)
        table = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"] = table + (case == "different")
        if case == "head alone":
            del tensors["model.embed_tokens.weight"]
        save_file(tensors, path)
        loaded = load(preset_for(pair))
        found = loaded.target.tensors
        assert torch.equal(found["embed_tokens.weight"], table)
        assert len(loaded.notes) == (case == "different"), "what contradicts its config is said"
        assert ("lm_head.weight" in found) == (case == "different")

    def test_a_tied_model_needs_one_of_both(self, tmp_path: Path) -> None:
        pair = save_pair(tmp_path, target_changes={"tie_word_embeddings": True})
        path = pair.target / "model.safetensors"
        tensors = load_file(path)
        del tensors["model.embed_tokens.weight"]
        save_file(tensors, path)
        with pytest.raises(ModelError, match=r"the first is lm_head.weight"):
            load(preset_for(pair))

    def test_a_lora_adapter_beside_the_weights_is_said(self, own_pair: PairDirs) -> None:
        """Regression: the text was the base model's without a word, or, with peft installed,
        there was none."""
        (own_pair.draft / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (note,) = load(preset_for(own_pair)).notes
        assert "LoRA adapter beside its weights" in note

    def test_a_lora_adapter_alone_is_no_model(self, own_pair: PairDirs) -> None:
        (own_pair.target / "config.json").unlink()
        adapter = own_pair.target / "adapter_config.json"
        adapter.write_text('{"base_model_name_or_path": "owner/base"}')
        with pytest.raises(ModelError, match=r"is a LoRA adapter.*owner/base"):
            load(preset_for(own_pair))

    def test_frequencies_in_old_files_are_not_read(self, own_pair: PairDirs) -> None:
        path = own_pair.target / "model.safetensors"
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
        save_file(load_file(path) | extra, path)
        assert len(load(preset_for(own_pair)).target.tensors) == 15

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
        for model in (pair.target, pair.draft):
            assert isinstance(model, hub.LoadedModel)
            assert {each.dtype for each in model.tensors.values()} == {torch.bfloat16}

    def test_there_is_no_second_copy_in_memory(self, tmp_path: Path) -> None:
        """Of a file of 130 MB what is joined is written once, and the rest stays mapped."""
        big = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 4096}
        pair = save_pair(tmp_path, target_changes=big)
        script = (
            "import resource, torch, specx.checkpoints.weights as w\n"
            "from specx.checkpoints.config import read_config\n"
            "import specx.core.joined\n"
            "from pathlib import Path\n"
            "def anonymous():\n"
            "    text = Path('/proc/self/status').read_text()\n"
            "    return int(text.split('RssAnon:')[1].split()[0]) / 1024\n"
            f"directory = Path({str(pair.target)!r})\n"
            "config, before = read_config(directory), anonymous()\n"
            "held = w.load_weights(directory, config, 'cpu', torch.float32)\n"
            "print(anonymous() - before, sum(t.nbytes for t in held.values()) / 2**20)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        grown, size = map(float, done.stdout.split())
        assert size > 100
        assert grown < 0.6 * size, "tables and output projections are mapped, not copied"


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

        monkeypatch.setattr("specx.core.joined.join", no_memory)
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
            check_pair(tokenizer, tokenizer, tiny_facts(), tiny_facts(vocab_size=500))
        with pytest.raises(ModelError, match=r"token 500, .* is beyond the 500 rows"):
            check_pair(tokenizer, None, *[tiny_facts(vocab_size=500)] * 2)

    def test_a_special_token_without_a_row_is_harmless(self) -> None:
        """Some fine-tunes add <pad> to the tokenizer alone."""
        tokenizer = tiny_tokenizer(extra=[AddedToken("<pad>", special=True)])
        check_pair(tokenizer, tiny_tokenizer(), tiny_facts(), tiny_facts())


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
    own_pair: PairDirs, ends: int | list[int] | None, expected: set[int]
) -> None:
    edit_json(own_pair.target / "generation_config.json", eos_token_id=ends)
    files = hub.find_pair(preset_for(own_pair), offline=True)
    assert hub.end_tokens(files.target_config, files.tokenizer) == expected
