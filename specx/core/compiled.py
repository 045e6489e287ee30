"""transformers' own decoder layers through TorchInductor.

In: a decoder layer. Out: a module with the same signature whose products, norms and rotations are
compiled, one program for each number of rows. It does not know caches, masks or trees: attention
stays outside of the program, as an operator whose inside TorchInductor never sees.

Layers are compiled one by one and not as a whole model: they share their code, so the first one's
program serves all of them, and starting costs one layer's compilation instead of thirty-two.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from specx.core.model import AttentionPass

#: Programs of one layer's code, beyond which torch gives up: a tree size each, of several models.
_MOST_PROGRAMS = 64


@dataclass(slots=True)
class _UnderWay:
    """The forward that runs now: layers come in order, so a count tells which one asks. Their
    numbers would be constants of the programs, and every layer would need its own."""

    attention_pass: "AttentionPass"
    layers: int
    next_layer: int = 0


_UNDER_WAY: ContextVar[_UnderWay] = ContextVar("specx_forward_under_way")


class CompiledLayer(nn.Module):
    """A decoder layer of transformers, compiled when it first runs with so many rows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer  # its parameters stay this module's parameters
        self._run: Callable[..., Any] | None = None

    def forward(self, *given: Any, **named: Any) -> Any:
        """As the layer does."""
        if self._run is None:
            # Not the module: what hooks it stays outside of the program.
            self._run = _compiled(self.layer.forward)
        return self._run(*given, **named)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Only here: the compiler alone takes a second to import.
    import torch._dynamo.config as config

    config.recompile_limit = max(config.recompile_limit, _MOST_PROGRAMS)
    return torch.compile(function, dynamic=False)


@contextmanager
def attention_by(attention_pass: "AttentionPass", layers: int) -> Iterator[None]:
    """Within, ``attend`` is ``attention_pass``'s, for ``layers`` layers in order."""
    token = _UNDER_WAY.set(_UnderWay(attention_pass, layers))
    try:
        yield
    finally:
        _UNDER_WAY.reset(token)


@torch.library.custom_op("specx::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The attention [H, n, D] of the next layer of the forward under way, as ``AttentionPass``
    defines it. Raises ``LookupError`` outside of ``attention_by``."""
    now = _UNDER_WAY.get()
    layer, now.next_layer = now.next_layer, now.next_layer + 1
    if layer == now.layers - 1:
        query = query.clone()  # retrieval reads it later, when its memory is the program's again
    return now.attention_pass.attend(layer, query, key, value, scale).contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return query.new_empty(query.shape)
