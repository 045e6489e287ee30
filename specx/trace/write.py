"""Writing ``specx.trace/1``: the events of a running request as lines.

Goes in: a request's facts and a stream's events. Comes out: one JSON line each, handed to the
caller at once. It does not know files or screens.
"""

import datetime
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from specx._version import __version__
from specx.core.config import SamplingConfig
from specx.core.stats import Prefill as Progress
from specx.core.stats import StepStats, StepTree
from specx.trace.map import DocumentMap, token_text, why_nothing_is_retrieved
from specx.trace.records import (
    End,
    Header,
    Input,
    Mark,
    Piece,
    Prefill,
    PresetName,
    Program,
    Retrieval,
    Step,
    StepTimes,
    Token,
    Totals,
    Tree,
)

if TYPE_CHECKING:
    from specx.checkpoints.tokenizer import Tokenizer
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, TextChunk


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of the engine, as far as a header tells it."""

    command: str
    mode: str
    max_tokens: int
    sampling: SamplingConfig
    stop: tuple[str, ...]
    ignore_eos: bool


class TraceWriter:
    """Turns a stream's events into lines; ``write`` gets each with its newline, at once."""

    def __init__(
        self,
        write: Callable[[str], None],
        tokenizer: "Tokenizer",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._write, self._tokenizer, self._clock = write, tokenizer, clock
        self._began_s = clock()
        self._texts: dict[int, str] = {}
        self._steps = 0

    def header(self, header: Header) -> None:
        """The first line; the clock starts here."""
        self._began_s = self._clock()
        self._line(header)

    def prefill(self, event: Progress) -> None:
        """The prompt has been read this far."""
        self._line(
            Prefill(
                kind="prefill",
                done_tokens=event.done_tokens,
                total_tokens=event.total_tokens,
                elapsed_s=self._elapsed_s(),
            )
        )

    def step(self, chunk: "TextChunk") -> None:
        """A step of a stream that records trees."""
        step, number = chunk.step, self._steps
        self._steps += 1
        own = chunk.text[len(chunk.accepted_text) :]
        parts = ((chunk.accepted_text, True), (own, False))
        self._line(
            Step(
                kind="step",
                number=number,
                pieces=[Piece(text=text, accepted=is_guess) for text, is_guess in parts if text],
                new_tokens=len(chunk.new_tokens),
                nodes=0 if step is None else step.nodes,
                accepted=0 if step is None else step.accepted,
                tree=None if chunk.tree is None else self._tree(chunk.tree),
                retrieved=None if chunk.retrieved_chunks is None else list(chunk.retrieved_chunks),
                draft_context_tokens=0 if step is None else step.draft_context_tokens,
                times_s=None if step is None else _times(step),
                elapsed_s=self._elapsed_s(),
            )
        )

    def end(self, result: "Result") -> None:
        """The last line."""
        stats = result.stats
        self._line(
            End(
                kind="end",
                finish_reason=result.finish_reason,
                text=result.text,
                mode_reason=result.mode_reason,
                totals=Totals(
                    prompt_tokens=stats.prompt_tokens,
                    new_tokens=stats.new_tokens,
                    steps=len(stats.steps),
                    accepted=stats.accepted,
                    prefill_target_s=stats.prefill_target_s,
                    prefill_draft_s=stats.prefill_draft_s,
                    tune_s=stats.tune_s,
                    ttft_s=stats.ttft_s,
                    decode_s=stats.decode_s,
                    total_s=stats.total_s,
                    peak_bytes=stats.memory.peak_bytes,
                ),
                elapsed_s=self._elapsed_s(),
            )
        )

    def _line(self, record: Header | Prefill | Step | End) -> None:
        self._write(record.model_dump_json() + "\n")

    def _elapsed_s(self) -> float:
        return round(self._clock() - self._began_s, 6)

    def _tree(self, tree: StepTree) -> Tree:
        return Tree(
            ids=list(tree.tokens),
            texts=[self._text(token) for token in tree.tokens],
            parents=list(tree.parents),
            path=list(tree.path),
            bonus=Token(id=tree.bonus, text=self._text(tree.bonus)),
        )

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = token_text(self._tokenizer, token)
        return self._texts[token]


def header_of(
    engine: "Engine",
    asked: Asked,
    document: "Document | None",
    prompt: "Prompt",
    document_map: DocumentMap,
) -> Header:
    """The header of a run that is about to start."""
    retrieval = asdict(document_map.retrieval)
    chunk_tokens = retrieval.pop("chunk_tokens")
    return Header(
        schema="specx.trace/1",
        kind="header",
        specx=Program(version=__version__),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=asked.command,
        preset=PresetName(name=engine.preset.name, sha256=engine.preset.fingerprint),
        mode=asked.mode,
        device=engine.device,
        dtype=engine.dtype,
        sampling=asked.sampling,
        max_tokens=asked.max_tokens,
        stop=list(asked.stop),
        ignore_eos=asked.ignore_eos,
        input=None if document is None else _input(document, prompt),
        prompt_tokens=len(prompt.tokens),
        chunk_tokens=chunk_tokens,
        chunks=list(document_map.chunks),
        ticks=[
            Mark(chunk=tick.chunk, kind=tick.kind, label=tick.label) for tick in document_map.ticks
        ],
        retrieval=Retrieval(**retrieval),
        note=why_nothing_is_retrieved(engine.preset, asked.mode, len(prompt.tokens)),
    )


def _input(document: "Document", prompt: "Prompt") -> Input:
    # A file name may hold bytes that are no text; JSON cannot.
    name = document.name.encode("utf-8", "replace").decode()
    return Input(
        name=name,
        format=document.format,
        bytes=document.bytes,
        sha256=document.sha256,
        tokens=prompt.document_tokens,
    )


def _times(step: StepStats) -> StepTimes:
    return StepTimes(
        draft=step.draft_s,
        draft_levels=list(step.draft_levels_s),
        verify=step.verify_s,
        accept=step.accept_s,
        commit=step.commit_s,
        retrieve=step.retrieve_s,
        host=step.host_s,
    )
