"""Documents as people have them: each format's text and sections, and each way to be refused."""

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from specx.documents import archives, formats
from specx.documents.document import Document, read_document, read_stdin
from specx.documents.formats import Reading
from specx.errors import DocumentError, UsageError
from tests.documents.files import archive, docx, docx_paragraph, epub, odt, pdf

BODY = [f"Line {n} of the report tells of copper and of ships." for n in range(8)]
TABLE = (
    "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>Year</w:t></w:r></w:p></w:tc>"
    "<w:tc><w:p><w:r><w:t>Tons</w:t></w:r></w:p></w:tc></w:tr>"
    "<w:tr><w:tc><w:p><w:r><w:t>1850</w:t></w:r></w:p></w:tc>"
    "<w:tc><w:p><w:r><w:t>7</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
)
DOCX = docx(docx_paragraph("Copper", "Heading1") + docx_paragraph("It is mined.") + TABLE)
ODT = odt(
    '<text:h text:outline-level="2">Copper</text:h><text:p>It<text:s/>is mined.</text:p>'
    "<text:list><text:list-item><text:p>first</text:p></text:list-item></text:list>"
    "<table:table><table:table-row><table:table-cell><text:p>Year</text:p></table:table-cell>"
    "<table:table-cell><text:p>Tons</text:p></table:table-cell></table:table-row></table:table>"
)
PAGE = (
    "<!-- made by hand --><!DOCTYPE html><html><head><title>no</title><script>no()</script></head>"
    "<body><nav>no</nav><h2>Copper</h2>before<p>It <b>is</b>\n mined.<br>Yes.</p>after<ul><li>first"
    "<li>second</ul><table><tr><th>Year<th>Tons<tr><td>1850<td><p>7</p></table>"
    "<pre>  kept\n as is</pre></body></html>"
)
BOOK = epub(
    {
        "b.xhtml": "<html><body><h1>End</h1><p>They left.</p></body></html>",
        "a.xhtml": "<html><body><h1>Start</h1><p>They came.</p></body></html>",
    },
    spine=["a.xhtml", "b.xhtml"],
)


def read(raw: bytes, **reading: object) -> Document:
    return read_stdin(io.BytesIO(raw), reading=Reading(**reading))  # type: ignore[arg-type]


def refused(raw: bytes, **reading: object) -> str:
    with pytest.raises(DocumentError) as caught:
        read(raw, **reading)
    assert caught.value.exit_code == 3
    return f"{caught.value} | {' | '.join(caught.value.hints)}"


def labels(document: Document) -> list[tuple[str, str]]:
    """Sections, each with the text that it begins with."""
    return [
        (each.label, document.text[each.start :][: len(each.label)]) for each in document.sections
    ]


