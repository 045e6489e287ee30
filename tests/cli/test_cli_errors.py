"""Every mistake: its exit code, one line what, no traceback, and an object with ``-o json``."""

import json

import pytest

from specx.cli.errors import out_of_memory
from tests.cli.support import Untouchable, write_preset


def assert_told(outcome, code, *words):
    assert outcome.code == code, outcome.err
    what, *rest = outcome.err.splitlines()
    assert what.startswith("error: ")
    assert all(line.startswith("  ") for line in rest)
    assert len(rest) <= 4
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["-n", "0"], "--max-tokens"),
        (["-n", "many"], "--max-tokens"),
        (["-t", "-1"], "--temperature"),
        (["-t", "nan"], "--temperature"),
        (["-t", "inf"], "--temperature"),
        (["--top-p", "0"], "--top-p"),
        (["--min-p", "1"], "--min-p"),
        (["--seed", "-1"], "--seed"),
        (["--mode", "fast"], "'specx'"),
        (["--output", "yaml"], "jsonl"),
        (["--set", "tree.nodes"], "KEY=VALUE"),
        (["--set", "tree.nods=8"], "tree.nodes"),
        (["--set", "tree.nodes=lots"], "tree.nodes"),
        (["--verify=perhaps"], "--verify"),
        (["--verify", "0"], "--verify"),
        (["--stop", ""], "--stop"),
        (["--stop", "caf\udce9"], "UTF-8"),
        (["-m", "pockte"], "pocket"),
        (["-m", "./none.yaml"], "none.yaml"),
        (["--encoding", "utf-9"], "utf-9"),
        (["--dtype", "float12"], "float12"),
        (["--device", "abacus"], "abacus"),
        (["--nonsense"], "--nonsense"),
        (["-", "-"], "twice"),
        (["-o", "json", "another.txt"], "jsonl"),
        (["--out", "/no/such/place.txt"], "/no/such"),
        (["--out", "."], "directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(cli, workplace, options, word):
    done = cli("summarize", workplace.short, *options)
    assert_told(done, 2, word)
    if "json" not in options:
        assert done.out == ""


def test_raw_excludes_a_question(cli, workplace):
    assert_told(cli("generate", "--raw", "-p", "x", workplace.short), 2, "--raw")
    assert_told(cli("generate", "-p", " ", workplace.short), 2, "empty")


@pytest.mark.parametrize("command", ["generate", "summarize"])
def test_a_terminal_is_never_waited_for(cli, command):
    done = cli(command, stdin=Untouchable(is_terminal=True))
    assert_told(done, 2, f"specx {command} report.txt")
    placed = cli("generate", "-p", "on {document}", stdin=Untouchable(is_terminal=True))
    assert_told(placed, 2)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b" \n\t\n", "white space"),
        (b"caf\xe9 au lait", "0xe9"),
        (b"\x7fELF\x02\x01" + bytes(64), "not text"),
        (b"a\0b", "binary"),
        (b"%PDF-1.7 ...", "PDF"),
    ],
    ids=["empty", "blank", "latin-1", "program", "nul", "pdf"],
)
def test_unusable_documents(cli, tmp_path, content, word):
    path = tmp_path / "document.txt"
    path.write_bytes(content)
    assert_told(cli("summarize", path), 3, word)
    assert_told(cli("summarize", stdin=content), 3, word)


def test_missing_files_and_directories(cli, workplace):
    assert_told(cli("summarize", workplace.directory / "reporf.txt"), 3, "report.txt")
    assert_told(cli("summarize", workplace.directory), 3, "directory")


def test_a_broken_preset_file(cli, workplace, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("schema: 1\nname: [x\n", encoding="utf-8")
    assert_told(cli("summarize", workplace.short, "-m", path), 2, "line")
    text = workplace.preset.read_text(encoding="utf-8").replace("max_new_tokens", "max_tokens")
    path.write_text(text, encoding="utf-8")
    assert_told(cli("summarize", workplace.short, "-m", path), 2, "max_tokens")


def test_damaged_and_mismatched_models(cli, workplace, own_pair, tmp_path):
    preset = write_preset(tmp_path, own_pair)
    words = ("summarize", workplace.short, "-m", preset, "-n", "2")
    weights = own_pair.target / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert_told(cli(*words), 4, "safetensors")
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    assert_told(cli(*words), 4, "safetensors")
    weights.write_bytes(whole)
    tokenizer = own_pair.target / "tokenizer.json"
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    words_of = content["model"]["vocab"]
    words_of["a"], words_of["b"] = words_of["b"], words_of["a"]
    (own_pair.draft / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert_told(cli(*words), 5, "'b'")
    tokenizer.unlink()
    assert_told(cli(*words), 4, "tokenizer")


def test_an_absent_model_offline(cli, workplace, tmp_path):
    text = workplace.preset.read_text(encoding="utf-8")
    path = tmp_path / "tiny.yaml"
    target = str(workplace.directory / "target")
    path.write_text(text.replace(target, "nobody/no-such-model"), encoding="utf-8")
    assert_told(cli("summarize", workplace.short, "-m", path, "--offline"), 4, "no-such-model")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=["python", "cpu", "cuda"],
)
def test_out_of_memory(cli, workplace, monkeypatch, error):
    from specx.engine import Engine

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Engine, "stream", fail)
    done = cli("summarize", workplace.short, "-m", workplace.preset)
    assert_told(done, 6, "out of memory")
    assert out_of_memory(RuntimeError("shape mismatch")) is None


