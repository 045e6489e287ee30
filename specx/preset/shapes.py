"""The sizes of a language model or of a draft head, as a preset names them."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from specx.checkpoints.config import ModelConfig
    from specx.checkpoints.eagle.config import HeadFacts

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
_Size = Annotated[int, Field(ge=1, le=1 << 22)]
_Count = Annotated[int, Field(ge=1, le=1 << 10)]


class _Sizes(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    place: ClassVar[str]  # in a preset

    hidden: _Size  # width between the layers
    mlp: _Size  # units between the two halves of an MLP
    heads: _Count  # of queries
    kv_heads: _Count
    head_dim: _Count
    vocabulary: _Size  # rows of the embedding

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.place}.heads ({self.heads}) is no multiple of kv_heads")
        return self

    def differences(self, found: dict[str, Any]) -> list[str]:
        """The sizes that are not those of ``found``."""
        said = self.model_dump()
        return [name for name in found if said[name] != found[name]]

    def _first_difference(self, found: dict[str, Any]) -> str:
        wrong = self.differences(found)[:1]
        return "".join(f"{name} is {found[name]}, not {getattr(self, name)}" for name in wrong)


class ShapeSpec(_Sizes):
    """Sizes of a checkpoint: ``bench --stand-in`` builds them, and a loaded config must agree."""

    place = "shape"
    family: Family = "llama"
    layers: _Count
    tied: bool = False  # the head that makes logits is the embedding's own table

    def difference(self, config: "ModelConfig") -> str:
        """The first size in which a checkpoint's ``config`` is another one; "" if none is."""
        sizes = {"family": config.family, **asdict(config.shape), "tied": config.is_tied}
        return self._first_difference(sizes)


class HeadShapeSpec(_Sizes):
    """Sizes of an EAGLE head: one layer that reads the target's hidden states.

    ``vocabulary``: rows of its logits, the target's where the target makes them.
    """

    place = "head_shape"
    features: Annotated[int, Field(ge=1, le=8)]  # states side by side: 1, in EAGLE-3 mostly 3
    bias: bool = False  # of the layer that joins embedding and feature

    def difference(self, found: "HeadFacts") -> str:
        """The first size that a head's config gives otherwise; "" if there is none."""
        names = ("hidden", "mlp", "heads", "kv_heads", "head_dim")
        sizes = {name: getattr(found, name) for name in names}
        return self._first_difference(sizes | {"vocabulary": found.draft_vocabulary})
