"""What the shipped presets state as facts: sizes that follow from shapes, sources, the paper."""

import re

import pytest
import yaml

from specx.errors import UsageError
from specx.preset.preset import Preset, available_presets, find_preset, load_preset, preset_keys
from specx.preset.sections import HeadShapeSpec, ShapeSpec

GIB = 1 << 30
NAMES = [entry.name for entry in available_presets() if entry.origin == "shipped"]
ASKED = (
    *("pocket", "pocket-eagle", "pocket-eagle3", "vicuna-7b", "longchat-7b", "vicuna-7b-eagle"),
    *("longchat-7b-eagle", "vicuna-7b-v1.3-eagle", "llama3.1-8b-eagle", "llama3.1-8b-eagle3"),
    *("llama3.1-8b", "r1-llama-8b-eagle3", "qwen3-8b", "qwen3-8b-eagle3", "qwen3-4b-eagle3"),
    *("qwen2.5-7b", "smollm2-1.7b", "llama3.1-8b-eagle3-yarn", "qwen3-8b-eagle3-yarn"),
)
DOWNLOADED = [name for name in NAMES if not name.startswith("pocket")]
#: Repositories whose files are float32, though the model runs in half precision.
FLOAT32 = ("double7/", "JackFram/", "jycha-98/", "yuhuili/EAGLE-Vicuna")


