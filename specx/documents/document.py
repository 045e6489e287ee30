"""Documents: text and Markdown from files and standard input.

Nothing is guessed: what is not UTF-8 is refused with its likely encoding, what is no text with a
command that makes text of it. Otherwise the text is what the bytes say, Windows line ends aside.
"""

import codecs
import difflib
import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from specx.errors import DocumentError, UsageError

Format = Literal["text", "markdown"]

MAX_DOCUMENT_BYTES = 64 << 20
_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd")
_ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1252", "cp1251", "shift_jis", "gb18030", "big5")
_DOCX, _ODT, _EPUB = b"word/", b"application/vnd.oasis.opendocument.text", b"application/epub+zip"
#: First bytes, others near the start, what they mean, and the command that makes text of the file.
_FORMATS = (
    (b"%PDF-", b"", "a PDF", "pdftotext {name} -"),
    (b"{\\rtf", b"", "an RTF document", "pandoc -t plain {name}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", "an old Word document", "antiword {name}"),
    (b"\x1f\x8b\x08", b"", "compressed with gzip", "gzip -dc {name}"),
    (b"BZh91AY&SY", b"", "compressed with bzip2", "bzip2 -dc {name}"),
    (b"\xfd7zXZ\x00", b"", "compressed with xz", "xz -dc {name}"),
    (b"\x28\xb5\x2f\xfd", b"", "compressed with zstd", "zstd -dc {name}"),
    (b"7z\xbc\xaf\x27\x1c", b"", "a 7z archive", "7z x -so {name}"),
    (b"Rar!\x1a\x07", b"", "a RAR archive", "unrar p -inul {name}"),
    (b"\x89PNG\r\n", b"", "a PNG image", "tesseract {name} -"),
    (b"\xff\xd8\xff", b"", "a JPEG image", "tesseract {name} -"),
    (b"II*\x00", b"", "a TIFF image", "tesseract {name} -"),
    (b"MM\x00*", b"", "a TIFF image", "tesseract {name} -"),
    (b"\x7fELF", b"", "a program (ELF)", ""),
    (b"SQLite format 3\x00", b"", "an SQLite database", ""),
    (b"PK\x03\x04", _DOCX, "a Word document (DOCX)", "pandoc -t plain {name}"),
    (b"PK\x03\x04", _ODT, "an OpenDocument text", "pandoc -t plain {name}"),
    (b"PK\x03\x04", _EPUB, "an EPUB book", "pandoc -t plain {name}"),
    (b"PK\x03\x04", b"", "a ZIP archive", "unzip -p {name}"),
)
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from. ``bytes`` and ``sha256`` describe the input as it was read."""

    name: str  # for people: the file's name, or "stdin"
    path: str | None  # as it was given; None for standard input
    text: str
    format: Format
    bytes: int
    sha256: str


def read_document(path: str, *, encoding: str | None = None) -> Document:
    """Read a file; ``encoding`` None means UTF-8, with or without a byte order mark.

    Raises ``DocumentError`` when there is no usable text in it, ``UsageError`` for an encoding
    that Python does not know.
    """
    codec = _codec(encoding)
    if os.path.isdir(path):
        hint = f"name the files in it: specx summarize {shlex.quote(path.rstrip('/'))}/*.txt"
        raise DocumentError(f"{path} is a directory", hints=[hint])
    return _document(read_file(path, MAX_DOCUMENT_BYTES, _near), path, codec)


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


def read_stdin(stream: BinaryIO, *, encoding: str | None = None) -> Document:
    """Read a binary stream to its end by the rules of ``read_document``; its name is ``stdin``."""
    codec = _codec(encoding)
    try:
        raw = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:  # specx < directory
        raise DocumentError("standard input cannot be read", reason=error.strerror or "") from error
    return _document(raw, None, codec)


def _document(raw: bytes, path: str | None, codec: str) -> Document:
    name = "stdin" if path is None else Path(path).name
    kind: Format = "markdown" if Path(path or "").suffix.lower() in _MARKDOWN else "text"
    digest = hashlib.sha256(raw).hexdigest()
    return Document(name, path, _text(raw, path, codec), kind, len(raw), digest)


def _text(raw: bytes, path: str | None, codec: str) -> str:
    """``raw`` decoded; ``path`` None means standard input."""
    what = path or "standard input"
    if not raw:
        raise DocumentError(f"{what} is empty")
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise DocumentError(
            f"{what} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB",
            reason="no model's context holds as much text",
            hints=["split it first, for example: split -C 1m FILE"],
        )
    start = raw[: 1 << 16]
    for magic, mark, kind, command in _FORMATS:
        if start.startswith(magic) and mark in start:
            verb = "unpack" if kind == "a ZIP archive" else "convert"
            command = command.format(name=shlex.quote(path) if path else "FILE")
            hints = [f"{verb} it first: {command} | specx summarize"] if command else []
            raise DocumentError(f"{what} is {kind}, not text", hints=hints)
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
    if not text.strip():
        raise DocumentError(f"{what} holds nothing but white space")
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
