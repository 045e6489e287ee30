"""A Hugging Face causal language model behind one plain forward, without a forked modeling file.

In: token ids, positions and an attention pass. Out: logits of the rows asked for. It does not
know trees, drafts, retrieval, files or tokenizers.

The seam: an attention function registered with transformers receives every extra keyword of the
model's forward, here ``attention_pass``, which owns the cache and the masks. No mask is built by
transformers (the name has no mask function), and no cache object is handed over.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specx.core import kernels
from specx.core.cache import KVCache
from specx.core.config import LayerForm
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
    hidden: Tensor  # [n, hidden size], after the final norm


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes a cache and a retriever need."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


def shape_of(config: PreTrainedConfig) -> Shape:
    """The sizes that a checkpoint's configuration names."""
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
    )


class Model:
    """One causal language model in evaluation mode, batch of one.

    Takes the model over: its attention implementation is replaced, on a CPU in float32 its linear
    layers are packed for few-row products, and on a GPU with Triton its layers get a fused form.
    """

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
        fuses = self.device.type == "cuda" and kernels.is_available()
        self._products = fastest_products(self.device)
        self._layers = Layers(self.decoder, self._products) if fuses else None
        self._compiled: Any = None

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
        form: LayerForm = "fused",
    ) -> Output:
        """Tokens [n] and positions [n] int64 → logits of rows ``logits_from`` … n, hidden states.

        ``attention_pass`` decides what each row sees and stores the new keys and values. ``form``
        of the layers: "fused" where there is one, transformers' "original", or that "compiled".
        """
        hidden = self.hidden(tokens, positions, attention_pass, form)
        return Output(logits=self.logits(hidden[logits_from:]), hidden=hidden)

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        form: LayerForm = "fused",
    ) -> Tensor:
        """Hidden states [n, hidden size] after the final norm; see ``forward``."""
        if self._layers is not None:
            self._layers.use(fused=form == "fused")
        decoder = self._compile() if form == "compiled" else self.decoder
        output: Tensor = decoder(
            input_ids=tokens[None],
            position_ids=positions[None],
            past_key_values=None,
            use_cache=False,
            attention_pass=attention_pass,
        ).last_hidden_state[0]
        return output

    def _compile(self) -> Any:
        """The decoder through TorchInductor, one program for each number of rows."""
        if self._compiled is None:
            self._compiled = torch.compile(self.decoder, dynamic=False)
        return self._compiled

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, hidden size] → logits [n, V]."""
        head = self.head
        if self._layers is not None and type(head) is nn.Linear:
            return self._products.linear(hidden, head.weight, head.bias)
        output: Tensor = head(hidden)
        return output


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
