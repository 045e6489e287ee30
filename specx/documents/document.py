"""Documents from files and standard input, in the formats of ``formats``.

Nothing is guessed: text that is not UTF-8 is refused with its likely encoding, and the caller may
name one. Apart from a byte order mark and Windows line ends text is what the bytes say.
"""

import codecs
import difflib
import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from specx.documents.blocks import Extract, Section
from specx.documents.formats import Format, Reading, extract, recognise
from specx.documents.pdf import chosen_pages
from specx.errors import DocumentError, UsageError

MAX_DOCUMENT_BYTES = 256 << 20
_ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1252", "cp1251", "shift_jis", "gb18030", "big5")
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


#: All pages, and nobody hears of them.
WHOLE = Reading()


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from. ``bytes`` and ``sha256`` describe the input as it was read."""

    name: str  # for people: the file's name, or "stdin"
    path: str | None  # as it was given; None for standard input
    text: str
    format: Format
    bytes: int
    sha256: str
    sections: tuple[Section, ...] = ()  # that the format names; text and Markdown name none
    removed: tuple[str, ...] = ()  # what of its layout is not in the text, in sentences


def read_document(path: str, *, encoding: str | None = None, reading: Reading = WHOLE) -> Document:
    """Read a file; ``encoding`` None means UTF-8, with or without a byte order mark.

    Raises ``DocumentError`` when there is no usable text in it, ``UsageError`` for an encoding
    that Python does not know and for pages that are not there.
    """
    codec = _codec(encoding)
    if os.path.isdir(path):
        hint = f"name the files in it: specx summarize {shlex.quote(path.rstrip('/'))}/*.txt"
        raise DocumentError(f"{path} is a directory", hints=[hint])
    return _document(read_file(path, MAX_DOCUMENT_BYTES, _near), path, codec, reading)


def read_file(
    path: str, most_bytes: int, hints_for: Callable[[str], list[str]] = lambda path: []
) -> bytes:
    """What is in a file, up to one byte more than ``most_bytes``; ``hints_for`` a missing one.

    Raises ``DocumentError``.
    """
    try:
        with open(path, "rb") as file:
            return file.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise DocumentError(f"there is no file {path}", hints=hints_for(path)) from error
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise DocumentError(f"{path} cannot be read", reason=reason) from error
    except ValueError as error:  # a NUL character in the path
        raise DocumentError("that is not a file name", reason=str(error)) from error


def read_stdin(
    stream: BinaryIO, *, encoding: str | None = None, reading: Reading = WHOLE
) -> Document:
    """Read a binary stream to its end by the rules of ``read_document``; its name is ``stdin``."""
    codec = _codec(encoding)
    try:
        raw = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:  # specx < directory
        raise DocumentError("standard input cannot be read", reason=error.strerror or "") from error
    return _document(raw, None, codec, reading)


def _document(raw: bytes, path: str | None, codec: str, reading: Reading) -> Document:
    """``path`` None means standard input."""
    name, what = ("stdin", "standard input") if path is None else (Path(path).name, path)
    if not raw:
        raise DocumentError(f"{what} is empty")
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise DocumentError(
            f"{what} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB",
            hints=["split it first, for example: split -C 1m FILE"],
        )
    kind = recognise(raw, path)
    if kind in ("text", "markdown"):
        text = _text(raw, what, codec)
        found = Extract(_pages_of(text, what, reading.pages) if reading.pages else text)
    else:
        found = extract(raw, kind, what, codec, reading)
    if not found.text.strip():
        raise DocumentError(f"{what} holds nothing but white space")
    digest = hashlib.sha256(raw).hexdigest()
    places = tuple(found.sections), tuple(found.removed)
    return Document(name, path, found.text, kind, len(raw), digest, *places)


def _pages_of(text: str, what: str, given: str) -> str:
    """Pages of a text that form feeds divide, as pdftotext writes them."""
    pages = text.removesuffix("\f").split("\f")
    if len(pages) == 1:
        raise UsageError("--pages needs a document with pages", reason=f"{what} is text")
    return "\f".join(pages[number] for number in chosen_pages(given, len(pages)))


def _text(raw: bytes, what: str, codec: str) -> str:
    if codec == "utf-8-sig":
        _refuse_binary(raw, what)
    try:
        text = raw.decode(codec).removeprefix("\ufeff")
        text.encode()  # some codecs let through halves of surrogate pairs, tokenizers do not
    except UnicodeDecodeError as error:
        raise _undecodable(raw, what, error, codec) from error
    except UnicodeError as error:
        raise DocumentError(f"{what} is not {codec} text", reason=str(error)) from error
    if "\0" in text:
        raise DocumentError(f"{what} is not {codec} text", reason="it holds NUL characters")
    return text.replace("\r\n", "\n")


def _refuse_binary(raw: bytes, what: str) -> None:
    if raw.startswith(_UTF32_MARKS):  # before UTF-16, whose mark the one of them begins with
        raise DocumentError(f"{what} is UTF-32 text, not UTF-8", hints=["add --encoding utf-32"])
    if raw.startswith(_UTF16_MARKS):
        raise DocumentError(f"{what} is UTF-16 text, not UTF-8", hints=["add --encoding utf-16"])
    if b"\0" in raw:
        wide = _wide(raw[:1000])
        raise DocumentError(
            f"{what} is binary data, not text",
            reason=f"there is a NUL byte at offset {raw.index(0):,}",
            hints=[f"if it is {wide.upper()} text, add --encoding {wide}"] if wide else [],
        )


def _wide(start: bytes) -> str:
    """The encoding of two or four bytes a sign that the places of zeros suggest; "" for none."""
    zeros = [start[at::4].count(0) > len(start) // 6 for at in range(4)]
    shapes = {(0, 1, 1, 1): "utf-32-le", (1, 1, 1, 0): "utf-32-be"}
    shapes |= {(0, 1, 0, 1): "utf-16-le", (1, 0, 1, 0): "utf-16-be"}
    return shapes.get(tuple(map(int, zeros)), "")  # type: ignore[arg-type]


def _undecodable(raw: bytes, what: str, error: UnicodeDecodeError, codec: str) -> DocumentError:
    encoding = "UTF-8" if codec == "utf-8-sig" else codec
    around = raw[max(0, error.start - 5000) : error.start + 5000]
    high = [byte for byte in around if byte >= 0x80]
    if error.end == len(raw) and "end" in error.reason:
        hint = "it ends inside a character: was it cut off?"
    elif len(high) > 0.3 * len(around):
        hint = "name its encoding, for example --encoding cp1251, shift_jis or gb18030"
    elif any(byte < 0xA0 for byte in high):  # control codes in Latin-1, quotation marks in cp1252
        hint = "it is probably Windows text: add --encoding cp1252"
    else:
        hint = "it is probably Latin-1 text: add --encoding latin-1"
    reason = f"byte 0x{raw[error.start]:02x} at offset {error.start:,} cannot be decoded"
    return DocumentError(f"{what} is not {encoding} text", reason=reason, hints=[hint])


def _codec(encoding: str | None) -> str:
    if encoding is None:
        return "utf-8-sig"
    try:
        name = codecs.lookup(encoding).name
        " ".encode(name)  # finds codecs that turn bytes into bytes, such as base64
    except (LookupError, ValueError) as error:
        close = difflib.get_close_matches(encoding.lower(), _ENCODINGS, n=1)
        hints = [f"did you mean {close[0]}?"] if close else [f"known: {', '.join(_ENCODINGS)}, …"]
        raise UsageError(f"{encoding!r} is not a text encoding", hints=hints) from error
    return "utf-8-sig" if name == "utf-8" else name


def _near(path: str) -> list[str]:
    if path.startswith(("http://", "https://")):
        return [f"specx does not download: curl -L {shlex.quote(path)} | specx summarize"]
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return [f"there is no directory {folder} either"] if folder else []
    close = difflib.get_close_matches(name, names, n=1)
    return [f"did you mean {os.path.join(folder, close[0])}?"] if close else []
