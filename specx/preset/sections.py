"""The groups of a preset file, each frozen and checked by itself."""

import datetime
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import TypedDict

from specx.core.config import DrafterKind, Parts, Think

if TYPE_CHECKING:
    from specx.checkpoints.config import ModelConfig
    from specx.checkpoints.eagle.config import HeadFacts

DType = Literal["auto", "float32", "float16", "bfloat16"]
Text = Annotated[str, Field(min_length=1)]
Family = Literal["llama", "mistral", "qwen2", "qwen3"]
_Size = Annotated[int, Field(ge=1, le=1 << 22)]
_Count = Annotated[int, Field(ge=1, le=1 << 10)]
RopeType = Literal["linear", "dynamic", "yarn", "llama3"]

HEADS: tuple[DrafterKind, ...] = ("eagle", "eagle3")  # they read the target's hidden states
WITH_WEIGHTS: tuple[DrafterKind, ...] = ("lm", *HEADS)


class Frozen(BaseModel):
    """A group that nothing changes and that takes no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Sizes(Frozen):
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


class TargetSpec(Frozen):
    """The model whose text is produced. ``repo``: ``pocket/target``, a directory or a Hub id."""

    repo: Text
    revision: str | None = None
    dtype: DType = "auto"
    shape: ShapeSpec | None = None


class RopeScaling(TypedDict, total=False):
    """How a head's positions are stretched, as in a checkpoint's config; one of both types."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    type: RopeType
    rope_type: RopeType
    factor: Annotated[float, Field(ge=1)]
    original_max_position_embeddings: Annotated[int, Field(ge=1)]
    low_freq_factor: float
    high_freq_factor: float
    beta_fast: float
    beta_slow: float
    attention_factor: float


class HeadSpec(Frozen):
    """What a preset knows better than the head's own config; None: what the checkpoint says."""

    rope_theta: float | None = Field(default=None, gt=1)
    rope_scaling: RopeScaling | None = None
    #: Whose hidden states the head reads: i is the input of layer i, as in transformers.
    feature_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    norm_before_residual: bool | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "HeadSpec":
        scaling, layers = self.rope_scaling, self.feature_layers
        if scaling is not None and ("type" in scaling) == ("rope_type" in scaling):
            raise ValueError("draft.head.rope_scaling needs either type or rope_type")
        if scaling is not None and "factor" not in scaling:
            raise ValueError("draft.head.rope_scaling.factor is missing")
        if layers is not None and (not layers or list(layers) != sorted(set(layers))):
            raise ValueError("draft.head.feature_layers must be rising layer numbers")
        return self


class DraftSpec(Frozen):
    """What guesses tokens: nothing, the prompt itself, a small model, or a head on the target."""

    kind: DrafterKind = "lm"
    repo: Text | None = None
    revision: str | None = None
    dtype: DType = "auto"
    trained_context_tokens: int = Field(default=2048, ge=64)  # the draft sees no later position
    shape: ShapeSpec | None = None  # of a model
    head: HeadSpec | None = None  # corrections, for a head only
    head_shape: HeadShapeSpec | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "DraftSpec":
        if self.kind in WITH_WEIGHTS and self.repo is None:
            raise ValueError(f"draft.repo is missing: a draft of kind {self.kind} needs one")
        # A kind without weights ignores both: it may be set over any preset.
        if self.kind == "lm" and (self.head or self.head_shape):
            raise ValueError("draft.head and draft.head_shape belong to the kinds eagle and eagle3")
        if self.is_head and self.shape is not None:
            raise ValueError(f"a draft of kind {self.kind} has a head_shape, no shape")
        if self.kind == "eagle" and self.head_shape and self.head_shape.features != 1:
            raise ValueError("draft.head_shape.features must be 1 for a head of EAGLE-1 or -2")
        return self

    @property
    def is_head(self) -> bool:
        """Whether the draft reads the target's hidden states."""
        return self.kind in HEADS

    @property
    def generation(self) -> Literal[1, 3]:
        """Of EAGLE, where the draft is a head: EAGLE-2 runs heads of the first."""
        return 3 if self.kind == "eagle3" else 1

    @property
    def has_weights(self) -> bool:
        """Whether there is a checkpoint to fetch."""
        return self.kind in WITH_WEIGHTS


class PromptSpec(Frozen):
    """How a document becomes a prompt. ``template="auto"`` is the target's chat template.

    ``think="auto"`` thinks where the template does by default, but not for ``summarize`` if the
    template gives a choice: who wants a summary does not want to wait for thoughts about it.
    """

    template: Literal["auto", "raw"] = "auto"
    summarize: Text = "Summarize the text above."
    ask: str = "{document}\n\n{instruction}"
    think: Think = "auto"

    @field_validator("ask")
    @classmethod
    def _has_both_places(cls, ask: str) -> str:
        if ask.count("{document}") != 1 or ask.count("{instruction}") != 1:
            raise ValueError("prompt.ask must contain {document} and {instruction} exactly once")
        return ask


if TYPE_CHECKING:
    PartsOverrides = dict[str, Any]
else:
    #: Single parts of the mode replaced, for ablations; an absent key keeps the mode's part.
    PartsOverrides = TypedDict("PartsOverrides", get_type_hints(Parts), total=False)
    PartsOverrides.__pydantic_config__ = ConfigDict(extra="forbid")


class Requirements(Frozen):
    """What a user should know before a download, and where each fact was read."""

    download_gib: float | None = Field(default=None, ge=0)  # of both checkpoints; null: unknown
    #: Weights, caches and about 1 GiB of workspace at 16384 tokens, or at the whole context.
    memory_at_16k_gib: float | None = Field(default=None, ge=0)
    gated: bool = False
    license: str | None = None
    sources: dict[Text, Text] = Field(default_factory=dict)  # fact → public page
    unverified: tuple[Text, ...] = ()  # what was inferred, or read nowhere yet


class Measurement(Frozen):
    """A result on a named device, kept beside the settings that gave it."""

    device: Text
    date: datetime.date
    prompt_tokens: int = Field(ge=1)
    tokens_per_step: float = Field(ge=0)
    speedup: float = Field(ge=0)
    stand_in: bool = False  # weights of pocket's behaviour: acceptance is not this pair's
    raw: str | None = None  # the bench's JSON, beside the preset file


class PaperRow(Frozen):
    """A published result that this preset should come near to on the same device."""

    source: Text
    device: Text = "A100 80GB"
    data: Literal["govreport", "pg19", "booksum", "aime24"]
    prompt_tokens: int | None = Field(default=None, ge=1)  # None: no length was set
    mode: Literal["plain", "spec", "specx"]
    tokens_per_step: float = Field(ge=1)  # the bonus token counts
    tok_s: float = Field(gt=0)  # new tokens over the whole time, prefill included
    speedup_vs_ar: float | None = Field(default=None, gt=0)  # the paper's own plain decoding
    suspect: bool = False
    reason: str = ""  # why it is suspect, or what is to be known about it

    @model_validator(mode="after")
    def _says_why(self) -> "PaperRow":
        if self.suspect and not self.reason:
            raise ValueError("a suspect row of the paper must give its reason")
        return self
