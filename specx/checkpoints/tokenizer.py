"""Text to token ids and back, by a checkpoint's own files and the ``tokenizers`` library.

``tokenizer.json`` is the truth; a repository without one has its sentencepiece model read, or its
vocabulary converted by transformers.
"""

import contextlib
import filecmp
import logging
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from specx.checkpoints.chat_template import ChatTemplate
from specx.checkpoints.config import DAMAGE, read_json, summary
from specx.checkpoints.sentencepiece import read_sentencepiece
from specx.errors import ModelError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_NO_DEFAULT = "{{ raise_exception('it has several templates and none is named default') }}"


class Tokenizer:
    """A vocabulary with its special tokens.

    Invariant: no text becomes a control token. Control tokens are the added ones of a vocabulary,
    flagged as special or not, except for ordinary text that the vocabulary lacked: white space and
    single characters. Only ``encode_rendered`` makes them, from the words of a template.

    How: texts are encoded by a second tokenizer that shares the vocabulary and knows each control
    token by a secret mark instead of its name. One pass encodes a template's frame and the texts
    in it together, so what a text says changes nothing around it.
    """

    def __init__(
        self,
        whole: tokenizers.Tokenizer,
        special: Mapping[str, str],
        chat_template: str | None = None,
        name: str = "the tokenizer",
    ) -> None:
        """``special``: texts of special tokens by role, as "bos_token"; ``name`` is for errors."""
        whole.no_truncation()
        whole.no_padding()
        self.name, self._special, self._whole = name, special, whole
        self.template = ChatTemplate(chat_template, special, name) if chat_template else None
        self.bos_id, self.eos_id = (self._id_of(role) for role in ("bos_token", "eos_token"))
        roles = {whole.token_to_id(text): text for text in special.values()}
        added: dict[int, AddedToken] = whole.get_added_tokens_decoder()
        missing = [roles[i] for i in roles.keys() - added.keys() if i is not None]
        whole.add_tokens([AddedToken(text, special=True) for text in missing])
        added = whole.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        #: Ids of tokens that are flagged as special, or have a role.
        self.special_ids = {i for i, token in added.items() if token.special or i in roles}
        controls = [i for i, token in added.items() if _is_control(token)]
        self._marks = _Marks([self._added[i] for i in controls])
        self.mask, self.unmask = self._marks.mask, self._marks.unmask
        model = whole.model  # some, unigrams among them, spell control tokens out of plain text
        self._spelled_ids = {i for i in controls if model.id_to_token(i) is not None}
        self._plain = tokenizers.Tokenizer(model)  # shares the vocabulary: no second copy
        self._plain.normalizer, self._plain.pre_tokenizer = whole.normalizer, whole.pre_tokenizer
        self._skip_gaps(len(added) + 1)
        marks = dict(zip(controls, self._marks.enabled, strict=True))
        self._real_ids = {
            self._add(_renamed(token, marks[i]) if i in marks else token): i
            for i, token in added.items()
        }
        self._cut_id = self._add(AddedToken(self._marks.cut, normalized=False))

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._whole.get_vocab_size())

    @property
    def begin_ids(self) -> list[int]:
        """What this tokenizer puts before every text: BOS as a rule, or nothing."""
        whole = self._whole.encode("a").ids
        inner = self._whole.encode("a", add_special_tokens=False).ids
        starts = range(len(whole) - len(inner) + 1)
        return next((whole[:at] for at in starts if whole[at : at + len(inner)] == inner), [])

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` as text: no BOS, and never a control token."""
        while True:
            encoded = self._plain.encode(text, add_special_tokens=False)
            if self._spelled_ids.isdisjoint(encoded.ids):
                break
            spans = list(zip(encoded.ids, encoded.offsets, strict=True))
            for start, end in [span for i, span in reversed(spans) if i in self._spelled_ids]:
                if end - start < 2:
                    raise ModelError(f"{self.name} has no id for {text[start:end]!r} as text")
                text = text[: start + 1] + self._marks.cut + text[start + 1 :]
        real = self._real_ids
        return [real.get(i, i) for i in encoded.ids if i != self._cut_id]

    def encode_rendered(self, rendered: str) -> list[int]:
        """Token ids of a rendered template: control tokens that it names are such.

        The texts in it must have passed ``mask`` before they went into the template.
        """
        return self.encode(self._marks.unmask(self._marks.enable(rendered)))

    def decode(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ``tokens``; special tokens by name unless they are skipped."""
        return str(self._whole.decode(list(tokens), skip_special_tokens=skip_special))

    def special_id(self, text: str) -> int | None:
        """Id of the special token that is spelled ``text``; None where there is none."""
        found = self._whole.token_to_id(text)
        return found if found in self.special_ids else None

    def token_ends(self, text: str) -> list[int]:
        """Where in ``text`` its tokens end, in characters."""
        return [end for _, end in self._plain.encode(text, add_special_tokens=False).offsets if end]

    def token_texts(self, first: int = 0) -> dict[int, str]:
        """Id → text as the vocabulary spells it, from id ``first`` on."""
        if first >= self._whole.get_vocab_size(with_added_tokens=False):  # spares a copy
            return {i: text for i, text in self._added.items() if i >= first}
        return {i: text for text, i in self._whole.get_vocab().items() if i >= first}

    def _id_of(self, role: str) -> int | None:
        return self._whole.token_to_id(self._special.get(role, ""))

    def _skip_gaps(self, count: int) -> None:
        """Make sure that the next ``count`` ids are free: a vocabulary with gaps has high ids."""
        size, model = self._plain.get_vocab_size(), self._plain.model
        if any(model.id_to_token(i) is not None for i in range(size, size + count)):
            for number in range(size, max(self._plain.get_vocab().values()) + 1):
                self._add(AddedToken(f"{self._marks.cut}{number}", normalized=False))

    def _add(self, token: AddedToken) -> int:
        self._plain.add_tokens([token])
        added = self._plain.token_to_id(token.content)
        assert added is not None
        return added


class _Marks:
    """Names for control tokens that nobody can write: two for each, made anew in each process.

    One stands for the token, the other for its name as a text. They are private characters around
    digits, which no normaliser or pre-tokeniser of the known families changes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        secret = secrets.token_hex(8)
        self.enabled = [f"\ue000{secret}e{number}\ue001" for number in range(len(names))]
        masked = [f"\ue000{secret}m{number}\ue001" for number in range(len(names))]
        self.cut = f"\ue000{secret}c\ue001"
        self._enable = dict(zip(names, self.enabled, strict=True))
        self._mask = dict(zip(names, masked, strict=True))
        self._unmask = dict(zip(masked, names, strict=True))
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        self._names = re.compile("|".join(longest_first) or "(?!)")
        self._masked = re.compile(f"\ue000{secret}m[0-9]+\ue001")

    def enable(self, text: str) -> str:
        return self._names.sub(lambda found: self._enable[found[0]], text)

    def mask(self, text: str) -> str:
        """``text`` with the names of control tokens masked; the same text where it has none."""
        return self._names.sub(lambda found: self._mask[found[0]], text)

    def unmask(self, text: str) -> str:
        """The reverse of ``mask``."""
        return self._masked.sub(lambda found: self._unmask[found[0]], text)


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory brings a tokenizer of its own."""
    return any((directory / name).is_file() for name in _FILES)


def is_same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two directories have the same ``tokenizer.json``, byte for byte."""
    files = one / "tokenizer.json", other / "tokenizer.json"
    return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)


def read_tokenizer(directory: Path) -> Tokenizer:
    """The checkpoint's tokenizer; raises ``ModelError`` when it is missing or damaged."""
    if not has_tokenizer(directory):
        raise ModelError(f"{directory} has no tokenizer", reason="tokenizer.json is missing")
    settings = _settings(directory)
    try:
        found = _read(directory, settings)
        template = _chat_template(directory, settings)
        return Tokenizer(found, _special_tokens(settings), template, str(directory))
    except DAMAGE as error:
        raise ModelError(
            f"the tokenizer in {directory} cannot be read", reason=summary(error)
        ) from error


def _read(directory: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if (path := directory / "tokenizer.json").is_file():
        # from_file reports damage as a bare Exception, this as ValueError.
        return tokenizers.Tokenizer.from_buffer(path.read_bytes())
    if (path := directory / "tokenizer.model").is_file():
        found = read_sentencepiece(path, begins=settings.get("add_bos_token") is not False)
        _add_listed(found, directory, settings)
        return found
    from transformers import AutoTokenizer  # knows how each family splits and decodes

    with quiet():
        converted = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    return tokenizers.Tokenizer.from_str(converted.backend_tokenizer.to_str())


def _add_listed(
    tokenizer: tokenizers.Tokenizer, directory: Path, settings: Mapping[str, Any]
) -> None:
    """Add the tokens that a fine-tune lists beside a sentencepiece model, under their ids."""
    path = directory / "added_tokens.json"
    listed = {i: {"content": text} for text, i in read_json(path).items()} if path.is_file() else {}
    listed |= {int(i): dict(token) for i, token in settings.get("added_tokens_decoder", {}).items()}
    for i, token in sorted(listed.items()):
        if tokenizer.id_to_token(i) != token["content"]:
            tokenizer.add_tokens([AddedToken(**token)])
        if tokenizer.token_to_id(token["content"]) != i:
            raise ValueError(f"token {i}, {token['content']!r}, does not follow the vocabulary")


def _settings(directory: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, and what older checkpoints keep in a file of its own."""
    path, older = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
    settings = read_json(path) if path.is_file() else {}
    if older.is_file() and "added_tokens_decoder" not in settings:
        settings |= read_json(older)
    return settings


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Text by role. A null one is left out: a template would print it as None."""
    texts = {
        role: value.get("content") if isinstance(value, dict) else value
        for role, value in settings.items()
        if role.endswith("_token")
    }
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    if (path := directory / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default", _NO_DEFAULT)
    if found is not None and not isinstance(found, str):
        raise TypeError("chat_template is not a text")
    return found


def _is_control(token: AddedToken) -> bool:
    return bool(token.special or (len(token.content) > 1 and not token.content.isspace()))


def _renamed(token: AddedToken, content: str) -> AddedToken:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(content, **{name: getattr(token, name) for name in names})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the Hub's client from writing to stderr, then restore them."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    showed_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if showed_bars:
            transformers_logging.enable_progress_bar()
