"""Events of a running request: order, cancelling, and totals that add up."""

import threading

import pytest

import specx
from specx import Prefill, Stream, TextChunk
from specx.core.config import MODES, SamplingConfig
from specx.engine import Engine
from specx.prompts import Prompt
from specx.stream import Result
from tests.helpers import PairDirs, preset_for, save_pair, story

CHUNK = 64


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    pair: PairDirs = save_pair(tmp_path_factory.mktemp("stream"), draft_weights="noisy")
    preset = preset_for(pair, {"prefill_chunk_tokens": CHUNK})
    return specx.load(preset, device="cpu", offline=True)


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> Prompt:
    return engine.prompt(story(150), "What happened?")


@pytest.fixture(scope="module")
def plain(engine: Engine, prompt: Prompt) -> Result:
    return engine.generate(prompt, mode="plain", max_tokens=48)


@pytest.fixture(scope="module")
def ending(engine: Engine, prompt: Prompt) -> SamplingConfig:
    """Draws the end token among the first 24."""
    for seed in range(1000):
        sampling = SamplingConfig(temperature=3.0, seed=seed)
        result = engine.generate(prompt, mode="plain", max_tokens=24, sampling=sampling)
        if result.finish_reason == "eos":
            return sampling
    raise AssertionError("no seed draws the end token")


