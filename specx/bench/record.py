"""The record of one measured run: the only thing that travels from measuring to showing.

Every raw value is kept; rates are derived from it in ``report`` and nowhere else. It does not know
engines, files or tables.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]

#: Parts of a verify step, in the order in which they happen (see ``Phases``).
PHASES = ("draft_levels", "draft_tree", "verify", "accept", "commit", "retrieve", "host")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cell(_Record):
    """Which run: ``document`` counts the plan's documents from 0, ``rep`` the repetitions."""

    preset: str
    mode: str
    length: Annotated[int, Field(ge=1)]  # prompt tokens asked for
    document: Count
    rep: Count


class Phases(_Record):
    """Seconds of all verify steps of a run, by what they were spent on."""

    draft_levels: list[Seconds] = []  # forwards of the draft, one entry a tree level
    draft_tree: Seconds = 0.0  # choosing guesses and building the tree, on the host
    verify: Seconds = 0.0  # the target's forward
    accept: Seconds = 0.0  # sampling and walking the tree
    commit: Seconds = 0.0  # compacting the target's cache
    retrieve: Seconds = 0.0  # scoring chunks and refilling the draft's cache
    host: Seconds = 0.0  # the rest: stop rule, bookkeeping, turning tokens into text


class MemoryBytes(_Record):
    """Bytes by owner. ``peak``: high mark of the process (CPU) or of the allocator (GPU)."""

    weights: Count = 0
    kv_target: Count = 0
    kv_draft: Count = 0
    peak: Count = 0


class Joules(_Record):
    """Energy of the whole GPU during the two halves of a run."""

    prefill: Annotated[float, Field(ge=0)]
    decode: Annotated[float, Field(ge=0)]


class Difference(_Record):
    """First output token that is not plain decoding's; None stands for the end of the text."""

    index: Count
    expected: int | None
    got: int | None
    margin: float | None  # the target's logit distance between the two


class Sample(_Record):
    """One run. Times in seconds; ``decode_s`` is wall time from the first token to the last."""

    cell: Cell
    prompt_tokens: Count
    new_tokens: Count
    finish_reason: Literal["eos", "length", "stop", "interrupted"]
    prefill_target_s: Seconds
    prefill_draft_s: Seconds
    tune_s: Seconds = 0.0  # timing a few verify widths between prefill and first token
    ttft_s: Seconds  # from the request to the first token
    decode_s: Seconds
    total_s: Seconds  # ttft_s + decode_s
    first_tokens: Count = 1  # that came with the prefill; an assisted witness drafts there too
    steps: Count | None  # forwards of the target after the prefill; None where not known
    drafted: Count | None
    accepted: Count | None  # draft tokens kept, bonus excluded
    draft_forwards: Count | None = None  # levels drafted, over all steps
    histogram: list[Count] = []  # histogram[a] = steps that accepted exactly a draft tokens
    copied: Count | None = None  # of the accepted, how many a copy from the text had guessed too
    phases: Phases | None = None  # None for a witness, whose steps are not ours
    memory: MemoryBytes
    energy: Joules | None = None
    tokens: list[int]
    equal: bool | None = None  # same tokens as plain decoding; None: not compared
    first_difference: Difference | None = None
    mode_reason: str = ""  # why ``auto`` left drafting


class Floor(_Record):
    """The least time that this hardware allows, for one preset at one length.

    Bytes are what a step cannot avoid reading: weights of the target, and its keys and values of
    ``length`` tokens. ``bandwidth_bytes_s`` and ``rate_flop_s`` are measured here, not taken from
    a data sheet.
    """

    preset: str
    length: Annotated[int, Field(ge=1)]
    step_bytes: Count
    step_flop: Count  # one row
    draft_level_bytes: Count  # weights of the draft, and its working cache at its budget
    prefill_flop: Count
    bandwidth_bytes_s: Annotated[float, Field(gt=0)]
    rate_flop_s: Annotated[float, Field(gt=0)]

    @property
    def step_s(self) -> float:
        """Least time of one target forward over one row."""
        return max(self.step_bytes / self.bandwidth_bytes_s, self.step_flop / self.rate_flop_s)

    @property
    def prefill_s(self) -> float:
        """Least time of the target's prefill."""
        return self.prefill_flop / self.rate_flop_s

    @property
    def bound(self) -> str:
        """What limits a step: ``memory`` or ``compute``."""
        memory_s = self.step_bytes / self.bandwidth_bytes_s
        return "memory" if memory_s >= self.step_flop / self.rate_flop_s else "compute"


class BenchDocument(_Record):
    """A text to measure on. ``sha256`` is of its UTF-8 bytes."""

    name: str
    sha256: str
    characters: Count


class Skipped(_Record):
    """Something that was left out, where, and why. Counted, never fatal."""

    where: str
    reason: str


Object = dict[str, Any]  # a JSON object
