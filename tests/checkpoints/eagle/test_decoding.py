"""Heads from disk under real targets: the text is plain decoding's, whatever drafts it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import specx
from specx.core.config import MODES, SamplingConfig
from specx.core.drafts.eagle import EagleHead
from specx.engine import Engine
from specx.prompts import Prompt
from specx.stream import Result
from tests.checkpoints.eagle.files import LAYOUTS, write_head
from tests.helpers import FAMILIES, PairDirs, preset_for, save_pair, story

MAIN = ("llama3", "official")
OTHERS = [name for name in LAYOUTS if name not in MAIN]
TOKENS = 12
#: Hot: where noise decides, even a random head is right now and then.
SAMPLINGS = {"greedy": SamplingConfig(), "sampled": SamplingConfig(temperature=6.0, seed=3)}
#: The draft's cache is shorter than the prompt, so that retrieval leaves chunks out.
SETTINGS = {
    "draft.trained_context_tokens": 128,
    "tree.nodes": 16,
    "tree.depth": 3,
    "retrieval.every_steps": 2,
}


@dataclass
class Place:
    """A target of one family, its prompt, and what it writes alone."""

    directory: Path
    prompt: Prompt
    plain: dict[str, Result]
    heads: dict[str, Engine]

    def engine(self, layout: str) -> Engine:
        if layout not in self.heads:
            files = write_head(self.directory / layout, layout, seed=5)
            pair = PairDirs(self.directory / "target", files.directory)
            self.heads[layout] = load(pair, LAYOUTS[layout].kind)
        return self.heads[layout]


def load(pair: PairDirs, kind: str, **settings: Any) -> Engine:
    preset = preset_for(pair, SETTINGS | {"draft.kind": kind, **settings})
    return specx.load(preset, device="cpu", offline=True)


def generated(engine: Engine, prompt: Prompt, mode: str, sampling: SamplingConfig) -> Result:
    return engine.generate(prompt, mode=mode, max_tokens=TOKENS, sampling=sampling, ignore_eos=True)


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    made: dict[str, Place] = {}

    def place(family: str) -> Place:
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            pair = save_pair(directory, family, target_changes={"num_hidden_layers": 8})
            alone = load(pair, "none")
            prompt = alone.prompt(story(90))
            plain = {
                name: generated(alone, prompt, "plain", sampling)
                for name, sampling in SAMPLINGS.items()
            }
            made[family] = Place(directory, prompt, plain, {})
        return made[family]

    return place


def check(place: Place, layout: str, mode: str) -> list[Result]:
    """The results of both samplings, equal to plain decoding's."""
    results = []
    for name, sampling in SAMPLINGS.items():
        engine = place.engine(layout)
        result = generated(engine, place.prompt, mode, sampling)
        assert (result.tokens, result.text) == (place.plain[name].tokens, place.plain[name].text)
        assert len(result.tokens) == TOKENS
        results.append(result)
    return results


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "plain"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", MAIN)
def test_every_family_and_mode(
    place_of: Callable[[str], Place], layout: str, family: str, mode: str
) -> None:
    place = place_of(family)
    assert len(place.prompt.tokens) > 150, "longer than what the head was trained on"
    results = check(place, layout, mode)
    assert all(result.stats.drafted > 0 for result in results)
    assert mode == "auto" or results[1].stats.accepted > 0


@pytest.mark.parametrize("layout", OTHERS)
def test_every_other_layout(place_of: Callable[[str], Place], layout: str) -> None:
    family = FAMILIES[OTHERS.index(layout) % len(FAMILIES)]
    place = place_of(family)
    assert isinstance(place.engine(layout).draft, EagleHead)
    assert check(place, layout, "specx")[1].stats.accepted > 0


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lookup_in_every_family_and_mode(
    place_of: Callable[[str], Place], family: str, mode: str
) -> None:
    place = place_of(family)
    if "lookup" not in place.heads:
        pair = PairDirs(place.directory / "target", place.directory / "none")
        place.heads["lookup"] = load(pair, "lookup")
    check(place, "lookup", mode)


def test_a_target_with_padding_rows_that_the_head_lacks(tmp_path: Path) -> None:
    """The head knows the tokenizer's 512 tokens, and plain text may hold others."""
    changes = {"num_hidden_layers": 8, "vocab_size": 640}
    pair = save_pair(tmp_path, target_changes=changes)
    alone = load(pair, "none")
    prompt = alone.prompt(story(40))
    sampling = SAMPLINGS["sampled"]
    plain = generated(alone, prompt, "plain", sampling)
    assert max(plain.tokens) >= 512, "or the test shows nothing"
    for layout in ("vicuna", "speculators"):
        files = write_head(tmp_path / layout, layout)
        engine = load(PairDirs(pair.target, files.directory), LAYOUTS[layout].kind)
        for mode in ("spec", "specx"):
            assert generated(engine, prompt, mode, sampling).tokens == plain.tokens


def test_notes_stay_with_the_engine(place_of: Callable[[str], Place]) -> None:
    notes = place_of("llama").engine("modelopt").notes
    assert any("lists the layers 1, 2, 5" in note for note in notes)
    pickle, _layers = place_of("llama").engine("official").notes
    assert "pickles are read" in pickle
