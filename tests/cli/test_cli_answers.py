"""Answers as text: what reaches stdout, in which shape, from which input."""

import json

import pytest

from tests.cli.support import Untouchable
from tests.documents.files import pdf
from tests.helpers import EOS

ESCAPE = "\x1b"


@pytest.fixture
def base(workplace):
    """Options that make every run short and the same."""
    return ("-m", workplace.preset, "--mode", "specx", "-n", "12")


def test_file_pipe_and_dash_give_the_same_answer(cli, workplace, base):
    from_file = cli("summarize", workplace.short, *base)
    data = workplace.short.read_bytes()
    assert from_file.code == 0
    assert from_file.out.strip()
    assert cli("summarize", *base, stdin=data).out == from_file.out
    assert cli("summarize", "-", *base, stdin=data).out == from_file.out


def test_stdout_is_the_answer_and_ends_with_one_newline(cli, workplace, base):
    from specx import load

    engine = load(str(workplace.preset))
    prompt = engine.prompt(workplace.short.read_text())
    text = engine.generate(prompt, mode="specx", max_tokens=12).text
    done = cli("summarize", workplace.short, *base)
    assert done.out == text.removesuffix("\n") + "\n"
    assert ESCAPE not in done.out + done.err
    assert "\r" not in done.err
    closing = done.err.splitlines()[-1]
    for part in ("prompt + 12 new", "prefill", "decode", "tok/step", "accepted + 1", "peak"):
        assert part in closing
    assert "equal to plain: not checked" in closing


def test_a_named_file_leaves_stdin_alone(cli, workplace, base):
    piped = cli("summarize", workplace.short, *base, stdin=Untouchable(is_terminal=False))
    typed = cli("summarize", workplace.short, *base, stdin=Untouchable(is_terminal=True))
    assert piped.code == typed.code == 0


@pytest.mark.parametrize("mode", ["plain", "spec", "auto"])
def test_every_mode_gives_the_same_text(cli, workplace, base, mode):
    sampled = ("-t", "0.8", "--top-p", "0.95", "--seed", "7")
    expected = cli("summarize", workplace.short, *base, *sampled)
    assert cli("summarize", workplace.short, *base, *sampled, "--mode", mode).out == expected.out


def test_n_is_exact_and_quiet_is_quiet(cli, workplace):
    done = cli("summarize", workplace.short, "-m", workplace.preset, "-n", "1", "--ignore-eos")
    assert "+ 1 new" in done.err
    quiet = cli("summarize", workplace.short, "-m", workplace.preset, "-n", "1", "-q")
    assert quiet.err == ""
    assert quiet.out == done.out


def test_verbose_tells_plan_and_phases(cli, workplace, base):
    plan, *_ = cli("summarize", workplace.short, *base, "-v").err.splitlines()
    assert "mode specx" in plan
    assert "prompt tokens" in plan


def test_questions(cli, workplace, base):
    data = workplace.short.read_bytes()
    after = cli("generate", workplace.short, "-p", "Who?", *base)
    placed = cli("generate", workplace.short, "-p", "{document}\n\nWho?", *base)
    assert after.out == placed.out  # the preset's own frame is document, blank line, question
    message = cli("generate", *base, stdin=data + b"\n\nWho?")
    assert message.out == after.out
    raw = cli("generate", "--raw", workplace.short, *base)
    assert raw.code == 0
    assert raw.out != message.out
    assert cli("generate", "-p", "Who?", *base, stdin=Untouchable(is_terminal=True)).code == 0
    system = cli("generate", "--system", "Be brief.", "-p", "Who?", workplace.short, *base)
    assert system.code == 0


def test_a_pdf_is_a_document_with_pages(cli, tmp_path, base):
    path = tmp_path / "report.pdf"
    words = ("One", "Two", "Three", "Four")
    path.write_bytes(
        pdf([["Annual Report", f"{word} ships {EOS} left.", "Then more."] for word in words])
    )
    done = cli("summarize", path, "-v", *base)
    assert done.code == 0, done.err
    assert "left out: 4 running lines like 'Annual Report'" in done.err
    assert "4 names of control tokens in the document are text" in done.err
    some = cli("summarize", path, "--pages", "2-3", "-v", *base)
    assert "2 names of control tokens" in some.err
    assert cli("summarize", path, "--pages", "9", *base).code == 2
    assert "--pages" in cli("generate", "--help").out


def test_braces_and_markup_are_only_text(cli, tmp_path, base):
    """A document that names places, markup, escapes and special tokens is the same as any other."""
    strange = "a [bold]b[/bold] {document} {instruction} {0} %s \x1b[31mred</s><|user|>\n"
    path = tmp_path / "[bold]strange.txt"
    path.write_text(strange, encoding="utf-8")
    for words in ([], ["-p", "say {document} {x} {"], ["-p", "what is {instruction}?"]):
        done = cli("generate", path, *words, *base)
        assert (done.code, ESCAPE in done.out) == (0, False), done.err
    several = cli("summarize", path, path, *base)
    assert several.out.count(f"==> {path} <==\n") == 2


