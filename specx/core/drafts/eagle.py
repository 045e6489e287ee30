"""An EAGLE head: one decoder layer that guesses from the target's own hidden states.

In: pairs of a feature (the target's, or a state of the head) and the token behind it. Out: states
that serve as the next features, and logits over the target's vocabulary. It does not know files,
caches, trees, or which rows it is shown.

Sources: EAGLE (arXiv 2401.15077) for generation 1, whose weights EAGLE-2 (2406.16858) shares, and
EAGLE-3 (2503.01840) for generation 3. In both the embedding comes first in every concatenation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specx.core.cache import KVCache
from specx.core.layers import Norms, fastest_products, row_operations
from specx.core.linear import pack_linears
from specx.core.model import AttentionPass, Model, Shape

#: Where the layer's tensors stand, in the names that ``EagleHead`` is given.
LAYER = "layers.0."


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """What the shapes of a head's tensors do not say.

    ``feature_layers``: the target's layers whose inputs are its features, as indices of Hugging
    Face's ``hidden_states``; () is the state behind the target's final norm. The last flags are
    those of published variants of EAGLE-3.
    """

    generation: Literal[1, 3]
    heads: int
    head_dim: int
    epsilon: float
    inverse_frequencies: Tensor  # [head_dim / 2] float32
    rotary_scaling: float = 1.0  # of cosines and sines (YaRN)
    feature_layers: tuple[int, ...] = ()
    residual_is_normed: bool = False  # norm_before_residual
    output_is_normed: bool = False  # norm_output


class EagleHead:
    """A head beside its target, whose embedding and output matrix it uses where it has none.

    ``tensors`` carry the official names with ``layers.0.`` for ``midlayer.``, and fit together
    (the loader sees to that); they are taken over in the target's dtype and place. The target
    keeps its features from now on.
    """

    reads_features = True

    def __init__(self, config: HeadConfig, tensors: Mapping[str, Tensor], target: Model) -> None:
        self.config, self.device, self.dtype = config, target.device, target.dtype
        self.inverse_frequencies = config.inverse_frequencies.to(self.device)
        self._weights = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }
        self.weights_bytes = sum(each.nbytes for each in self._weights.values())
        products = {
            "fc": self._linear("fc"),
            "qkv": self._linear(*(f"{LAYER}self_attn.{name}_proj" for name in "qkv")),
            "out": self._linear(f"{LAYER}self_attn.o_proj"),
            "gate_up": self._linear(f"{LAYER}mlp.gate_proj", f"{LAYER}mlp.up_proj"),
            "down": self._linear(f"{LAYER}mlp.down_proj"),
        }
        self._matrices = nn.ModuleDict(products)
        pack_linears(self._matrices)
        self.decoder: nn.Module = self._matrices
        self._has_own_head = "lm_head.weight" in tensors
        self.head: nn.Module = target.head
        if self._has_own_head:
            own = nn.ModuleDict({"head": self._linear("lm_head")})
            pack_linears(own)
            self.head = own["head"]
        keys = tensors[f"{LAYER}self_attn.k_proj.weight"].shape[0] // config.head_dim
        self._sizes = [config.heads, keys, keys]
        table = self._weights.get("embed_tokens.weight")
        self._embedding = target.embedding if table is None else table
        self._ids = _target_ids(self._weights.get("d2t"))
        self._target = target
        target.tap(config.feature_layers)
        self._rows_out = target.shape.vocabulary
        mlp, hidden = tensors[f"{LAYER}mlp.gate_proj.weight"].shape
        known = min(self._rows_out, self._embedding.shape[0])
        self.shape = Shape(1, config.heads, keys, config.head_dim, known, hidden, mlp)
        self._rows = row_operations(self._weights[f"{LAYER}post_attention_layernorm.weight"])
        self._products = fastest_products(self.device)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of ``capacity`` rows in this head's shape, dtype and place."""
        return KVCache(
            1,
            self.shape.kv_heads,
            capacity,
            self.shape.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def fuse(self, features: Tensor) -> Tensor:
        """Features of the target [n, width] → what ``hidden`` reads [n, hidden].

        Generation 3 merges several of them; a state of the head itself needs no merging.
        """
        if self.config.generation == 1:
            return features
        if self._has("fc_norm.0"):
            parts = features.chunk(len(self.config.feature_layers), dim=-1)
            normed = [self._norm(part.contiguous(), f"fc_norm.{i}") for i, part in enumerate(parts)]
            features = torch.cat(normed, dim=-1)
        if self._has("input_norm"):
            features = self._norm(features, "input_norm")
        return self._times("fc", features)

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        """States [n, hidden] of the pairs (``features`` [n, hidden], ``tokens`` [n] int64).

        ``positions`` [n] int64 are those of the features. There is one ``form`` of the layer.
        """
        assert features is not None, "a head reads features"
        stream, inputs = self._begin(F.embedding(tokens, self._embedding), features)
        qkv = self._times("qkv", inputs)
        cos, sin = self._rows.rotary_tables(
            positions, self.inverse_frequencies, self.config.rotary_scaling, self.dtype
        )
        heads, keys, _ = self._sizes
        self._rows.rotate(qkv, cos, sin, heads, keys, self._query_and_key_norms())
        width = self.config.head_dim
        by_head = qkv.view(qkv.shape[0], -1, width).transpose(0, 1)
        query, key, value = by_head.split_with_sizes(self._sizes)
        attended = attention_pass.attend(0, query, key, value, width**-0.5)
        attended = attended.transpose(0, 1).reshape(qkv.shape[0], -1)
        stream = stream + self._times("out", attended)
        inner = self._norm(stream, f"{LAYER}post_attention_layernorm")
        inner = self._rows.swiglu(self._times("gate_up", inner))
        stream = stream + self._times("down", inner)
        return self._norm(stream, "norm") if self.config.output_is_normed else stream

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """States [n, hidden] → logits [n, V] over the target's vocabulary.

        −inf where the head's own, smaller vocabulary has no token.
        """
        if self._has("norm") and not self.config.output_is_normed:
            hidden = self._norm(hidden, "norm")
        if not self._has_own_head:
            return self._target.logits(hidden)
        logits = self._product(self.head, hidden)
        if self._ids is None:
            return logits
        spread = logits.new_full((logits.shape[0], self._rows_out), float("-inf"))
        return spread.index_copy_(1, self._ids, logits)

    def _begin(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream [n, hidden], and what queries, keys and values are made of."""
        if self.config.generation == 1:
            stream = self._times("fc", torch.cat([embedded, features], dim=-1))
            return stream, stream
        normed = self._norm(features, f"{LAYER}hidden_norm")
        inputs = torch.cat([self._norm(embedded, f"{LAYER}input_layernorm"), normed], dim=-1)
        return normed if self.config.residual_is_normed else features, inputs

    def _query_and_key_norms(self) -> Norms | None:
        prefix = f"{LAYER}self_attn."
        if not self._has(f"{prefix}q_norm"):
            return None
        norms = (self._weights[f"{prefix}{name}_norm.weight"] for name in "qk")
        return (*norms, self.config.epsilon)  # type: ignore[return-value]

    def _has(self, name: str) -> bool:
        return f"{name}.weight" in self._weights

    def _norm(self, rows: Tensor, name: str) -> Tensor:
        return self._rows.rms_norm(rows, self._weights[f"{name}.weight"], self.config.epsilon)

    def _times(self, name: str, rows: Tensor) -> Tensor:
        return self._product(self._matrices[name], rows)

    def _product(self, linear: nn.Module, rows: Tensor) -> Tensor:
        if type(linear) is nn.Linear:
            return self._products.linear(rows, linear.weight, linear.bias)
        output: Tensor = linear(rows)  # packed
        return output

    def _linear(self, *names: str) -> nn.Module:
        """One product for the matrices ``names`` side by side; the parts are freed."""
        weight = torch.cat([self._weights.pop(f"{name}.weight") for name in names])
        biases = [self._weights.pop(f"{name}.bias", None) for name in names]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if biases[0] is not None:
            bias = torch.cat([each for each in biases if each is not None])
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear


def _target_ids(offsets: Tensor | None) -> Tensor | None:
    """The target's id of each token of the head; ``d2t`` holds differences."""
    if offsets is None:
        return None
    return offsets.to(torch.int64) + torch.arange(offsets.shape[0], device=offsets.device)
