"""A decoder-only language model: token ids in, logits out, with the facts of its family as data.
The attention pass owns the cache and the masks: it is handed each layer's queries, keys and values
and returns what the rows attend to. All else of a layer is here, about nine launches on a GPU."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from specx.core.architecture import DecoderConfig
from specx.core.cache import KVCache
from specx.core.operations import Linear, Norms, linear_of, row_operations
from specx.core.rope import inverse_frequencies

Tables = tuple[Tensor, Tensor]  # cosines and sines [n, D]


class AttentionPass(Protocol):
    """What one forward does in every attention layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Query [H, n, D], key and value [Hkv, n, D] of the new rows → [H, n, D]."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    logits: Tensor  # [m, V] float32, the rows asked for
    features: Tensor  # [n, width]: what a head reads, see ``Model.tap``
    query: Tensor  # [H, n, D]: the last layer's, rotated


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model's weights amount to; of a layout that has no size, what they were before."""

    forward_bytes: int  # that every forward reads: a table of embeddings only if it makes logits
    layer_parameters: int  # of the matrices in and between the layers
    head_parameters: int  # of the one that makes logits


class Weights:
    """The tensors of one model on their way into it: each is taken once and then forgotten here,
    so that what is laid out anew is not kept twice."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.bytes = sum(tensor.nbytes for tensor in tensors.values())

    def take(self, name: str) -> Tensor:
        """Raises ``ValueError`` when it is not there."""
        tensor = self.take_if_there(name)
        if tensor is None:
            raise ValueError(f"the tensor {name} is missing")
        return tensor

    def take_if_there(self, name: str) -> Tensor | None:
        return self._tensors.pop(name, None)

    def linear(self, name: str) -> Linear:
        return linear_of(self.take(f"{name}.weight"), self.take_if_there(f"{name}.bias"))

    def check_empty(self) -> None:
        """Raises ``ValueError`` when tensors are left that nothing reads."""
        if self._tensors:
            raise ValueError(f"the tensor {min(self._tensors)} has no place in this model")


class Layer:
    """One layer behind the norm of its input."""

    def __init__(self, index: int, config: DecoderConfig, weights: Weights) -> None:
        prefix, shape = f"layers.{index}.", config.shape
        self._index, self._epsilon = index, config.epsilon
        self._scale, self._factor = config.score_scale, config.residual_factor
        self._width = shape.head_dim
        self._heads = [shape.heads, shape.kv_heads, shape.kv_heads]
        self._qkv = weights.linear(f"{prefix}self_attn.qkv_proj")
        self._out = weights.linear(f"{prefix}self_attn.o_proj")
        self._gate_up = weights.linear(f"{prefix}mlp.gate_up_proj")
        self._down = weights.linear(f"{prefix}mlp.down_proj")
        self.matrices = (self._qkv, self._out, self._gate_up, self._down)
        self._mlp_norm = weights.take(f"{prefix}{config.mlp_norm}.weight")
        self._rows = row_operations(self._mlp_norm)
        self._head_norms: Norms | None = None
        query_norm = weights.take_if_there(f"{prefix}self_attn.q_norm.weight")
        if query_norm is not None:
            key_norm = weights.take(f"{prefix}self_attn.k_norm.weight")
            self._head_norms = (query_norm, key_norm, config.epsilon)

    def run(
        self, stream: Tensor, inputs: Tensor, tables: Tables, attention_pass: AttentionPass
    ) -> Tensor:
        """Adds to ``stream`` [n, hidden], in place, the attention of ``inputs`` [n, K] and then the
        MLP; returns the rotated queries [H, n, D]."""
        qkv = self._qkv(inputs)
        heads, kv_heads, _ = self._heads
        self._rows.rotate(qkv, *tables, heads, kv_heads, self._head_norms)
        by_head = qkv.view(qkv.shape[0], -1, self._width).transpose(0, 1)
        query, key, value = by_head.split_with_sizes(self._heads)
        attended = attention_pass.attend(self._index, query, key, value, self._scale)
        self._add(stream, self._out, attended.transpose(0, 1).reshape(qkv.shape[0], -1))
        normed = self._rows.rms_norm(stream, self._mlp_norm, self._epsilon)
        self._add(stream, self._down, self._gate_up.swiglu(normed))
        return query

    def _add(self, stream: Tensor, product: Linear, x: Tensor) -> None:
        if self._factor == 1.0:
            product.add_to(stream, x)
        else:
            stream.add_(product(x), alpha=self._factor)


class Model:
    """One causal language model, batch of one, inference only."""

    reads_features = False

    def __init__(self, config: DecoderConfig, tensors: dict[str, Tensor]) -> None:
        """``tensors``: all on one device and in one dtype, named and joined as by ``joined.join``;
        taken over and empty afterwards. Without ``lm_head.weight`` the embedding makes the logits.

        On a CPU in float32 matrices are laid out anew. Raises ``ValueError`` for a tensor that is
        missing or has no place.
        """
        weights = Weights(tensors)
        self.shape, self._config = config.shape, config
        self.score_scale = config.score_scale  # of query · key
        self.embedding = weights.take("embed_tokens.weight")  # [V, hidden]
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        layers = range(config.shape.layers)
        self._layers = [Layer(index, config, weights) for index in layers]
        self._norms = [weights.take(f"layers.{i}.{config.attention_norm}.weight") for i in layers]
        self._last_norm = weights.take("norm.weight")
        own = weights.take_if_there("lm_head.weight")
        self._head = linear_of(self.embedding if own is None else own)
        weights.check_empty()
        self.weights_bytes = weights.bytes
        self.footprint = Footprint(
            forward_bytes=weights.bytes - (0 if own is None else self.embedding.nbytes),
            layer_parameters=sum(each.size for layer in self._layers for each in layer.matrices),
            head_parameters=self._head.size,
        )
        frequencies = inverse_frequencies(config.rope, config.shape.head_dim)
        self.inverse_frequencies = frequencies.to(self.device)  # [D / 2] float32
        self._rows = row_operations(self._last_norm)
        self._taps: tuple[int, ...] = ()
        self.feature_width = 0  # of the features that are kept; 0: nobody reads them

    def tap(self, layers: Sequence[int]) -> None:
        """From now on a forward's features are what enters ``layers``, side by side in that
        order; with none, the states after the final norm, as without this call.

        Raises ``IndexError`` for a layer that is not there.
        """
        if layers and not 0 <= min(layers) <= max(layers) < self.shape.layers:
            raise IndexError(f"layers {tuple(layers)} of {self.shape.layers}")
        self._taps = tuple(layers)
        self.feature_width = self.shape.hidden * max(1, len(layers))

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(self.shape, capacity, self.dtype, self.device)

    def first_layer(self) -> "Model":
        """The same model without the layers after the first and without features, over the same
        weights."""
        short = copy(self)
        short.shape, short.feature_width = replace(self.shape, layers=1), 0
        short._layers, short._norms, short._taps = self._layers[:1], self._norms[:1], ()
        return short

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        logits_from: int = 0,
    ) -> Output:
        """Tokens [n] and positions [n], both int64 → logits of rows ``logits_from`` … n, features
        and query.

        ``attention_pass`` decides what each row sees and stores the new keys and values.
        """
        hidden, features, query = self._run(tokens, positions, attention_pass)
        return Output(self.logits(hidden[logits_from:]), features, query)

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        """States [n, hidden] after the final norm; ``features`` are for heads alone."""
        return self._run(tokens, positions, attention_pass)[0]

    def fuse(self, features: Tensor) -> Tensor:
        """A language model reads none: as they are."""
        return features

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """States [n, hidden] → logits [n, V] float32: in half precision two of them would often tie
        after rounding, and which of them wins would depend on how many rows there are."""
        logits, divisor = self._head.wide(hidden), self._config.logit_divisor
        return logits if divisor == 1.0 else logits / divisor

    def _run(
        self, tokens: Tensor, positions: Tensor, attention_pass: AttentionPass
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States after the final norm, features, the last layer's query."""
        config, rows = self._config, self._rows
        stream = F.embedding(tokens, self.embedding)
        if config.embedding_factor != 1.0:
            stream = stream * config.embedding_factor
        tables = rows.rotary_tables(
            positions, self.inverse_frequencies, config.rope.table_factor, self.dtype
        )
        entering: dict[int, Tensor] = {}
        for index, (layer, norm) in enumerate(zip(self._layers, self._norms, strict=True)):
            if index in self._taps:
                entering[index] = stream.clone()  # the stream goes on in the same buffer
            inputs = rows.rms_norm(stream, norm, config.epsilon)
            query = layer.run(stream, inputs, tables, attention_pass)
        hidden = rows.rms_norm(stream, self._last_norm, config.epsilon)
        if not self._taps:
            return hidden, hidden, query
        return hidden, torch.cat([entering[index] for index in self._taps], dim=-1), query