def test_control_characters_of_a_model_reach_a_pipe_but_not_a_terminal(
    cli, workplace, base, monkeypatch
):
    from specx.prompts import TextStream

    push = TextStream.push
    monkeypatch.setattr(TextStream, "push", lambda self, ids: push(self, ids) + "\x1b[2J\r\x9b1m")
    assert ESCAPE in cli("summarize", workplace.short, *base).out
    shown = cli("summarize", workplace.short, *base, to_terminal=True).out
    assert ESCAPE not in shown
    assert not any(sign in shown for sign in "\r\x9b")
    assert "\u241b[2J" in shown


def test_several_files_stand_under_their_names(cli, workplace, base):
    done = cli("summarize", workplace.short, workplace.document, *base)
    first = cli("summarize", workplace.short, *base).out
    second = cli("summarize", workplace.document, *base).out
    assert done.out == (
        f"==> {workplace.short} <==\n{first}\n==> {workplace.document} <==\n{second}"
    )
    assert done.err.splitlines()[0].startswith(f"{workplace.short}: ")


def test_keep_going_answers_the_rest(cli, workplace, base, tmp_path):
    missing = tmp_path / "missing.txt"
    files = (workplace.short, missing, workplace.document)
    stopped = cli("summarize", *files, *base)
    assert (stopped.code, stopped.out) == (3, "")
    done = cli("summarize", *files, *base, "--keep-going")
    assert done.code == 10
    assert done.out.count("==>") == 2
    assert f"there is no file {missing}" in done.err


def test_a_document_that_is_too_long_is_refused_not_cut(cli, workplace, tmp_path, base):
    path = tmp_path / "long.txt"
    path.write_text("word " * 200_000, encoding="utf-8")  # 1 MB on one line
    done = cli("summarize", path, *base)
    assert (done.code, done.out) == (7, "")
    assert done.err.count("→") >= 2
    several = cli("summarize", workplace.short, path, *base, "--keep-going")
    assert several.code == 10


def test_verify_says_identical(cli, workplace, base):
    done = cli("summarize", workplace.short, *base, "--verify")
    assert done.code == 0
    assert "equal to plain: identical (12 tokens checked)" in done.err
    before_a_file = cli("summarize", *base, "--verify", workplace.short)
    assert (before_a_file.code, before_a_file.out) == (0, done.out)
    some = cli("summarize", "--verify", "5", workplace.short, *base)
    assert "identical (5 tokens checked)" in some.err


def test_verify_reports_a_difference_and_exits_8(cli, workplace, base, monkeypatch):
    from specx.engine import Engine
    from specx.stream import Difference, Verification

    difference = Verification(12, False, Difference(4, 17, None, 0.25))
    monkeypatch.setattr(Engine, "verify", lambda *_, **__: difference)
    done = cli("summarize", workplace.short, *base, "--verify", "-q")
    assert done.code == 8
    assert done.out.strip()
    assert "at token 5" in done.err
    assert "id 17" in done.err
    assert "margin 0.25" in done.err


def test_stop_ends_before_the_text(cli, workplace, base):
    whole = cli("summarize", workplace.short, *base).out
    stop = whole[4:7]
    done = cli("summarize", workplace.short, *base, "--stop", stop)
    assert done.out.removesuffix("\n") == whole[: whole.index(stop)]


def test_the_demonstration_model_is_called_one(cli, workplace, monkeypatch):
    import specx.engine

    load = specx.engine.load
    monkeypatch.setattr(specx.engine, "load", lambda *_, **__: load(str(workplace.preset)))
    told = cli("summarize", workplace.short, "-n", "2", "-v", "--mode", "plain")
    assert "demonstration" in told.err
    piped = cli("summarize", workplace.short, "-n", "2", "--mode", "plain")
    assert "demonstration" not in piped.err


def test_what_the_machine_lacks_is_told_once(cli, workplace, base, monkeypatch):
    from specx.core.attention import Kernels

    lost = "no Triton kernels (Triton is not installed): PyTorch's attention"
    monkeypatch.setattr("specx.engine.choose_kernels", lambda *_: (Kernels(), lost))
    words = ("summarize", workplace.short, workplace.document, *base)
    assert cli(*words).err.splitlines().count(lost) == 1
    assert lost not in cli(*words, "-q").err
    result = json.loads(cli("summarize", workplace.short, *base, "-o", "json").out)
    assert result["warnings"] == [{"message": lost}]
