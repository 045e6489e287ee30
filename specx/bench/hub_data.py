"""Data sets on the Hub: which file of one to measure on, and where it lies once downloaded.

In: a data set's name. Out: the path of one of its files, from the cache where there is no network.
It does not know what is in the file.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from specx.errors import UsageError
from specx.hub_errors import NOT_OUR_JSON, failures, refusal

#: Parts of a file's name, the most wanted first: what a model was not trained on.
_SPLITS = (r"test", r"validation|valid|val|dev")


def find_file(repo: str, suffixes: tuple[str, ...], *, offline: bool) -> Path:
    """A file of data set ``OWNER/NAME`` with one of ``suffixes``, a test split if there is one.

    Raises ``UsageError`` when no file fits, ``ModelUnavailableError`` when the data set cannot be
    had, ``ResourceError`` when the disk is full.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the Hub's client is imported
    from huggingface_hub import HfApi, errors, hf_hub_download

    refused: tuple[type[Exception], ...] = (*failures(), *NOT_OUR_JSON)
    try:
        if offline:
            raise errors.OfflineModeIsEnabled
        names = HfApi().list_repo_files(repo, repo_type="dataset")
        name = _choose(repo, names, suffixes)
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    except refused as error:
        refusals = (errors.HFValidationError, errors.RepositoryNotFoundError)  # gated ones too
        cached = None if isinstance(error, refusals) else _cached(repo, suffixes)
        if cached is None:
            raise refusal(error, repo, is_data=True) from error
        return cached


def _choose(repo: str, names: Sequence[str], suffixes: tuple[str, ...]) -> str:
    usable = sorted(name for name in names if name.lower().endswith(suffixes))
    if not usable:
        counts = Counter(os.path.splitext(name)[1][:20] for name in names)
        counts.pop("", None)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
        raise UsageError(
            f"data set {repo} holds no {' or '.join(suffixes)} file",
            reason=f"it holds {kinds or 'no data'}",
            hints=["convert one to JSON lines, one object a line, and name that file"],
        )
    for split in _SPLITS:
        for name in usable:
            if re.search(rf"(?<![a-z])({split})(?![a-z])", name.lower()):
                return name
    return usable[0]


def _cached(repo: str, suffixes: tuple[str, ...]) -> Path | None:
    """The file that an earlier run downloaded, by the documented layout of the Hub's cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"datasets--{repo.replace('/', '--')}")
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        snapshot = folder / "snapshots" / commit
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")]
        return snapshot / _choose(repo, names, suffixes)
    except (OSError, UsageError):
        return None
