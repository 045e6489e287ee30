"""``specx compare``: table, JSON, live view, saved benches, and the ways to misuse them."""

import copy
import io
import json
import os
import re
import signal

import jsonschema
import pexpect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from specx.bench.comparison import Began, Progressed
from specx.bench.render.markdown import table_markdown
from specx.bench.render.tables import TableModel
from specx.cli import compare_view
from specx.cli.compare_view import Column, Columns, OneByOne
from specx.cli.help import read_schema
from specx.core.stats import GenerationStats, Prefill, StepStats
from specx.stream import Difference, TextChunk
from tests.bench.objects import bench_object
from tests.cli.support import specx
from tests.helpers import preset_for, save_pair

SCHEMA = jsonschema.Draft202012Validator(json.loads(read_schema("compare")))
HOSTILE = "\x1b[31m[red]x[/red]\x07 :smile: \u202e| `y` \x9b2J\tq\r\nend"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WIDE = Console(width=200)
CURSOR_CODES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|.)")


def words(workplace, *more):
    return ("compare", workplace.short, "-m", workplace.preset, "-n", "9", *more)


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def grid_of(text):
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


# Live, in a pipe


def test_a_table_in_a_pipe(cli, workplace):
    done = cli(*words(workplace, "--with", "plain", "--with", "spec", "--with", "specx+window"))
    assert (done.code, done.err) == (0, "")
    header, rule, *rows = grid_of(done.out)
    assert header[0] == "run"
    assert header[-1] == "text"
    assert len(rule) == len(header)
    assert [row[0] for row in rows] == ["plain", "spec", "specx+window"]
    assert [row[-1] for row in rows] == ["reference", "equal", "equal"]
    assert {row[header.index("new tokens")] for row in rows} == {"9"}
    speedups = [row[header.index("decode speed-up")] for row in rows]
    assert speedups[0] == "–"
    assert all(re.fullmatch(r"\d+\.\d+x", value) for value in speedups[1:])
    assert not CONTROL.search(done.out)


def test_verbose_tells_the_warm_up_and_the_phases(cli, workplace):
    done = cli(*words(workplace, "-v"))
    assert "warm-up of each, not counted" in done.err
    assert [line.split(":")[0] for line in done.err.splitlines()[-2:]] == ["plain", "specx"]


def test_the_object_is_valid(cli, workplace):
    done = cli(*words(workplace, "-o", "json", "--text", "-t", "0.8", "--seed", "3"))
    found = json.loads(done.out)
    SCHEMA.validate(found)
    assert [run["equal"] for run in found["runs"]] == [None, True]
    assert found["input"]["bytes"] == workplace.short.stat().st_size
    line = cli(*words(workplace, "-o", "jsonl", "-t", "0.8", "--seed", "3")).out
    assert line.count("\n") == 1
    assert json.loads(line)["runs"][0]["text"] == found["runs"][0]["text"]


def test_the_text_is_that_of_generate(cli, workplace):
    asked = ("-p", "Who?", "-n", "9", "-m", workplace.preset)
    alone = cli("generate", workplace.short, *asked, "--mode", "plain").out
    done = cli("compare", workplace.short, *asked, "--text")
    assert done.out.endswith(f"\n\n{alone}")
    assert done.out.count(alone) == 1


def test_standard_input_and_a_file(cli, workplace, tmp_path):
    data = workplace.short.read_bytes()
    out = tmp_path / "found.json"
    asked = ("compare", "-m", workplace.preset, "-n", "4", "-o", "json", "--out", out)
    done = cli(*asked, stdin=data)
    assert (done.code, done.out) == (0, "")
    found = json.loads(out.read_text(encoding="utf-8"))
    SCHEMA.validate(found)
    assert found["input"]["path"] is None
    assert cli(*asked, stdin=data).code == 2
    assert cli(*asked, "--force", stdin=data).code == 0


def test_a_difference_is_an_error(cli, workplace, monkeypatch):
    from specx.engine import Engine

    found = Difference(16, 5, 300, 0.0125)
    monkeypatch.setattr(Engine, "difference", lambda *_, **__: found)
    done = cli(*words(workplace, "--text"))
    assert done.code == 8
    assert grid_of(done.out)[-1][-1] == "differs at 17"
    assert re.search(r"specx: token 17 is .*\(id 300\), in plain .*\(id 5\).*0\.0125", done.out)
    assert re.findall("^==> (.*) <==$", done.out, re.MULTILINE) == ["plain", "specx"]
    assert done.err.startswith("error: not the text of plain: specx")
    told = json.loads(cli(*words(workplace, "-o", "json")).out)
    assert told["runs"][1]["first_difference"]["index"] == 16


