"""EAGLE heads: unrolled training equals drafting with a cache, losses are right, training runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from training import checkpoint, train
from training.batches import Batch, Source
from training.forward import Forward, Weights, make_config, make_model, weights_of
from training.head_objective import (
    ANSWER_ODDS,
    LEAP_ODDS,
    HeadObjective,
    agreement,
    draw_roots,
    frozen_loss,
    leaps,
    root_odds,
)
from training.head_training import PROBE_STEPS, _scores
from training.heads import (
    HeadWeights,
    feature_layers,
    for_logits,
    make_head,
    target_features,
    unroll,
)


@pytest.fixture(scope="module")
def target() -> Weights:
    config = make_config(
        hidden=64, layers=8, heads=4, kv_heads=2, mlp=96, theta=1e6, positions=512, vocabulary=300
    )
    model = make_model(config, seed=0).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return weights_of(model)


@pytest.fixture(scope="module", params=[False, True], ids=["eagle", "eagle3"])
def head(request: pytest.FixtureRequest, target: Weights) -> HeadWeights:
    head = make_head(target, eagle3=request.param, mlp=80, seed=3)
    for tensor in head.tensors.values():
        tensor.add_(torch.randn_like(tensor) * 0.1)
    return head


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


class Drafter:
    """The published forward of a head on the tensors of its file, one pair at a time, with a cache.

    Written apart from the training code: heads 4 of 16, 2 of them for keys, RoPE base 10000.
    """

    def __init__(self, tensors: dict[str, Tensor], embedding: Tensor) -> None:
        self.tensors, self.embedding = tensors, embedding
        self.eagle3 = "norm.weight" in tensors
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def run(self, token: int, feature: Tensor, position: int, *, fed_back: bool) -> Tensor:
        prefix = "midlayer." if self.eagle3 else "layers.0."
        layer = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        e, fc = self.embedding[token], self.tensors["fc.weight"]
        if self.eagle3:
            hidden = feature if fed_back else fc @ feature
            norm_e, norm_h = layer["input_layernorm.weight"], layer["hidden_norm.weight"]
            x = torch.cat([rms(e, norm_e), rms(hidden, norm_h)])
        else:
            x = hidden = fc @ torch.cat([e, feature]) + self.tensors["fc.bias"]
        q, k, v = (layer[f"self_attn.{n}_proj.weight"] @ x for n in "qkv")
        self.keys.append(self.turn(k.view(2, 16), position))
        self.values.append(v.view(2, 16))
        mixed = []
        for index, query in enumerate(self.turn(q.view(4, 16), position)):
            keys = torch.stack([key[index // 2] for key in self.keys])
            values = torch.stack([value[index // 2] for value in self.values])
            mixed.append((keys @ query / 4).softmax(0) @ values)
        hidden = hidden + layer["self_attn.o_proj.weight"] @ torch.cat(mixed)
        x = rms(hidden, layer["post_attention_layernorm.weight"])
        x = F.silu(layer["mlp.gate_proj.weight"] @ x) * (layer["mlp.up_proj.weight"] @ x)
        return hidden + layer["mlp.down_proj.weight"] @ x

    @staticmethod
    def turn(x: Tensor, position: int) -> Tensor:
        angle = position / 10_000 ** (torch.arange(8) / 8)
        a, b = x[:, :8], x[:, 8:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1)

    def forget(self, count: int) -> None:
        del self.keys[count:], self.values[count:]


@torch.no_grad()
def test_unrolled_steps_equal_drafting_with_a_cache(target: Weights, head: HeadWeights) -> None:
    length, steps = 14, 5
    tokens = torch.randint(300, (2, length + 1), generator=torch.Generator().manual_seed(1))
    forward = Forward.make(compiled=False)
    features, _ = target_features(forward, target, tokens[:, :-1], head.reads)
    roots = torch.tensor([[1, 2, 6, 8], [0, 3, 4, 9]])
    outputs = unroll(head, target.embedding, features, tokens, roots, steps)
    drafter = Drafter(head.folded(), target.embedding)
    text = tokens[1].tolist()
    for t in range(length):
        out = drafter.run(text[t + 1], features[1, t], t, fed_back=False)
        if t in roots[1]:
            row = roots[1].tolist().index(t)
            torch.testing.assert_close(outputs[0][1, row], out, atol=2e-5, rtol=1e-4)
            for step in range(2, steps + 1):
                out = drafter.run(text[t + step], out, t + step - 1, fed_back=True)
                mine = outputs[step - 1][1, row]
                torch.testing.assert_close(mine, out, atol=2e-5, rtol=1e-4)
            drafter.forget(t + 1)


@torch.no_grad()
def test_features_are_the_targets_states(target: Weights, head: HeadWeights) -> None:
    config = make_config(
        hidden=64, layers=8, heads=4, kv_heads=2, mlp=96, theta=1e6, positions=512, vocabulary=300
    )
    model = make_model(config, seed=5)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    weights, tokens = weights_of(model), torch.randint(300, (1, 20))
    states = model(tokens, output_hidden_states=True).hidden_states
    features, last = target_features(Forward.make(compiled=False), weights, tokens, head.reads)
    wanted = torch.cat([states[2], states[4], states[7]], -1) if head.eagle3 else states[-1]
    torch.testing.assert_close(features, wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(last, states[-1], atol=2e-5, rtol=1e-4)


def test_a_shallow_target_is_refused_for_eagle3(target: Weights) -> None:
    shallow = Weights(target.shape, target.theta, target.embedding, target.blocks[:5], target.norm)
    with pytest.raises(ValueError, match="6 layers"):
        feature_layers(shallow)


def test_the_frozen_loss_has_the_gradient_of_the_divergence() -> None:
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    matrix, taught = torch.randn(30, 8), torch.randn(2, 5, 8)
    weight = torch.rand(2, 5)
    values, agree = frozen_loss(hidden, taught, matrix)
    (mine,) = torch.autograd.grad((values * weight).sum(), hidden)
    logits, wanted = hidden @ matrix.t(), (taught @ matrix.t()).softmax(-1)
    plain = F.kl_div(logits.log_softmax(-1), wanted, reduction="none").sum(-1)
    (right,) = torch.autograd.grad((plain * weight).sum(), hidden)
    torch.testing.assert_close(values, plain)
    torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-4)
    assert (agree.bool() == (logits.argmax(-1) == wanted.argmax(-1))).all()


@torch.no_grad()
def test_a_head_that_says_what_the_target_says_has_no_loss(
    target: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step j from root r is compared with the target at r + j."""
    head = make_head(target, eagle3=False, mlp=80, seed=1)
    objective = HeadObjective(head, target, 3, 4, 1.0, 1.0)
    objective.prepare(compiled=False)
    tokens, kinds = torch.randint(300, (2, 13)), torch.zeros(2, 13, dtype=torch.int64)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    _, last = target_features(Forward.make(compiled=False), target, tokens[:, :-1], ())

    def losses(shift: int) -> list[float]:
        def right(
            head: HeadWeights, embedding: Tensor, features: Tensor, tokens: Tensor, roots: Tensor,
            steps: int,
        ) -> list[Tensor]:  # fmt: skip
            rows = torch.arange(2)[:, None]
            return [last[rows, roots + step + shift] for step in range(1, steps + 1)]

        monkeypatch.setattr("training.head_objective.unroll", right)
        total, values = objective(Batch(tokens, kinds, nothing, nothing), 1.0)
        return [float(total), *values.tolist()]

    total, text, answer, feature, text_1, text_last, answer_1, _ = losses(0)
    assert max(abs(total), abs(text), abs(feature)) < 1e-5
    assert (text_1, text_last) == (1.0, 1.0)
    assert (answer, answer_1) == (0.0, 0.0)  # all are text, none an answer
    total, text, _, feature, *_ = losses(-1)
    assert min(total, text, feature) > 0.01


