"""Where a repository lies: beside the code, in a directory, in the cache, on the Hub.

In goes a repository's name; out comes a ``Source``: its directory and, where the Hub was asked,
the files that it lists, without those that would lie elsewhere. Fetches no file. This module does
not know which files are wanted, how they travel, what is in them, or the screen.
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, TypeVar

from specx.checkpoints.hub_errors import (
    NOT_OUR_JSON,
    failures,
    is_passing,
    no_hub,
    not_cached,
    refusal,
)
from specx.errors import ModelUnavailableError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Origin = Literal["bundled", "directory", "cache", "hub"]
T = TypeVar("T")

#: So many times in a row a request may fail, with these pauses between.
ATTEMPTS = 3
PAUSES_S = (1.0, 4.0)
_BUNDLED = {
    name: Path(name) for name in ("pocket/target", "pocket/draft", "pocket/eagle", "pocket/eagle3")
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the Hub lists it. ``oid``: SHA-256 (large files), git's SHA-1, or "" (not told)."""

    name: str
    size_bytes: int
    oid: str


@dataclass(frozen=True, slots=True)
class Source:
    """A repository found. ``files`` is None where the Hub was not asked or not reached.

    ``is_data``: a data set; else a model.
    """

    repo: str
    directory: Path
    origin: Origin
    commit: str = ""
    files: Mapping[str, HubFile] | None = None
    is_data: bool = False

    @property
    def folder(self) -> Path:
        """The repository's place in the cache, above ``snapshots`` and ``blobs``."""
        return self.directory.parent.parent

    @property
    def repo_type(self) -> Literal["model", "dataset"]:
        """What the Hub's client calls it."""
        return "dataset" if self.is_data else "model"

    def blob(self, file: HubFile) -> Path:
        """Where the cache keeps the bytes of ``file``, whatever commits name them."""
        return self.folder / "blobs" / file.oid


def is_on_hub(repo: str) -> bool:
    """Whether ``repo`` would be looked up on the Hub: neither bundled nor a directory."""
    return repo not in _BUNDLED and not Path(os.path.expanduser(repo)).is_dir()


def find(repo: str, revision: str | None, *, offline: bool) -> Source:
    """Where model ``repo`` lies; the Hub is asked unless it is here or ``offline``.

    Where the Hub is not reached, an earlier download in the cache serves. Raises
    ``ModelUnavailableError``, and ``ResourceError`` when the disk is full.
    """
    if repo in _BUNDLED:
        directory = Path(__file__).parent.parent / _BUNDLED[repo]
        if not (directory / "config.json").is_file():
            raise ModelUnavailableError(
                f"{repo} is not part of this installation",
                hints=["install specx from its wheel, which brings the pocket models"],
            )
        return Source(repo, directory, "bundled")
    directory = Path(os.path.expanduser(repo))
    if directory.is_dir():
        return Source(repo, directory, "directory")
    if repo.startswith((".", "~", os.sep)) or repo.count("/") > 1 or directory.exists():
        reason = "it is a file" if directory.exists() else "there is no such directory"
        raise ModelUnavailableError(f"{repo} is not a model directory", reason=reason)
    return _cached_or_refused(repo, revision) if offline else _listed(repo, revision)


def find_data(repo: str, *, offline: bool) -> Source:
    """Where data set ``repo`` lies, as ``find`` does for models that are not on this disk."""
    if offline:
        return _cached_or_refused(repo, None, is_data=True)
    return _listed(repo, None, is_data=True)


def patiently(action: Callable[[], T]) -> T:
    """The result of ``action``, tried again after what may pass."""
    for pause_s in PAUSES_S:
        try:
            return action()
        except failures() as error:
            if not is_passing(error):
                raise
        time.sleep(pause_s)
    return action()


