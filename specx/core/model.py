"""A Hugging Face causal language model behind one plain forward, without a forked modeling file.

In: token ids, positions and an attention pass. Out: logits of the rows asked for. It does not
know trees, drafts, retrieval, files or tokenizers.

The seam: an attention function registered with transformers receives every extra keyword of the
model's forward, here ``attention_pass``, which owns the cache and the masks. No mask is built by
transformers (the name has no mask function), and no cache object is handed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specx.core import kernels
from specx.core.cache import KVCache
from specx.core.layers import Layers, fastest_products
from specx.core.linear import pack_linears

_ATTENTION = "specx"


class AttentionPass(Protocol):
    """What one forward does in every attention layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Query [H, n, D], key and value [Hkv, n, D] of the new rows → [H, n, D]."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """Result of one forward over n rows."""

    logits: Tensor  # [m, V], the rows asked for
    features: Tensor  # [n, width]: what a head reads, see ``Model.tap``


class DraftModel(Protocol):
    """What a drafter runs: a small language model, or a head that reads the target's features."""

    reads_features: bool
    shape: "Shape"
    device: torch.device
    dtype: torch.dtype
    weights_bytes: int
    inverse_frequencies: Tensor
    decoder: nn.Module  # its matrices but for the last one
    head: nn.Module  # that one, which may be the target's

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of ``capacity`` rows in its shape, dtype and place."""
        ...

    def fuse(self, features: Tensor) -> Tensor:
        """Features of the target [n, width] → features that ``hidden`` reads [n, hidden]."""
        ...

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        """States [n, hidden] after tokens [n] at positions [n] int64; see ``Model.forward``."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """States [n, hidden] → logits [n, V]."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    hidden: int  # width between the layers
    mlp: int


def shape_of(config: PreTrainedConfig) -> Shape:
    """The sizes that a checkpoint's configuration names."""
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
    )


class Model:
    """One causal language model in evaluation mode, batch of one.

    Takes the model over: its attention implementation is replaced, on a CPU in float32 its linear
    layers are packed for few-row products, and on a GPU with Triton its layers get a fused form.
    """

    reads_features = False

    def __init__(self, model: PreTrainedModel, *, pack: bool = True) -> None:
        AttentionInterface.register(_ATTENTION, _attention)
        model.eval().requires_grad_(False)
        model.set_attn_implementation(_ATTENTION)
        self.weights_bytes: int = sum(p.numel() * p.element_size() for p in model.parameters())
        if pack:
            pack_linears(model)
        self.decoder: nn.Module = model.get_decoder()  # the layers with their embedding
        self.head: nn.Module = model.get_output_embeddings()  # hidden states to logits
        self.shape = shape_of(model.config)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.inverse_frequencies: Tensor = _rotary(self.decoder).inv_freq.float()
        self._fuses = self.device.type == "cuda" and kernels.is_available()
        self._products = fastest_products(self.device)
        self._layers = Layers(self.decoder, self._products, fuses=self._fuses)
        self._taps: Taps | None = None
        self.feature_width = 0  # of the features that are kept; 0: nobody reads them

    @property
    def embedding(self) -> Tensor:
        """The input embedding [V, hidden size]."""
        table: Any = self.decoder.get_input_embeddings()  # type: ignore[operator]
        return cast(Tensor, table.weight)

    def tap(self, layers: Sequence[int]) -> None:
        """From now on a forward's features are what enters ``layers``, side by side in that
        order; with none, the states behind the final norm, as without this call."""
        width = self.embedding.shape[1]
        if self._taps is not None:
            self._taps.remove()
        self._taps = Taps(self._layers.lists, layers) if layers else None
        self.feature_width = width * max(1, len(layers))

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of ``capacity`` rows in this model's shape, dtype and place."""
        shape = self.shape
        return KVCache(
            shape.layers,
            shape.kv_heads,
            capacity,
            shape.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        logits_from: int = 0,
    ) -> Output:
        """Tokens [n] and positions [n] int64 → logits of rows ``logits_from`` … n, features.

        ``attention_pass`` decides what each row sees and stores the new keys and values.
        """
        hidden = self.hidden(tokens, positions, attention_pass)
        features = hidden if self._taps is None else self._taps.take()
        return Output(logits=self.logits(hidden[logits_from:]), features=features)

    def fuse(self, features: Tensor) -> Tensor:
        """See ``DraftModel``; a language model reads none."""
        return features

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [n, hidden size] after the final norm; see ``forward``. ``features`` are
        a head's business, see ``DraftModel``."""
        output: Tensor = self.decoder(
            input_ids=tokens[None],
            position_ids=positions[None],
            past_key_values=None,
            use_cache=False,
            attention_pass=attention_pass,
        ).last_hidden_state[0]
        return output

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, hidden size] → logits [n, V]."""
        head = self.head
        if self._fuses and type(head) is nn.Linear:
            return self._products.linear(hidden, head.weight, head.bias)
        output: Tensor = head(hidden)
        return output


class Taps:
    """Keeps what enters some decoder layers, whichever of their forms runs."""

    def __init__(self, forms: Sequence[nn.Module], layers: Sequence[int]) -> None:
        """``forms``: lists of the same layers. Raises ``IndexError`` for a layer there is not."""
        self._layers = tuple(layers)
        self._kept: dict[int, Tensor] = {}
        self._hooks = [
            form[index].register_forward_pre_hook(partial(self._keep, index), with_kwargs=True)  # type: ignore[index]
            for form in forms
            for index in sorted({*layers})
        ]

    def take(self) -> Tensor:
        """The inputs [n, layers · hidden size] of the last forward."""
        features = torch.cat([self._kept[index] for index in self._layers], dim=-1)
        self._kept.clear()
        return features

    def remove(self) -> None:
        """Keep nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def _keep(
        self, index: int, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        entering: Tensor = given[0] if given else named["hidden_states"]
        self._kept[index] = entering[0].clone()  # fused layers go on in the same buffer


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_pass: AttentionPass,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: [1, H, n, D] in, [1, n, H, D] out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attention_pass.attend(module.layer_idx, query[0], key[0], value[0], scale)  # type: ignore[arg-type]
    return out.transpose(0, 1)[None], None


def _rotary(decoder: nn.Module) -> Any:
    """The rotary embedding module of a Llama-shaped decoder."""
    return decoder.rotary_emb
