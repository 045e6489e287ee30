"""Between text and tokens: prompts in, streamed text out.

In: a Hugging Face tokenizer, documents, instructions, token ids. Out: prompt ids, and text pieces
that never split a character and never show part of a stop string. It does not know models.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from specx.errors import UsageError

# These stand for the texts while the chat template is rendered; in no document, no vocabulary.
_CONTENT = "\ue000specx-content\ue000"
_SYSTEM = "\ue000specx-system\ue000"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a whole request, and how many of them are the document's."""

    tokens: tuple[int, ...]
    document_tokens: int


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    content: str,
    *,
    system: str | None = None,
    use_template: bool = True,
) -> list[int]:
    """Token ids of ``content`` as a user's message (or verbatim), with BOS exactly once.

    Text that looks like a special token ("</s>") inside ``content`` or ``system`` stays ordinary
    text.
    """
    if not use_template or not tokenizer.chat_template:
        if system:
            content = f"{system}\n\n{content}"
        return _begin(tokenizer) + _encode_plain(tokenizer, content)
    messages = [{"role": "user", "content": _CONTENT}]
    if system:
        messages.insert(0, {"role": "system", "content": _SYSTEM})
    frame = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts = {_CONTENT: content, _SYSTEM: system or ""}
    pieces = re.split(f"({_CONTENT}|{_SYSTEM})", str(frame))
    if _CONTENT not in pieces:
        raise UsageError(
            "the model's chat template drops the message",
            hints=["use --raw, or set prompt.template: raw in the preset"],
        )
    tokens: list[int] = []
    if any(_mentions_special(tokenizer, text) for text in texts.values()):
        for piece in pieces:
            if piece in texts:
                tokens += _encode_plain(tokenizer, texts[piece])
            else:
                tokens += tokenizer.encode(piece, add_special_tokens=False)
    else:
        whole = "".join(texts.get(piece, piece) for piece in pieces)
        tokens += tokenizer.encode(whole, add_special_tokens=False)
    bos = _begin(tokenizer)
    return tokens if tokens[: len(bos)] == bos else bos + tokens


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of ``text`` alone."""
    return len(_encode_plain(tokenizer, text))


def _encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _mentions_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    added = tokenizer.added_tokens_decoder.values()
    return any(token.content in text for token in added if token.content)


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token where this tokenizer begins every text with it."""
    start = tokenizer.encode("", add_special_tokens=True)
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and start[:1] == [bos] else []


class TextStream:
    """Turns tokens into text pieces as they come; holds back what is not certain yet.

    Tokens are decoded together with the ones shown last, because a decoder may treat the first
    token of a text in its own way; text that ends in the replacement character waits for the
    bytes that complete it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._stop = tuple(text for text in stop if text)
        self._tokens: list[int] = []
        self._start = 0  # first token that is decoded again, for its context
        self._shown = 0  # tokens whose text has been taken over
        self._held = ""
        self.is_stopped = False

    @property
    def consumed(self) -> int:
        """Tokens taken in; fewer than were pushed when a stop string ended the text."""
        return len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Text that became certain with these tokens; "" when all of it is held back.

        After a stop string ``is_stopped`` is true; the text before it has been returned.
        """
        for token in tokens:
            if self.is_stopped:
                break
            self._tokens.append(token)
            piece = self._unshown()
            if piece and not piece.endswith("\ufffd"):
                self._held += piece
                self._start, self._shown = self._shown, len(self._tokens)
                self._cut()
        return self._release()

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        if self.is_stopped:
            return ""
        self._held += self._unshown()
        self._start = self._shown = len(self._tokens)
        self._cut()
        text, self._held = self._held, ""
        return text

    def _unshown(self) -> str:
        """Text of the tokens that have not been taken over."""
        before = self._decode(self._tokens[self._start : self._shown])
        return self._decode(self._tokens[self._start :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._backend.decode(tokens, skip_special_tokens=True))

    def _cut(self) -> None:
        ends = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if ends:
            self._held, self.is_stopped = self._held[: min(ends)], True

    def _release(self) -> str:
        keep = 0
        if not self.is_stopped:
            for text in self._stop:
                for size in range(min(len(text) - 1, len(self._held)), keep, -1):
                    if self._held.endswith(text[:size]):
                        keep = size
                        break
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text
