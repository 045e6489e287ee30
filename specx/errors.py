"""Every error that specx raises on purpose.

    SpecxError                 exit 1
    ├── UsageError             exit 2   a wrong option, value or preset file
    ├── DocumentError          exit 3   input missing, empty, undecodable, unsupported
    ├── ModelUnavailableError  exit 4   gated, not found, offline and not cached
    ├── ModelError             exit 4   a checkpoint that is broken or of an unsupported kind
    ├── PairError              exit 5   target and draft do not fit together
    ├── ResourceError          exit 6   too little memory or disk
    ├── ContextError           exit 7   the prompt is longer than the context
    └── VerifyError            exit 8   speculative text differs from plain text

An error says *what* happened (``message``), *why* (``reason``, optional) and *what to do*
(``hints``, one to three lines). This module knows no screen: the command line prints these
fields, a library user reads them as attributes.
"""

from collections.abc import Iterable


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
