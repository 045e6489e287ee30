"""``specx.bench/1`` and ``specx.compare/1``: their JSON Schemas come from these models, and files
of unknown origin are read through them. Times are in seconds, sizes in bytes, nothing is rounded,
and None is what was not measured."""

import itertools
import math
from collections.abc import Collection, Iterator
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, computed_field, model_validator

from specx.core.config import SamplingConfig
from specx.core.stats import FinishReason
from specx.trace import result
from specx.trace.records import Count, Positive, Program, Record, shown

# Both formats say these things in the same words.
MemoryBytes = result.MemoryBytes
BenchDifference = result.FirstDifference
TargetFacts = result.LoadedTarget
DraftFacts = result.LoadedDraft
MachineFacts = result.MachineFacts
Amount = result.Amount
Sha256 = result.Sha256
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Name = Annotated[str, Field(min_length=1)]
Metric = Literal[
    "prefill_tok_s", "decode_tok_s", "end_to_end_tok_s", "ttft_s", "tokens_per_step", "speedup"
]


class Place(NamedTuple):
    """What rows are looked up and joined by."""

    preset: str
    mode: str
    length: int


class BenchPlace(Record):
    """A preset in a mode at a length: a row of every table."""

    preset: Name
    mode: Name
    length: Positive = Field(description="Prompt tokens asked for.")

    @property
    def place(self) -> Place:
        return Place(self.preset, self.mode, self.length)


class BenchCell(BenchPlace):
    document: Count = Field(description="Of plan.data.documents, from 0.")
    rep: Count = Field(description="Repetition, from 0.")


class Phases(Record):
    """Where verify steps spent their time: seconds of a run, or mean milliseconds of a step."""

    draft_levels: list[Amount] = Field(default=[], description="Draft forwards, one a tree level.")
    draft_tree: Amount = Field(default=0.0, description="Choosing guesses and building the tree.")
    verify: Amount = Field(default=0.0, description="The target's forward.")
    accept: Amount = Field(default=0.0, description="Sampling and walking the tree.")
    commit: Amount = Field(default=0.0, description="Compacting the target's cache.")
    retrieve: Amount = Field(default=0.0, description="Scoring chunks, filling the draft's cache.")
    host: Amount = Field(default=0.0, description="The rest: stop rule, bookkeeping, text.")


PHASES = tuple(Phases.model_fields)  # in the order in which they happen


class Joules(Record):
    prefill: Amount
    decode: Amount


class Sample(Record):
    cell: BenchCell
    prompt_tokens: Count
    new_tokens: Count
    finish_reason: FinishReason
    prefill_target_s: Amount
    prefill_draft_s: Amount
    tune_s: Amount = Field(default=0.0, description="Timing verify widths to size the tree.")
    ttft_s: Amount = Field(description="From the request to the first token.")
    decode_s: Amount = Field(description="From the first token to the last.")
    total_s: Amount = Field(description="ttft_s + decode_s.")
    first_tokens: Count = Field(default=1, description="Tokens that came with the prefill.")
    steps: Count | None = Field(description="Forwards of the target after the prefill.")
    drafted: Count | None
    accepted: Count | None = Field(description="Draft tokens kept, bonus tokens excluded.")
    draft_forwards: Count | None = Field(default=None, description="Tree levels in all steps.")
    histogram: list[Count] = Field(default=[], description="[a]: steps that accepted a tokens.")
    copied: Count | None = Field(default=None, description="Accepted, and also guessed by copying.")
    phases: Phases | None = Field(default=None, description="null: a witness.")
    memory: MemoryBytes
    energy: Joules | None = Field(default=None, description="Of the whole GPU.")
    tokens: list[TokenId]
    equal: bool | None = Field(default=None, description="Same as plain; null: not compared.")
    first_difference: BenchDifference | None = None
    mode_reason: str = Field(default="", description="Why auto left drafting.")

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens over the prefill time of target and draft."""
        return ratio_of(self.prompt_tokens, self.prefill_target_s + self.prefill_draft_s)

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens after the prefill's over decode time; None where no token is left."""
        later = self.new_tokens - self.first_tokens
        return ratio_of(later, self.decode_s) if later > 0 else None

    @property
    def end_to_end_tok_s(self) -> float | None:
        return ratio_of(self.new_tokens, self.total_s)

    @property
    def tokens_per_step(self) -> float | None:
        return 1 + self.accepted / self.steps if self.accepted is not None and self.steps else None


