"""The Hugging Face seam: chunked prefill and tree rows give plain Hugging Face logits."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specx.core.attention import SdpaKernels
from specx.core.config import Parts
from specx.core.forward_passes import ChunkPass
from specx.core.linear import PackedLinear
from specx.core.model import Model
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
    random_tokens,
    twin,
)

EAGER = Parts(prefill_attention="eager", tree_attention="masked")


def _tree(size: int, seed: int = 0) -> TokenTree:
    noise = torch.Generator().manual_seed(seed)
    parents = [0] + [int(torch.randint(0, node, (1,), generator=noise)) for node in range(1, size)]
    return TokenTree.build(random_tokens(size, seed + 1).tolist(), parents)


def _prefilled(model: Model, tokens: Tensor, parts: Parts, chunk: int = 16) -> Target:
    target = Target(model, len(tokens) + 40, parts, SdpaKernels())
    for piece in tokens.split(chunk):
        target.read(piece)
    return target


def _assert_same(got: Tensor, expected: Tensor) -> None:
    """Logits are of order ten; float32 rounding grows to some 1e-5 over two wide layers."""
    torch.testing.assert_close(got, expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", [PLAIN, EAGER], ids=["fused", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_path_of_a_tree_has_the_logits_of_plain_hugging_face(
    name: str, kv_heads: int, parts: Parts
) -> None:
    plain = hf_model(config(name, num_key_value_heads=kv_heads))
    prompt, tree = random_tokens(75), _tree(11)
    target = _prefilled(Model(twin(plain)), prompt, parts)
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
    target = _prefilled(Model(twin(plain)), prompt, PLAIN)
    target.verify(target.place(tree))
    deepest = int(tree.depths.argmax())
    path = torch.tensor(reference.ancestors(tree.parents.tolist(), deepest))
    target.cache.compact(path, target.progress.length)
    target.settle(len(path))
    target.progress.read(target.cache.length)
    logits, _ = target.verify(target.place(TokenTree.root_only(torch.tensor([5]))))
    text = prompt.tolist() + tree.tokens[path].tolist() + [5]
    _assert_same(logits, hf_logits(plain, text)[-1:])


@pytest.mark.parametrize("chunk", [1, 7, 30, 31, 64])
def test_a_prompt_read_in_chunks_of_any_size_gives_the_same_logits(chunk: int) -> None:
    plain = hf_model(config())
    prompt = random_tokens(31)
    target = Target(Model(twin(plain)), 31, PLAIN, SdpaKernels())
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
    target = Target(Model(twin(plain)), 1500, PLAIN, SdpaKernels())
    logits = [target.read(piece)[0] for piece in prompt.split(512)][-1]
    _assert_same(logits, hf_logits(plain, prompt)[-1:])


def test_tied_embeddings_without_a_head_dim_are_fine() -> None:
    settings = config("qwen2", tie_word_embeddings=True, head_dim=None)
    plain = hf_model(settings)
    model = Model(twin(plain))
    assert model.shape.head_dim == 8
    target = Target(model, 20, PLAIN, SdpaKernels())
    prompt = random_tokens(20)
    _assert_same(target.read(prompt)[0], hf_logits(plain, prompt)[-1:])


def test_logits_are_computed_for_the_rows_asked_for_only() -> None:
    model, tokens = Model(hf_model(config())), random_tokens(12)
    outputs = []
    for first in (0, 9, 11):
        target = Target(model, 12, PLAIN, SdpaKernels())
        attention = ChunkPass(target.cache, target.cache.stage(12), SdpaKernels(), "fused")
        outputs.append(model.forward(tokens, torch.arange(12), attention, logits_from=first))
    assert [output.logits.shape[0] for output in outputs] == [12, 3, 1]
    assert all(output.features.shape[0] == 12 for output in outputs)
    _assert_same(outputs[1].logits, outputs[0].logits[9:])


def test_the_head_gives_a_row_the_same_bits_whatever_rows_stand_beside_it() -> None:
    """Regression: the head was looked up before the linear layers were packed, so the packed one
    was made and never used: logits, the largest product of all, kept the slow path and the
    rounding that depends on the row count."""
    wide = config(hidden_size=256, vocab_size=1031, num_hidden_layers=1)
    model, tokens = Model(hf_model(wide)), random_tokens(33)
    target = Target(model, 33, PLAIN, SdpaKernels())
    attention = ChunkPass(target.cache, target.cache.stage(33), SdpaKernels(), "fused")
    every = model.forward(tokens, torch.arange(33), attention).logits
    for first in (20, 25, 29, 30, 31, 32):
        some = model.forward(tokens, torch.arange(33), attention, logits_from=first).logits
        assert torch.equal(some, every[first:]), f"{33 - first} of 33 rows"


def test_two_models_of_one_config_object_do_not_disturb_each_other() -> None:
    """transformers keeps the attention's name on the config, which two models may share."""
    shared = config()
    models, plains = [], []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            hf = AutoModelForCausalLM.from_config(shared, dtype=torch.float32).eval()
        plain = copy.deepcopy(hf)
        plain.set_attn_implementation("eager")
        plains.append(plain)
        models.append(Model(hf))
    prompts = [random_tokens(20, seed=3), random_tokens(33, seed=4)]
    targets = [Target(model, 40, PLAIN, SdpaKernels()) for model in models]
    logits = [
        [target.read(piece)[0] for piece in prompt.split(11)]
        for target, prompt in zip(targets, prompts, strict=True)
    ]
    for mine, plain, prompt in zip(logits, plains, prompts, strict=True):
        _assert_same(mine[-1], hf_logits(plain, prompt)[-1:])


