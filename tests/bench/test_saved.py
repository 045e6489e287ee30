"""Saved benches: hostile files, the way back from disk, and joins worked by hand."""

import copy
import json
import math
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.bench import saved
from specx.bench.render.markdown import to_markdown
from specx.bench.saved import join, read_bench
from specx.bench.schema import Bench, LiveComparison, SavedComparison
from specx.cli.help import read_schema
from specx.errors import DocumentError, UsageError
from tests.bench.objects import MODES, bench_object, edited, sha256, with_difference, with_energy

BENCH, COMPARE = (
    jsonschema.Draft202012Validator(json.loads(read_schema(name))) for name in ("bench", "compare")
)
ROOT = Path(__file__).parents[2]
#: What earlier versions of specx wrote; the micro files are data of a program that is gone.
OLDER = sorted(
    path
    for path in (*ROOT.glob("presets/measured/*.json"), ROOT / "docs" / "bench-cpu.json")
    if ".micro" not in path.name
)


@pytest.fixture
def write(tmp_path):
    """Text, bytes or an object as a file; gives its path."""

    def put(content, name="bench.json"):
        path = tmp_path / name
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return put


@pytest.fixture
def bench():
    """As JSON."""
    return bench_object(documents=2, lengths=(1024,), modes=("plain", "specx")).as_json()


def at(bench, path):
    """The container and the last key of a path such as ``cells.0.length``."""
    *outer, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in outer:
        bench = bench[part]
    return bench, last


def refused(path):
    with pytest.raises(DocumentError) as caught:
        read_bench(path)
    return caught.value


# Reading


@pytest.mark.parametrize("change", [None, with_difference, with_energy])
def test_what_was_written_comes_back(write, change):
    whole = bench_object(modes=tuple(MODES), reps=2, change=change, warnings=[("swap", "much")])
    assert read_bench(write(whole.as_json())) == whole


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.name)
def test_files_of_earlier_versions_load_show_and_compare(path):
    written = json.loads(path.read_text("utf-8"))
    read = read_bench(str(path))
    BENCH.validate(read.as_json())
    for row, was in zip(read.cells, written["cells"], strict=True):
        for run, sample in zip(row.samples, was["samples"], strict=True):
            assert {**run.as_json(), **sample} == run.as_json()
        assert row.summary.n == was["summary"]["n"]
    assert to_markdown(read, profile=True)
    found = join(read, read)
    assert all(row.agrees in (True, None) and row.text_equal for row in found.rows)


def test_a_byte_order_mark_is_no_obstacle(write, bench):
    assert read_bench(write(b"\xef\xbb\xbf" + json.dumps(bench).encode())).as_json() == bench


def test_fields_of_a_later_version_are_passed_over(write, bench):
    later = copy.deepcopy(bench)
    for path in ("new", "plan.new", "env.new", "cells.0.new", "cells.0.samples.0.new"):
        container, key = at(later, path)
        container[key] = {"anything": [1, None]}
    later["cells"][0]["samples"][0]["phases"]["new"] = 1
    assert read_bench(write(later)).as_json() == bench


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOF"),
        (b"\xff\xfe{\x00}\x00", "JSON"),
        (b"\x00\x01\x02", "JSON"),
        (b'{"schema": "specx.bench/1"', "EOF"),
        (b'{"schema": "specx.bench/1"}\n{"a": 1}\n', "trailing"),
        (b"[1, 2]", "object"),
        (b'"specx.bench/1"', "object"),
        (b"null", "object"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "number"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
    ],
)
def test_what_is_no_bench_at_all(write, content, reason):
    error = refused(write(content))
    assert "is not a saved bench" in error.message
    assert reason in error.reason
    assert "not a journal" in error.hints[0]


def test_paths_that_lead_nowhere(tmp_path):
    assert "there is no file" in refused(str(tmp_path / "none.json")).message
    assert "directory" in refused(str(tmp_path)).reason
    assert "null byte" in refused("a\0b").reason


def test_a_file_too_large_is_not_parsed(write, monkeypatch, bench):
    monkeypatch.setattr(saved, "MAX_BENCH_BYTES", 1 << 20)
    assert "larger than 1 MiB" in refused(write(json.dumps(bench) + " " * (1 << 20))).reason


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("specx.bench/2", '"specx.bench/2"'),
        ("specx.result/1", '"specx.result/1"'),
        (1, "is 1"),
        ({"a": "b" * 500}, '{"a": "bbb'),
        (False, "false"),
        ("\x1b[2J", "\\u001b[2J"),
    ],
)
def test_another_version_is_said_to_be_one(write, bench, schema, words):
    path = write(bench | {"schema": schema})
    with pytest.raises(UsageError) as caught:
        read_bench(path)
    assert words in caught.value.message
    assert "reads specx.bench/1" in caught.value.message
    assert len(caught.value.message) < len(path) + 120