def test_all_pairs_are_there() -> None:
    assert set(ASKED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_never_works_on_more_than_it_was_trained_for(name: str) -> None:
    preset = load_preset(name)
    assert preset.retrieval.budget_tokens <= preset.draft.trained_context_tokens
    if preset.draft.is_head and not name.startswith("pocket"):
        assert preset.retrieval.top_chunks == 59
        assert preset.retrieval.budget_tokens == 2048


@pytest.mark.parametrize("name", DOWNLOADED)
def test_sizes_follow_from_the_shapes(name: str) -> None:
    preset = load_preset(name)
    stored = 4 if str(preset.draft.repo).startswith(FLOAT32) else 2
    download = 2 * target_of(preset) + stored * draft_of(preset)
    assert preset.requires.download_gib == pytest.approx(download / GIB, abs=0.06)
    rows = min(preset.context_tokens, 16384)
    draft_rows = rows + min(rows, preset.draft.trained_context_tokens)
    shape = preset.target.shape
    assert shape is not None
    caches = rows * 2 * shape.layers * shape.kv_heads * shape.head_dim
    caches += draft_rows * draft_row(preset)
    memory = 2 * (target_of(preset) + draft_of(preset) + caches) / GIB + 1
    assert preset.requires.memory_at_16k_gib == pytest.approx(memory, abs=0.06)


def test_published_sizes_are_met() -> None:
    """Bytes of the published files, from the Hub's file lists."""
    known = {
        "vicuna-7b-v1.3-eagle": (4, 0, 1.468e9),
        "llama3.1-8b-eagle3": (2, 8 * 32000 + 128256, 0.850e9),
        "qwen3-4b-eagle3": (2, 8 * 32000 + 151936, 0.437e9),
        "vicuna-7b": (4, 0, 0.272e9),
    }
    for name, (item, tables, published) in known.items():
        size = item * draft_of(load_preset(name)) + tables
        assert size == pytest.approx(published, rel=0.003)


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_has_a_source_or_is_called_unverified(name: str) -> None:
    preset = load_preset(name)
    known = {*preset_keys(), *(key.rsplit(".", 1)[0] for key in preset_keys())}
    sources, unverified = preset.requires.sources, preset.requires.unverified
    doubted = [line.partition(":")[0] for line in unverified]
    for key in [*sources, *doubted]:
        assert any(key == each or each.startswith(f"{key}.") for each in known), key
    if name in DOWNLOADED:
        shape = "draft.head_shape" if preset.draft.is_head else "draft.shape"
        for key in ("target.shape", shape, "context_tokens", "draft.trained_context_tokens"):
            assert key in sources or key in doubted, key
        assert "requires.license" in sources or "requires.license" in doubted


@pytest.mark.parametrize("name", NAMES)
def test_sources_are_public(name: str) -> None:
    text = find_preset(name).path.read_text(encoding="utf-8")
    assert not re.search(r"/work|/root|reference/|\w+\.md\b", text)
    yaml.safe_load(text)


def test_a_shape_that_is_wrong_can_be_left_out() -> None:
    """Several were inferred; nobody should have to write a preset because of one."""
    preset = load_preset("vicuna-7b-eagle", {"draft.head_shape": "null", "target.shape": "null"})
    assert (preset.draft.head_shape, preset.target.shape) == (None, None)
    with pytest.raises(UsageError, match="has a head_shape, no shape"):
        load_preset("vicuna-7b", {"draft.kind": "eagle"})


def test_heads_trained_with_another_base_than_they_say() -> None:
    for name in ("qwen3-8b-eagle3", "qwen3-4b-eagle3", "qwen3-8b-eagle3-yarn"):
        head = load_preset(name).draft.head
        assert head is not None
        assert head.rope_theta == 10000.0
    assert load_preset("llama3.1-8b-eagle3").draft.head is None  # absent means 10000


class TestPaper:
    def test_each_row_implies_the_same_plain_speed(self) -> None:
        """tok/s over speed-up is the paper's plain decoding; a typing error would stand out."""
        for pair in (("vicuna-7b", "vicuna-7b-eagle"), ("llama3.1-8b-eagle", "llama3.1-8b-eagle3")):
            plain: dict[object, list[float]] = {}
            for row in [row for name in pair for row in load_preset(name).paper]:
                if not row.suspect and row.speedup_vs_ar:
                    key = (row.data, row.prompt_tokens)
                    plain.setdefault(key, []).append(row.tok_s / row.speedup_vs_ar)
            assert len(plain) in (5, 15)
            for key, speeds in plain.items():
                assert max(speeds) / min(speeds) < 1.02, key

    def test_the_copied_rows_are_suspect(self) -> None:
        numbers = {
            (row.data, row.prompt_tokens): (row.tokens_per_step, row.tok_s)
            for row in load_preset("vicuna-7b").paper
            if row.mode == "spec"
        }
        for row in load_preset("longchat-7b").paper:
            copied = numbers[row.data, row.prompt_tokens] == (row.tokens_per_step, row.tok_s)
            assert row.suspect == (row.mode == "spec") == copied
            assert bool(row.reason) == row.suspect

    def test_the_headline_of_the_paper(self) -> None:
        rows = {row.mode: row for row in load_preset("r1-llama-8b-eagle3").paper}
        assert rows["specx"].tok_s / rows["spec"].tok_s == pytest.approx(3.86, abs=0.005)
        assert rows["specx"].prompt_tokens is None
        last = [
            row for row in load_preset("llama3.1-8b-eagle3").paper if row.prompt_tokens == 16384
        ]
        assert last[1].tok_s / last[0].tok_s == pytest.approx(2.84, abs=0.005)

    def test_a_variant_does_not_inherit_it(self) -> None:
        assert load_preset("llama3.1-8b-eagle3").paper
        assert load_preset("llama3.1-8b-eagle3-yarn").paper == ()


def target_of(preset: Preset) -> int:
    """Parameters of the target."""
    assert preset.target.shape is not None
    return parameters(preset.target.shape)


def draft_of(preset: Preset) -> int:
    """Parameters in the draft's file."""
    head, shape = preset.draft.head_shape, preset.draft.shape
    if head is None:
        assert shape is not None
        return parameters(shape)
    assert preset.target.shape is not None
    embedding = preset.target.shape.vocabulary * head.hidden
    return head_parameters(head) + (embedding if preset.draft.kind == "eagle" else 0)


def draft_row(preset: Preset) -> int:
    """Numbers that the draft caches for a token."""
    head, shape = preset.draft.head_shape, preset.draft.shape
    if head is not None:
        return 2 * head.kv_heads * head.head_dim
    assert shape is not None
    return 2 * shape.layers * shape.kv_heads * shape.head_dim


def parameters(shape: ShapeSpec) -> int:
    """Of a whole model."""
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    if shape.family == "qwen2":
        attention += shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    if shape.family == "qwen3":
        attention += 2 * shape.head_dim
    layer = attention + 3 * shape.hidden * shape.mlp + 2 * shape.hidden
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * layer + shape.hidden


def head_parameters(head: HeadShapeSpec) -> int:
    """Of a head without its embedding."""
    mlp, keys = 3 * head.hidden * head.mlp, head.heads + 2 * head.kv_heads
    output = head.heads * head.head_dim * head.hidden
    if head.features == 1:
        bias = head.hidden if head.bias else 0
        attention = head.hidden * head.head_dim * keys + output
        return 2 * head.hidden**2 + bias + attention + mlp + head.hidden
    attention = 2 * head.hidden * head.head_dim * keys + output
    own = head.features * head.hidden**2 + head.vocabulary * head.hidden
    return own + attention + mlp + 4 * head.hidden
