"""What the Hub, the network or the disk refused, in specx's words: one wording for each case.

In goes an error of the Hub's client and the name of what was wanted; out comes a ``SpecxError``.
This module does not know presets, plans or the screen, and it opens no connection.
"""

import errno
import http
from collections.abc import Sequence
from pathlib import Path

from specx.checkpoints.config import summary
from specx.errors import ModelUnavailableError, ResourceError, SpecxError

_SITE = "https://huggingface.co"
_LOG_IN = "hf auth login"
_BUSY = (408, 429)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_SAMPLE = "or take the texts that come with specx: --data sample"
_ALTERNATIVE = {
    False: "or take a pair that needs no access: -m qwen3-8b, or -m pocket, which is already here",
    True: _SAMPLE,
}
_SMALLER = {
    False: "or take a smaller pair: -m smollm2-1.7b, or -m pocket, which is already here",
    True: _SAMPLE,
}
_NO_NETWORK = {
    False: "the pair that comes with specx needs no network: -m pocket",
    True: "the texts that come with specx need no network: --data sample",
}


#: How the Hub's client stumbles over an answer that is no JSON, or JSON of another kind.
NOT_OUR_JSON = (ValueError, TypeError, LookupError, AttributeError)


class BrokenOff(OSError):
    """An answer that ended before its announced size, or that starts at the wrong byte."""


def failures() -> tuple[type[Exception], ...]:
    """What the Hub's client raises on purpose; its HTTP library is a detail of its version."""
    from huggingface_hub import errors

    return (
        errors.HFValidationError,
        errors.EntryNotFoundError,
        *errors.HfHubHTTPError.__bases__,  # the HTTP client's base class, whichever, and OSError
    )  # type: ignore[return-value]


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: a broken connection, or a server that is busy or ill."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _BUSY
    if isinstance(error, errors.OfflineModeIsEnabled | errors.EntryNotFoundError):
        return False
    return _is_network(error) or isinstance(error, BrokenOff)


def refusal(
    error: BaseException, repo: str, *, revision: str | None = None, is_data: bool = False
) -> SpecxError:
    """``error`` as the reason why ``repo``, a model or a data set, cannot be had."""
    from huggingface_hub import errors

    what = _named(repo, is_data=is_data)
    page = f"{_SITE}/datasets/{repo}" if is_data else f"{_SITE}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return ModelUnavailableError(
            f"{what} is gated",
            reason="its owner wants you to accept terms first",
            hints=[f"accept them on {page}, then run: {_LOG_IN}", _ALTERNATIVE[is_data]],
        )
    if isinstance(error, errors.RevisionNotFoundError):
        hints = [f"revisions are listed on {page}/commits/main"]
        return ModelUnavailableError(f"{what} has no revision {revision or 'main'}", hints=hints)
    if isinstance(error, errors.RepositoryNotFoundError):
        missing = f"there is neither a file {repo} nor a data set of that name on the Hub"
        hints = [f"check the spelling: {page}", f"if it is private, run: {_LOG_IN}"]
        return ModelUnavailableError(
            missing if is_data else f"{repo} is not on the Hub", hints=hints
        )
    if isinstance(error, errors.HFValidationError):
        kind = (
            "a file nor a data set's name" if is_data else "a directory nor a Hub repository's name"
        )
        return ModelUnavailableError(f"{repo} is neither {kind}")
    if isinstance(error, errors.HfHubHTTPError):
        return _status(what, error.response.status_code)
    if isinstance(error, errors.EntryNotFoundError | errors.OfflineModeIsEnabled):
        return not_cached(repo, is_data=is_data)
    if _is_network(error):
        return not_cached(repo, is_data=is_data, reason=summary(error))
    if isinstance(error, OSError):
        return disk(error, what)
    return no_hub(what, "it sends no JSON of the Hub's kind")


