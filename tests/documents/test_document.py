"""Documents: faithful text in, and a useful sentence for everything that is no text."""

import gzip
import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.documents import document as documents
from specx.documents.document import read_document, read_stdin
from specx.errors import DocumentError, UsageError


def refuse(raw: bytes, encoding: str | None = None) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        read_stdin(io.BytesIO(raw), encoding=encoding)
    return caught.value


def test_reads_a_file_and_remembers_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "Report.MD"
    raw = "\ufeff# Título\r\n\r\nText with a tab\tand </s>, \x1b[31m, {document}.\n".encode()
    path.write_bytes(raw)
    document = read_document(str(path))
    assert document.text == "# Título\n\nText with a tab\tand </s>, \x1b[31m, {document}.\n"
    assert (document.name, document.path) == ("Report.MD", str(path))
    assert (document.format, document.bytes) == ("markdown", len(raw))
    assert document.sha256 == hashlib.sha256(raw).hexdigest()


def test_standard_input_follows_the_same_rules() -> None:
    document = read_stdin(io.BytesIO(b"one\r\ntwo\rthree\n"))
    assert document.text == "one\ntwo\rthree\n"
    assert (document.name, document.path, document.format) == ("stdin", None, "text")


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(
        lambda text: text.removeprefix("\ufeff").strip() != ""
    )
)
def test_round_trip(text: str) -> None:
    """Apart from a byte order mark and Windows line ends the text is what the bytes say."""
    raw = text.encode()
    try:
        document = read_stdin(io.BytesIO(raw))
    except DocumentError:
        assert raw.startswith((b"%PDF-", b"{\\rtf", b"PK\x03\x04"))
        return
    assert document.text == text.removeprefix("\ufeff").replace("\r\n", "\n")


@given(st.binary(), st.sampled_from([None, "utf-8", "utf-16", "latin-1", "shift_jis", "utf-7"]))
def test_any_bytes_are_a_document_or_a_document_error(raw: bytes, encoding: str | None) -> None:
    try:
        document = read_stdin(io.BytesIO(raw), encoding=encoding)
    except DocumentError:
        return
    assert document.text.strip()
    assert "\0" not in document.text
    assert document.text.encode().decode() == document.text  # tokenizers take no lone surrogates


class TestEncodings:
    def test_names_the_offset_and_the_likely_encoding(self) -> None:
        error = refuse(b"caf\xe9 au lait, " * 9)
        assert error.message == "standard input is not UTF-8 text"
        assert "0xe9 at offset 3" in error.reason
        assert "--encoding latin-1" in error.hints[0]
        assert "cp1252" in refuse(b"He said \x93hello\x94.").hints[0]
        assert "cp1251" in refuse("Привет, мир".encode("cp1251")).hints[0]
        assert "cut off" in refuse("Grüße".encode()[:3]).hints[0]

    def test_reads_what_it_is_told_to(self) -> None:
        for encoding in ("latin-1", "cp1252", "utf-16", "UTF8", "utf-16-le"):
            raw = "\ufeffcafé" if encoding == "utf-16-le" else "café"
            document = read_stdin(io.BytesIO(raw.encode(encoding)), encoding=encoding)
            assert document.text == "café"
        assert read_stdin(io.BytesIO(b"\xef\xbb\xbfx"), encoding="utf-8").text == "x"

    def test_utf_16_is_recognised(self) -> None:
        """Windows' "Unicode" text used to be reported as binary data."""
        assert "--encoding utf-16" in refuse("text".encode("utf-16")).hints[0]
        assert "--encoding utf-16-le" in refuse(("text " * 9).encode("utf-16-le")).hints[0]

    @pytest.mark.parametrize("name", ["utf-32", "utf-32-le", "utf-32-be", "utf-16-be"])
    def test_other_widths_are_recognised(self, name: str) -> None:
        raw = ("some text " * 9).encode(name)
        assert refuse(raw).hints[0].endswith(f"--encoding {name}")
        assert read_stdin(io.BytesIO(raw), encoding=name).text == "some text " * 9

    def test_a_wrong_choice_is_said(self) -> None:
        assert "not ascii text" in refuse("é".encode(), "ascii").message
        assert "NUL" in refuse(b"a\0b", "latin-1").reason

    @pytest.mark.parametrize("name", ["latin-11", "base64", "rot13", "", "a\0b", "undefined"])
    def test_an_unknown_one_is_wrong_usage(self, name: str) -> None:
        with pytest.raises(UsageError, match="is not a text encoding"):
            read_stdin(io.BytesIO(b"x"), encoding=name)

    def test_suggests(self) -> None:
        with pytest.raises(UsageError) as caught:
            read_stdin(io.BytesIO(b"x"), encoding="latin-11")
        assert caught.value.hints == ("did you mean latin-1?",)


