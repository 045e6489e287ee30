"""Writing ``specx.trace/1``: the events of a running request as lines."""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from specx.core.stats import Prefill, StepStats, StepTree
from specx.trace import records
from specx.trace.map import DocumentMap, token_text, why_nothing_is_retrieved
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
        self, write: Callable[[str], None], tokenizer: "Tokenizer", header: records.Header
    ) -> None:
        self._write, self._began_s, self._steps = write, time.perf_counter(), 0
        self._text = functools.cache(functools.partial(token_text, tokenizer))
        self._line(header)

    def prefill(self, event: Prefill) -> None:
        elapsed_s = self._elapsed_s()
        self._line(records.PrefillLine.of(event, kind="prefill", elapsed_s=elapsed_s))

    def step(self, chunk: "TextChunk") -> None:
        """Write a step of a stream that records trees."""
        own = chunk.text[len(chunk.accepted_text) :]
        parts = {"text": chunk.accepted_text, "accepted": True}, {"text": own, "accepted": False}
        step = records.StepLine.of(
            chunk.step or _NO_STEP,
            kind="step",
            number=self._steps,
            pieces=[part for part in parts if part["text"]],
            thought=chunk.thought,
            new_tokens=len(chunk.new_tokens),
            tree=chunk.tree and self._tree(chunk.tree),
            retrieved=chunk.retrieved_chunks,
            times_s=chunk.step and records.StepTimes.of(chunk.step, "_s"),
            elapsed_s=self._elapsed_s(),
        )
        self._line(step)
        self._steps += 1

    def end(self, result: "Result") -> None:
        stats, elapsed_s = result.stats, self._elapsed_s()
        peak_bytes = stats.memory.peak_bytes
        totals = records.Totals.of(stats, steps=len(stats.steps), peak_bytes=peak_bytes)
        self._line(records.End.of(result, kind="end", totals=totals, elapsed_s=elapsed_s))

    def _line(self, record: records.AnyLine) -> None:
        self._write(record.model_dump_json(by_alias=True) + "\n")

    def _elapsed_s(self) -> float:
        return round(time.perf_counter() - self._began_s, 6)

    def _tree(self, tree: StepTree) -> records.TreeFacts:
        texts = [self._text(token) for token in tree.tokens]
        bonus = records.Token(id=tree.bonus, text=self._text(tree.bonus))
        return records.TreeFacts.of(tree, ids=tree.tokens, texts=texts, bonus=bonus)


def header_of(
    engine: "Engine",
    command: str,
    asked: records.Asked,
    document: "Document | None",
    prompt: "Prompt",
    document_map: DocumentMap,
) -> records.Header:
    """The header of a run that is about to start."""
    return records.Header.of(
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
        retrieval=records.KeptChunks.of(document_map.retrieval),
        note=why_nothing_is_retrieved(engine.preset, asked.mode, len(prompt.tokens)),
    )
