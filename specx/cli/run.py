"""``specx generate`` and ``specx summarize``: from options to exit code."""

import json
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, TextIO

from typer import Context

from specx.cli.answer import Ask, Job, answer
from specx.cli.console import Screen
from specx.cli.errors import SOME_FAILED
from specx.cli.format import tab_separated
from specx.cli.options import Question, RunRequest, Sources, sources_of, takes
from specx.cli.output_file import Sink, open_sink, open_trace
from specx.cli.progress import downloads_shown
from specx.cli.settings import Settings, resolve, setting_rows
from specx.cli.show import choose_look, show_legend
from specx.cli.signals import Interrupts
from specx.documents.document import WHOLE, Document, read_document, read_stdin
from specx.documents.formats import Reading
from specx.errors import DocumentError, SpecxError, UsageError, one_line

if TYPE_CHECKING:
    from specx.engine import Engine
    from specx.prompts import Prompt

STDIN = "-"
PLACE = "{document}"
_PAGES_A_REPORT = 50
_QUESTION_ALONE = "for a question alone: < /dev/null"

#: A document's name, and the document, none (a bare question), or why it cannot be read.
NamedInput = tuple[str, Document | SpecxError | None]


@takes(RunRequest)
def summarize(context: Context, request: RunRequest) -> int:
    """Summarize long documents.

    Several files: each text under ==> name <==. Only the answer is written to stdout.
    """

    def ask(engine: "Engine", document: Document | None) -> "Prompt":
        return engine.prompt("" if document is None else document.text, think=request.think)

    return execute("summarize", request, sources_of(context), ask)


@takes(Question, RunRequest)
def generate(context: Context, question: Question, request: RunRequest) -> int:
    """Answer a question about long documents, or continue them."""
    if question.raw and (question.prompt is not None or question.system is not None):
        reason = "a raw document is continued as it is"
        raise UsageError("--raw excludes --prompt and --system", reason=reason)
    if question.prompt is not None and not question.prompt.strip():
        raise UsageError("--prompt is empty")
    prompt = PLACE if question.prompt is None else question.prompt

    def ask(engine: "Engine", document: Document | None) -> "Prompt":
        text = "" if document is None else document.text
        if question.raw:
            return engine.prompt(text, raw=True, think=request.think)
        # Replaced, never formatted: braces in the question or the document are only text.
        said = ("", prompt.replace(PLACE, text)) if PLACE in prompt else (text, prompt)
        return engine.prompt(*said, system=question.system, think=request.think)

    return execute("generate", request, sources_of(context), ask, needs_document=PLACE in prompt)


def execute(
    command: str, request: RunRequest, sources: Sources, ask: Ask, *, needs_document: bool = True
) -> int:
    """Run the command over all its documents; the exit code. Raises ``SpecxError``."""
    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    settings = resolve(request, sources)
    if request.show_settings:
        return _show_settings(request, settings, sources)
    names = choose_inputs(request.files, sys.stdin, command=command, needed=needs_document)
    _check_single(request, names)
    with (
        Interrupts() as interrupts,
        open_trace(request.trace, force=request.force, inputs=names, out=request.out) as trace,
        open_sink(request.out, force=request.force, inputs=names) as sink,
    ):
        is_question = not (needs_document or request.files) and names == [STDIN]
        try:
            inputs = _read_all(names, request, screen)
        except DocumentError as error:
            hints = [*error.hints, *([_QUESTION_ALONE] if is_question else [])]
            raise DocumentError(error.message, reason=error.reason, hints=hints) from error
        if is_question:
            screen.note(f"standard input is the document; {_QUESTION_ALONE}")
        look = choose_look(request, sink, screen)
        engine = _load(settings, screen)
        if engine.kernels_note:
            screen.note(engine.kernels_note)
        show_legend(look, screen)
        streams = (screen, sink, interrupts, look, trace)
        job = Job(command, request.output, settings, engine, ask, *streams)
        code = _run_all(job, inputs, keeps_going=request.keep_going)
    if trace is None or trace.problem is None:
        return code
    # Shown last, and not raised: the answer is complete, and stdout must have nothing else.
    screen.fail(trace.problem)
    return code or trace.problem.exit_code


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


