"""Whether a target and a draft fit together, found out before any weight is there.
An error names the disagreement with both sides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specx.checkpoints.config import ModelConfig, read_config, read_json
from specx.checkpoints.eagle.config import check_kind, feature_layers, position_limit, read_head
from specx.checkpoints.fields import rope_parameters
from specx.checkpoints.tokenizer import Tokenizer, has_tokenizer, is_same_tokenizer, read_tokenizer
from specx.errors import ModelError, PairError, SpecxError
from specx.preset.preset import Preset
from specx.preset.sections import DraftSpec, TargetSpec

#: Repository and revision → a directory with its config and tokenizer files.
Locate = Callable[[str, str | None], Path]


@dataclass(frozen=True, slots=True)
class PairFiles:
    """A pair found and checked, weights not yet read (or, from the Hub, not yet downloaded)."""

    target_dir: Path
    target_config: ModelConfig
    tokenizer: Tokenizer
    draft_dir: Path | None = None
    draft_config: ModelConfig | None = None  # of a model
    head_config: dict[str, Any] | None = None  # of a head, as it stands in its file


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is about to be looked at: ``name``, and what it is about."""

    name: str
    about: str


def examine(
    preset: Preset, locate: Locate, about_to: Callable[[str, str], object] = lambda *_: None
) -> PairFiles:
    """What was found, where all of it fits.

    ``about_to`` is called with the name of each check and what it is about, before it is made. The
    last one is the one that an error belongs to. Raises ``ModelUnavailableError``, ``ModelError``
    and ``PairError``.
    """
    target, draft = preset.target, preset.draft
    about_to("target config", target.repo)
    directory, config = _model("target", target.repo, target, locate)
    about_to("target tokenizer", f"prompt template {preset.prompt.template}")
    tokenizer = read_tokenizer(directory)
    _check_rows(tokenizer, config.shape.vocabulary)
    if preset.prompt.template == "auto" and tokenizer.template is not None:
        tokenizer.template.render([{"role": "user", "content": "text"}])  # raises if it is broken
    about_to("target context", f"{preset.context_tokens:,} tokens")
    _check_positions(target.repo, _positions(config), "context_tokens", preset.context_tokens)
    if not draft.has_weights or draft.repo is None:
        return PairFiles(directory, config, tokenizer)
    about_to("draft config", draft.repo)
    if draft.is_head:
        draft_dir = locate(draft.repo, draft.revision)
        raw = read_json(draft_dir / "config.json")
        facts = read_head(raw, draft.head.rope_scaling if draft.head else None)
        about_to("head and target", f"{draft.kind}, {facts.hidden} wide")
        check_head(raw, config, preset, tokenizer)
        positions = facts.positions
        files = PairFiles(directory, config, tokenizer, draft_dir, head_config=raw)
    else:
        draft_dir, draft_config = _model("draft", draft.repo, draft, locate)
        rows = f"{config.shape.vocabulary} and {draft_config.shape.vocabulary} rows"
        about_to("same tokens", rows)
        own: Tokenizer | None = tokenizer
        if not is_same_tokenizer(directory, draft_dir):
            # Without one it shares the target's, as pocket/draft does.
            own = read_tokenizer(draft_dir) if has_tokenizer(draft_dir) else None
        check_pair(tokenizer, own, config, draft_config)
        positions = _positions(draft_config)
        files = PairFiles(directory, config, tokenizer, draft_dir, draft_config)
    trained = draft.trained_context_tokens
    about_to("draft context", f"{trained:,} tokens")
    _check_positions(draft.repo, positions, "draft.trained_context_tokens", trained)
    return files