def not_cached(repo: str, *, is_data: bool = False, reason: str = "") -> ModelUnavailableError:
    """Nothing on this disk, and no way to get it."""
    return ModelUnavailableError(
        f"{_named(repo, is_data=is_data)} is not in the local cache, and the Hub was not reached",
        reason=reason,
        hints=[
            "run once with a network and without --offline to fetch it",
            _NO_NETWORK[is_data],
        ],
    )


def no_hub(what: str, reason: str) -> ModelUnavailableError:
    """Something answers, and it is no Hub: a network's login page, a proxy, a wrong address."""
    from huggingface_hub import constants

    return ModelUnavailableError(
        f"{what} cannot be fetched",
        reason=f"{constants.ENDPOINT} does not answer as the Hub does: {reason}",
        hints=[
            "open a page in a browser: the network may want a login first",
            "check HF_ENDPOINT and the proxy settings, if they are set",
        ],
    )


def gave_up(
    what: str, error: BaseException, attempts: int, kept_bytes: int, size_bytes: int
) -> ModelUnavailableError:
    """The connection broke so often that waiting longer is the user's decision."""
    kept = f"{kept_bytes:,} of {size_bytes:,} bytes are kept"
    return ModelUnavailableError(
        f"{what} cannot be fetched",
        reason=f"the connection broke {attempts} times: {summary(error)}",
        hints=[f"{kept}; the same command goes on from there"],
    )


def wrong_digest(what: str, expected: str, got: str) -> ModelUnavailableError:
    """The bytes are not those that the Hub promised."""
    return ModelUnavailableError(
        f"{what} arrived damaged, and was deleted",
        reason=f"its digest is {got}, and the Hub says {expected}",
        hints=["run the command again; if it happens again, a proxy changes what it passes on"],
    )


def no_room(
    needed_bytes: int, free_bytes: int, directory: Path, *, is_data: bool = False
) -> ResourceError:
    """A download that would not fit, told before it begins."""
    lacking = -(-(needed_bytes - free_bytes) // 2**20)
    return ResourceError(
        f"there is no room for the download in {directory}",
        reason=f"need {_gib(needed_bytes)}, have {_gib(free_bytes)}",
        hints=[
            f"free {lacking:,} MiB" if lacking < 1000 else f"free {_gib(lacking * 2**20)}",
            "point HF_HOME to a larger disk",
            _SMALLER[is_data],
        ],
    )


def disk(error: OSError, what: str) -> SpecxError:
    """What the local disk refused while ``what`` was being fetched."""
    from huggingface_hub import constants

    hints: Sequence[str]
    if error.errno in _FULL:
        hints = ["point HF_HOME to a larger disk"]
        return ResourceError(f"the disk is full while fetching {what}", hints=hints)
    if error.errno in _READ_ONLY:
        hints = ["point HF_HOME to a directory that you may write to"]
        return ModelUnavailableError(
            f"{what} cannot be stored in {constants.HF_HUB_CACHE}",
            reason=(error.strerror or summary(error)).lower(),
            hints=hints,
        )
    return ModelUnavailableError(f"{what} cannot be fetched", reason=summary(error))


def _named(repo: str, *, is_data: bool) -> str:
    return f"data set {repo}" if is_data else repo


def _status(what: str, status: int) -> ModelUnavailableError:
    names = {each.value: each.phrase for each in http.HTTPStatus}
    hint = "try again later"
    if status in (401, 403):
        hint = f"log in again: {_LOG_IN}"
    return ModelUnavailableError(
        f"{what} cannot be fetched",
        reason=f"the Hub answers {status} {names.get(status, '')}".rstrip(),
        hints=[hint, "what was fetched before runs without the Hub: --offline"],
    )


def _is_network(error: BaseException) -> bool:
    from huggingface_hub import errors

    client = errors.HfHubHTTPError.__bases__[0]
    return isinstance(error, (client, ConnectionError, TimeoutError))


def _gib(value_bytes: int) -> str:
    return f"{value_bytes / 2**30:,.1f} GiB"
