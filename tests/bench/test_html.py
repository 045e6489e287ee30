"""The self-contained page of a bench."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from specx.bench.render.html import to_html
from specx.bench.schema import Bench, Sample
from tests.bench.hostile import NAMES, hostile_bench
from tests.bench.objects import bench_object, edited, with_difference, with_energy

VOID = {"meta", "link", "img", "br", "use", "path", "rect", "line", "input"}


class Reader(HTMLParser):
    """Elements with their attributes, and the text of every kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def _no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(params=["with matplotlib", "without"])
def _figure(request: pytest.FixtureRequest) -> None:
    if request.param == "without":
        request.getfixturevalue("_no_matplotlib")
    else:
        pytest.importorskip("matplotlib")


def test_sections_and_headline() -> None:
    page = Reader(to_html(bench_object(change=with_energy)))
    assert page.texts["h1"][0].startswith("specx decodes 2.23 times as fast as plain at ")
    assert page.texts["h2"] == [
        "Floor",
        "Figure",
        "Speed, compared with plain",
        "Memory and energy",
        "Where a step’s time goes",
        "Samples",
        "Plan",
        "Environment",
        "Definitions",
        "Warnings",
    ]
    assert page.texts["li"][-1].startswith("fewer than 5 documents in 6 rows")
    assert "Every one of 12 compared texts is that of plain decoding." in page.texts["p"]
    assert "2.23x [2.00, 2.50]" in page.texts["td"]
    assert page.open == []


def test_both_ratios_to_the_floor_have_a_column() -> None:
    page = Reader(to_html(bench_object()))
    first = page.texts["th"].index("decode\n/floor")
    assert page.texts["th"][first : first + 3] == ["decode\n/floor", "prefill\n/floor", "equal"]
    spec = page.texts["td"].index("spec")
    assert page.texts["td"][spec + 7 : spec + 10] == ["3.1", "2.8", "3/3"]


def test_enough_documents_and_no_difference_make_no_warning() -> None:
    page = Reader(to_html(bench_object(documents=5)))
    assert page.texts["h2"][-1] == "Definitions"
    assert not [link for link in page.named("a") if link["href"] == "#warnings"]


def test_a_difference_is_said_at_the_top_and_marked() -> None:
    def change(run: Sample) -> Sample:
        return with_difference(run) if run.cell.mode == "spec" else run

    page = Reader(to_html(bench_object(change=change)))
    lead = [p for p in page.named("p") if "alarm" in (p.get("class") or "")]
    assert len(lead) == 1
    assert "6 of 12 compared texts differ from plain decoding." in page.texts["p"]
    marked = [cell for cell in page.named("td") if "alarm" in (cell.get("class") or "")]
    assert len(marked) == 2
    assert page.texts["h2"][-1] == "Warnings"
    told = [text for text in page.texts["li"] if text.startswith("NOT EQUAL: pocket spec at ")]
    assert len(told) == 2


@pytest.mark.usefixtures("_figure")
def test_page_loads_nothing() -> None:
    text = to_html(bench_object(presets=("pocket", "large")))
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    page = Reader(text)
    for tag, attributes in page.tags:
        assert tag not in {"img", "iframe", "object", "embed", "audio", "video", "base"}
        assert not {"src", "srcset", "action"} & set(attributes)
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:,"))
        assert not [key for key in attributes if key.startswith("on")]
    assert re.findall(r"url\((?!#)", text) == []


@pytest.mark.usefixtures("_figure")
def test_hostile_names_are_text() -> None:
    text = to_html(hostile_bench())
    page = Reader(text)
    assert page.open == []
    assert len(page.named("script")) == 2
    assert len(page.named("style")) == 1
    assert page.named("img") == []
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert NAMES[0] in page.texts["td"]
    assert "\x1b" not in text
    assert "\u202e" not in text
    text.encode("utf-8")


def test_one_script_may_run_and_its_hash_fits() -> None:
    page = Reader(to_html(bench_object()))
    policy = next(m["content"] or "" for m in page.named("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; ")
    script = re.findall(r"<script>(.*?)</script>", to_html(bench_object()), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


@pytest.mark.parametrize("bench", [bench_object(), hostile_bench()], ids=["usual", "hostile"])
def test_page_carries_its_data(bench: Bench) -> None:
    text = to_html(bench)
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert "<" not in found[0]
    assert json.loads(found[0]) == bench.as_json()


@pytest.mark.usefixtures("_figure")
def test_ids_are_unique_and_references_exist() -> None:
    text = to_html(bench_object(presets=("pocket", "large")))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


@pytest.mark.usefixtures("_no_matplotlib")
def test_without_matplotlib_there_are_bars() -> None:
    text = to_html(bench_object())
    assert "<svg" not in text
    assert text.count('<figure class="panel">') == 3
    assert '<span class="value">2.23</span>' in text
    assert "without intervals, which need matplotlib" in text


@pytest.mark.parametrize(
    "shape",
    [
        {"lengths": (1024,), "documents": 1},
        {"modes": ("plain",)},
        {"floors": False},
        {"change": lambda run: run.model_copy(update={"phases": None})},
    ],
)
def test_page_of_any_shape(shape: dict[str, Any]) -> None:
    assert Reader(to_html(bench_object(**shape))).open == []


def test_page_of_nothing_measured() -> None:
    page = Reader(to_html(edited(bench_object(), lambda each: each.update(cells=[]))))
    assert page.texts["h1"] == ["No speed-up to report"]
    assert "Figure" not in page.texts["h2"]


def test_stacked_bars_of_a_step() -> None:
    text = to_html(bench_object())
    bars = text[text.index('<div class="stack"') : text.index("The same in numbers")]
    assert bars.count('<div class="bar">') == 6
    shares = [float(share) for share in re.findall(r"width: ([\d.]+)%", bars)]
    assert max(shares) <= 100
    assert "19.9 ms / 3.56 tok = 5.60 ms a token" in bars


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_it_without_complaint(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(to_html(hostile_bench()), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    log = ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, *log, page.as_uri()], capture_output=True, timeout=120, check=False
    )
    if done.returncode or not done.stdout:
        pytest.skip("chromium does not start here")
    assert b"CONSOLE" not in done.stderr
    assert b'id="download">' in done.stdout  # shown: the script ran
