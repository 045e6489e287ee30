"""The logits by which plain decoding chose, found again to the last bit."""

import pytest
import torch
from torch import Tensor

from specx.core.decode import plain_logits
from specx.core.sampling import Sampler
from specx.core.target import Target
from tests.core.tiny import Job, Pair, config, hf_model, own, random_tokens


def _again(pair: Pair, tokens: Tensor, prompt_tokens: int) -> Tensor:
    job = Job(pair, tokens)
    target = Target(pair.target, len(tokens) + 1, job.parts, job.kernels())
    return plain_logits(target, tokens, prompt_tokens, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_are_plain_decodings_own(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They once came from one reading of the whole text: on a 7B shape in float16 a tie
    of two tokens was told as 0.07, and the certificate looked broken where it was not."""
    model = own(hf_model(config("qwen3")).to(dtype))
    pair, prompt = Pair(model, model, hf_model(config("qwen3"))), random_tokens(150)
    seen: list[Tensor] = []
    sample = Sampler.__call__

    def recorded(self: Sampler, logits: Tensor, *rest: Tensor | None) -> Tensor:
        seen.append(logits.clone())
        return sample(self, logits, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "__call__", recorded)
    output = torch.tensor(Job(pair, prompt, max_tokens=9).run().tokens)
    assert len(seen) == 9
    for count, expected in enumerate(seen):
        tokens = torch.cat([prompt, output[:count]])
        assert torch.equal(_again(pair, tokens, len(prompt)), expected)
    at_once = _again(pair, torch.cat([prompt, output[:8]]), len(prompt) + 8)
    torch.testing.assert_close(at_once, seen[8], atol=0.1, rtol=0.1)
    assert not torch.equal(at_once, seen[8])