def test_no_schema_is_said_too(write):
    with pytest.raises(UsageError, match="names no schema"):
        read_bench(write("{}"))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (
            "cells.1.samples.0.decode_s",
            -1,
            "cells[1].samples[0].decode_s must be greater than or equal to 0, not -1",
        ),
        ("cells.1.samples.0.decode_s", "1", 'decode_s must be a valid number, not "1"'),
        ("cells.1.samples.0.decode_s", True, "decode_s must be a valid number, not true"),
        ("cells.0.samples.1.tokens.3", 1.5, "tokens[3] must be a valid integer, not 1.5"),
        ("cells.0.samples.0.cell.document", -1, "document must be greater than or equal to 0"),
        ("cells.0.samples.0.finish_reason", "bored", "must be 'eos', 'length', 'stop' or"),
        ("cells.0.samples", [], "cells[0].samples"),
        ("cells.0.samples", {}, "cells[0].samples must be a valid array, not {}"),
        ("cells.0.summary", None, "cells[0].summary must be an object, not null"),
        ("cells.1.summary.speedup.n", -1, "speedup.n must be greater than or equal to 0, not -1"),
        ("plan.presets.0.sha256", "abc", "plan.presets[0].sha256 must match pattern"),
        ("plan.presets.0.sha256", "a" * 64 + "\n", "plan.presets[0].sha256 must match pattern"),
        ("plan.presets.0.name", "", "plan.presets[0].name must have at least 1 character"),
        ("floors.0.bandwidth_bytes_s", 0, "bandwidth_bytes_s must be greater than 0, not 0"),
        ("cells.0.samples.0.cell.rep", 0.0, "cell.rep must be a valid integer, not 0.0"),
        ("cells.0.samples.0.steps", "1", 'steps must be a valid integer, not "1"'),
        ("cells.0.samples.0.phases", 5, "cells[0].samples[0].phases must be an object, not 5"),
        ("elapsed_s", ["x" * 9999], 'elapsed_s must be a valid number, not ["' + "x" * 58),
        ("elapsed_s", "\x1b[2J", 'elapsed_s must be a valid number, not "\\u001b[2J"'),
        ("finished", 1, "finished must be a valid boolean, not 1"),
        ("cells", None, "cells must be a valid array, not null"),
        ("plan.sampling.temperature", -1, "plan.sampling: temperature must be"),
        ("cells.1.samples.1.cell.document", 0, "samples[1] is the same run as cells[1].samples[0]"),
        ("cells.1.samples.1.cell.document", 2, "samples[1].cell.document is not in the plan: 2"),
        ("cells.1.samples.1.cell.mode", "plain", "cells[1].samples[1].cell belongs to another row"),
        ("plan.modes.1", "spec", 'cells[1].samples[0].cell.mode is not in the plan: "specx"'),
        ("plan.lengths.0", 512, "cells[0].samples[0].cell.length is not in the plan: 1024"),
        ("plan.presets", [], 'cell.preset is not in the plan: "pocket"'),
    ],
)
def test_damage_is_named_with_its_place(write, bench, path, value, complaint):
    container, key = at(bench, path)
    container[key] = value
    error = refused(write(bench))
    assert "is damaged" in error.message
    assert complaint in error.reason
    assert len(error.reason) < 180


@pytest.mark.parametrize("depth", [100, *range(900, 1000, 3), 3000])
def test_depth_where_a_number_belongs(write, bench, depth):
    text = json.dumps(bench)
    deep = "[" * depth + "]" * depth
    assert refused(write(text.replace('"elapsed_s": 12.5', f'"elapsed_s": {deep}')))
    with pytest.raises((UsageError, DocumentError)):
        read_bench(write(text.replace('"specx.bench/1"', deep)))


def test_the_order_of_members_means_nothing(write, bench):
    sample = bench["cells"][1]["samples"][1]
    sample["cell"] = dict(reversed(sample["cell"].items())) | {"document": 0}
    assert refused(write(bench)).reason.endswith(
        "samples[1] is the same run as cells[1].samples[0]"
    )


def test_an_infinite_number_is_damage(write, bench):
    text = json.dumps(bench).replace('"elapsed_s": 12.5', '"elapsed_s": 1e999')
    assert refused(write(text)).reason == "elapsed_s must be a finite number, not Infinity"