class TestEvents:
    @pytest.mark.parametrize("mode", MODES)
    def test_prefill_then_chunks(
        self, engine: Engine, prompt: Prompt, plain: Result, mode: str
    ) -> None:
        stream = engine.stream(prompt, mode=mode, max_tokens=48)
        events = list(stream)
        total = len(prompt.tokens)
        steps = -(-total // CHUNK)
        assert all(isinstance(event, Prefill) for event in events[:steps])
        assert [event.done_tokens for event in events[:steps]] == [
            min(total, CHUNK * (number + 1)) for number in range(steps)
        ]
        elapsed = [event.elapsed_s for event in events[:steps]]
        assert elapsed == sorted(elapsed)
        assert {event.total_tokens for event in events[:steps]} == {total}

        chunks = events[steps:]
        assert all(isinstance(chunk, TextChunk) for chunk in chunks)
        assert chunks[0].step is None
        assert len(chunks[0].new_tokens) == 1
        assert all(chunk.step is not None for chunk in chunks[1:])
        assert "".join(chunk.text for chunk in chunks) == stream.result.text == plain.text
        tokens = tuple(token for chunk in chunks for token in chunk.new_tokens)
        assert tokens == stream.result.tokens == plain.tokens
        assert all(chunk.stats is stream.result.stats for chunk in chunks)

    def test_the_running_totals_run(self, engine: Engine, prompt: Prompt) -> None:
        seen = 0
        for event in engine.stream(prompt, mode="specx", max_tokens=12):
            if isinstance(event, TextChunk):
                seen += len(event.new_tokens)
                assert event.stats.new_tokens == seen
                assert event.stats.total_s >= event.stats.ttft_s > 0
        assert seen == 12

    def test_the_result_comes_at_the_end(self, engine: Engine, prompt: Prompt) -> None:
        stream = engine.stream(prompt, mode="specx", max_tokens=8)
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.result
        next(stream)
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.result
        for _ in stream:
            pass
        assert len(stream.result.tokens) == 8
        assert next(stream, None) is None

    def test_a_stream_is_its_own_iterator(self, engine: Engine, prompt: Prompt) -> None:
        stream = engine.stream(prompt, max_tokens=1)
        assert iter(stream) is stream

    def test_an_abandoned_stream_disturbs_nobody(
        self, engine: Engine, prompt: Prompt, plain: Result
    ) -> None:
        next(engine.stream(prompt, mode="specx"))
        assert engine.generate(prompt, mode="specx", max_tokens=48).tokens == plain.tokens


def cancel_after(stream: Stream, kind: type, count: int) -> Result:
    """Cancel at the ``count``-th event of ``kind``, then read on to the end."""
    for event in stream:
        count -= isinstance(event, kind)
        if count == 0:
            stream.cancel()
    return stream.result


class TestCancel:
    def test_before_the_start(self, engine: Engine, prompt: Prompt) -> None:
        stream = engine.stream(prompt)
        stream.cancel()
        events = list(stream)
        assert len(events) == 1
        assert stream.result.finish_reason == "interrupted"
        assert (stream.result.tokens, stream.result.text) == ((), "")

    @pytest.mark.parametrize("mode", MODES)
    def test_during_the_prefill(self, engine: Engine, prompt: Prompt, mode: str) -> None:
        stream = engine.stream(prompt, mode=mode)
        events = []
        for event in stream:
            events.append(event)
            stream.cancel()
        result = stream.result
        assert [type(event) for event in events] == [Prefill, TextChunk]
        assert result.finish_reason == "interrupted"
        assert (result.tokens, result.text, result.stats.steps) == ((), "", [])
        assert result.stats.new_tokens == 0
        assert result.stats.prefill_target_s > 0
        assert result.stats.decode_tokens_per_s == 0

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("count", [1, 3])
    def test_during_decoding(
        self, engine: Engine, prompt: Prompt, plain: Result, mode: str, count: int
    ) -> None:
        stream = engine.stream(prompt, mode=mode, max_tokens=48)
        result = cancel_after(stream, TextChunk, count)
        assert result.finish_reason == "interrupted"
        assert len(result.stats.steps) == count  # the step under way is finished
        assert count < len(result.tokens) < 48
        assert result.tokens == plain.tokens[: len(result.tokens)]
        assert plain.text.startswith(result.text.rstrip("\ufffd"))
        assert engine.verify(prompt, result).equal

    def test_after_the_end(self, engine: Engine, prompt: Prompt) -> None:
        stream = engine.stream(prompt, max_tokens=2)
        list(stream)
        stream.cancel()
        assert stream.result.finish_reason == "length"

    def test_from_another_thread(self, engine: Engine, prompt: Prompt) -> None:
        stream = engine.stream(prompt, mode="plain", max_tokens=3000, ignore_eos=True)
        timer = threading.Timer(0.2, stream.cancel)
        timer.start()
        for _ in stream:
            pass
        timer.join()
        assert stream.result.finish_reason == "interrupted"

    def test_the_engine_goes_on(self, engine: Engine, prompt: Prompt, plain: Result) -> None:
        cancel_after(engine.stream(prompt, mode="specx"), TextChunk, 2)
        assert engine.generate(prompt, mode="specx", max_tokens=48).tokens == plain.tokens


def check_totals(result: Result, prompt: Prompt, engine: Engine) -> None:
    stats = result.stats
    assert stats.prompt_tokens == len(prompt.tokens)
    assert stats.new_tokens == len(result.tokens)
    # The first token is the prefill's; it is missing when the text is empty.
    first = 1 if result.tokens else 0
    assert sum(step.new_tokens for step in stats.steps) + first == stats.new_tokens
    for step in stats.steps:
        assert 0 <= step.accepted <= step.depth < step.nodes
        assert 0 <= step.new_tokens <= step.accepted + 1
        assert min(step.draft_s, step.verify_s, step.accept_s, step.commit_s, step.retrieve_s) >= 0
    for step in stats.steps[:-1]:
        assert step.new_tokens == step.accepted + 1
    assert 0 <= stats.prefill_target_s + stats.prefill_draft_s + stats.tune_s <= stats.ttft_s
    assert stats.ttft_s <= stats.total_s == stats.ttft_s + stats.decode_s
    assert stats.decode_s == pytest.approx(sum(step.total_s for step in stats.steps))
    histogram = stats.accepted_histogram
    assert sum(histogram) == len(stats.steps)
    assert sum(accepted * count for accepted, count in enumerate(histogram)) == stats.accepted
    assert stats.accepted <= stats.drafted
    assert stats.load_s == engine.load_s
    memory = stats.memory
    assert memory.weights_bytes == engine.weights_bytes > 0
    assert memory.peak_bytes > memory.kv_target_bytes > 0
    assert (memory.kv_draft_bytes > 0) == (result.mode != "plain")


class TestTotals:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("count", [1, 2, 48])
    def test_by_length(self, engine: Engine, prompt: Prompt, mode: str, count: int) -> None:
        result = engine.generate(prompt, mode=mode, max_tokens=count)
        check_totals(result, prompt, engine)

    @pytest.mark.parametrize("mode", MODES)
    def test_by_an_end_token(
        self, engine: Engine, prompt: Prompt, ending: SamplingConfig, mode: str
    ) -> None:
        result = engine.generate(prompt, mode=mode, max_tokens=24, sampling=ending)
        assert result.finish_reason == "eos"
        check_totals(result, prompt, engine)

    @pytest.mark.parametrize("mode", MODES)
    def test_by_a_stop_string(
        self, engine: Engine, prompt: Prompt, plain: Result, mode: str
    ) -> None:
        stop = [plain.text[12:15]]
        result = engine.generate(prompt, mode=mode, max_tokens=48, stop=stop)
        assert result.finish_reason == "stop"
        check_totals(result, prompt, engine)

    @pytest.mark.parametrize("mode", MODES)
    def test_by_cancelling(self, engine: Engine, prompt: Prompt, mode: str) -> None:
        result = cancel_after(engine.stream(prompt, mode=mode, max_tokens=48), TextChunk, 2)
        check_totals(result, prompt, engine)

    def test_plain_steps_are_one_row(self, plain: Result) -> None:
        assert {(step.nodes, step.depth) for step in plain.stats.steps} == {(1, 0)}
        assert plain.stats.tokens_per_step == 1.0
        assert plain.stats.accepted_histogram == [47]
        assert plain.stats.drafted == 0
        assert plain.stats.prefill_draft_s < plain.stats.prefill_target_s
