"""Heads that are wrong or hostile: each is refused with the tensor or the field by name."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import specx
from specx.core.decoder import Model
from specx.core.drafts.eagle import EagleHead
from specx.errors import ModelError, PairError, SpecxError
from tests.checkpoints.eagle.files import IDS, LAYERS, LAYOUTS, HeadFiles, target_config, write_head
from tests.core.tiny import own
from tests.helpers import PairDirs, preset_for, save_pair, tiny_config, tiny_model

Change = Callable[[HeadFiles], object]
ATTENTION = "layers.0.self_attn."
GATE, DOWN = "layers.0.mlp.gate_proj.weight", "layers.0.mlp.down_proj.weight"


def lacks(name: str) -> Change:
    return lambda files: files.tensors.pop(name)


def has(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda files: files.tensors.update({name: torch.ones(shape, dtype=dtype)})


def says(**fields: Any) -> Change:
    return lambda files: files.config.update(fields)


def of_type(name: str, dtype: torch.dtype) -> Change:
    return lambda files: files.tensors.update({name: files.tensors[name].to(dtype)})


def table(edit: Callable[[Tensor], Any]) -> Change:
    """d2t changed in place, or replaced by what ``edit`` returns; t2d is left out."""

    def change(files: HeadFiles) -> None:
        del files.tensors["t2d"]
        d2t = files.tensors["d2t"].clone()
        made = edit(d2t)
        files.tensors["d2t"] = made if isinstance(made, Tensor) else d2t

    return change


def both(*changes: Change) -> Change:
    def change(files: HeadFiles) -> None:
        for each in changes:
            each(files)

    return change


def overflowing(d2t: Tensor) -> None:
    """Each difference of two neighbours is positive, if sums wrap around at 2⁶³."""
    d2t[1:4] = torch.tensor([2**62 - 1, -(2**63) + 1, -(2**62)])


#: What is wrong → a layout, how it is damaged, the error and what its text names.
WRONG: dict[str, tuple[str, Change, type[SpecxError], str]] = {
    "no fc": ("official", lacks("fc.weight"), ModelError, "fc.weight is missing"),
    "no queries": ("vicuna", lacks(f"{ATTENTION}q_proj.weight"), ModelError, "q_proj.weight"),
    "no MLP": ("vicuna", lacks(DOWN), ModelError, "down_proj.weight is missing"),
    "no norm": ("official", lacks("norm.weight"), ModelError, "norm.weight is missing"),
    "no hidden norm": ("official", lacks("layers.0.hidden_norm.weight"), ModelError,
                       "hidden_norm.weight is missing"),
    "no lm_head": ("official", lacks("lm_head.weight"), ModelError, "lm_head.weight is missing"),
    "no lm_head, no word of its size": (
        "official", both(lacks("lm_head.weight"), says(draft_vocab_size=None)), ModelError,
        "lm_head.weight is missing"),
    "no embedding": ("llama-70b", lacks("embed_tokens.weight"), ModelError, "embed_tokens.weight"),
    "no d2t": ("official", lacks("d2t"), ModelError, "d2t is missing"),
    "a tensor too many": ("official", has("extra.weight", 4), ModelError, "extra.weight"),
    "a final norm of EAGLE-1": ("vicuna", has("norm.weight", 64), ModelError, "norm.weight"),
    "an lm_head of EAGLE-1": ("vicuna", has("lm_head.weight", 512, 64), ModelError, "lm_head"),
    "a table of EAGLE-1": ("vicuna", has("d2t", 512, dtype=torch.int64), ModelError, "d2t"),
    "a bias of the output": ("official", has(f"{ATTENTION}o_proj.bias", 64), ModelError, "o_proj"),
    "a fourth norm": ("fc-norm", has("fc_norm.3.weight", 64), ModelError, "fc_norm.3.weight"),
    "only some norms": ("fc-norm", lacks("fc_norm.2.weight"), ModelError, "fc_norm.2.weight"),
    "only some biases": ("qwen2", lacks(f"{ATTENTION}k_proj.bias"), ModelError, "k_proj.bias"),
    "half the norms of queries": ("speculators-qwen3", lacks(f"{ATTENTION}k_norm.weight"),
                                  ModelError, "k_norm.weight is missing"),
    "another shape": ("official", has(DOWN, 48, 64), ModelError, "down_proj.weight is 48x64"),
    "a norm too short": ("official", has("norm.weight", 63), ModelError, "norm.weight is 63"),
    "a matrix for a norm": ("official", has("norm.weight", 64, 1), ModelError, "norm.weight"),
    "a vector for a matrix": ("official", has(GATE, 64), ModelError, "gate_proj.weight is 64"),
    "a number for a matrix": ("official", has("lm_head.weight"), ModelError, "lm_head.weight"),
    "a number for an embedding": ("vicuna", has("embed_tokens.weight"), ModelError, "embed_tokens"),
    "no rows": ("official", has(GATE, 0, 64), ModelError, "gate_proj.weight is 0x64"),
    "no rows at all": ("official", has("fc.weight", 0, 192), ModelError, "fc.weight is 0x192"),
    "no words": ("official", both(has("lm_head.weight", 0, 64),
                 has("d2t", 0, dtype=torch.int64),
                 has("t2d", 512, dtype=torch.bool)), ModelError, "lm_head.weight is 0x64"),
    "keys for no whole head": ("official", has(f"{ATTENTION}k_proj.weight", 12, 128), ModelError,
                               "k_proj.weight has 12 rows"),
    "keys that queries cannot share": ("official", has(f"{ATTENTION}k_proj.weight", 24, 128),
                                       ModelError, "k_proj.weight has 24 rows"),
    "integers": ("official", of_type(GATE, torch.int8), ModelError, "gate_proj.weight.*int8"),
    "integers in a norm": ("vicuna", of_type("layers.0.post_attention_layernorm.weight",
                           torch.int64), ModelError, "layernorm.weight.*int64"),
    "truth in an embedding": ("vicuna", of_type("embed_tokens.weight", torch.bool), ModelError,
                              "embed_tokens.weight.*bool"),
    "a bias denied": ("vicuna", says(bias=False), ModelError, "bias is false.* is there"),
    "a bias promised": ("llama3", says(bias=True), ModelError, "bias is true, and fc.bias is miss"),
    "query biases promised": ("vicuna", says(qkv_bias=True), ModelError, "qkv_bias is true"),
    "norms promised": ("official", says(fc_norm=True), ModelError, "fc_norm.0.weight is missing"),
    "norms denied": ("fc-norm", says(fc_norm=False), ModelError, "fc_norm.0.weight is there"),
    "a norm promised": ("official", says(norm_before_fc=True), ModelError, "input_norm.weight"),
    "a norm denied": ("input-norm", says(norm_before_fc=False), ModelError, "input_norm.weight"),
    "ids that fall": ("official", table(lambda d: d[3:9].fill_(-2)), ModelError, "d2t"),
    "ids that repeat": ("official", table(lambda d: d.sub_(torch.arange(200))), ModelError, "d2t"),
    "ids before the first": ("official", table(lambda d: d[0].fill_(-1)), ModelError, "d2t"),
    "ids behind the last": ("official", table(lambda d: d[-1].fill_(313)), ModelError, "d2t"),
    "ids that overflow": ("official", table(overflowing), ModelError, "d2t.*do not rise"),
    "an empty table": ("official", table(lambda d: d.zero_()), ModelError, "d2t.*empty"),
    "a table with an id too few": ("official", table(lambda d: d[1:].clone()), ModelError, "d2t"),
    "a table of floats": ("official", table(lambda d: d.float()), ModelError, "d2t.*float32"),
    "a table of truths": ("official", table(lambda d: d.bool()), ModelError, "d2t.*bool"),
    "a table in two dimensions": ("official", table(lambda d: d[None].clone()), ModelError, "d2t"),
    "a number for a table": ("official", table(lambda d: d[5].clone()), ModelError, "d2t"),
    "other marks": ("official", lambda files: files.tensors["t2d"].logical_not_(), ModelError,
                    "t2d marks other tokens"),
    "a number for marks": ("official", has("t2d", dtype=torch.bool), ModelError, "t2d"),
    "more words than the target": ("vicuna-13b", has("lm_head.weight", 513, 64), PairError,
                                   "lm_head.weight has 513 rows"),
    "tokens without an embedding": ("vicuna", has("embed_tokens.weight", 511, 64), PairError,
                                    "embed_tokens.weight has 511 rows"),
    "features of another width": ("official", has("fc.weight", 64, 96), PairError, "fc.weight"),
    "another target's states": ("vicuna", has("fc.weight", 32, 64), PairError, "is 32x64"),
    "another width in the config": ("llama-70b", says(target_hidden_size=128), PairError, "128"),
    "two features": ("official", has("fc.weight", 64, 128), PairError, "fc.weight reads 2"),
    "layers that there are not": ("listed", says(**{IDS: [1, 3, 8]}), PairError, "layer 8"),
    "a layer too many": ("listed", says(**{IDS: [1, 3, 5, 7]}), PairError, "1, 3, 5, 7"),
    "no list": ("listed", says(**{IDS: "1, 3, 5"}), ModelError, "layers are 1, 3, 5"),
    "no features": ("modelopt", says(eagle_config={"use_aux_hidden_state": False}), PairError,
                    "use_aux_hidden_state is false"),
    "HASS": ("vicuna", has("embed_layernorm.weight", 64), ModelError, "embed_layernorm.weight"),
    "HASS by its other name": ("speculators-1", has("embedding_layernorm.weight", 64), ModelError,
                               "embedding_layernorm.weight"),
    "HASS, the feature": ("vicuna", has("input_layernorm.weight", 64), ModelError, "input_layer"),
    "Medusa": ("sglang", has("medusa_head.0.0.linear.weight", 64, 64), PairError, "Medusa heads"),
    "Medusa in the config": ("vicuna", says(medusa_num_heads=5), PairError, "Medusa heads"),
    "GliDe": ("vicuna", has("layers.0.cross_attn.q_proj.weight", 64, 64), PairError, "GliDe"),
    "P-EAGLE": ("speculators", says(speculators_model_type="peagle"), PairError, "P-EAGLE"),
    "DFlash": ("speculators", says(speculators_model_type="dflash"), PairError, "DFlash"),
    "several layers": ("official", has("layers.1.mlp.up_proj.weight", 48, 64), ModelError,
                       "layers.1.mlp.up_proj.weight"),
    "heads that are true": ("official", says(num_attention_heads=True), ModelError,
                            "num_attention_heads is True"),
    "no heads": ("official", says(num_attention_heads=0), ModelError, "num_attention_heads is 0"),
    "heads beyond counting": ("official", says(num_attention_heads=1 << 50), ModelError,
                              "num_attention_heads is"),
    "more heads than rows": ("official", says(num_attention_heads=1 << 20), ModelError,
                             "num_attention_heads is 1048576, and q_proj has 64 rows"),
    "heads of odd width": ("official", says(num_attention_heads=64), ModelError, "q_proj"),
    "an epsilon of zero": ("official", says(rms_norm_eps=0.0), ModelError, "rms_norm_eps is 0.0"),
    "an epsilon of NaN": ("official", says(rms_norm_eps=float("nan")), ModelError, "rms_norm_eps"),
    "a rotation of its own": ("official", says(rope_scaling={"type": "su"}), ModelError,
                              "rope type su"),
    "another activation": ("official", says(hidden_act="relu"), ModelError, "hidden_act is relu"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_by_name(tmp_path: Path, what: str) -> None:
    layout, change, kind, named = WRONG[what]
    files = write_head(tmp_path / "head", layout)
    files.load()  # sound until it is changed
    change(files)
    files.write()
    with pytest.raises(kind, match=named) as caught:
        files.load()
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message + caught.value.reason


def test_the_same_tensor_under_two_names(tmp_path: Path) -> None:
    files = write_head(tmp_path / "head", "official")
    files.tensors["model.layers.0.hidden_norm.weight"] = torch.ones(64)
    with pytest.raises(ModelError, match=r"two tensors for layers\.0\.hidden_norm\.weight"):
        files.write().load()


@pytest.mark.parametrize(
    ("layout", "wanted", "found"), [("vicuna", "eagle3", "eagle"), ("official", "eagle", "eagle3")]
)
def test_the_preset_says_another_kind(tmp_path: Path, layout: str, wanted: str, found: str) -> None:
    files = write_head(tmp_path / "head", layout)
    with pytest.raises(PairError, match=f"of kind {found} .*the preset says {wanted}") as caught:
        files.load(kind=wanted)
    assert caught.value.hints == (f"--set draft.kind={found}",)


def test_a_target_of_another_size(tmp_path: Path) -> None:
    for layout in ("vicuna", "official"):
        files = write_head(tmp_path / layout, layout)
        with pytest.raises(PairError, match=r"head for another target.*fc\.weight"):
            files.load(target_config(hidden_size=80))
    with pytest.raises(PairError, match="the target has 6"):
        files.load(target_config(num_hidden_layers=6))
    with pytest.raises(PairError, match=r"lm_head\.weight has 200 rows"):
        files.load(target_config(vocab_size=150))


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_hidden_layers": 8}
    return save_pair(tmp_path_factory.mktemp("pair"), target_changes=changes).target


@pytest.mark.parametrize(
    ("what", "code"),
    [("no fc", 4), ("integers", 4), ("ids that fall", 4), ("no heads", 4), ("HASS", 4),
     ("features of another width", 5), ("Medusa", 5), ("P-EAGLE", 5), ("two features", 5)],
)  # fmt: skip
def test_it_reaches_the_user_with_its_exit_code(
    target_dir: Path, tmp_path: Path, what: str, code: int
) -> None:
    layout, change, _, named = WRONG[what]
    files = write_head(tmp_path / "head", layout)
    change(files)
    files.write()
    preset = preset_for(PairDirs(target_dir, files.directory), {"draft.kind": files.layout.kind})
    with pytest.raises(SpecxError, match=named) as caught:
        specx.load(preset, device="cpu", offline=True)
    assert caught.value.exit_code == code


VALUES = st.sampled_from(
    [None, True, False, 0, -1, 3, 7, 64, 1 << 40, 10**400, 0.5, float("nan"), float("inf"),
     "", "8", "\n", [], [1], [0, 1, 2], {}, {"a": 1}, {"type": "yarn"},
     {"rope_type": "linear", "factor": 1e308}, {"type": "llama3", "factor": 2}]
)  # fmt: skip
FIELDS = st.sampled_from(
    ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
     "intermediate_size", "draft_vocab_size", "target_hidden_size", "rms_norm_eps",
     "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "bias",
     "norm_output", "norm_before_residual", "fc_norm", "eagle_config", IDS, "architectures",
     "transformer_layer_config", "hidden_act", "speculators_model_type"]
)  # fmt: skip
EDITS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "gone": lambda t: None,
    "empty": lambda t: t[:0],
    "shorter": lambda t: t[1:],
    "longer": lambda t: torch.cat([t, t]),
    "deeper": lambda t: t[None],
    "a number": lambda t: t.flatten()[0],
    "turned": lambda t: t.transpose(0, -1),
    "integers": lambda t: t.int(),
    "truths": lambda t: t.bool(),
    "double": lambda t: t.double(),
    "zeros": lambda t: t * 0,
}


class Echo:
    """Attention that attends to nothing."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return query


