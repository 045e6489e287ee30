"""Texts to measure on: sources, damaged lines, the Hub (a local server plays it), exact cuts."""

import gzip
import hashlib
import json
import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.bench import data
from specx.bench.data import BenchData, cut_prompt, load_data
from specx.checkpoints import load as hub
from specx.checkpoints.download import Download, Notice, listening
from specx.errors import DocumentError, ModelUnavailableError, ResourceError, UsageError
from specx.preset.preset import load_preset
from specx.prompts import Prompt, Prompter
from tests.helpers import tiny_tokenizer
from tests.hubserver import LISTING, HubServer, point_client_at, serving

FRAME = "\n\nSummarize the following text.\n### Text:\n\n{}\n\n### Summary:\n\n"


@cache
def pocket() -> Prompter:
    preset = load_preset("pocket")
    return Prompter(hub.find_pair(preset, offline=True).tokenizer, preset.prompt)


@cache
def tiny() -> Prompter:
    return Prompter(tiny_tokenizer(), load_preset("pocket").prompt)


def lines(*rows: Any) -> bytes:
    """JSON lines; bytes stay as they are."""
    raw = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return b"".join(line + b"\n" for line in raw)


def load(folder: Path, *rows: Any, samples: int = 5, field: str = "text") -> BenchData:
    path = folder / "data.jsonl"
    path.write_bytes(lines(*rows))
    return load_data(str(path), samples=samples, field=field)


class TestSample:
    def test_it_is_long_clean_and_in_the_public_domain(self) -> None:
        found = load_data("sample", samples=5)
        assert found.name == "sample"
        assert not found.skipped
        assert len(found.documents) == 5
        for text in found.documents:
            tokens = pocket().tokenizer.encode(text.text)
            assert 20_400 <= len(tokens) <= 20_700
            assert text.text.endswith(".")
            assert len(text.name) <= 40
            kinds = {unicodedata.category(sign) for sign in set(text.text) - {"\n"}}
            assert not kinds & {"Cc", "Cf", "Cn", "Co", "Cs"}
        path = Path(data.__file__).parent / "sample.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(set(row) == {"name", "text", "source"} for row in rows)
        assert all("public domain" in row["source"] for row in rows)

    def test_a_document_is_known_by_its_hash(self) -> None:
        text = load_data("sample", samples=1).documents[0]
        document = text.document
        assert document.name == text.name
        assert document.characters == len(text.text)
        assert document.sha256 == hashlib.sha256(text.text.encode()).hexdigest()

    @pytest.mark.parametrize("length", [1024, 4096, 16384])
    def test_every_text_gives_prompts_of_exactly_the_length(self, length: int) -> None:
        for text in load_data("sample", samples=1).documents:
            prompt = cut_prompt(pocket(), text.text, length)
            assert prompt is not None
            assert len(prompt.tokens) == length


