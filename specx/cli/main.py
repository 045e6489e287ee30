"""The ``specx`` program: its commands, the one place where errors end, the exit code.

A command's module is imported when the command is used, so ``--help`` and ``--version`` are quick.
"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Annotated, Any, TextIO

from typer import Context, Exit, Option, Typer, TyperException
from typer.main import get_command

from specx._version import __version__
from specx.cli.errors import (
    PIPE_CLOSED,
    OutputClosed,
    crash,
    debug_lines,
    error_lines,
    out_of_memory,
)
from specx.cli.options import VerifyCommand
from specx.cli.output_file import Sink
from specx.cli.signals import Stopped
from specx.errors import SpecxError, UsageError, printable

#: Name → the first line of its docstring; in the order of ``--help``.
COMMANDS = {
    "generate": "Answer a question about long documents, or continue them.",
    "summarize": "Summarize long documents.",
    "bench": "Measure speed over prompt length: all modes on the same texts, in turns.",
    "compare": "Compare modes or presets on one document.",
    "trace": "Replay a run that --trace recorded, or make a page of it.",
    "presets": "List, show and check presets: the model pairs that specx can run.",
    "pull": "Download a preset's models, after checking that the pair fits together.",
    "help": "Explain environment, exit codes, output, schemas.",
}
#: Where they are not named alike.
_MODULES = {"generate": "run", "summarize": "run", "trace": "replay", "pull": "presets"}
_RUNS_MODELS = ("generate", "summarize", "bench", "compare")


def main() -> None:
    _prepare_streams()
    _prepare_threads()
    sys.excepthook = _report_crash
    code = run(sys.argv[1:])
    _leave(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line on ``sys.stdin``, ``sys.stdout`` and ``sys.stderr``; its exit code.

    Exceptions that are no fault of the user's pass through.
    """
    try:
        command = get_command(_app(arguments))
        code: Any = command.main(args=list(arguments), prog_name="specx", standalone_mode=False)
        return int(code or 0)
    except SpecxError as error:
        return _fail(error, arguments)
    except TyperException as error:
        return _fail(_usage_error(error, arguments), arguments)
    except OutputClosed:
        return PIPE_CLOSED
    except SystemExit as left:  # Typer printed help into a pipe that was closed
        return PIPE_CLOSED if left.code == 1 else int(left.code or 0)
    except Stopped as stopped:
        return stopped.exit_code
    except (MemoryError, RuntimeError) as error:
        known = out_of_memory(error)
        if known is None:
            raise
        known.__cause__ = error
        return _fail(known, arguments)


def _app(arguments: Sequence[str]) -> Typer:
    """The program with those commands loaded that ``arguments`` may name; of others the names."""
    app = Typer(
        name="specx",
        rich_markup_mode=None,  # plain help fits 80 columns, and argument errors are ours to show
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )
    app.callback(
        invoke_without_command=True,
        epilog="Try: specx summarize report.txt, specx COMMAND --help, specx help output",
    )(specx)
    for name, summary in COMMANDS.items():
        if name not in arguments:
            app.command(name, help=summary)(_not_loaded)
            continue
        _check_directory()
        if name in _RUNS_MODELS:
            from specx.environment import keep_compiled

            keep_compiled()
        command = getattr(import_module(f"specx.cli.{_MODULES.get(name, name)}"), name)
        if isinstance(command, Typer):
            app.add_typer(command, name=name)
        else:
            is_checked = name in ("generate", "summarize")
            app.command(name, cls=VerifyCommand if is_checked else None)(command)
    return app


def _check_directory() -> None:
    """Raise ``UsageError`` where somebody removed the working directory: names mean nothing, and
    the libraries under torch end the process."""
    try:
        os.getcwd()
    except OSError as error:
        hint = "go to one that does: cd"
        raise UsageError("the working directory does not exist any more", hints=[hint]) from error


def _not_loaded() -> None:
    raise AssertionError("a command that was not named cannot run")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        Sink().write(f"specx {__version__}\n")
        raise Exit


def specx(
    context: Context,
    version: Annotated[
        bool,
        Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> int:
    """Lossless speculative decoding for long documents."""
    if context.invoked_subcommand is None:
        Sink().write(context.get_help() + "\n")
    return 0


def _fail(error: SpecxError, arguments: Sequence[str]) -> int:
    from specx.cli.console import Screen

    # Where nobody reads the message its code still counts.
    with contextlib.suppress(OutputClosed, SpecxError):
        Screen().fail(error)
        Sink().write(_as_json(error, arguments))
    return error.exit_code


def _as_json(error: SpecxError, arguments: Sequence[str]) -> str:
    output = _output_format(arguments)
    if output == "text":
        return ""
    from specx.cli.result_json import error_json

    return error_json(error, output)


def _usage_error(error: TyperException, arguments: Sequence[str]) -> UsageError:
    command = next((word for word in arguments if word in COMMANDS), "")
    message = error.format_message().replace("Value error, ", "")  # pydantic's words
    variables = [
        f"{name}={value} is set"
        for name, value in os.environ.items()
        if name.startswith("SPECX_") and f"'--{name[6:].lower()}'" in message
    ]
    return UsageError(
        message[:1].lower() + message[1:].rstrip("."),
        hints=(*variables, " ".join(filter(None, ("specx", command, "--help")))),
    )


def _output_format(arguments: Sequence[str]) -> str:
    """The value of ``-o``, found without a parser: the arguments may be the mistake."""
    output = os.environ.get("SPECX_OUTPUT", "text")
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if word in ("-o", "--output"):
            output = following
        elif glued := re.fullmatch("(?:--output=|-o=?)(.+)", word):
            output = glued[1]
    return output if output in ("json", "jsonl") else "text"


def _report_crash(
    kind: type[BaseException], error: BaseException, at: TracebackType | None
) -> None:
    """What ``sys.excepthook`` shows: a line and a hint, or the traceback on request."""
    if issubclass(kind, KeyboardInterrupt):
        return
    unexpected = crash(error)
    lines = debug_lines(error) or error_lines(unexpected)
    with contextlib.suppress(OSError):
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stdout.write(_as_json(unexpected, sys.argv[1:]))


def _prepare_threads() -> None:
    """Let idle OpenMP threads give up their core soon; read when torch is imported.

    With GNU OpenMP's default they spin so long that one other busy process makes a decode step
    thirty times slower; this count costs nothing on a quiet machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _prepare_streams() -> None:
    """UTF-8 whatever the locale says, and a stream in the place of one that is closed."""
    sys.stdout = sys.stdout or _closed_stream(1)
    sys.stderr = sys.stderr or _closed_stream(2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]


def _closed_stream(descriptor: int) -> TextIO:
    """A stream that occupies the descriptor, so that no file opened later receives its output.

    stdout is opened for reading: an answer that nobody can get is an error, not silence.
    """
    opened = os.open(os.devnull, os.O_RDONLY if descriptor == 1 else os.O_WRONLY)
    if opened != descriptor:
        os.dup2(opened, descriptor)
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def _leave(code: int) -> None:
    """Exit, without the interpreter's own complaint about a stream that was closed early."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or PIPE_CLOSED
    if sys.getprofile() is None and sys.gettrace() is None:
        os._exit(code)  # everything is written, and taking torch apart takes up to a second
    sys.exit(code)
