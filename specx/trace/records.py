"""The lines of ``specx.trace/1``, checked by pydantic; the reader checks their order."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from specx.core.config import Mode, RetrievalConfig, SamplingConfig
from specx.core.stats import FinishReason
from specx.trace.map import DocumentMap, Index, Tick

Count = Annotated[int, Field(ge=0, lt=1 << 60)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]


class Asked(Protocol):
    """What was asked of the engine, as far as a trace or a result says it."""

    @property
    def mode(self) -> Mode: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def sampling(self) -> SamplingConfig: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def ignore_eos(self) -> bool: ...


class Record(BaseModel):
    """A part of a JSON file. Unknown keys are ignored: a later specx may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True)

    @classmethod
    def of(cls, source: object, suffix: str = "", **others: Any) -> Self:
        """Made of what ``source`` has under the same names, ``suffix`` added, and of ``others``."""
        names = {field.alias or name for name, field in cls.model_fields.items()} - others.keys()
        return cls(**{name: getattr(source, name + suffix) for name in names}, **others)


class Program(Record):
    """The program that wrote the file."""

    version: str


class PresetName(Record):
    """The preset by name, and the SHA-256 of all its settings, ``--set`` included."""

    name: str
    sha256: str


class InputFacts(Record):
    """The document as it was read. ``name`` is the file's, without directories."""

    name: str
    format: str
    bytes: Count
    sha256: str
    tokens: Count = Field(description="Of the document alone, in target tokens.")


class KeptChunks(Record):
    """Which chunks the draft keeps, as in ``RetrievalConfig``."""

    top_chunks: Count
    sink_chunks: Count
    recent_chunks: Positive
    every_steps: Positive


class Header(Record):
    """What stays the same in a run; ``chunks``: the text of every ``chunk_tokens`` tokens."""

    schema_name: Literal["specx.trace/1"] = Field(alias="schema")
    kind: Literal["header"] = "header"
    specx: Program
    created: str
    command: str
    preset: PresetName
    mode: str
    device: str
    dtype: str
    sampling: SamplingConfig
    max_tokens: Count
    stop: list[str]
    ignore_eos: bool
    input: InputFacts | None
    prompt_tokens: Positive
    chunk_tokens: Positive
    chunks: list[str]
    ticks: list[Tick]
    retrieval: KeptChunks
    note: str = Field("", description="Why nothing is retrieved.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        chunks, places = len(self.chunks), [tick.chunk for tick in self.ticks]
        if chunks != -(-self.prompt_tokens // self.chunk_tokens):
            raise ValueError(f"{chunks} chunks are not the whole prompt")
        if places != sorted(places) or max(places, default=-1) >= chunks:
            raise ValueError("the ticks are not in the order of the text")
        return self

    @property
    def title(self) -> str:
        """What the run is about, for people."""
        return "a question" if self.input is None else self.input.name

    def document_map(self) -> DocumentMap:
        """The prompt's map, as it was recorded."""
        config = RetrievalConfig(chunk_tokens=self.chunk_tokens, **self.retrieval.model_dump())
        return DocumentMap(tuple(self.chunks), tuple(self.ticks), config)


class PrefillLine(Record):
    """The prompt has been read this far."""

    kind: Literal["prefill"] = "prefill"
    done_tokens: Count
    total_tokens: Count
    elapsed_s: Seconds


class TextPiece(Record):
    """Text that a step added; ``accepted``: the draft guessed it, else it is the target's own."""

    text: str
    accepted: bool


class Token(Record):
    """A token by id and text."""

    id: Index
    text: str


class TreeFacts(Record):
    """The tree of a step: node 0 is the last committed token, ``path`` the accepted guesses."""

    ids: list[Index]
    texts: list[str]
    parents: list[Count]
    path: list[Count]
    bonus: Token

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        parents, path = self.parents, self.path
        if not 0 < len(self.ids) == len(self.texts) == len(parents):
            raise ValueError("every node needs a text and a parent")
        if any(parent > max(node - 1, 0) for node, parent in enumerate(parents)):
            raise ValueError("the root must be its own parent and come first, as every parent does")
        if path[:1] != [0] or max(path) >= len(parents):
            raise ValueError("the path must start at the root and stay in the tree")
        if any(parents[node] != before or node == 0 for before, node in pairwise(path)):
            raise ValueError("the path has a gap")
        return self


class PhaseSums(Record):
    """Seconds by phase, over the verify steps."""

    draft: Seconds
    verify: Seconds
    accept: Seconds
    commit: Seconds
    retrieve: Seconds
    host: Seconds


class StepTimes(PhaseSums):
    """Seconds of a step by phase; ``draft_levels`` is part of ``draft``."""

    draft_levels: list[Seconds]


class StepLine(Record):
    """A verify step. Step 0 is the first token, which the prefill yields: no tree, no times."""

    kind: Literal["step"] = "step"
    number: Count
    pieces: list[TextPiece]
    new_tokens: Count
    nodes: Count
    accepted: Count
    tree: TreeFacts | None
    retrieved: list[Index] | None
    draft_context_tokens: Count
    times_s: StepTimes | None
    elapsed_s: Seconds

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found, tree = self.retrieved or [], self.tree
        if found != sorted(set(found)):
            raise ValueError("retrieved chunks must be increasing")
        if tree and (self.nodes, self.accepted) != (len(tree.ids), len(tree.path) - 1):
            raise ValueError("nodes and accepted must be the tree's")
        return self


class Totals(Record):
    """Sums over the run. Seconds and bytes."""

    prompt_tokens: Count
    new_tokens: Count
    steps: Count
    accepted: Count
    prefill_target_s: Seconds
    prefill_draft_s: Seconds
    tune_s: Seconds
    ttft_s: Seconds
    decode_s: Seconds
    total_s: Seconds
    peak_bytes: Count


class End(Record):
    """The run has ended in good order."""

    kind: Literal["end"] = "end"
    finish_reason: FinishReason
    text: str
    mode_reason: str = ""
    totals: Totals
    elapsed_s: Seconds


AnyLine = Header | PrefillLine | StepLine | End
Line = Annotated[AnyLine, Field(discriminator="kind")]
