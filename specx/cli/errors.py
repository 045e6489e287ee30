"""What the user reads when something went wrong, and the exit code that goes with it."""

import errno
import os

from specx.errors import ResourceError, SpecxError, UsageError

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "done"),
    (1, "unexpected error (a bug in specx)"),
    (2, "wrong usage: an option, a value, a preset file, a place for --out"),
    (3, "input missing, empty, undecodable or of an unsupported format"),
    (4, "model not reachable (gated, not found, offline and not cached) or damaged"),
    (5, "target and draft do not fit together"),
    (6, "too little memory or disk"),
    (7, "the document does not fit into the context"),
    (8, "--verify found a difference"),
    (9, "a --fail-if condition was met"),
    (10, "some of several documents or cells failed"),
    (129, "the terminal was closed (SIGHUP); the text so far was written to --out"),
    (130, "interrupted (Ctrl-C); the text so far was written"),
    (141, "the reader of the output closed the pipe"),
    (143, "terminated (SIGTERM); the text so far was written"),
)
DIFFERENCE = 8
CONDITION_HELD = 9
SOME_FAILED = 10
PIPE_CLOSED = 141


class OutputClosed(Exception):
    """Nobody reads the output any more (``| head``): stop without a word."""


def error_lines(error: SpecxError) -> list[str]:
    lines = [f"error: {error.message}"]
    lines += [f"  {line}" for line in error.reason.splitlines()]
    return lines + [f"  → {hint}" for hint in error.hints[:3]]


def out_of_memory(error: BaseException) -> ResourceError | None:
    """``error`` as a ``ResourceError`` if it says that memory ran out, else None.

    For what no request has explained better: memory that ran out outside of the models.
    """
    from specx.memory import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    text = str(error)
    return ResourceError(
        "out of memory",
        reason=text.splitlines()[0][:200] if text else "",
        hints=(
            "--mode plain keeps no draft's caches",
            "--set prefill_chunk_tokens=512 reads the document in smaller pieces",
            "--dtype bfloat16 halves weights and caches where the hardware supports it",
        ),
    )


def cannot_write(place: str, error: OSError) -> SpecxError:
    """A failed write: a ``ResourceError`` for a full disk, a ``UsageError`` for a wrong place."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"cannot write to {place}", reason=reason, hints=("free some space",))
    return UsageError(f"cannot write to {place}", reason=reason)


def crash(error: BaseException) -> SpecxError:
    return SpecxError(
        f"unexpected {type(error).__name__}: {error}".rstrip(": "),
        reason="this is a bug in specx, not in your input",
        hints=("set SPECX_DEBUG=1 for the traceback",),
    )


def debug_lines(error: BaseException) -> list[str]:
    if not is_on(os.environ.get("SPECX_DEBUG")):
        return []
    import traceback

    return "".join(traceback.format_exception(error)).splitlines()


def is_on(value: str | None) -> bool:
    """Whether an environment variable means yes; unset, empty, 0, no, off and false mean no."""
    return (value or "").strip().lower() not in ("", "0", "no", "off", "false")
