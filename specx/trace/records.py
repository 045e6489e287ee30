"""The lines of ``specx.trace/1``, checked by pydantic; the reader checks their order."""

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

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        from_attributes=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
    )

    @classmethod
    def of(cls, source: object, suffix: str = "", **others: Any) -> Self:
        """Made of what ``source`` has under the same names, ``suffix`` added, and of ``others``."""
        fields = cls.model_fields.items()
        names = [name for name, field in fields if (field.alias or name) not in others]
        return cls(**{name: getattr(source, name + suffix) for name in names}, **others)

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json")


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
    """Which chunks the draft keeps: some from the start, some from the end, the best others."""

    top_chunks: Count
    sink_chunks: Count
    recent_chunks: Positive
    every_steps: Positive


class Header(Record):
    """What stays the same in a run. ``chunks`` has the text of every ``chunk_tokens`` tokens."""

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
        chunks = -(-self.prompt_tokens // self.chunk_tokens)
        _require(len(self.chunks) == chunks, f"there must be {chunks} chunks")
        places = [tick.chunk for tick in self.ticks]
        _require(places == sorted(places), "ticks must be in the order of the text")
        _require(all(place < chunks for place in places), "a tick lies after the last chunk")
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
        nodes = len(self.ids)
        _require(nodes > 0, "a tree needs a root")
        _require(len(self.texts) == len(self.parents) == nodes, "every node needs text and parent")
        _require(self.parents[0] == 0, "the root must be its own parent")
        later = all(self.parents[node] < node for node in range(1, nodes))
        _require(later, "a parent must come before its children")
        _require(self.path[:1] == [0], "the path must start at the root")
        _require(max(self.path) < nodes, "the path leads out of the tree")
        steps = zip(self.path, self.path[1:], strict=False)
        _require(all(b > 0 and self.parents[b] == a for a, b in steps), "the path has a gap")
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
        found = self.retrieved or []
        _require(found == sorted(set(found)), "retrieved chunks must be increasing")
        if self.tree is not None:
            _require(self.nodes == len(self.tree.ids), "nodes must be the tree's")
            _require(self.accepted == len(self.tree.path) - 1, "accepted must be the path's")
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


#: Any line; ``kind`` says which.
Line = Annotated[Header | PrefillLine | StepLine | End, Field(discriminator="kind")]


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
