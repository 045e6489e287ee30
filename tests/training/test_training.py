"""The forward pass equals Hugging Face's; the pointer loss looks where it should; training runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import train
from training.batches import Source
from training.forward import Forward, make_config, make_model, normalise, weights_of
from training.optim import orthogonal, trapezoid


@pytest.fixture
def model():
    config = make_config(
        hidden=64, layers=3, heads=4, kv_heads=2, mlp=96, theta=1e6, positions=4096
    )
    model = make_model(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    return model


def test_forward_equals_hugging_face(model):
    tokens = torch.randint(0, 8192, (2, 90))
    weights = weights_of(model)
    with torch.no_grad():
        _, hidden = Forward.make(compiled=False).hidden_states(weights, tokens)
        mine = F.linear(normalise(hidden, weights.norm, weights.shape.epsilon), weights.embedding)
        torch.testing.assert_close(mine, model(tokens).logits, atol=5e-5, rtol=1e-4)


def test_pointer_mass_is_the_last_layers_attention(model):
    tokens = torch.randint(0, 8192, (1, 90))
    weights, forward = weights_of(model), Forward.make(compiled=False)
    entering, _ = forward.hidden_states(weights, tokens)
    rows, sources = torch.tensor([[50, 80, 89, 3]]), torch.tensor([[10, 2, 84, -1]])
    _, mass = forward.point(weights, entering, rows, sources)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(tokens, output_attentions=True).attentions[-1][0].mean(0)
    wanted = [attention[50, 10:35].sum(), attention[80, 2:27].sum(), attention[89, 84:].sum()]
    assert mass.item() == pytest.approx(float(sum(wanted)) / 3, abs=1e-5)


def test_orthogonal_makes_singular_values_even():
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 64, 160)).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_the_rate_rises_stays_and_falls():
    rates = [trapezoid(p, warm=0.1, flat=0.5) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])
    assert trapezoid(1.0, warm=0.1, flat=1.0) == 1.0  # never falls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    train.main()


def test_target_then_draft_end_to_end(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "source", lambda options: source)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    common = (
        "--corpus", source.corpus, "--work", tmp_path, "--micro", "--phases", "128:60,256:60",
        "--max-steps", 2, "--step-tokens", 512, "--micro-tokens", 256, "--workers", 0,
        "--probe-lengths", 256, "--probe-count", 1,
    )  # fmt: skip
    run(monkeypatch, "target", *common, "--out", tmp_path / "target")
    run(monkeypatch, "draft", *common, "--out", tmp_path / "draft", "--target", tmp_path / "target")
    for name in ("target", "draft"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.dtype == torch.float16
        assert model.generation_config.eos_token_id == 1
        log = json.loads((tmp_path / name / "training.json").read_text())
        assert [phase["steps"] for phase in log["phases"]] == [2, 2]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Text.\n\nSummarize the text above."}],
            add_generation_prompt=True,
        )["input_ids"]
        assert prompt[:2] == [0, 2]
        assert prompt[-1] == 3
