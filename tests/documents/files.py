"""Small files of every format, written here by hand."""

import io
import zipfile
from collections.abc import Mapping, Sequence

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
_RELATED = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
_ODF = "urn:oasis:names:tc:opendocument:xmlns"


def archive(members: Mapping[str, str | bytes]) -> bytes:
    """A ZIP archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def pdf(pages: Sequence[Sequence[str]], outline: Mapping[str, int] | None = None) -> bytes:
    """A PDF of lines of Latin text; ``outline``: title → page, from 0."""
    count, titles = len(pages), list(outline or {})
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>"
        % (count, b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(count))),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, lines in enumerate(pages):
        shown = b" ".join(
            b"(%s) Tj T*" % _escaped(line).encode("cp1252", "replace") for line in lines
        )
        stream = b"BT /F1 10 Tf 12 TL 50 750 Td %s ET" % shown
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] "
            b"/Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % (5 + 2 * i),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        ]
    if titles:
        root = len(objects) + 1
        objects[0] = b"<< /Type /Catalog /Pages 2 0 R /Outlines %d 0 R >>" % root
        last = root + len(titles)
        objects.append(b"<< /First %d 0 R /Last %d 0 R >>" % (root + 1, last))
        for at, title in enumerate(titles, start=root + 1):
            following = b"/Next %d 0 R" % (at + 1) if at < last else b""
            page = 4 + 2 * (outline or {})[title]
            objects.append(
                b"<< /Title (%s) /Parent %d 0 R %s /Dest [%d 0 R /Fit] >>"
                % (_escaped(title).encode("cp1252"), root, following, page)
            )
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return made + head + table + trailer % (len(objects) + 1, len(made))


def docx(body: str) -> bytes:
    """A Word document with ``body`` as the XML below ``w:body``."""
    document = f'<w:document xmlns:w="{_W}"><w:body>{body}</w:body></w:document>'
    types = (
        f'<Types xmlns="{_TYPES}"><Default Extension="xml" ContentType="application/xml"/></Types>'
    )
    relation = f'<Relationship Id="r" Type="{_OFFICE}" Target="word/document.xml"/>'
    relations = f'<Relationships xmlns="{_RELATED}">{relation}</Relationships>'
    members = {"[Content_Types].xml": types, "_rels/.rels": relations}
    return archive({**members, "word/document.xml": document})


def docx_paragraph(text: str, style: str = "") -> str:
    """A paragraph; ``style`` as "Heading1"."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def odt(body: str, before: str = "") -> bytes:
    """An OpenDocument text with ``body`` as the XML below ``office:text``."""
    names = " ".join(f'xmlns:{name}="{_ODF}:{name}:1.0"' for name in ("office", "text", "table"))
    inner = f"<office:body><office:text>{body}</office:text></office:body>"
    content = f"{before}<office:document-content {names}>{inner}</office:document-content>"
    return archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content})


def epub(chapters: Mapping[str, str], spine: Sequence[str], **more: str) -> bytes:
    """A book: file name → XHTML, and the names in the order of reading."""
    root = '<rootfile full-path="OEBPS/book.opf"/>'
    container = (
        f'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">{root}</container>'
    )
    items = "".join(f'<item id="{name}" href="{name}"/>' for name in chapters)
    order = "".join(f'<itemref idref="{name}"/>' for name in spine)
    package = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest>'
        f"<spine>{order}</spine></package>"
    )
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": container,
            "OEBPS/book.opf": package,
            **{f"OEBPS/{name}": text for name, text in chapters.items()},
            **more,
        }
    )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
