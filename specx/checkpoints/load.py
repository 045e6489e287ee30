"""From a preset to a loaded pair: find the files, check them, then read the weights.
Everything that can be refused is refused before any weight is downloaded or read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specx.checkpoints.check_pair import PairFiles, examine
from specx.checkpoints.config import ModelConfig, summary
from specx.checkpoints.download import Notice, fetch, fetch_metadata, file_notes, plan, tell
from specx.checkpoints.eagle.loader import LoadedHead, load_head
from specx.checkpoints.repository import Source, find, is_on_hub
from specx.checkpoints.tokenizer import Tokenizer
from specx.checkpoints.weights import check_weights, load_weights
from specx.errors import ModelError, ResourceError, UsageError
from specx.memory import is_out_of_memory
from specx.preset.preset import Preset

if TYPE_CHECKING:
    import torch

__all__ = ["PairFiles", "is_on_hub"]  # what is handed on beside this module's own

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that fits its config: facts, and tensors for ``core.decoder.Model`` to take over."""

    config: ModelConfig
    tensors: "dict[str, torch.Tensor]" = field(repr=False)

    @property
    def is_untied(self) -> bool:
        """Whether the file has an output matrix of its own, against the word of its config."""
        return self.config.is_tied and "lm_head.weight" in self.tensors

    def separate(self) -> "dict[str, torch.Tensor]":
        """Views of the tensors under the names of files, without a leading ``model.``."""
        from specx.core.joined import separate

        return separate(self.tensors, self.config.shape)


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A loaded pair on one device, to be taken over by whoever runs it. ``draft`` is None without
    weights of its own; ``notes`` are what the user should know about their files."""

    target: LoadedModel
    draft: "LoadedModel | LoadedHead | None"
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


def load_pair(preset: Preset, *, device: str, dtype: str, offline: bool) -> ModelPair:
    """The preset's models and tokenizer, ready to run.

    ``device``: auto, cpu, cuda, cuda:N or mps. ``dtype``: auto (see ``choose_dtype``), float32,
    float16 or bfloat16, for both models. Raises ``UsageError``, ``ModelUnavailableError``,
    ``ModelError``, ``PairError`` and ``ResourceError``.
    """
    device = choose_device(device)
    target_dtype, draft_dtype = (
        choose_dtype(dtype, spec.dtype, device) for spec in (preset.target, preset.draft)
    )
    files, sources = located(preset, offline=offline)
    fetch_weights(files, sources)
    notes = [note for source in sources for note in file_notes(source)]
    draft: LoadedModel | LoadedHead | None = None
    if files.head_config is not None and files.draft_dir is not None:
        known = len(files.tokenizer)
        draft = load_head(files.draft_dir, preset.draft, files.target_config, known)
        notes += draft.notes
    elif files.draft_dir is not None and files.draft_config is not None:
        draft = _load_model(files.draft_dir, files.draft_config, draft_dtype, device)
    target = _load_model(files.target_dir, files.target_config, target_dtype, device)
    for model, spec in ((target, preset.target), (draft, preset.draft)):
        if isinstance(model, LoadedModel) and model.is_untied:
            notes.append(f"{spec.repo} says that it is tied, but has an lm_head of its own: used")
    for note in notes:
        tell(Notice(note))
    return ModelPair(target, draft, files.tokenizer, tuple(notes))


def fetch_weights(files: PairFiles, sources: Sequence[Source]) -> None:
    """Bring the weights of a pair that ``located`` found to this disk; compare with its configs.

    Raises ``ResourceError`` before the first byte when the disk lacks room,
    ``ModelUnavailableError`` and ``ModelError``.
    """
    fetch([plan(source) for source in sources])
    check_weights(files.target_dir, files.target_config)
    if files.draft_dir is not None and files.draft_config is not None:
        check_weights(files.draft_dir, files.draft_config)


def end_tokens(target: ModelConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end the target's text: its checkpoint's and its tokenizer's."""
    own = tokenizer.eos_id
    return target.end_tokens | ({own} if own is not None else set())


def find_pair(preset: Preset, *, offline: bool) -> PairFiles:
    """Resolve both repositories, read configs and tokenizers, and check that they fit.

    Fetches no weights. Raises ``ModelUnavailableError``, ``ModelError`` and ``PairError``.
    """
    return located(preset, offline=offline)[0]


def located(preset: Preset, *, offline: bool) -> tuple[PairFiles, list[Source]]:
    """As ``find_pair``, with the places of the weights: the target's, then the draft's."""
    sources: list[Source] = []

    def locate(repo: str, revision: str | None) -> Path:
        sources.append(_locate(repo, revision, offline))
        return sources[-1].directory

    return examine(preset, locate), sources


def resolve(repo: str, revision: str | None, *, offline: bool) -> Path:
    """The directory of ``repo``: bundled, a directory as it is, or the Hub's cache.

    Configs and tokenizer files are fetched, weights are not. Raises ``ModelUnavailableError`` when
    it cannot be had, ``ResourceError`` when the disk is full.
    """
    return _locate(repo, revision, offline).directory


def _locate(repo: str, revision: str | None, offline: bool) -> Source:
    source = find(repo, revision, offline=offline)
    fetch_metadata(source)
    return source


def choose_device(device: str) -> str:
    """``auto`` is cuda where there is one, else cpu. Raises ``UsageError`` for an unusable name."""
    import torch

    name = device.strip().lower()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if name == "cpu" or (name == "mps" and torch.backends.mps.is_available()):
        return name
    if kind not in ("cuda", "mps") or (colon and not number.isdecimal()):
        hint = "write auto, cpu, cuda, cuda:0 or mps"
        raise UsageError(f"{device!r} is not a device", hints=[hint])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps" or int(number or 0) >= count:
        raise UsageError(
            f"there is no device {name}",
            reason=f"torch sees {count} CUDA devices" if kind == "cuda" else "",
            hints=["use --device cpu"],
        )
    return name


def choose_dtype(dtype: str, preset_dtype: str, device: str) -> "torch.dtype":
    """``auto``: float32 on the CPU, where equality is exact; half precision on a GPU.

    On a GPU the preset chooses between float16 and bfloat16; float32 there must be asked for.
    Raises ``UsageError`` for an unknown name.
    """
    import torch

    name = dtype.strip().lower()
    if name == "auto" and device == "cpu":
        name = "float32"
    elif name == "auto":
        name = preset_dtype if preset_dtype == "bfloat16" else "float16"
    if name not in DTYPES:
        raise UsageError(f"{dtype!r} is not a dtype", hints=[f"write auto, {', '.join(DTYPES)}"])
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _load_model(
    directory: Path, config: ModelConfig, dtype: "torch.dtype", device: str
) -> LoadedModel:
    try:
        return LoadedModel(config, load_weights(directory, config, device, dtype))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            message = f"the weights in {directory} cannot be read"
            raise ModelError(message, reason=summary(error)) from error
        message = f"no memory on {device} for the weights in {directory}"
        hints = ("--dtype float16 halves what float32 needs", "--device cpu", "-m pocket")
        raise ResourceError(message, reason=summary(error), hints=hints) from error
