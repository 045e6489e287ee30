"""Writing ``specx.trace/1``: the events of a running request as lines.

It does not know files: each line goes to the caller at once.
"""

import datetime
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from specx._version import __version__
from specx.core.stats import Prefill, StepStats, StepTree
from specx.trace.map import DocumentMap, token_text, why_nothing_is_retrieved
from specx.trace.records import (
    Asked,
    End,
    Header,
    KeptChunks,
    Mark,
    PrefillLine,
    PresetName,
    Program,
    StepLine,
    StepTimes,
    TextPiece,
    Token,
    Totals,
    TreeFacts,
)
from specx.trace.result import input_facts

if TYPE_CHECKING:
    from specx.checkpoints.tokenizer import Tokenizer
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, TextChunk


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
        """Write the first line; the clock starts here."""
        self._began_s = self._clock()
        self._line(header)

    def prefill(self, event: Prefill) -> None:
        """Write how far the prompt has been read."""
        done, total = event.done_tokens, event.total_tokens
        elapsed_s = self._elapsed_s()
        self._line(PrefillLine(done_tokens=done, total_tokens=total, elapsed_s=elapsed_s))

    def step(self, chunk: "TextChunk") -> None:
        """Write a step of a stream that records trees."""
        step = chunk.step
        own = chunk.text[len(chunk.accepted_text) :]
        parts = ((chunk.accepted_text, True), (own, False))
        self._line(
            StepLine(
                number=self._steps,
                pieces=[TextPiece(text=text, accepted=guessed) for text, guessed in parts if text],
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
        self._steps += 1

    def end(self, result: "Result") -> None:
        """Write the last line."""
        stats = result.stats
        sums = {name: getattr(stats, name) for name in Totals.model_fields if name.endswith("_s")}
        totals = Totals(
            prompt_tokens=stats.prompt_tokens,
            new_tokens=stats.new_tokens,
            steps=len(stats.steps),
            accepted=stats.accepted,
            peak_bytes=stats.memory.peak_bytes,
            **sums,
        )
        self._line(
            End(
                finish_reason=result.finish_reason,
                text=result.text,
                mode_reason=result.mode_reason,
                totals=totals,
                elapsed_s=self._elapsed_s(),
            )
        )

    def _line(self, record: Header | PrefillLine | StepLine | End) -> None:
        self._write(record.model_dump_json(by_alias=True) + "\n")

    def _elapsed_s(self) -> float:
        return round(self._clock() - self._began_s, 6)

    def _tree(self, tree: StepTree) -> TreeFacts:
        return TreeFacts(
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
    command: str,
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
        specx=Program(version=__version__),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        preset=PresetName(name=engine.preset.name, sha256=engine.preset.fingerprint),
        mode=asked.mode,
        device=engine.device,
        dtype=engine.dtype,
        sampling=asked.sampling,
        max_tokens=asked.max_tokens,
        stop=list(asked.stop),
        ignore_eos=asked.ignore_eos,
        input=None if document is None else input_facts(document, prompt),
        prompt_tokens=len(prompt.tokens),
        chunk_tokens=chunk_tokens,
        chunks=list(document_map.chunks),
        ticks=[Mark(**asdict(tick)) for tick in document_map.ticks],
        retrieval=KeptChunks(**retrieval),
        note=why_nothing_is_retrieved(engine.preset, asked.mode, len(prompt.tokens)),
    )


def _times(step: StepStats) -> StepTimes:
    return StepTimes(**{phase: getattr(step, f"{phase}_s") for phase in StepTimes.model_fields})
