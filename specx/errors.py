"""Every error that specx raises on purpose, and how its words are made fit for a terminal.

An error says *what* happened (``message``), *why* (``reason``, optional) and *what to do*
(``hints``, one to three lines), and has an exit code of its own.
"""

import re
from collections.abc import Iterable

# C0 without \t and \n, DEL, C1, and the marks that reorder the letters around them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class SpecxError(Exception):
    """Base class: ``message``, ``reason``, ``hints``, and the exit code of the command line."""

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, reason: str = "", hints: Iterable[str] = ()) -> None:
        super().__init__(message if not reason else f"{message}: {reason}")
        self.message = message
        self.reason = reason
        self.hints = tuple(hints)


class UsageError(SpecxError):
    """A wrong option, value or preset file."""

    exit_code = 2
    code = "usage"


class DocumentError(SpecxError):
    """Input that is missing, empty, undecodable or of an unsupported format."""

    exit_code = 3
    code = "document"


class ModelUnavailableError(SpecxError):
    """Weights that cannot be reached: gated, not found, or offline and not cached."""

    exit_code = 4
    code = "model_unavailable"


class ModelError(SpecxError):
    """A checkpoint that is damaged, incomplete or of an unsupported architecture."""

    exit_code = 4
    code = "model"


class PairError(SpecxError):
    """Target and draft disagree, for example on the text of a token."""

    exit_code = 5
    code = "pair_mismatch"


class ResourceError(SpecxError):
    """Too little GPU memory, RAM or disk."""

    exit_code = 6
    code = "resources"


class ContextError(SpecxError):
    """A prompt that does not fit into the context of the preset."""

    exit_code = 7
    code = "context"


class VerifyError(SpecxError):
    """The certificate failed: speculative and plain decoding disagree."""

    exit_code = 8
    code = "verify"


def size(value_bytes: float) -> str:
    """``612 MiB`` or ``1.2 GiB``."""
    mib = value_bytes / 2**20
    return f"{mib:,.0f} MiB" if mib < 1000 else f"{mib / 1024:,.1f} GiB"


def is_text(text: str) -> bool:
    """Whether ``text`` can be encoded; bytes of a command line that are not UTF-8 cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def printable(text: str) -> str:
    """``text`` with its control characters as visible signs; newline and tab stay.

    An escape sequence that a model or a file name contains is then read, not obeyed.
    """
    return _UNSAFE.sub(_picture, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """``text`` for a message: printable, its line breaks shown as signs too."""
    return printable(text).replace("\n", "\u240a").replace("\t", " ")


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"
