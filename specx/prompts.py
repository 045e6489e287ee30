"""Between text and tokens: prompts in, streamed text out.

It does not know models, so a plan can be made without reading weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specx.checkpoints.chat_template import SwitchedTemplate
from specx.checkpoints.tokenizer import Tokenizer
from specx.core.config import Think
from specx.errors import ModelError, UsageError, is_text
from specx.thinking import TemplateThinking, Thoughts

if TYPE_CHECKING:
    from specx.preset.sections import PromptSpec

_CONTEXT_TOKENS = 4  # of a prompt, enough for a decoder to treat what follows as a continuation
_PROBE = "\ue000specx-probe\ue001"  # at the end of a text, to see whether it is rendered
_NO_SWITCHES: Mapping[str, bool] = {}
_NO_TEMPLATE = (
    "has no chat template: the model got plain text; prompt.template: raw in the preset, or --raw, "
    "says that this is meant"
)
_WORDS = {"system": "system prompt", "user": "message"}

Said = list[tuple[str, str]]  # (role, text)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a whole request, and how many of them are the document's.

    ``context``: the last ids where the output continues the prompt's own text; else none.
    ``thoughts``: what may come before the answer. ``warnings``: what the user should know.
    """

    tokens: tuple[int, ...]
    document_tokens: int
    context: tuple[int, ...] = ()
    thoughts: Thoughts | None = None
    warnings: tuple[str, ...] = ()


class Prompter:
    """Makes prompts for one target."""

    def __init__(self, tokenizer: Tokenizer, settings: "PromptSpec") -> None:
        self.tokenizer, self._settings = tokenizer, settings
        template = tokenizer.template if settings.template == "auto" else None
        self._thinking = None if template is None else TemplateThinking(template)

    def prompt(
        self,
        document: str,
        instruction: str | None = None,
        *,
        system: str | None = None,
        raw: bool = False,
        think: Think | None = None,
    ) -> Prompt:
        """Token ids of a request about ``document``.

        ``instruction`` None asks for the preset's summary. An empty document leaves the
        instruction alone; ``raw`` continues the document verbatim, without a chat template.
        ``think`` None is the preset's: ``auto`` thinks where the template does so by default, but
        not for the preset's summary if there is a choice.
        Raises ``UsageError`` when the template does not carry a text, ``ModelError`` when it is
        broken.
        """
        if raw:
            content = "\n\n".join(text for text in (document, instruction) if text)
        else:
            asked = self._settings.summarize if instruction is None else instruction
            content = _fill(self._settings.ask, document, asked) if document else asked
        document_tokens = len(self.tokenizer.encode(document))
        if raw or self._thinking is None:
            if (think or (not raw and self._settings.think)) == "on":
                hints = ["leave --raw out" if raw else "leave --think out"]
                raise UsageError("--think on needs a chat template", hints=hints)
            found = encode_prompt(self.tokenizer, content, system=system, use_template=False)
            context = found[-_CONTEXT_TOKENS:] if raw else ()
            is_chosen = raw or self._settings.template == "raw"
            warnings = () if is_chosen else (f"{self.tokenizer.name} {_NO_TEMPLATE}",)
            return Prompt(tuple(found), document_tokens, tuple(context), warnings=warnings)
        is_summary = instruction is None
        switches = self._thinking.switches(think or self._settings.think, is_summary=is_summary)
        found = encode_prompt(self.tokenizer, content, system=system, switches=switches)
        said = _said(content, system)
        thoughts = self._thinking.thoughts(_messages(said), switches)
        return Prompt(tuple(found), document_tokens, thoughts=thoughts)


def encode_prompt(
    tokenizer: Tokenizer,
    content: str,
    *,
    system: str | None = None,
    use_template: bool = True,
    switches: Mapping[str, bool] = _NO_SWITCHES,
) -> list[int]:
    """Token ids of ``content`` as a user's message, with BOS exactly once.

    ``switches`` are variables of the template.
    Without a template the text is verbatim, ``system`` before it. What looks like a control token
    ("</s>") inside ``content`` or ``system`` stays text. Raises as ``Prompter.prompt``.
    """
    if not is_text(f"{content}{system}"):
        hints = ["write it in UTF-8, or read the text from a file"]
        raise UsageError("the prompt is not UTF-8", hints=hints)
    begin = tokenizer.begin_ids
    if tokenizer.template is None or not use_template:
        return begin + tokenizer.encode(f"{system}\n\n{content}" if system else content)
    template = SwitchedTemplate(tokenizer.template, switches)
    rendered = _render(tokenizer, template, _said(content, system))
    tokens = tokenizer.encode_rendered(rendered)
    return tokens if tokens[: len(begin)] == begin else begin + tokens