class TestPdf:
    def test_pages_and_headings(self) -> None:
        outline = {"Copper": 0, "The Ships": 1}
        document = read(pdf([["Copper", *BODY], ["A line.", "2. The Ships", *BODY]], outline))
        assert document.format == "pdf"
        found = [(each.kind, each.label) for each in document.sections]
        assert found == [("page", "p. 1"), ("heading", "Copper"), ("page", "p. 2"),
                         ("heading", "The Ships")]  # fmt: skip
        assert document.text[document.sections[3].start :].startswith("2. The Ships")
        assert BODY[3] in document.text

    def test_running_lines_go(self) -> None:
        bodies = [[f"{word} {line}" for line in BODY] for word in ("A", "Be", "See", "Dee", "Eve")]
        pages = [[f"Report {n}", *body, "confidential"] for n, body in enumerate(bodies, start=1)]
        document = read(pdf(pages))
        assert "Report" not in document.text
        assert "confidential" not in document.text
        assert document.text.count(BODY[0]) == document.text.count(BODY[-1]) == 5
        assert [text.split(" ")[0] for text in document.removed] == ["5", "5"]

    def test_printed_numbers_go_even_where_the_line_is_new_on_each_page(self) -> None:
        pages = [
            [f"{word} {n + 9}", *BODY[: n + 2]] for n, word in enumerate(("One", "Two", "Six"))
        ]
        assert "One" not in read(pdf(pages)).text

    def test_a_table_that_goes_on_keeps_its_rows(self) -> None:
        pages = [[f"{n} {row} {row * n}" for row in range(20, 40)] for n in range(1, 6)]
        assert read(pdf(pages)).text.split() == [
            word for page in pages for line in page for word in line.split()
        ]

    def test_divided_words_are_joined(self) -> None:
        lines = ["The trans-", "port of well-", "known goods is well-known. Spain-", "France too."]
        document = read(pdf([lines]))
        assert "The transport of well-known goods is well-known. Spain-France too." in document.text
        assert "hyphens of 3 divided words" in document.removed

    def test_sections_move_with_the_joined_words(self) -> None:
        pages = [["trans-", "port trans-", "port"], ["New Page", "trans-", "port"], ["Last Page"]]
        document = read(pdf(pages, {"New Page": 1, "Last Page": 2}))
        assert ("New Page", "New Page") in labels(document)
        assert ("Last Page", "Last Page") in labels(document)

    def test_chosen_pages(self) -> None:
        raw = pdf([[f"This is page {n}."] for n in range(1, 9)])
        document = read(raw, pages="2-3,7-")
        assert [each.label for each in document.sections] == ["p. 2", "p. 3", "p. 7", "p. 8"]
        assert "page 4" not in document.text
        for wrong in ("9", "0", "3-2", "x", "1-2-3", "-", ","):
            with pytest.raises(UsageError):
                read(raw, pages=wrong)

    def test_progress_and_a_stop(self) -> None:
        raw = pdf([["text"]] * 3)
        heard: list[tuple[int, int]] = []
        read(raw, on_page=lambda done, total: heard.append((done, total)))
        assert heard == [(1, 3), (2, 3), (3, 3)]

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            read(raw, on_page=stop)

    def test_ways_to_be_refused(self) -> None:
        assert "ocrmypdf" in refused(pdf([[], []]))
        assert "qpdf" in refused(b"%PDF-1.7\n1 0 obj")
        half = pdf([BODY] * 3)
        assert refused(half[: len(half) // 8])
        mixed = read(pdf([["text"], []]))
        assert mixed.removed == ("1 of 2 pages have no text (scanned?)",)


class TestArchives:
    def test_word(self) -> None:
        document = read(DOCX)
        assert document.format == "docx"
        assert document.text == "# Copper\n\nIt is mined.\n\nYear | Tons\n1850 | 7"

    def test_open_document(self) -> None:
        document = read(ODT)
        assert document.format == "odt"
        assert document.text == "## Copper\n\nIt is mined.\n\n- first\n\nYear | Tons"
        assert labels(document) == [("Copper", "## Cop")]

    def test_a_book_is_read_in_the_order_of_its_spine(self) -> None:
        document = read(BOOK)
        assert document.format == "epub"
        assert document.text == "# Start\n\nThey came.\n\n# End\n\nThey left."
        assert [each.label for each in document.sections] == ["Start", "End"]

    def test_the_content_decides_and_not_the_name(self, tmp_path: Path) -> None:
        path = tmp_path / "report.pdf"
        path.write_bytes(BOOK)
        assert read_document(str(path)).format == "epub"

    def test_entities_are_refused(self) -> None:
        """A billion laughs, a file read through an entity: both need a document type."""
        trick = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        assert "declares a document type" in refused(odt("<text:p>&a;</text:p>", before=trick))
        members = {name: zipfile.ZipFile(io.BytesIO(DOCX)).read(name)
                   for name in zipfile.ZipFile(io.BytesIO(DOCX)).namelist()}  # fmt: skip
        members["word/styles.xml"] = trick.encode() + b"<x/>"
        assert "declares a document type" in refused(archive(members))

    def test_a_bomb_is_not_unpacked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
        bomb = odt(f"<text:p>{'a' * (2 << 20)}</text:p>")
        assert len(bomb) < 1 << 14
        assert "unpacks to too much" in refused(bomb)

    def test_a_protected_book(self) -> None:
        marks = {"META-INF/encryption.xml": "<x/>", "META-INF/rights.xml": "<x/>"}
        assert "DRM" in refused(epub({}, [], **marks))

    def test_pages_are_asked_for_in_vain(self) -> None:
        with pytest.raises(UsageError, match="DOCX"):
            read(DOCX, pages="1")
        assert read(b"one\ftwo\fthree\f", pages="2-").text == "two\fthree"
        with pytest.raises(UsageError, match="is text"):
            read(b"one", pages="1")


class TestHtml:
    def test_what_a_reader_sees(self) -> None:
        document = read(PAGE.encode())
        assert document.format == "html"
        assert document.text == (
            "## Copper\n\nbefore\n\nIt is mined. Yes.\n\nafter\n\n- first\n\n- second\n\n"
            "Year | Tons\n1850 | 7\n\n  kept\n as is"
        )

    def test_its_own_encoding_where_it_is_not_utf_8(self) -> None:
        page = '<html><meta charset="cp1251"><body>Привет</body></html>'
        assert read(page.encode("cp1251")).text == "Привет"

    def test_nesting_has_a_bound(self) -> None:
        assert "nested too deeply" in refused(b"<html>" + b"<div>" * 100_000)
        many = b"<html>" + b"<p>a<li>b<br><td>" * 20_000
        assert read(many).text.startswith("a")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert "pip install 'specx[docs]'" in refused(PAGE.encode())
    assert read(ODT).format == "odt", "which needs nothing more"


@pytest.mark.parametrize("name", ["pdf", "docx", "odt", "epub", "html"])
def test_damaged_files_are_read_or_refused(name: str) -> None:
    """2,000 of each were tried for the change that brought the formats; here are a few."""
    rng = random.Random(7)
    outline = {"Copper": 0}
    made = {"pdf": pdf([BODY, BODY], outline), "docx": DOCX, "odt": ODT, "epub": BOOK}
    raw = made.get(name, PAGE.encode())
    for _ in range(60):
        is_whole = name in ("pdf", "html") or rng.random() < 0.3
        damaged = _mutated(raw, rng) if is_whole else _inside(raw, rng)
        try:
            document = read(damaged)
        except DocumentError:
            continue
        assert all(0 <= each.start <= len(document.text) for each in document.sections)


def _mutated(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    changes: tuple[Callable[[int], object], ...] = (
        lambda at: data.__setitem__(at, rng.randrange(256)),
        lambda at: data.__delitem__(slice(at, at + rng.choice((1, 9, 300)))),
        lambda at: data.insert(at, rng.choice(b"<>&\"'\0/")),
    )
    for _ in range(rng.choice((1, 3, 20))):
        if data:
            rng.choice(changes)(rng.randrange(len(data)))
    return bytes(data)


def _inside(raw: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    hit = rng.choice(sorted(members))
    return archive(members | {hit: _mutated(members[hit], rng)})