def ratio_of(top: float, bottom: float) -> float | None:
    """None where the ratio is not defined or not finite, so that it never reaches JSON."""
    ratio = top / bottom if bottom > 0 else math.inf
    return ratio if ratio < math.inf else None


class Floor(Record):
    """The least time that this hardware, measured here, allows for one preset at one length."""

    preset: Name
    length: Positive
    step_bytes: Count = Field(description="Weights, and keys and values of ``length`` tokens.")
    step_flop: Count = Field(description="Of one row.")
    draft_level_bytes: Count = Field(description="The draft's weights and its working cache.")
    prefill_flop: Count
    bandwidth_bytes_s: Annotated[float, Field(gt=0)]
    rate_flop_s: Annotated[float, Field(gt=0)]

    @computed_field(description="Least time of one target forward over one row.")  # type: ignore[prop-decorator]
    @property
    def step_s(self) -> float:
        return max(self.step_bytes / self.bandwidth_bytes_s, self.step_flop / self.rate_flop_s)

    @computed_field(description="Least time of the target's prefill.")  # type: ignore[prop-decorator]
    @property
    def prefill_s(self) -> float:
        return self.prefill_flop / self.rate_flop_s

    @computed_field(description="What limits a step.")  # type: ignore[prop-decorator]
    @property
    def bound(self) -> Literal["memory", "compute"]:
        memory_s = self.step_bytes / self.bandwidth_bytes_s
        return "memory" if memory_s >= self.step_flop / self.rate_flop_s else "compute"

    @property
    def step_tok_s(self) -> float:
        return 1 / self.step_s if self.step_s else 0.0

    @property
    def prefill_tok_s(self) -> float:
        return self.length / self.prefill_s if self.prefill_s else 0.0


class StandInFacts(Record):
    """Weights that are not the checkpoints' own: the shapes are the preset's, the text is not."""

    pair: str = Field(description="Whose behaviour is measured.")
    trained_tokens: Count = Field(description="Beyond them, acceptance means nothing.")
    about: str


class PresetFacts(Record):
    """A preset as far as a measurement depends on it."""

    name: Name
    sha256: Sha256 = Field(description="Of all its settings.")
    target: TargetFacts
    draft: DraftFacts
    kernels: str | None
    stand_in: StandInFacts | None = None


class BenchDocument(Record):
    name: str
    sha256: Sha256 = Field(description="Of its UTF-8 bytes.")
    characters: Count


class SkippedText(Record):
    where: str
    reason: str


class DataFacts(Record):
    name: str
    documents: tuple[BenchDocument, ...]
    skipped: tuple[SkippedText, ...] = ()


class Plan(Record):
    """Everything that decides what is measured; equal plans may share a journal. Cells interleave,
    modes innermost and in a rotating order: a machine that slows down for a while slows every mode,
    and a run that ends early has all lengths."""

    presets: tuple[PresetFacts, ...]
    modes: tuple[Name, ...]
    baseline: str | None = Field(description="The mode that speed-ups are over.")
    lengths: tuple[Positive, ...] = Field(description="Prompt tokens.")
    data: DataFacts
    reps: Count
    warmup: Count = Field(description="Discarded runs of every mode at every length.")
    max_tokens: Count
    ignore_eos: bool
    verify: bool
    energy: bool
    sampling: SamplingConfig
    device: str
    dtype: str

    def groups(self, preset: str) -> Iterator[list[BenchCell]]:
        """Cells of one preset that share a prompt, in the order of running."""
        documents = range(len(self.data.documents))
        prompts = itertools.product(range(self.reps), documents, self.lengths)
        for turn, (rep, document, length) in enumerate(prompts):
            first = turn % len(self.modes)
            yield [
                BenchCell(preset=preset, mode=mode, length=length, document=document, rep=rep)
                for mode in self.modes[first:] + self.modes[:first]
            ]

    def cells(self) -> Iterator[BenchCell]:
        for preset in self.presets:
            yield from itertools.chain.from_iterable(self.groups(preset.name))

    @property
    def size(self) -> int:
        groups = len(self.presets) * self.reps * len(self.data.documents) * len(self.lengths)
        return groups * len(self.modes)


