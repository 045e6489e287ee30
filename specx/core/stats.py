"""What is measured: the only record that travels from the decode loop to tables and JSON.

``accepted`` counts draft tokens kept in a step, the bonus token excluded; ``tokens_per_step`` =
accepted + 1 (τ in the papers; plain decoding has 1)."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

#: Output tokens that are counted together where something is shown along the output.
POSITION_TOKENS = 1024

FinishReason = Literal["eos", "length", "stop", "interrupted"]


@dataclass(frozen=True, slots=True)
class StepStats:
    """One verify step. Times in seconds; where the stop rule cuts the last step, ``new_tokens``
    may be no more than ``accepted``."""

    nodes: int  # rows of the verify forward: root + guesses
    depth: int  # deepest guess
    accepted: int  # draft tokens kept, bonus excluded
    new_tokens: int  # tokens that this step added to the output
    copied: int = 0  # of the accepted, how many a copy from the text had guessed as well
    draft_s: float = 0.0  # the whole draft: its forwards, and growing the tree
    draft_levels_s: tuple[float, ...] = ()  # of that, the forward of each level
    verify_s: float = 0.0  # the target's forward
    accept_s: float = 0.0  # sampling and walking the tree
    commit_s: float = 0.0  # compacting the target's cache
    retrieve_s: float = 0.0  # scoring the chunks and regathering the draft's cache
    host_s: float = 0.0  # the stop rule, and giving tokens to the drafter
    draft_context_tokens: int = 0  # rows that the draft's working cache holds

    def cut(self, count: int) -> "StepStats":
        """The step when only its first ``count`` tokens became part of the output."""
        accepted, copied = min(self.accepted, count), min(self.copied, count)
        return replace(self, new_tokens=count, accepted=accepted, copied=copied)

    @property
    def total_s(self) -> float:
        """Wall time of the step, the consumer's time between steps excluded."""
        others_s = self.accept_s + self.commit_s + self.retrieve_s + self.host_s
        return self.draft_s + self.verify_s + others_s


@dataclass(frozen=True, slots=True)
class StepTree:
    """The tree of one verify step, for whoever wants to see the method work.

    ``path`` leads from the root (node 0) over the accepted guesses; ``bonus`` is the target's own
    token after its last node.
    """

    tokens: tuple[int, ...]  # token ids by node; the root is the last committed token
    parents: tuple[int, ...]  # node numbers; the root is its own parent
    path: tuple[int, ...]
    bonus: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Progress of reading the prompt: ``done_tokens`` of ``total_tokens`` after ``elapsed_s``."""

    done_tokens: int
    total_tokens: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by owner. ``peak_bytes`` is the process's (CPU) or the allocator's (GPU) high mark."""

    weights_bytes: int = 0
    kv_target_bytes: int = 0
    kv_draft_bytes: int = 0
    peak_bytes: int = 0


@dataclass(slots=True)
class GenerationStats:
    """Everything counted in one request. Rates are derived, never stored."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    load_s: float = 0.0
    prefill_target_s: float = 0.0
    prefill_draft_s: float = 0.0
    tune_s: float = 0.0  # timing a few verify widths, to choose the tree's size
    ttft_s: float = 0.0  # from the request to the first token
    decode_s: float = 0.0  # from the first token to the last
    total_s: float = 0.0  # without loading
    steps: list[StepStats] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)

    @property
    def drafted(self) -> int:
        """Draft nodes checked by the target (a tree's nodes, so most cannot be accepted)."""
        return sum(step.nodes - 1 for step in self.steps)

    @property
    def accepted(self) -> int:
        """Draft tokens kept, over all steps."""
        return sum(step.accepted for step in self.steps)

    @property
    def copied(self) -> int:
        """Accepted tokens that a copy from the text had guessed, alone or beside the draft."""
        return sum(step.copied for step in self.steps)

    @property
    def accepted_per_step(self) -> float:
        """Mean accepted draft tokens a step, bonus excluded."""
        return self.accepted / len(self.steps) if self.steps else 0.0

    @property
    def tokens_per_step(self) -> float:
        """``accepted_per_step`` + 1: what one target forward yields; 1 for plain decoding."""
        return self.accepted_per_step + 1.0 if self.steps else 0.0

    @property
    def copied_share(self) -> float:
        """``copied`` over ``accepted``; 0 where nothing was accepted."""
        return self.copied / self.accepted if self.accepted else 0.0

    @property
    def tokens_per_step_by_position(self) -> list[float]:
        """Tokens of a step along the output: the mean over the steps that began in each block of
        ``POSITION_TOKENS`` tokens. It shows whether a draft keeps up with a long output."""
        blocks: dict[int, list[int]] = {}
        position = 1  # the prefill yields the first token
        for step in self.steps:
            blocks.setdefault(position // POSITION_TOKENS, []).append(step.accepted + 1)
            position += step.accepted + 1
        return [sum(block) / len(block) for block in blocks.values()]

    @property
    def accepted_histogram(self) -> list[int]:
        """``histogram[a]`` = number of steps that accepted exactly ``a`` draft tokens."""
        counts = Counter(step.accepted for step in self.steps)
        return [counts[accepted] for accepted in range(max(counts, default=-1) + 1)]

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds of all steps by phase, in the order in which a step has them."""
        names = ("draft", "verify", "accept", "commit", "retrieve", "host")
        return {name: sum(getattr(step, f"{name}_s") for step in self.steps) for name in names}

    @property
    def prefill_s(self) -> float:
        """Reading the prompt, target and draft."""
        return self.prefill_target_s + self.prefill_draft_s

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens over the prefill time of target and draft."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """(new − 1) / decode time: the first token belongs to the prefill."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def end_to_end_tokens_per_s(self) -> float:
        """New tokens over the whole time of the request, loading excluded."""
        return self.new_tokens / self.total_s if self.total_s > 0 else 0.0
