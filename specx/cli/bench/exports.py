"""``--export FILE``: one object in the format that the suffix names, whole or not at all.

Goes in: paths, later the object. Comes out: files. Places are checked before the long run.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from specx.cli.errors import cannot_write
from specx.cli.output_file import check_replaceable, mode_for
from specx.cli.result_json import dumps
from specx.errors import UsageError

SUFFIXES = (".json", ".jsonl", ".csv", ".md", ".png", ".svg", ".html")
_DRAWN = (".png", ".svg")


class Exports:
    """Where a bench goes. Raises ``UsageError`` at once for a place that cannot be used."""

    def __init__(self, names: Sequence[str], *, force: bool, inputs: list[str]) -> None:
        """``inputs``: files that are read, and so never replaced."""
        self._paths = [Path(name) for name in names]
        for path in self._paths:
            _check(path, force=force, inputs=inputs)
        if any(path.suffix.lower() in _DRAWN for path in self._paths):
            from specx.bench.render.plots import require_matplotlib

            require_matplotlib()

    def write(self, bench: dict[str, Any], *, profile: bool) -> Iterator[Path]:
        """Write every file; yields each as it is complete. Raises ``SpecxError``."""
        for path in self._paths:
            write_whole(path, _bytes(bench, path.suffix.lower(), profile))
            yield path


def write_whole(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step, or leave it as it was."""
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=".specx-", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode_for(path))
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise cannot_write(str(path), error) from error


def _check(path: Path, *, force: bool, inputs: list[str]) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"cannot export to {path}",
            reason="the suffix says the format",
            hints=(" ".join(SUFFIXES),),
        )
    if path.is_dir():
        raise UsageError(f"cannot export to {path}", reason="it is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"cannot export to {path}", reason=f"there is no directory {path.parent}")
    if path.exists():
        check_replaceable(Path(os.path.realpath(path)), str(path), force=force, inputs=inputs)
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot export to {path}", reason="the directory is not writable")


def as_text(bench: dict[str, Any], kind: str, *, profile: bool) -> str:
    """``bench`` as json, jsonl, csv, md or html."""
    from specx.bench.render.page import to_html
    from specx.bench.render.tables import to_csv, to_jsonl, to_markdown

    if kind == "json":
        return dumps(bench, "json")
    if kind == "jsonl":
        return to_jsonl(bench)
    if kind == "csv":
        return to_csv(bench)
    if kind == "html":
        return to_html(bench)
    return to_markdown(bench, profile=profile)


def _bytes(bench: dict[str, Any], suffix: str, profile: bool) -> bytes:
    from specx.bench.render.plots import figure_bytes

    if suffix == ".png":
        return figure_bytes(bench, "png")
    if suffix == ".svg":
        return figure_bytes(bench, "svg")
    return as_text(bench, suffix[1:], profile=profile).encode()
