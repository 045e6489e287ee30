"""DOCX, ODT and EPUB: ZIP archives with XML inside, to blocks.

Nothing is unpacked to disk, and no more than a bound into memory. XML with a document type is
refused, so there are no entities to expand.
"""

import io
import lzma
import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import unquote
from xml.parsers import expat

from specx.documents.blocks import Block, one_spaced
from specx.documents.html import html_blocks
from specx.errors import DocumentError

MAX_UNPACKED_BYTES = 256 << 20
_MOST_MEMBERS = 20_000
_TEXT = "urn:oasis:names:tc:opendocument:xmlns:text:1.0 "
_TABLE = "urn:oasis:names:tc:opendocument:xmlns:table:1.0 "
_OFFICE = "urn:oasis:names:tc:opendocument:xmlns:office:1.0 "
_UNREAD = (f"{_OFFICE}annotation", f"{_TEXT}tracked-changes")


#: What the zipfile module raises for damaged and encrypted archives.
ZIP_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError),
)


class Archive:
    """The members of a ZIP archive, counted against one bound."""

    def __init__(self, raw: bytes, what: str) -> None:
        """Raises ``DocumentError`` for an archive that is damaged or unpacks to too much."""
        self.what = what
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
        except ZIP_DAMAGE as error:
            raise self.damaged(error) from error
        members = self._zip.infolist()
        if len(members) > _MOST_MEMBERS or sum(m.file_size for m in members) > MAX_UNPACKED_BYTES:
            reason = f"more than {MAX_UNPACKED_BYTES >> 20} MiB or {_MOST_MEMBERS:,} files"
            raise DocumentError(f"{what} unpacks to too much", reason=reason)
        self.names = {member.filename for member in members}

    def read(self, name: str) -> bytes:
        """A member. Raises ``DocumentError``."""
        try:
            return self._zip.read(name)
        except KeyError as error:
            raise DocumentError(f"{self.what} is damaged", reason=f"it lacks {name}") from error
        except ZIP_DAMAGE as error:
            if isinstance(error, RuntimeError) and "password" in str(error):
                raise DocumentError(f"{self.what} is protected by a password") from error
            raise self.damaged(error) from error

    def parse(
        self,
        name: str,
        start: Callable[[str, dict[str, str]], object],
        end: Callable[[str], object] = lambda tag: None,
        text: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Read an XML member; tags and attributes are ``namespace name``. ``DocumentError``."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler = text
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        try:
            parser.Parse(self.read(name), True)
        except (expat.ExpatError, ValueError, LookupError) as error:
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> DocumentError:
        return DocumentError(f"{self.what} is damaged", reason=one_spaced(str(error))[:200])

    def _refuse_doctype(self, *_: object) -> None:
        raise DocumentError(f"{self.what} is refused", reason="its XML declares a document type")


def docx_blocks(raw: bytes, what: str) -> Iterator[Block]:
    """A Word document, by mammoth (extra ``docs``)."""
    import mammoth

    archive = Archive(raw, what)
    for name in archive.names:
        if name.endswith((".xml", ".rels")):
            archive.parse(name, lambda tag, attributes: None)
    try:
        no_images = mammoth.images.img_element(lambda image: {})
        html = mammoth.convert_to_html(io.BytesIO(raw), convert_image=no_images).value
    except (AttributeError, KeyError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise archive.damaged(error) from error
    yield from html_blocks(f"<body>{html}", what)


def epub_blocks(raw: bytes, what: str) -> Iterator[Block]:
    """A book, in the order of its spine."""
    archive = Archive(raw, what)
    if "META-INF/encryption.xml" in archive.names and "META-INF/rights.xml" in archive.names:
        raise DocumentError(f"{what} is protected", reason="its text is encrypted (DRM)")
    packages: list[str] = []
    items: dict[str, str] = {}
    spine: list[str] = []

    def container(tag: str, attributes: dict[str, str]) -> None:
        if tag.endswith(" rootfile"):
            packages.append(attributes.get("full-path", ""))

    def package(tag: str, attributes: dict[str, str]) -> None:
        if tag.endswith(" item"):
            items[attributes.get("id", "")] = attributes.get("href", "")
        elif tag.endswith(" itemref"):
            spine.append(attributes.get("idref", ""))

    archive.parse("META-INF/container.xml", container)
    if not packages:
        raise DocumentError(f"{what} is damaged", reason="it names no package")
    archive.parse(packages[0], package)
    for reference in dict.fromkeys(spine):
        place = posixpath.join(posixpath.dirname(packages[0]), unquote(items.get(reference, "")))
        name = posixpath.normpath(place)
        if name in archive.names:
            yield from html_blocks(archive.read(name).decode("utf-8", "replace"), what)


def odt_blocks(raw: bytes, what: str) -> Iterator[Block]:
    """An OpenDocument text."""
    archive = Archive(raw, what)
    reader = _OpenDocument()
    archive.parse("content.xml", reader.start, reader.end, reader.text)
    yield from reader.blocks


class _OpenDocument:
    """Blocks of a ``content.xml``."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._pieces: list[str] = []
        self._cells: list[str] = []
        self._level = self._rows = self._unread = self._open = self._items = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in _UNREAD:
            self._unread += 1
        elif tag in (f"{_TEXT}h", f"{_TEXT}p"):
            self._open += 1
            outline = attributes.get(f"{_TEXT}outline-level", "1")
            if tag == f"{_TEXT}h":
                self._level = int(outline) if outline.isdecimal() else 1
        elif tag in (f"{_TEXT}s", f"{_TEXT}tab", f"{_TEXT}line-break"):
            self.text(" ")
        elif tag == f"{_TEXT}list-item":
            self._items += 1
        elif tag == f"{_TABLE}table-row":
            self._rows += 1

    def end(self, tag: str) -> None:
        if tag in _UNREAD:
            self._unread -= 1
        elif tag in (f"{_TEXT}h", f"{_TEXT}p"):
            self._open -= 1
            self.text(" ")
            if not self._rows and not self._unread and not self._open:
                self._flush()
        elif tag == f"{_TEXT}list-item":
            self._items -= 1
        elif tag == f"{_TABLE}table-cell":
            self._cells.append(one_spaced("".join(self._pieces)))
            self._pieces.clear()
        elif tag == f"{_TABLE}table-row":
            self._rows -= 1
            if any(self._cells):
                self.blocks.append(Block(" | ".join(self._cells), is_row=True))
            self._cells.clear()

    def text(self, text: str) -> None:
        if (self._open and not self._unread) or text == " ":
            self._pieces.append(text)

    def _flush(self) -> None:
        text = one_spaced("".join(self._pieces))
        if text:
            mark = "- " if self._items and not self._level else ""
            self.blocks.append(Block(mark + text, self._level))
        self._level = 0
        self._pieces.clear()
