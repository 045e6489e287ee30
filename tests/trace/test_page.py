"""The page of a run: whatever the document says stays data, and nothing outside is needed."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.config import SamplingConfig
from specx.trace.map import Tick
from specx.trace.page import page_data, trace_page
from specx.trace.records import (
    Header,
    KeptChunks,
    PresetName,
    Program,
    StepLine,
    StepTimes,
    TextPiece,
    Token,
    Trace,
    TreeFacts,
)

HOSTILE = (
    "</script><script>alert(1)</script><!-- <script> ]]> &lt; {{policy}} \x00 \x1b[31m \u2028"
    "<img src=x onerror=alert(1)> \u202e [bold]x[/bold] \"' http://example.com/x.js"
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def a_trace(text):
    """Two steps of a run in which every text is ``text``."""
    header = Header(
        schema="specx.trace/1",
        kind="header",
        specx=Program(version=text),
        created=text,
        command=text,
        preset=PresetName(name=text, sha256=text),
        mode=text,
        device=text,
        dtype=text,
        sampling=SamplingConfig(),
        max_tokens=9,
        stop=[text],
        ignore_eos=False,
        input={"name": text, "format": text, "bytes": 1, "sha256": text, "tokens": 3},
        prompt_tokens=3,
        chunk_tokens=2,
        chunks=[text, text],
        ticks=[Tick(chunk=1, kind="heading", label=text)],
        retrieval=KeptChunks(top_chunks=1, sink_chunks=0, recent_chunks=1, every_steps=1),
        note=text,
    )
    tree = TreeFacts(
        ids=[5, 6, 7],
        texts=[text, text, "b"],
        parents=[0, 0, 1],
        path=[0, 1],
        bonus=Token(id=8, text=text),
    )
    times = StepTimes(
        draft=0.1, draft_levels=[0.1], verify=0.2, accept=0, commit=0, retrieve=0, host=0
    )
    pieces = [TextPiece(text=text, accepted=True), TextPiece(text=text, accepted=False)]
    common = {"kind": "step", "draft_context_tokens": 4, "pieces": pieces}
    steps = (
        StepLine(
            **common,
            number=0,
            new_tokens=1,
            nodes=0,
            accepted=0,
            tree=None,
            retrieved=[0, 1],
            times_s=None,
            elapsed_s=1,
        ),
        StepLine(
            **common,
            number=1,
            new_tokens=2,
            nodes=3,
            accepted=1,
            tree=tree,
            retrieved=None,
            times_s=times,
            elapsed_s=2,
        ),
    )
    return Trace(header, (), steps, None, ("cut short",))


class Parts(HTMLParser):
    """Tags with attributes, and what stands in each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.in_script = [], [], False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] += data


@given(TEXTS)
@settings(max_examples=60)
def test_a_document_adds_no_element(text):
    plain, hostile = (Parts(trace_page(a_trace(words))) for words in ("plain", HOSTILE + text))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert len(hostile.scripts) == 2
    assert hostile.scripts[1] == plain.scripts[1]


@given(TEXTS)
@settings(max_examples=60)
def test_the_data_is_all_there(text):
    trace = a_trace(HOSTILE + text)
    data = Parts(trace_page(trace)).scripts[0]
    assert not re.search("[<>&\x00-\x1f\u2028\u2029\x7f-\uffff]", data)
    assert json.loads(data) == page_data(trace)
    assert json.loads(data)["chunks"] == [HOSTILE + text] * 2


def test_the_policy_allows_this_script_and_this_style_only():
    page = trace_page(a_trace(HOSTILE))
    parts = Parts(page)
    (policy,) = (
        attrs["content"]
        for _, attrs in parts.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    for kind, code in (("script", parts.scripts[1]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_the_page_needs_nothing_else():
    page = trace_page(a_trace("plain"))
    assert not re.search(
        r"""(src|href|action)\s*=|url\(|@import|fetch\(|XMLHttp|https?://(?!www\.w3\.org/2000/svg)""",
        page,
    )
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)
    assert not re.search(r"\{\{[a-z]+\}\}", page)
    assert not [tag for tag, attrs in Parts(page).tags if "style" in attrs or "onclick" in attrs]


def test_token_texts_are_stored_once():
    data = page_data(a_trace("x"))
    assert data["texts"] == ["x", "b"]
    step = data["steps"][1]
    assert step["t"] == {"x": [0, 0, 1, 0], "i": [5, 6, 7, 8], "u": [0, 0, 1, 1], "path": [0, 1]}
    assert step["ms"][:2] == [100, 200]