def _listed(repo: str, revision: str | None, *, is_data: bool = False) -> Source:
    from huggingface_hub import HfApi, errors

    def ask() -> Source:
        hub = HfApi()
        about = hub.dataset_info if is_data else hub.model_info
        info = about(repo, revision=revision or "main", files_metadata=True)
        if not info.sha or not _COMMIT.fullmatch(info.sha) or info.siblings is None:
            raise no_hub(repo, "it lists no files")
        listed = map(_file, info.siblings)
        files = {file.name: file for file in listed if _is_inside(file.name)}
        directory = _folder(repo, is_data=is_data) / "snapshots" / info.sha
        return Source(repo, directory, "hub", info.sha, files, is_data)

    cached = None
    refused: tuple[type[Exception], ...] = (*failures(), *NOT_OUR_JSON)
    try:
        cached = _cached(repo, revision, is_data=is_data)
        # What is cached is as good as an answer that has to be waited for.
        source = ask() if cached else patiently(ask)
        _remember(source, revision)
        return source
    except errors.RevisionNotFoundError as error:
        raise refusal(error, repo, revision=revision, is_data=is_data) from error
    except refused as error:
        if cached is not None and not isinstance(error, errors.HFValidationError):
            return cached
        raise refusal(error, repo, revision=revision, is_data=is_data) from error


def _file(sibling: "RepoSibling") -> HubFile:
    oid = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
    size_bytes = (sibling.lfs.size if sibling.lfs else sibling.size) or 0
    return HubFile(sibling.rfilename, size_bytes, oid if _OID.fullmatch(oid) else "")


def _is_inside(name: str) -> bool:
    """Whether a listed name can only be a file below the snapshot, on any system."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")


def _cached_or_refused(repo: str, revision: str | None, *, is_data: bool = False) -> Source:
    from huggingface_hub import errors

    try:
        cached = _cached(repo, revision, is_data=is_data)
    except errors.HFValidationError as error:
        raise refusal(error, repo, is_data=is_data) from error
    if cached is None:
        raise not_cached(repo, is_data=is_data)
    return cached


def _cached(repo: str, revision: str | None, *, is_data: bool) -> Source | None:
    """The newest snapshot of ``revision``, of a model one with a config; opens no connection."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    validate_repo_id(repo)
    folder, name = _folder(repo, is_data=is_data), revision or "main"
    commit = name
    if _is_ref(name):
        with contextlib.suppress(OSError):
            commit = (folder / "refs" / name).read_text("utf-8", errors="replace").strip()
    directory = folder / "snapshots" / commit
    wanted = directory if is_data else directory / "config.json"
    if not _COMMIT.fullmatch(commit) or not wanted.exists():
        return None
    return Source(repo, directory, "cache", commit, is_data=is_data)


def _folder(repo: str, *, is_data: bool) -> Path:
    from huggingface_hub import constants

    kind = "datasets" if is_data else "models"
    return Path(constants.HF_HUB_CACHE, f"{kind}--{repo.replace('/', '--')}")


def _is_ref(name: str) -> bool:
    """Whether a branch or tag may be called that, and be a file in a folder of ours."""
    return ".." not in Path(name).parts and not Path(name).is_absolute()


def _remember(source: Source, revision: str | None) -> None:
    """Note which commit a branch or tag stands for, as the Hub's client does, for later runs."""
    name = revision or "main"
    path = source.folder / "refs" / name
    if name == source.commit or not _is_ref(name):
        return
    with contextlib.suppress(OSError):
        if path.read_text("utf-8", errors="replace") == source.commit:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    fresh.write_text(source.commit, encoding="utf-8")
    fresh.replace(path)


def link(source: Source, file: HubFile) -> None:
    """Let the snapshot show a blob that is complete, as a link or where there are none, moved."""
    pointer, blob = source.directory / file.name, source.blob(file)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if pointer.is_file():
        return
    pointer.unlink(missing_ok=True)  # a link to a blob that somebody deleted
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        if not pointer.is_file():  # not made by another process meanwhile: no links here
            shutil.move(blob, pointer)