class Build(Program):
    commit: str | None = Field(description="Short hash of the source, where it is known.")


class Spread(Record):
    """How values lie over samples; ``low`` and ``high`` are the extremes."""

    median: Amount
    mean: Amount
    sd: Amount | None = Field(description="null below two samples.")
    low: Amount
    high: Amount
    outliers: Count = Field(description="Modified z-score above 3.5.")


class Interval(Record):
    """An estimate over documents with its 95 % bootstrap interval; one document has no bounds."""

    value: Amount
    low: Amount | None
    high: Amount | None
    n: Count = Field(default=0, description="Documents; older files do not always say.")

    @property
    def ends(self) -> tuple[float, float]:
        known = [end for end in (self.value, self.low, self.high) if end is not None]
        return min(known), max(known)


class OverFloor(Record):
    decode: Amount | None
    prefill: Amount | None


class Equality(Record):
    checked: Count
    equal: Count


class LocatedDifference(BenchDifference):
    document: Count
    rep: Count


class Summary(Record):
    """What the samples of one preset, mode and length say."""

    n: Positive = Field(description="Samples.")
    documents: Positive
    prompt_tokens: Count = Field(description="Median.")
    steps: Count | None = Field(description="Of all samples.")
    prefill_tok_s: Spread | None
    decode_tok_s: Spread | None
    end_to_end_tok_s: Spread | None
    ttft_s: Spread | None
    tokens_per_step: Interval | None
    accepted_per_step: Interval | None
    speedup: Interval | None = Field(description="Geometric mean over documents, paired.")
    end_to_end_speedup: Interval | None
    floor: OverFloor | None = Field(description="Measured over least time.")
    memory: MemoryBytes
    energy_j_per_token: Amount | None = Field(description="Of decoding.")
    equal: Equality | None = Field(description="Outputs compared with plain, and the same.")
    profile_ms: Phases | None
    first_difference: LocatedDifference | None = Field(description="In the first such run.")

    @property
    def is_unequal(self) -> bool:
        return self.equal is not None and self.equal.equal < self.equal.checked


class BenchRow(BenchPlace):
    samples: Annotated[list[Sample], Field(min_length=1)]  # by document, then repetition
    summary: Summary


class MissingCell(Record):
    cell: BenchCell
    reason: str


class BenchWarning(Record):
    code: str
    message: str


class PublishedRow(Record):
    """A published result of the same pair, taken elsewhere."""

    preset: str
    mode: str = Field(description="Of the row here that it belongs to.")
    length: Positive | None = Field(description="Prompt tokens; null where the paper set none.")
    source: str
    device: str
    data: str
    same_data: bool = Field(description="False: measured on other texts than here.")
    tokens_per_step: Amount
    tok_s: Amount = Field(description="As end_to_end_tok_s.")
    speedup_vs_ar: Amount | None = Field(description="Of tok_s, over their plain decoding.")
    suspect: bool
    reason: str