def test_a_missing_field_is_named(write, bench):
    del bench["cells"][0]["samples"][0]["total_s"]
    assert refused(write(bench)).reason == "cells[0].samples[0].total_s is missing"


def test_a_row_there_twice_is_damage(write, bench):
    again = copy.deepcopy(bench["cells"][0])
    for each in again["samples"]:
        each["cell"]["rep"] = 1
    bench["cells"].append(again)
    assert refused(write(bench)).reason == "cells[2] is the same run as cells[0]"


def test_missing_cells_must_be_planned_ones(write, bench):
    cell = {"preset": "pocket", "mode": "specx", "length": 1024, "document": 9, "rep": 0}
    bench["missing"] = [{"cell": cell, "reason": "budget"}]
    assert refused(write(bench)).reason == "missing[0].cell.document is not in the plan: 9"


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def outcome(call, *arguments):
    """What a call returns and "", or None and why it refused."""
    try:
        return call(*arguments), ""
    except (DocumentError, UsageError) as error:
        return None, error.reason


SMALL = bench_object(
    documents=1, lengths=(64,), modes=("plain", "specx"), change=with_difference
).as_json()
#: JSON Schema takes 1.0 for an integer, and does not know what the plan's sampling allows.
EXACT = ["temperature", "top_p", "min_p", "repetition_penalty", "seed"]
PLACES = [path for path in places(SMALL) if path and path != ("schema",)]
VALUES = st.sampled_from(
    [None, True, 0, 1, -1, 0.5, 1e-300, "", "x", "plain", [], {}, [0], {"a": 1}]
)


@given(st.sampled_from(PLACES), VALUES, st.booleans())
@settings(max_examples=100)
def test_what_the_reader_accepts_can_be_compared(tmp_path_factory, path, value, remove):
    bench = copy.deepcopy(SMALL)
    container = bench
    for part in path[:-1]:
        container = container[part]
    if remove:
        del container[path[-1]]
    else:
        container[path[-1]] = value
    file = tmp_path_factory.mktemp("mutant", numbered=True) / "bench.json"
    file.write_text(json.dumps(bench), encoding="utf-8")
    read, reason = outcome(read_bench, str(file))
    references = ("not in the plan", "another row", "same run")  # no schema can say these
    accepted = read is not None or any(words in reason for words in references)
    assert accepted or not BENCH.is_valid(bench) or path[-1] in EXACT, reason
    for metric in saved.METRICS if read is not None else ():
        joined, reason = outcome(join, read, Bench.model_validate(SMALL), metric)
        assert joined or reason
        if joined:
            COMPARE.validate(json.loads(json.dumps(joined.as_json(), allow_nan=False)))


# Joining


def faster(factor):
    """Decoding of ``specx`` sped up by a factor, or by one a document."""

    def change(run):
        if run.cell.mode != "specx":
            return run
        by = factor[run.cell.document] if isinstance(factor, tuple) else factor
        return run.model_copy(update={"decode_s": run.decode_s / by})

    return change


def row(comparison, mode="specx", length=1024):
    return next(each for each in comparison.rows if (each.mode, each.length) == (mode, length))


def test_a_bench_agrees_with_itself():
    bench = bench_object(reps=2)
    for metric in saved.METRICS:
        found = join(bench, bench, metric)
        for each in found.rows:
            assert (each.change_percent, each.low_percent, each.high_percent) == (0, 0, 0)
            assert each.a == each.b
            assert each.differs == []
            assert each.text_equal is True
            assert each.agrees is True
        assert (found.only_in_a, found.only_in_b) == ([], [])


def test_a_change_worked_by_hand():
    # Document 0 twice, document 1 eight times as fast: √(2 · 8) = 4, so +300 %, from +100 to +700.
    found = join(bench_object(documents=2), bench_object(documents=2, change=faster((2, 8))))
    changed = row(found)
    assert changed.n == 2
    assert changed.b == pytest.approx(4 * changed.a)
    assert changed.change_percent == pytest.approx(300)
    assert changed.low_percent == pytest.approx(100)
    assert changed.high_percent == pytest.approx(700)
    assert changed.agrees is False
    assert row(found, "plain").agrees is True


def test_values_are_geometric_means_over_documents():
    bench = bench_object(documents=2, modes=("plain",), lengths=(1024,))
    rates = [32 / each.decode_s for each in bench.cells[0].samples]
    assert join(bench, bench).rows[0].a == pytest.approx(math.sqrt(rates[0] * rates[1]))


