"""What a decoder is, in numbers: its sizes, its rotation, and the factors that families differ by.
Free of torch, so that configs and presets are read without it, and of names of models, which
``checkpoints.config`` turns into these facts; ``core.decoder`` runs them."""

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn"]


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

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        keys = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, keys, keys

    @property
    def numbers_per_token(self) -> int:
        """Numbers that the cache keeps of one token: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Rope:
    """How a head turns with its position: frequency i of D/2 is ``base`` ** (-2i/D), stretched
    by ``kind`` beyond the length of the training. Halves of a head are rotated against each other.

    ``core.rope`` has the formulas and where they come from.
    """

    kind: RopeKind = "default"
    base: float = 10000.0
    factor: float = 1.0  # how many times longer; not for default
    original_positions: int = 0  # of the training; llama3 and yarn
    low_frequency_factor: float = 1.0  # llama3
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    rounds_range: bool = True
    table_factor: float = 1.0  # of cosines and sines; yarn


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The facts by which decoders differ. What tensors show (biases, norms of queries and keys,
    an output matrix of its own) is not said again.

    Every layer norms its input before attention and before the MLP, and adds both results to the
    stream. Norms divide by the root mean square in float32 and round before they are scaled.
    """

    shape: Shape
    epsilon: float  # of every norm
    rope: Rope
    score_scale: float  # of query · key
    embedding_factor: float = 1.0
    residual_factor: float = 1.0  # of what a layer adds to the stream
    logit_divisor: float = 1.0
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
