"""One document's answer: prompt, stream, check, report.

Goes in: a ``Job`` and a document. Comes out: text or JSON in the job's sink, progress and stats on
its screen, an exit code. It does not know options' defaults, files or how models run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specx.cli.console import Screen
from specx.cli.errors import DIFFERENCE
from specx.cli.format import closing_line, phases_line
from specx.cli.options import Format
from specx.cli.output_file import Sink
from specx.cli.progress import Progress
from specx.cli.result_json import Run, dumps, result_object
from specx.cli.settings import Settings
from specx.cli.show.displays import AcceptDisplay, Display, Look, MapDisplay
from specx.cli.show.mapview import Scene
from specx.cli.show.recorder import TraceFile
from specx.cli.signals import Interrupts, Stopped
from specx.cli.terminal import one_line
from specx.core.stats import Prefill
from specx.environment import environment
from specx.errors import VerifyError

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, Verification
    from specx.trace.map import DocumentMap
    from specx.trace.write import TraceWriter

#: How a command turns a document (None: there is none) into token ids.
Ask = Callable[["Engine", "Document | None"], "Prompt"]


@dataclass(frozen=True, slots=True)
class Job:
    """What stays the same for all documents of an invocation."""

    command: str
    output: Format
    settings: Settings
    screen: Screen
    sink: Sink
    interrupts: Interrupts
    engine: "Engine"
    ask: Ask
    look: Look = field(default_factory=Look)
    trace: TraceFile | None = None

    def progress(self) -> Progress:
        """The display that fits this job's screen and sink."""
        shows_text = self.output == "text" and self.sink.is_terminal
        return self.screen.progress(self.settings.mode, shows_text=shows_text)


def answer(job: Job, document: "Document | None", *, label: str = "", heading: str = "") -> int:
    """Answer one document; 0, or ``DIFFERENCE`` if ``--verify`` found one.

    ``label`` names the document in messages and ``heading`` goes before its text, where there are
    several. Raises ``SpecxError``; what was written until then stays.
    """
    prompt = job.ask(job.engine, document)
    job.screen.detail(label + _plan(job, prompt))
    result = _stream(job, document, prompt, heading)
    verification = _verify(job, prompt, result)
    if job.output != "text":
        _write_object(job, document, prompt, result, verification)
    _report(job, result, verification, label)
    return DIFFERENCE if verification is not None and not verification.equal else 0


def _stream(job: Job, document: "Document | None", prompt: "Prompt", heading: str) -> "Result":
    settings = job.settings
    stream = job.engine.stream(
        prompt,
        mode=settings.mode,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        stop=settings.stop,
        ignore_eos=settings.ignore_eos,
        records_trees=job.trace is not None,
    )
    document_map = _map(job, document, prompt)
    writer = _writer(job, document, prompt, document_map)
    display = _display(job, document, prompt, document_map, heading)
    job.interrupts.on_first(stream.cancel)
    try:
        for event in stream:
            if isinstance(event, Prefill):
                display.prefill(event)
                if writer is not None:
                    writer.prefill(event)
                continue
            display.chunk(event)
            if writer is not None:
                writer.step(event)
    finally:
        job.interrupts.on_first(None)
        display.close()
    if writer is not None:
        writer.end(stream.result)
    return stream.result


def _map(job: Job, document: "Document | None", prompt: "Prompt") -> "DocumentMap | None":
    """The document's map, if anything will use it."""
    if job.trace is None and job.look.show != "map":
        return None
    from specx.trace.map import map_prompt

    text = "" if document is None else document.text
    retrieval = job.settings.preset.retrieval
    return map_prompt(prompt.tokens, job.engine.tokenizer, retrieval, text)


def _writer(
    job: Job,
    document: "Document | None",
    prompt: "Prompt",
    document_map: "DocumentMap | None",
) -> "TraceWriter | None":
    if job.trace is None or document_map is None:
        return None
    from specx.trace.write import Asked, TraceWriter, header_of

    settings = job.settings
    asked = Asked(
        command=job.command,
        mode=settings.mode,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        stop=settings.stop,
        ignore_eos=settings.ignore_eos,
    )
    writer = TraceWriter(job.trace.write, job.engine.tokenizer)
    writer.header(header_of(job.engine, asked, document, prompt, document_map))
    return writer


