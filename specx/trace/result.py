"""``specx.result/1``: a finished run as one object; and ``specx.error/1``, one that failed.

Times are seconds, sizes bytes, rates tokens per second. Fields may be added within a version.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from specx._version import __version__
from specx.core.config import Mode, RetrievalConfig, SamplingConfig, TreeConfig
from specx.core.stats import FinishReason, GenerationStats
from specx.environment import environment
from specx.errors import SpecxError
from specx.trace import records
from specx.trace.records import Count, InputFacts, Record, Seconds

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, Verification

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _finite(margin: object) -> object:
    """JSON knows no infinity, the margin where filters had removed one of the tokens."""
    return None if isinstance(margin, float) and not math.isfinite(margin) else margin


Margin = Annotated[float | None, BeforeValidator(_finite)]


class SourceFacts(InputFacts):
    """The document as it was read."""

    sha256: Sha256
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
    """How long each part took; older comparisons lack ``load`` and ``steps``."""

    load: Seconds = 0.0
    prefill_target: Seconds
    prefill_draft: Seconds
    tune: Seconds = Field(description="Timing verify widths to size the tree.")
    ttft: Seconds = Field(description="From the request to the first token.")
    decode: Seconds = Field(description="From the first token to the last.")
    total: Seconds = Field(description="Without loading.")
    steps: records.PhaseSums | None = None


class Rates(Record):
    """Tokens per second; null where nothing was read or written to the end."""

    prefill_tok_s: Amount | None = Field(description="prompt / prefill of target and draft.")
    decode_tok_s: Amount | None = Field(description="(new - 1) / decode.")
    end_to_end_tok_s: Amount | None = Field(description="new / total.")
    tpot_ms: Amount | None = Field(default=None, description="decode / (new - 1), in ms.")


class Acceptance(Record):
    """Drafting. A tree's nodes all count as drafted, so most cannot be accepted."""

    steps: Count = Field(description="Verify steps.")
    drafted: Count
    accepted: Count = Field(description="Draft tokens kept, bonus tokens excluded.")
    accepted_per_step: Amount | None
    tokens_per_step: Amount | None = Field(description="accepted_per_step + 1; 1 for plain.")
    rate: Amount | None = Field(None, description="accepted / drafted.")
    histogram: list[Count] = Field([], description="[a]: steps that accepted a draft tokens.")
    copied: Count = Field(0, description="Of the accepted, how many a copy had guessed as well.")
    by_position: list[Amount] = Field([], description="Mean tokens_per_step by 1,024 tokens.")


class MemoryBytes(Record):
    """Bytes by owner."""

    weights: Count = 0
    kv_target: Count = 0
    kv_draft: Count = 0
    peak: Count = Field(0, description="High mark of the process (CPU) or the allocator (GPU).")


class MachineFacts(Record):
    """Machine and libraries; null where something does not apply or is not known."""

    device: str
    gpu: str | None
    cuda: str | None
    driver: str | None = None
    cpu: str
    threads: records.Positive
    torch: str
    transformers: str | None
    python: str
    os: str


class FirstDifference(Record):
    """Where an output leaves the one that it was compared with."""

    index: Count = Field(description="Of the output token, from 0.")
    expected: Count | None = Field(description="A token id; null: the end of the text.")
    got: Count | None
    margin: Margin = Field(description="Logit distance in the target.")


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
    specx: records.Program
    created: str = Field(description="UTC, ISO 8601.")
    command: str = Field(description="generate or summarize.")
    input: SourceFacts | None = Field(description="null: a question without a document.")
    preset: records.PresetName
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
    memory: MemoryBytes
    verify: PlainCheck | None
    env: MachineFacts
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
    said: dict[str, Any] = {name: getattr(error, name) for name in ("code", "message", "reason")}
    said |= {"exit": error.exit_code, "hints": list(error.hints)}
    if document is not None:
        said["input"] = ErrorInput(path=document)
    return ErrorObject(schema="specx.error/1", **said)


def result_object(
    engine: "Engine",
    command: str,
    asked: records.Asked,
    document: "Document | None",
    prompt: "Prompt",
    result: "Result",
    verification: "Verification | None",
) -> ResultObject:
    """A finished request as an object."""
    preset = engine.preset
    limits = {name: getattr(asked, name) for name in ("max_tokens", "stop", "ignore_eos")}
    return ResultObject(
        schema="specx.result/1",
        **run_facts(engine, command, document, prompt),
        **measured(result, engine.remarks),
        models=Models(
            target=LoadedTarget.of(preset.target, dtype=engine.dtype),
            draft=LoadedDraft.of(preset.draft),
        ),
        sampling=AskedSampling(**asdict(asked.sampling), **limits),
        spec=Speculation.of(preset, mode=asked.mode, mode_reason=result.mode_reason),
        thought=None if result.thought is None else ThoughtFacts.of(result.thought),
        verify=None if verification is None else PlainCheck.of(verification),
        env=MachineFacts(**environment(engine.device)),
    )


def measured(result: "Result", remarks: Sequence[str]) -> dict[str, Any]:
    """What a result and a row of a live comparison say of a run; ``remarks`` are the engine's."""
    stats = result.stats
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "tokens": TokenCounts(prompt=stats.prompt_tokens, new=stats.new_tokens),
        "time_s": RunSeconds.of(stats, "_s", steps=records.PhaseSums(**stats.phases_s)),
        "rate": rates(stats),
        "accept": Acceptance.of(
            stats,
            steps=len(stats.steps),
            rate=stats.accepted / stats.drafted if stats.drafted else None,
            histogram=stats.accepted_histogram,
            by_position=stats.tokens_per_step_by_position,
        ),
        "memory": MemoryBytes.of(stats.memory, "_bytes"),
        "warnings": [Remark(message=message) for message in (*remarks, *result.warnings)],
    }


def rates(stats: GenerationStats) -> Rates:
    """Tokens per second; None without new tokens, as the prompt was not read to its end."""
    found = {
        f"{name}_tok_s": (stats.new_tokens and getattr(stats, f"{name}_tokens_per_s")) or None
        for name in ("prefill", "decode", "end_to_end")
    }
    decode_tok_s = found["decode_tok_s"]
    return Rates(**found, tpot_ms=1000 / decode_tok_s if decode_tok_s else None)


def source_facts(document: "Document", prompt: "Prompt") -> SourceFacts:
    """The document that a prompt was made of."""
    name = document.name.encode("utf-8", "replace").decode()  # JSON knows text only
    return SourceFacts.of(document, name=name, tokens=prompt.document_tokens)


def run_facts(
    engine: "Engine", command: str, document: "Document | None", prompt: "Prompt"
) -> dict[str, Any]:
    """What a result and the header of a trace have in common."""
    preset = engine.preset
    return {
        "specx": records.Program(version=__version__),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "preset": records.PresetName(name=preset.name, sha256=preset.fingerprint),
        "input": None if document is None else source_facts(document, prompt),
    }
