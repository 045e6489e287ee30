"""From what was asked to a plan that can run: presets, texts that are long enough, one environment.
In: ``Options``. Out: a ``Setup``. Tokenizers are read here, weights when a preset's turn has
come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specx._version import __version__
from specx.bench import schema
from specx.bench.data import BenchData, Text, cut_prompt, load_data
from specx.bench.energy import GpuEnergy, open_energy
from specx.bench.modes import WITNESSES, parse_mode, parse_modes
from specx.checkpoints import load as hub
from specx.core.config import SamplingConfig
from specx.engine import kernels_on
from specx.environment import environment, source_commit
from specx.errors import ContextError, DocumentError, UsageError
from specx.preset.preset import Preset, load_preset
from specx.prompts import Prompter
from specx.standin import build as standin


@dataclass(frozen=True, slots=True)
class Options:  # lengths and modes are already read
    presets: tuple[str | Preset, ...] = ("pocket",)
    overrides: Mapping[str, str] = field(default_factory=dict)
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    modes: tuple[str, ...] = ("default",)
    baseline: str = "plain"
    data: tuple[str, ...] = ("sample",)
    text_field: str = "text"
    samples: int = 5
    reps: int = 1
    warmup: int = 1
    max_tokens: int = 128
    ignore_eos: bool = True
    temperature: float | None = None
    seed: int | None = None
    verify: bool = True
    energy: bool = False
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    skip_unfit: bool = False
    stand_in: bool = False  # the presets' shapes with stand-in weights


@dataclass(frozen=True, slots=True)
class Setup:
    plan: schema.Plan
    texts: tuple[str, ...]
    environment: schema.MachineFacts
    build: schema.Build
    notes: tuple[str, ...]  # what was decided that was not asked for
    presets: Mapping[str, Preset]
    options: Options
    energy: GpuEnergy | None


def prepare(options: Options) -> Setup:
    """Check everything that can be checked before weights are read. Raises ``SpecxError``."""
    notes: list[str] = []
    presets = _presets(options)
    modes = _modes(options, notes)
    sampling = _sampling(options, presets[0])
    if sampling.temperature > 0 and any(mode in WITNESSES for mode in modes):
        raise UsageError("the witnesses decode greedily", hints=["leave out -t, or hf"])
    lengths = _lengths(options, presets, notes)
    device = hub.choose_device(options.device)
    prompters = [Prompter(find_pair(each, options).tokenizer, each.prompt) for each in presets]
    data = load_data(
        options.data, field=options.text_field, samples=options.samples, offline=options.offline
    )
    for each in prompters:
        cut_prompt(each, data.documents[0].text, min(lengths))  # refuses one without any room
    texts, too_short = _long_enough(data, prompters, max(lengths), options.samples)
    meter = open_energy(device) if options.energy else None
    if isinstance(meter, str):
        notes.append(f"no energy: {meter}")
        meter = None
    facts = [_facts(preset, options, device) for preset in presets]
    as_asked = ("baseline", "reps", "warmup", "max_tokens", "ignore_eos", "verify")
    plan = schema.Plan(
        presets=tuple(facts),
        modes=modes,
        lengths=lengths,
        data=schema.DataFacts(
            name=data.name,
            documents=tuple(text.document for text in texts),
            skipped=(*data.skipped, *too_short),
        ),
        **{name: getattr(options, name) for name in as_asked},
        energy=meter is not None,
        sampling=sampling,
        device=device,
        dtype=", ".join(dict.fromkeys(each.target.dtype for each in facts)),
    )
    if not options.stand_in:
        notes += [
            f"preset {each.name} names no revision of {spec.repo}: another day may measure another"
            for each in presets
            for spec in (each.target, each.draft)
            if spec.repo is not None and spec.revision is None and hub.is_on_hub(spec.repo)
        ]
    return Setup(
        plan=plan,
        texts=tuple(text.text for text in texts),
        environment=schema.MachineFacts(**environment(device)),
        build=schema.Build(version=__version__, commit=source_commit()),
        notes=tuple(notes),
        presets={preset.name: preset for preset in presets},
        options=options,
        energy=meter,
    )


def _presets(options: Options) -> list[Preset]:
    overrides = dict(options.overrides)
    presets = [load_preset(name, overrides) for name in options.presets]
    if options.stand_in:  # what is set by hand counts more than what a stand-in needs
        presets = [standin.adapted(preset).with_overrides(overrides) for preset in presets]
    names = [preset.name for preset in presets]
    if len(set(names)) < len(names):
        raise UsageError("a preset is given twice", reason=", ".join(names))
    return presets


def _modes(options: Options, notes: list[str]) -> tuple[str, ...]:
    modes = tuple(variant.name for variant in parse_modes(options.modes))
    needed = ("plain", options.baseline) if options.verify else (options.baseline,)
    for name in dict.fromkeys(needed):
        if name not in modes:
            modes = (parse_mode(name).name, *modes)
            notes.append(f"{name} is measured too: the others are compared with it")
    return modes


def _sampling(options: Options, preset: Preset) -> SamplingConfig:
    asked = {"temperature": options.temperature, "seed": options.seed}
    given: dict[str, Any] = {name: each for name, each in asked.items() if each is not None}
    try:
        return replace(preset.sampling, **given)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def _lengths(options: Options, presets: Sequence[Preset], notes: list[str]) -> tuple[int, ...]:
    """The lengths that fit every preset's context with the output after them."""
    context = min(preset.context_tokens for preset in presets)
    fit = tuple(length for length in options.lengths if length + options.max_tokens <= context)
    unfit = ", ".join(f"{length:,}" for length in options.lengths if length not in fit)
    sentence = f"{unfit} and {options.max_tokens:,} new tokens exceed the context of {context:,}"
    if unfit and not (options.skip_unfit and fit):
        hints = ["give shorter --lengths", "--skip-unfit leaves these out"]
        raise ContextError("lengths exceed the context", reason=sentence, hints=hints)
    notes += [f"left out: {sentence}"] if unfit else []
    return fit