def _model(
    role: str, repo: str, spec: TargetSpec | DraftSpec, locate: Locate
) -> tuple[Path, ModelConfig]:
    """A model's directory and config. The preset's shape is what stand-in weights are measured
    with, so it has to be true."""
    directory = locate(repo, spec.revision)
    config = read_config(directory)
    if spec.shape and (difference := spec.shape.difference(config)):
        raise ModelError(
            f"{repo} does not have the shape that the preset says",
            reason=difference,
            hints=[f"correct {role}.shape in the preset, or leave it out"],
        )
    return directory, config


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check ended. ``doubt``: it is odd, and nothing is refused for it."""

    check: Check
    problem: SpecxError | None = None
    doubt: str = ""


def outcomes(preset: Preset, locate: Locate) -> list[Outcome]:
    """Every check of ``examine`` up to the first that fails, and doubts about what passed."""
    found: list[Outcome] = []
    try:
        files = examine(preset, locate, lambda *check: found.append(Outcome(Check(*check))))
    except SpecxError as error:
        found[-1] = Outcome(found[-1].check, error)
        return found
    # A head's shape is only what stand-in weights are made of: odd, and no reason to refuse it.
    shape, raw = preset.draft.head_shape, files.head_config
    if shape and raw and (difference := shape.difference(read_head(raw))):
        note = Check("preset's facts", f"{len(preset.requires.unverified)} unverified")
        found.append(Outcome(note, doubt=f"draft.head_shape: {difference}"))
    return found


def recorded(directory: Path, otherwise: Locate) -> Locate:
    """Takes a repository from ``directory/owner__name`` where that is, else asks ``otherwise``."""

    def locate(repo: str, revision: str | None) -> Path:
        here = directory / repo.replace("/", "__")
        return here if (here / "config.json").is_file() else otherwise(repo, revision)

    return locate


def check_pair(
    target: Tokenizer,
    draft: Tokenizer | None,
    target_config: ModelConfig,
    draft_config: ModelConfig,
) -> None:
    """Raise ``PairError`` unless every token of the target means the same text to the draft.

    Ids are compared up to the smaller vocabulary; rows beyond the real tokens are padding and may
    differ. ``draft`` None: it shares the target's tokenizer, so both must have as many rows.
    """
    target_rows, draft_rows = target_config.shape.vocabulary, draft_config.shape.vocabulary
    if draft is None and target_rows != draft_rows:
        reason = f"the target has {target_rows} rows, the draft {draft_rows} and no tokenizer"
        raise PairError("target and draft do not share a vocabulary", reason=reason)
    _check_rows(target, target_rows)
    if draft is not None and draft is not target:
        theirs, ours = target.token_texts(), draft.token_texts()
        differing = [i for i in sorted(theirs.keys() & ours.keys()) if theirs[i] != ours[i]]
        if differing:
            i = differing[0]
            raise PairError(
                "target and draft do not speak the same tokens",
                reason=f"token {i} is {theirs[i]!r} to the target and {ours[i]!r} to the draft; "
                f"{len(differing):,} of {len(theirs):,} differ",
                hints=["choose a draft of the target's own family"],
            )
        for special in (target.bos_id, target.eos_id):
            if special is not None and special not in ours:
                name = theirs[special]
                raise PairError(f"the draft does not know the target's special token {name!r}")
    _check_known(target, target_rows, draft_rows)


def check_head(
    head_config: Mapping[str, Any],
    target_config: ModelConfig,
    preset: Preset,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Raise ``PairError`` unless a head's config.json fits the target and the preset.

    ``head_config`` is the raw JSON object. Compared are kind, width, vocabulary and layers; with a
    ``tokenizer`` also whether the head knows each of its tokens.
    """
    head, wanted = read_head(head_config), preset.draft.kind
    check_kind(head.kind, wanted, str(preset.draft.repo))
    width, rows = target_config.shape.hidden, target_config.shape.vocabulary
    needed = head.target_hidden or head.hidden
    if needed != width:
        raise PairError(
            "the head does not belong to this target",
            reason=f"it reads hidden states {needed} wide, the target's are {width} wide",
            hints=["choose a head that was trained for this target"],
        )
    reason = ""
    if head.vocabulary > rows:
        reason = f"the head has {head.vocabulary} rows, the target {rows}"
    elif head.draft_vocabulary > head.vocabulary:
        reason = f"the head makes {head.draft_vocabulary} logits of {head.vocabulary} rows"
    if reason:
        raise PairError("head and target do not share a vocabulary", reason=reason)
    if tokenizer is not None:
        _check_known(tokenizer, rows, head.vocabulary)
    if wanted == "eagle3":
        override = preset.draft.head.feature_layers if preset.draft.head else None
        feature_layers(head_config, target_config.shape.layers, override)


def _check_rows(tokenizer: Tokenizer, rows: int) -> None:
    """Refuse a target whose tokenizer makes tokens that it has no rows for. Some fine-tunes add a
    special token without a row; no text can ask for that one."""
    texts = tokenizer.token_texts(rows)
    for first in sorted(texts.keys() - tokenizer.special_ids):
        raise ModelError(
            "the target's tokenizer does not belong to its weights",
            reason=f"token {first}, {texts[first]!r}, is beyond the {rows} rows",
        )


def _check_known(tokenizer: Tokenizer, target_rows: int, draft_rows: int) -> None:
    texts = tokenizer.token_texts(draft_rows)
    if texts and (first := min(texts)) < target_rows:
        raise PairError(
            f"the draft has {draft_rows} rows and the target more tokens than that",
            reason=f"token {first}, {texts[first]!r}, is unknown to the draft",
        )


def _check_positions(repo: str, limit: int, field: str, tokens: int) -> None:
    if tokens > limit:
        raise PairError(
            f"{repo} was built for {limit:,} positions",
            reason=f"the preset's {field} are {tokens:,}",
            hints=[f"--set {field}={limit}"],
        )


def _positions(config: ModelConfig) -> int:
    return position_limit(config.positions, rope_parameters(config.raw))