def test_two_requests_on_one_model_do_not_disturb_each_other() -> None:
    plain = hf_model(config())
    model = Model(twin(plain))
    prompts = [random_tokens(24, seed=5), random_tokens(24, seed=6)]
    targets = [Target(model, 24, PLAIN, SdpaKernels()) for _ in prompts]
    for first, second in zip(prompts[0].split(8), prompts[1].split(8), strict=True):
        last = [targets[0].read(first)[0], targets[1].read(second)[0]]
    for mine, prompt in zip(last, prompts, strict=True):
        _assert_same(mine, hf_logits(plain, prompt)[-1:])


def test_measuring_the_costs_leaves_the_cache_as_it_was() -> None:
    plain = hf_model(config())
    prompt = random_tokens(30)
    target = _prefilled(Model(twin(plain)), prompt, PLAIN)
    costs = target.measure()
    assert target.cache.length == 30
    assert costs.verify_s(1) > 0.0
    logits, _ = target.verify(TokenTree.root_only(torch.tensor([5])))
    _assert_same(logits, hf_logits(plain, [*prompt.tolist(), 5])[-1:])


@pytest.mark.parametrize("room", [1, 3, 5])
def test_costs_can_be_measured_with_little_room_left(room: int) -> None:
    target = Target(Model(hf_model(config())), 20 + room, PLAIN, SdpaKernels())
    target.read(random_tokens(20))
    assert target.measure().verify_s(4) > 0.0


def test_a_model_knows_its_sizes() -> None:
    hf = hf_model(config(num_key_value_heads=1, num_hidden_layers=3))
    parameters = sum(weight.numel() for weight in hf.parameters())
    model = Model(hf)
    shape = model.shape
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (3, 4, 1, 8)
    assert shape.vocabulary == VOCABULARY
    assert model.weights_bytes == 4 * parameters, "counted as loaded, also where packed"
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"


def test_packing_is_optional() -> None:
    packed, plain = Model(hf_model(config())), Model(hf_model(config()), pack=False)
    prompt = random_tokens(20)
    logits = [Target(model, 20, PLAIN, SdpaKernels()).read(prompt)[0] for model in (packed, plain)]
    _assert_same(logits[0], logits[1])


def test_packing_replaces_the_layers_of_the_model() -> None:
    hf = hf_model(config())
    Model(hf)
    assert any(isinstance(module, PackedLinear) for module in hf.get_decoder().modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_too(dtype: torch.dtype) -> None:
    plain = hf_model(config())
    model = Model(twin(plain).to(dtype))
    prompt = random_tokens(20)
    logits, _ = Target(model, 20, PLAIN, SdpaKernels()).read(prompt)
    assert logits.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.5
    expected = hf_logits(plain, prompt)[-1:]
    torch.testing.assert_close(logits.float(), expected, atol=tolerance, rtol=tolerance)
