"""Tables, Markdown, CSV and JSON lines of a bench."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.bench.modes import GROUPS
from specx.bench.render import numbers, tables
from specx.bench.render.flat import to_csv, to_jsonl
from specx.bench.render.markdown import to_markdown
from specx.bench.schema import PHASES, Bench, BenchCell, Sample
from tests.bench.hostile import hostile_bench
from tests.bench.objects import bench_object, edited, with_difference, with_energy

FLOOR_AND_TABLE = """\
# specx bench: pocket

- floor 1,024: 5.00 ms a token = 200 tok/s plain (50 MB over 10 GB/s) · prefill 25,000 tok/s \
(4.1 GFLOP over 0.10 TFLOP/s)
- floor 2,048: 5.00 ms a token = 200 tok/s plain (50 MB over 10 GB/s) · prefill 25,000 tok/s \
(8.2 GFLOP over 0.10 TFLOP/s)

## Speed, compared with plain

| prompt | mode  | prefill tok/s | decode tok/s | overall tok/s | speed-up over plain | tok/step \
| acc/step | decode/floor | prefill/floor |     equal |
| -----: | ----- | ------------: | -----------: | ------------: | ------------------- | -------: \
| -------: | -----------: | ------------: | --------: |
|  1,024 | plain |        10,000 |         80.0 |          65.4 | 1                   |     1.00 \
|     0.00 |          2.5 |           2.5 |         – |
|  1,024 | spec  |         8,889 |         92.3 |          71.3 | 1.18x [1.11, 1.25]  |     1.88 \
|     0.88 |          3.1 |           2.8 | **2/3 !** |
|  1,024 | specx |         8,889 |          174 |           109 | 2.23x [2.00, 2.50]  |     3.56 \
|     2.56 |          3.1 |           2.8 |       3/3 |
|  2,048 | plain |        10,000 |         66.7 |          48.0 | 1                   |     1.00 \
|     0.00 |          3.0 |           2.5 |         – |
|  2,048 | spec  |         8,889 |         76.9 |          51.2 | 1.18x [1.11, 1.25]  |     1.88 \
|     0.88 |          3.7 |           2.8 |       3/3 |
|  2,048 | specx |         8,889 |          145 |          72.2 | 2.23x [2.00, 2.50]  |     3.56 \
|     2.56 |          3.7 |           2.8 |       3/3 |

## Memory

"""
PROFILE = """\
## Milliseconds of a verify step

| prompt | mode  | draft 1 | draft 2 | draft 3+ | tree | verify | accept | commit | retrieve \
| host | total | ms/token |
| -----: | ----- | ------: | ------: | -------: | ---: | -----: | -----: | -----: | -------: \
| ---: | ----: | -------: |
|  1,024 | plain |       – |       – |        – |    – |   11.2 |   0.75 |      – |        – \
| 0.50 |  12.5 |     12.5 |
|  1,024 | spec  |    2.39 |    1.99 |     1.59 | 0.40 |   11.2 |   0.60 |   0.40 |     0.80 \
| 0.60 |  19.9 |     10.6 |
"""
SETTINGS = """\
## Settings

