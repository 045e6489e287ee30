"""One document's answer: prompt, stream, check, report."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specx.cli.console import Screen
from specx.cli.errors import DIFFERENCE
from specx.cli.format import closing_line, drawn, phases_line
from specx.cli.options import Format
from specx.cli.output_file import Sink, TraceFile
from specx.cli.progress import Progress
from specx.cli.settings import Settings
from specx.cli.show import AnswerDisplay, MapDisplay, Scene, TextLook, ThoughtSink
from specx.cli.signals import Interrupts, Stopped
from specx.core.stats import Prefill
from specx.errors import VerifyError, one_line
from specx.trace.map import map_prompt, why_nothing_is_retrieved

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, Verification
    from specx.trace.write import TraceWriter

#: How a command turns a document (None: there is none) into token ids.
Ask = Callable[["Engine", "Document | None"], "Prompt"]


@dataclass(frozen=True, slots=True)
class Job:
    """What stays the same for all documents of an invocation."""

    command: str
    output: Format
    settings: Settings
    engine: "Engine"
    ask: Ask
    screen: Screen
    sink: Sink
    interrupts: Interrupts
    look: TextLook
    trace: TraceFile | None

    def progress(self, *, shows_thoughts: bool = False) -> Progress:
        shows_text = self.output == "text" and self.sink.is_terminal
        return self.screen.progress(
            self.settings.mode, shows_text=shows_text, shows_thoughts=shows_thoughts
        )

    def display(self, prompt: "Prompt", heading: str) -> AnswerDisplay:
        """What shows an answer to ``prompt`` as it comes."""
        look = self.look if self.output == "text" else None
        thoughts = None
        if prompt.thoughts is not None and self.screen.is_terminal and not self.screen.quiet:
            thoughts = ThoughtSink(self.screen.color)
        progress = self.progress(shows_thoughts=thoughts is not None)
        return AnswerDisplay(progress, self.sink, look, heading, thoughts)


def answer(job: Job, document: "Document | None", *, label: str = "", heading: str = "") -> int:
    """Answer one document; 0, or ``DIFFERENCE`` if ``--verify`` found one.

    ``label`` names the document in messages and ``heading`` goes before its text, where there are
    several. Raises ``SpecxError``; what was written until then stays.
    """
    prompt = job.ask(job.engine, document)
    job.screen.detail(label + _plan(job, prompt))
    for sentence in () if document is None else _remarks(job, document):
        job.screen.detail(label + sentence)
    result = _stream(job, document, prompt, heading)
    verification = _verify(job, prompt, result)
    if job.output != "text":
        from specx.cli.result_json import dumps
        from specx.trace.result import result_object

        asked = (job.engine, job.command, job.settings)
        found = result_object(*asked, document, prompt, result, verification)
        job.sink.write(dumps(found, job.output))
    _report(job, result, verification, label)
    return DIFFERENCE if verification is not None and not verification.equal else 0


def _stream(job: Job, document: "Document | None", prompt: "Prompt", heading: str) -> "Result":
    settings = job.settings
    stream = job.engine.stream(
        prompt,
        mode=settings.mode,
        max_tokens=settings.max_tokens,
        max_think_tokens=settings.think_tokens,
        sampling=settings.sampling,
        stop=settings.stop,
        ignore_eos=settings.ignore_eos,
        records_trees=job.trace is not None,
    )
    display, writer = _watchers(job, document, prompt, heading)
    watchers = (display,) if writer is None else (display, writer)
    job.interrupts.on_first(stream.cancel)
    try:
        for event in stream:
            for watcher in watchers:
                if isinstance(event, Prefill):
                    watcher.prefill(event)
                else:
                    watcher.step(event)
    finally:
        job.interrupts.on_first(None)
        display.close()
    if writer is not None:
        writer.end(stream.result)
    return stream.result


def _watchers(
    job: Job, document: "Document | None", prompt: "Prompt", heading: str
) -> "tuple[AnswerDisplay | MapDisplay, TraceWriter | None]":
    """Who sees each event: the display and, with ``--trace``, the writer."""
    preset, mode, writer = job.settings.preset, job.settings.mode, None
    if job.trace is None and job.look.show != "map":
        return job.display(prompt, heading), None
    told = ("", ()) if document is None else (document.text, document.sections)
    document_map = map_prompt(prompt.tokens, job.engine.tokenizer, preset.retrieval, *told)
    if job.trace is not None:
        from specx.trace.write import TraceWriter, header_of

        asked = (job.engine, job.command, job.settings)
        header = header_of(*asked, document, prompt, document_map)
        writer = TraceWriter(job.trace.write, job.engine.tokenizer, header)
    if job.look.show != "map":
        return job.display(prompt, heading), writer
    note = why_nothing_is_retrieved(preset, mode, len(prompt.tokens))
    if note:
        job.screen.note(note)
    title = f"{document.name if document else 'a question'} · {len(prompt.tokens):,} tokens"
    scene = Scene(title, document_map, mode, note)
    return MapDisplay(scene, job.sink, job.look, heading), writer


def _verify(job: Job, prompt: "Prompt", result: "Result") -> "Verification | None":
    tokens = job.settings.check_tokens
    if tokens == 0 or job.interrupts.exit_code is not None:
        return None
    with closing(job.progress()) as progress, suppress(Stopped):
        progress.busy("checking against plain decoding")
        return job.engine.verify(prompt, result, first_tokens=tokens)
    return None  # the answer is complete; the exit code says the rest


def _report(job: Job, result: "Result", verification: "Verification | None", label: str) -> None:
    screen = job.screen
    for message in result.warnings:
        screen.warn(label + message)
    if result.mode_reason:
        screen.note(f"{label}mode {job.settings.mode}: {result.mode_reason}")
    screen.detail(label + phases_line(result.stats))
    endings = {"length": f"stopped by -n {result.max_tokens:,}", "interrupted": "interrupted"}
    thought = 0 if result.thought is None else result.thought.tokens
    remarks = (drawn(result.sampling), endings.get(result.finish_reason, ""))
    line = closing_line(result.stats, _verdict(verification), *remarks, thought_tokens=thought)
    screen.note(label + line)
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
    hints = (
        "in half precision, kernels round differently for different row counts",
        "--dtype float32 removes such differences",
    )
    return VerifyError(
        f"the text differs from plain decoding at token {difference.index + 1:,}",
        reason=f"plain decoding has {expected}, mode {job.settings.mode} has {got}{margin}",
        hints=() if job.engine.dtype == "float32" else hints,
    )


def _token(job: Job, token: int | None) -> str:
    if token is None:
        return "the end"
    return f"{one_line(repr(job.engine.tokenizer.decode([token])))} (id {token})"


def _remarks(job: Job, document: "Document") -> list[str]:
    """What happened between the file and the prompt."""
    names = job.engine.tokenizer.count_control_names(document.text)
    said = f"{names:,} names of control tokens in the document are text"
    return [*(f"left out: {each}" for each in document.removed), *([said] if names else [])]


def _plan(job: Job, prompt: "Prompt") -> str:
    settings, sampling = job.settings, job.settings.sampling
    parts = (
        f"preset {settings.preset.name}",
        f"mode {settings.mode}",
        f"{job.engine.device} {job.engine.dtype}",
        f"{len(prompt.tokens):,} prompt tokens ({prompt.document_tokens:,} of the document)",
        f"up to {settings.max_tokens:,} new",
        drawn(sampling) or "greedy",
    )
    return " · ".join(parts)
