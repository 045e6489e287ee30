"""A trace says what happened, can be read back, and a file that says something else is refused."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

import specx
from specx.cli.help import read_schema
from specx.core.stats import Prefill
from specx.documents.document import Document
from specx.errors import DocumentError
from specx.trace.map import map_prompt
from specx.trace.records import MAX_TRACE_BYTES, read_trace
from specx.trace.write import TraceWriter, header_of
from tests.helpers import preset_for, save_pair, story

HOSTILE = "</script><b>[bold]x[/bold] \x1b[31m \x00 \u2028 {{data}}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(lines, result, chunks of the stream) of a run that retrieves."""
    directory = tmp_path_factory.mktemp("traced")
    engine = specx.load(preset_for(save_pair(directory, draft_weights="noisy")))
    text = f"# Heading\n\n{HOSTILE} {story(300)}"
    document = Document(f"{HOSTILE}.md", "x", text, "markdown", len(text), "0" * 64)
    prompt = engine.prompt(text)
    stream = engine.stream(prompt, mode="specx", max_tokens=24, records_trees=True)
    lines, chunks = [], []
    found = map_prompt(prompt.tokens, engine.tokenizer, engine.preset.retrieval, text)
    asked = SimpleNamespace(
        mode="specx",
        max_tokens=24,
        sampling=engine.preset.sampling,
        stop=("stop",),
        ignore_eos=False,
    )
    header = header_of(engine, "summarize", asked, document, prompt, found)
    writer = TraceWriter(lines.append, engine.tokenizer, header)
    for event in stream:
        if isinstance(event, Prefill):
            writer.prefill(event)
        else:
            chunks.append(event)
            writer.step(event)
    writer.end(stream.result)
    return lines, stream.result, chunks


@pytest.fixture
def records(recorded):
    """The lines as objects that a test may damage."""
    return [json.loads(line) for line in recorded[0]]


@pytest.fixture
def read(tmp_path):
    """``read(objects or bytes)`` is what ``read_trace`` makes of such a file."""

    def call(content):
        path = tmp_path / "run.jsonl"
        if not isinstance(content, bytes):
            content = "".join(json.dumps(each) + "\n" for each in content).encode()
        path.write_bytes(content)
        return read_trace(str(path))

    return call


def first(records, kind):
    return next(number for number, record in enumerate(records) if record["kind"] == kind)


def test_each_line_is_one_object_of_the_schema(recorded):
    schema = json.loads(read_schema("trace"))
    validator = jsonschema.Draft202012Validator(schema)
    for line in recorded[0]:
        assert line.endswith("\n")
        assert line.count("\n") == 1
        validator.validate(json.loads(line))


def test_a_trace_says_what_happened(recorded, read):
    lines, result, chunks = recorded
    trace = read("".join(lines).encode())
    assert trace.warnings == ()
    assert trace.text == result.text
    assert [step.number for step in trace.steps] == list(range(len(chunks)))
    for step, chunk in zip(trace.steps, chunks, strict=True):
        accepted = "".join(piece.text for piece in step.pieces if piece.accepted)
        assert accepted == chunk.accepted_text
        assert "".join(piece.text for piece in step.pieces) == chunk.text
        assert (step.retrieved or None) == (
            list(chunk.retrieved_chunks) if chunk.retrieved_chunks else None
        )
        if chunk.step is not None:
            assert step.tree is not None
            assert step.tree.ids == list(chunk.tree.tokens)
    stats = trace.stats()
    timed = [chunk.step.total_s for chunk in chunks if chunk.step is not None]
    assert [step.total_s for step in stats.steps] == pytest.approx(timed)
    assert stats.new_tokens == result.stats.new_tokens
    assert stats.accepted == result.stats.accepted
    assert stats.decode_s == pytest.approx(result.stats.decode_s)
    assert any(step.retrieved for step in trace.steps)
    assert trace.header.title == f"{HOSTILE}.md"
    assert trace.header.document_map().ticks[0].label == "Heading"
    assert HOSTILE in "".join(trace.header.chunks)


def test_a_trace_of_the_first_version_is_still_read():
    """Recorded by specx 0.1.0, before the lines were typed as they are now."""
    trace = read_trace(str(Path(__file__).parent.parent / "data" / "version1" / "trace.jsonl"))
    assert trace.warnings == ()
    assert trace.text.startswith("edicare is the national health insurance program")
    assert (trace.stats().new_tokens, trace.stats().accepted_per_step) == (24, 3.8)
    assert trace.header.preset.name == "pocket"
    assert trace.header.document_map().retrieval.top_chunks == 2