def test_repetitions_count_by_their_median():
    def one_bad(run):
        update = {"decode_s": run.decode_s * (50 if run.cell.rep == 2 else 1)}
        return run.model_copy(update=update)

    found = join(bench_object(reps=3), bench_object(reps=3, change=one_bad))
    # Repetitions cost 1, 1.01, 1.02: the median moves from 1.01 to 1.01.
    assert row(found).change_percent == pytest.approx(0)


def test_one_document_has_a_change_without_bounds():
    found = row(join(bench_object(documents=1), bench_object(documents=1, change=faster(2))))
    assert found.change_percent == pytest.approx(100)
    assert (found.low_percent, found.high_percent, found.agrees) == (None, None, None)


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        ("decode_tok_s", 100),
        ("prefill_tok_s", 0),
        ("ttft_s", 0),
        ("tokens_per_step", 0),
        ("speedup", 100),
    ],
)
def test_metrics_see_what_they_measure(metric, change):
    found = join(bench_object(), bench_object(change=faster(2)), metric)
    assert row(found).change_percent == pytest.approx(change)


def test_speedup_has_no_row_for_the_baseline():
    found = join(bench_object(), bench_object(), "speedup")
    assert {each.mode for each in found.rows} == {"spec", "specx"}
    assert (found.only_in_a, found.only_in_b) == ([], [])


def test_documents_are_found_by_their_text_not_by_number_or_name():
    def swap(bench):
        listed = bench["plan"]["data"]["documents"]
        listed[0]["sha256"], listed[2]["sha256"] = listed[2]["sha256"], listed[0]["sha256"]
        listed[1]["name"] = "renamed"
        listed[1]["sha256"] = sha256("another text")

    a = bench_object(documents=3)
    b = edited(bench_object(documents=3, change=faster((1, 2, 4))), swap)
    found = join(a, b)
    assert row(found).n == 2
    assert row(found).text_equal is False  # the tokens stayed with the numbers
    assert [each.name for each in found.only_in_a[0].documents] == ["text-1"]
    assert [each.name for each in found.only_in_b[0].documents] == ["renamed"]
    assert not found.only_in_a[0].whole_row


def test_rows_of_one_side_are_listed():
    a = bench_object(modes=("plain", "spec"), lengths=(1024, 2048))
    b = bench_object(modes=("plain", "specx"), lengths=(1024,))
    found = join(a, b)
    assert [(each.mode, each.length) for each in found.rows] == [("plain", 1024)]
    assert [(each.mode, each.length, each.whole_row) for each in found.only_in_a] == [
        ("spec", 1024, True),
        ("plain", 2048, True),
        ("spec", 2048, True),
    ]
    assert [(each.mode, each.length, len(each.documents)) for each in found.only_in_b] == [
        ("specx", 1024, 3)
    ]


def test_other_surroundings_are_named():
    def move(bench):
        bench["env"] |= {"torch": "2.14.0", "threads": 4, "gpu": "Example GPU"}
        bench["specx"] = {"version": "0.1.0", "commit": "fffffff"}
        bench["plan"]["presets"][0]["sha256"] = sha256("tuned")

    a, b = bench_object(), edited(bench_object(dtype="float16"), move)
    names = row(join(a, b)).differs
    assert names == ["gpu", "threads", "torch", "dtype", "preset.sha256", "specx.commit"]


def test_other_settings_are_named_and_excuse_another_text():
    def cut(run):
        return run.model_copy(update={"tokens": run.tokens[:9]})

    a, b = bench_object(), bench_object(max_tokens=9, ignore_eos=False, change=cut)
    found = row(join(a, b))
    assert found.differs == ["max_tokens", "ignore_eos"]
    assert found.text_equal is None
    assert row(join(bench_object(), bench_object(change=cut))).text_equal is False
    assert row(join(a, bench_object(max_tokens=9))).text_equal is True
    other = row(join(a, bench_object(baseline="spec", modes=("spec", "specx")), "speedup"))
    assert other.differs == ["baseline"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"presets": ("other",)}, "their presets differ: pocket and other"),
        ({"modes": ("hf",)}, "their modes differ: plain, spec, specx and hf"),
        ({"lengths": (4096,)}, "their lengths differ: 1024, 2048 and 4096"),
    ],
)
def test_nothing_in_common_is_explained(changes, reason):
    with pytest.raises(UsageError) as caught:
        join(bench_object(), bench_object(**changes))
    assert caught.value.message == "the two benches share no decode_tok_s"
    assert caught.value.reason == reason
    assert caught.value.hints


