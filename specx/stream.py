"""One running request: events out of the decode loop, with text, totals and a result at the end.

In: a running request and a text stream. Out: ``Prefill`` and ``TextChunk`` events, then a
``Result``. It does not know how prompts were made or where text goes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from specx.checkpoints.tokenizer import Tokenizer
from specx.core.bounds import ThoughtBound
from specx.core.config import SamplingConfig
from specx.core.decode import Decoding, Emitted
from specx.core.stats import FinishReason, GenerationStats, Memory, Prefill, StepStats, StepTree
from specx.errors import ResourceError
from specx.memory import is_out_of_memory, peak_bytes
from specx.prompts import TextStream
from specx.thinking import ThoughtFinder, Thoughts, room_tokens

_EMPTY = "the model wrote nothing: it ended at once"
_OPEN = "the text ended within a thought: there is no answer"
_NO_ANSWER = "the model wrote a thought and no answer"


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Text that one verify step added. ``step`` is None for the first token (the prefill's).

    ``text`` is ``accepted_text`` (tokens that the draft guessed), then the target's own. It is the
    answer's; ``thought`` comes before it.
    """

    text: str
    new_tokens: tuple[int, ...]
    step: StepStats | None
    stats: GenerationStats  # running totals of the request
    accepted_text: str = ""
    retrieved_chunks: tuple[int, ...] | None = None  # when the draft's cache was refilled
    tree: StepTree | None = None  # when trees are recorded
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Thought:
    """What the model wrote before its answer, without the tags around it.

    ``end``: by the model itself, by the bound ``max_tokens`` on its ``tokens`` (tags included) or,
    when the text ended within it, not at all.
    """

    text: str
    tokens: int
    max_tokens: int
    end: Literal["model", "bound", "open"]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request. ``text`` is the answer; ``tokens`` has a thought's too."""

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
    thought: Thought | None = None
    max_think_tokens: int | None = None  # None: no thought was expected


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
        thought: "ThoughtText | None" = None,
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
        self._no_memory, self._warnings = no_memory, tuple(warnings)
        self._text, self._thought = text, thought
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
                chunk = self._completed(chunk)
                self._finish(chunk, reason)
            self._pieces.append(chunk.text)
            yield chunk
            if reason is not None:
                return

    def _take(self, event: Emitted) -> TextChunk:
        accepted = 0 if event.step is None else event.step.accepted
        thought, answer = "", event.tokens
        if self._thought is not None:
            thought, answer = self._thought.take(event.tokens, is_last=False)
        accepted = min(accepted, len(event.tokens))
        guessed = max(0, len(answer) - (len(event.tokens) - accepted))
        accepted_text, own_text, cut = self._answer(answer, guessed)
        new_tokens = event.tokens[: max(0, len(event.tokens) - cut)]
        self._tokens += new_tokens
        stats = self._stats
        stats.new_tokens = len(self._tokens)
        if event.step is not None:
            stats.steps.append(event.step.cut(len(new_tokens)))
            stats.decode_s += event.step.total_s
        stats.prefill_target_s = self._running.prefill_target_s
        stats.prefill_draft_s = self._running.prefill_draft_s
        stats.tune_s = self._running.tune_s
        stats.total_s = stats.ttft_s + stats.decode_s
        return TextChunk(
            text=accepted_text + own_text,
            new_tokens=tuple(new_tokens),
            step=None if event.step is None else stats.steps[-1],
            stats=stats,
            accepted_text=accepted_text,
            retrieved_chunks=event.retrieved_chunks,
            tree=event.tree,
            thought=thought,
        )

    def _answer(self, tokens: Sequence[int], guessed: int) -> tuple[str, str, int]:
        """The text of ``tokens``, of which the draft guessed the first, in two parts, and how many
        of the tokens come after a stop string. Blanks after a thought are left out."""
        before = self._text.consumed
        texts = [self._text.push(tokens[:guessed]) if guessed else ""]
        texts.append(self._text.push(tokens[guessed:]))
        cut = len(tokens) - (self._text.consumed - before)
        if self._thought is not None and tokens:
            texts = self._thought.after(*texts)
        return texts[0], texts[1], cut

    def _completed(self, last: TextChunk) -> TextChunk:
        """The last chunk with all the text that was held back."""
        thought, text = "", ""
        if self._thought is not None:
            thought, rest = self._thought.take([], is_last=True)
            text = "".join(self._answer(rest, 0)[:2])
        text += self._text.finish()
        return replace(last, text=last.text + text, thought=last.thought + thought)

    def _finish(self, last: TextChunk, reason: FinishReason) -> None:
        decoding, request = self._running, self._running.request
        cache = decoding.target.cache
        thought = None if self._thought is None else self._thought.thought()
        remark = _remark(self._tokens, thought, reason)
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
            warnings=(*self._warnings, *remark),
            thought=thought,
            max_think_tokens=None if request.thought is None else request.thought.max_tokens,
        )
        decoding.close()  # a stop string ends the text before it ends itself
        self._decoding = None

    @property
    def _running(self) -> Decoding:
        assert self._decoding is not None, "the request has ended"
        return self._decoding


