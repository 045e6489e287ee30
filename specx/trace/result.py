"""``specx.result/1``: a finished run as one object; and ``specx.error/1``, one that failed.

Times are seconds, sizes bytes, rates tokens per second. Fields may be added within a version.
"""

import datetime
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from specx._version import __version__
from specx.core.config import Mode, RetrievalConfig, SamplingConfig, TreeConfig
from specx.core.stats import FinishReason
from specx.environment import Environment, environment
from specx.errors import SpecxError
from specx.trace.records import (
    Asked,
    Count,
    InputFacts,
    PhaseSums,
    PresetName,
    Program,
    Record,
    Seconds,
)

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, Verification

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SourceFacts(InputFacts):
    """The document as it was read."""

    path: str | None = Field(description="As given; null for standard input.")


class LoadedTarget(Record):
    """The model whose text this is."""

    repo: str
    revision: str | None
    dtype: str


class LoadedDraft(Record):
    """What guessed tokens in the modes other than plain."""

    kind: str
    repo: str | None
    revision: str | None
    trained_context_tokens: Count


class Models(Record):
    """What was loaded."""

    target: LoadedTarget
    draft: LoadedDraft


@dataclass(frozen=True, kw_only=True)
class AskedSampling(SamplingConfig):
    """How tokens were chosen, and where the text had to end."""

    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool


class Speculation(Record):
    """How drafts were made and checked."""

    mode: Mode
    mode_reason: str = Field(description="Why auto left drafting; empty otherwise.")
    tree: TreeConfig
    retrieval: RetrievalConfig


class TokenCounts(Record):
    """Counts in target tokens."""

    prompt: Count = Field(description="The whole prompt, template included.")
    new: Count


class ThoughtFacts(Record):
    """What the model wrote before its answer, without the tags around it."""

    text: str
    tokens: Count = Field(description="Its tags included; part of tokens.new.")
    max_tokens: Count = Field(description="Its bound, the closing tag not counted.")
    end: Literal["model", "bound", "open"] = Field(
        description="bound: the closing tag was put in; open: the text ended within it."
    )


class RunSeconds(Record):
    """How long each part took."""

    load: Seconds
    prefill_target: Seconds
    prefill_draft: Seconds
    tune: Seconds = Field(description="Timing verify widths to size the tree.")
    ttft: Seconds = Field(description="From the request to the first token.")
    decode: Seconds = Field(description="From the first token to the last.")
    total: Seconds = Field(description="Without loading.")
    steps: PhaseSums


class Rates(Record):
    """Tokens per second; null where nothing was measured."""

    prefill_tok_s: Amount | None
    decode_tok_s: Amount | None = Field(description="(new - 1) / decode.")
    end_to_end_tok_s: Amount | None = Field(description="new / total.")
    tpot_ms: Amount | None = Field(description="decode / (new - 1), in milliseconds.")


class Acceptance(Record):
    """Drafting. A tree's nodes all count as drafted, so most cannot be accepted."""

    steps: Count = Field(description="Verify steps.")
    drafted: Count
    accepted: Count = Field(
        description="Draft tokens kept, the target's own token of each step excluded."
    )
    accepted_per_step: Amount
    tokens_per_step: Amount = Field(description="accepted_per_step + 1; 1 for plain decoding.")
    rate: Amount | None = Field(description="accepted / drafted.")
    histogram: list[Count] = Field(
        description="histogram[a] steps accepted exactly a draft tokens."
    )
    copied: Count = Field(0, description="Of the accepted, how many a copy had guessed as well.")
    by_position: list[Amount] = Field(
        [], description="Mean tokens_per_step of the steps that began in each 1,024 tokens."
    )


class BytesByOwner(Record):
    """Bytes by owner."""

    weights: Count
    kv_target: Count
    kv_draft: Count
    peak: Count = Field(description="High mark of the process (CPU) or of the allocator (GPU).")


class FirstDifference(Record):
    """Token ids; null is the end of the text. ``margin``: logit distance in the target."""

    index: Count
    expected: Count | None
    got: Count | None
    margin: float | None


class PlainCheck(Record):
    """Comparison with plain decoding, over so many checked tokens."""

    checked: Count
    equal: bool
    first_difference: FirstDifference | None


class Remark(Record):
    """Something the user should know."""

    message: str


