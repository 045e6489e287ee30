"""One file from the Hub into the cache: resumed, tried again, verified, then shown.

In goes a ``Source`` and a file that it lists; out comes the file in the snapshot, its digest
checked, or a ``SpecxError``. The bytes of a broken transfer stay and the next one goes on from
there. This module does not know which files are wanted, plans, models or the screen.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from specx.checkpoints.hub_errors import (
    BrokenOff,
    failures,
    gave_up,
    is_passing,
    no_hub,
    refusal,
    wrong_digest,
)
from specx.checkpoints.repository import ATTEMPTS, PAUSES_S, HubFile, Source, link, patiently
from specx.errors import SpecxError

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

_CHUNK_BYTES = 1 << 20
_WORTH_BYTES = 64 << 20  # after so many new bytes, failures before them are forgotten


def is_complete(source: Source, file: HubFile) -> bool:
    """Whether the snapshot shows ``file``, whole."""
    return (source.directory / file.name).is_file()


def kept_bytes(source: Source, file: HubFile) -> int:
    """How many bytes of ``file`` need not travel: all, none, or those of a broken transfer."""
    if is_complete(source, file) or (file.oid and source.blob(file).is_file()):
        return file.size_bytes
    partial = _partial_path(source, file)
    return min(partial.stat().st_size, file.size_bytes) if file.oid and partial.is_file() else 0


def get(source: Source, file: HubFile, on_size: Callable[[int], None]) -> None:
    """Bring ``file`` into the snapshot; ``on_size`` hears how many bytes of it are here.

    Raises ``ModelUnavailableError`` and ``ResourceError``.
    """
    try:
        if not file.oid:
            _get_unlisted(source, file)
        else:
            if not source.blob(file).is_file():
                _get_blob(source, file, on_size)
            link(source, file)
    except SpecxError:
        raise
    except failures() as error:
        raise refusal(error, source.repo, revision=source.commit, is_data=source.is_data) from error
    on_size(file.size_bytes)


def _get_unlisted(source: Source, file: HubFile) -> None:
    """From a mirror that tells no digests: the Hub's own client knows what to do without."""
    from huggingface_hub import hf_hub_download

    patiently(
        lambda: hf_hub_download(
            source.repo, file.name, repo_type=source.repo_type, revision=source.commit
        )
    )


def _get_blob(source: Source, file: HubFile, on_size: Callable[[int], None]) -> None:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob = source.blob(file)
    locks = source.folder.parent / ".locks" / source.folder.name
    locks.mkdir(parents=True, exist_ok=True)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{file.oid}.lock"):
        if blob.is_file():  # another process was faster
            return
        partial = _Partial(_partial_path(source, file), file)
        on_size(partial.size_bytes)
        _receive_all(source, file, partial, on_size)
        got = partial.digest.hexdigest()
        if got != file.oid:
            partial.path.unlink()
            raise wrong_digest(f"{source.repo}/{file.name}", file.oid, got)
        partial.path.replace(blob)


def _receive_all(
    source: Source, file: HubFile, partial: "_Partial", on_size: Callable[[int], None]
) -> None:
    failed = 0
    while partial.size_bytes < file.size_bytes or not partial.path.is_file():
        before_bytes = partial.size_bytes
        try:
            _receive(source, file, partial, on_size)
        except failures() as error:
            if not is_passing(error):
                raise
            failed = 1 if partial.size_bytes - before_bytes >= _WORTH_BYTES else failed + 1
            if failed == ATTEMPTS:
                what = f"{source.repo}/{file.name}"
                kept = partial.size_bytes, file.size_bytes
                raise gave_up(what, error, ATTEMPTS, *kept) from error
            time.sleep(PAUSES_S[failed - 1])


def _receive(
    source: Source, file: HubFile, partial: "_Partial", on_size: Callable[[int], None]
) -> None:
    """One request, from the first byte that is not here."""
    with partial.open() as out, _request(source, file, partial.size_bytes) as answer:
        _check_answer(source, file, answer)
        begin = _first_byte(answer)
        if begin == 0:
            partial.clear(out)
        elif begin != partial.size_bytes:
            raise BrokenOff(f"it goes on at byte {begin:,}, not at {partial.size_bytes:,}")
        for chunk in answer.iter_bytes():  # of any size: a larger one would be lost in a break
            partial.append(out, chunk)
            on_size(min(partial.size_bytes, file.size_bytes))
            if partial.size_bytes > file.size_bytes:
                break
    if partial.size_bytes > file.size_bytes:
        partial.path.unlink()
        raise wrong_digest(f"{source.repo}/{file.name}", file.oid, "that of a longer file")
    if partial.size_bytes < file.size_bytes:
        raise BrokenOff(f"it ended after {partial.size_bytes:,} of {file.size_bytes:,} bytes")


@contextlib.contextmanager
def _request(source: Source, file: HubFile, begin: int) -> Iterator[Any]:
    """The response of whichever HTTP client the Hub's is built on."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with get_session().stream(
        "GET",
        hf_hub_url(
            source.repo,
            file.name,
            repo_type=source.repo_type,
            revision=source.commit,
        ),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
    ) as answer:
        yield answer


def _check_answer(source: Source, file: HubFile, answer: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    hf_raise_for_status(answer)
    is_page = answer.headers.get("Content-Type", "").startswith("text/html")
    if is_page and not file.name.endswith((".html", ".htm")):
        raise no_hub(f"{source.repo}/{file.name}", "it sends a web page")


def _first_byte(answer: Any) -> int:
    """Where the body begins in the file: a server may ignore that only a part was wanted."""
    if answer.status_code != 206:
        return 0
    begin = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not begin.isdecimal():
        raise BrokenOff("it does not say where it goes on")
    return int(begin)


def _partial_path(source: Source, file: HubFile) -> Path:
    blob = source.blob(file)
    return blob.with_name(f"{blob.name}.incomplete")  # as the Hub's client named it before 2.0


class _Partial:
    """The bytes of a file that are here already, and their digest so far."""

    def __init__(self, path: Path, file: HubFile) -> None:
        self.path = path
        self._file = file
        self.size_bytes, self.digest = 0, self._new_digest()
        if path.is_file() and path.stat().st_size <= file.size_bytes:
            with path.open("rb") as kept:
                while chunk := kept.read(_CHUNK_BYTES):
                    self._count(chunk)

    def open(self) -> BinaryIO:
        """The file, at the end of what is known; a longer rest of it is cut off."""
        out = self.path.open("ab")
        out.truncate(self.size_bytes)
        return out

    def append(self, out: BinaryIO, chunk: bytes) -> None:
        out.write(chunk)
        self._count(chunk)

    def clear(self, out: BinaryIO) -> None:
        """Begin again."""
        out.truncate(0)
        self.size_bytes, self.digest = 0, self._new_digest()

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size_bytes += len(chunk)

    def _new_digest(self) -> "Digest":
        if len(self._file.oid) == 64:
            return hashlib.sha256()
        # Small files have git's name for their content.
        return hashlib.sha1(b"blob %d\0" % self._file.size_bytes, usedforsecurity=False)
