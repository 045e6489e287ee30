"""What a bench will run: every cell in its order, and the settings that all of them share.

In: presets' facts, modes, lengths, documents. Out: a ``Plan`` that says the same in a journal, in
the JSON object and in a resumed run. It does not know engines or time.

The order interleaves: documents outermost, then lengths, then the modes in a rotating order. So a
machine that slows down for a while slows every mode, and a run that ends early has all lengths.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from specx.bench.record import BenchDocument, Cell, Object, Skipped
from specx.core.config import SamplingConfig
from specx.preset.preset import Preset


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetFacts(_Part):
    """Which target."""

    repo: str
    revision: str | None
    dtype: str


class DraftFacts(_Part):
    """Which draft."""

    kind: str
    repo: str | None
    revision: str | None
    trained_context_tokens: int


class StandInFacts(_Part):
    """Weights that are not the preset's own; see ``specx.standin.build``."""

    pair: str  # whose behaviour is measured
    trained_tokens: int  # prompt and output; beyond them its acceptance means nothing
    about: str


class PresetFacts(_Part):
    """A preset as far as a measurement depends on it."""

    name: str
    sha256: str  # of all its settings
    target: TargetFacts
    draft: DraftFacts
    kernels: str
    stand_in: StandInFacts | None = None  # None: the weights of the checkpoints


class DataFacts(_Part):
    """The texts, and what was left out."""

    name: str
    documents: tuple[BenchDocument, ...]
    skipped: tuple[Skipped, ...] = ()


class Plan(_Part):
    """Everything that decides what is measured; equal plans may share a journal."""

    presets: tuple[PresetFacts, ...]
    modes: tuple[str, ...]
    baseline: str
    lengths: tuple[int, ...]
    data: DataFacts
    reps: Annotated[int, Field(ge=1)]
    warmup: Annotated[int, Field(ge=0)]  # discarded runs of every mode at every length
    max_tokens: Annotated[int, Field(ge=2)]
    ignore_eos: bool
    verify: bool
    energy: bool
    sampling: SamplingConfig
    device: str
    dtype: str

    def groups(self, preset: str) -> Iterator[list[Cell]]:
        """Cells of one preset that share a prompt, in the order of running."""
        turn = 0
        for rep in range(self.reps):
            for document in range(len(self.data.documents)):
                for length in self.lengths:
                    first = turn % len(self.modes)
                    turn += 1
                    modes = self.modes[first:] + self.modes[:first]
                    yield [
                        Cell(preset=preset, mode=mode, length=length, document=document, rep=rep)
                        for mode in modes
                    ]

    def cells(self) -> Iterator[Cell]:
        """Every cell, in the order of running."""
        for preset in self.presets:
            for group in self.groups(preset.name):
                yield from group

    @property
    def size(self) -> int:
        """Number of cells."""
        groups = len(self.presets) * self.reps * len(self.data.documents) * len(self.lengths)
        return groups * len(self.modes)

    def as_object(self) -> Object:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def preset_facts(preset: Preset, kernels: str, stand_in: StandInFacts | None = None) -> PresetFacts:
    """``preset`` as the plan keeps it."""
    target, draft = preset.target, preset.draft
    return PresetFacts(
        name=preset.name,
        sha256=preset.fingerprint,
        target=TargetFacts(repo=target.repo, revision=target.revision, dtype=target.dtype),
        draft=DraftFacts(
            kind=draft.kind,
            repo=draft.repo,
            revision=draft.revision,
            trained_context_tokens=draft.trained_context_tokens,
        ),
        kernels=kernels,
        stand_in=stand_in,
    )


def differences(ours: Object, theirs: Object) -> list[str]:
    """Sentences that name every setting in which two plans (or environments) differ."""
    a, b = dict(_leaves(ours)), dict(_leaves(theirs))
    keys = list(dict.fromkeys([*a, *b]))
    return [
        f"{key}: {_short(b, key)} → {_short(a, key)}" for key in keys if a.get(key) != b.get(key)
    ]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif _is_list_of_objects(value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{prefix}[{index}]")
    else:
        yield prefix, value


def _is_list_of_objects(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and any(isinstance(inner, Mapping) for inner in value)


def _short(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "absent"
    return text if len(text) <= 40 else f"{text[:37]}…"
