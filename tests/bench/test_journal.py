"""The journal survives what happens to long runs: kills, full disks, other settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specx.bench.journal import (
    DifferenceLine,
    FloorLine,
    Journal,
    MissingLine,
    NotesLine,
    SampleLine,
    newest,
)
from specx.bench.schema import BenchCell, BenchDifference, Sample
from specx.errors import UsageError
from specx.prompts import Prompt
from tests.bench.fakes import (
    BUILD,
    ENVIRONMENT,
    Bench,
    Clock,
    FakeSubject,
    facts,
    new_journal,
    plan,
    resumed_journal,
)


def _sample(cell: BenchCell) -> Sample:
    subject = FakeSubject(facts(), Clock())
    return subject.run(cell, Prompt((1,), 1), lambda: None)


def _filled(path: Path) -> Journal:
    of = plan()
    with new_journal(path, of) as journal:
        for number, cell in enumerate(of.cells()):
            journal.keep(SampleLine(elapsed_s=number, sample=_sample(cell)))
        journal.keep(FloorLine(floor=FakeSubject(facts(), Clock()).floor(1000)))
        first = next(of.cells())
        found = BenchDifference(index=1, expected=2, got=None, margin=None)
        journal.keep(DifferenceLine(cell=first, difference=found))
        journal.keep(MissingLine(cell=first, reason="because"))
        journal.keep(NotesLine(preset="tiny", notes=("a .bin", "a guess")))
    return journal


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    journal = _filled(tmp_path / "j.jsonl")
    with resumed_journal(tmp_path / "j.jsonl", plan()) as again:
        assert again.finished == journal.finished
        assert again.finished.elapsed_s == plan().size - 1
        assert again.finished.header is not None
        assert again.finished.header.created == "2026-11-22T15:00:00+00:00"
        assert again.finished.notes == {"tiny": ("a .bin", "a guess")}


def test_a_journal_from_before_notes_were_kept_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    _filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"kind":"notes"' not in line))
    with resumed_journal(path, plan()) as journal:
        assert journal.finished.notes == {}
        journal.keep(NotesLine(preset="tiny", notes=()))
        assert path.read_bytes().count(b"\n") == len(lines) - 1, "nothing to keep"
        journal.keep(NotesLine(preset="tiny", notes=("a guess",)))
        journal.keep(NotesLine(preset="tiny", notes=("a guess",)))
    assert path.read_bytes().count(b"\n") == len(lines), "told once"
    with resumed_journal(path, plan()) as journal:
        assert journal.finished.notes == {"tiny": ("a guess",)}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_journal_cut_anywhere_resumes_with_its_whole_lines(tmp_path: Path, share: float) -> None:
    """A kill can end the file at any byte; from the end of the header on, nothing whole is lost."""
    path = tmp_path / "cut.jsonl"
    path.unlink(missing_ok=True)
    _filled(path)
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    cut = header + round(share * (len(data) - header))
    path.write_bytes(data[:cut])
    with resumed_journal(path, plan()) as journal:
        whole = data[:cut].count(b"\n") - 1
        held = journal.finished
        kinds = (held.samples, held.floors, held.differences, held.missing, held.notes)
        assert sum(map(len, kinds)) == whole
        cell = next(plan().cells())
        journal.keep(MissingLine(cell=cell, reason="written after the cut"))
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    new_journal(tmp_path / "j.jsonl", plan(max_tokens=9)).__exit__(None, None, None)
    with pytest.raises(UsageError) as caught:
        resumed_journal(tmp_path / "j.jsonl", plan(max_tokens=12, warmup=3))
    assert "max_tokens: 9 → 12" in caught.value.reason
    assert "warmup: 1 → 3" in caught.value.reason


def test_another_machine_is_refused_and_named(tmp_path: Path) -> None:
    new_journal(tmp_path / "j.jsonl", plan()).__exit__(None, None, None)
    other = ENVIRONMENT.model_copy(update={"torch": "2.14.0"})
    with pytest.raises(UsageError) as caught:
        Journal.resume(tmp_path / "j.jsonl", plan(), other, BUILD)
    assert "env.torch: 2.13.0 → 2.14.0" in caught.value.reason


def test_a_new_journal_never_replaces_one(tmp_path: Path) -> None:
    new_journal(tmp_path / "j.jsonl", plan()).__exit__(None, None, None)
    with pytest.raises(UsageError, match="exists"):
        new_journal(tmp_path / "j.jsonl", plan())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"[1]\n",
        b'{"schema": "specx.result/1"}\n',
        b'{"schema": "specx.bench-journal/1", "created": "x"}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
    ],
)
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match="journal"):
        resumed_journal(tmp_path / "j.jsonl", plan())
    assert (tmp_path / "j.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"7",
        b'{"kind": "sample"}',
        b'{"kind": "sample", "elapsed_s": 1, "sample": {"cell": 1}}',
        b'{"kind": "other"}',
        b'{"kind": "notes", "preset": "tiny", "notes": "one"}',
        b'{"kind": "missing", "cell": {"preset": "x"}, "reason": 1}',
        b"not json",
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "j.jsonl"
    _filled(path)
    count = path.read_bytes().count(b"\n")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UsageError) as caught:
        resumed_journal(path, plan())
    assert f"line {count + 1} " in caught.value.reason


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from specx.errors import ResourceError
from tests.bench.fakes import Bench, new_journal, plan
path, room = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
of = plan()
journal = new_journal(path, of)
limit = path.stat().st_size + room
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    Bench(of, journal).events()
except ResourceError as error:
    print(error.message, "|", error.hints[-1])
    sys.exit(error.exit_code)
"""


def test_no_space_left_is_an_error_and_the_journal_stays_whole(tmp_path: Path) -> None:
    """The limit on the file's size stands for the disk: a write is cut short, then refused."""
    path = tmp_path / "j.jsonl"
    found = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path), "2500"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 6, found.stderr
    assert "cannot write the journal" in found.stdout
    assert f"--resume {path}" in found.stdout
    assert path.read_bytes().endswith(b"\n"), "half a line was taken back"
    with resumed_journal(path, plan()) as journal:
        assert 0 < len(journal.finished.samples) < plan().size
        Bench(plan(), journal).events()
        assert len(journal.finished.samples) == plan().size


def test_the_newest_journal_is_found(tmp_path: Path) -> None:
    import os

    for name, age_s in (("a", 30), ("b", 10), ("c", 20)):
        new_journal(tmp_path / f"{name}.jsonl", plan()).__exit__(None, None, None)
        os.utime(tmp_path / f"{name}.jsonl", (1e9 - age_s, 1e9 - age_s))
    (tmp_path / "d.jsonl").write_text("something else\n")
    assert newest(tmp_path) == tmp_path / "b.jsonl"
    assert newest(tmp_path / "nowhere") is None
