"""A sentencepiece model (``tokenizer.model``) as a tokenizer of the ``tokenizers`` library.

BPE models alone, as Llama 1 and 2, Vicuna and early Mistral have them; the ids are sentencepiece's
own. Read from the protobuf wire format, so that no further library is needed. Field numbers:
sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from specx.errors import ModelError

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of the model
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _SPACE_AFTER, _BYTE_FALLBACK = 3, 24, 35  # of the trainer's settings
_CHARSMAP, _DUMMY_PREFIX, _DROPS_SPACES, _ESCAPES_SPACES = 2, 3, 4, 5  # of the normaliser's
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"

Value = int | bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    kind: int


def read_sentencepiece(path: Path, *, begins: bool) -> Tokenizer:
    """The tokenizer in ``path``; ``begins``: it puts ``<s>`` before every text.

    Raises ``ModelError`` for a damaged file, and for what the known families do not use: unigram
    models, character maps, spaces after words.
    """
    try:
        model = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in model if number == _PIECES]
        last = dict(model)
        trainer, normalizer = (
            dict(_fields(_bytes(last.get(number, b"")))) for number in (_TRAINER, _NORMALIZER)
        )
    except (LookupError, TypeError, ValueError, struct.error) as error:
        raise ModelError(f"{path} is damaged", reason="it is no sentencepiece model") from error
    _refuse_others(path, pieces, trainer, normalizer)
    unknown = next(piece.text for piece in pieces if piece.kind == _UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            {piece.text: i for i, piece in enumerate(pieces)},
            _merges(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        )
    )
    has_prefix = bool(normalizer.get(_DUMMY_PREFIX, 1))
    steps = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strips = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strips]
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, special=piece.kind != _USER_DEFINED, normalized=False)
            for piece in pieces
            if piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    bos = next((i for i, p in enumerate(pieces) if p.kind == _CONTROL and p.text == "<s>"), None)
    if begins and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    return tokenizer


def _refuse_others(
    path: Path, pieces: Sequence[_Piece], trainer: dict[int, Value], normalizer: dict[int, Value]
) -> None:
    if not any(piece.kind == _UNKNOWN for piece in pieces):
        raise ModelError(f"{path} is damaged", reason="it has no piece for unknown characters")
    reasons = {
        "it is no BPE model": trainer.get(_MODEL_TYPE, 1) != _BPE,
        "it puts spaces after words": bool(trainer.get(_SPACE_AFTER, 0)),
        "it maps characters to others": bool(normalizer.get(_CHARSMAP)),
        "it drops spaces": bool(normalizer.get(_DROPS_SPACES, 1)),
        "it keeps spaces as they are": not normalizer.get(_ESCAPES_SPACES, 1),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ModelError(
                f"{path} is not supported",
                reason=reason,
                hints=["take a repository that has a tokenizer.json"],
            )


def _merges(pieces: Sequence[_Piece]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first.

    sentencepiece keeps no merges: it joins whichever neighbours make the piece of highest score.
    """
    normal = {p.text: i for i, p in enumerate(pieces) if p.kind == _NORMAL}
    ranked = sorted(normal, key=lambda text: -pieces[normal[text]].score)
    return [
        (text[:cut], text[cut:])
        for text in ranked
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]


def _piece(message: Value) -> _Piece:
    fields = dict(_fields(_bytes(message)))
    (score,) = struct.unpack("<f", _bytes(fields.get(_SCORE, bytes(4))))
    kind = fields.get(_KIND, _NORMAL)
    if not isinstance(kind, int):
        raise TypeError("a kind is a number")
    return _Piece(_bytes(fields[_TEXT]).decode(), score, kind)


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("bytes are expected here")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Field number and value of each field: numbers as int, all else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        number, size = 0, {0: 0, 1: 8, 2: 0, 5: 4}[kind]
        if kind in (0, 2):
            number, at = _varint(message, at)
        end = at + (number if kind == 2 else size)
        if end > len(message):
            raise ValueError("a field ends beyond the message")
        yield key >> 3, number if kind == 0 else message[at:end]
        at = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has too many bytes")