def find_pair(preset: Preset, options: Options) -> hub.PairFiles:
    if options.stand_in:
        return standin.find_pair(preset)
    return hub.find_pair(preset, offline=options.offline)


def _long_enough(
    data: BenchData, prompters: Sequence[Prompter], longest: int, samples: int
) -> tuple[list[Text], list[schema.SkippedText]]:
    """The first texts that reach the longest length for every preset: all lengths cut the same."""
    chosen: list[Text] = []
    skipped: list[schema.SkippedText] = []
    for text in data.documents:
        if len(chosen) == samples:
            break
        if all(cut_prompt(each, text.text, longest) for each in prompters):
            chosen.append(text)
        else:
            reason = f"shorter than {longest:,} tokens"
            skipped.append(schema.SkippedText(where=text.name, reason=reason))
    if not chosen:
        raise DocumentError(
            f"no document of {data.name} reaches {longest:,} tokens",
            reason=f"{len(skipped)} were read; a length is never reached by padding",
            hints=["give shorter --lengths", "give longer texts with --data"],
        )
    return chosen, skipped


def _facts(preset: Preset, options: Options, device: str) -> schema.PresetFacts:
    target = preset.target
    dtype = hub.choose_dtype(options.dtype, target.dtype, device)
    stand_in = schema.StandInFacts(
        pair="pocket", trained_tokens=standin.TRAINED_TOKENS, about=standin.about(preset)
    )
    return schema.PresetFacts(
        name=preset.name,
        sha256=preset.fingerprint,
        target=schema.TargetFacts(
            repo=target.repo, revision=target.revision, dtype=str(dtype).removeprefix("torch.")
        ),
        draft=schema.DraftFacts.model_validate(preset.draft),
        kernels=kernels_on(device),
        stand_in=stand_in if options.stand_in else None,
    )
