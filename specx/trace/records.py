"""``specx.trace/1``: a header, a line for each piece of prefill and each step, an end; and reading
such files of unknown origin. A run that was killed leaves a readable file without an end.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from specx.core.config import Mode, RetrievalConfig, SamplingConfig
from specx.core.stats import FinishReason, GenerationStats, Memory, StepStats
from specx.documents.document import read_file
from specx.errors import DocumentError
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
        names = {field.alias or name for name, field in cls.model_fields.items()} - others.keys()
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
        return "a question" if self.input is None else self.input.name

    def document_map(self) -> DocumentMap:
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
    thought: str = Field("", description="What it added to a thought; pieces have the answer.")
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
        # Fewer are accepted where the stop rule cut the last step.
        if tree and (self.nodes != len(tree.ids) or self.accepted >= len(tree.path)):
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
MAX_TRACE_BYTES = 256 << 20
_LINE: TypeAdapter[AnyLine] = TypeAdapter(Line)


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded run, checked. ``end`` is None and ``warnings`` says so when it was cut short."""

    header: Header
    prefill: tuple[PrefillLine, ...]
    steps: tuple[StepLine, ...]
    end: End | None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return _text(self.steps)

    def stats(self) -> GenerationStats:
        """The run's totals, as far as it was recorded."""
        stats = GenerationStats(prompt_tokens=self.header.prompt_tokens)
        for step in self.steps:
            add_step(stats, step)
        if self.end is None:
            stats.prefill_target_s = self.prefill[-1].elapsed_s if self.prefill else 0.0
            return stats
        totals = self.end.totals
        names = {"prefill_target_s", "prefill_draft_s", "tune_s", "ttft_s", "total_s"}
        memory = Memory(peak_bytes=totals.peak_bytes)
        return replace(stats, memory=memory, **totals.model_dump(include=names))


def add_step(stats: GenerationStats, step: StepLine) -> None:
    """Count one more step in running totals."""
    stats.new_tokens += step.new_tokens
    if step.times_s is None:
        return
    counts = step.model_dump(include={"nodes", "accepted", "new_tokens", "draft_context_tokens"})
    times = {f"{phase}_s": seconds for phase, seconds in step.times_s}
    record = StepStats(depth=0, **counts, **times)
    stats.steps.append(record)
    stats.decode_s += record.total_s


def read_trace(path: str) -> Trace:
    """Read and check a trace file. A last line that was cut off is left out, with a warning.

    Raises ``DocumentError`` with the number of the wrong line.
    """
    raw = read_file(path, MAX_TRACE_BYTES)
    if len(raw) > MAX_TRACE_BYTES:
        raise DocumentError(f"{path} is larger than {MAX_TRACE_BYTES >> 20} MiB")
    if not raw:
        raise DocumentError(f"{path} is empty")
    *complete, rest = raw.split(b"\n")
    lines: list[AnyLine] = []
    warning = ""
    for number, text in enumerate([*complete, rest] if rest else complete, start=1):
        try:
            line = _LINE.validate_json(text)
            _check_place(line, lines)
        except ValueError as error:
            if 1 < number > len(complete) and isinstance(error, ValidationError):
                warning = f"line {number} was cut off and is left out: the trace has no end"
                break
            hint = "specx summarize report.txt --trace run.jsonl writes one"
            what, hints = ("not a trace", [hint]) if number == 1 else ("damaged", [])
            what_is_wrong = complaint(error, 1) if isinstance(error, ValidationError) else error
            reason = f"line {number}: {what_is_wrong}"
            raise DocumentError(f"{path} is {what}", reason=reason, hints=hints) from error
        lines.append(line)
    header, last = lines[0], lines[-1]
    assert isinstance(header, Header)
    end = last if isinstance(last, End) else None
    if end is None and not warning:
        warning = "the run was cut short: the trace has no end"
    prefill = tuple(line for line in lines if isinstance(line, PrefillLine))
    steps = tuple(line for line in lines if isinstance(line, StepLine))
    return Trace(header, prefill, steps, end, (warning,) if warning else ())


def _check_place(line: AnyLine, lines: Sequence[AnyLine]) -> None:
    """Raise ``ValueError`` unless ``line`` can follow ``lines``."""
    last = lines[-1] if lines else None
    step = last.number + 1 if isinstance(last, StepLine) else 0
    if last is None and isinstance(line, Header):
        return
    if last is None or isinstance(line, Header):
        problem = "the header must come first, and there is no second header"
    elif isinstance(last, End):
        problem = "nothing may follow the end"
    elif not isinstance(last, Header) and line.elapsed_s < last.elapsed_s:
        problem = "elapsed_s goes back in time"
    elif isinstance(line, PrefillLine) and step:
        problem = "prefill follows a step"
    elif isinstance(line, StepLine) and line.number != step:
        problem = f"step {step} is missing"
    elif isinstance(line, End) and line.text != _text(lines):
        problem = "the text is not that of the steps"
    else:
        return
    raise ValueError(problem)


def _text(lines: Sequence[AnyLine]) -> str:
    steps = (line for line in lines if isinstance(line, StepLine))
    return "".join(piece.text for step in steps for piece in step.pieces)


def complaint(error: ValidationError, skip: int = 0) -> str:
    """The first thing wrong, on one line: ``cells[1].samples[0].decode_s must be …, not -1``.

    ``skip`` parts at the beginning of the place are left out, such as the kind of a line.
    """
    first = error.errors(include_url=False)[0]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][skip:]]
    where, message = "".join(parts)[1:], first["msg"].removeprefix("Value error, ")
    wanted = re.sub("^(Input|String) should", "must", message)
    if first["type"] == "missing":
        return f"{where} is missing"
    if wanted == message:
        return (f"{where}: {message}" if where else message[:1].lower() + message[1:])[:200]
    return f"{where} {wanted}, not {shown(first['input'])}"[:200]


def shown(value: object) -> str:
    """``value`` as JSON in ASCII, cut short."""
    return json.dumps(value, default=str)[:60]
