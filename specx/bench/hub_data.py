"""Data sets on the Hub: which file of one to measure on, and where it lies once downloaded.

In: a data set's name. Out: the path of one of its files, from the cache where there is no network.
It does not know what is in the file, or how it travels.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from specx.checkpoints.download import fetch_file
from specx.checkpoints.repository import find, not_cached
from specx.errors import UsageError

#: Parts of a file's name, the most wanted first: what a model was not trained on.
_SPLITS = (r"test", r"validation|valid|val|dev")


def find_file(repo: str, suffixes: tuple[str, ...], *, offline: bool) -> Path:
    """A file of data set ``OWNER/NAME`` with one of ``suffixes``, a test split if there is one.

    Raises ``UsageError`` when no file fits, ``ModelUnavailableError`` when the data set cannot be
    had, ``ResourceError`` when the disk is full.
    """
    source = find(repo, None, offline=offline, kind="dataset")
    if source.files is not None:
        return fetch_file(source, source.files[_choose(repo, list(source.files), suffixes)])
    files = [path for path in source.directory.rglob("*") if path.is_file()]
    names = [path.relative_to(source.directory).as_posix() for path in files]
    try:
        return source.directory / _choose(repo, names, suffixes)
    except UsageError as error:  # of other files, which say nothing of what the Hub has
        raise not_cached(repo, "dataset") from error


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