def _display(
    job: Job,
    document: "Document | None",
    prompt: "Prompt",
    document_map: "DocumentMap | None",
    heading: str,
) -> Display:
    if job.look.show == "map" and document_map is not None:
        from specx.trace.map import why_nothing_is_retrieved

        settings = job.settings
        note = why_nothing_is_retrieved(settings.preset, settings.mode, len(prompt.tokens))
        if note:
            job.screen.note(note)
        name = "a question" if document is None else document.name
        scene = Scene(f"{name} · {len(prompt.tokens):,} tokens", document_map, note)
        return MapDisplay(scene, job.sink, job.look, mode=settings.mode, heading=heading)
    if job.look.show == "accept":
        return AcceptDisplay(job.progress(), job.sink, job.look, heading=heading)
    return Display(job.progress(), job.sink, shows_text=job.output == "text", heading=heading)


def _verify(job: Job, prompt: "Prompt", result: "Result") -> "Verification | None":
    check = job.settings.check
    if not check.is_wanted or job.interrupts.exit_code is not None:
        return None
    progress = job.progress()
    progress.busy("checking against plain decoding")
    try:
        return job.engine.verify(prompt, result, first_tokens=check.first_tokens)
    except Stopped:
        return None  # the answer is complete; the exit code tells the rest
    finally:
        progress.close()


def _write_object(
    job: Job,
    document: "Document | None",
    prompt: "Prompt",
    result: "Result",
    verification: "Verification | None",
) -> None:
    run = Run(
        command=job.command,
        settings=job.settings,
        engine=job.engine,
        document=document,
        prompt=prompt,
        result=result,
        verification=verification,
        environment=environment(job.engine.device),
    )
    job.sink.write(dumps(result_object(run), job.output))


def _report(job: Job, result: "Result", verification: "Verification | None", label: str) -> None:
    screen = job.screen
    for message in result.warnings:
        screen.warn(label + message)
    if result.mode_reason:
        screen.note(f"{label}mode {job.settings.mode}: {result.mode_reason}")
    screen.detail(label + phases_line(result.stats))
    endings = {"length": f"stopped by -n {result.max_tokens:,}", "interrupted": "interrupted"}
    ending = endings.get(result.finish_reason, "")
    screen.note(label + closing_line(result.stats, _verdict(verification), ending))
    if verification is not None and not verification.equal:
        screen.fail(_difference(job, verification))


def _verdict(verification: "Verification | None") -> str:
    if verification is None:
        return "not checked"
    if verification.equal:
        return f"identical ({verification.checked:,} tokens checked)"
    difference = verification.first_difference
    return "no" if difference is None else f"no, from token {difference.index + 1:,}"


def _difference(job: Job, verification: "Verification") -> VerifyError:
    difference = verification.first_difference
    if difference is None:
        return VerifyError("the text differs from plain decoding")
    margin = "" if difference.margin is None else f"; logit margin {difference.margin:.3g}"
    expected, got = (_token(job, token) for token in (difference.expected, difference.got))
    hints = []
    if job.engine.dtype != "float32":
        hints.append("in half precision, kernels round differently for different row counts")
        hints.append("--dtype float32 removes such differences")
    return VerifyError(
        f"the text differs from plain decoding at token {difference.index + 1:,}",
        reason=f"plain decoding has {expected}, mode {job.settings.mode} has {got}{margin}",
        hints=hints,
    )


def _token(job: Job, token: int | None) -> str:
    if token is None:
        return "the end"
    return f"{one_line(repr(job.engine.tokenizer.decode([token])))} (id {token})"


def _plan(job: Job, prompt: "Prompt") -> str:
    settings = job.settings
    sampling = settings.sampling
    how = (
        "greedy"
        if sampling.temperature == 0
        else f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    )
    return " · ".join(
        (
            f"preset {settings.preset.name}",
            f"mode {settings.mode}",
            f"{job.engine.device} {job.engine.dtype}",
            f"{len(prompt.tokens):,} prompt tokens ({prompt.document_tokens:,} of the document)",
            f"up to {settings.max_tokens:,} new",
            how,
        )
    )
