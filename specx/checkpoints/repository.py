"""Where a repository is: beside the code, in a directory, in the Hub client's cache, on the Hub;
and one wording for each way in which the Hub, the network or the disk says no."""

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from specx.checkpoints.config import summary
from specx.errors import ModelUnavailableError, ResourceError, SpecxError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Origin = Literal["bundled", "directory", "cache", "hub"]
Kind = Literal["model", "dataset"]  # as the Hub's client calls them
T = TypeVar("T")

#: So many times in a row a request may fail, with these pauses between.
ATTEMPTS = 3
PAUSES_S = (1.0, 4.0)
_WORTH_BYTES = 64 << 20  # after so many new bytes, failures before them are forgotten
_BUNDLED = ("pocket/target", "pocket/draft", "pocket/eagle", "pocket/eagle3")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LOG_IN = "hf auth login"
#: What else there is for a user without access, without a network or without room.
INSTEAD: dict[Kind, str] = {
    "model": "or take another pair: -m qwen3-8b (free for all), -m smollm2-1.7b (small), "
    "-m pocket (already here)",
    "dataset": "or take the texts that come with specx: --data sample",
}
_OF_CONNECTIONS = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_BUSY = (408, 429)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
#: What the Hub's client raises over an answer that is not JSON, or JSON of another kind.
_NOT_OUR_JSON = (ValueError, TypeError, LookupError, AttributeError)


class HubFile(NamedTuple):
    """A file as the Hub lists it. ``oid``: SHA-256 (large files), git's SHA-1, or "" (unknown)."""

    name: str
    size_bytes: int
    oid: str


@dataclass(frozen=True, slots=True)
class Source:
    """A repository found. ``files`` is None where the Hub was not asked or not reached."""

    repo: str
    directory: Path
    origin: Origin
    commit: str = ""
    files: Mapping[str, HubFile] | None = None
    kind: Kind = "model"

    @property
    def folder(self) -> Path:
        """The repository's place in the cache, above ``snapshots`` and ``blobs``."""
        return self.directory.parent.parent


def is_on_hub(repo: str) -> bool:
    """Whether ``repo`` would be looked up on the Hub: neither bundled nor a directory."""
    return repo not in _BUNDLED and not Path(os.path.expanduser(repo)).is_dir()


def find(repo: str, revision: str | None, *, offline: bool, kind: Kind = "model") -> Source:
    """Where ``repo`` is; the Hub is asked unless it is a model that is here, or ``offline``.

    Where the Hub is not reached, an earlier download in the cache serves. Raises
    ``ModelUnavailableError``, and ``ResourceError`` when the disk is full.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the Hub's client is imported
    if kind == "model" and (local := _local(repo)):
        return local
    try:
        from huggingface_hub import constants as constants  # which reads variables
        from huggingface_hub import errors
    except ValueError as error:
        reason = f"the Hub's client does not start: {summary(error)}"
        raise _refused(f"{_named(repo, kind)} cannot be fetched", reason, *_variables()) from error
    cached = None
    refused: tuple[type[Exception], ...] = (*failures(), ModelUnavailableError)
    try:
        cached = _cached(repo, revision, kind)
        if offline:
            raise not_cached(repo, kind)  # unless it is: the handler answers with that
        # What is cached is as good as an answer that has to be waited for.
        return patiently(lambda: _listed(repo, revision, kind), 1 if cached else ATTEMPTS)
    except refused as error:
        # Another commit in the place of a revision that is gone would be another model.
        if cached and not isinstance(error, errors.RevisionNotFoundError):
            return cached
        if isinstance(error, ModelUnavailableError):
            raise
        raise refusal(error, repo, kind, revision) from error


def _local(repo: str) -> Source | None:
    """A model that is bundled or a directory; None for what may be on the Hub."""
    if repo in _BUNDLED:
        directory = Path(__file__).parent.parent / repo
        if not (directory / "config.json").is_file():
            hints = ["install specx from its wheel, which brings the pocket models"]
            raise ModelUnavailableError(f"{repo} is not part of this installation", hints=hints)
        return Source(repo, directory, "bundled")
    directory = Path(os.path.expanduser(repo))
    if directory.is_dir():
        return Source(repo, directory, "directory")
    if repo.startswith((".", "~", os.sep)) or repo.count("/") > 1 or directory.exists():
        reason = "it is a file" if directory.exists() else "there is no such directory"
        raise ModelUnavailableError(f"{repo} is not a model directory", reason=reason)
    return None


def _check_client(what: str) -> None:
    """Raise ``ModelUnavailableError`` where the environment lets no connection be prepared."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    http = import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    hints = _variables()
    try:
        get_session()
        if (get_token() or "").isascii():
            return
        reason = "the access token has characters that no token has"
        hints = [f"check HF_TOKEN, or log in again: {_LOG_IN}"]
    except ImportError:  # of what only some proxies need
        reason = "a SOCKS proxy is set, and the package socksio is not installed"
        hints = ["pip install socksio", *hints]
    except (OSError, ValueError, http.InvalidURL) as error:  # a wrong proxy or certificate file
        reason = f"no connection can be prepared: {summary(error)}"
    raise _refused(f"{what} cannot be fetched", reason, *hints)