def test_what_was_finished_is_shown_when_a_later_run_fails(cli, workplace, tmp_path):
    pair = save_pair(tmp_path, draft_weights="target")
    small = preset_for(pair).with_overrides({"context_tokens": 100})
    path = tmp_path / "small.yaml"
    path.write_text(small.to_yaml().replace("name: tiny", "name: small"), encoding="utf-8")
    done = cli(*words(workplace, "--with", "plain", "--with", f"{path}:spec"))
    assert done.code == 7
    assert [row[0] for row in grid_of(done.out)[2:]] == ["tiny:plain"]
    assert done.err.startswith("error: ")
    first = cli(*words(workplace, "--with", f"{path}:spec", "--with", "plain"))
    assert (first.code, first.out) == (7, "")


def test_other_targets_are_named_and_not_judged(cli, workplace, tmp_path):
    path = tmp_path / "other.yaml"
    other = preset_for(save_pair(tmp_path, seed=4)).to_yaml().replace("name: tiny", "name: other")
    path.write_text(other, encoding="utf-8")
    done = cli(*words(workplace, "--with", "specx", "--with", f"{path}:plain", "--text"))
    assert done.code == 0
    assert [row[-1] for row in grid_of(done.out)[2:]] == ["reference", "another target"]
    assert re.findall("^==> (.*) <==$", done.out, re.MULTILINE) == ["tiny:specx", "other:plain"]


def interrupt_after(monkeypatch, pushes):
    from specx.prompts import TextStream

    push, count = TextStream.push, [0]

    def counting(self, tokens):
        count[0] += 1
        if count[0] == pushes:
            signal.raise_signal(signal.SIGINT)
        return push(self, tokens)

    monkeypatch.setattr(TextStream, "push", counting)


@pytest.mark.parametrize(
    ("pushes", "verdicts"),
    [
        (5, []),  # the first warm-up: 8 tokens, each pushed by itself
        (15, ["interrupted"]),  # the first run
        (30, ["reference"]),  # the second warm-up
    ],
)
def test_interrupted(cli, workplace, monkeypatch, pushes, verdicts):
    both = ("--with", "plain", "--with", "spec", "-n", "20", "--set", "tree.nodes=4")
    interrupt_after(monkeypatch, pushes)
    done = cli("compare", workplace.short, "-m", workplace.preset, *both)
    assert done.code == 130
    assert [row[-1] for row in grid_of(done.out)[2:]] == verdicts
    if not verdicts:
        assert done.out == ""


def test_a_signal_while_the_second_pair_loads(cli, workplace, monkeypatch):
    from specx import engine

    load, loaded = engine.load, []

    def slow(*args, **kwargs):
        loaded.append(args)
        if len(loaded) == 2:
            signal.raise_signal(signal.SIGTERM)
        return load(*args, **kwargs)

    monkeypatch.setattr(engine, "load", slow)
    done = cli(*words(workplace, "--with", "plain", "--with", "pocket:plain"))
    assert done.code == 143
    assert [row[0] for row in grid_of(done.out)[2:]] == ["tiny:plain"]


# Wrong usage