class ResultObject(Record):
    """One finished run. ``verify`` is null where nothing was checked."""

    schema_name: Literal["specx.result/1"] = Field(alias="schema")
    specx: Program
    created: str = Field(description="UTC, ISO 8601.")
    command: str = Field(description="generate or summarize.")
    input: SourceFacts | None = Field(description="null: a question without a document.")
    preset: PresetName
    models: Models
    sampling: AskedSampling
    spec: Speculation
    text: str = Field(description="The answer.")
    thought: ThoughtFacts | None = Field(None, description="null: it did not think.")
    finish_reason: FinishReason
    tokens: TokenCounts
    time_s: RunSeconds
    rate: Rates
    accept: Acceptance
    memory: BytesByOwner
    verify: PlainCheck | None
    env: Environment
    warnings: list[Remark]


class ErrorInput(Record):
    """The document that failed."""

    path: str


class ErrorObject(Record):
    """A run that failed; ``exit`` is the exit code, ``input`` only where there were several."""

    schema_name: Literal["specx.error/1"] = Field(alias="schema")
    code: str
    exit: int = Field(ge=1)
    message: str
    reason: str
    hints: list[str]
    input: ErrorInput | None = None


#: What ``generate`` and ``summarize`` write.
AnyResult = Annotated[ResultObject | ErrorObject, Field(discriminator="schema_name")]


def error_object(error: SpecxError, *, document: str | None = None) -> ErrorObject:
    """``error`` as an object; ``document`` is the path of the failed input."""
    place = {} if document is None else {"input": ErrorInput(path=document)}
    return ErrorObject(
        schema="specx.error/1",
        code=error.code,
        exit=error.exit_code,
        message=error.message,
        reason=error.reason,
        hints=list(error.hints),
        **place,
    )


def result_object(
    engine: "Engine",
    command: str,
    asked: Asked,
    document: "Document | None",
    prompt: "Prompt",
    result: "Result",
    verification: "Verification | None",
) -> ResultObject:
    """A finished request as an object."""
    preset, stats = engine.preset, result.stats
    later = stats.new_tokens - 1
    return ResultObject.of(
        result,
        schema="specx.result/1",
        **run_facts(engine, command, document, prompt),
        models=Models(
            target=LoadedTarget.of(preset.target, dtype=engine.dtype),
            draft=LoadedDraft.of(preset.draft),
        ),
        sampling=AskedSampling(
            **asdict(asked.sampling),
            max_tokens=asked.max_tokens,
            stop=asked.stop,
            ignore_eos=asked.ignore_eos,
        ),
        spec=Speculation.of(preset, mode=asked.mode, mode_reason=result.mode_reason),
        thought=None if result.thought is None else ThoughtFacts.of(result.thought),
        tokens=TokenCounts(prompt=stats.prompt_tokens, new=stats.new_tokens),
        time_s=RunSeconds.of(stats, "_s", steps=PhaseSums(**stats.phases_s)),
        rate=Rates(
            prefill_tok_s=stats.prefill_tokens_per_s or None,
            decode_tok_s=stats.decode_tokens_per_s or None,
            end_to_end_tok_s=stats.end_to_end_tokens_per_s or None,
            tpot_ms=1000 * stats.decode_s / later if later > 0 and stats.decode_s > 0 else None,
        ),
        accept=Acceptance.of(
            stats,
            steps=len(stats.steps),
            rate=stats.accepted / stats.drafted if stats.drafted else None,
            histogram=stats.accepted_histogram,
            by_position=stats.tokens_per_step_by_position,
        ),
        memory=BytesByOwner.of(stats.memory, "_bytes"),
        verify=None if verification is None else PlainCheck.of(verification),
        env=environment(engine.device),
        warnings=[Remark(message=message) for message in (*engine.remarks, *result.warnings)],
    )


def source_facts(document: "Document", prompt: "Prompt") -> SourceFacts:
    """The document that a prompt was made of."""
    name = document.name.encode("utf-8", "replace").decode()  # JSON knows text only
    return SourceFacts.of(document, name=name, tokens=prompt.document_tokens)


def run_facts(
    engine: "Engine", command: str, document: "Document | None", prompt: "Prompt"
) -> dict[str, Any]:
    """What a result and the header of a trace have in common."""
    source = None if document is None else source_facts(document, prompt)
    return {
        "specx": Program(version=__version__),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "preset": PresetName(name=engine.preset.name, sha256=engine.preset.fingerprint),
        "input": source,
    }