NO_ROOM = "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has 3 GiB left. And more."


@pytest.mark.parametrize("place", ["specx.core.cache.KVCache.__init__", "forward"])
def test_a_request_without_memory(cli, workplace, monkeypatch, tmp_path, place):
    """Before it starts and in its midst: a table, three ways out, an object, and no file."""
    import torch

    from specx.core.decoder import Model

    forward, seen = Model.forward, []

    def fail(*given, **settings):
        seen.append(given)
        if place != "forward" or len(seen) > 2:
            raise torch.OutOfMemoryError(NO_ROOM)
        return forward(*given, **settings)

    whole = "specx.core.decoder.Model.forward" if place == "forward" else place
    out, trace = tmp_path / "answer.json", tmp_path / "run.jsonl"
    words = ("summarize", workplace.document, "-m", workplace.preset, "-n", "8", "-o", "json")
    files = ("--out", out, "--trace", trace)
    with monkeypatch.context() as patch:
        patch.setattr(whole, fail)
        done = cli(*words, *files)
    assert done.code == 6
    what, need, have, said, *hints = done.err.splitlines()
    assert what.startswith("error: no memory for a context of")
    assert need.startswith("  need ")
    assert have.startswith("  have ")
    assert said == "  said  CUDA out of memory. Tried to allocate 9.00 GiB"
    assert len(hints) == 3
    assert all(hint.startswith("  → ") for hint in hints)
    error = json.loads(done.out)
    assert (error["exit"], error["code"], len(error["hints"])) == (6, "resources", 3)
    assert "need" in error["reason"]
    assert not out.exists()
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], ["run.jsonl"])  # a trace is whole up to its last line, by design
    assert cli(*words, "--out", out).code == 0
    assert json.loads(out.read_text(encoding="utf-8"))["tokens"]["new"] == 8


def test_the_next_document_goes_on_without_the_first_ones_memory(cli, workplace, monkeypatch):
    import torch

    from specx.core.cache import KVCache

    make, calls = KVCache.__init__, []

    def fail_first(*given, **settings):
        calls.append(given)
        if len(calls) <= 2:  # the second try of the first document too
            raise torch.OutOfMemoryError(NO_ROOM)
        make(*given, **settings)

    monkeypatch.setattr(KVCache, "__init__", fail_first)
    names = (workplace.document, workplace.short)
    done = cli("summarize", *names, "-m", workplace.preset, "-n", "4", "--keep-going", "-ojsonl")
    assert done.code == 10
    first, second = [json.loads(line) for line in done.out.splitlines()]
    assert (first["schema"], first["code"]) == ("specx.error/1", "resources")
    assert first["input"]["path"] == str(workplace.document)
    assert second["tokens"]["new"] == 4


def test_other_errors_are_no_lack_of_memory(cli, workplace, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("specx.core.cache.KVCache.__init__", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        cli("summarize", workplace.short, "-m", workplace.preset)


def test_a_pipe_without_a_document(cli, workplace, monkeypatch):
    """In a loop over questions the rest of the loop's input is the document: that is said."""
    question = ("generate", "-m", workplace.preset, "-p", "Who?", "-n", "2")
    assert_told(cli(*question), 3, "standard input is empty", "< /dev/null")
    assert "standard input is the document" in cli(*question, stdin=b"another question").err
    assert "standard input is the document" not in cli(*question, "-", stdin=b"a document").err
    assert "/dev/null" not in cli("summarize", "-m", workplace.preset).err


def test_a_working_directory_that_is_gone(cli, workplace, monkeypatch, tmp_path):
    """Regression: a traceback, or, from the libraries under torch, an end without a word."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("SPECX_CACHE_DIR", "relative")
    for words in (("summarize", workplace.short), ("bench",), ("presets", "list")):
        assert_told(cli(*words), 2, "the working directory does not exist any more")
    assert cli("--version").code == cli("--help").code == 0


def test_the_error_object(cli, tmp_path):
    done = cli("summarize", tmp_path / "none.txt", "-o", "json")
    error = json.loads(done.out)
    assert error["schema"] == "specx.error/1"
    assert (error["exit"], error["code"]) == (3, "document") == (done.code, error["code"])
    assert done.err.startswith(f"error: {error['message']}")
    for words in (["--output=jsonl"], ["-ojsonl"], ["--output", "jsonl"]):
        line = cli("summarize", "--nonsense", *words).out
        assert line.count("\n") == 1
        assert json.loads(line)["exit"] == 2


def test_debug_shows_where_an_error_came_from(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECX_DEBUG", "1")
    assert "Traceback" in cli("summarize", tmp_path / "none.txt").err


def test_a_file_name_cannot_command_the_terminal(cli, tmp_path):
    done = cli("summarize", tmp_path / "x\x1b]0;owned\x07.txt")
    assert done.code == 3
    assert "\x1b" not in done.err
    assert "\x07" not in done.err
