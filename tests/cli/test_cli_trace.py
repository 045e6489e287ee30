"""``specx trace``: a recorded run again, on a terminal, in a pipe, as a page."""

import json
import re
import time

import pytest

from specx.trace.records import read_trace
from tests.cli.support import exit_code, on_terminal, specx

CODES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|.)")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A run of the bundled pair, recorded once: its trace and its text."""
    from importlib.resources import files

    from tests.cli.support import process

    directory = tmp_path_factory.mktemp("bundled")
    report = (files("specx") / "pocket" / "report.txt").read_text(encoding="utf-8")
    document = directory / "report.md"
    heading = "# <script>alert(1)</script> [bold]x[/bold]\n\n"
    document.write_text(heading + report[:4500], encoding="utf-8")
    trace = directory / "run.jsonl"
    done = process(
        *("summarize", document, "-n", "40", "--mode", "specx", "--trace", trace),
        *("--set", "retrieval.top_chunks=4", "--set", "retrieval.recent_chunks=2"),
    )
    assert done.returncode == 0, done.stderr.decode()
    return trace, done.stdout.decode()


@pytest.fixture
def replay(bundled):
    """``replay("--speed", "0")`` on a terminal."""

    def start(*more, columns=80, **environment):
        return on_terminal(specx("trace", bundled[0], *more), columns=columns, **environment)

    return start


def test_the_bundled_pair_end_to_end(bundled):
    trace, text = bundled
    recorded = read_trace(str(trace))
    assert recorded.text == text.rstrip("\n")
    assert recorded.end is not None
    assert recorded.stats().accepted_per_step > 1
    assert any(step.retrieved for step in recorded.steps)
    assert recorded.header.ticks[0].label == "<script>alert(1)</script> [bold]x[/bold]"


def test_in_a_pipe_totals_and_text(cli, bundled):
    done = cli("trace", bundled[0])
    assert (done.code, done.err) == (0, "")
    totals, _, text = done.out.partition("\n\n")
    rows = dict(line.split("\t") for line in totals.splitlines())
    assert text == bundled[1]
    assert rows["document"] == "report.md"
    assert rows["new tokens"] == "40"
    assert rows["ended by"] == "length"
    assert "accepted + 1" in rows["acceptance"]


def test_at_once(replay, bundled):
    child = replay("--speed", "0", NO_COLOR="1")
    assert exit_code(child) == 0
    assert "\x1b[?1049h" not in child.before
    shown = CODES.sub("", child.before).replace("\r\n", "\n")
    assert bundled[1] in shown
    assert "most retrieved" in shown
    assert "accepted + 1" in shown
    assert re.search("[░▒▓█]", shown)


@pytest.mark.parametrize("columns", [80, 40])
def test_at_a_speed(replay, bundled, columns):
    whole_s = read_trace(str(bundled[0])).end.elapsed_s
    child = replay("--speed", "8", columns=columns)
    child.expect_exact("\x1b[?1049h")
    began = time.monotonic()
    child.expect_exact("\x1b[?1049l")
    assert whole_s / 8 * 0.5 < time.monotonic() - began < whole_s / 8 + 20
    assert exit_code(child) == 0
    assert bundled[1] in CODES.sub("", child.before).replace("\r\n", "\n")


def test_ctrl_c_ends_a_replay(replay):
    child = replay("--speed", "0.01")
    child.expect_exact("\x1b[?1049h")
    child.sendintr()
    child.expect_exact("\x1b[?1049l")
    assert exit_code(child) == 130
    assert "Traceback" not in child.before


def test_a_page_for_everybody(cli, bundled, tmp_path):
    page = tmp_path / "run.html"
    assert cli("trace", bundled[0], "--export", page).code == 0
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert "alert(1)</script>" not in written
    refused = cli("trace", bundled[0], "--export", page)
    assert refused.code == 2
    assert "--force" in refused.err
    assert cli("trace", bundled[0], "--export", page, "--force").code == 0
    itself = cli("trace", bundled[0], "--export", bundled[0], "--force")
    assert itself.code == 2
    full = cli("trace", bundled[0], "--export", "/dev/full")
    assert full.code == 6


def test_a_cut_trace_is_replayed_with_a_warning(cli, bundled, tmp_path):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(bundled[0].read_bytes()[:-30])
    done = cli("trace", cut)
    assert done.code == 0
    assert "warning: line" in done.err
    assert "cut short" in done.out
    assert cli("trace", cut, "--export", tmp_path / "cut.html").code == 0


def test_a_damaged_trace_is_refused(cli, bundled, tmp_path):
    lines = bundled[0].read_text(encoding="utf-8").splitlines()
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("\n".join([lines[0], "{]", *lines[1:], ""]), encoding="utf-8")
    done = cli("trace", damaged)
    assert (done.code, done.out) == (3, "")
    assert "line 2" in done.err
    assert cli("trace", tmp_path / "none").code == 3
    damaged.write_bytes(b"\x00\x1b[2J\n")
    assert cli("trace", damaged).code == 3
    assert "\x1b" not in cli("trace", damaged).err


def test_hostile_names_in_a_trace(cli, bundled, tmp_path):
    lines = bundled[0].read_text(encoding="utf-8").splitlines()
    header = json.loads(lines[0])
    header["mode"] = header["created"] = header["input"]["name"] = "[bold]\x1b[31m\x00\n\tx"
    changed = tmp_path / "hostile.jsonl"
    changed.write_text("\n".join([json.dumps(header), *lines[1:], ""]), encoding="utf-8")
    done = cli("trace", changed)
    assert done.code == 0
    assert not re.search("[\x00-\x08\x0b-\x1f]", done.out)
    assert "[bold]␛[31m␀␊ x" in done.out


@pytest.mark.parametrize("speed", ["-1", "nan", "inf", "fast"])
def test_speeds_that_make_no_sense(cli, bundled, speed):
    done = cli("trace", bundled[0], "--speed", speed)
    assert done.code == 2
    assert "speed" in done.err


def test_help(cli):
    shown = cli("trace", "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    assert "document's text" in shown