def answers_that_copy(sources: list[int]) -> Batch:
    """An answer of len(sources) tokens, each copied from there, after 10 tokens of text."""
    tokens, kinds = torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 40, dtype=torch.int64)
    kinds[0, 10 : 10 + len(sources)] = 1
    rows = torch.tensor([[*range(9, 9 + len(sources)), 0, 0]])  # unused rows say -1
    return Batch(tokens, kinds, rows, torch.tensor([[*sources, -1, -1]]))


def test_a_leap_is_where_the_source_does_not_follow() -> None:
    batch = answers_that_copy([2, 3, 4, 7, 8, -1, 9, 5])
    where = leaps(batch)[0].nonzero().flatten().tolist()
    assert where == [10, 13, 16, 17]
    assert not leaps(answers_that_copy([])).any()


def test_roots_near_leaps_and_in_answers_have_better_odds() -> None:
    odds = root_odds(answers_that_copy([*range(12), 30, 31]), 36)[0]
    # leaps are the tokens 10 and 22; root r guesses tokens r + 2, r + 3, ...
    assert odds[:7].tolist() == [1.0] * 7
    assert odds[8:12].tolist() == odds[20:24].tolist() == [LEAP_ODDS] * 4
    assert odds[12:20].tolist() == [ANSWER_ODDS] * 8
    assert odds[24:].tolist() == [1.0] * 12


def test_roots_are_drawn_by_their_odds() -> None:
    odds = torch.ones(200, 64)
    odds[:, 40:48] = 8.0
    roots = draw_roots(odds, 16)
    assert roots.shape == (200, 16)
    assert (roots.diff(dim=1) > 0).all()  # ascending, none twice
    assert 0 <= int(roots.min()) < int(roots.max()) <= 63
    # the odds are 8 : 1, with 8 among 64: about 6.3 of these 8 and 9.7 of 56 others
    drawn = float((odds.gather(1, roots) > 1).sum(1).float().mean())
    assert 5.8 < drawn < 6.9
    everything = draw_roots(odds, 64)
    assert torch.equal(everything, torch.arange(64).expand(200, -1))


