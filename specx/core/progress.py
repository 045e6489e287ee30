"""Where a request stands, on the device: what the next step needs without asking the host.

In: the tokens of each step. Out: device scalars and the text so far. It knows no model and no
drafter. The host learns the same numbers one read later; until then a GPU can go on.
"""

import torch
from torch import Tensor


class Progress:
    """The text's tokens and two counters, at places that never change (CUDA graphs read them)."""

    def __init__(self, capacity_tokens: int, device: torch.device) -> None:
        """``capacity_tokens``: most tokens of prompt and output, with what ``advance`` pads."""
        #: Prompt, then output [capacity] int64.
        self.text = torch.zeros(capacity_tokens, dtype=torch.int64, device=device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)

    @property
    def prompt(self) -> Tensor:
        """Prompt tokens, [] int64."""
        return self._counts[0]

    @property
    def produced(self) -> Tensor:
        """Output tokens, [] int64."""
        return self._counts[1]

    @property
    def length(self) -> Tensor:
        """Tokens whose keys the target has cached: all but the newest, [] int64."""
        return self.prompt + self.produced - 1

    @property
    def root(self) -> Tensor:
        """The newest token [1] int64: the root of the next tree."""
        return self.text.index_select(0, self.length[None])

    def begin(self, prompt: Tensor, first: Tensor) -> None:
        """Start an output behind ``prompt`` [n] int64 with its ``first`` token [1] int64."""
        count = prompt.shape[0]
        self._counts[0].fill_(count)
        self._counts[1].fill_(1)
        self.text[:count] = prompt
        self.text[count : count + 1] = first

    def advance(self, tokens: Tensor, count: Tensor) -> None:
        """Append the first ``count`` of ``tokens`` [m] int64; the rest is overwritten next time."""
        places = torch.arange(tokens.shape[0], device=tokens.device) + self.length + 1
        self.text.index_copy_(0, places, tokens)
        self._counts[1] += count