def read_input(name: str, encoding: str | None, reading: Reading = WHOLE) -> Document:
    """The document of a name that ``choose_inputs`` returned. Raises ``DocumentError``."""
    if name == STDIN:
        return read_stdin(sys.stdin.buffer, encoding=encoding, reading=reading)
    return read_document(name, encoding=encoding, reading=reading)


def _is_null(stream: TextIO) -> bool:
    """Whether ``stream`` is the null device: what schedulers give a program that has no input."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))
    except OSError:
        return False


def _check_single(request: RunRequest, names: list[str]) -> None:
    """Raise ``UsageError`` for several documents where there may be only one."""
    if len(names) < 2:
        return
    if request.output == "json":
        raise UsageError(
            "-o json writes one object, but there are several documents",
            hints=("-o jsonl writes one line for each",),
        )
    if request.trace is not None:
        raise UsageError(
            "--trace records one run, but there are several documents",
            hints=("one document a command, each with a trace of its own",),
        )


def _show_settings(request: RunRequest, settings: Settings, sources: Sources) -> int:
    rows = setting_rows(request, settings, sources)
    if request.output == "text":
        cells = [(row.key, _shown(row.value), row.source) for row in rows]
        text = tab_separated(("key", "value", "source"), cells)
        Sink().write(text.expandtabs(28) if sys.stdout.isatty() else text)
    else:
        from specx.cli.result_json import SettingsObject, dumps

        listed = SettingsObject(schema="specx.settings/1", settings=rows)
        Sink().write(dumps(listed, request.output))
    return 0


def _shown(value: object) -> str:
    """A setting as YAML would have it, on one line."""
    is_plain = isinstance(value, str) and value.isprintable() and value != ""
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def _read_all(names: list[str], request: RunRequest, screen: Screen) -> list[NamedInput]:
    """All documents, so that a misspelt name is reported before the long run and not after it."""
    if not names:
        return [("", None)]
    inputs: list[NamedInput] = []
    with closing(screen.progress("", shows_text=False)) as progress:

        def on_page(done: int, total: int) -> None:
            if done % _PAGES_A_REPORT == 0:
                progress.busy(f"reading page {done:,} of {total:,}")

        for name in names:
            try:
                reading = Reading(request.pages, on_page)
                inputs.append((name, read_input(name, request.encoding, reading)))
            except SpecxError as error:
                if not request.keep_going:
                    raise
                inputs.append((name, error))
    failures = [found for _, found in inputs if isinstance(found, SpecxError)]
    if len(failures) == len(inputs):
        raise failures[0]
    return inputs


def _load(settings: Settings, screen: Screen) -> "Engine":
    is_demonstration = settings.preset.target.repo == "pocket/target"
    if is_demonstration and (screen.is_terminal or screen.verbose):
        screen.note("pocket is a small demonstration model; see specx presets for others")
    progress = screen.progress(settings.mode, shows_text=False)
    with closing(progress), downloads_shown(screen, progress):
        progress.busy(f"loading {settings.preset.name}")
        from specx.engine import load

        return load(
            settings.preset, device=settings.device, dtype=settings.dtype, offline=settings.offline
        )


def _run_all(job: Job, inputs: list[NamedInput], *, keeps_going: bool) -> int:
    several = len(inputs) > 1
    worst, failures = 0, 0
    for number, (name, found) in enumerate(inputs):
        label = f"{one_line(name)}: " if several else ""
        blank = "\n" if number > 0 else ""
        heading = f"{blank}==> {one_line(name)} <==\n" if several else ""
        try:
            if isinstance(found, SpecxError):
                raise found
            code = answer(job, found, label=label, heading=heading)
        except SpecxError as error:
            if not several:
                raise
            _report_failure(job, name, error)
            if not keeps_going:
                return error.exit_code
            failures += 1
            continue
        worst = max(worst, code)
        if job.interrupts.exit_code is not None:
            return job.interrupts.exit_code
    return SOME_FAILED if failures else worst


def _report_failure(job: Job, name: str, error: SpecxError) -> None:
    """A failed document among several: a message, and with ``-o jsonl`` a line in its place."""
    named = type(error)(f"{name}: {error.message}", reason=error.reason, hints=error.hints)
    job.screen.fail(error if name in error.message else named)
    if job.output == "jsonl":
        from specx.cli.result_json import error_json

        job.sink.write(error_json(error, job.output, document=name))
