"""Plain decoding once more along a known text: by which logits a token was chosen.

In: a model, a prompt with the tokens that followed it. Out: the logits behind them. It does not
know samplers, texts or why one asks.
"""

import torch
from torch import Tensor

from specx.core.config import parts_for
from specx.core.decoder import Model
from specx.core.kernels.choice import choose_kernels
from specx.core.target import Target


@torch.inference_mode()
def plain_logits(model: Model, tokens: Tensor, prompt_tokens: int, chunk_tokens: int) -> Tensor:
    """The logits [1, V] by which plain decoding chooses what follows ``tokens`` [n] int64, on the
    model's device; the first ``prompt_tokens`` are the prompt, read by chunks.

    Step by step, as plain decoding goes. Reading all at once rounds otherwise: in half precision
    by as much as lies between two tokens that change places (0.05 at 16,384 tokens of a 7B shape).
    On a GPU the last bit may still differ, since a longer cache can be split among more programs.
    """
    parts = parts_for("plain")
    prompt, output = tokens[:prompt_tokens], tokens[prompt_tokens:]
    target = Target(model, len(tokens) + 1, parts, choose_kernels(model, parts)[0])
    for chunk in torch.split(prompt, chunk_tokens):
        logits, hidden = target.read(chunk)
    if not len(output):
        return logits
    target.begin(prompt, output[:1], hidden[-1:])
    for number in range(1, len(output)):
        token = output[number : number + 1]
        tree = target.place(None)
        target.verify(tree)
        path, _ = target.accept(tree, token)
        target.commit(tree, token, path)
        target.settle(1)
    return target.verify(target.place(None))[0]
