"""The settings of the core, as frozen dataclasses: numbers and names, without torch, so that
presets, ``--help`` and ``--set`` can be read and checked without importing it."""

from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import Any, Literal

Think = Literal["auto", "on", "off"]
Mode = Literal["auto", "plain", "spec", "specx"]
DrafterKind = Literal["none", "lookup", "lm", "eagle", "eagle3"]
DraftCache = Literal["full", "window", "retrieval"]
DraftPrefill = Literal["full", "window"]
PrefillAttention = Literal["fused", "eager"]
TreeAttention = Literal["hybrid", "triton", "flash", "sdpa", "masked"]
Launch = Literal["graph", "eager"]
CopiedGuesses = Literal["tree", "none"]
TreeSize = Literal["fixed", "measured"]

# pydantic reads this attribute on a plain dataclass: an unknown key in a preset is an error.
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """The draft tree (OPT-Tree as in SpecExtend, arXiv 2505.20776 §4: 50 nodes, depth 10, 0.7).

    ``size="measured"`` keeps ``nodes`` and ``depth`` as upper bounds and lets the measured costs
    of draft levels and verify rows decide how far each tree grows; ``"fixed"`` stops only when a
    level adds less than ``threshold`` expected tokens.
    """

    __pydantic_config__ = _STRICT

    nodes: int = 50  # guesses, root excluded
    depth: int = 10  # levels of guesses
    threshold: float = 0.7  # expected tokens that one more level must add
    size: TreeSize = "measured"

    def __post_init__(self) -> None:
        _require(1 <= self.nodes <= 512, "tree.nodes", self.nodes, "between 1 and 512")
        _require(1 <= self.depth <= 64, "tree.depth", self.depth, "between 1 and 64")
        _require(0.0 <= self.threshold <= 1.0, "tree.threshold", self.threshold, "in 0..1")


@dataclass(frozen=True, slots=True)
class RetrievalConfig:
    """Which chunks of the context the draft keeps (SpecExtend, Cross-model Retrieval)."""

    __pydantic_config__ = _STRICT

    chunk_tokens: int = 32
    top_chunks: int = 32  # chosen by the target's attention
    sink_chunks: int = 1  # from the start, always kept
    recent_chunks: int = 4  # from the end, always kept
    every_steps: int = 4  # refresh interval in verify steps

    def __post_init__(self) -> None:
        _require(self.chunk_tokens >= 1, "retrieval.chunk_tokens", self.chunk_tokens, "≥ 1")
        _require(self.top_chunks >= 0, "retrieval.top_chunks", self.top_chunks, "≥ 0")
        _require(self.sink_chunks >= 0, "retrieval.sink_chunks", self.sink_chunks, "≥ 0")
        _require(self.recent_chunks >= 1, "retrieval.recent_chunks", self.recent_chunks, "≥ 1")
        _require(self.every_steps >= 1, "retrieval.every_steps", self.every_steps, "≥ 1")

    @property
    def budget_tokens(self) -> int:
        """Rows that the draft's working cache holds after a refresh, at most."""
        return (self.top_chunks + self.sink_chunks + self.recent_chunks) * self.chunk_tokens

    def due(self, step: int) -> bool:
        """Whether to refresh after verify step ``step`` (0-based)."""
        return step % self.every_steps == 0

    def is_needed(self, rows: int) -> bool:
        """Whether ``rows`` of context exceed what the draft may keep."""
        return rows > self.budget_tokens


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How a token is drawn from the target's logits; ``temperature=0`` is greedy."""

    __pydantic_config__ = _STRICT

    temperature: float = 0.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature < inf, "temperature", self.temperature, "≥ 0 and finite")
        _require(self.top_k >= 0, "top_k", self.top_k, "≥ 0 (0 = off)")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]")
        _require(0.0 <= self.min_p < 1.0, "min_p", self.min_p, "in [0, 1)")
        penalty = self.repetition_penalty
        _require(0.0 < penalty < inf, "repetition_penalty", penalty, "> 0 and finite")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2^63 − 1")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a mode is made of; every part can be switched alone, for ablations."""

    __pydantic_config__ = _STRICT

    drafter: DrafterKind = "lm"
    draft_cache: DraftCache = "retrieval"
    draft_prefill: DraftPrefill = "window"
    prefill_attention: PrefillAttention = "fused"
    tree_attention: TreeAttention = "hybrid"  # the best backend there is
    launch: Launch = "graph"  # CUDA graphs, where the kernels allow them
    copies: CopiedGuesses = "tree"  # of the text, beside those of a draft model

    @property
    def has_draft_model(self) -> bool:
        """Whether a model with weights and a cache of its own drafts."""
        return self.drafter not in ("none", "lookup")


#: The modes by name. ``auto`` is ``specx`` that falls back to plain steps where drafting loses.
MODES = MappingProxyType(
    {
        "plain": Parts(drafter="none"),
        "spec": Parts(draft_cache="full", draft_prefill="full", copies="none"),
        "specx": Parts(),
        "auto": Parts(),
    }
)


def parts_for(mode: str, overrides: dict[str, Any] | None = None) -> Parts:
    """The parts of ``mode`` with single ones replaced (``{"draft_cache": "window"}``).

    Raises ``KeyError`` for an unknown mode and ``TypeError`` for an unknown part.
    """
    return replace(MODES[mode], **(overrides or {}))


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, not {value}")