def test_tree_texts_are_the_tokens(recorded, read):
    step = next(step for step in read("".join(recorded[0]).encode()).steps if step.tree)
    kept = [step.tree.texts[node] for node in step.tree.path[1:]]
    assert "".join(kept) == "".join(piece.text for piece in step.pieces if piece.accepted)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_cut_last_line_is_left_out(recorded, read, cut):
    raw = "".join(recorded[0]).encode()
    trace = read(raw[: -1 - cut])
    assert trace.end is None
    assert "cut off" in trace.warnings[0]
    assert trace.text == recorded[1].text


def test_only_the_newline_is_missing(recorded, read):
    assert read("".join(recorded[0]).encode()[:-1]).end is not None


def test_a_killed_run_is_readable(recorded, read):
    trace = read("".join(recorded[0][:-2]).encode())
    assert trace.end is None
    assert "cut short" in trace.warnings[0]
    assert trace.stats().steps


def test_unknown_keys_are_let_pass(records, read):
    for record in records:
        record["later"] = {"x": 1}
    assert read(records).end is not None


def damage(kind, change):
    def apply(records):
        at = first(records, kind)
        if kind == "step":
            at += 1  # step 0 has no tree
        change(records[at])
        return at + 1

    return apply


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (damage("step", lambda step: step["tree"]["parents"].__setitem__(0, 1)), "root"),
        (damage("step", lambda step: step["tree"].update(parents=[])), "parent"),
        (damage("step", lambda step: step["tree"].update(path=[0, 900])), "path"),
        (damage("step", lambda step: step["tree"].update(path=[])), "path"),
        (damage("step", lambda step: step["tree"]["ids"].__setitem__(0, -4)), "tree.ids[0]"),
        (damage("step", lambda step: step.update(retrieved=[4, 3])), "increasing"),
        (damage("step", lambda step: step.update(number=7)), "missing"),
        (damage("step", lambda step: step.update(elapsed_s=-1)), "elapsed_s"),
        (damage("step", lambda step: step.update(elapsed_s="soon")), "elapsed_s"),
        (damage("step", lambda step: step.update(nodes=10**400)), "nodes"),
        (damage("step", lambda step: step.pop("pieces")), "pieces"),
        (damage("prefill", lambda event: event.update(kind="wish")), "kind"),
        (damage("end", lambda end: end.update(text="another")), "text"),
        (damage("end", lambda end: end.update(finish_reason="boredom")), "finish_reason"),
        (damage("end", lambda end: end.update(elapsed_s=0)), "time"),
        (damage("header", lambda head: head.update(chunks=[])), "chunks"),
        (damage("header", lambda head: head.update(schema="specx.trace/2")), "schema"),
        (
            damage("header", lambda head: head["ticks"].append(dict(head["ticks"][0], chunk=900))),
            "tick",
        ),
    ],
)
def test_a_wrong_line_is_named(records, read, apply, words):
    changed = copy.deepcopy(records)
    number = apply(changed)
    with pytest.raises(DocumentError) as caught:
        read(changed)
    assert caught.value.reason.startswith(f"line {number}: ")
    assert words in caught.value.reason
    assert len(caught.value.reason) < 300


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02", "not a trace"),
        (b"[" * 100_000, "not a trace"),
        (b'{"schema": "specx.result/1"}\n', "not a trace"),
        (b"\xff\xfe\n", "not a trace"),
    ],
)
def test_what_is_no_trace(read, content, words):
    with pytest.raises(DocumentError, match=words):
        read(content)


def test_order_matters(records, read):
    prefill, end = first(records, "prefill"), len(records) - 1
    for changed, words in (
        ([records[0], *records], "second header"),
        ([*records, records[end]], "follow the end"),
        ([*records[:end], dict(records[prefill], elapsed_s=1e6)], "prefill follows a step"),
        ([records[prefill], *records], "header"),
    ):
        with pytest.raises(DocumentError, match=words):
            read(changed)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for path, words in (
        (tmp_path / "none.jsonl", "there is no file"),
        (tmp_path, "cannot be read"),
        ("a\x00b", "not a file name"),
    ):
        with pytest.raises(DocumentError, match=words):
            read_trace(str(path))
    assert MAX_TRACE_BYTES == 256 << 20
    monkeypatch.setattr("specx.trace.records.MAX_TRACE_BYTES", 10)
    (tmp_path / "long.jsonl").write_bytes(b"x" * 11)
    with pytest.raises(DocumentError, match="larger"):
        read_trace(str(tmp_path / "long.jsonl"))
