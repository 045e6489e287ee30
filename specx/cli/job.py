"""One invocation of ``generate`` or ``summarize``, from options to exit code.

Goes in: a ``Request`` and the function that turns a document into a prompt. Comes out: answers in
the sink, everything else on stderr, an exit code. It does not know how an answer is made.
"""

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from specx.cli.answer import Ask, Job, answer
from specx.cli.console import Screen
from specx.cli.errors import SOME_FAILED, error_object
from specx.cli.fetching import downloads_shown
from specx.cli.format import tab_separated
from specx.cli.inputs import choose_inputs, read_input
from specx.cli.options import Request, Sources
from specx.cli.output_file import Sink, open_sink
from specx.cli.result_json import dumps
from specx.cli.settings import Settings, resolve, setting_rows
from specx.cli.show.displays import choose_look, show_legend
from specx.cli.show.recorder import TraceFile, open_trace
from specx.cli.signals import Interrupts
from specx.cli.terminal import one_line
from specx.errors import SpecxError, UsageError

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine

#: A document's name, and the document, none (a bare question), or why it cannot be read.
Input = tuple[str, "Document | SpecxError | None"]


def execute(
    command: str, request: Request, sources: Sources, ask: Ask, *, needs_document: bool = True
) -> int:
    """Run the command over all its documents; the exit code. Raises ``SpecxError``."""
    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    settings = resolve(request, sources)
    if request.show_settings:
        return _show_settings(request, settings, sources)
    names = choose_inputs(request.files, sys.stdin, command=command, needed=needs_document)
    if request.output == "json" and len(names) > 1:
        raise UsageError(
            "-o json writes one object, but there are several documents",
            hints=("-o jsonl writes one line for each",),
        )
    with (
        _open_trace(request, names) as trace,
        open_sink(request.out, force=request.force, inputs=names) as sink,
        Interrupts() as interrupts,
    ):
        inputs = _read_all(names, request)
        look = choose_look(request, sink, screen)
        engine = _load(settings, screen)
        if engine.kernels_note:
            screen.note(engine.kernels_note)
        show_legend(look, screen)
        job = Job(
            *(command, request.output, settings, screen, sink, interrupts, engine, ask),
            look=look,
            trace=trace,
        )
        code = _run_all(job, inputs, keeps_going=request.keep_going)
    if trace is None or trace.problem is None:
        return code
    # Told last, and not raised: the answer is complete, and stdout must have nothing else.
    screen.fail(trace.problem)
    return code or trace.problem.exit_code


def _open_trace(request: Request, names: list[str]) -> AbstractContextManager[TraceFile | None]:
    if request.trace is None:
        return nullcontext()
    if len(names) > 1:
        raise UsageError(
            "--trace records one run, but there are several documents",
            hints=("one document a command, each with a trace of its own",),
        )
    return open_trace(request.trace, force=request.force, inputs=names, out=request.out)


def _show_settings(request: Request, settings: Settings, sources: Sources) -> int:
    rows = setting_rows(request, settings, sources)
    if request.output == "text":
        cells = [(row.key, _shown(row.value), row.source) for row in rows]
        text = tab_separated(("key", "value", "source"), cells)
        Sink().write(text.expandtabs(28) if sys.stdout.isatty() else text)
    else:
        listed = [{"key": row.key, "value": row.value, "source": row.source} for row in rows]
        Sink().write(dumps({"schema": "specx.settings/1", "settings": listed}, request.output))
    return 0


def _shown(value: object) -> str:
    """A setting as YAML would have it, on one line."""
    is_plain = isinstance(value, str) and value.isprintable() and value != ""
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def _read_all(names: list[str], request: Request) -> list[Input]:
    """All documents, so that a misspelt name is told before the long run and not after it."""
    if not names:
        return [("", None)]
    inputs: list[Input] = []
    for name in names:
        try:
            inputs.append((name, read_input(name, request.encoding)))
        except SpecxError as error:
            if not request.keep_going or len(names) == 1:
                raise
            inputs.append((name, error))
    if all(isinstance(found, SpecxError) for _, found in inputs):
        raise next(found for _, found in inputs if isinstance(found, SpecxError))
    return inputs


def _load(settings: Settings, screen: Screen) -> "Engine":
    if screen.verbose < 2:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    is_demonstration = settings.preset.target.repo == "pocket/target"
    if is_demonstration and (screen.is_terminal or screen.verbose):
        screen.note("pocket is a small demonstration model; see specx presets for others")
    progress = screen.progress(settings.mode, shows_text=False)
    progress.busy(f"loading {settings.preset.name}")
    try:
        from specx.engine import load

        with downloads_shown(screen, progress):
            return load(
                settings.preset,
                device=settings.device,
                dtype=settings.dtype,
                offline=settings.offline,
            )
    finally:
        progress.close()


def _run_all(job: Job, inputs: list[Input], *, keeps_going: bool) -> int:
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
            _tell(job, name, error)
            if not keeps_going:
                return error.exit_code
            failures += 1
            continue
        worst = max(worst, code)
        if job.interrupts.exit_code is not None:
            return job.interrupts.exit_code
    return SOME_FAILED if failures else worst


def _tell(job: Job, name: str, error: SpecxError) -> None:
    """A failed document among several: a message, and with ``-o jsonl`` a line in its place."""
    named = type(error)(f"{name}: {error.message}", reason=error.reason, hints=error.hints)
    job.screen.fail(error if name in error.message else named)
    if job.output == "jsonl":
        job.sink.write(dumps(error_object(error, document=name), job.output))
