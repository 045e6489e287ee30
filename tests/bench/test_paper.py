"""The paper's rows beside ours: which belong where, and how they are shown."""

import json
from typing import Any

import pytest

from specx.bench.paper import check_paper, with_paper
from specx.bench.render.html import to_html
from specx.bench.render.markdown import to_markdown
from specx.bench.render.numbers import definitions
from specx.bench.render.tables import paper_table
from specx.bench.saved import read_bench
from specx.bench.schema import Bench
from specx.errors import UsageError
from specx.preset.preset import Preset, load_preset
from tests.bench.objects import bench_object, edited

LENGTHS = (1024, 2048)


@pytest.fixture(scope="module")
def vicuna() -> Preset:
    return load_preset("vicuna-7b")


def bench(name: str = "vicuna-7b", data: str = "sample", **changes: Any) -> Bench:
    found = bench_object(presets=(name,), lengths=LENGTHS, **changes)
    return edited(found, lambda each: each["plan"]["data"].update(name=data))


def test_rows_are_those_of_the_mode_and_length(vicuna: Preset) -> None:
    found = with_paper(bench(), {"vicuna-7b": vicuna}).paper
    places = [(row.length, row.mode, row.tokens_per_step, row.tok_s) for row in found]
    assert places == [
        (1024, "spec", 2.73, 100.31),
        (1024, "specx", 3.80, 128.59),
        (2048, "spec", 1.64, 55.64),
        (2048, "specx", 3.52, 109.58),
    ]
    assert {row.source for row in found} == {"arXiv 2505.20776v4 Table 2"}


@pytest.mark.parametrize(
    ("name", "data", "same"),
    [
        ("sample", "govreport", False),
        ("govreport_8K.jsonl", "govreport", True),
        ("ccdv/GovReport-summarization", "govreport", True),
        ("PG-19/test", "pg19", True),
        ("book_sum.jsonl+more.txt", "booksum", True),
    ],
)
def test_texts_of_the_paper_are_known_by_name(
    vicuna: Preset, name: str, data: str, same: bool
) -> None:
    made = with_paper(bench(data=name), {"vicuna-7b": vicuna})
    assert {(row.data, row.same_data) for row in made.paper} == {(data, same)}
    assert any("the texts here are others" in line for line in definitions(made)) == (not same)


def test_the_standard_mode_is_the_papers_too(vicuna: Preset) -> None:
    made = with_paper(bench(modes=("plain", "standard")), {"vicuna-7b": vicuna})
    assert [row.mode for row in made.paper] == ["standard", "standard"]


def test_the_table_has_both_in_pairs(vicuna: Preset) -> None:
    made = with_paper(bench(), {"vicuna-7b": vicuna})
    model = paper_table(made)
    summary = next(cell for cell in made.cells if cell.mode == "specx").summary
    row = dict(zip(model.header, model.rows[1], strict=True))
    assert row["prompt"] == "1,024"
    assert row["tok/step\nhere"] == f"{summary.tokens_per_step.value:.2f}"
    assert row["tok/step\npaper"] == "3.80"
    assert row["overall\ntok/s here"] == f"{summary.end_to_end_tok_s.median:.0f}"
    assert row["overall\ntok/s paper"] == "129"
    assert row["overall\nspeed-up"] == f"{summary.end_to_end_speedup.value:.2f}x"
    assert row["speed-up\npaper"] == "2.28x"
    assert model.group_breaks == {2}
    assert len(model.parts(80)) == 1


def test_what_is_suspect_is_marked_and_explained() -> None:
    made = with_paper(bench("longchat-7b"), {"longchat-7b": load_preset("longchat-7b")})
    table = paper_table(made)
    assert [row[3].endswith("?") for row in table.rows] == [True, False] * 2
    assert [line for line in definitions(made) if line.startswith("? = suspect")] == [
        "? = suspect: the very numbers of the vicuna-7b row, though target and draft differ: "
        "a copy by mistake"
    ]


def test_rows_without_a_length_are_lines() -> None:
    preset = load_preset("r1-llama-8b-eagle3")
    made = with_paper(bench(preset.name), {preset.name: preset})
    assert paper_table(made).rows == []
    told = " ".join(definitions(made))
    assert "aime24 without a prompt length, specx: 5.95 tok/step, 117 tok/s" in told


def test_markdown_says_whose_numbers_they_are(vicuna: Preset) -> None:
    text = to_markdown(with_paper(bench(), {"vicuna-7b": vicuna}), profile=False)
    assert "## Beside the paper" in text
    assert "A100 80GB" in text
    assert "the prefill included: compare it with overall" in text
    assert "paper" not in to_markdown(bench(), profile=False)


def test_the_page_has_them_too(vicuna: Preset) -> None:
    page = to_html(with_paper(bench(), {"vicuna-7b": vicuna}))
    assert "Beside the paper</h2>" in page
    assert ">2.28x<" in page
    assert "Beside the paper" not in to_html(bench())


def test_a_saved_bench_keeps_them(vicuna: Preset, tmp_path: Any) -> None:
    made = with_paper(bench(), {"vicuna-7b": vicuna})
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(made.as_json()), encoding="utf-8")
    read = read_bench(str(path))
    assert read == made
    rows = [row.model_copy(update={"length": 77}) for row in read.paper]  # of no cell
    assert paper_table(read.model_copy(update={"paper": rows})).rows == []


def test_a_preset_without_a_paper() -> None:
    with pytest.raises(UsageError, match="pocket names no rows of a paper") as caught:
        check_paper([load_preset("vicuna-7b"), load_preset("pocket")])
    assert "vicuna-7b" in caught.value.hints[0]
