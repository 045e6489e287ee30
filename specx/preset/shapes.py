"""The sizes of a language model or of a draft head, as a preset names them.

In: numbers. Out: a frozen ``ShapeSpec`` or ``HeadShapeSpec``, and what a checkpoint's config says
otherwise. It does not know torch, files or weights.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from specx.checkpoints.config import ModelConfig
    from specx.checkpoints.eagle.config import HeadFacts

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
_Size = Annotated[int, Field(ge=1, le=1 << 22)]
_Count = Annotated[int, Field(ge=1, le=1 << 10)]


class ShapeSpec(BaseModel):
    """Sizes of a checkpoint: ``bench --stand-in`` builds them, and a loaded config must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family = "llama"
    layers: _Count
    hidden: _Size  # width between the layers
    heads: _Count  # of queries
    kv_heads: _Count
    head_dim: _Count
    mlp: _Size  # units between the two halves of an MLP
    vocabulary: _Size  # rows of the embedding
    tied: bool = False  # the head that makes logits is the embedding's own table

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> "ShapeSpec":
        if self.heads % self.kv_heads:
            raise ValueError(f"shape.heads ({self.heads}) is no multiple of kv_heads")
        return self

    def difference(self, config: "ModelConfig") -> str:
        """The first size in which a checkpoint's ``config`` is another one; "" if none is."""
        found = {"family": config.family, **asdict(config.shape), "tied": config.is_tied}
        return _difference(self.model_dump(), found)


class HeadShapeSpec(BaseModel):
    """Sizes of an EAGLE head: one layer that reads the target's hidden states.

    ``features``: hidden states side by side in the head's input, 1 for EAGLE-1 and -2, as a rule
    3 for EAGLE-3. ``vocabulary``: rows of its logits, the target's where the target makes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: _Size
    mlp: _Size
    heads: _Count
    kv_heads: _Count
    head_dim: _Count
    vocabulary: _Size
    features: Annotated[int, Field(ge=1, le=8)]
    bias: bool = False  # of the layer that joins embedding and feature

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> "HeadShapeSpec":
        if self.heads % self.kv_heads:
            raise ValueError(f"head_shape.heads ({self.heads}) is no multiple of kv_heads")
        return self

    def difference(self, found: "HeadFacts") -> str:
        """The first size that a head's config gives otherwise; "" if there is none."""
        theirs = {
            "hidden": found.hidden,
            "mlp": found.mlp,
            "heads": found.heads,
            "kv_heads": found.kv_heads,
            "head_dim": found.head_dim,
            "vocabulary": found.draft_vocabulary,
        }
        return _difference(self.model_dump(), theirs)


def _difference(said: dict[str, Any], found: dict[str, Any]) -> str:
    wrong = [name for name in found if said[name] != found[name]]
    return f"{wrong[0]} is {found[wrong[0]]}, not {said[wrong[0]]}" if wrong else ""
