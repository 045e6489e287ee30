"""From a preset to a loaded pair: find the files, check them, then read the weights.

In goes a preset; out comes a ``ModelPair``. Everything that can be refused is refused before any
weight is downloaded or read: architectures, damaged files, tokenizers that disagree. This module
does not know decoding, documents or the screen.
"""

import copy
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specx.checkpoint import (
    DAMAGE,
    check_architecture,
    check_template,
    check_weights,
    has_tokenizer,
    quiet,
    read_config,
    read_tokenizer,
    summary,
)
from specx.errors import (
    ModelError,
    ModelUnavailableError,
    PairError,
    ResourceError,
    SpecxError,
    UsageError,
)
from specx.needs import is_out_of_memory
from specx.preset import DraftSpec, Preset, TargetSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ModelPair",
    "PairFiles",
    "check_architecture",
    "check_pair",
    "choose_device",
    "choose_dtype",
    "end_tokens",
    "find_pair",
    "is_on_hub",
    "load_pair",
    "resolve",
]

DTYPES = ("float32", "float16", "bfloat16")
_BUNDLED = {"pocket/target": Path("pocket", "target"), "pocket/draft": Path("pocket", "draft")}
_METADATA = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Loaded models in evaluation mode on one device. ``draft`` is None without an LM draft."""

    target: "PreTrainedModel"
    draft: "PreTrainedModel | None"
    tokenizer: "PreTrainedTokenizerBase"


@dataclass(frozen=True, slots=True)
class PairFiles:
    """A pair found and checked, weights not yet read (or, from the Hub, not yet downloaded)."""

    target_dir: Path
    target_config: "PreTrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    draft_dir: Path | None = None
    draft_config: "PreTrainedConfig | None" = None


def load_pair(preset: Preset, *, device: str, dtype: str, offline: bool) -> ModelPair:
    """The preset's models and tokenizer, ready to run.

    ``device``: auto, cpu, cuda, cuda:N or mps. ``dtype``: auto (see ``choose_dtype``), float32,
    float16 or bfloat16, for both models. Raises ``UsageError``, ``ModelUnavailableError``,
    ``ModelError``, ``PairError`` and ``ResourceError``.
    """
    device = choose_device(device)
    target_dtype = choose_dtype(dtype, preset.target.dtype, device)
    draft_dtype = choose_dtype(dtype, preset.draft.dtype, device)
    files = find_pair(preset, offline=offline)
    everything = (*_METADATA, *_WEIGHTS)
    target, draft = preset.target, preset.draft
    target_dir = resolve(target.repo, target.revision, patterns=everything, offline=offline)
    check_weights(target_dir, files.target_config)
    draft_model = None
    if draft.repo is not None and files.draft_config is not None:
        draft_dir = resolve(draft.repo, draft.revision, patterns=everything, offline=offline)
        check_weights(draft_dir, files.draft_config)
        draft_model = _load_model(draft_dir, files.draft_config, draft_dtype, device)
    target_model = _load_model(target_dir, files.target_config, target_dtype, device)
    return ModelPair(target_model, draft_model, files.tokenizer)


def end_tokens(pair: ModelPair) -> frozenset[int]:
    """Ids that end the target's text: its generation settings' and its tokenizer's."""
    config = pair.target.generation_config
    ends = None if config is None else config.eos_token_id
    ids = set(ends if isinstance(ends, list) else [ends])
    return frozenset(i for i in ids | {pair.tokenizer.eos_token_id} if i is not None)


