"""A subject whose runs take exactly the time that they should, by a clock that only they move.

Real ``Sample``s come out of it, so everything after the runner is the real thing: journal,
report, tables. The numbers are chosen so that results can be computed by hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specx.bench.journal import Journal
from specx.bench.modes import parse_mode
from specx.bench.runner import Event, Runner
from specx.bench.schema import (
    BenchCell,
    BenchDifference,
    BenchDocument,
    Build,
    DataFacts,
    DraftFacts,
    Floor,
    MachineFacts,
    MemoryBytes,
    Phases,
    Plan,
    PresetFacts,
    Sample,
    StandInFacts,
    TargetFacts,
)
from specx.core.config import SamplingConfig
from specx.errors import ResourceError
from specx.prompts import Prompt

ENVIRONMENT = MachineFacts(
    device="cpu",
    gpu=None,
    cuda=None,
    driver=None,
    cpu="A CPU",
    threads=2,
    torch="2.13.0",
    transformers="5.23.0",
    python="3.12.0",
    os="Linux",
)
BUILD = Build(version="0.1.0", commit="abc1234")
#: Seconds a step, and tokens a step.
SPEEDS = {"plain": (0.1, 1), "spec": (0.25, 2), "specx": (0.2, 4)}


@dataclass
class Clock:
    """Time that passes only when somebody says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeSubject:
    """Prefill takes a millisecond a token; a document's number slows its decoding by 10 % each."""

    facts: PresetFacts
    clock: Clock
    max_tokens: int = 9
    notes: tuple[str, ...] = ()
    shortest: int = 0  # prompts beyond it are too long for document 1
    wrong: frozenset[str] = frozenset()  # modes whose third token is wrong
    no_memory: frozenset[str] = frozenset()
    on_run: Callable[[BenchCell], None] = lambda cell: None
    ran: list[tuple[str, int, int]] = field(default_factory=list)

    def prompt(self, text: str, tokens: int) -> Prompt | None:
        is_short = self.shortest and text == "document 1" and tokens > self.shortest
        return None if is_short else Prompt(tuple(range(tokens)), tokens - 5)

    def run(self, cell: BenchCell, prompt: Prompt, check: Callable[[], None]) -> Sample:
        self.on_run(cell)
        check()
        if cell.mode in self.no_memory:
            raise ResourceError("no memory", reason="a cache of 1 GiB")
        self.ran.append((cell.mode, cell.length, cell.document))
        step_s, tokens_per_step = SPEEDS[parse_mode(cell.mode).mode]
        step_s *= 1 + 0.1 * cell.document
        steps = (self.max_tokens - 1) // tokens_per_step
        prefill_s, decode_s = cell.length / 1000, steps * step_s
        self.clock.now_s += prefill_s + decode_s
        tokens = list(range(100, 100 + self.max_tokens))
        if cell.mode in self.wrong:
            tokens[2] = 7
        return Sample(
            cell=cell,
            prompt_tokens=cell.length,
            new_tokens=self.max_tokens,
            finish_reason="length",
            prefill_target_s=prefill_s,
            prefill_draft_s=0.0,
            ttft_s=prefill_s,
            decode_s=decode_s,
            total_s=prefill_s + decode_s,
            steps=steps,
            drafted=steps * 8 if tokens_per_step > 1 else 0,
            accepted=steps * (tokens_per_step - 1),
            draft_forwards=steps * 2 if tokens_per_step > 1 else 0,
            histogram=[0] * (tokens_per_step - 1) + [steps],
            phases=Phases(verify=decode_s * 0.75, host=decode_s * 0.25),
            memory=MemoryBytes(
                weights=100 << 20, kv_target=cell.length << 10, kv_draft=0, peak=300 << 20
            ),
            tokens=tokens,
        )

    def difference(
        self, prompt: Prompt, plain: Sequence[int], tokens: Sequence[int]
    ) -> BenchDifference | None:
        return BenchDifference(index=2, expected=102, got=7, margin=0.5)

    def floor(self, length: int, *, again: bool = False) -> Floor:
        return Floor(
            preset=self.facts.name,
            length=length,
            step_bytes=50_000_000,
            step_flop=1_000_000,
            draft_level_bytes=5_000_000,
            prefill_flop=length * 500_000,
            bandwidth_bytes_s=1e9,
            rate_flop_s=1e9,
        )


def facts(name: str = "tiny", stand_in: StandInFacts | None = None) -> PresetFacts:
    return PresetFacts(
        name=name,
        sha256="0" * 64,
        target=TargetFacts(repo="pocket/target", revision=None, dtype="float32"),
        draft=DraftFacts(
            kind="lm", repo="pocket/draft", revision=None, trained_context_tokens=1024
        ),
        kernels="sdpa",
        stand_in=stand_in,
    )


def plan(
    *,
    modes: tuple[str, ...] = ("plain", "spec", "specx"),
    lengths: tuple[int, ...] = (1000, 2000),
    documents: int = 2,
    reps: int = 1,
    warmup: int = 1,
    presets: tuple[str, ...] = ("tiny",),
    max_tokens: int = 9,
    verify: bool = True,
    stand_in: StandInFacts | None = None,
) -> Plan:
    return Plan(
        presets=tuple(facts(name, stand_in) for name in presets),
        modes=modes,
        baseline="plain",
        lengths=lengths,
        data=DataFacts(
            name="sample",
            documents=tuple(
                BenchDocument(name=f"doc-{number}", sha256=f"{number}" * 64, characters=9000)
                for number in range(documents)
            ),
        ),
        reps=reps,
        warmup=warmup,
        max_tokens=max_tokens,
        ignore_eos=True,
        verify=verify,
        energy=False,
        sampling=SamplingConfig(),
        device="cpu",
        dtype="float32",
    )


@dataclass
class Bench:
    """One run of a plan over fake subjects."""

    plan: Plan
    journal: Journal
    clock: Clock = field(default_factory=Clock)
    subjects: dict[str, FakeSubject] = field(default_factory=dict)
    budget_s: float | None = None
    runner: Runner | None = None

    def subject(self, name: str = "tiny") -> FakeSubject:
        if name not in self.subjects:
            self.subjects[name] = FakeSubject(facts(name), self.clock)
        return self.subjects[name]

    def events(self) -> list[Event]:
        self.runner = Runner(
            self.plan,
            [f"document {number}" for number in range(len(self.plan.data.documents))],
            self.subject,
            self.journal,
            budget_s=self.budget_s,
            clock=self.clock,
        )
        return list(self.runner.run())


def new_journal(path: Path, of: Plan) -> Journal:
    return Journal.create(path, of, ENVIRONMENT, BUILD, "2026-11-22T15:00:00+00:00")


def resumed_journal(path: Path, of: Plan) -> Journal:
    return Journal.resume(path, of, ENVIRONMENT, BUILD)
