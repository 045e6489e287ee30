"""One running request: events out of the decode loop, with text, totals and a result at the end.

In: a running request and a text stream. Out: ``Prefill`` and ``TextChunk`` events, then a
``Result``. It does not know how prompts were made or where text goes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from specx.core.config import SamplingConfig
from specx.core.decode import Decoding, Emitted
from specx.core.stats import FinishReason, GenerationStats, Memory, Prefill, StepStats, StepTree
from specx.errors import ResourceError
from specx.memory import is_out_of_memory, peak_bytes
from specx.prompts import TextStream

_EMPTY = "the model wrote nothing: it ended at once"


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Text that one verify step added. ``step`` is None for the first token (the prefill's).

    ``text`` is ``accepted_text`` (tokens that the draft guessed), then the target's own.
    """

    text: str
    new_tokens: tuple[int, ...]
    step: StepStats | None
    stats: GenerationStats  # running totals of the request
    accepted_text: str = ""
    retrieved_chunks: tuple[int, ...] | None = None  # when the draft's cache was refilled
    tree: StepTree | None = None  # when trees are recorded


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stats: GenerationStats
    mode: str
    mode_reason: str  # why ``auto`` left drafting; "" otherwise
    sampling: SamplingConfig
    max_tokens: int
    ignore_eos: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """First output token on which two runs disagree; ``margin`` is the target's logit distance
    between the two (after filters and noise when sampling)."""

    index: int
    expected: int | None  # plain decoding's token; None where plain decoding had ended
    got: int | None
    margin: float | None


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of decoding the same prompt again, plainly."""

    checked: int  # tokens compared
    equal: bool
    first_difference: Difference | None = None


class Stream:
    """Iterator over a request's events; ``result`` is there once it has ended."""

    def __init__(
        self,
        decoding: Decoding,
        text: TextStream,
        *,
        mode: str,
        ignore_eos: bool,
        load_s: float,
        weights_bytes: int,
        no_memory: Callable[[BaseException], ResourceError],
        warnings: Sequence[str] = (),
    ) -> None:
        """``no_memory`` frees what it can and says what was lacking."""
        self._decoding: Decoding | None = decoding  # until the end: its caches are large
        self._no_memory, self._warnings, self._text = no_memory, tuple(warnings), text
        self._mode, self._ignore_eos, self._weights_bytes = mode, ignore_eos, weights_bytes
        self._stats = GenerationStats(prompt_tokens=len(decoding.request.prompt), load_s=load_s)
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._result: Result | None = None
        self._events = self._decode()

    def __iter__(self) -> Iterator[Prefill | TextChunk]:
        return self

    def __next__(self) -> Prefill | TextChunk:
        try:
            return next(self._events)
        except (RuntimeError, MemoryError) as error:
            self._decoding = None
            if not is_out_of_memory(error):
                raise
            raise self._no_memory(error) from error

    def cancel(self) -> None:
        """End after the current step; safe from a signal handler or another thread."""
        decoding = self._decoding  # another thread may end it meanwhile
        if decoding is not None:
            decoding.cancel()

    @property
    def result(self) -> Result:
        """The finished request. Raises ``RuntimeError`` while it is still running."""
        if self._result is None:
            raise RuntimeError("the stream has not ended yet: iterate over it first")
        return self._result

    def _decode(self) -> Iterator[Prefill | TextChunk]:
        began = time.perf_counter()
        reason: FinishReason | None = None
        for event in self._running.run():
            if isinstance(event, Prefill):
                yield event
                continue
            if event.step is None:
                self._stats.ttft_s = time.perf_counter() - began
            reason = event.finish_reason
            chunk = self._take(event)
            if self._text.is_stopped:
                reason = "stop"
            if reason is not None:
                chunk = replace(chunk, text=chunk.text + self._text.finish())
                self._finish(chunk, reason)
            self._pieces.append(chunk.text)
            yield chunk
            if reason is not None:
                return

    def _take(self, event: Emitted) -> TextChunk:
        accepted = 0 if event.step is None else event.step.accepted
        accepted_text = self._text.push(event.tokens[:accepted]) if accepted else ""
        text = accepted_text + self._text.push(event.tokens[accepted:])
        new_tokens = event.tokens[: self._text.consumed - len(self._tokens)]
        self._tokens += new_tokens
        stats = self._stats
        stats.new_tokens = len(self._tokens)
        if event.step is not None:
            stats.steps.append(replace(event.step, new_tokens=len(new_tokens)))
            stats.decode_s += event.step.total_s
        stats.prefill_target_s = self._running.prefill_target_s
        stats.prefill_draft_s = self._running.prefill_draft_s
        stats.tune_s = self._running.tune_s
        stats.total_s = stats.ttft_s + stats.decode_s
        chunks, tree = event.retrieved_chunks, event.tree
        return TextChunk(text, tuple(new_tokens), event.step, stats, accepted_text, chunks, tree)

    def _finish(self, last: TextChunk, reason: FinishReason) -> None:
        decoding, request = self._running, self._running.request
        cache = decoding.target.cache
        is_empty = not self._tokens and reason != "interrupted"
        self._stats.memory = Memory(
            weights_bytes=self._weights_bytes,
            kv_target_bytes=cache.row_bytes * cache.capacity,
            kv_draft_bytes=decoding.drafter.cache_bytes,
            peak_bytes=peak_bytes(decoding.target.model.device),
        )
        self._result = Result(
            text="".join([*self._pieces, last.text]),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            stats=self._stats,
            mode=self._mode,
            mode_reason="" if decoding.governor is None else decoding.governor.reason,
            sampling=request.sampler.config,
            max_tokens=request.max_tokens,
            ignore_eos=self._ignore_eos,
            warnings=(*self._warnings, *((_EMPTY,) if is_empty else ())),
        )
        decoding.close()  # a stop string ends the text before it ends itself
        self._decoding = None

    @property
    def _running(self) -> Decoding:
        assert self._decoding is not None, "the request has ended"
        return self._decoding
