"""``--show`` and ``--trace``: the same text, with more to see; and what happens where it cannot."""

import json
import re

import pexpect
import pytest
from rich.console import Console

from specx.cli.show import Scene, head_rows, quote_rows
from specx.core.config import RetrievalConfig
from specx.errors import printable
from specx.trace.map import DocumentMap, Tick
from specx.trace.records import read_trace
from tests.cli.support import Untouchable, exit_code, on_terminal, specx

CODES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|.)")
OWN = re.compile(r"\x1b\[4(?:;[0-9;]+)?m(.*?)\x1b\[0m", re.DOTALL)
HOSTILE = "[bold]loud[/bold] \x1b[31m \x9b2J\x07 \x00 日本 "


@pytest.fixture
def words(workplace, monkeypatch):
    """A command that retrieves; its draft is the target slightly disturbed."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return ("summarize", workplace.document, "-m", workplace.preset, "-n", "24", "--mode", "specx")


@pytest.fixture
def terminal(words):
    """``terminal(*more, columns=80)``: the command on a terminal."""

    def start(*more, columns=80, rows=24, **environment):
        command = specx(*words, *more)
        return on_terminal(command, columns=columns, rows=rows, **environment)

    return start


def test_accepted_and_own_tokens_are_told_apart(cli, words, tmp_path):
    plain = cli(*words, "--trace", tmp_path / "run.jsonl")
    shown = cli(*words, "--show", "accept", to_terminal=True)
    assert CODES.sub("", shown.out) == printable(plain.out)
    steps = read_trace(str(tmp_path / "run.jsonl")).steps
    pieces = [piece for step in steps for piece in step.pieces if piece.text.strip()]
    own = [printable(piece.text).lstrip() for piece in pieces if not piece.accepted]
    assert OWN.findall(shown.out) == own
    assert shown.out.count("\x1b[38;5;74m") == sum(piece.accepted for piece in pieces) > 0
    assert "underlined the target's own" in shown.err


def test_without_colours_a_line_remains(cli, words, monkeypatch):
    for more, environment in (((), {"NO_COLOR": "1"}), (("--color", "never"), {})):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        shown = cli(*words, "--show", "accept", *more, to_terminal=True).out
        assert set(re.findall(r"\x1b\[[0-9;]*m", shown)) == {"\x1b[4m", "\x1b[0m"}
        monkeypatch.delenv("NO_COLOR", raising=False)


def test_true_colours_where_the_terminal_has_them(cli, words, monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    shown = cli(*words, "--show", "accept", to_terminal=True).out
    assert "\x1b[38;2;86;180;233m" in shown
    assert "\x1b[4;38;2;230;159;0m" in shown


def test_in_a_pipe_only_on_request(cli, words):
    plain, asked = cli(*words), cli(*words, "--show", "accept")
    assert (asked.code, asked.out) == (0, plain.out)
    assert "warning: --show accept: standard output is not a terminal" in asked.err
    assert "--trace" in asked.err
    forced = cli(*words, "--show", "accept", "--color", "always")
    assert CODES.sub("", forced.out) == printable(plain.out) != forced.out


@pytest.mark.parametrize("show", ["accept", "map"])
def test_where_nothing_can_be_shown(cli, words, show, tmp_path, monkeypatch):
    plain = cli(*words)
    out = tmp_path / "answer.txt"
    for number, more in enumerate((["-o", "json"], ["--out", out], ["--trace", tmp_path / "t"])):
        done = cli(*words, "--show", show, *more)
        assert done.code == 0
        assert f"warning: --show {show}: " in done.err
        assert ("--trace run.jsonl" in done.err) == (number < 2)
    assert out.read_text(encoding="utf-8") == plain.out
    monkeypatch.setenv("TERM", "dumb")
    dumb = cli(*words, "--show", show, to_terminal=True)
    assert dumb.out == printable(plain.out)
    assert "dumb terminal" in dumb.err
    assert cli(*words, "--show", "everything").code == 2


def test_hostile_text_is_only_text(cli, words, monkeypatch):
    from specx.prompts import TextStream

    monkeypatch.setattr(TextStream, "push", lambda self, tokens: HOSTILE if tokens else "")
    shown = cli(*words[:4], "-n", "2", "--show", "accept", to_terminal=True).out
    left = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b" not in left
    assert "[bold]loud[/bold] ␛[31m �2J␇ ␀ 日本" in left
    assert "\x1b[31m" not in shown


def test_the_accept_view_shares_the_terminal_with_the_live_line(terminal, cli, words):
    child = terminal("--show", "accept", NO_COLOR="1")
    child.expect_exact("accepted draft tokens")
    child.expect(r"tok/s")
    child.expect(r"equal to plain: not checked")
    assert exit_code(child) == 0


@pytest.fixture
def on_screen(cli, words, monkeypatch):
    """``on_screen(*more, columns=80)``: the command in this process, as if on a terminal."""

    def run(*more, columns=80):
        for name, value in {"COLUMNS": columns, "LINES": 24}.items():
            monkeypatch.setenv(name, str(value))
        return cli(*words, *more, to_terminal=True, err_to_terminal=True)

    return run


def test_the_map_is_drawn_and_the_text_stays(terminal, cli, words):
    plain = printable(cli(*words).out)
    child = terminal("--show", "map", NO_COLOR="1", COLORTERM="truecolor")
    child.expect_exact("\x1b[?1049h")
    child.expect_exact("\x1b[?1049l")
    assert exit_code(child) == 0
    drawn, after = child.before, CODES.sub("", child.before).replace("\r\n", "\n")
    assert plain.rstrip() in after
    assert re.search("[░▒▓█]", after)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", drawn)  # no colour
    assert "\x1b[4m" in drawn


@pytest.mark.parametrize("columns", [40, 12])
def test_the_map_on_a_narrow_screen(on_screen, cli, words, monkeypatch, columns):
    plain = printable(cli(*words).out)
    for name, value in {"NO_COLOR": "1", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    shown = on_screen("--show", "map", columns=columns)
    assert shown.code == 0
    assert CODES.sub("", shown.out) == plain
    assert "\x1b[4m" in shown.out
    drawn, _, stays = shown.err.partition("\x1b[?1049l")
    assert "\x1b[?1049h" in drawn
    rows = CODES.sub("", stays).splitlines()
    assert any(re.search("[░▒▓█]", row) for row in rows)
    assert all(len(row.rstrip()) <= columns for row in rows)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown.err)  # no colour


def test_a_change_of_size_and_ctrl_c(terminal):
    child = terminal("--show", "map", "--ignore-eos", "--mode", "specx", "-n", "3000", rows=30)
    child.expect_exact("\x1b[?1049h")
    child.expect("most retrieved")
    child.setwinsize(16, 44)
    child.expect("most retrieved")
    child.sendintr()
    child.expect_exact("\x1b[?1049l")
    child.expect("interrupted")
    assert exit_code(child) == 130


def test_a_mode_that_retrieves_nothing_says_so(on_screen):
    shown = on_screen("--show", "map", "--mode", "plain")
    assert shown.code == 0
    _, _, shown_and_left = shown.err.partition("\x1b[?1049h")
    drawn, left, after = shown_and_left.partition("\x1b[?1049l")
    assert left
    assert "mode plain has no draft" in drawn
    assert "equal to plain" in after


def a_scene():
    ticks = tuple(Tick(at * 9, "heading", f"{at} {HOSTILE} 日本語 heading") for at in range(5))
    chunks = tuple(f"chunk {at} {HOSTILE}" for at in range(50))
    config = RetrievalConfig(chunk_tokens=8, top_chunks=2, sink_chunks=1, recent_chunks=2)
    scene = Scene(f"title {HOSTILE}", DocumentMap(chunks, ticks, config), status=HOSTILE, read=1.0)
    scene.retrievals.add((0, 7, 20, 48, 49))
    scene.retrievals.add((0, 7, 21, 48, 49))
    scene.pieces += [(HOSTILE * 30, True), ("own\nlines", False)]
    return scene


@pytest.mark.parametrize("width", [1, 2, 7, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 8, 12, 24, 60])
def test_the_view_fits_any_screen(width, height):
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    options = console.options.update_dimensions(width, height)
    rows = list(a_scene().__rich_console__(console, options))
    assert len(rows) <= height
    assert all(row.cell_len <= width for row in rows)
    assert not re.search("[\x00-\x1f\x7f-\x9f]", "".join(row.plain for row in rows))


def test_the_strip_reads_without_colour():
    scene = a_scene()
    console = Console(width=80)
    rows = [row.plain for row in head_rows(scene, 50)]
    assert rows[2].startswith("╷0 [bold]")
    strip, held = rows[3], rows[5]
    assert [strip[at] for at in (0, 7, 20, 21, 30)] == ["·", "█", "▒", "▒", "·"]
    assert [at for at, mark in enumerate(held) if mark != " "] == [0, 7, 21, 48, 49]
    quote = [row.plain for row in quote_rows(console, scene, 70, 4)]
    assert quote[1].startswith("most retrieved: chunk 8 of 50 · 2 of 2 times · 0 [bold]")
    assert "chunk 7" in quote[2]


def test_a_trace_is_recorded_with_any_output(cli, words, tmp_path):
    trace = tmp_path / "run.jsonl"
    done = cli(*words, "--trace", trace, "-o", "json")
    result, recorded = json.loads(done.out), read_trace(str(trace))
    assert recorded.text == result["text"]
    assert recorded.end.totals.new_tokens == result["tokens"]["new"]
    assert recorded.header.preset.sha256 == result["preset"]["sha256"]
    assert recorded.header.input.sha256 == result["input"]["sha256"]
    assert recorded.header.command == "summarize"
    refused = cli(*words, "--trace", trace)
    assert refused.code == 2
    assert "--force" in refused.err
    assert cli(*words, "--trace", trace, "--force", "-n", "3").code == 0
    assert len(read_trace(str(trace)).text) < len(result["text"])


def test_a_question_without_a_document(cli, words, tmp_path):
    trace = tmp_path / "run.jsonl"
    question = ("generate", "-p", "Why?", *words[2:4], "-n", "3", "--trace", trace)
    assert cli(*question, stdin=Untouchable(is_terminal=True)).code == 0
    header = read_trace(str(trace)).header
    assert header.input is None
    assert "fits" in header.note


def test_places_for_a_trace(cli, words, workplace, tmp_path):
    for more, text in (
        (("--trace", tmp_path / "no" / "x"), "there is no directory"),
        (("--trace", tmp_path), "directory"),
        (("--trace", workplace.document, "--force"), "one of the documents"),
        (("--trace", tmp_path / "a", "--out", tmp_path / "a"), "the same file"),
    ):
        done = cli(*words, *more)
        assert (done.code, done.out) == (2, "")
        assert text in done.err
    several = cli(*words, workplace.short, "--trace", tmp_path / "a")
    assert several.code == 2
    assert "several documents" in several.err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_before_the_run_leaves_no_trace(cli, words, tmp_path):
    trace = tmp_path / "run.jsonl"
    assert cli("summarize", tmp_path / "none.txt", *words[2:], "--trace", trace).code == 3
    assert not trace.exists()
    trace.write_text("precious", encoding="utf-8")
    missing = ("summarize", tmp_path / "none.txt", *words[2:], "--trace", trace, "--force")
    assert cli(*missing).code == 3
    assert trace.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_full_disk_does_not_cost_the_answer(cli, words, output):
    plain = cli(*words, "-o", output)
    full = cli(*words, "-o", output, "--trace", "/dev/full")
    assert full.code == 6
    assert "cannot write to /dev/full" in full.err
    if output == "text":
        assert full.out == plain.out
    else:
        assert json.loads(full.out)["text"] == json.loads(plain.out)["text"]


def test_a_killed_run_leaves_a_readable_trace(terminal, tmp_path):
    trace = tmp_path / "run.jsonl"
    child = terminal("--trace", str(trace), "--ignore-eos", "-n", "3000")
    child.expect("tok/step")
    child.kill(9)
    child.expect(pexpect.EOF)
    child.close()
    recorded = read_trace(str(trace))
    assert recorded.end is None
    assert recorded.text


def test_show_settings_tells_of_both(cli, words, tmp_path):
    asked = ("--show", "map", "--trace", tmp_path / "t", "--show-settings", "-o", "json")
    rows = {row["key"]: row for row in json.loads(cli(*words, *asked).out)["settings"]}
    assert (rows["show"]["value"], rows["show"]["source"]) == ("map", "--show")
    assert rows["trace"]["source"] == "--trace"