def _render(tokenizer: Tokenizer, template: SwitchedTemplate, said: Said) -> str:
    """The conversation as text, control tokens masked wherever a user's text names them.

    The template sees the real texts. Where they name control tokens it sees masked ones next, and
    what it makes of those counts if it is the same.
    """
    try:
        real = template.render(_messages(said))
    except ModelError as error:
        if len(said) < 2:
            raise
        template.render(_messages(said[-1:]))  # raises when the system prompt is not the reason
        raise _refusal(template, "refuses a system prompt", error.reason) from error
    _check_all_there(template, said, real)
    masked = [(role, tokenizer.mask(text)) for role, text in said]
    if masked == said:
        return real
    rendered = template.render(_messages(masked))
    if tokenizer.unmask(rendered) == real:
        return rendered
    for _, text in said:
        core = text.strip()
        if (hidden := tokenizer.mask(core)) != core:
            if real.count(core) != 1:
                raise _refusal(template, "cannot be told from the text, which names its tokens")
            real = real.replace(core, hidden)
    return real


def _check_all_there(template: SwitchedTemplate, said: Said, rendered: str) -> None:
    """Every text must be in ``rendered``, where a template may trim it, and not by accident."""
    for at, (role, text) in enumerate(said):
        probed = [*said[:at], (role, text + _PROBE), *said[at + 1 :]]
        is_there = text.strip() in rendered and _PROBE in template.render(_messages(probed))
        if not is_there:
            raise _refusal(template, f"drops or changes the {_WORDS[role]}")


def _said(content: str, system: str | None) -> Said:
    return [*([("system", system)] if system else []), ("user", content)]


def _messages(said: Said) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


def _refusal(template: SwitchedTemplate, what: str, reason: str = "") -> UsageError:
    hints = ["put it into the instruction"] if "system" in what else []
    return UsageError(
        f"the chat template of {template.owner} {what}",
        reason=reason,
        hints=[*hints, "use --raw, or set prompt.template: raw in the preset"],
    )


def _fill(pattern: str, document: str, instruction: str) -> str:
    """Put both into the preset's pattern literally: neither is a format string."""
    head, mark, tail = pattern.partition("{document}")
    filled = [part.replace("{instruction}", instruction) for part in (head, tail)]
    return filled[0] + (document if mark else "") + filled[1]


class TextStream:
    """Turns tokens into text pieces as they come; holds back what is not certain yet.

    Tokens are decoded together with the ones shown last, because a decoder may treat the first
    token of a text in its own way; text that ends in the replacement character waits for the
    bytes that complete it.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), context: Sequence[int] = ()
    ) -> None:
        """``context``: last tokens of a text that this one continues, so that a blank stays."""
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        # A special token has no text here, so a stop text that names one is looked for as its id.
        self._stop_ids = {tokenizer.special_id(text) for text in self._stop} - {None}
        self._tokens = list(context)
        self._before = len(context)
        self._start = 0  # first token that is decoded again, for its context
        self._shown = len(context)  # tokens whose text has been taken over
        self._held = ""
        self.is_stopped = False

    @property
    def consumed(self) -> int:
        """Tokens taken in; fewer than were pushed when a stop string ended the text."""
        return len(self._tokens) - self._before

    def push(self, tokens: Sequence[int]) -> str:
        """Text that became certain with these tokens; "" when all of it is held back.

        After a stop string ``is_stopped`` is true; the text before it has been returned.
        """
        for token in tokens:
            if self.is_stopped:
                break
            self._tokens.append(token)
            piece = self._unshown()
            if token in self._stop_ids:
                self._take(piece)
                self.is_stopped = True
            elif piece and not piece.endswith("\ufffd"):
                self._take(piece)
        return self._release()

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        if self.is_stopped:
            return ""
        self._take(self._unshown())
        text, self._held = self._held, ""
        return text

    def _unshown(self) -> str:
        """Text of the tokens that have not been taken over."""
        before, text = (
            self._tokenizer.decode(self._tokens[self._start : end], skip_special=True)
            for end in (self._shown, None)
        )
        return text[len(before) :]

    def _take(self, piece: str) -> None:
        self._held += piece
        self._start, self._shown = self._shown, len(self._tokens)
        ends = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if ends:
            self._held, self.is_stopped = self._held[: min(ends)], True

    def _release(self) -> str:
        stops = () if self.is_stopped else self._stop
        begun = (n for stop in stops for n in range(len(stop)) if self._held.endswith(stop[:n]))
        cut = len(self._held) - max(begun, default=0)
        text, self._held = self._held[:cut], self._held[cut:]
        return text
