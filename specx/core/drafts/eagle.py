"""An EAGLE head: one decoder layer that guesses from the target's own hidden states.

Sources: EAGLE (arXiv 2401.15077) for generation 1, whose weights EAGLE-2 (2406.16858) shares, and
EAGLE-3 (2503.01840) for generation 3. In both the embedding comes first in every concatenation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from specx.core.architecture import DecoderConfig, Rope, Shape
from specx.core.cache import KVCache
from specx.core.decoder import AttentionPass, Footprint, Layer, Model, Weights
from specx.core.joined import join
from specx.core.operations import row_operations
from specx.core.rope import inverse_frequencies

#: Where the layer's tensors are, in the names that ``EagleHead`` is given.
LAYER = "layers.0."
_NORMS = (
    f"{LAYER}hidden_norm.weight",
    f"{LAYER}input_layernorm.weight",
    "norm.weight",
    "input_norm.weight",
)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """What the shapes of a head's tensors do not say.

    ``feature_layers``: the target's layers whose inputs are its features, as indices of Hugging
    Face's ``hidden_states``; () is the state after the target's final norm. The last flags are
    those of published variants of EAGLE-3.
    """

    generation: Literal[1, 3]
    heads: int
    head_dim: int
    epsilon: float
    rope: Rope
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
        found = join(dict(tensors), self.device, self.dtype)
        self.shape = _shape(config, tensors, target)
        weights = Weights(found)
        self._norms = {
            name.removesuffix(".weight"): weights.take(name)
            for name in [*found]
            if name in _NORMS or name.startswith("fc_norm.")
        }
        self._target, self._rows_out = target, target.shape.vocabulary
        table = weights.take_if_there("embed_tokens.weight")
        self._embedding = target.embedding if table is None else table
        #: The target's id of each token of the head; ``d2t`` holds differences.
        self._ids = weights.take_if_there("d2t")
        if self._ids is not None:
            self._ids = self._ids.long() + torch.arange(len(self._ids), device=self.device)
        self._fc = weights.linear("fc")
        scale = config.head_dim**-0.5
        facts = DecoderConfig(self.shape, config.epsilon, config.rope, score_scale=scale)
        self._layer = Layer(0, facts, weights)
        self._head = weights.linear("lm_head") if "lm_head.weight" in found else None
        weights.check_empty()
        self.weights_bytes = weights.bytes
        self.footprint = self._footprint()
        frequencies = inverse_frequencies(config.rope, config.head_dim)
        self.inverse_frequencies = frequencies.to(self.device)
        self._rows = row_operations(self._embedding)
        target.tap(config.feature_layers)

    @property
    def fuse_bytes(self) -> int:
        """Bytes that ``fuse`` reads: once a draft and not once a level."""
        return self._fc.nbytes if self.config.generation == 3 else 0

    def new_cache(self, capacity: int) -> KVCache:
        """Empty, of ``capacity`` rows."""
        return KVCache(self.shape, capacity, self.dtype, self.device)

    def first_layer(self) -> "EagleHead":
        return self

    @torch.inference_mode()
    def fuse(self, features: Tensor) -> Tensor:
        """Features of the target [n, width] → what ``hidden`` reads [n, hidden].

        Generation 3 merges several of them; a state of the head itself needs no merging.
        """
        if self.config.generation == 1:
            return features
        if "fc_norm.0" in self._norms:
            parts = features.chunk(len(self.config.feature_layers), dim=-1)
            normed = [self._norm(part.contiguous(), f"fc_norm.{i}") for i, part in enumerate(parts)]
            features = torch.cat(normed, dim=-1)
        if "input_norm" in self._norms:
            features = self._norm(features, "input_norm")
        return self._fc(features)

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        """States [n, hidden] of the pairs (``features`` [n, hidden], ``tokens`` [n] int64).

        ``positions`` [n] int64 are those of the features.
        """
        assert features is not None, "a head reads features"
        stream, inputs = self._begin(F.embedding(tokens, self._embedding), features)
        factor = self.config.rope.table_factor
        tables = self._rows.rotary_tables(positions, self.inverse_frequencies, factor, self.dtype)
        self._layer.run(stream, inputs, tables, attention_pass)
        return self._norm(stream, "norm") if self.config.output_is_normed else stream

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """States [n, hidden] → logits [n, V] over the target's vocabulary.

        −inf where the head's own, smaller vocabulary has no token.
        """
        if "norm" in self._norms and not self.config.output_is_normed:
            hidden = self._norm(hidden, "norm")
        if self._head is None:
            return self._target.logits(hidden)
        logits = self._head(hidden)
        if self._ids is None:
            return logits
        spread = logits.new_full((logits.shape[0], self._rows_out), float("-inf"))
        return spread.index_copy_(1, self._ids, logits)

    def _begin(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream [n, hidden], which the layer writes to, and what queries, keys and
        values are made of."""
        if self.config.generation == 1:
            stream = self._fc(torch.cat([embedded, features], dim=-1))
            return stream, stream
        normed = self._norm(features, f"{LAYER}hidden_norm")
        inputs = torch.cat([self._norm(embedded, f"{LAYER}input_layernorm"), normed], dim=-1)
        return normed if self.config.residual_is_normed else features.clone(), inputs

    def _norm(self, rows: Tensor, name: str) -> Tensor:
        return self._rows.rms_norm(rows, self._norms[name], self.config.epsilon)

    def _footprint(self) -> Footprint:
        """A forward reads the target's output matrix where the head has none."""
        matrices = (self._fc, *self._layer.matrices)
        theirs = self._target.footprint.head_parameters
        head = theirs if self._head is None else self._head.size
        return Footprint(
            forward_bytes=sum(each.nbytes for each in matrices) + head * self.dtype.itemsize,
            layer_parameters=sum(each.size for each in matrices),
            head_parameters=head,
        )


#: What a drafter runs: a small language model, or a head that reads the target's features.
DraftModel = Model | EagleHead


def _shape(config: HeadConfig, tensors: Mapping[str, Tensor], target: Model) -> Shape:
    """``vocabulary``: the tokens that it can read."""
    keys = len(tensors[f"{LAYER}self_attn.k_proj.weight"]) // config.head_dim
    hidden, mlp = tensors[f"{LAYER}mlp.down_proj.weight"].shape
    known = len(tensors.get("embed_tokens.weight", target.embedding))
    vocabulary = min(target.shape.vocabulary, known)
    return Shape(1, config.heads, keys, config.head_dim, vocabulary, hidden, mlp)
