"""The same prompt through several pairs of preset and mode: names, runs, equality, the object."""

import json
import re
import shutil

import jsonschema
import pytest

from specx import engine
from specx.bench import comparison as compare
from specx.bench.comparison import (
    Began,
    Ended,
    Progressed,
    Race,
    Task,
    live_comparison,
    parse_contestants,
)
from specx.cli.help import read_schema
from specx.core.config import SamplingConfig
from specx.core.stats import Prefill
from specx.documents.document import read_document
from specx.environment import environment
from specx.errors import ContextError, UsageError
from specx.stream import Difference
from tests.helpers import preset_for, save_pair, story

LIVE_SCHEMA = jsonschema.Draft202012Validator(json.loads(read_schema("compare")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Preset files by name: ``tiny``, ``other`` (another target), ``brief`` (another prompt)."""
    found = {}
    for name, seed in (("tiny", 0), ("other", 5)):
        directory = tmp_path_factory.mktemp(name)
        preset = preset_for(save_pair(directory, draft_weights="noisy", seed=seed))
        found[name] = write(directory / f"{name}.yaml", preset)
    target = preset_for(save_pair(found["tiny"].parent / "again", draft_weights="noisy"))
    changed = target.with_overrides({"prompt.summarize": "Be brief."})
    changed = changed.with_overrides({"target.repo": str(found["tiny"].parent / "target")})
    found["brief"] = write(found["tiny"].parent / "brief.yaml", changed)
    return {name: str(path) for name, path in found.items()}


def write(path, preset):
    text = re.sub(r"^name: tiny$", f"name: {path.stem}", preset.to_yaml(), flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "report.txt"
    path.write_text(story(200), encoding="utf-8")
    return read_document(str(path))


def task(document, **changes):
    fields = {
        "document": document.text,
        "instruction": None,
        "max_tokens": 12,
        "sampling": SamplingConfig(),
    }
    return Task(**fields | changes)


def titles(words, preset="pocket"):
    return [each.title for each in parse_contestants(words, preset)]


def test_what_is_compared_when_nothing_is_said():
    assert titles([]) == ["plain", "specx"]
    assert titles(["spec+window"]) == ["plain", "spec+window"]
    assert titles(["specx", "plain"]) == ["specx", "plain"]


def test_presets_and_their_own_modes(pairs):
    own, *rest = parse_contestants([f"{pairs['tiny']}:", "pocket:spec", "plain"], pairs["other"])
    assert (own.title, own.variant.name) == ("tiny:auto", "auto")
    assert [each.title for each in rest] == ["pocket:spec", "other:plain"]
    both = parse_contestants(["pocket:specx+window"], pairs["other"])
    assert [each.title for each in both] == ["plain", "specx+window"]
    assert {each.preset.name for each in both} == {"pocket"}


def test_the_last_colon_counts_and_equal_names_show_their_files(pairs, tmp_path):
    directory = tmp_path / "a:b"
    directory.mkdir()
    copied = shutil.copy(pairs["tiny"], directory)
    found = parse_contestants([f"{copied}:spec", f"{pairs['tiny']}:spec"], "pocket")
    assert [each.title for each in found] == [f"{copied}:spec", f"{pairs['tiny']}:spec"]


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["spexc"], "specx"),
        (["specx+windw"], "window"),
        (["pocket:sepc"], "spec"),
        (["pokcet:spec"], "pocket"),
        (["pocket"], "--with pocket:"),
        (["ablation"], "group"),
        (["hf"], "transformers' own generate"),
        (["hf-assisted"], "specx bench --modes"),
        ([":spec"], "--with spec"),
        ([""], "empty"),
        (["plain"], "alone"),
        (["spec", "spec"], "twice"),
        (["plain,spec"], "--with plain --with spec"),
    ],
)
def test_names_that_mean_nothing(words, telling):
    with pytest.raises(UsageError) as caught:
        parse_contestants(words, "pocket")
    assert telling in " ".join([str(caught.value), *caught.value.hints])


def test_runs_take_turns_and_agree(pairs, document, monkeypatch):
    loaded = []
    load = engine.load
    monkeypatch.setattr(engine, "load", lambda *a, **k: loaded.append(a) or load(*a, **k))
    contestants = parse_contestants(["plain", "spec", "specx+window", "lookup"], pairs["tiny"])
    race = Race(contestants, task(document))
    events = list(race.events())
    assert len(loaded) == 1
    assert [e.index for e in events] == sorted(e.index for e in events)
    phases = [(e.index, e.phase) for e in events if isinstance(e, Began)]
    assert phases[:3] == [(0, "loading"), (0, "warming up"), (0, "reading")]
    assert phases[3:5] == [(1, "warming up"), (1, "reading")]
    assert [e.run for e in events if isinstance(e, Ended)] == race.runs
    first, *rest = race.runs
    assert (first.equal, first.why, compare.speedup(first, first)) == (None, "", None)
    for index, run in enumerate(rest, start=1):
        assert run.equal is True
        assert run.result.text == first.result.text
        assert compare.speedup(run, first) == pytest.approx(
            compare.rates(run.result.stats).decode_tok_s
            / compare.rates(first.result.stats).decode_tok_s
        )
        text = "".join(
            e.event.text
            for e in events
            if isinstance(e, Progressed) and e.index == index and not isinstance(e.event, Prefill)
        )
        assert text == run.result.text


def test_a_seed_gives_one_text_in_every_mode(pairs, document):
    contestants = parse_contestants(["plain", "spec", "specx"], pairs["tiny"])
    sampling = SamplingConfig(temperature=0.9, seed=7)
    race = Race(contestants, task(document, sampling=sampling))
    list(race.events())
    assert [run.equal for run in race.runs] == [None, True, True]


def test_what_cannot_be_compared(pairs, document):
    words = [f"{pairs['tiny']}:plain", f"{pairs['other']}:plain", f"{pairs['brief']}:spec"]
    race = Race(parse_contestants(words, "pocket"), task(document))
    list(race.events())
    assert [run.equal for run in race.runs] == [None, None, None]
    assert [run.why for run in race.runs] == ["", "another target", "another prompt"]
    # asked in the same words, the third one has the first one's text
    race = Race(parse_contestants(words, "pocket"), task(document, instruction="Why?"))
    list(race.events())
    assert [run.equal for run in race.runs] == [None, None, True]


def test_a_difference_is_found_and_told(pairs, document, monkeypatch):
    found = Difference(3, 7, None, float("inf"))
    monkeypatch.setattr(engine.Engine, "difference", lambda *_, **__: found)
    race = Race(parse_contestants([], pairs["tiny"]), task(document))
    list(race.events())
    run = race.runs[1]
    assert (run.equal, run.difference, run.got_text) == (False, found, "")
    assert run.expected_text != ""
    described = live_comparison(race.runs, document, environment("cpu")).as_json()
    LIVE_SCHEMA.validate(described)
    assert described["runs"][1]["first_difference"] == {
        "index": 3,
        "expected": 7,
        "got": None,
        "margin": None,  # JSON knows no infinity
    }


@pytest.mark.parametrize("max_tokens", [1, 12])
def test_the_object_is_valid_and_adds_up(pairs, document, max_tokens):
    race = Race(parse_contestants([], pairs["tiny"]), task(document, max_tokens=max_tokens))
    list(race.events())
    found = live_comparison(race.runs, document, environment("cpu")).as_json()
    LIVE_SCHEMA.validate(json.loads(json.dumps(found, allow_nan=False)))
    plain, specx = found["runs"]
    assert (plain["mode"], plain["speedup"], plain["equal"]) == ("plain", None, None)
    assert (specx["mode"], specx["equal"]) == ("specx", True)
    if max_tokens > 1:
        rates = (specx["rate"]["decode_tok_s"], plain["rate"]["decode_tok_s"])
        assert specx["speedup"] == pytest.approx(rates[0] / rates[1])
        assert specx["accept"]["tokens_per_step"] == specx["accept"]["accepted_per_step"] + 1
    else:
        assert specx["speedup"] is specx["rate"]["decode_tok_s"] is None
        assert specx["accept"]["tokens_per_step"] is None


@pytest.mark.parametrize("after", [1, 3, 6])
def test_cancelled_runs_count_as_far_as_they_went(pairs, document, after):
    contestants = parse_contestants(["plain", "spec", "specx"], pairs["tiny"])
    race = Race(contestants, task(document, max_tokens=30))
    chunks = 0
    for event in race.events():
        is_chunk = isinstance(event, Progressed) and not isinstance(event.event, Prefill)
        chunks += is_chunk and event.index == 1
        if chunks == after:
            race.cancel()
    assert len(race.runs) == 2
    first, second = race.runs
    assert second.result.finish_reason == "interrupted"
    assert (second.equal, second.why) == (None, "interrupted")
    assert first.result.tokens[: len(second.result.tokens)] == second.result.tokens
    LIVE_SCHEMA.validate(live_comparison(race.runs, document, environment("cpu")).as_json())


def test_cancelled_while_reading(pairs, document):
    race = Race(parse_contestants([], pairs["tiny"]), task(document))
    for event in race.events():
        if isinstance(event, Began) and event.phase == "reading":
            race.cancel()
    (run,) = race.runs
    assert run.result.tokens == ()
    assert set(compare.rates(run.result.stats).model_dump().values()) == {None}
    LIVE_SCHEMA.validate(live_comparison(race.runs, document, environment("cpu")).as_json())


def test_what_was_finished_survives_an_error(pairs, document):
    words = [f"{pairs['tiny']}:plain", f"{pairs['other']}:spec"]
    contestants = parse_contestants(words, "pocket")
    small = contestants[1].preset.with_overrides({"context_tokens": 64})
    contestants[1] = compare.replace(contestants[1], preset=small)
    race = Race(contestants, task(document, max_tokens=3))
    with pytest.raises(ContextError):
        list(race.events())
    assert [run.contestant.title for run in race.runs] == ["tiny:plain"]