class TestLines:
    def test_what_cannot_be_used_is_counted(self, tmp_path: Path) -> None:
        found = load(
            tmp_path,
            {"text": "good"},
            b"{not json",
            b"",
            ["a", "list"],
            {"body": "x", "title": "y"},
            {"text": 7},
            {"text": " \n "},
            b'{"text": "\xff"}',
            b'{"text": "\\ud800"}',
            {"text": "a\0b"},
            b"[" * 100_000,
            b'{"text": "x", "n": ' + b"9" * 5000 + b"}",
            {"text": " good "},
            {"text": "better", "name": "the-best"},
        )
        assert [(text.name, text.text) for text in found.documents] == [
            ("data-1", "good"),
            ("the-best", "better"),
        ]
        assert [(each.where, each.reason) for each in found.skipped] == [
            ("data.jsonl line 2", "not JSON"),
            ("data.jsonl line 4", "not a JSON object"),
            ("data.jsonl line 5", "no field 'text'; there are: body, title"),
            ("data.jsonl line 6", "field 'text' is not a string"),
            ("data.jsonl line 7", "the text is empty"),
            ("data.jsonl line 8", "not UTF-8"),
            ("data.jsonl line 9", "the text holds half a surrogate pair"),
            ("data.jsonl line 10", "the text holds NUL characters"),
            ("data.jsonl line 11", "not JSON"),
            ("data.jsonl line 12", "not JSON"),
            ("data-13", "the same text as data-1"),
        ]

    @pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[2J", "x" * 81, 7, None, ["a"]])
    def test_a_name_that_is_none(self, tmp_path: Path, name: object) -> None:
        assert load(tmp_path, {"text": "t", "name": name}).documents[0].name == "data-1"

    def test_another_field(self, tmp_path: Path) -> None:
        found = load(tmp_path, {"report": "a", "text": "b"}, field="report")
        assert found.documents[0].text == "a"

    def test_a_byte_order_mark(self, tmp_path: Path) -> None:
        assert load(tmp_path, b'\xef\xbb\xbf{"text": "a"}').documents[0].text == "a"

    def test_a_line_that_is_too_long_is_passed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data, "MAX_LINE_BYTES", 64)
        longs = [{"text": "x" * size} for size in (51, 52, 53, 115, 116, 117, 118, 180, 1000)]
        found = load(tmp_path, *longs, {"text": "short"})
        assert [text.name for text in found.documents] == ["data-1", "data-10"]
        assert [each.where for each in found.skipped] == [
            f"data.jsonl line {number}" for number in range(2, 10)
        ]
        assert {each.reason for each in found.skipped} == {"longer than 0 MiB"}

    def test_a_file_is_not_read_for_ever(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data, "MAX_FILE_BYTES", 1000)
        found = load(tmp_path, {"text": "a"}, *[b"junk"] * 1000, {"text": "b"})
        assert len(found.documents) == 1
        assert found.skipped[-1].where == "data.jsonl"
        assert "more, not named" in found.skipped[-1].reason

    def test_only_as_many_as_needed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [{"text": f"text {number}"} for number in range(100)]
        assert len(load(tmp_path, *rows, samples=1).documents) == 36
        assert len(load(tmp_path, *rows, samples=3).documents) == 44
        monkeypatch.setattr(data, "MAX_CHARACTERS", 20)
        assert len(load(tmp_path, *rows, samples=3).documents) == 4

    def test_many_skipped_lines_are_summed_up(self, tmp_path: Path) -> None:
        found = load(tmp_path, *[b"junk"] * 1100, {"text": "a"})
        assert len(found.skipped) == 101
        assert found.skipped[-1].reason == "1,000 more, not named one by one"

    def test_nothing_usable(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError) as caught:
            load(tmp_path, b"junk", {"body": "x"}, [], b"junk")
        assert caught.value.message == "there is no usable text in data.jsonl"
        assert caught.value.reason == (
            "data.jsonl line 1: not JSON; data.jsonl line 2: no field 'text'; there are: body; "
            "data.jsonl line 3: not a JSON object; and so on"
        )
        assert caught.value.exit_code == 3
        with pytest.raises(DocumentError, match="it is empty"):
            load(tmp_path)

    @given(st.lists(st.binary(max_size=40), max_size=5))
    @settings(max_examples=50)
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, rows: list[bytes]) -> None:
        found = load(tmp_path_factory.mktemp("any"), *rows, {"text": "a"})
        assert found.documents[-1].text == "a"


