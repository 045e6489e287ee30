"""Weight files: which are read, what is in them, and that no pickle runs code."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specx.checkpoints import load as hub
from specx.checkpoints.config import read_config
from specx.checkpoints.weights import check_weights, choose_entry, read_tensors
from specx.errors import ModelError
from tests.helpers import PairDirs, edit_json, preset_for, save_pair


@pytest.fixture
def damaged(tiny_pair: PairDirs, tmp_path: Path) -> Path:
    """A copy of the tiny target to be damaged."""
    return Path(shutil.copytree(tiny_pair.target, tmp_path / "model"))


@pytest.fixture
def pickled(damaged: Path) -> Path:
    """The tiny target with its weights as a pickle."""
    path = damaged / "model.safetensors"
    torch.save(load_file(path), damaged / "pytorch_model.bin")
    path.unlink()
    return damaged


def examine(directory: Path) -> None:
    check_weights(directory, read_config(directory))


class TestSafetensors:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda raw: raw[:-1], "is damaged: it is cut off or no safetensors"),
            (lambda raw: raw + b"\0", "is damaged: it is cut off or no safetensors"),
            (lambda raw: raw[:200], "is damaged: it is cut off or no safetensors"),
            (lambda raw: raw[:5], "is damaged: it is cut off or no safetensors"),
            (lambda raw: b"", "is damaged: it is cut off or no safetensors"),
            (lambda raw: b"\xff" * len(raw), "is damaged: it is cut off or no safetensors"),
            (
                lambda raw: raw[:8] + b"{" * 300 + raw[308:],
                "is damaged: it is cut off or no safetensors",
            ),
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
            ({"dtype": "F8_E4M3"}, "is of type float8_e4m3fn|cut off"),
            ({"dtype": "I32"}, "is of type int32"),
            ({"dtype": "F16"}, "is damaged: it is cut off or no safetensors"),
            ({"shape": [-512, -64]}, "is damaged: it is cut off or no safetensors"),
            ({"shape": [512.5, 64]}, "is damaged: it is cut off or no safetensors"),
            ({"data_offsets": [0]}, "is damaged: it is cut off or no safetensors"),
            ({"data_offsets": [0, 10**15]}, "is damaged: it is cut off or no safetensors"),
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

    def test_tied_models_need_no_output_weights(self, tmp_path: Path) -> None:
        pair = save_pair(tmp_path, "qwen2", target_changes={"tie_word_embeddings": True})
        examine(pair.target)


class TestReading:
    """``read_tensors`` over every way in which weights are kept."""

    def test_all_layouts_hold_the_same(self, tmp_path: Path) -> None:
        tensors = {
            "a.weight": torch.randn(3, 4),
            "half": torch.randn(5).half(),
            "d2t": torch.arange(7),
            "t2d": torch.tensor([True, False]),
        }
        for name in ("one", "shards", "pickle", "pickled_shards"):
            (tmp_path / name).mkdir()
        first = {name: tensors[name] for name in ("a.weight", "d2t")}
        second = {name: tensors[name] for name in ("half", "t2d")}
        save_file(tensors, tmp_path / "one" / "model.safetensors")
        torch.save(tensors, tmp_path / "pickle" / "pytorch_model.bin")
        for folder, stem, suffix, save in (
            ("shards", "model", "safetensors", save_file),
            ("pickled_shards", "pytorch_model", "bin", torch.save),
        ):
            names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
            placed = dict.fromkeys(first, names[0]) | dict.fromkeys(second, names[1])
            for part, name in zip((first, second), names, strict=True):
                save(part, tmp_path / folder / name)
            index = tmp_path / folder / f"{stem}.{suffix}.index.json"
            index.write_text(json.dumps({"weight_map": placed}))
        for folder in tmp_path.iterdir():
            read = read_tensors(folder)
            assert read.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert torch.equal(read[name], tensor)
                assert read[name].dtype == tensor.dtype

    def test_safetensors_come_first(self, damaged: Path) -> None:
        """A repository that has both is read once, and its pickle is never opened."""
        (damaged / "pytorch_model.bin").write_bytes(b"no pickle at all")
        assert "lm_head.weight" in read_tensors(damaged)
        assert choose_entry({"pytorch_model.bin", "model.safetensors"}) == "model.safetensors"

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        for directory in (tmp_path, tmp_path / "none"):
            with pytest.raises(ModelError, match=r"has no model.safetensors"):
                read_tensors(directory)

    def test_a_tensor_in_two_shards(self, tmp_path: Path) -> None:
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for name in names:
            save_file({name: torch.ones(2), "both": torch.ones(3)}, tmp_path / name)
        index = {"weight_map": {name: name for name in names} | {"both": names[0]}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match="both is in both"):
            read_tensors(tmp_path)

    def test_a_tensor_that_the_index_promises(self, tmp_path: Path) -> None:
        save_file({"here": torch.ones(2)}, tmp_path / "model-1.safetensors")
        placed = {"weight_map": {"here": "model-1.safetensors", "gone": "model-1.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(placed))
        with pytest.raises(ModelError, match=r"model-1.safetensors lacks gone"):
            read_tensors(tmp_path)


class Payload:
    """Unpickled without protection, this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


