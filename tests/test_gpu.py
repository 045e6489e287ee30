"""What only a GPU can show: recordings, no waiting within a step, memory, half precision."""

import functools
from collections.abc import Iterator

import pytest
import torch

import specx
from specx import Engine
from specx.core.clock import Readout
from specx.core.config import SamplingConfig
from specx.errors import ResourceError
from specx.memory import room_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
_TOKENS = 64
_WAYS = {
    "plain": ("plain", {}),
    "specx": ("specx", {}),
    "spec": ("spec", {}),
    "window": ("specx", {"draft_cache": "window"}),
    "lookup": ("specx", {"drafter": "lookup"}),
    "without copies": ("specx", {"copies": "none"}),
    "auto": ("auto", {}),
    "without graphs": ("specx", {"launch": "eager"}),
    "sdpa": ("specx", {"tree_attention": "sdpa"}),
    "masked": ("spec", {"tree_attention": "masked"}),
}
_SAMPLED = SamplingConfig(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=5)


@functools.cache
def _engine(dtype: str, preset: str = "pocket") -> Engine:
    return specx.load(preset, device="cuda", dtype=dtype)


@functools.cache
def _document(words: int) -> str:
    from importlib.resources import files

    text = files("specx").joinpath("pocket", "report.txt").read_text(encoding="utf-8")
    return " ".join(text.split()[:words])


@pytest.fixture(params=[500, 3000], ids=["short", "long"])
def document(request: pytest.FixtureRequest) -> str:
    return _document(request.param)


@pytest.mark.parametrize("sampling", [SamplingConfig(), _SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("way", _WAYS)
def test_the_text_is_that_of_plain_decoding(
    way: str, sampling: SamplingConfig, document: str
) -> None:
    """In float32, to the token, whatever runs where."""
    engine = _engine("float32")
    prompt = engine.prompt(document)
    settings = {"max_tokens": _TOKENS, "sampling": sampling, "ignore_eos": True}
    plain = engine.generate(prompt, mode="plain", parts={"tree_attention": "sdpa"}, **settings)
    mode, parts = _WAYS[way]
    for _ in range(2):  # the second request replays what the first one recorded
        result = engine.generate(prompt, mode=mode, parts=parts, **settings)
        assert result.tokens == plain.tokens


@pytest.mark.parametrize("sampling", [SamplingConfig(), _SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode", ["spec", "specx"])
@pytest.mark.parametrize("preset", ["pocket-eagle", "pocket-eagle3"])
def test_heads_do_not_change_the_text(preset: str, mode: str, sampling: SamplingConfig) -> None:
    """The target's features reach the recordings of a head."""
    engine = _engine("float32", preset)
    prompt = engine.prompt(_document(1500))
    settings = {"max_tokens": _TOKENS, "sampling": sampling, "ignore_eos": True}
    plain = engine.generate(prompt, mode="plain", **settings)
    for _ in range(2):
        result = engine.generate(prompt, mode=mode, **settings)
        assert result.tokens == plain.tokens
    assert mode == "spec" or result.stats.tokens_per_step > 2, "they are trained for this"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_differs_only_where_two_tokens_tie(dtype: str, document: str) -> None:
    engine = _engine(dtype)
    prompt = engine.prompt(document)
    result = engine.generate(prompt, mode="specx", max_tokens=_TOKENS, ignore_eos=True)
    found = engine.verify(prompt, result)
    if not found.equal:
        assert found.first_difference is not None
        assert found.first_difference.margin is not None
        assert abs(found.first_difference.margin) < (0.05 if dtype == "float16" else 0.4)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any hidden wait for the device is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("preset", "mode"),
    [("pocket", "plain"), ("pocket", "specx"), ("pocket", "spec"), ("pocket-eagle3", "specx")],
)
@pytest.mark.parametrize("sampling", [SamplingConfig(), _SAMPLED], ids=["greedy", "sampled"])
def test_a_step_waits_for_the_device_once(
    preset: str,
    mode: str,
    sampling: SamplingConfig,
    no_waiting: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And that once is the readout, an event, which the debug mode does not count."""
    engine = _engine("float16", preset)
    prompt = engine.prompt(_document(3000))
    waits = []
    wait = Readout.wait
    monkeypatch.setattr(Readout, "wait", lambda self: waits.append(1) or wait(self))
    engine.generate(prompt, mode=mode, max_tokens=_TOKENS, sampling=sampling, ignore_eos=True)
    stream = engine.stream(
        prompt, mode=mode, max_tokens=_TOKENS, sampling=sampling, ignore_eos=True
    )
    steps = 0
    for event in stream:
        if isinstance(event, specx.TextChunk):
            if event.step is None:
                torch.cuda.set_sync_debug_mode("error")
                waits.clear()
            else:
                steps += 1
                assert len(waits) == steps
    assert steps > 5


def test_a_long_document_and_then_a_short_one() -> None:
    """Buffers and recordings of the first request serve the second."""
    engine = _engine("float32")
    texts = [engine.prompt(_document(words)) for words in (3000, 100, 1500)]
    first = [engine.generate(text, mode="specx", max_tokens=_TOKENS).tokens for text in texts]
    plain = [engine.generate(text, mode="plain", max_tokens=_TOKENS).tokens for text in texts]
    assert first == plain


def test_two_requests_in_turns_do_not_share_their_buffers() -> None:
    engine = _engine("float32")
    prompts = [engine.prompt(_document(words)) for words in (400, 900)]
    streams = [engine.stream(each, mode="specx", max_tokens=_TOKENS) for each in prompts]
    running = list(streams)
    while running:
        running = [stream for stream in running if next(stream, None) is not None]
    for prompt, stream in zip(prompts, streams, strict=True):
        plain = engine.generate(prompt, mode="plain", max_tokens=_TOKENS)
        assert stream.result.tokens == plain.tokens


def test_two_engines_in_one_process() -> None:
    prompt = _engine("float16").prompt(_document(500))
    half = _engine("float16").generate(prompt, mode="specx", max_tokens=_TOKENS)
    whole = _engine("float32").generate(prompt, mode="specx", max_tokens=_TOKENS)
    again = _engine("float16").generate(prompt, mode="specx", max_tokens=_TOKENS)
    assert half.tokens == again.tokens
    assert whole.tokens


@pytest.mark.parametrize("free_mib", [0, 60])
def test_out_of_memory_is_an_error_that_says_what_to_do(free_mib: int) -> None:
    """Before the request or in its midst; afterwards the next request runs."""
    engine = _engine("float16")
    prompt = engine.prompt(_document(3000))
    wanted = engine.generate(prompt, mode="specx", max_tokens=8).tokens
    engine._workspaces.drop()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + (free_mib << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with pytest.raises(ResourceError) as caught:
            engine.generate(prompt, mode="specx", max_tokens=8)
        assert "need" in str(caught.value)
        assert len(caught.value.hints) == 3
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.generate(prompt, mode="specx", max_tokens=8).tokens == wanted


def test_room_on_a_device_without_an_index() -> None:
    """``--device cuda`` names no index, and some of CUDA's questions refuse that."""
    room = room_on(torch.device("cuda"))
    assert room.free_bytes is not None
    assert 0 < room.free_bytes <= torch.cuda.mem_get_info()[1]