class ThoughtText:
    """The text of an output's thought, and the tokens of the answer after it."""

    def __init__(self, tokenizer: Tokenizer, thoughts: Thoughts, max_tokens: int) -> None:
        finder = self._finder = ThoughtFinder(tokenizer, thoughts)
        self.bound = ThoughtBound(finder, max_tokens, finder.closing_id, room_tokens(max_tokens))
        self._tags = {finder.opening_id, finder.closing_id}  # else they are found in the text
        stop = (thoughts.closing,) if finder.closing_id is None else ()
        self._text = TextStream(tokenizer, stop)
        self._opening = thoughts.opening
        self._waiting: list[int] = []  # whether they are a thought's is not certain yet
        self._given = 0
        self._pieces: list[str] = []
        self._is_leading = True  # the answer has no text yet

    def take(self, tokens: Sequence[int], *, is_last: bool) -> tuple[str, list[int]]:
        """The output's next tokens, which ``finder`` has seen: the text that became certain of the
        thought, and the tokens of the answer."""
        self._waiting += tokens
        if self._finder.is_undecided and not is_last:
            return "", []
        count = max(0, self._finder.tokens - self._given)
        thought, answer = self._waiting[:count], self._waiting[count:]
        self._given, self._waiting = self._given + len(self._waiting), []
        text = self._text.push([token for token in thought if token not in self._tags])
        if is_last or not self._finder.is_open:
            text += self._text.finish()
        if text and not self._pieces:
            text = text.lstrip().removeprefix(self._opening).lstrip()
        if text:
            self._pieces.append(text)
        return text, answer

    def after(self, *texts: str) -> list[str]:
        """The answer's text without the blanks that part it from the thought."""
        found = list(texts)
        if self._finder.tokens and self._is_leading:
            found[0] = self._finder.rest.lstrip() + found[0]
            self._finder.rest = ""
            for number, text in enumerate(found):
                found[number] = text.lstrip()
                if found[number]:
                    self._is_leading = False
                    break
        return found

    def thought(self) -> Thought | None:
        """What has been taken in; None where the model did not think."""
        finder = self._finder
        if not finder.tokens:
            return None
        is_cut = finder.closing_id is not None and finder.tokens > self.bound.max_tokens
        end: Literal["model", "bound", "open"] = "bound" if is_cut else "model"
        text = "".join(self._pieces).strip()
        most = self.bound.max_tokens
        return Thought(text, finder.tokens, most, "open" if finder.is_open else end)


def _remark(
    tokens: Sequence[int], thought: Thought | None, reason: FinishReason
) -> tuple[str, ...]:
    """What is odd about a finished output, in a sentence."""
    if thought is not None and thought.end == "open":
        return (_OPEN,)
    bound: tuple[str, ...] = ()
    if thought is not None and thought.end == "bound":
        bound = (f"the thought was closed after {thought.tokens - 1:,} tokens",)
    if reason == "interrupted":
        return bound
    if not tokens:
        return (_EMPTY,)
    return (*bound, *((_NO_ANSWER,) if thought and thought.tokens == len(tokens) else ()))
