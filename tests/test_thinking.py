"""Thoughts: what templates offer, where a thought ends, and that it is never the answer."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken

import specx
from specx.checkpoints.chat_template import ChatTemplate
from specx.core.config import MODES, SamplingConfig
from specx.engine import Engine
from specx.errors import ContextError, UsageError
from specx.preset.sections import PromptSpec
from specx.prompts import Prompt, Prompter
from specx.stream import Result, Stream, ThoughtText
from specx.thinking import TAGS, ThoughtFinder, Thoughts
from tests.helpers import (
    BOS,
    CHAT_TEMPLATE,
    VOCABULARY,
    preset_for,
    save_pair,
    save_scripted_pair,
    save_tokenizer,
    story,
    tiny_tokenizer,
)

FRAME = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>%s{% endif %}"
)
#: As Qwen3's and SmolLM3's: thinks unless it is told not to, and the model opens its thought.
SWITCHED = FRAME.replace(
    "%s",
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}",
)
#: As DeepSeek-V3.1's: does not think unless it is told to, and says which in a tag.
ASKED = FRAME.replace("%s", "{% if thinking %}<think>{% else %}</think>{% endif %}")
#: As Granite's: does not think unless it is told to, in words.
IN_WORDS = "{% if thinking %}Write it between <think></think>. {% endif %}" + FRAME.replace(
    "%s", ""
)
#: As DeepSeek-R1's: every answer begins with a thought.
ALWAYS = FRAME.replace("%s", "<think>")
#: As R1's first: it knows the tag, and leaves it to the model.
UNSAID = FRAME.replace("%s", "{# </think> #}")
#: Fails where the variable is a boolean.
FRAGILE = FRAME.replace("%s", "{{ '' if thinking is undefined else thinking + '<think>' }}")
TEMPLATES = {
    "switched": SWITCHED,
    "asked": ASKED,
    "in words": IN_WORDS,
    "always": ALWAYS,
    "unsaid": UNSAID,
    "none": CHAT_TEMPLATE,
}
EXTRA = [AddedToken("<think>", special=False), AddedToken("</think>", special=False)]
OPEN, CLOSE = VOCABULARY, VOCABULARY + 1
TOKENIZER = tiny_tokenizer(SWITCHED, extra=EXTRA)
NEWLINE = TOKENIZER.encode("\n")[0]
#: Tokens of whole letters, each with a text of its own.
LETTERS = [TOKENIZER.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
THOUGHT, ANSWER = LETTERS[:10], LETTERS[10:18]
SCRIPT = [4, OPEN, *THOUGHT, CLOSE, NEWLINE, *ANSWER, 1]
ENDLESS = [4, OPEN, *THOUGHT, 1]


def engine_for(directory: Path, script: list[int], template: str) -> Engine:
    pair = save_scripted_pair(directory, script, template, EXTRA)
    return specx.load(preset_for(pair), device="cpu", offline=True)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    def made(template: str = SWITCHED, script: list[int] = SCRIPT) -> Engine:
        key = template, tuple(script)
        if key not in engines:
            engines[key] = engine_for(tmp_path_factory.mktemp("thinker"), script, template)
        return engines[key]

    engines: dict[tuple[str, tuple[int, ...]], Engine] = {}
    return made


class TestTemplates:
    def ask(self, name: str, think: str | None, *, is_summary: bool) -> Prompt:
        prompter = Prompter(tiny_tokenizer(TEMPLATES[name], extra=EXTRA), PromptSpec())
        return prompter.prompt("A text.", None if is_summary else "What?", think=think)

    @pytest.mark.parametrize(
        ("name", "think", "summary", "answer"),
        [
            ("switched", "on", "may", "may"),
            ("switched", "off", "no", "no"),
            ("switched", "auto", "no", "may"),
            ("asked", "on", "begun", "begun"),
            ("asked", "off", "no", "no"),
            ("asked", "auto", "no", "no"),
            ("in words", "on", "may", "may"),
            ("in words", "off", "no", "no"),
            ("in words", "auto", "no", "no"),
            ("always", "on", "begun", "begun"),
            ("always", "off", "refused", "refused"),
            ("always", "auto", "begun", "begun"),
            ("unsaid", "on", "refused", "refused"),
            ("unsaid", "off", "refused", "refused"),
            ("unsaid", "auto", "may", "may"),
            ("none", "on", "refused", "refused"),
            ("none", "off", "no", "no"),
            ("none", "auto", "no", "no"),
        ],
    )
    def test_what_a_template_offers(self, name: str, think: str, summary: str, answer: str) -> None:
        for is_summary, wanted in ((True, summary), (False, answer)):
            if wanted == "refused":
                with pytest.raises(UsageError, match="chat template of tiny"):
                    self.ask(name, think, is_summary=is_summary)
                continue
            thoughts = self.ask(name, think, is_summary=is_summary).thoughts
            opening, closing = TAGS[0]
            kinds = {"no": None, "may": False, "begun": True}
            is_open = kinds[wanted]
            expected = None if is_open is None else Thoughts(opening, closing, is_open)
            assert thoughts == expected

    def test_the_switch_reaches_the_prompt(self) -> None:
        on, off = (self.ask("switched", think, is_summary=False) for think in ("on", "off"))
        assert off.tokens[: len(on.tokens)] == on.tokens
        assert [i for i in off.tokens if i >= VOCABULARY] == [OPEN, CLOSE]
        assert on.tokens[-1] == 4

    def test_tags_in_a_text_decide_nothing(self) -> None:
        prompter = Prompter(tiny_tokenizer(ALWAYS, extra=EXTRA), PromptSpec())
        prompt = prompter.prompt("a </think>", "b </think>")
        assert prompt.thoughts == Thoughts("<think>", "</think>", is_open=True)
        assert prompt.tokens.count(CLOSE) == 0

    def test_a_template_that_fails_has_no_switch(self) -> None:
        prompter = Prompter(tiny_tokenizer(FRAGILE, extra=EXTRA), PromptSpec())
        assert prompter.prompt("", "What?").thoughts == Thoughts("<think>", "</think>", False)

    def test_the_preset_may_say_it(self) -> None:
        prompter = Prompter(tiny_tokenizer(ASKED, extra=EXTRA), PromptSpec(think="on"))
        assert prompter.prompt("A text.").tokens[-1] == OPEN
        assert prompter.prompt("A text.", think="off").tokens[-1] == CLOSE

    @pytest.mark.parametrize("template", [None, SWITCHED])
    def test_text_without_a_template_cannot_think(self, template: str | None) -> None:
        prompter = Prompter(tiny_tokenizer(template, extra=EXTRA), PromptSpec())
        with pytest.raises(UsageError, match="needs a chat template"):
            prompter.prompt("A text.", raw=True, think="on")
        assert prompter.prompt("A text.", raw=True).thoughts is None

    def test_a_missing_template_is_said_unless_it_is_meant(self) -> None:
        missing = Prompter(tiny_tokenizer(None), PromptSpec())
        assert "tiny has no chat template" in missing.prompt("A text.").warnings[0]
        assert not missing.prompt("A text.", raw=True).warnings
        chosen = Prompter(tiny_tokenizer(None), PromptSpec(template="raw"))
        assert not chosen.prompt("A text.").warnings

    def test_variables_do_not_reach_other_renderings(self) -> None:
        template = ChatTemplate(SWITCHED, {"bos_token": BOS}, "tiny")
        said = [{"role": "user", "content": "a"}]
        assert template.render(said, {"enable_thinking": False}) != template.render(said)


def text_of(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens)


class TestOutputs:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("template", [SWITCHED, ALWAYS, UNSAID])
    def test_the_answer_is_what_comes_after(
        self, thinker: Callable[..., Engine], template: str, mode: str
    ) -> None:
        engine = thinker(template)
        result = engine.generate(engine.prompt("", "What?"), mode=mode, max_tokens=20)
        assert result.thought is not None
        assert (result.text, result.finish_reason) == (text_of(ANSWER), "eos")
        assert (result.thought.text, result.thought.end) == (text_of(THOUGHT), "model")
        opened = 0 if template == ALWAYS else 1
        assert result.thought.tokens == len(THOUGHT) + 1 + opened
        assert list(result.tokens) == SCRIPT[2 - opened : -1]
        assert not result.warnings

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("template", [SWITCHED, ALWAYS])
    @pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 10])
    def test_n_bounds_the_answer_wherever_a_block_ends(
        self, thinker: Callable[..., Engine], template: str, mode: str, count: int
    ) -> None:
        engine = thinker(template)
        prompt = engine.prompt("", "What?")
        result = engine.generate(prompt, mode=mode, max_tokens=count)
        assert result.thought is not None
        assert len(result.tokens) - result.thought.tokens == min(count, 9)
        assert result.text == text_of(ANSWER[: count - 1])
        assert result.finish_reason == ("length" if count < 10 else "eos")
        checked = engine.verify(prompt, result)
        assert (checked.equal, checked.checked) == (True, len(result.tokens))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("template", [SWITCHED, ALWAYS, UNSAID])
    @pytest.mark.parametrize("bound", [0, 1, 2, 5, 10, 11, 12])
    def test_a_thought_is_closed_at_its_bound(
        self, thinker: Callable[..., Engine], template: str, mode: str, bound: int
    ) -> None:
        engine = thinker(template)
        prompt = engine.prompt("", "What?")
        result = engine.generate(prompt, mode=mode, max_tokens=4, max_think_tokens=bound)
        whole = SCRIPT[2:12] if template == ALWAYS else SCRIPT[1:12]
        kept = whole[: bound if template == ALWAYS else max(bound, 1)]
        assert list(result.tokens) == [*kept, CLOSE, NEWLINE, *ANSWER[:3]]
        assert result.thought is not None
        assert result.text == text_of(ANSWER[:3])
        is_cut = bound <= len(whole)
        assert (result.thought.end, result.thought.tokens) == (
            "bound" if is_cut else "model",
            len(kept) + 1,
        )
        assert ("the thought was closed" in "".join(result.warnings)) == is_cut
        assert engine.verify(prompt, result).equal
        for count in (1, 3, len(kept) + 2):
            assert engine.verify(prompt, result, count).equal

    def test_a_changed_thought_is_found(self, thinker: Callable[..., Engine]) -> None:
        engine = thinker()
        prompt = engine.prompt("", "What?")
        result = engine.generate(prompt, mode="specx")
        forged = replace(result, tokens=(*result.tokens[:3], 7, *result.tokens[4:]))
        found = engine.verify(prompt, forged).first_difference
        assert found is not None
        assert found.index == 3

    @pytest.mark.parametrize("mode", MODES)
    def test_a_thought_left_open_is_no_answer(
        self, thinker: Callable[..., Engine], mode: str
    ) -> None:
        engine = thinker(script=ENDLESS)
        result = engine.generate(engine.prompt("", "What?"), mode=mode, max_tokens=20)
        assert result.thought is not None
        assert (result.text, result.finish_reason) == ("", "eos")
        assert (result.thought.text, result.thought.end) == (text_of(THOUGHT), "open")
        assert "there is no answer" in result.warnings[0]

    def test_a_thought_and_nothing_else(self, thinker: Callable[..., Engine]) -> None:
        engine = thinker(script=[4, OPEN, *THOUGHT, CLOSE, 1])
        result = engine.generate(engine.prompt("", "What?"))
        assert (result.text, result.finish_reason) == ("", "eos")
        assert result.warnings == ("the model wrote a thought and no answer",)

    def test_no_thought_where_none_was_begun(self, thinker: Callable[..., Engine]) -> None:
        engine = thinker(script=[4, *ANSWER, OPEN, LETTERS[20], 1])
        result = engine.generate(engine.prompt("", "What?"), max_think_tokens=3)
        assert result.thought is None
        assert list(result.tokens) == [*ANSWER, OPEN, LETTERS[20]]
        assert result.text == text_of([*ANSWER, OPEN, LETTERS[20]])

    @pytest.mark.parametrize("mode", MODES)
    def test_blanks_may_come_before_the_tag(
        self, thinker: Callable[..., Engine], mode: str
    ) -> None:
        engine = thinker(script=[4, NEWLINE, OPEN, *THOUGHT, CLOSE, *ANSWER, 1])
        prompt = engine.prompt("", "What?")
        for bound in (0, 1, 2, 3, 20):
            result = engine.generate(prompt, mode=mode, max_tokens=3, max_think_tokens=bound)
            assert result.thought is not None
            assert result.text == text_of(ANSWER[:3])
            assert result.thought.text == text_of(THOUGHT[: max(0, bound - 2)])
            assert engine.verify(prompt, result).equal

    def test_stop_strings_belong_to_the_answer(self, thinker: Callable[..., Engine]) -> None:
        engine = thinker()
        stop = [text_of(THOUGHT[2:4]), text_of(ANSWER[2:4])]
        result = engine.generate(engine.prompt("", "What?"), stop=stop, mode="specx")
        assert (result.text, result.finish_reason) == (text_of(ANSWER[:2]), "stop")
        assert engine.verify(engine.prompt("", "What?"), result).equal

    @pytest.mark.parametrize("mode", MODES)
    def test_streamed_pieces_make_the_whole(
        self, thinker: Callable[..., Engine], mode: str
    ) -> None:
        engine = thinker()
        stream: Stream = engine.stream(engine.prompt("", "What?"), mode=mode)
        chunks = [event for event in stream if isinstance(event, specx.TextChunk)]
        assert "".join(chunk.text for chunk in chunks) == stream.result.text
        assert stream.result.thought is not None
        assert "".join(chunk.thought for chunk in chunks).strip() == stream.result.thought.text
        new_tokens = [token for chunk in chunks for token in chunk.new_tokens]
        assert tuple(new_tokens) == stream.result.tokens
        assert all(chunk.text.startswith(chunk.accepted_text) for chunk in chunks)
        steps = stream.result.stats.steps
        assert sum(step.new_tokens for step in steps) + 1 == len(stream.result.tokens)

    def test_interrupted_within_a_thought(self, thinker: Callable[..., Engine]) -> None:
        engine = thinker()
        prompt = engine.prompt("", "What?")
        stream = engine.stream(prompt, mode="plain")
        for event in stream:
            if isinstance(event, specx.TextChunk) and event.stats.new_tokens == 4:
                stream.cancel()
        assert stream.result.thought is not None
        assert (stream.result.text, stream.result.thought.end) == ("", "open")
        assert engine.verify(prompt, stream.result).equal

    def test_both_bounds_must_fit_the_context(self, thinker: Callable[..., Engine]) -> None:
        engine = thinker()
        prompt = engine.prompt("", story(400))
        room = engine.preset.context_tokens - len(prompt.tokens)
        with pytest.raises(ContextError):
            engine.stream(prompt, max_tokens=10, max_think_tokens=room)
        usual = engine.generate(prompt, max_tokens=10)
        assert usual.max_think_tokens is not None
        assert 10 < usual.max_think_tokens <= room - 10
        with pytest.raises(UsageError, match="max think tokens"):
            engine.stream(prompt, max_think_tokens=-1)


@pytest.mark.parametrize("setting", ["greedy", "warm", "penalty"])
@pytest.mark.parametrize("weights", ["noisy", "target"])
def test_closing_is_lossless_on_texts_that_nobody_scripted(
    tmp_path_factory: pytest.TempPathFactory, weights: str, setting: str
) -> None:
    """The tags are ordinary tokens that the outputs of a random model happen to have."""
    directory = tmp_path_factory.mktemp("random")
    changes = {"vocab_size": VOCABULARY + 2}
    pair = save_pair(directory, draft_weights=weights, target_changes=changes)
    save_tokenizer(pair.target, ALWAYS, EXTRA)
    engine = specx.load(preset_for(pair), device="cpu", offline=True)
    sampling = {
        "greedy": SamplingConfig(),
        "warm": SamplingConfig(temperature=1.5, seed=5),
        "penalty": SamplingConfig(temperature=0.7, repetition_penalty=1.3),
    }[setting]
    prompt = engine.prompt(story(60), "What?")

    def run(mode: str, bound: int) -> Result:
        settings = {"max_tokens": 12, "max_think_tokens": bound, "sampling": sampling}
        return engine.generate(prompt, mode=mode, **settings)

    for bound in (0, 3, 7, 12):
        plain = run("plain", bound)
        assert plain.tokens[bound] == CLOSE
        for mode in ("spec", "specx", "auto"):
            assert run(mode, bound).tokens == plain.tokens


class TestFinder:
    """Tags that are no control tokens, in whatever tokens spell them."""

    WORDS = tiny_tokenizer(SWITCHED)

    def found(self, text: str, *, is_open: bool, letters: bool) -> tuple[str, str, ThoughtText]:
        tokenizer = self.WORDS
        parts = list(text) if letters else [text]
        tokens = list(itertools.chain.from_iterable(map(tokenizer.encode, parts)))
        thought = ThoughtText(tokenizer, Thoughts("<think>", "</think>", is_open), 100)
        said, answer = "", []
        for token in tokens:
            thought.bound.finder.push(token)
            more, rest = thought.take([token], is_last=False)
            said, answer = said + more, answer + rest
        more, rest = thought.take([], is_last=True)
        answer_text = "".join(thought.after(tokenizer.decode(answer + rest), ""))
        return said + more, answer_text, thought

    @pytest.mark.parametrize("letters", [False, True])
    @pytest.mark.parametrize(
        ("text", "is_open", "thought", "answer"),
        [
            ("<think>why not</think>\n\nso", False, "why not", "so"),
            ("\n<think>\nwhy</think>so", False, "why", "so"),
            ("why</think>so", True, "why", "so"),
            ("so <think>why</think>", False, "", "so <think>why</think>"),
            ("<thin air", False, "", "<thin air"),
            ("<th", False, "", "<th"),
            ("a < b </thin", True, "a < b </thin", ""),
        ],
    )
    def test_where_it_is(
        self, text: str, is_open: bool, thought: str, answer: str, letters: bool
    ) -> None:
        said, answered, _ = self.found(text, is_open=is_open, letters=letters)
        assert (said.strip(), answered) == (thought, answer)

    def test_without_a_closing_token_the_bound_ends_the_text(self, tmp_path: Path) -> None:
        pair = save_pair(tmp_path)
        save_tokenizer(pair.target, ALWAYS)
        engine = specx.load(preset_for(pair), device="cpu", offline=True)
        prompt = engine.prompt("", "What?")
        for mode in ("plain", "specx"):
            result = engine.generate(prompt, mode=mode, max_think_tokens=6, ignore_eos=True)
            assert (len(result.tokens), result.finish_reason) == (6, "length")
            assert result.thought is not None
            assert (result.text, result.thought.end) == ("", "open")
            assert engine.verify(prompt, result).equal

    def test_a_tag_of_one_piece_is_no_control_token(self) -> None:
        finder = ThoughtFinder(tiny_tokenizer(SWITCHED), Thoughts("h", "e", is_open=True))
        assert finder.closing_id is None
