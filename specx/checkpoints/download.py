"""What a model or a data set needs from the Hub: planned, weighed against the disk, fetched.

Weights are safetensors where there are any, else pickles, never both. The Hub's client lists, logs
in and redirects; the transfer is ours, because the client (from 1.33 on) deletes what a broken
transfer has brought and compares no digest. No file is shown before its digest is right.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specx.checkpoints import repository
from specx.checkpoints.config import ADAPTER, summary
from specx.checkpoints.repository import HubFile, Source
from specx.checkpoints.weights import choose_entry, is_plain_name, shards
from specx.errors import ModelError, ModelUnavailableError, ResourceError, size

_METADATA = re.compile(
    r"(generation_|adapter_)?config\.json|(special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
    r"|(tokenizer|chat_template).*"
)
_SPARE_BYTES = 64 << 20  # what a file system needs for itself, and locks, links and logs
_STOPPED = (
    "stopped in a download; what has arrived is kept, and the same command goes on from there"
)
_OTHER_FORMATS = (".gguf", ".onnx", ".h5", ".msgpack", ".pth", ".pt")


@dataclass(frozen=True, slots=True)
class Download:
    """Progress over all files of one ``fetch``; bytes. The first event precedes the first byte."""

    repo: str
    file: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about the files that the user should know and that is no failure."""

    text: str


Listener = Callable[[Download | Notice], None]
_listener: ContextVar[Listener] = ContextVar("listener", default=lambda event: None)