def _variables() -> list[str]:
    """A hint at those that are set and that a connection depends on."""
    names = [name for name in os.environ if os.environ[name] and name.upper() in _OF_CONNECTIONS]
    names += [name for name in os.environ if name.startswith("HF_") and name != "HF_TOKEN"]
    return [f"check {', '.join(names)}"] if names else []


def _listed(repo: str, revision: str | None, kind: Kind) -> Source:
    from huggingface_hub import HfApi

    what, hub, folder = _named(repo, kind), HfApi(), _folder(repo, kind)
    _check_client(what)
    about = hub.dataset_info if kind == "dataset" else hub.model_info
    try:
        info = about(repo, revision=revision or "main", files_metadata=True)
        commit, siblings = info.sha or "", info.siblings or ()
        files = {file.name: file for file in map(_file, siblings) if _is_inside(file.name)}
    except _NOT_OUR_JSON as error:
        raise no_hub(what, "it sends no JSON of the Hub's kind") from error
    if not _COMMIT.fullmatch(commit) or info.siblings is None:
        raise no_hub(what, "it lists no files")
    if revision != commit:  # noted as the Hub's client does, for runs without the Hub
        ref = _ref(folder, revision)
        if not ref.is_file() or ref.read_text("utf-8", errors="replace") != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="utf-8")
    return Source(repo, folder / "snapshots" / commit, "hub", commit, files, kind)


def _file(sibling: "RepoSibling") -> HubFile:
    oid = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
    size_bytes = (sibling.lfs.size if sibling.lfs else sibling.size) or 0
    return HubFile(sibling.rfilename, int(size_bytes), oid if _OID.fullmatch(oid) else "")


def _is_inside(name: str) -> bool:
    """Whether a listed name can only be a file below the snapshot, on any system."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")


def _cached(repo: str, revision: str | None, kind: Kind) -> Source | None:
    """The newest snapshot of ``revision``, of a model one with a config; opens no connection."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    validate_repo_id(repo)
    folder, commit = _folder(repo, kind), revision or ""
    with contextlib.suppress(OSError):
        commit = _ref(folder, revision).read_text("utf-8", errors="replace").strip()
    directory = folder / "snapshots" / commit
    wanted = directory / "config.json" if kind == "model" else directory
    if not _COMMIT.fullmatch(commit) or not wanted.exists():
        return None
    return Source(repo, directory, "cache", commit, kind=kind)


def _folder(repo: str, kind: Kind) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"{kind}s--{repo.replace('/', '--')}")


def _ref(folder: Path, revision: str | None) -> Path:
    """The file that says which commit it is; raises ``OSError`` for a name that leads out."""
    path = Path(revision or "main")
    if path.is_absolute() or ".." in path.parts:
        raise FileNotFoundError(path)
    return folder / "refs" / path


def patiently(
    action: Callable[[], T], attempts: int = ATTEMPTS, kept_bytes: Callable[[], int] = lambda: 0
) -> T:
    """The result of ``action``, tried again after what may pass, up to ``attempts`` times in a row.

    ``kept_bytes``: how much of the work is done; much more of it, and the count begins again.
    """
    failed = 0
    while True:
        before_bytes = kept_bytes()
        try:
            return action()
        except failures() as error:
            failed = 1 if kept_bytes() - before_bytes >= _WORTH_BYTES else failed + 1
            if failed >= attempts or not is_passing(error):
                raise
        time.sleep(PAUSES_S[failed - 1])


