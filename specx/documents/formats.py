"""Which format a file has, by its content; and the text of those that specx reads.

Text and Markdown are decoded elsewhere. What no reader is for is refused with a command that makes
text of it.
"""

import io
import re
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from specx.documents.archives import ZIP_DAMAGE, docx_blocks, epub_blocks, odt_blocks
from specx.documents.blocks import Extract, assemble
from specx.documents.html import html_blocks
from specx.documents.pdf import chosen_pages, pdf_extract
from specx.errors import DocumentError, UsageError

Format = Literal["text", "markdown", "pdf", "docx", "odt", "epub", "html"]

_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd")
_HTML = (".html", ".htm", ".xhtml")
_START_BYTES = 1 << 16
_ZIP = b"PK\x03\x04"
#: Member of an archive, what it holds there, the format.
_ARCHIVES: tuple[tuple[str, bytes, Format], ...] = (
    ("word/document.xml", b"", "docx"),
    ("mimetype", b"application/epub+zip", "epub"),
    ("mimetype", b"application/vnd.oasis.opendocument.text", "odt"),
)
_NEEDS = {"pdf": ("pypdfium2",), "docx": ("mammoth", "selectolax")}
_NEEDS |= dict.fromkeys(("epub", "html"), ("selectolax",))
_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?([\w-]{2,40})", re.I)
#: First bytes, others near the start, what they mean, and the command that makes text of the file.
_UNREAD = (
    (b"{\\rtf", b"", "an RTF document", "pandoc -t plain {name}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "EncryptedPackage".encode("utf-16-le"),
     "a Word document with a password", ""),
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
    (_ZIP, b"", "a ZIP archive", "unzip -p {name}"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """How a document is to be read: ``pages`` as ``3-10,15`` or all; who hears of progress."""

    pages: str = ""
    on_page: Callable[[int, int], None] = lambda done, total: None


def recognise(raw: bytes, path: str | None) -> Format:
    """The format of ``raw``; the name decides only between text, Markdown and bare HTML.

    Raises ``DocumentError`` for what is no text and has no reader.
    """
    start, suffix = raw[:_START_BYTES], Path(path or "").suffix.lower()
    if b"%PDF-" in start[:1024]:
        return "pdf"
    if start.startswith(_ZIP) and (found := _archive_format(raw)):
        return found
    what, name = path or "standard input", shlex.quote(path) if path else "FILE"
    for magic, mark, kind, command in _UNREAD:
        if start.startswith(magic) and mark in raw[: 1 << 20]:
            verb = "unpack" if kind == "a ZIP archive" else "convert"
            hint = f"{verb} it first: {command.format(name=name)} | specx summarize"
            raise DocumentError(f"{what} is {kind}, not text", hints=[hint] if command else [])
    if suffix in _HTML or _is_page(start):
        return "html"
    return "markdown" if suffix in _MARKDOWN else "text"


def _is_page(start: bytes) -> bool:
    """Whether HTML begins here, after declarations and comments."""
    rest = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for opening, closing in ((b"<?xml", b"?>"), (b"<!--", b"-->")) * 3:
        if rest.startswith(opening):
            rest = rest.partition(closing)[2].lstrip()
    return rest[:20].lower().startswith((b"<!doctype html", b"<html"))


def _archive_format(raw: bytes) -> Format | None:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = set(archive.namelist())
            for member, content, kind in _ARCHIVES:
                if member in names and (not content or content in archive.open(member).read(100)):
                    return kind
    except ZIP_DAMAGE:
        # Cut off: say what it was, so that its reader says what is wrong with it.
        return "docx" if b"word/" in raw[:_START_BYTES] else None
    return None


def extract(raw: bytes, kind: Format, what: str, codec: str, reading: Reading) -> Extract:
    """The text of ``raw`` in a format other than text and Markdown. ``codec`` is for HTML alone.

    Raises ``DocumentError``, also where the library for it is not installed, and ``UsageError``
    for pages of a format without pages.
    """
    lacking = [name for name in _NEEDS.get(kind, ()) if find_spec(name) is None]
    if lacking:
        reason = f"{kind.upper()} is read by {' and '.join(lacking)}"
        hint = "pip install 'specx[docs]'"
        raise DocumentError(f"{what} cannot be read here", reason=reason, hints=[hint])
    if kind == "pdf":

        def pages(count: int) -> list[int]:
            return chosen_pages(reading.pages, count) if reading.pages else list(range(count))

        return pdf_extract(raw, what, pages, reading.on_page)
    if reading.pages:
        raise UsageError("--pages needs a document with pages", reason=f"{what} is {kind.upper()}")
    if kind == "html":
        declared = _CHARSET.search(raw[:4096])
        return assemble(html_blocks(_decoded(raw, codec, declared[1] if declared else b""), what))
    reader = {"docx": docx_blocks, "odt": odt_blocks, "epub": epub_blocks}[kind]
    return assemble(reader(raw, what))


def _decoded(raw: bytes, codec: str, declared: bytes) -> str:
    for name in (codec, declared.decode("ascii", "replace")):
        try:
            return raw.decode(name)
        except (UnicodeError, LookupError):
            continue
    return raw.decode("latin-1")  # as browsers do