@pytest.fixture(scope="module")
def target() -> Model:
    return own(tiny_model(tiny_config(num_hidden_layers=LAYERS)))


@pytest.fixture(scope="module")
def makes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HeadFiles]:
    directory = tmp_path_factory.mktemp("any")
    return lambda layout: write_head(directory / layout, layout)


class TestAnyFile:
    """Strangers make these files: whatever stands in one, it runs or it is refused."""

    @given(
        st.sampled_from(["qwen2", "angelslim", "speculators-qwen3"]),
        st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3),
    )
    def test_with_any_config(
        self, makes: Callable[[str], HeadFiles], layout: str, changes: dict[str, Any]
    ) -> None:
        files = makes(layout)
        nested = files.config.get("transformer_layer_config")
        for field, value in changes.items():
            place = nested if nested and field in nested else files.config
            place[field] = value
        with contextlib.suppress(ModelError, PairError):
            notes = files.write().load().notes
            assert "\n" not in "".join(notes)

    @given(st.sampled_from(sorted(LAYOUTS)), st.data())
    def test_with_any_tensor(
        self, makes: Callable[[str], HeadFiles], target: Model, layout: str, data: st.DataObject
    ) -> None:
        files = makes(layout)
        name = data.draw(st.sampled_from(sorted(files.tensors)))
        made = EDITS[data.draw(st.sampled_from(sorted(EDITS)))](files.tensors.pop(name))
        if made is not None:
            files.tensors[name] = made.clone().contiguous()
        try:
            loaded = files.write().load()
        except (ModelError, PairError):
            return
        head = EagleHead(loaded.config, loaded.tensors, target)
        tokens = torch.tensor([0, 511])
        features = head.fuse(torch.ones(2, target.feature_width))
        states = head.hidden(tokens, torch.arange(2), Echo(), features=features)
        assert head.logits(states).shape == (2, 512)