def failures() -> tuple[type[Exception], ...]:
    """What the Hub's client raises on purpose; its HTTP library is a detail of its version."""
    from huggingface_hub import errors

    bases = errors.HfHubHTTPError.__bases__  # the HTTP client's base class, whichever, and OSError
    return (errors.HFValidationError, errors.EntryNotFoundError, *bases)  # type: ignore[return-value]


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: a broken connection, or a server that is busy or ill."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _BUSY
    is_final = isinstance(error, errors.OfflineModeIsEnabled | errors.EntryNotFoundError)
    client = errors.HfHubHTTPError.__bases__[0]
    return not is_final and isinstance(error, (client, ConnectionError, TimeoutError))


def refusal(error: Exception, repo: str, kind: Kind, revision: str | None) -> SpecxError:
    """``error``, of the Hub's client or the disk, as the reason why ``repo`` cannot be had."""
    from huggingface_hub import constants, errors

    is_data, what = kind == "dataset", _named(repo, kind)
    page = f"https://huggingface.co/{'datasets/' if is_data else ''}{repo}"
    failed = f"{what} cannot be fetched"
    match error:
        case errors.GatedRepoError():
            reason = "its owner wants you to accept terms first"
            hint = f"accept them on {page}, then run: {_LOG_IN}"
            return _refused(f"{what} is gated", reason, hint, INSTEAD[kind])
        case errors.RevisionNotFoundError():
            hint = f"revisions are listed on {page}/commits/main"
            return _refused(f"{what} has no revision {revision or 'main'}", "", hint)
        case errors.RepositoryNotFoundError():
            message = f"{repo} is not on the Hub"
            if is_data:
                message = f"there is neither a file {repo} nor a data set of that name on the Hub"
            hint = f"check the spelling: {page}"
            return _refused(message, "", hint, f"if it is private, run: {_LOG_IN}")
        case errors.HFValidationError():
            kinds = ("a directory nor a Hub repository's name", "a file nor a data set's name")
            return _refused(f"{repo} is neither {kinds[is_data]}", "")
        case errors.HfHubHTTPError(response=answer):
            reason = f"the Hub answers {answer.status_code} {answer.reason_phrase}".rstrip()
            is_login = answer.status_code in (401, 403)
            hint = f"log in again: {_LOG_IN}" if is_login else "try again later"
            more = "what was fetched before runs without the Hub: --offline"
            return _refused(failed, reason, hint, more)
        case errors.EntryNotFoundError() | errors.OfflineModeIsEnabled():
            return not_cached(repo, kind)
        case _ if is_passing(error):
            return not_cached(repo, kind, summary(error))
        case OSError(errno=code) if code in _FULL:
            hints = ("point HF_HOME to a larger disk",)
            return ResourceError(f"the disk is full while fetching {what}", hints=hints)
        case OSError(errno=code, strerror=str(said)) if code in _READ_ONLY:
            message = f"{what} cannot be stored in {constants.HF_HUB_CACHE}"
            hint = "point HF_HOME to a directory that you may write to"
            return _refused(message, said.lower(), hint)
    return _refused(failed, summary(error))


def not_cached(repo: str, kind: Kind, reason: str = "") -> ModelUnavailableError:
    """Nothing on this disk, and no way to get it."""
    message = f"{_named(repo, kind)} is not in the local cache, and the Hub was not reached"
    hint = "run once with a network and without --offline to fetch it"
    return _refused(message, reason, hint, INSTEAD[kind])


def no_hub(what: str, reason: str) -> ModelUnavailableError:
    """Something answers, and it is no Hub: a network's login page, a proxy, a wrong address."""
    from huggingface_hub import constants

    return _refused(
        f"{what} cannot be fetched",
        f"{constants.ENDPOINT} does not answer as the Hub does: {reason}",
        "open a page in a browser: the network may want a login first",
        "check HF_ENDPOINT and the proxy settings, if they are set",
    )


def _refused(message: str, reason: str, *hints: str) -> ModelUnavailableError:
    return ModelUnavailableError(message, reason=reason, hints=hints)


def _named(repo: str, kind: Kind) -> str:
    return f"data set {repo}" if kind == "dataset" else repo
