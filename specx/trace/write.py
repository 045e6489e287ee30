"""Writing ``specx.trace/1``: the events of a running request as lines.

It does not know files: each line goes to the caller at once.
"""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from specx.core.stats import Prefill, StepStats, StepTree
from specx.trace.map import DocumentMap, token_text, why_nothing_is_retrieved
from specx.trace.records import (
    Asked,
    End,
    Header,
    KeptChunks,
    PrefillLine,
    StepLine,
    StepTimes,
    TextPiece,
    Token,
    Totals,
    TreeFacts,
)
from specx.trace.result import run_facts

if TYPE_CHECKING:
    from specx.checkpoints.tokenizer import Tokenizer
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt
    from specx.stream import Result, TextChunk

_NO_STEP = StepStats(nodes=0, depth=0, accepted=0, new_tokens=0)  # the prefill's


class TraceWriter:
    """Turns a stream's events into lines; ``write`` gets each with its newline, at once.

    The clock starts when the writer is made, with ``header`` as the first line.
    """

    def __init__(
        self, write: Callable[[str], None], tokenizer: "Tokenizer", header: Header
    ) -> None:
        self._write, self._began_s, self._steps = write, time.perf_counter(), 0
        self._text = functools.cache(functools.partial(token_text, tokenizer))
        self._line(header)

    def prefill(self, event: Prefill) -> None:
        """Write how far the prompt has been read."""
        self._line(PrefillLine.of(event, kind="prefill", elapsed_s=self._elapsed_s()))

    def step(self, chunk: "TextChunk") -> None:
        """Write a step of a stream that records trees."""
        step = chunk.step or _NO_STEP
        own = chunk.text[len(chunk.accepted_text) :]
        parts = ((chunk.accepted_text, True), (own, False))
        self._line(
            StepLine.of(
                step,
                kind="step",
                number=self._steps,
                pieces=[TextPiece(text=text, accepted=guessed) for text, guessed in parts if text],
                thought=chunk.thought,
                new_tokens=len(chunk.new_tokens),
                tree=None if chunk.tree is None else self._tree(chunk.tree),
                retrieved=chunk.retrieved_chunks,
                times_s=None if chunk.step is None else StepTimes.of(step, "_s"),
                elapsed_s=self._elapsed_s(),
            )
        )
        self._steps += 1

    def end(self, result: "Result") -> None:
        """Write the last line."""
        stats = result.stats
        peak_bytes = stats.memory.peak_bytes
        totals = Totals.of(stats, steps=len(stats.steps), peak_bytes=peak_bytes)
        elapsed_s = self._elapsed_s()
        self._line(End.of(result, kind="end", totals=totals, elapsed_s=elapsed_s))

    def _line(self, record: Header | PrefillLine | StepLine | End) -> None:
        self._write(record.model_dump_json(by_alias=True) + "\n")

    def _elapsed_s(self) -> float:
        return round(time.perf_counter() - self._began_s, 6)

    def _tree(self, tree: StepTree) -> TreeFacts:
        return TreeFacts.of(
            tree,
            ids=tree.tokens,
            texts=[self._text(token) for token in tree.tokens],
            bonus=Token(id=tree.bonus, text=self._text(tree.bonus)),
        )


def header_of(
    engine: "Engine",
    command: str,
    asked: Asked,
    document: "Document | None",
    prompt: "Prompt",
    document_map: DocumentMap,
) -> Header:
    """The header of a run that is about to start."""
    return Header.of(
        asked,
        schema="specx.trace/1",
        kind="header",
        **run_facts(engine, command, document, prompt),
        device=engine.device,
        dtype=engine.dtype,
        prompt_tokens=len(prompt.tokens),
        chunk_tokens=document_map.retrieval.chunk_tokens,
        chunks=document_map.chunks,
        ticks=document_map.ticks,
        retrieval=KeptChunks.of(document_map.retrieval),
        note=why_nothing_is_retrieved(engine.preset, asked.mode, len(prompt.tokens)),
    )