class TestPacked:
    def test_gzip(self, tmp_path: Path) -> None:
        path = tmp_path / "data.JSONL.gz"
        path.write_bytes(gzip.compress(lines({"text": "a"}, {"text": "b"})))
        found = load_data(str(path), samples=1)
        assert [text.name for text in found.documents] == ["data-1", "data-2"]

    def test_what_comes_before_the_damage_counts(self, tmp_path: Path) -> None:
        rows = [{"text": random.Random(number).randbytes(500).hex()} for number in range(20)]
        raw = gzip.compress(lines(*rows))
        path = tmp_path / "data.jsonl.gz"
        path.write_bytes(raw[: len(raw) // 2])
        found = load_data(str(path), samples=1)
        assert 1 < len(found.documents) < 20
        assert "the file is damaged" in found.skipped[0].reason
        path.write_bytes(raw[:-8] + bytes(8))  # another checksum
        found = load_data(str(path), samples=1)
        assert len(found.documents) == 20
        assert "the file is damaged: CRC" in found.skipped[0].reason

    def test_not_gzip_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl.gz"
        path.write_bytes(lines({"text": "a"}))
        with pytest.raises(DocumentError, match=r"line 1: the file is damaged: Not a gzipped"):
            load_data(str(path), samples=1)


class TestFrame:
    """The files published with SpecExtend hold whole requests; only their text is wanted."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (FRAME.format("A report."), "A report."),
            (FRAME.format("A report.").rstrip(), "A report."),
            (FRAME.format("See ### Summary: below."), "See ### Summary: below."),
            ("A report.\n\n### Summary:", "A report.\n\n### Summary:"),
            ("Write ### Text: first.", "Write ### Text: first."),
            ("Long. " * 60 + "\n### Text:\nEnd.", ("Long. " * 60 + "\n### Text:\nEnd.")),
        ],
    )
    def test_frames(self, tmp_path: Path, text: str, expected: str) -> None:
        assert load(tmp_path, {"text": text}).documents[0].text == expected

    def test_an_empty_frame(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match="the text is empty"):
            load(tmp_path, {"text": FRAME.format("")})


class TestFiles:
    def test_a_text_is_one_document(self, tmp_path: Path) -> None:
        path = tmp_path / "book.md"
        path.write_bytes(b"# Title\r\n\r\nText.\n")
        found = load_data(str(path), samples=3)
        assert (found.name, found.documents[0].name) == ("book.md", "book.md")
        assert found.documents[0].text == "# Title\n\nText.\n"

    def test_several_sources_take_turns(self, tmp_path: Path) -> None:
        paths = []
        for name in ("a.jsonl", "b.jsonl", "c.txt", "d.txt", "e.txt"):
            path = tmp_path / name
            is_text = name.endswith(".txt")
            rows = lines({"text": name + "1"}, {"text": name + "2"})
            path.write_bytes(name.encode() if is_text else rows)
            paths.append(str(path))
        found = load_data([*paths, paths[0]], samples=1)
        assert found.name == "a.jsonl+b.jsonl+c.txt+2 more"
        assert [text.name for text in found.documents] == [
            *("a-1", "b-1", "c.txt", "d.txt", "e.txt", "a-2", "b-2")
        ]
        assert not found.skipped

    def test_a_folder_in_the_home_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.txt").write_text("a")
        assert load_data("~/a.txt", samples=1).documents[0].text == "a"

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("missing.txt", None, "there is no file"),
            ("missing.jsonl", None, "there is no file"),
            ("x.pdf", b"%PDF-1.7", "a damaged PDF"),
            ("x.parquet", b"PAR1", "neither text nor JSON lines"),
            ("x.json", b"[]", "neither text nor JSON lines"),
            ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", "neither text nor JSON lines"),
            ("x.txt", b"", "is empty"),
            ("x.txt", b"caf\xe9", "not UTF-8 text"),
        ],
    )
    def test_refusals(self, tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DocumentError, match=said) as caught:
            load_data(["sample", str(path)], samples=1)
        hints = " ".join(caught.value.hints)
        assert "specx summarize" not in hints
        assert "--encoding" not in hints

    def test_a_misspelt_path_is_not_looked_for_on_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "reports.jsonl").touch()
        with pytest.raises(DocumentError, match="there is no file") as caught:
            load_data("data/report.jsonl", samples=1)
        assert "did you mean data/reports.jsonl?" in caught.value.hints

    def test_directories_and_odd_names(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match="is a directory"):
            load_data(str(tmp_path), samples=1)
        for name in ("", "no such", "a\0b", "-"):
            with pytest.raises(DocumentError):
                load_data(name, samples=1)

    def test_wrong_calls(self) -> None:
        with pytest.raises(UsageError, match="at least 1"):
            load_data("sample", samples=0)
        with pytest.raises(UsageError, match="no data"):
            load_data([], samples=1)


DATA = "datasets/owner/texts"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Data set ``owner/texts`` is empty; the cache, too."""
    with serving({DATA: tmp_path / "texts"}) as running:
        point_client_at(running.url, tmp_path / "cache", monkeypatch)
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def folder(server: HubServer) -> Path:
    """What is in ``owner/texts``."""
    directory = server.folders[DATA]
    directory.mkdir()
    return directory


class TestHub:
    def test_the_test_split_is_taken_and_kept(self, server: HubServer, folder: Path) -> None:
        (folder / "data").mkdir()
        (folder / "README.md").write_bytes(b"#")
        for name in ("latest", "validation"):
            (folder / "data" / f"{name}.jsonl").write_bytes(lines({"text": name}))
        (folder / "data/test.jsonl.gz").write_bytes(gzip.compress(lines({"text": "test"})))
        found = load_data("owner/texts", samples=1)
        assert found.name == "owner/texts"
        assert (found.documents[0].name, found.documents[0].text) == ("owner/texts/test-1", "test")
        assert server.names == ["data/test.jsonl.gz"]
        assert load_data("owner/texts", samples=1, offline=True) == found
        assert load_data("owner/texts", samples=1) == found
        assert server.names == ["data/test.jsonl.gz"], "fetched once"

    def test_a_hub_that_is_down_leaves_the_cache(
        self, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "a.jsonl").write_bytes(lines({"text": "a"}))
        found = load_data("owner/texts", samples=1)
        server.faults[LISTING] = 503
        assert load_data("owner/texts", samples=1) == found
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert load_data("owner/texts", samples=1) == found

    def test_progress_is_told(self, folder: Path) -> None:
        (folder / "a.jsonl").write_bytes(lines({"text": "a"}))
        heard: list[Download | Notice] = []
        with listening(heard.append):
            load_data("owner/texts", samples=1)
        last = heard[-1]
        assert isinstance(last, Download)
        assert (last.repo, last.file) == ("owner/texts", "a.jsonl")
        assert last.done_bytes == last.total_bytes == (folder / "a.jsonl").stat().st_size

    def test_a_broken_connection_goes_on_where_it_broke(
        self, server: HubServer, folder: Path
    ) -> None:
        """The Hub's own client began again, and said nothing of what it had."""
        raw = lines(*({"text": f"text {i}"} for i in range(100)))
        (folder / "a.jsonl").write_bytes(raw)
        server.faults["a.jsonl"] = "reset"
        with pytest.raises(ModelUnavailableError, match="cannot be fetched") as caught:
            load_data("owner/texts", samples=1)
        assert "the same command goes on from there" in caught.value.hints[0]
        server.faults.clear()
        begin = len(server.fetched)
        assert load_data("owner/texts", samples=1).documents[0].text == "text 0"
        assert 0 < server.fetched[begin][1] < len(raw), "from the first missing byte"

    def test_damaged_on_the_way(self, server: HubServer, folder: Path) -> None:
        (folder / "a.jsonl").write_bytes(lines({"text": "a"}))
        server.faults["a.jsonl"] = ["wrong"]
        with pytest.raises(ModelUnavailableError, match=r"texts/a\.jsonl arrived damaged"):
            load_data("owner/texts", samples=1)
        assert load_data("owner/texts", samples=1).documents[0].text == "a"

    @pytest.mark.parametrize(
        ("names", "chosen"),
        [
            (["train.jsonl", "dev.jsonl"], "dev.jsonl"),
            (["train.jsonl", "latest.jsonl"], "latest.jsonl"),
            (["x_test.jsonl", "validation.jsonl"], "x_test.jsonl"),
        ],
    )
    def test_choice(self, folder: Path, names: list[str], chosen: str) -> None:
        for name in names:
            (folder / name).write_bytes(lines({"text": name}))
        assert load_data("owner/texts", samples=1).documents[0].text == chosen

    def test_no_json_lines(self, folder: Path) -> None:
        for name in ("a.parquet", "b.parquet", "README.md", ".x"):
            (folder / name).touch()
        with pytest.raises(UsageError, match=r"holds no \.jsonl or \.jsonl\.gz file") as caught:
            load_data("owner/texts", samples=1)
        assert caught.value.reason == "it holds 2 .parquet, 1 .md"
        assert "convert one" in caught.value.hints[0]

    @pytest.mark.parametrize(
        "name", ["../../test.jsonl", "/tmp/test.jsonl", "a/../../test.jsonl", "..\\test.jsonl"]
    )
    def test_a_listed_path_that_leads_out_of_the_cache_is_passed_over(
        self, server: HubServer, folder: Path, name: str
    ) -> None:
        server.listed = [name]
        with pytest.raises(UsageError, match="holds no"):
            load_data("owner/texts", samples=1)
        (folder / "train.jsonl").write_bytes(lines({"text": "inside"}))
        assert load_data("owner/texts", samples=1).documents[0].text == "inside"

    @pytest.mark.parametrize(
        ("repo", "said"),
        [
            ("owner/gated", "is gated"),
            ("owner/nothing", "neither a file owner/nothing nor a data set"),
            ("owner/--bad--", "neither a file nor a data set's name"),
            ("owner/odd", "cannot be fetched"),
        ],
    )
    def test_refusals(self, server: HubServer, tmp_path: Path, repo: str, said: str) -> None:
        for name, (status, code) in {"gated": (403, "GatedRepo"), "odd": (400, "")}.items():
            server.folders[f"datasets/owner/{name}"] = tmp_path / name
            server.gated[f"datasets/owner/{name}"] = status, code
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.jsonl").write_bytes(lines({"text": "a"}))
        with pytest.raises(ModelUnavailableError, match=said) as caught:
            load_data(repo, samples=1)
        assert caught.value.exit_code == 4
        if "gated" in repo:
            assert "https://huggingface.co/datasets/owner/gated" in caught.value.hints[0]

    @pytest.mark.usefixtures("server")
    def test_offline_and_not_cached(self) -> None:
        with pytest.raises(ModelUnavailableError, match="data set owner/texts is not in") as caught:
            load_data("owner/texts", samples=1, offline=True)
        assert "--data sample" in " ".join(caught.value.hints)

    def test_offline_and_another_file_cached(self, server: HubServer, folder: Path) -> None:
        (folder / "README.md").write_bytes(b"#")
        huggingface_hub.hf_hub_download("owner/texts", "README.md", repo_type="dataset")
        with pytest.raises(ModelUnavailableError, match="not in the local cache"):
            load_data("owner/texts", samples=1, offline=True)

    def test_no_room_is_told_before_the_first_byte(
        self, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "a.jsonl").write_bytes(lines({"text": "a"}))
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(ResourceError, match="no room for the download") as caught:
            load_data("owner/texts", samples=1)
        assert "--data sample" in caught.value.hints[-1]
        assert server.names == []


class CountingPrompter:
    """Remembers the documents that prompts were made of."""

    def __init__(self, prompter: Prompter) -> None:
        self.tokenizer, self._prompter = prompter.tokenizer, prompter
        self.documents: list[str] = []

    def prompt(self, document: str, instruction: str | None = None) -> Prompt:
        self.documents.append(document)
        return self._prompter.prompt(document, instruction)


class TestCut:
    def test_it_is_a_beginning_of_the_text(self) -> None:
        text = load_data("sample", samples=1).documents[0].text
        maker = CountingPrompter(pocket())
        for tokens in (100, 333, 1000):
            prompt = cut_prompt(maker, text, tokens)
            assert prompt is not None
            assert len(prompt.tokens) == tokens
            assert prompt == pocket().prompt(maker.documents[-1])
        assert all(text.startswith(document) for document in maker.documents if document != "x")
        assert len(maker.documents) <= 4 * 3  # each costs as much as reading the whole text

    def test_the_whole_text_may_be_the_cut(self) -> None:
        text = "The harbour was quiet. Nobody had expected the ship."
        whole = pocket().prompt(text)
        assert cut_prompt(pocket(), text, len(whole.tokens)) == whole
        assert cut_prompt(pocket(), text, len(whole.tokens) + 1) is None
        assert cut_prompt(pocket(), text, len(whole.tokens) + 5000) is None

    def test_no_room_for_a_document(self) -> None:
        with pytest.raises(UsageError, match="leaves no room for a document"):
            cut_prompt(pocket(), "The harbour was quiet.", 2)

    @pytest.mark.parametrize("text", ["", " ", "\n" * 100])
    def test_nothing_to_cut(self, text: str) -> None:
        assert cut_prompt(pocket(), text, 4000) is None

    def test_characters_of_several_tokens(self) -> None:
        """There is no cut inside a character, so not every length can be met."""
        for maker in (tiny(), pocket()):
            for tokens in range(200, 230):
                prompt = cut_prompt(maker, "漢字🙂語" * 100, tokens)
                assert prompt is not None
                assert tokens - 8 <= len(prompt.tokens) <= tokens

    def test_only_the_beginning_of_a_long_text_is_read(self) -> None:
        maker = CountingPrompter(tiny())
        assert cut_prompt(maker, "a" * 5_000_000, 200) is not None
        assert max(map(len, maker.documents)) < 5000

    @given(st.text(max_size=400), st.integers(60, 300))
    @settings(max_examples=60)
    def test_never_more_never_far_less(self, text: str, tokens: int) -> None:
        prompt = cut_prompt(tiny(), text, tokens)
        if prompt is not None:
            assert tokens - 8 <= len(prompt.tokens) <= tokens
        elif text:
            assert len(tiny().prompt(text).tokens) < tokens or not text.isascii()