def find_pair(preset: Preset, *, offline: bool) -> PairFiles:
    """Resolve both repositories, read configs and tokenizers, and check that they fit.

    Fetches no weights. Raises ``ModelUnavailableError``, ``ModelError`` and ``PairError``.
    """
    target, draft = preset.target, preset.draft
    target_dir = resolve(target.repo, target.revision, patterns=_METADATA, offline=offline)
    target_config = read_config(target_dir)
    _check_shape("target", target, target_config)
    tokenizer = read_tokenizer(target_dir)
    if preset.prompt.template == "auto" and tokenizer.chat_template:
        check_template(tokenizer)
    if draft.kind != "lm" or draft.repo is None:
        return PairFiles(target_dir, target_config, tokenizer)
    draft_dir = resolve(draft.repo, draft.revision, patterns=_METADATA, offline=offline)
    draft_config = read_config(draft_dir)
    _check_shape("draft", draft, draft_config)
    # A draft without a tokenizer of its own shares the target's, as pocket/draft does.
    draft_tokenizer = read_tokenizer(draft_dir) if has_tokenizer(draft_dir) else None
    check_pair(tokenizer, draft_tokenizer, target_config, draft_config)
    return PairFiles(target_dir, target_config, tokenizer, draft_dir, draft_config)


def _check_shape(role: str, spec: TargetSpec | DraftSpec, config: "PreTrainedConfig") -> None:
    """A preset's shape is what stand-in weights are measured with, so it has to be true."""
    difference = spec.shape.difference(config) if spec.shape else ""
    if difference:
        raise ModelError(
            f"{spec.repo} does not have the shape that the preset says",
            reason=difference,
            hints=[f"correct {role}.shape in the preset, or leave it out"],
        )


def resolve(
    repo: str, revision: str | None, *, patterns: tuple[str, ...] = _METADATA, offline: bool
) -> Path:
    """The directory of ``repo``: bundled, a directory as it is, or a download from the Hub.

    Raises ``ModelUnavailableError`` when it cannot be had, ``ResourceError`` when the disk is full.
    """
    if repo in _BUNDLED:
        directory = Path(__file__).parent / _BUNDLED[repo]
        if not (directory / "config.json").is_file():
            raise ModelUnavailableError(
                f"{repo} is not part of this installation",
                hints=["install specx from its wheel, which brings the pocket models"],
            )
        return directory
    directory = Path(os.path.expanduser(repo))
    if directory.is_dir():
        return directory
    if repo.startswith((".", "~", os.sep)) or repo.count("/") > 1 or directory.exists():
        reason = "it is a file" if directory.exists() else "there is no such directory"
        raise ModelUnavailableError(f"{repo} is not a model directory", reason=reason)
    return _download(repo, revision, patterns, offline)


def is_on_hub(repo: str) -> bool:
    """Whether ``repo`` would be looked up on the Hub: neither bundled nor a directory."""
    return repo not in _BUNDLED and not Path(os.path.expanduser(repo)).is_dir()


def _download(repo: str, revision: str | None, patterns: tuple[str, ...], offline: bool) -> Path:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the Hub's client is imported
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except (
        errors.HFValidationError,
        errors.EntryNotFoundError,
        *errors.HfHubHTTPError.__bases__,  # the HTTP client's base class, whichever, and OSError
    ) as error:  # type: ignore[misc]
        raise _unavailable(repo, revision, error) from error
    return Path(folder)


