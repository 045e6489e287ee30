"""A quick look at a model in training: held-out conversations under teacher forcing.

In: weights, a writer of held-out sequences. Out: per length, the share of notes whose every token
would be right and the share of right summary tokens. A proxy: the real evaluation generates.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.forward import Forward, Weights, normalise
from training.tasks import Sequence, SequenceWriter
from training.tokenizer import EOS
from training.turns import Kind


class Probe:
    """Fixed held-out conversations, `count` of each length; scores any weights on them."""

    def __init__(self, writer: SequenceWriter, lengths: Iterable[int], count: int) -> None:
        self._sequences = {
            length: [
                writer.example(np.random.default_rng([99, length, n]), length) for n in range(count)
            ]
            for length in lengths
        }
        self._forward = Forward.make(compiled=False)

    @torch.no_grad()
    def score(self, weights: Weights) -> dict[str, float]:
        """`needle_L`, `quote_L` (whole answers right), `summary_L` (tokens right) for length L."""
        out: dict[str, float] = {}
        for length, sequences in self._sequences.items():
            needles: list[bool] = []
            quotes: list[bool] = []
            summary: list[np.ndarray] = []
            for sequence in sequences:
                right = self._right(weights, sequence)
                needles += answers(sequence, right, (Kind.NEEDLE,))
                quotes += answers(sequence, right, (Kind.QUOTE, Kind.CONTINUE))
                summary.append(right[sequence.kinds == Kind.SUMMARY])
            out[f"needle_{length}"] = round(float(np.mean(needles or [False])), 4)
            out[f"quote_{length}"] = round(float(np.mean(quotes or [False])), 4)
            out[f"summary_{length}"] = round(float(np.concatenate(summary).mean()), 4)
        return out

    def _right(self, weights: Weights, sequence: Sequence) -> np.ndarray:
        """[T] bool: answer tokens that the model would have chosen itself."""
        device = weights.embedding.device
        tokens = torch.from_numpy(sequence.tokens.astype(np.int64)).to(device)
        rows = torch.from_numpy(np.flatnonzero(sequence.kinds > 0)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _, hidden = self._forward.hidden_states(weights, tokens[None])
            last = normalise(hidden[0, rows - 1], weights.norm, weights.shape.epsilon)
            guess: Tensor = F.linear(last, weights.embedding).argmax(-1)
        out = np.zeros(len(sequence.tokens), bool)
        out[rows.cpu().numpy()] = (guess == tokens[rows]).cpu().numpy()
        return out


def answers(sequence: Sequence, right: np.ndarray, kinds: tuple[Kind, ...]) -> list[bool]:
    """Of each complete answer of these kinds: whether all of its tokens are right."""
    places = np.flatnonzero(np.isin(sequence.kinds, [int(kind) for kind in kinds]))
    out: list[bool] = []
    start = 0
    for index, place in enumerate(places):
        if sequence.tokens[place] == EOS:
            out.append(bool(right[places[start : index + 1]].all()))
            start = index + 1
    return out
