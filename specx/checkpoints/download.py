"""What a model or a data set needs from the Hub: planned, weighed against the disk, fetched.

In goes a ``Source``; out come a ``DownloadPlan`` and the files in the cache, with events on the
way for whoever listens. Weights are safetensors where there are any, else pickles, never both.
This module does not know presets, pairs, what is in the files, or the screen.
"""

import contextlib
import fnmatch
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from specx.checkpoints.hub_errors import no_room
from specx.checkpoints.repository import HubFile, Source
from specx.checkpoints.transfer import get, is_complete, kept_bytes
from specx.checkpoints.weights import choose_entry, is_pickled, is_plain_name, shards
from specx.errors import ModelError, ModelUnavailableError

__all__ = [
    "Download",
    "DownloadPlan",
    "Notice",
    "PlannedFile",
    "fetch",
    "fetch_file",
    "fetch_metadata",
    "free_bytes",
    "listening",
    "pickle_notice",
    "plan",
    "tell",
]

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
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A wanted file, and how many of its bytes are on this disk."""

    name: str
    size_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """The files of a repository that specx needs; none where the Hub has no part in it."""

    source: Source
    files: tuple[PlannedFile, ...] = ()

    @property
    def total_bytes(self) -> int:
        """All wanted files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def kept_bytes(self) -> int:
        """What of them is in the cache, begun files included."""
        return sum(file.kept_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What has to travel."""
        return self.total_bytes - self.kept_bytes


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
    """Pass ``event`` to whoever listens."""
    listener = _listener.get()
    if listener is not None:
        listener(event)


class _Resumable:
    """Files on their way: when Ctrl-C ends the block, whoever listens hears what became of them.

    Errors say that themselves.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            tell(Notice(_STOPPED))


def fetch_metadata(source: Source) -> None:
    """Bring configs and tokenizer files into the snapshot: megabytes, without events.

    Raises ``ModelUnavailableError`` and ``ResourceError``.
    """
    if source.files is not None:
        _fetch_silently(source, _metadata(source))


def plan(source: Source) -> DownloadPlan:
    """What of ``source`` is wanted and what of that is here; fetches at most an index of shards.

    Raises ``ModelError`` for a repository without usable weights, ``ModelUnavailableError`` when
    the cache lacks them and the Hub was not asked.
    """
    if source.files is None:
        if source.origin == "cache":
            _check_cached(source)
        return DownloadPlan(source)
    wanted = [*_metadata(source), *_weights(source)]
    return DownloadPlan(source, tuple(_planned(source, file) for file in wanted))


def _planned(source: Source, file: HubFile) -> PlannedFile:
    return PlannedFile(file.name, file.size_bytes, kept_bytes(source, file))


def fetch(plans: Sequence[DownloadPlan]) -> None:
    """Bring all files of ``plans`` into their snapshots, if the disk has room for all of them.

    Raises ``ResourceError`` before the first byte, ``ModelUnavailableError`` at the first file
    that cannot be had; what has arrived by then stays, also where Ctrl-C ends it.
    """
    missing = [
        (each.source, each.source.files[file.name])
        for each in plans
        for file in each.files
        if each.source.files is not None
        and not is_complete(each.source, each.source.files[file.name])
    ]
    if not missing:
        return
    needed_bytes = sum(each.missing_bytes for each in plans)
    _check_room(needed_bytes, missing[0][0])
    total_bytes = sum(file.size_bytes for _, file in missing)
    done_bytes = total_bytes - needed_bytes
    for source, file in missing:
        base_bytes = done_bytes - kept_bytes(source, file)

        def report(
            size_bytes: int, source: Source = source, file: HubFile = file, base: int = base_bytes
        ) -> None:
            tell(Download(source.repo, file.name, base + size_bytes, total_bytes))

        with _Resumable():
            get(source, file, report)
        done_bytes = base_bytes + file.size_bytes


def fetch_file(source: Source, file: HubFile) -> Path:
    """Bring one file that ``source`` lists into its snapshot, if it is not there; its path.

    Raises what ``fetch`` raises.
    """
    fetch([DownloadPlan(source, (_planned(source, file),))])
    return source.directory / file.name


def free_bytes(directory: Path) -> int:
    """Room on the disk that ``directory``, which need not exist yet, is or will be on."""
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _fetch_silently(source: Source, files: Sequence[HubFile]) -> None:
    missing = [file for file in files if not is_complete(source, file)]
    if missing:
        needed_bytes = sum(file.size_bytes - kept_bytes(source, file) for file in missing)
        _check_room(needed_bytes, source)
    for file in missing:
        with _Resumable():
            get(source, file, lambda _: None)


def _check_room(needed_bytes: int, source: Source) -> None:
    have_bytes = free_bytes(source.folder)
    if needed_bytes > 0 and needed_bytes + _SPARE_BYTES > have_bytes:
        raise no_room(
            needed_bytes + _SPARE_BYTES, have_bytes, source.folder.parent, is_data=source.is_data
        )


def _metadata(source: Source) -> list[HubFile]:
    files = (source.files or {}).values()
    return [
        file
        for file in files
        if is_plain_name(file.name) and any(fnmatch.fnmatch(file.name, p) for p in _METADATA)
    ]


def _weights(source: Source) -> list[HubFile]:
    listed = source.files or {}
    entry = choose_entry(listed.keys())
    if entry is None:
        others = sorted(name for name in listed if name.endswith(_OTHER_FORMATS))
        raise ModelError(
            f"{source.repo} has neither model.safetensors nor pytorch_model.bin",
            reason=f"it has {others[0]}, which specx does not read" if others else "",
            hints=["take a repository in Hugging Face format"],
        )
    if not entry.endswith(".json"):
        return [listed[entry]]
    _fetch_silently(source, [listed[entry]])
    files = [listed[entry]]
    for name in shards(source.directory / entry):
        if name not in listed:
            raise ModelError(
                f"{source.repo} is incomplete", reason=f"{entry} names {name}, which is not there"
            )
        files.append(listed[name])
    return files


def _check_cached(source: Source) -> None:
    """An earlier download may have ended before the weights did."""
    names = {path.name for path in source.directory.iterdir()}
    entry = choose_entry(names)
    lacking = [] if entry else ["its weights"]
    if entry and entry.endswith(".json"):
        lacking = [name for name in shards(source.directory / entry) if name not in names]
    if lacking:
        raise ModelUnavailableError(
            f"{source.repo} is only partly in the local cache, and the Hub was not reached",
            reason=f"{lacking[0]} {'is' if entry else 'are'} missing",
            hints=["run once with a network and without --offline: what is there is kept"],
        )


def pickle_notice(source: Source) -> str:
    """What to say where ``source`` has pickles for weights; "" where it has safetensors."""
    names = source.files or {path.name for path in source.directory.iterdir()}
    entry = choose_entry(names)
    if entry is None or not is_pickled(entry):
        return ""
    return f"{source.repo} has no safetensors: pickles are read, code in them is not run"