@torch.no_grad()
def test_agreement_counts_the_steps_of_every_root(target: Weights, head: HeadWeights) -> None:
    few = replace(target, embedding=target.embedding[:4])  # so that both often choose the same
    tokens = torch.randint(4, (41,), generator=torch.Generator().manual_seed(2))
    forward = Forward.make(compiled=False)
    right = agreement(forward, head, few, tokens, 3)
    assert right.shape == (3, 37)
    assert 0.05 < right.float().mean() < 0.95
    features, last = target_features(forward, few, tokens[None, :-1], head.reads)
    roots = torch.arange(37)
    outputs = unroll(head, few.embedding, features, tokens[None], roots[None], 3)
    for step, output in enumerate(outputs):
        guess = (for_logits(head, output[0]) @ few.embedding.t()).argmax(-1)
        chosen = (last[0] @ few.embedding.t()).argmax(-1)
        assert right[step].tolist() == [bool(guess[r] == chosen[r + step + 1]) for r in range(37)]


def test_scores_tell_answers_from_text() -> None:
    answers = np.zeros(40, bool)
    answers[20:30] = True
    right = np.zeros((PROBE_STEPS, 31), bool)
    right[0] = True
    right[1, answers[3:34]] = True  # step 2 from root r predicts token r + 3
    scores = _scores([right], [answers])
    assert (scores["text_1"], scores["text_2"], scores["text_3"]) == (1.0, 0.0, 0.0)
    assert (scores["answer_1"], scores["answer_2"]) == (1.0, 1.0)
    assert scores["answer_run"] == 1.9  # the last answer token's second step is text again


@pytest.fixture
def micro_target(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train, "source", lambda options: source)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make_config(
        hidden=64, layers=8, heads=4, kv_heads=2, mlp=128, theta=1e6, positions=2048
    )
    folder = tmp_path / "target"
    checkpoint.save(make_model(config, 0), folder, train.TOKENIZER, {})
    return folder


_LAYER_KEYS = {
    *(f"self_attn.{n}_proj.weight" for n in "qkvo"),
    *(f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
    "post_attention_layernorm.weight",
}


@pytest.mark.parametrize("model", ["eagle", "eagle3"])
def test_training_end_to_end(
    model: str, source: Source, micro_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*extra: object) -> None:
        arguments = (
            "train", model, "--corpus", source.corpus, "--work", tmp_path, "--micro",
            "--target", micro_target, "--out", tmp_path / model, "--phases", "128:60",
            "--step-tokens", 256, "--micro-tokens", 128, "--workers", 0, "--probe-count", 1,
            "--steps", 3, "--roots", 32, *extra,
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        train.main()

    run("--max-steps", 2)
    tensors = load_file(tmp_path / model / "model.safetensors")
    config = json.loads((tmp_path / model / "config.json").read_text())
    log = json.loads((tmp_path / model / "training.json").read_text())
    if model == "eagle":
        assert set(tensors) == {"fc.weight", "fc.bias", *(f"layers.0.{n}" for n in _LAYER_KEYS)}
        assert tensors["fc.weight"].shape == (64, 128)
        assert config["bias"] is True
    else:
        keys = _LAYER_KEYS | {"hidden_norm.weight", "input_layernorm.weight"}
        assert set(tensors) == {"fc.weight", "norm.weight", *(f"midlayer.{n}" for n in keys)}
        assert tensors["fc.weight"].shape == (64, 192)
        assert tensors["midlayer.self_attn.k_proj.weight"].shape == (32, 128)
        assert config["draft_vocab_size"] == config["vocab_size"] == 8192
        assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 7]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert (config["rope_theta"], config["max_position_embeddings"]) == (10_000.0, 1024)
    assert log["phases"][0]["steps"] == 2
    assert set(log["probe"]) >= {"text_1", "answer_8", "answer_run"}
    run("--max-steps", 0, "--resume", tmp_path / model)
    again = load_file(tmp_path / model / "model.safetensors")
    for name, tensor in tensors.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-3, rtol=2e-3)


def test_training_goes_on_only_from_the_same_kind_of_head(
    target: Weights, head: HeadWeights, tmp_path: Path
) -> None:
    """A head that reads other layers has the same shapes: nothing else would tell."""
    checkpoint.save_head(head, tmp_path / "head", 300, 512, {})
    assert set(checkpoint.load_head(tmp_path / "head", head)) == set(head.tensors)
    with pytest.raises(ValueError, match="reads the layers"):
        checkpoint.load_head(tmp_path / "head", replace(head, reads=(1, 4, 7)))
    wider = make_head(target, eagle3=head.eagle3, mlp=96, seed=3)
    with pytest.raises(ValueError, match="no head of the wanted shape"):
        checkpoint.load_head(tmp_path / "head", wider)


def test_a_head_needs_its_target(source: Source, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train, "source", lambda options: source)
    arguments = ["train", "eagle", "--corpus", "x", "--work", str(tmp_path), "--out", "x"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="--target is missing"):
        train.main()