class TestNotText:
    @pytest.mark.parametrize(
        ("raw", "kind", "command"),
        [
            (b"%PDF-1.7\n%\xe2\xe3", "a PDF", "pdftotext FILE - | specx summarize"),
            (b"{\\rtf1\\ansi", "an RTF", "pandoc"),
            (gzip.compress(b"text", mtime=0), "gzip", "gzip -dc FILE"),
            (b"\x28\xb5\x2f\xfd..", "zstd", "zstd -dc"),
            (b"\x89PNG\r\n\x1a\n", "a PNG", "tesseract"),
            (b"\xff\xd8\xff\xe0", "a JPEG", "tesseract"),
            (b"\x7fELF\x02", "ELF", ""),
            (b"abc\0def" * 9, "binary data", ""),
        ],
    )
    def test_says_what_it_is_and_what_helps(self, raw: bytes, kind: str, command: str) -> None:
        error = refuse(raw)
        assert kind in error.message
        assert error.exit_code == 3
        assert command in " ".join(error.hints)

    def test_word_documents_and_other_archives(self) -> None:
        for inside, kind in (("word/document.xml", "DOCX"), ("a.txt", "a ZIP archive")):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(inside, "x")
            assert kind in refuse(buffer.getvalue()).message

    def test_hints_quote_the_name_for_the_shell(self, tmp_path: Path) -> None:
        path = tmp_path / "my report; rm -rf x.pdf"
        path.write_bytes(b"%PDF-1.4")
        with pytest.raises(DocumentError) as caught:
            read_document(str(path))
        assert f"pdftotext '{path}' - |" in caught.value.hints[0]

    def test_nothing_to_read(self) -> None:
        assert refuse(b"").message == "standard input is empty"
        for raw in (b" \r\n\t", b"\xef\xbb\xbf\n", "\u3000\n".encode()):
            assert "nothing but white space" in refuse(raw).message

    def test_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """/dev/zero has no size to ask for, so the bound must hold while reading."""
        monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1 << 20)
        assert "larger than 1 MiB" in refuse(b"a" * ((1 << 20) + 1)).message
        assert read_stdin(io.BytesIO(b"a" * (1 << 20))).bytes == 1 << 20
        if os.path.exists("/dev/zero"):
            with pytest.raises(DocumentError, match="larger than 1 MiB"):
                read_document("/dev/zero")


class TestFiles:
    def test_missing_ones_suggest_a_neighbour(self, tmp_path: Path) -> None:
        (tmp_path / "report.txt").write_text("x")
        with pytest.raises(DocumentError) as caught:
            read_document(str(tmp_path / "reprot.txt"))
        assert caught.value.hints == (f"did you mean {tmp_path / 'report.txt'}?",)
        with pytest.raises(DocumentError, match="there is no file"):
            read_document(str(tmp_path / "nowhere" / "x.txt"))

    def test_addresses_are_not_fetched(self) -> None:
        with pytest.raises(DocumentError) as caught:
            read_document("https://example.org/a b.txt")
        assert "curl -L 'https://example.org/a b.txt' | specx" in caught.value.hints[0]

    def test_directories_and_names_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match="is a directory"):
            read_document(str(tmp_path))
        for name in ("a\0b", "x" * 5000, ""):
            with pytest.raises(DocumentError):
                read_document(name)

    def test_permission_denied(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.txt"
        path.write_text("x")
        path.chmod(0)
        user = os.geteuid()
        if user == 0:  # root may read everything: be nobody for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(DocumentError, match="permission denied"):
                read_document(str(path))
        finally:
            os.seteuid(user)

    def test_standard_input_that_is_a_directory(self) -> None:
        """``specx summarize < folder`` is an easy slip."""
        with pytest.raises(DocumentError, match="cannot be read: Is a directory"):
            read_stdin(_Unreadable())

    def test_a_pipe_is_read_to_its_end(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"from a pipe\n")
        os.close(writer)
        assert read_document(f"/dev/fd/{reader}").text == "from a pipe\n"
        os.close(reader)


class _Unreadable(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise IsADirectoryError(21, "Is a directory")