class TestPickles:
    def test_a_pickled_pair_runs_as_the_safetensors_do(
        self, pickled: Path, tiny_pair: PairDirs
    ) -> None:
        """Loaded for real, with the notice that there are pickles."""
        examine(pickled)
        preset = preset_for(PairDirs(pickled, pickled))
        pair = hub.load_pair(preset, device="cpu", dtype="auto", offline=True)
        saved = load_file(tiny_pair.target / "model.safetensors")
        for model in (pair.target, pair.draft):
            assert isinstance(model, hub.LoadedModel)
            assert model.config.end_tokens == {1}
            tensors = model.separate()
            for name, tensor in saved.items():
                assert torch.equal(tensors[name.removeprefix("model.")], tensor)
        assert len(pair.notes) == 2
        assert "has no safetensors: pickles are read" in pair.notes[0]

    def test_safetensors_need_no_notice(self, tiny_pair: PairDirs) -> None:
        pair = hub.load_pair(preset_for(tiny_pair), device="cpu", dtype="auto", offline=True)
        assert pair.notes == ()

    @pytest.mark.parametrize("is_archive", [True, False])
    @pytest.mark.parametrize("nested", [False, True])
    def test_code_is_refused_and_never_run(
        self, pickled: Path, tmp_path: Path, is_archive: bool, nested: bool
    ) -> None:
        victim = tmp_path / "it-ran"
        payload: object = Payload(victim)
        data = {"lm_head.weight": torch.ones(2), "x": [payload] if nested else payload}
        torch.save(data, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=is_archive)
        for read in (read_tensors, examine):
            with pytest.raises(ModelError, match=r"pytorch_model.bin is refused") as caught:
                read(pickled)
            assert "mkdir" in caught.value.reason
            assert caught.value.exit_code == 4
        assert not victim.exists()
        pickle.loads(pickle.dumps(payload))  # noqa: S301 (proof that the payload works)
        assert victim.exists()

    def test_a_bare_pickle_with_code(self, pickled: Path, tmp_path: Path) -> None:
        victim = tmp_path / "it-ran"
        (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload(victim)}))
        with pytest.raises(ModelError, match=r"pytorch_model.bin is"):
            examine(pickled)
        assert not victim.exists()

    @pytest.mark.parametrize(
        "change",
        [
            lambda raw: raw[:-1],
            lambda raw: raw[: len(raw) // 2],
            lambda raw: raw[:200],
            lambda raw: b"",
            lambda raw: b"PK\x03\x04",
            lambda raw: b"<!DOCTYPE html><html></html>",
            lambda raw: os.urandom(512),
        ],
        ids=["last byte", "half", "head", "empty", "magic", "page", "noise"],
    )
    def test_damage(self, pickled: Path, change: Callable[[bytes], bytes]) -> None:
        path = pickled / "pytorch_model.bin"
        path.write_bytes(change(path.read_bytes()))
        for read in (read_tensors, examine):
            with pytest.raises(
                ModelError, match=r"pytorch_model.bin is (damaged|not supp|refused)"
            ):
                read(pickled)

    def test_a_git_lfs_pointer(self, pickled: Path) -> None:
        path = pickled / "pytorch_model.bin"
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(ModelError, match="a Git LFS pointer"):
            read_tensors(pickled)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ([torch.ones(2)], "does not map names"),
            ({"model": {"a": torch.ones(2)}}, "under 'model' there is no tensor"),
            ({7: torch.ones(2)}, "under '7' there is no tensor"),
            ({"a": torch.ones(2).to_sparse()}, "is of type"),
            ({"a": torch.ones(2, dtype=torch.complex64)}, "is of type complex64"),
            ({"a": torch.ones(1).expand(1 << 40)}, "wrong number of bytes"),
            ({"a": torch.empty(1 << 40, device="meta")}, "is of type"),
        ],
    )
    def test_what_is_no_state_dict(self, tmp_path: Path, data: object, said: str) -> None:
        torch.save(data, tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match=said):
            read_tensors(tmp_path)

    def test_names_and_shapes_are_compared(self, pickled: Path) -> None:
        path = pickled / "pytorch_model.bin"
        tensors = torch.load(path, weights_only=True)
        for changed, said in (
            (tensors | {"extra.weight": torch.ones(2)}, "extra.weight has no place in it"),
            (tensors | {"model.norm.weight": torch.ones(65)}, "has the shape 65"),
            (tensors | {"model.norm.weight": torch.ones(64).long()}, "is of type int64"),
            ({k: v for k, v in tensors.items() if k != "lm_head.weight"}, "first is lm_head"),
        ):
            torch.save(changed, path)
            with pytest.raises(ModelError, match=said):
                examine(pickled)

    def test_files_older_than_archives(self, pickled: Path, tiny_pair: PairDirs) -> None:
        path = pickled / "pytorch_model.bin"
        tensors = torch.load(path, weights_only=True)
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
        assert not zipfile.is_zipfile(path)
        read = read_tensors(pickled)
        for name, tensor in load_file(tiny_pair.target / "model.safetensors").items():
            assert torch.equal(read[name], tensor)
