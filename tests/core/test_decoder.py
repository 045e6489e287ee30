"""The decoder against transformers: every family and rotation, whole texts, chunks and trees."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, PreTrainedConfig, PreTrainedModel

from specx.checkpoints.config import model_config
from specx.core.architecture import DecoderConfig, Shape
from specx.core.attention import Kernels
from specx.core.config import Parts
from specx.core.decoder import Model, Output
from specx.core.forward_passes import ChunkPass
from specx.core.joined import join, separate
from specx.core.rope import inverse_frequencies
from specx.core.target import Target
from specx.core.tree import TokenTree
from tests.core import reference
from tests.core.tiny import (
    FAMILIES,
    PLAIN,
    VOCABULARY,
    config,
    hf_logits,
    hf_model,
    own,
    random_tokens,
)

EAGER = Parts(prefill_attention="eager", tree_attention="masked")
_YARN = {"rope_type": "yarn", "rope_theta": 5e4, "original_max_position_embeddings": 32}
CASES: dict[str, PreTrainedConfig] = {
    **{name: config(name) for name in FAMILIES},
    "tied": config(tie_word_embeddings=True),
    "mha": config(num_key_value_heads=4),
    "mqa": config("qwen3", num_key_value_heads=1),
    "odd heads": config("mistral", head_dim=22),
    "narrow heads": config("qwen3", head_dim=2),
    "width shared by no heads": config("qwen2", hidden_size=30, head_dim=16),
    "biases everywhere": config(attention_bias=True, mlp_bias=True),
    "qwen3 with biases": config("qwen3", attention_bias=True),
    "no head_dim": config("qwen2", head_dim=None, tie_word_embeddings=True),
    "yarn with scales": config(
        rope_parameters=_YARN | {"factor": 8.0, "mscale": 1.2, "mscale_all_dim": 0.7}
    ),
    "yarn with a range": config(
        "qwen3",
        rope_parameters=_YARN
        | {"factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False,
           "attention_factor": 1.1},
    ),
    "another epsilon": config("mistral", rms_norm_eps=0.01),
}  # fmt: skip


def _forward(model: Model, tokens: Tensor, **more: Any) -> Output:
    cache = model.new_cache(len(tokens))
    attention = ChunkPass(cache, 0, Kernels(), "fused")
    return model.forward(tokens, torch.arange(len(tokens), device=model.device), attention, **more)


def _tree(size: int, seed: int = 0) -> TokenTree:
    noise = torch.Generator().manual_seed(seed)
    parents = [0] + [int(torch.randint(0, node, (1,), generator=noise)) for node in range(1, size)]
    return TokenTree.build(random_tokens(size, seed + 1).tolist(), parents)


def _prefilled(model: Model, tokens: Tensor, parts: Parts, chunk: int = 16) -> Target:
    target = Target(model, len(tokens) + 40, parts, Kernels())
    for piece in tokens.split(chunk):
        target.read(piece)
    return target


def _assert_same(got: Tensor, expected: Tensor) -> None:
    """Logits are of order ten; float32 rounding grows to some 1e-5 over two wide layers."""
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_features_and_query_are_those_of_transformers(name: str) -> None:
    plain, tokens = hf_model(CASES[name]), random_tokens(60)
    model = own(plain)
    theirs = plain(tokens[None], output_hidden_states=True, output_attentions=True)
    found = _forward(model, tokens)
    _assert_same(found.logits, theirs.logits[0])
    torch.testing.assert_close(found.features, theirs.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
    model.tap((1, 0))
    features = torch.cat([theirs.hidden_states[layer][0] for layer in (1, 0)], dim=-1)
    tapped = _forward(model, tokens)
    torch.testing.assert_close(tapped.features, features, atol=1e-4, rtol=1e-4)
    assert model.feature_width == features.shape[1]
    assert torch.equal(tapped.logits, found.logits)
    _assert_attends(model, tokens, theirs.attentions[-1][0])


def _assert_attends(model: Model, tokens: Tensor, expected: Tensor) -> None:
    """The query over the cached keys gives the last layer's attention [H, n, n]."""
    cache, shape = model.new_cache(len(tokens)), model.shape
    attention = ChunkPass(cache, 0, Kernels(), "fused")
    query = model.forward(tokens, torch.arange(len(tokens)), attention).query
    assert query.shape == (shape.heads, len(tokens), shape.head_dim)
    keys = cache.keys[-1].repeat_interleave(shape.heads // shape.kv_heads, 0)
    scores = query @ keys.transpose(1, 2) * shape.head_dim**-0.5
    seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    found = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_of_transformers_to_the_bit(name: str) -> None:
    facts = model_config(CASES[name].to_dict()).decoder
    theirs = hf_model(CASES[name]).model.rotary_emb
    assert torch.equal(inverse_frequencies(facts.rope, facts.shape.head_dim), theirs.inv_freq)
    assert facts.rope.table_factor == theirs.attention_scaling


def test_factors_of_a_family_are_facts_and_no_code() -> None:
    """Granite scales embeddings, scores, what layers add, and logits. specx does not run it yet;
    this holds that it takes no more than facts."""
    fields = config().to_dict() | {"embedding_multiplier": 6.0, "attention_multiplier": 0.3,
                                   "residual_multiplier": 0.4, "logits_scaling": 3.0}  # fmt: skip
    plain = hf_model(GraniteConfig(**{**fields, "model_type": "granite"}))
    rope = model_config(config().to_dict()).decoder.rope
    facts = DecoderConfig(
        Shape(2, 4, 2, 8, VOCABULARY, 32, 64),
        epsilon=plain.config.rms_norm_eps,
        rope=rope,
        score_scale=0.3,
        embedding_factor=6.0,
        residual_factor=0.4,
        logit_divisor=3.0,
    )
    tensors = {name.removeprefix("model."): each for name, each in plain.state_dict().items()}
    model = Model(facts, join(tensors, "cpu", torch.float32))
    tokens = random_tokens(30)
    _assert_same(_forward(model, tokens).logits, hf_logits(plain, tokens))


@pytest.mark.parametrize("parts", [PLAIN, EAGER], ids=["fused", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_path_of_a_tree_has_the_logits_of_transformers(name: str, parts: Parts) -> None:
    plain = hf_model(config(name))
    prompt, tree = random_tokens(75), _tree(11)
    target = _prefilled(own(plain), prompt, parts)
    logits, hidden = target.verify(tree)
    assert logits.shape == (11, VOCABULARY)
    assert hidden.shape == (11, 32)
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    for node in range(tree.size):
        path = reference.ancestors(parents, node)
        theirs = hf_logits(plain, prompt.tolist() + [tokens[step] for step in path])
        _assert_same(logits[path], theirs[-len(path) :])


@pytest.mark.parametrize("name", ["llama-yarn", "qwen3"])
def test_after_the_tree_only_the_kept_path_remains(name: str) -> None:
    plain = hf_model(config(name))
    prompt, tree = random_tokens(40), _tree(9)
    target = _prefilled(own(plain), prompt, PLAIN)
    target.verify(target.place(tree))
    deepest = int(tree.depths.argmax())
    path = torch.tensor(reference.ancestors(tree.parents.tolist(), deepest))
    target.cache.compact(path, target.progress.length)
    target.settle(len(path))
    target.progress.length.fill_(target.cache.length)
    logits, _ = target.verify(target.place(TokenTree.root_only(torch.tensor([5]))))
    text = prompt.tolist() + tree.tokens[path].tolist() + [5]
    _assert_same(logits, hf_logits(plain, text)[-1:])


@pytest.mark.parametrize("chunk", [1, 7, 30, 31, 64])
def test_a_prompt_read_in_chunks_of_any_size_gives_the_same_logits(chunk: int) -> None:
    plain = hf_model(config())
    prompt = random_tokens(31)
    target = Target(own(plain), 31, PLAIN, Kernels())
    theirs = hf_logits(plain, prompt)
    done = 0
    for piece in prompt.split(chunk):
        logits, hidden = target.read(piece)
        done += len(piece)
        assert hidden.shape == (len(piece), 32)
        _assert_same(logits, theirs[done - 1 : done])


def test_a_long_prompt_keeps_its_precision() -> None:
    plain = hf_model(config("llama-llama3"))
    prompt = random_tokens(1500)
    target = Target(own(plain), 1500, PLAIN, Kernels())
    logits = [target.read(piece)[0] for piece in prompt.split(512)][-1]
    _assert_same(logits, hf_logits(plain, prompt)[-1:])


def test_logits_are_computed_for_the_rows_asked_for_only() -> None:
    model, tokens = own(hf_model(config())), random_tokens(12)
    outputs = [_forward(model, tokens, logits_from=first) for first in (0, 9, 11)]
    assert [output.logits.shape[0] for output in outputs] == [12, 3, 1]
    assert all(output.features.shape[0] == 12 for output in outputs)
    _assert_same(outputs[1].logits, outputs[0].logits[9:])


def test_the_head_gives_a_row_the_same_bits_whatever_rows_stand_beside_it() -> None:
    """Regression: the head was looked up before the linear layers were packed, so the packed one
    was made and never used: logits, the largest product of all, kept the slow path and the
    rounding that depends on the row count."""
    wide = config(hidden_size=256, vocab_size=1031, num_hidden_layers=1)
    model, tokens = own(hf_model(wide)), random_tokens(33)
    every = _forward(model, tokens).logits
    for first in (20, 25, 29, 30, 31, 32):
        some = _forward(model, tokens, logits_from=first).logits
        assert torch.equal(some, every[first:]), f"{33 - first} of 33 rows"


class _Swapping:
    """Attention that only mixes heads; its result lies in memory one way or the other."""

    def __init__(self, contiguous: bool) -> None:
        self.contiguous = contiguous

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out = query + 0.5 * torch.cat([value] * (query.shape[0] // value.shape[0]))
        return out.contiguous() if self.contiguous else out.transpose(0, 1).clone().transpose(0, 1)


def test_the_rows_of_a_batch_get_the_same_bits_as_one_alone() -> None:
    """In float32 on a CPU, through all layers: what makes a verified row equal a plain one."""
    wide = config("qwen3", hidden_size=256, intermediate_size=704, head_dim=32)
    model, tokens = own(hf_model(wide)), random_tokens(33)
    places = torch.arange(33)
    every = model.hidden(tokens, places, _Swapping(contiguous=True))
    assert torch.equal(every, model.hidden(tokens, places, _Swapping(contiguous=False)))
    for first, last in ((0, 1), (7, 8), (3, 16), (1, 33)):
        some = model.hidden(tokens[first:last], places[first:last], _Swapping(contiguous=True))
        assert torch.equal(some, every[first:last])


def test_two_requests_on_one_model_do_not_disturb_each_other() -> None:
    plain = hf_model(config())
    model = own(plain)
    prompts = [random_tokens(24, seed=5), random_tokens(24, seed=6)]
    targets = [Target(model, 24, PLAIN, Kernels()) for _ in prompts]
    for first, second in zip(prompts[0].split(8), prompts[1].split(8), strict=True):
        last = [targets[0].read(first)[0], targets[1].read(second)[0]]
    for mine, prompt in zip(last, prompts, strict=True):
        _assert_same(mine, hf_logits(plain, prompt)[-1:])


def test_measuring_the_costs_leaves_the_cache_as_it_was() -> None:
    plain = hf_model(config())
    prompt = random_tokens(30)
    target = _prefilled(own(plain), prompt, PLAIN)
    costs = target.measure()
    assert target.cache.length == 30
    assert costs.verify_s(1) > 0.0
    logits, _ = target.verify(TokenTree.root_only(torch.tensor([5])))
    _assert_same(logits, hf_logits(plain, [*prompt.tolist(), 5])[-1:])


@pytest.mark.parametrize("room", [1, 3, 5])
def test_costs_can_be_measured_with_little_room_left(room: int) -> None:
    target = Target(own(hf_model(config())), 20 + room, PLAIN, Kernels())
    target.read(random_tokens(20))
    assert target.measure().verify_s(4) > 0.0


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_knows_its_sizes(tied: bool) -> None:
    changes = {"num_key_value_heads": 1, "num_hidden_layers": 3, "tie_word_embeddings": tied}
    hf = hf_model(config("qwen3", **changes))
    model = own(hf)
    shape = model.shape
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (3, 4, 1, 8)
    assert (shape.vocabulary, shape.hidden, shape.mlp) == (VOCABULARY, 32, 64)
    parameters = sum(weight.numel() for weight in hf.parameters())
    assert model.weights_bytes == 4 * parameters, "counted as loaded, also where packed"
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"


class TestTensors:
    """Names are checked to the last one, and the weights are nobody else's."""

    def made(self, **changes: Tensor) -> Model:
        plain = hf_model(config())
        tensors = {name.removeprefix("model."): each for name, each in plain.state_dict().items()}
        joined = join(tensors, "cpu", torch.float32) | changes
        assert tensors == {}
        model = Model(model_config(plain.config.to_dict()).decoder, joined)
        assert joined == {}, "taken over"
        return model

    def test_one_without_a_place_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"layers.2.mlp.down_proj.weight has no place"):
            self.made(**{"layers.2.mlp.down_proj.weight": torch.ones(32, 64)})

    def test_a_missing_one_is_named(self) -> None:
        facts = model_config(config(num_hidden_layers=3).to_dict()).decoder
        tensors = hf_model(config()).state_dict()
        tensors = {name.removeprefix("model."): each for name, each in tensors.items()}
        with pytest.raises(ValueError, match=r"layers.2.self_attn.qkv_proj.weight is missing"):
            Model(facts, join(tensors, "cpu", torch.float32))

    def test_a_forward_leaves_them_as_they_are(self) -> None:
        model = self.made()
        table = model.embedding.clone()
        first = _forward(model, random_tokens(9)).logits
        assert torch.equal(_forward(model, random_tokens(9)).logits, first)
        assert torch.equal(model.embedding, table)

    @pytest.mark.parametrize("layers", [(2,), (-1, 0)])
    def test_layers_that_are_not_there_cannot_be_tapped(self, layers: tuple[int, ...]) -> None:
        with pytest.raises(IndexError):
            self.made().tap(layers)

    @pytest.mark.parametrize("name", ["qwen2", "qwen3"])
    def test_joining_and_separating_are_opposites(self, name: str) -> None:
        plain = hf_model(config(name))
        before = {name.removeprefix("model."): each for name, each in plain.state_dict().items()}
        joined = join(dict(before), "cpu", torch.float32)
        after = separate(joined, model_config(plain.config.to_dict()).shape)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], each) for name, each in before.items())
        places = {each.untyped_storage().data_ptr() for each in after.values()}
        assert len(places) == len(joined), "views of the same memory"

    def test_joining_casts_what_is_of_floating_point(self) -> None:
        tensors = {"a.weight": torch.ones(2, dtype=torch.float64), "d2t": torch.arange(3)}
        found = join(tensors, "cpu", torch.float16)
        assert [each.dtype for each in found.values()] == [torch.float16, torch.int64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_too(dtype: torch.dtype) -> None:
    plain, prompt = hf_model(config()), random_tokens(20)
    expected = hf_logits(plain, prompt)[-1:]
    logits, _ = Target(own(plain.to(dtype)), 20, PLAIN, Kernels()).read(prompt)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-4 if dtype == torch.float64 else 0.5
    torch.testing.assert_close(logits.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 10, 64, 700])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
@torch.inference_mode()
def test_real_shapes_on_a_gpu(name: str, count: int, dtype: torch.dtype) -> None:
    wide = config(
        name,
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        initializer_range=0.02,
    )
    plain: PreTrainedModel = hf_model(wide).cuda()
    tokens = random_tokens(count).cuda()
    expected = plain(tokens[None]).logits[0]
    plain = plain.to(dtype)
    rounded = plain(tokens[None]).logits[0].float()  # what rounding alone does
    got = _forward(own(plain), tokens).logits.float()
    floor = (rounded - expected).abs().max()
    assert (got - expected).abs().max() <= 2 * floor + 1e-3


def test_the_first_layer_alone_is_a_model_of_one_layer() -> None:
    """What kernels are compiled ahead over; the whole model stays as it was."""
    plain, tokens = hf_model(config()), random_tokens(20)
    model, whole = own(plain), hf_logits(plain, tokens)
    short = model.first_layer()
    plain.model.layers = plain.model.layers[:1]
    assert (short.shape.layers, short.feature_width) == (1, 0)
    _assert_same(_forward(short, tokens).logits, hf_logits(plain, tokens))
    _assert_same(_forward(model, tokens).logits, whole)