- Example CPU, 2 threads · cpu · float32
- specx 0.1.0 (abc1234) · torch 2.13.0 · transformers 5.23.0 · Python 3.12.1 · Linux
- pocket: target pocket/target float32 · draft pocket/draft (lm, trained at 1,024 tokens) · sdpa \
kernels
- data sample: 3 documents · n = 3 a row · 1 repetition · 1 warm-up · up to 33 new tokens, end of \
text ignored · greedy, seed 0
- 2026-01-02 03:04 UTC · took 12.5 s
- skipped 1 text: not JSON (1)
- missing 1 run: budget (1)
"""
DIFFERENCE = (
    "NOT EQUAL: pocket spec at 1,024: 2 of 3 texts are those of plain; first: text-1, "
    "repetition 0, token 17 is 9, not 217, logit margin 0.0001"
)


def one_differs(run: Sample) -> Sample:
    place = (run.cell.mode, run.cell.length, run.cell.document)
    return with_difference(run) if place == ("spec", 1024, 1) else run


@pytest.fixture
def bench() -> Bench:
    missing = [(BenchCell(preset="pocket", mode="specx", length=2048, document=2, rep=0), "budget")]
    return bench_object(
        change=one_differs,
        missing=missing,
        warnings=[("busy", "other programs are running: close *them*")],
    )


def is_clean(text: str) -> bool:
    return all(sign == "\n" or sign.isprintable() for sign in text)


def alarms(table: tables.TableModel) -> set[tuple[int, int]]:
    cells = [(r, c, cell) for r, row in enumerate(table.rows) for c, cell in enumerate(row)]
    return {(r, c) for r, c, cell in cells if isinstance(cell, tables.Alarm)}


def test_markdown_is_the_whole_report(bench: Bench) -> None:
    text = to_markdown(bench, profile=True)
    assert text.startswith(FLOOR_AND_TABLE)
    assert PROFILE in text
    assert text.endswith(SETTINGS)
    assert not text.endswith("\n\n")
    assert "- other programs are running: close \\*them\\*\n" in text
    assert f"## Warnings\n\n- {DIFFERENCE}\n" in text
    for line in numbers.definitions(bench):
        assert line.replace("|", "\\|") in text


def test_markdown_without_profile_has_no_profile(bench: Bench) -> None:
    assert "verify step\n" not in to_markdown(bench, profile=False)


def test_main_table(bench: Bench) -> None:
    table = tables.main_table(bench)
    assert table.header[:2] == ("prompt", "mode")
    assert table.header[5] == "speed-up\nover plain"
    assert table.rows[0] == (
        "1,024", "plain", "10,000", "80.0", "65.4", "1", "1.00", "0.00", "2.5", "2.5", "–",
    )  # fmt: skip
    assert table.header[6:10] == ("tok/\nstep", "acc/\nstep", "decode\n/floor", "prefill\n/floor")
    assert table.rows[1][-1] == "2/3 !"
    assert alarms(table) == {(1, 10)}
    assert table.group_breaks == {3}
    assert table.align.count("left") == 2


def width_of(table: tables.TableModel) -> int:
    columns = zip(table.header, *table.rows, strict=True)
    widths = [max(len(line) for cell in c for line in cell.split("\n")) for c in columns]
    return sum(widths) + 2 * (len(widths) - 1)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("width", [80, 100])
def test_parts_fit_a_terminal_and_lose_nothing(group: str, width: int) -> None:
    modes = GROUPS[group]
    bench = bench_object(modes=modes, lengths=(1024, 16384), documents=10, change=one_differs)
    for table in tables.report_tables(bench, profile=True):
        parts = table.parts(width)
        assert max(map(width_of, parts)) <= width
        assert all(part.header[:2] == ("prompt", "mode") for part in parts)
        assert sum((part.header[2:] for part in parts), ()) == table.header[2:]
        assert all(part.group_breaks == table.group_breaks for part in parts)
        assert sum(len(alarms(part)) for part in parts) == len(alarms(table))
    assert group != "default" or len(tables.main_table(bench).parts(104)) == 1


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.5, "0.5"), (1, "1.0"), (9.94, "9.9"), (9.95, "10"), (1234, "1,234")]
)
def test_ratios_to_the_floor_keep_two_digits(ratio: float, text: str) -> None:
    floor = {"decode": ratio, "prefill": None}
    bench = edited(bench_object(), lambda each: each["cells"][0]["summary"].update(floor=floor))
    assert tables.main_table(bench).rows[0][8:10] == (text, "–")


def test_presets_get_a_column_when_there_are_several() -> None:
    table = tables.main_table(bench_object(presets=("pocket", "large"), lengths=(1024, 2048)))
    assert table.header[0] == "preset"
    assert [row[0] for row in table.rows] == ["pocket"] * 6 + ["large"] * 6
    assert table.group_breaks == {3, 6, 9}


def test_what_was_not_measured_is_a_dash() -> None:
    bench = bench_object(modes=("plain", "hf-assisted"), documents=1, floors=False)
    row = tables.main_table(bench).rows[1]
    assert row[5] == "0.80x"  # one document: no interval
    assert row[6:10] == ("–", "–", "–", "–")
    assert numbers.floor_lines(bench) == []


def test_without_a_baseline_there_is_no_speed_up() -> None:
    bench = bench_object(baseline=None)
    table = tables.main_table(bench)
    assert table.title == "Speed"
    assert {row[5] for row in table.rows} == {"–"}
    assert numbers.headline(bench) == ("No speed-up to report", "")


def test_memory_table_has_energy_only_where_measured() -> None:
    assert tables.memory_table(bench_object()).rows[1] == (
        "1,024", "spec", "3.8 MiB", "1.0 MiB", "0.2 MiB", "193 MiB",
    )  # fmt: skip
    table = tables.memory_table(bench_object(change=with_energy))
    assert table.header[-1] == "J/token"
    assert {row[-1] for row in table.rows} == {"0.50"}


def test_no_profile_no_table() -> None:
    bench = bench_object(change=lambda run: run.model_copy(update={"phases": None}))
    assert tables.profile_table(bench).rows == []
    assert tables.profiles(bench) == []
    assert "verify step" not in to_markdown(bench, profile=True)


def test_many_lengths_share_three_lines_of_floor() -> None:
    lengths = (512, 1024, 2048, 4096, 8192)
    lines = numbers.floor_lines(bench_object(presets=("a", "b"), lengths=lengths))
    assert len(lines) == 6
    assert lines[0] == "floor a on 10 GB/s and 0.10 TFLOP/s, tok/s at each prompt length"
    assert lines[1].startswith("  plain decode 512: 200 · 1,024: 200")


def test_footer_ends_with_warnings(bench: Bench) -> None:
    lines = numbers.footer(bench)
    assert lines[:7] == [line[2:] for line in SETTINGS.splitlines()[2:]]
    assert lines[7] == f"warning: {DIFFERENCE}"
    assert lines[8] == "warning: other programs are running: close *them*"


def test_headline_is_the_largest_speed_up(bench: Bench) -> None:
    text, details = numbers.headline(bench)
    assert text.startswith("specx decodes 2.23 times as fast as plain at ")
    assert details.startswith("Geometric mean over 3 documents; 95 %")
    slow = bench_object(modes=("plain", "hf-assisted", "standard"), documents=1)
    assert numbers.headline(slow)[0].startswith("standard decodes 1.00 times as fast")


def test_csv_holds_every_sample(bench: Bench) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(bench))))
    runs = [run for cell in bench.cells for run in cell.samples]
    assert len(rows) == len(runs) == 18
    for row, run in zip(rows, runs, strict=True):
        assert row["mode"] == run.cell.mode
        assert float(row["decode_s"]) == run.decode_s
        assert int(row["memory_peak_bytes"]) == run.memory.peak
        phases = [row[f"phase_{name}_s"] for name in PHASES]
        assert sum(map(float, phases)) == pytest.approx(run.decode_s)
    assert [row["equal"] for row in rows[:6]] == ["", "", "", "1", "0", "1"]
    assert rows[4]["first_difference_index"] == "17"
    assert to_csv(bench).splitlines()[1].startswith('"pocket","plain",1024,0,"text-0",0,')


def test_jsonl_parses_back(bench: Bench) -> None:
    runs = [run for cell in bench.cells for run in cell.samples]
    lines = to_jsonl(bench).splitlines()
    for line, run in zip(lines, runs, strict=True):
        found = json.loads(line)
        cell = {key: found.pop(key) for key in ("preset", "mode", "length", "document", "rep")}
        assert found.pop("document_name") == f"text-{cell['document']}"
        assert {"cell": cell, **found} == run.as_json()


def test_hostile_names_stay_text() -> None:
    bench = hostile_bench()
    markdown = to_markdown(bench, profile=True)
    assert is_clean(markdown)
    assert "<script>" not in markdown.replace("\\<", "")
    assert "![" not in markdown.replace("\\[", "")
    table = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table[:8]} == {12}
    assert is_clean(to_csv(bench))
    assert is_clean(to_jsonl(bench))
    assert len(list(csv.reader(io.StringIO(to_csv(bench))))) == 37
    lines = [*numbers.floor_lines(bench), *numbers.footer(bench), *numbers.definitions(bench)]
    assert is_clean("".join(lines))
    markdown.encode("utf-8")


def test_a_bench_without_cells_is_a_report_too() -> None:
    nothing = {key: [] for key in ("cells", "floors", "warnings")}
    bench = edited(bench_object(), lambda each: each.update(nothing))
    assert to_markdown(bench, profile=True).startswith("# specx bench: pocket\n\n## Def")
    assert to_csv(bench) == to_jsonl(bench) == ""
    assert tables.main_table(bench).rows == []


@given(st.text(max_size=60))
def test_plain_text_is_one_printable_line(text: str) -> None:
    clean = numbers.plain_text(text)
    assert is_clean(clean)
    assert "\n" not in clean
    assert numbers.plain_text(clean) == clean
    assert is_clean(numbers.plain_text(text + "\ud800"))


@given(st.floats(min_value=0, max_value=1e15))
def test_numbers_keep_two_digits(value: float) -> None:
    text = numbers.number(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05, abs=0.005)
    assert len(numbers.milliseconds(value)) >= 3
