"""The rotation of a head: which base and which stretch, and the numbers that follow."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from specx.checkpoints.eagle.config import rotation
from specx.core.rope import inverse_frequencies
from specx.errors import ModelError
from specx.preset.sections import DraftSpec, HeadSpec

WIDTH = 16
STEPS = torch.arange(0, WIDTH, 2) / WIDTH
YARN = {"factor": 8.0, "original_max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


def rotated(
    layer: dict[str, Any], repo: str = "owner/head", head: dict[str, Any] | None = None
) -> tuple[Tensor, float, str]:
    spec = DraftSpec(kind="eagle3", repo=repo, head=HeadSpec(**head) if head else None)
    rope, note = rotation(layer, spec)
    return inverse_frequencies(rope, WIDTH), rope.table_factor, note


def by_yarn(base: float, factor: float, original: int) -> Tensor:
    """Interpolated where a dimension turns less than once, kept where more than 32 times."""

    def dimension(turns: float) -> float:
        return WIDTH * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(32)), 0)
    high = min(math.ceil(dimension(1)), WIDTH - 1)
    ramp = ((torch.arange(WIDTH // 2) - low) / (high - low)).clamp(0, 1)
    kept = base**-STEPS
    return ramp * kept / factor + (1 - ramp) * kept


@pytest.mark.parametrize(
    ("layer", "repo", "head", "base"),
    [
        ({}, "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", None, 10000.0),
        ({"rope_theta": None}, "owner/head", None, 10000.0),
        ({"rope_theta": 500000}, "yuhuili/EAGLE-LLaMA3-Instruct-8B", None, 500000.0),
        ({"rope_parameters": {"rope_theta": 1e6}}, "RedHatAI/x", None, 1e6),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}, "RedHatAI/x", None, 1e6),
        ({"rope_theta": 2e4, "rope_parameters": {"rope_theta": 1e6}}, "owner/head", None, 2e4),
        ({"rope_theta": 1000000}, "AngelSlim/Qwen3-4B_eagle3", None, 10000.0),
        ({"rope_theta": 1000000}, "AngelSlim/Qwen3-4B_eagle3", {"rope_theta": 7e5}, 7e5),
        ({"rope_theta": 1000000}, "NotAngelSlim/copy", None, 1e6),
        ({"rope_theta": 1000000}, "AngelSlim-copies/x", None, 1e6),
        ({"rope_theta": "damaged"}, "owner/head", {"rope_theta": 3e4}, 3e4),
    ],
)
def test_the_base(
    layer: dict[str, Any], repo: str, head: dict[str, Any] | None, base: float
) -> None:
    frequencies, scaling, note = rotated(layer, repo, head)
    torch.testing.assert_close(frequencies, base**-STEPS)
    assert scaling == 1.0
    is_distrusted = repo.startswith("AngelSlim/") and head is None
    assert ("trained with 10000" in note) == is_distrusted
    assert bool(note) == is_distrusted


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters", "preset"])
def test_yarn_in_both_spellings(key: str, field: str) -> None:
    stretch = {key: "yarn", **YARN}
    layer = {"max_position_embeddings": 2048}
    if field == "preset":
        layer["rope_scaling"] = {"type": "linear", "factor": 2.0}  # not believed
        found = rotated(layer, head={"rope_scaling": stretch})
    else:
        found = rotated(layer | {field: stretch})
    torch.testing.assert_close(found[0], by_yarn(10000.0, 8.0, 256))
    assert found[1] == pytest.approx(0.1 * math.log(8.0) + 1)


def test_the_yarn_heads_of_qwen3_were_trained_with_the_usual_base() -> None:
    layer = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}}
    frequencies, _, note = rotated(layer, "TanBaby/EAGLE3-Qwen3-8B-YARN-64K")
    torch.testing.assert_close(frequencies, by_yarn(10000.0, 8.0, 256))
    assert "says rope_theta 1e+06 but was trained with 10000" in note


def test_linear_divides_positions() -> None:
    frequencies, scaling, _ = rotated({"rope_scaling": {"type": "linear", "factor": 4.0}})
    torch.testing.assert_close(frequencies, 10000.0**-STEPS / 4)
    assert scaling == 1.0


def test_dynamic_changes_nothing_within_the_trained_length() -> None:
    frequencies, scaling, _ = rotated({"rope_scaling": {"type": "dynamic", "factor": 4.0}})
    torch.testing.assert_close(frequencies, 10000.0**-STEPS)
    assert scaling == 1.0


def test_llama3_leaves_fast_dimensions_alone() -> None:
    frequencies, _, _ = rotated({"rope_theta": 5e5, "rope_scaling": LLAMA3})
    plain = 5e5**-STEPS
    torch.testing.assert_close(frequencies[0], plain[0])
    torch.testing.assert_close(frequencies[-1], plain[-1] / 8)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope type longrope"),
        ({"rope_scaling": {"rope_type": None}}, "rope type None"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope type"),
        ({"rope_scaling": "linear"}, "rope_scaling is linear"),
        ({"rope_parameters": "linear"}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
        ({"rope_scaling": {"type": "linear"}}, "rotation is damaged"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rotation is damaged"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "rotation is damaged"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "rotation is damaged"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rotation is damaged"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "rotation is damaged"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
         "partially rotated"),
        ({"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": "x"}},
         "rotation is damaged"),
        ({"rope_scaling": {"type": "yarn", **YARN}, "max_position_embeddings": []},
         "max_position_embeddings is"),
        ({"rope_theta": 1}, "rope_theta is 1"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"rope_theta": "10000"}, "rope_theta is 10000"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rope_theta": []}, "rope_theta is"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("repo", ["owner/head", "AngelSlim/head"])
def test_what_cannot_be_used_is_named(layer: dict[str, Any], named: str, repo: str) -> None:
    with pytest.raises(ModelError, match=named):
        rotated(layer, repo)