class Bench(Record):
    """A finished or interrupted bench: every raw sample, and what follows from them."""

    schema_name: Literal["specx.bench/1"] = Field(default="specx.bench/1", alias="schema")
    specx: Build
    created: str = Field(description="UTC, ISO 8601.")
    elapsed_s: Amount
    finished: bool = Field(description="False: out of budget, or interrupted.")
    plan: Plan
    env: MachineFacts
    floors: list[Floor]
    cells: list[BenchRow]
    missing: list[MissingCell]
    warnings: list[BenchWarning]
    paper: list[PublishedRow] = Field(default=[], description="Where it was asked for.")

    @model_validator(mode="after")
    def _refers_to_its_plan(self) -> Self:
        """Names and numbers must mean something in the plan, and no run may be there twice."""
        plan = self.plan
        planned: dict[str, Collection[object]] = {
            "preset": {preset.name for preset in plan.presets},
            "mode": plan.modes,
            "length": plan.lengths,
            "document": range(len(plan.data.documents)),
        }
        cells = [(f"missing[{i}]", each.cell) for i, each in enumerate(self.missing)]
        seen: dict[object, str] = {}
        for i, row in enumerate(self.cells):
            runs = [(f"cells[{i}].samples[{j}]", run.cell) for j, run in enumerate(row.samples)]
            for where, cell in runs:
                if cell.place != row.place:
                    raise ValueError(f"{where}.cell belongs to another row")
            for where, key in ((f"cells[{i}]", row.place), *runs):
                if seen.setdefault(key, where) != where:
                    raise ValueError(f"{where} is the same run as {seen[key]}")
            cells += runs
        for where, cell in cells:
            for name, known in planned.items():
                if (value := getattr(cell, name)) not in known:
                    raise ValueError(f"{where}.cell.{name} is not in the plan: {shown(value)}")
        return self


class Origin(Record):
    path: str | None = Field(description="As given.")
    created: str
    specx: Build
    env: MachineFacts
    stand_in: bool = Field(False, description="Whether a preset had stand-in weights.")


class Change(BenchPlace):
    """One preset, mode and length in both benches, over the ``n`` documents that both have."""

    n: Positive
    a: Amount = Field(description="Geometric mean over the documents.")
    b: Amount
    change_percent: float = Field(description="Of b against a.")
    low_percent: float | None = Field(description="95 % paired bootstrap interval.")
    high_percent: float | None
    text_equal: bool | None = Field(description="null: not, but the settings differ.")
    differs: list[str] = Field(description="What else differs: machine, program, settings.")

    @computed_field(description="Whether the interval holds no change; null without one.")  # type: ignore[prop-decorator]
    @property
    def agrees(self) -> bool | None:
        if self.low_percent is None or self.high_percent is None:
            return None
        return self.low_percent <= 0 <= self.high_percent


class Unmatched(BenchPlace):
    whole_row: bool = Field(description="The other bench has nothing of this row.")
    documents: Annotated[list[BenchDocument], Field(min_length=1)]


class SavedComparison(Record):
    """Two saved benches, joined on preset, mode, length and the SHA-256 of the documents."""

    schema_name: Literal["specx.compare/1"] = Field(default="specx.compare/1", alias="schema")
    kind: Literal["saved"] = "saved"
    a: Origin
    b: Origin
    metric: Metric
    rows: Annotated[list[Change], Field(min_length=1)]
    only_in_a: list[Unmatched]
    only_in_b: list[Unmatched]


class LiveRow(Record):
    """One mode of one preset; speed-ups and equality are against the first run."""

    preset: Name
    mode: Name
    text: str
    finish_reason: FinishReason
    tokens: result.TokenCounts
    time_s: result.RunSeconds
    rate: result.Rates
    accept: result.Acceptance
    memory: MemoryBytes
    speedup: Amount | None
    end_to_end_speedup: Amount | None
    equal: bool | None
    first_difference: BenchDifference | None
    warnings: list[result.Remark] = Field([])


class LiveComparison(Record):
    schema_name: Literal["specx.compare/1"] = Field(default="specx.compare/1", alias="schema")
    kind: Literal["live"] = "live"
    specx: Program
    created: str
    input: result.SourceFacts
    env: MachineFacts
    runs: Annotated[list[LiveRow], Field(min_length=1)]


Comparison = Annotated[SavedComparison | LiveComparison, Field(discriminator="kind")]
