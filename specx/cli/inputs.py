"""Which documents a command reads: files, ``-``, a pipe, or none.

Goes in: the FILE arguments and stdin. Comes out: names, then documents. It does not know presets
or models; how bytes become text is ``specx.documents.document``' part.
"""

import os
import sys
from typing import TextIO

from specx.documents.document import Document, read_document, read_stdin
from specx.errors import UsageError

STDIN = "-"


def choose_inputs(
    files: list[str], stdin: TextIO | None, *, command: str, needed: bool = True
) -> list[str]:
    """Paths and at most one ``-``; stdin is chosen only when no file is named.

    ``needed=False``: the command can do without a document, so a terminal and ``/dev/null`` mean
    none. Raises ``UsageError`` instead of waiting for a terminal nobody types into.
    """
    if files.count(STDIN) > 1:
        raise UsageError("- is given twice", reason="standard input can be read only once")
    if files:
        return list(files)
    if stdin is None or stdin.isatty():
        if not needed:
            return []
        raise UsageError(
            "no document",
            reason="no FILE is named and nothing is piped in",
            hints=(f"specx {command} report.txt", f"cat report.txt | specx {command}"),
        )
    return [] if not needed and _is_null(stdin) else [STDIN]


def read_input(name: str, encoding: str | None) -> Document:
    """The document behind a name that ``choose_inputs`` returned. Raises ``DocumentError``."""
    if name == STDIN:
        return read_stdin(sys.stdin.buffer, encoding=encoding)
    return read_document(name, encoding=encoding)


def _is_null(stream: TextIO) -> bool:
    """Whether ``stream`` is the null device: what schedulers give a program that has no input."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))
    except OSError:
        return False
