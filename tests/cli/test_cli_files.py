"""``--out``: a file appears whole or not at all, and never by surprise."""

import os
import stat
import tempfile

import pytest

from specx.cli.errors import OutputClosed
from specx.cli.output_file import Sink, open_sink
from specx.cli.signals import Stopped
from specx.errors import ResourceError, UsageError


def test_the_answer_goes_to_the_file_instead_of_stdout(cli, workplace, tmp_path):
    words = ("summarize", workplace.short, "-m", workplace.preset, "-n", "6", "--mode", "plain")
    out = tmp_path / "answer.txt"
    shown = cli(*words)
    written = cli(*words, "--out", out)
    assert (written.code, written.out) == (0, "")
    assert out.read_text(encoding="utf-8") == shown.out
    refused = cli(*words, "--out", out)
    assert refused.code == 2
    assert "--force" in refused.err
    assert cli(*words, "-n", "3", "--out", out, "--force").code == 0
    assert shown.out.startswith(out.read_text(encoding="utf-8")[:-1])
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_run_leaves_no_file(cli, workplace, tmp_path):
    out = tmp_path / "answer.txt"
    assert cli("summarize", tmp_path / "none.txt", "--out", out).code == 3
    too_long = ("summarize", workplace.short, "-m", workplace.preset, "-n", "5000")
    assert cli(*too_long, "--out", out).code == 7
    assert list(tmp_path.iterdir()) == []


def test_finished_documents_are_kept_when_a_later_one_fails(cli, workplace, tmp_path):
    out = tmp_path / "answers.jsonl"
    files = (workplace.short, tmp_path / "none.txt")
    words = ("-m", workplace.preset, "-n", "2", "-o", "jsonl", "--keep-going")
    assert cli("summarize", *files, *words, "--out", out).code == 10
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_an_input_is_never_the_output(workplace):
    path = str(workplace.short)
    with pytest.raises(UsageError, match="one of the documents"):
        open_sink(path, force=True, inputs=[path])


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(UsageError, match="Permission denied"):
        open_sink(str(tmp_path / "x"), force=False, inputs=[])
    existing = tmp_path / "existing"
    existing.write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="Permission denied"):
        open_sink(str(existing), force=True, inputs=[])
    with pytest.raises(UsageError, match="no directory"):
        open_sink(str(existing / "below"), force=False, inputs=[])


def test_permissions_and_links_survive(tmp_path):
    real = tmp_path / "real.txt"
    real.write_text("old", encoding="utf-8")
    real.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    with open_sink(str(link), force=True, inputs=[]) as sink:
        sink.write("new")
        assert real.read_text(encoding="utf-8") == "old"
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize(("error", "kept"), [(ValueError("x"), False), (Stopped(15), True)])
def test_what_remains_after_a_bad_end(tmp_path, error, kept):
    """A bug discards the file; a signal keeps what was written, as a pipe would have."""

    def run():
        with open_sink(str(tmp_path / "x.txt"), force=False, inputs=[]) as sink:
            sink.write("half")
            raise error

    with pytest.raises(type(error)):
        run()
    assert [path.name for path in tmp_path.iterdir()] == (["x.txt"] if kept else [])


def test_devices_are_written_to_and_not_replaced(cli, workplace):
    words = ("summarize", workplace.short, "-m", workplace.preset, "-n", "2")
    assert cli(*words, "--out", os.devnull).code == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    full = cli(*words, "--out", "/dev/full")
    assert full.code == 6
    assert "No space left" in full.err


@pytest.mark.parametrize("is_full", [True, False], ids=["full disk", "closed pipe"])
def test_write_errors_have_names(is_full):
    if is_full:
        descriptor, expected = os.open("/dev/full", os.O_WRONLY), ResourceError
    else:
        (read_end, descriptor), expected = os.pipe(), OutputClosed
        os.close(read_end)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        with pytest.raises(expected):
            Sink(stream).write("text")
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # closing flushes once more