class WantedFile:
    """A file that has to be in a snapshot, and where the cache keeps what there is of it.

    ``kept_bytes``: how many of its bytes were here when it was planned.
    """

    def __init__(self, source: Source, file: HubFile) -> None:
        self.source, self.name, self.size_bytes, self.oid = source, *file
        self.pointer = source.directory / file.name  # of the snapshot to the blob
        self.blob = source.folder / "blobs" / (file.oid or "unlisted")
        # As the Hub's client named it before 1.33.
        self.partial = self.blob.with_name(f"{self.blob.name}.incomplete")
        self.kept_bytes = self.here_bytes

    def __str__(self) -> str:
        return f"{self.source.repo}/{self.name}"

    @property
    def is_shown(self) -> bool:
        return self.pointer.is_file()

    @property
    def here_bytes(self) -> int:
        """How many of its bytes need not travel: all, none, or those of a broken transfer."""
        if self.is_shown or self.blob.is_file():
            return self.size_bytes
        there = self.partial.stat().st_size if self.partial.is_file() else 0
        return min(there, self.size_bytes)


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """The files of a repository that specx needs; none where the Hub has no part in it."""

    source: Source
    files: tuple[WantedFile, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What had to travel when it was planned."""
        return sum(file.size_bytes - file.kept_bytes for file in self.files)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the events of downloads in this block, however deep below, to ``listener``.

    It runs in the thread that downloads, for each piece that arrives: it has to be quick. Without
    one, downloads are silent.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(event: Download | Notice) -> None:
    _listener.get()(event)


def fetch_metadata(source: Source) -> None:
    """Bring configs and tokenizer files into the snapshot: megabytes, without events.

    Raises ``ModelUnavailableError`` and ``ResourceError``.
    """
    _bring(_metadata(source), is_silent=True)


def plan(source: Source) -> DownloadPlan:
    """What of ``source`` is wanted and what of that is here; fetches at most an index of shards.

    Raises ``ModelError`` for a repository without usable weights, ``ModelUnavailableError`` when
    the cache lacks them and the Hub was not asked.
    """
    listed, directory = source.files, source.directory
    if listed is None and source.origin != "cache":
        return DownloadPlan(source)
    known = {path.name for path in directory.iterdir()} if listed is None else listed.keys()
    entry = choose_entry(known)
    if entry is None and listed is not None:
        others = sorted(name for name in listed if name.endswith(_OTHER_FORMATS))
        raise ModelError(
            f"{source.repo} has neither model.safetensors nor pytorch_model.bin",
            reason=f"it has {others[0]}, which specx does not read" if others else "",
            hints=["take a repository in Hugging Face format"],
        )
    names = [entry or "its weights"]
    if entry and entry.endswith(".json"):
        if listed is not None:
            _bring([WantedFile(source, listed[entry])], is_silent=True)
        names += shards(directory / entry)
    lacking = next((name for name in names if name not in known), "")
    if lacking and listed is not None:
        reason = f"{entry} names {lacking}, which is not there"
        raise ModelError(f"{source.repo} is incomplete", reason=reason)
    if lacking:  # an earlier download ended before the weights did
        raise ModelUnavailableError(
            f"{source.repo} is only partly in the local cache, and the Hub was not reached",
            reason=f"what is missing: {lacking}",
            hints=["run once with a network and without --offline: what is there is kept"],
        )
    weights = [WantedFile(source, listed[name]) for name in names] if listed else []
    return DownloadPlan(source, (*_metadata(source), *weights))


def fetch(plans: Sequence[DownloadPlan]) -> None:
    """Bring all files of ``plans`` into their snapshots, if the disk has room for all of them.

    Raises ``ResourceError`` before the first byte, ``ModelUnavailableError`` at the first file
    that cannot be had; what has arrived by then stays, also where Ctrl-C ends it.
    """
    _bring([file for each in plans for file in each.files])


def fetch_file(source: Source, file: HubFile) -> Path:
    """Bring one file that ``source`` lists into its snapshot, if it is not there; its path.

    Raises what ``fetch`` raises.
    """
    wanted = WantedFile(source, file)
    _bring([wanted])
    return wanted.pointer


def free_bytes(directory: Path) -> int:
    """Room on the disk that ``directory``, which need not exist yet, is or will be on."""
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def file_notes(source: Source) -> list[str]:
    """What to say of a model's files: pickles for weights, and LoRA files beside whole weights,
    which other programs may mix in."""
    names = set(source.files or {path.name for path in source.directory.iterdir()})
    notes = []
    if (choose_entry(names) or "").startswith("pytorch"):
        notes = [f"{source.repo} has no safetensors: pickles are read, code in them is not run"]
    if ADAPTER in names:
        notes += [f"{source.repo} has a LoRA adapter beside its weights: they are run without it"]
    return notes


def _metadata(source: Source) -> list[WantedFile]:
    return [
        WantedFile(source, file)
        for file in (source.files or {}).values()
        if is_plain_name(file.name) and _METADATA.fullmatch(file.name)
    ]


def _bring(wanted: Sequence[WantedFile], *, is_silent: bool = False) -> None:
    """Fetch what is missing of ``wanted``, if the disk has room for all of it."""
    missing = [each for each in wanted if not each.is_shown]
    total_bytes = sum(each.size_bytes for each in missing)
    done_bytes = sum(each.here_bytes for each in missing)
    if total_bytes > done_bytes:
        _check_room(total_bytes - done_bytes, missing[0].source)
    for each in missing:
        done_bytes -= each.here_bytes

        def report(here_bytes: int, each: WantedFile = each, before: int = done_bytes) -> None:
            if not is_silent:
                tell(Download(each.source.repo, each.name, before + here_bytes, total_bytes))

        _fetch_one(each, report)
        report(each.size_bytes)
        done_bytes += each.size_bytes


def _check_room(needed_bytes: int, source: Source) -> None:
    need_bytes, have_bytes = needed_bytes + _SPARE_BYTES, free_bytes(source.folder)
    if need_bytes > have_bytes:
        need, have = (f"{n / 2**30:,.1f} GiB" for n in (need_bytes, have_bytes))
        short = f"free {size(-(-(need_bytes - have_bytes) // 2**20) * 2**20)}"
        raise ResourceError(
            f"there is no room for the download in {source.folder.parent}",
            reason=f"need {need}, have {have}",
            hints=[short, "point HF_HOME to a larger disk", repository.INSTEAD[source.kind]],
        )


def _fetch_one(wanted: WantedFile, on_size: Callable[[int], None]) -> None:
    """Bring a file into the snapshot; ``on_size`` hears how many bytes of it are here."""
    from huggingface_hub import hf_hub_download

    source = wanted.source
    try:
        if wanted.oid:
            _fetch_blob(wanted, on_size)
            _show(wanted)
        else:  # from a mirror that lists no digests: the Hub's own client can do without
            place, kind, commit = (source.repo, wanted.name), source.kind, source.commit
            repository.patiently(lambda: hf_hub_download(*place, repo_type=kind, revision=commit))
    except repository.failures() as error:
        raise repository.refusal(error, source.repo, source.kind, source.commit) from error
    finally:
        if not isinstance(sys.exception(), Exception | None):  # Ctrl-C: errors explain themselves
            tell(Notice(_STOPPED))


def _fetch_blob(wanted: WantedFile, on_size: Callable[[int], None]) -> None:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder, blob = wanted.source.folder, wanted.blob
    lock = folder.parent / ".locks" / folder.name / f"{blob.name}.lock"
    for each in (lock, blob):
        each.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.is_file():  # perhaps another process was faster
            return
        on_size(wanted.here_bytes)
        try:
            repository.patiently(
                lambda: _receive(wanted, on_size), kept_bytes=lambda: wanted.here_bytes
            )
        except repository.failures() as error:
            if not repository.is_passing(error):
                raise
            kept = f"{wanted.here_bytes:,} of {wanted.size_bytes:,} bytes are kept"
            raise ModelUnavailableError(
                f"{wanted} cannot be fetched",
                reason=f"the connection broke {repository.ATTEMPTS} times: {summary(error)}",
                hints=[f"{kept}; the same command goes on from there"],
            ) from error
        _check_digest(wanted)
        wanted.partial.replace(blob)


def _receive(wanted: WantedFile, on_size: Callable[[int], None]) -> None:
    """One request, from the first byte that is not here; raises ``OSError`` where it ends early."""
    from huggingface_hub import constants, get_session, hf_hub_url, utils

    source, whole_bytes = wanted.source, wanted.size_bytes
    url = hf_hub_url(source.repo, wanted.name, repo_type=source.kind, revision=source.commit)
    headers = utils.build_hf_headers()  # type: ignore[attr-defined]
    headers |= {"Accept-Encoding": "identity"}
    options: dict[str, Any] = {"headers": headers, "follow_redirects": True}
    options["timeout"] = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with wanted.partial.open("ab") as out:
        if out.tell() > whole_bytes:
            out.truncate(0)
        here_bytes = out.seek(0, os.SEEK_END)
        if here_bytes == whole_bytes:
            return
        if here_bytes:
            headers["Range"] = f"bytes={here_bytes}-"
        with get_session().stream("GET", url, **options) as answer:
            utils.hf_raise_for_status(answer)  # type: ignore[attr-defined]
            is_page = answer.headers.get("Content-Type", "").startswith("text/html")
            if is_page and not wanted.name.endswith((".html", ".htm")):
                raise repository.no_hub(str(wanted), "it sends a web page")
            if here_bytes and answer.status_code != 206:  # it sends all, not only what is missing
                here_bytes = out.truncate(0)
            for chunk in answer.iter_bytes():  # of any size: a larger one would be lost in a break
                out.write(chunk)
                here_bytes += len(chunk)
                on_size(min(here_bytes, whole_bytes))
                if here_bytes > whole_bytes:
                    return  # and the digest is wrong
    if here_bytes < whole_bytes:
        raise ConnectionError(f"it ended after {here_bytes:,} of {whole_bytes:,} bytes")


def _check_digest(wanted: WantedFile) -> None:
    """Delete what is not what the Hub lists, and say so."""
    start = hashlib.sha256()
    if len(wanted.oid) == 40:  # small files have git's name for their content
        start = hashlib.sha1(b"blob %d\0" % wanted.size_bytes, usedforsecurity=False)
    with wanted.partial.open("rb") as whole:
        got = hashlib.file_digest(whole, lambda: start).hexdigest()  # type: ignore[arg-type]
    if got != wanted.oid:
        wanted.partial.unlink()
        raise ModelUnavailableError(
            f"{wanted} arrived damaged, and was deleted",
            reason=f"its digest is {got}, and the Hub says {wanted.oid}",
            hints=["run the command again; if it happens again, a proxy changes what it passes on"],
        )


def _show(wanted: WantedFile) -> None:
    """Let the snapshot have a blob that is complete, as a link or where there are none, moved."""
    pointer, blob = wanted.pointer, wanted.blob
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if wanted.is_shown:
        return
    pointer.unlink(missing_ok=True)  # a link to a blob that somebody deleted
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        if not wanted.is_shown:  # not made by another process meanwhile: no links here
            shutil.move(blob, pointer)