def _unavailable(repo: str, revision: str | None, error: BaseException) -> SpecxError:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return ModelUnavailableError(
            f"{repo} is gated",
            reason="its owner wants you to accept terms first",
            hints=[
                f"accept them on {page}, then run: hf auth login",
                "or take a preset that needs no access: specx presets list",
            ],
        )
    if isinstance(error, errors.RevisionNotFoundError):
        hints = [f"revisions are listed on {page}/commits/main"]
        return ModelUnavailableError(f"{repo} has no revision {revision}", hints=hints)
    if isinstance(error, errors.RepositoryNotFoundError):
        hints = [f"check the spelling: {page}", "if it is private, run: hf auth login"]
        return ModelUnavailableError(f"{repo} is not on the Hub", hints=hints)
    if isinstance(error, errors.HFValidationError):
        return ModelUnavailableError(f"{repo} is neither a directory nor a Hub repository's name")
    if isinstance(error, errors.EntryNotFoundError | errors.OfflineModeIsEnabled):
        return ModelUnavailableError(
            f"{repo} is not in the local cache, and the Hub was not reached",
            hints=[
                "run once with a network and without --offline to fetch it",
                "the pair that comes with specx needs no network: -m pocket",
            ],
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        hints = ["point HF_HOME to a larger disk"]
        return ResourceError(f"the disk is full while fetching {repo}", hints=hints)
    return ModelUnavailableError(f"{repo} cannot be fetched", reason=summary(error))


def check_pair(
    target: "PreTrainedTokenizerBase",
    draft: "PreTrainedTokenizerBase | None",
    target_config: "PreTrainedConfig",
    draft_config: "PreTrainedConfig",
) -> None:
    """Raise ``PairError`` unless every token of the target means the same text to the draft.

    Ids are compared up to the smaller vocabulary; rows beyond the real tokens are padding and may
    differ. ``draft`` None: it shares the target's tokenizer, so both must have as many rows.
    """
    target_rows, draft_rows = target_config.vocab_size, draft_config.vocab_size
    if draft is None and target_rows != draft_rows:
        raise PairError(
            "target and draft do not share a vocabulary",
            reason=f"the target has {target_rows} rows, the draft {draft_rows} and no tokenizer",
        )
    theirs = _texts(target)
    _check_rows(theirs, target, target_rows)
    if draft is not None:
        ours = _texts(draft)
        differing = [i for i in sorted(theirs.keys() & ours.keys()) if theirs[i] != ours[i]]
        if differing:
            i = differing[0]
            raise PairError(
                "target and draft do not speak the same tokens",
                reason=f"token {i} is {theirs[i]!r} to the target and {ours[i]!r} to the draft; "
                f"{len(differing):,} of {len(theirs):,} differ",
                hints=["choose a draft of the target's own family"],
            )
        for i in (target.bos_token_id, target.eos_token_id):
            if i is not None and i not in ours:
                raise PairError(f"the draft does not know the target's special token {theirs[i]!r}")
    beyond = [i for i in sorted(theirs) if draft_rows <= i < target_rows]
    if beyond:
        raise PairError(
            f"the draft has {draft_rows} rows and the target more tokens than that",
            reason=f"token {beyond[0]}, {theirs[beyond[0]]!r}, is unknown to the draft",
        )


def _check_rows(texts: dict[int, str], tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """Some fine-tunes add a special token without a row for it; no text can ask for that one."""
    special = set(tokenizer.all_special_ids)
    beyond = [i for i in sorted(texts) if i >= rows and i not in special]
    if beyond:
        raise ModelError(
            "the target's tokenizer does not belong to its weights",
            reason=f"token {beyond[0]}, {texts[beyond[0]]!r}, is beyond the {rows} rows",
        )


def _texts(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    return {i: text for text, i in tokenizer.get_vocab().items()}


def choose_device(device: str) -> str:
    """``auto`` is cuda where there is one, else cpu. Raises ``UsageError`` for an unusable name."""
    import torch

    name = device.strip().lower()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if name == "cpu" or (name == "mps" and torch.backends.mps.is_available()):
        return name
    if kind == "mps":
        raise UsageError("there is no mps device here", hints=["use --device cpu"])
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise UsageError(
            f"{device!r} is not a device", hints=["write auto, cpu, cuda, cuda:0 or mps"]
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise UsageError(
            f"there is no device {name}",
            reason=f"torch sees {count} CUDA devices",
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
    directory: Path, config: "PreTrainedConfig", dtype: "torch.dtype", device: str
) -> "PreTrainedModel":
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            # The attention function's name lives on the config, so no two models may share one.
            model, report = AutoModelForCausalLM.from_pretrained(
                directory,
                config=copy.deepcopy(config),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        model = model.to(device).eval().requires_grad_(False)
    except (*DAMAGE, MemoryError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            message = f"no memory on {device} for the weights in {directory}"
            hints = ("--dtype float16 halves what float32 needs", "--device cpu", "-m pocket")
            raise ResourceError(message, reason=summary(error), hints=hints) from error
        message = f"the weights in {directory} cannot be read"
        raise ModelError(message, reason=summary(error)) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        wrong = [k for k in report[kind] if "rotary_emb.inv_freq" not in str(k)]
        if wrong:
            raise ModelError(
                f"the weights in {directory} do not fit config.json",
                reason=f"{kind.replace('_', ' ')}: {sorted(map(str, wrong))[0]}",
            )
    return model