@pytest.mark.parametrize(
    ("more", "telling"),
    [
        (["--with", "spexc"], "specx"),
        (["--with", "hf"], "specx bench --modes"),
        (["--with", "pocket"], "--with pocket:"),
        (["--with", "plain"], "alone"),
        (["--with", "nowhere.yaml:spec"], "nowhere.yaml"),
        (["-n", "0"], "--max-tokens"),
        (["-p", " "], "--prompt"),
        (["-t", "nan"], "--temperature"),
        (["--set", "tree.nods=3"], "tree.nodes"),
        (["--metric", "ttft_s"], "specx bench diff"),
        (["--fail-if", "change<0%"], "specx bench diff"),
        (["another.txt"], "--with"),
        (["-o", "md"], "json"),
        (["--out", "."], "directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(cli, workplace, more, telling):
    done = cli("compare", workplace.short, *more)
    assert (done.code, done.out) == (2, "")
    assert telling in done.err
    assert done.err.startswith("error: ")


def test_no_document(cli, tmp_path):
    assert cli("compare", tmp_path / "none.txt").code == 3
    assert cli("compare", stdin=b"").code == 3
    assert cli("compare", "a.json", "b.json").code == 2


# Saved benches


@pytest.fixture
def benches(tmp_path):
    before = bench_object(documents=3, lengths=(1024,), modes=("plain", "specx")).as_json()
    after = copy.deepcopy(before)
    after["env"]["torch"] = "2.99[red]"
    for run in after["cells"][1]["samples"]:
        run["decode_s"] *= 1.25
        run["total_s"] = run["ttft_s"] + run["decode_s"]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, bench in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(bench), encoding="utf-8")
    return paths


def test_two_saved_benches(cli, benches):
    done = cli("bench", "diff", *benches)
    assert (done.code, done.err) == (0, "")
    header, _, plain, drafted = grid_of(done.out)
    assert header[:5] == ["mode", "prompt", "A", "B", "change"]
    assert (plain[0], plain[4], drafted[0], drafted[4]) == ("plain", "+0.0 %", "specx", "-20.0 %")
    assert drafted[header.index("text")] == "equal"
    assert plain[-1] == r"\*"
    assert re.search(r"^- \\\* torch \S+ → 2\.99\\\[red\\\]$", done.out, re.MULTILINE)


def test_conditions(cli, benches):
    done = cli("bench", "diff", *benches, "--fail-if", "change<-5%", "--fail-if", "change>1%")
    assert done.code == 9
    assert [line for line in done.err.splitlines() if "--fail-if" in line] == [
        "warning: --fail-if: change -20.00% < -5% at pocket specx 1,024"
    ]
    assert cli("bench", "diff", *benches, "--fail-if", "change<-25%").code == 0
    assert cli("bench", "diff", *benches, "--fail-if", "change<5").code == 2


def test_the_joined_object_is_valid(cli, benches):
    done = cli("bench", "diff", *benches, "-o", "json", "--metric", "ttft_s")
    found = json.loads(done.out)
    SCHEMA.validate(found)
    assert (found["kind"], found["metric"], found["a"]["path"]) == (
        *("saved", "ttft_s"),
        str(benches[0]),
    )


def test_what_only_one_has_is_told_but_not_endlessly(cli, benches):
    lengths = tuple(range(1024, 1024 + 64 * 12, 64))
    more = bench_object(documents=2, lengths=lengths, modes=("plain",))
    benches[0].write_text(json.dumps(more.as_json()), encoding="utf-8")
    out = cli("bench", "diff", *benches).out
    assert "only in A: pocket plain 1,088" in out
    assert re.search(r"and \d+ more", out)
    assert "only in A" in out


@pytest.mark.parametrize(
    ("more", "telling"),
    [
        (["--metric", "decode"], "decode_tok_s"),
        (["--with", "spec"], "--with"),
        (["c.json"], "two benches"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_of_diff(cli, benches, more, telling):
    done = cli("bench", "diff", *benches, *more)
    assert (done.code, done.out) == (2, "")
    assert telling in done.err


def test_the_old_spelling_answers_with_the_new_one(cli, benches):
    done = cli("compare", "--saved", *benches, "--metric", "ttft_s", "--fail-if", "change<-5%")
    assert (done.code, done.out) == (2, "")
    told = f"specx bench diff {benches[0]} {benches[1]} --metric ttft_s --fail-if 'change<-5%'"
    assert told in done.err
    assert f"specx bench diff {benches[0]} {benches[1]}" in cli("compare", *benches).err


def test_options_of_a_bench_mean_nothing_before_diff(cli, benches):
    done = cli("bench", "--reps", "2", "diff", *benches)
    assert done.code == 2
    assert "--reps means nothing before diff" in done.err


def test_a_preset_from_the_environment_is_no_option(cli, benches, monkeypatch):
    monkeypatch.setenv("SPECX_PRESET", "pocket")
    assert cli("bench", "diff", *benches).code == 0


def test_on_a_terminal_the_table_fits(cli, benches, monkeypatch):
    for columns in (40, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = cli("bench", "diff", *benches, "--color", "never", to_terminal=True).out
        plain = CURSOR_CODES.sub("", shown)
        assert max(cell_len(line) for line in plain.splitlines()) <= columns
        assert "torch" in plain
        assert "2.99[red]" in plain


# The view


@given(st.lists(st.text("ab \n\t日x"), max_size=12), st.integers(2, 20), st.integers(1, 9))
@settings(max_examples=100)
def test_a_tail_fits_and_does_not_depend_on_what_is_above_it(pieces, width, rows):
    column, all_rows = Column("x"), 10_000
    for piece in pieces:
        column.add(piece)
        shown = column.tail(WIDE, width, rows)
        assert len(shown) <= rows
        assert all(cell_len(row) <= width for row in shown)
        assert shown == column.tail(WIDE, width, all_rows)[-rows:]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(4, 30))
def test_no_letter_is_lost_and_none_commands(text, width):
    column = Column("x")
    column.add(text)
    rows = column.tail(WIDE, width, 10_000)
    assert not CONTROL.search("".join(rows))
    letters = [sign for sign in text if sign.isalnum()]
    assert [sign for sign in "".join(rows) if sign.isalnum()] == letters


def some_events(text):
    stats = GenerationStats(prompt_tokens=64, new_tokens=9, decode_s=0.5)
    stats.steps.append(StepStats(nodes=5, depth=3, accepted=3, new_tokens=4))
    chunk = TextChunk(text, (1, 2), stats.steps[0], stats)
    yield Began(0, "loading")
    yield Began(0, "reading")
    yield Progressed(0, Prefill(32, 64, 0.1))
    yield Progressed(0, chunk)
    yield Began(1, "warming up")


@pytest.mark.parametrize("runs", [2, 3, 7])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 24), (40, 12), (200, 60), (8, 3)])
def test_a_frame_fits_and_shows_what_is_hostile(runs, width, height, monkeypatch):
    monkeypatch.setattr(compare_view, "REDRAW_S", 0.0)
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=width, height=height, color_system=None, markup=True
    )
    view = Columns(console, ["plain", HOSTILE, *["spec"] * (runs - 2)], HOSTILE)
    for event in some_events(HOSTILE):
        view.show(event)
        frame = console.render_lines(view._frame(is_final=False))
        assert len(frame) < height or height == 3
    view.close()
    view.close()
    shown = CURSOR_CODES.sub("", file.getvalue())
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert all(cell_len(line) <= width for line in re.split(r"[\r\n]+", shown))
    if width >= 80 and runs == 2:
        for expected in ("[red]x[/red]", ":smile:", "end", "16.0 tok/s", "reading 32 of 64"):
            assert expected in shown


def test_one_by_one_uses_the_display_of_a_single_run():
    told = []

    class Noted:
        def __init__(self, title):
            self.title = title

        def __getattr__(self, name):
            return lambda *_: told.append((self.title, name))

    view = OneByOne(["plain", "spec"], Noted)
    for event in some_events("x"):
        view.show(event)
    view.close()
    assert told == [
        *(("plain", "busy"), ("plain", "close"), ("plain", "prefill"), ("plain", "step")),
        *(("plain", "close"), ("spec", "busy"), ("spec", "close")),
    ]


def test_a_table_in_parts_and_turned():
    rows = [("x", "11", "222"), ("y", "1", "2|")]
    table = TableModel("", ("run", "a", "b"), rows, ("left", "right", "right"))
    assert table.turned().header == ("run", "x", "y")
    assert table.turned().rows == [("a", "11", "1"), ("b", "222", "2|")]
    assert [part.header for part in table.parts(8)] == [("run", "a"), ("run", "b")]
    assert [part.header for part in table.parts(1)] == [("run", "a"), ("run", "b")]
    assert [part.header for part in table.parts(12)] == [("run", "a", "b")]
    assert cells(table_markdown(table).splitlines()[-1]) == ["y", "1", r"2\|"]


def start(workplace, *more, columns=80, env=None):
    command = specx(*words(workplace, *more))
    # What runs the tests in parallel may set COLUMNS, which counts more than the terminal's size.
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return pexpect.spawn(
        command[0],
        command[1:],
        encoding="utf-8",
        codec_errors="replace",
        dimensions=(24, columns),
        timeout=60,
        env={**inherited, "TERM": "xterm-256color", **(env or {})},
    )


def test_on_a_terminal(workplace):
    """Columns while it runs, then the table; NO_COLOR has no colour in either."""
    terminal = start(workplace, "--text", env={"NO_COLOR": "1"})
    terminal.expect(r"plain +│ specx")
    terminal.expect_exact("waiting")
    terminal.expect(r"\d tok/s · 1\.00 tok/step")
    terminal.expect(r"run 2 of 2 · short\.txt")
    terminal.expect(r"tok/step · [\d.]+x.*│ equal")
    terminal.expect(r"text +reference +equal")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_on_a_narrow_terminal(workplace):
    three = ("--with", "plain", "--with", "spec", "--with", "specx+window")
    terminal = start(workplace, *three, columns=40)
    terminal.expect(r"specx\+window.*waiting")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    table = CURSOR_CODES.sub("", terminal.before).rpartition("greedy")[2].splitlines()
    assert max(map(cell_len, table)) <= 40
    assert any(re.search(r"run +plain +spec$", line.rstrip()) for line in table)
    assert any(re.search(r"run +specx\+window$", line.rstrip()) for line in table)


def test_ctrl_c_on_a_terminal(workplace):
    terminal = start(workplace, "-n", "3500", "--set", "sampling.temperature=1.5")
    terminal.expect(r"\d+ tok/s · 1\.00 tok/step")
    terminal.sendintr()
    terminal.expect(r"text +interrupted")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert "Traceback" not in terminal.before
