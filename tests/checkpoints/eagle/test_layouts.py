"""Every published layout loads to the same names, and decides what its tensors cannot say."""

from pathlib import Path

import pytest
import torch

from specx.checkpoints.eagle.loader import LoadedHead
from specx.core.architecture import Rope
from tests.checkpoints.eagle.files import LAYOUTS, HeadFiles, write_head

SILENT = [name for name in LAYOUTS if name != "modelopt"]


def loaded(directory: Path, name: str) -> tuple[HeadFiles, LoadedHead]:
    files = write_head(directory / "head", name)
    return files, files.load()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tensors_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    """To the bit and in the file's type; of the tables d2t stays where it says something."""
    files, head = loaded(tmp_path, name)
    wanted = dict(files.tensors)
    wanted.pop("t2d", None)
    if name == "zero-tables":
        del wanted["d2t"]
    assert head.tensors.keys() == wanted.keys()
    for tensor, values in wanted.items():
        assert head.tensors[tensor].dtype == values.dtype
        assert torch.equal(head.tensors[tensor], values), tensor


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_head_is_follows_from_its_tensors(tmp_path: Path, name: str) -> None:
    files, head = loaded(tmp_path, name)
    config = head.config
    assert config.generation == (1 if files.layout.kind == "eagle" else 3)
    assert (config.heads, config.head_dim, config.epsilon) == (8, 8, 1e-5)
    layers = {"modelopt": (2, 3, 6), "listed": (1, 3, 7), "one-feature": (4,)}
    usual = () if config.generation == 1 else (2, 4, 5)
    assert config.feature_layers == layers.get(name, usual)
    assert config.residual_is_normed == (name in ("speculators-residual", "speculators-qwen3"))
    assert config.output_is_normed == (name == "fc-norm")
    base = {"llama3": 500000.0, "angelslim": 1e6}.get(name, 10000.0)
    assert config.rope == Rope(base=base)


def surprises(head: LoadedHead) -> list[str]:
    """Its notes but for the one that most published heads cause: they name no layers."""
    return [note for note in head.notes if "the head names no layers" not in note]


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_said_about_a_head_that_says_all(tmp_path: Path, name: str) -> None:
    assert surprises(loaded(tmp_path, name)[1]) == []


def test_ids_of_own_words(tmp_path: Path) -> None:
    """d2t holds differences: id = own id + difference."""
    files, head = loaded(tmp_path, "official")
    marked = files.tensors["t2d"].nonzero()[:, 0]
    ids = head.tensors["d2t"] + torch.arange(len(marked))
    assert torch.equal(ids, marked)
    del files.tensors["t2d"]  # it is needed by nobody
    assert files.write().load().tensors.keys() == head.tensors.keys()


def test_the_first_words_of_the_target(tmp_path: Path) -> None:
    """Differences of zero with fewer words are an empty table, unless t2d marks a beginning."""
    files = write_head(tmp_path / "head", "official")
    files.tensors["d2t"] = torch.zeros_like(files.tensors["d2t"])
    files.tensors["t2d"] = torch.arange(512) < 200
    assert "d2t" in files.write().load().tensors


class TestNotes:
    def one(self, files: HeadFiles, **spec: object) -> str:
        (note,) = surprises(files.write().load(**spec))
        return note

    def test_a_nested_list_of_layers(self, tmp_path: Path) -> None:
        files = write_head(tmp_path / "head", "modelopt")
        note = self.one(files)
        assert "lists the layers 1, 2, 5: taken as the inputs of layers 2, 3, 6" in note
        assert files.load(head={"feature_layers": [1, 2, 5]}).notes == ()

    def test_a_residual_that_nobody_names(self, tmp_path: Path) -> None:
        files = write_head(tmp_path / "head", "speculators")
        files.config["norm_before_residual"] = None
        assert "does not say norm_before_residual: taken as false" in self.one(files)
        said = files.load(head={"norm_before_residual": True})
        assert said.config.residual_is_normed
        assert surprises(said) == []
        official = write_head(tmp_path / "official", "official")
        assert not official.load().config.residual_is_normed

    def test_a_config_that_the_weights_contradict(self, tmp_path: Path) -> None:
        files = write_head(tmp_path / "head", "official")
        files.config |= {"intermediate_size": 96, "head_dim": 16, "draft_vocab_size": 100}
        note = self.one(files)
        assert "mlp 96, not 48, head_dim 16, not 8" in note
        assert "vocabulary 100, not 200" in note
        assert files.load().config.head_dim == 8, "16 would divide the rows as well"