def test_other_documents_are_explained():
    def change(bench):
        for document in bench["plan"]["data"]["documents"]:
            document["sha256"] = sha256(document["name"] + "!")

    b = edited(bench_object(), change)
    with pytest.raises(UsageError, match="on different documents"):
        join(bench_object(), b)


def test_crossed_rows_are_explained():
    both = bench_object(modes=("plain", "spec"))
    a, b = (
        both.model_copy(
            update={"cells": [row for row in both.cells if (row.length, row.mode) in kept]}
        )
        for kept in ({(1024, "plain")}, {(1024, "spec"), (2048, "plain")})
    )
    with pytest.raises(UsageError, match="no row has its preset, mode and length in both"):
        join(a, b)


def test_a_metric_that_one_side_lacks_is_explained():
    without = bench_object(modes=("spec", "specx"))
    with pytest.raises(UsageError, match="the second has no row with this metric"):
        join(bench_object(), without, "speedup")
    with pytest.raises(UsageError, match="the first has no row with this metric"):
        join(without, bench_object(), "speedup")


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        join(bench_object(), bench_object(), "decode_toks")
    assert caught.value.hints[0] == "did you mean decode_tok_s?"


# The object


def test_the_comparison_as_an_object(write):
    a = bench_object(modes=("plain", "spec", "hf"))
    b = bench_object(modes=("plain", "spec"), documents=2, change=faster(2))
    b = edited(b, lambda each: each["env"].update(torch="2.14.0"))
    found = join(a, b, "ttft_s", ("A.json", "B.json")).as_json()
    COMPARE.validate(json.loads(json.dumps(found, allow_nan=False)))
    assert (found["kind"], found["metric"]) == ("saved", "ttft_s")
    assert (found["a"]["path"], found["b"]["path"]) == ("A.json", "B.json")
    assert found["b"]["env"]["torch"] == "2.14.0"
    assert found["rows"][0]["differs"] == ["torch"]
    assert found["rows"][0]["agrees"] is True
    assert found["only_in_a"][0]["documents"][0]["name"] == "text-2"
    assert found["only_in_b"] == []
    assert SavedComparison.model_validate_json(json.dumps(found), strict=True).as_json() == found
    assert join(a, b).a.path is None


def live_object():
    """A comparison of two runs on one document, as ``specx compare FILE`` writes it."""
    run = {
        "preset": "pocket",
        "mode": "plain",
        "text": "It ends well.",
        "finish_reason": "eos",
        "tokens": {"prompt": 900, "new": 5},
        "time_s": {
            "prefill_target": 0.2,
            "prefill_draft": 0.0,
            "tune": 0.0,
            "ttft": 0.21,
            "decode": 0.1,
            "total": 0.31,
        },
        "rate": {"prefill_tok_s": 4500.0, "decode_tok_s": 40.0, "end_to_end_tok_s": 16.1},
        "accept": {
            "steps": 4,
            "drafted": 0,
            "accepted": 0,
            "accepted_per_step": 0.0,
            "tokens_per_step": 1.0,
        },
        "memory": {"weights": 1, "kv_target": 1, "kv_draft": 0, "peak": 3},
        "speedup": None,
        "end_to_end_speedup": None,
        "equal": None,
        "first_difference": None,
    }
    difference = {"index": 3, "expected": 7, "got": None, "margin": None}
    other = run | {"mode": "specx", "speedup": 2.1, "end_to_end_speedup": 1.3, "equal": False}
    env = bench_object().env.model_dump()
    del env["driver"]
    return {
        "schema": "specx.compare/1",
        "kind": "live",
        "specx": {"version": "0.1.0"},
        "created": "2026-01-02T03:04:05+00:00",
        "input": {
            "path": None,
            "name": "stdin",
            "format": "text",
            "bytes": 4000,
            "sha256": sha256("stdin"),
            "tokens": 880,
        },
        "env": env,
        "runs": [run, other | {"first_difference": difference}],
    }


def test_the_schema_describes_live_comparisons_too():
    jsonschema.Draft202012Validator.check_schema(COMPARE.schema)
    COMPARE.validate(live_object())
    read = LiveComparison.model_validate_json(json.dumps(live_object()), strict=True)
    assert [run.warnings for run in read.runs] == [[], []]  # older files have none


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "replayed"),
        ("runs", []),
        ("runs.0.rate.decode_tok_s", -1),
        ("runs.0.finish_reason", "tired"),
        ("input.sha256", "no"),
    ],
)
def test_the_schema_refuses_other_live_comparisons(path, value):
    found = live_object()
    container, key = at(found, path)
    container[key] = value
    assert not COMPARE.is_valid(found)
