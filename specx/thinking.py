"""Thoughts before an answer: what a chat template offers, and where in an output they are.

What a template can do is seen in what it renders, never from a model's name.
"""

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specx.checkpoints.chat_template import ChatTemplate, Message
from specx.checkpoints.tokenizer import Tokenizer
from specx.core.config import Think
from specx.errors import ModelError, UsageError

#: What begins and what ends a thought; a template that knows a pair names it.
TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("Here is my thought process:", "Here is my response:"),
)
_SWITCHES = ("enable_thinking", "thinking")  # variables of templates
_PROBE = [{"role": "user", "content": "\ue000specx-thought\ue001"}]
#: The bound on a thought where nobody gives one and the context has room.
USUAL_THINK_TOKENS = 4096
_PATIENCE = 16  # tokens in which an output has to begin its thought


@dataclass(frozen=True, slots=True)
class Thoughts:
    """An answer may come after a thought; ``is_open``: the prompt has begun it already."""

    opening: str
    closing: str
    is_open: bool


class TemplateThinking:
    """What a chat template says about thoughts."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        named = (pair for pair in TAGS if any(tag in template.source for tag in pair))
        self._tags = next(named, None)

    def switches(self, think: Think, *, is_summary: bool) -> dict[str, bool]:
        """The template's variables for ``think``; ``auto`` is off for a summary, where there is a
        choice, and else the template's default. Raises ``UsageError`` where there is no choice."""
        if self._switch is not None:
            is_chosen = think != "auto" or is_summary
            return {self._switch: think == "on"} if is_chosen else {}
        if think == "auto" or (think == "off" and self._tags is None):
            return {}
        found = None if self._tags is None else self.thoughts(_PROBE, {})
        always = found is not None and found.is_open
        if think == "on" and always:
            return {}
        owner = self._template.owner
        if self._tags is None:
            raise UsageError(
                f"--think on: the chat template of {owner} offers no thinking",
                hints=["leave --think out"],
            )
        raise UsageError(
            f"--think {think}: the chat template of {owner} has no switch for it",
            reason="it always begins a thought" if always else "the model decides by itself",
            hints=["--think-tokens 0 closes a thought at once"] if think == "off" else [],
        )

    def thoughts(
        self, messages: Sequence[Message], switches: Mapping[str, bool]
    ) -> Thoughts | None:
        """What may come before the answer to ``messages``; None: nothing, or thinking is off."""
        if self._tags is None:
            return None
        opening, closing = self._tags
        mark = _PROBE[0]["content"]
        *said, last = messages
        probed = [*said, {**last, "content": last["content"] + mark}]
        rendered = self._template.render(probed, switches)
        begun = rendered.rpartition(mark)[2].rstrip()
        if begun.endswith(opening):
            return Thoughts(opening, closing, is_open=True)
        if begun.endswith(closing):
            return None
        off = {**switches, self._switch: False} if self._switch else None
        if off is not None and rendered == self._template.render(probed, off):
            return None
        return Thoughts(opening, closing, is_open=False)

    @functools.cached_property
    def _switch(self) -> str | None:
        """The variable that changes what is rendered, if there is one."""
        return next((name for name in _SWITCHES if self._obeys(name)), None)

    def _obeys(self, name: str) -> bool:
        if name not in self._template.source:
            return False
        try:
            on, off = (self._template.render(_PROBE, {name: way}) for way in (True, False))
        except ModelError:
            return False
        return on != off


class ThoughtFinder:
    """Where an output's thought is. Tags that are control tokens are found by their ids, others by
    their text, whatever tokens spell it.

    ``rest`` is text of the closing tag's last token that comes after the tag.
    """

    def __init__(self, tokenizer: Tokenizer, thoughts: Thoughts) -> None:
        self._thoughts, self._tokenizer = thoughts, tokenizer
        self.closing_id = _control_id(tokenizer, thoughts.closing)
        self.opening_id = _control_id(tokenizer, thoughts.opening)
        self.is_open, self.is_undecided = thoughts.is_open, not thoughts.is_open
        self.tokens, self.rest = 0, ""
        self._pushed = 0
        # Each token of a tag has at least one of its characters.
        self._recent: deque[int] = deque(maxlen=len(thoughts.closing) + _PATIENCE)

    def push(self, token: int) -> None:
        """Take in the output's next token."""
        self._pushed += 1
        if not (self.is_open or self.is_undecided):
            return
        self._recent.append(token)
        if self.is_undecided:
            self._look_for_opening()
            return
        self.tokens = self._pushed
        if self.closing_id is not None:
            self.is_open = token != self.closing_id
        elif (closing := self._thoughts.closing) in (text := self._recent_text()):
            self.is_open, self.rest = False, text.partition(closing)[2]

    def _look_for_opening(self) -> None:
        text, opening = self._recent_text().lstrip(), self._thoughts.opening
        self.is_open = text.startswith(opening)
        may_follow = opening.startswith(text) and self._pushed < _PATIENCE
        self.is_undecided = may_follow and not self.is_open
        if self.is_open:
            self.tokens = self._pushed
            self._recent.clear()

    def _recent_text(self) -> str:
        return self._tokenizer.decode(list(self._recent))


def room_tokens(max_think_tokens: int) -> int:
    """Rows that a bounded thought may need: its tags, and blanks before it, included."""
    return max_think_tokens + 1 + _PATIENCE


def _control_id(tokenizer: Tokenizer, tag: str) -> int | None:
    """The id of a tag that is one control token, which no text can spell."""
    ids = [i for i in tokenizer.encode_rendered(tag) if tokenizer.decode([i]) == tag]
    return ids[0] if ids and ids[0] not in tokenizer.encode(tag) else None
