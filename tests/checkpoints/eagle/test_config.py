"""A head's config.json read raw: its kind, its layers, its positions, whatever stands in it."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.checkpoints.eagle.config import feature_layers, head_kind, position_limit, read_head
from specx.errors import ModelError, PairError

SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "vocab_size": 128256,
}
IDS = "eagle_aux_hidden_state_layer_ids"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, None),
        ({"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000}, "eagle3"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "eagle3"),
        ({"architectures": ["Eagle3LlamaForCausalLM"]}, "eagle3"),
        ({"architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3"}, "eagle3"),
        ({"target_hidden_size": 8192}, "eagle3"),
        ({"target_hidden_size": None, "draft_vocab_size": None}, None),
        ({"architectures": ["LlamaForCausalLMEagle"]}, "eagle"),
        ({"speculators_model_type": "eagle"}, "eagle"),
    ],
)
def test_kinds(config: dict[str, Any], kind: str | None) -> None:
    assert head_kind(config) == kind


@pytest.mark.parametrize(
    ("config", "layers", "found"),
    [
        ({}, 32, (2, 16, 29)),
        ({}, 36, (2, 18, 33)),
        ({IDS: [1, 20, 30]}, 32, (1, 20, 30)),  # vLLM's are counted as here
        ({"eagle_config": {IDS: [1, 11, 21]}}, 24, (2, 12, 22)),  # others name the layer before
        ({"eagle_config": {IDS: [2, 30, 58]}}, 61, (2, 30, 58)),  # but not all of them do
        ({"eagle_config": {IDS: [8, 14, 19]}}, 20, (8, 14, 19)),  # one more would not exist
        ({"eagle_config": {IDS: []}}, 8, (2, 4, 5)),
        ({"eagle_config": {IDS: [1, 11, 21]}, IDS: [1, 2, 3]}, 32, (1, 2, 3)),
        ({"eagle_config": {}}, 8, (2, 4, 5)),
    ],
)
def test_layers(config: dict[str, Any], layers: int, found: tuple[int, ...]) -> None:
    chosen, note = feature_layers(config, layers)
    assert chosen == found
    says_which = IDS in config or (bool(config.get("eagle_config", {}).get(IDS)) and layers == 61)
    assert bool(note) != says_which, "a guess is told"


def test_a_small_target_needs_its_layers_named() -> None:
    with pytest.raises(PairError, match="the target has 6"):
        feature_layers({}, 6)
    assert feature_layers({}, 6, (1, 2, 3)) == ((1, 2, 3), "")


def test_the_presets_layers_come_first() -> None:
    listed = {IDS: [0, 1, 2], "eagle_config": {IDS: [3, 4, 5]}}
    assert feature_layers(listed, 32, (2, 9, 30)) == ((2, 9, 30), "")
    with pytest.raises(PairError, match="the input of layer 32"):
        feature_layers({}, 32, (2, 9, 32))


@pytest.mark.parametrize("nested", [True, False])
def test_a_head_without_layers_of_the_target(nested: bool) -> None:
    said = {"use_aux_hidden_state": False}
    with pytest.raises(PairError, match="reads no layers of the target"):
        feature_layers({"eagle_config": said} if nested else said, 32, (2, 16, 29))


@pytest.mark.parametrize("value", ["2", [], [2, "x"], [True], [-1, 2], {"a": 1}])
def test_layers_that_are_no_list(value: object) -> None:
    with pytest.raises(ModelError, match="its layers are"):
        feature_layers({IDS: value}, 32)


def test_sizes_of_speculators_are_nested() -> None:
    nested = {"transformer_layer_config": SIZES | {"num_key_value_heads": 8}}
    head = read_head(nested | {"speculators_model_type": "eagle3", "draft_vocab_size": 32000})
    assert (head.kind, head.hidden, head.kv_heads, head.head_dim) == ("eagle3", 4096, 8, 128)
    assert (head.vocabulary, head.draft_vocabulary) == (128256, 32000)
    assert head.positions >= 1 << 26, "it does not say"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"speculators_model_type": "peagle"}, "a P-EAGLE head"),
        ({"speculators_model_type": "dflash"}, "a DFlash drafter"),
        ({"speculators_model_type": "dspark"}, "a DSpark drafter"),
        ({"speculators_model_type": "mtp"}, "a multi-token prediction module"),
        ({"speculators_model_type": "other"}, "a speculator of type other"),
        ({"speculators_model_type": 7}, "a speculator of type 7"),
        ({"medusa_num_heads": 4}, "Medusa heads"),
        ({"architectures": ["LlamaGlide"]}, "a GliDe drafter"),
    ],
)
def test_other_kinds(config: dict[str, Any], named: str) -> None:
    with pytest.raises(PairError, match=f"the draft is {named}"):
        read_head(SIZES | config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", True),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
        ("num_attention_heads", 1 << 40),
        ("num_attention_heads", None),
        ("num_attention_heads", "32"),
        ("hidden_size", 4096.0),
        ("intermediate_size", []),
        ("num_key_value_heads", 0),
        ("head_dim", False),
        ("target_hidden_size", "wide"),
        ("draft_vocab_size", -1),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", True),
        ("rms_norm_eps", None),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 1),
        ("rms_norm_eps", 10**400),
        ("rms_norm_eps", "1e-5"),
        ("norm_before_residual", "true"),
        ("norm_output", 1),
        ("bias", "no"),
        ("fc_norm", []),
        ("hidden_act", "gelu"),
        ("hidden_act", ["silu"]),
        ("transformer_layer_config", [1]),
    ],
)
def test_a_field_that_is_nonsense_is_named(name: str, value: object) -> None:
    assert read_head(SIZES).epsilon == 1e-6
    with pytest.raises(ModelError, match=name):
        read_head(SIZES | {name: value})


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2}, 8192),
        ({"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 2048}, 65536),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),  # then stretched from these positions
        ({"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 4096}, 4096),
        ({"type": "linear", "factor": float("inf")}, 4096),
        ({"type": "linear", "factor": "4"}, 4096),
        ("linear", 4096),
    ],
)
def test_positions(scaling: object, limit: int) -> None:
    assert position_limit(4096, scaling) == limit


@given(st.dictionaries(st.sampled_from([*SIZES, IDS, "eagle_config", "architectures"]), JSON), JSON)
def test_any_file_is_read_or_refused(config: dict[str, Any], nested: object) -> None:
    """These files come from strangers: no value may end in a traceback."""
    odd = SIZES | {"rope_scaling": nested, "draft_vocab_size": nested}
    for each in (config, SIZES | config, odd):
        with contextlib.suppress(ModelError, PairError):
            read_head(each)
            feature_layers(each, 32)
