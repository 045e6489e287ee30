"""Decoding as on a GPU: lengths on the device, recorded shapes, steps launched ahead of the host.

Here on the CPU, with kernels in plain PyTorch and recordings that are simply called; what CUDA
adds is tested in ``test_gpu.py``.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from specx.core.config import MODES, Parts, SamplingConfig, TreeConfig
from specx.core.drafts.copies import Copies
from specx.core.drafts.growth import Governor, StepCosts
from specx.core.graphs import RECORDED_ROWS, Launcher, padded_rows
from specx.core.stats import StepStats
from tests.core.tiny import RETRIEVAL, Job, Pair, Run, random_tokens

PARTS = {
    "plain": MODES["plain"],
    "spec": MODES["spec"],
    "specx": MODES["specx"],
    "window": Parts(draft_cache="window"),
    "lookup": Parts(drafter="lookup"),
}
SETTINGS = {
    "greedy": SamplingConfig(),
    "greedy-penalty": SamplingConfig(repetition_penalty=1.4),
    "everything": SamplingConfig(1.0, 20, 0.95, 0.02, 1.3, seed=2**63 - 1),
}
_PROMPT = torch.cat([random_tokens(60), random_tokens(50, seed=1), random_tokens(40)])


@functools.cache
def _pair(family: str) -> Pair:
    return Pair.make(family)


@functools.cache
def _plain(family: str, setting: str) -> list[int]:
    job = Job(_pair(family), _PROMPT, max_tokens=40, sampling=SETTINGS[setting])
    return job.run().tokens


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", ["llama-yarn", "qwen3"])
def test_the_text_is_that_of_plain_decoding(family: str, parts: str, setting: str) -> None:
    sampling = SETTINGS[setting]
    job = Job(_pair(family), _PROMPT, PARTS[parts], 40, sampling, is_fixed=True)
    run = job.run()
    assert run.tokens == _plain(family, setting)
    assert run.finish_reason == "length"


@pytest.mark.parametrize("parts", ["spec", "specx"])
def test_an_output_is_read_before_another_recording_runs(
    parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: recordings share their memory, so one of them may work where the output of
    another was. On a GPU the report of a step was read after them, and sometimes it was a mask."""
    run, outputs = Launcher.run, list[Tensor]()

    def sharing(launcher: Launcher, function: Callable[[], Any], *key: Any) -> Any:
        for each in outputs:
            each.fill_(0x01010101)
        outputs.clear()
        found = run(launcher, function, *key)
        if key[0] == "accept":
            outputs.append(found)
        elif key[0] == "draft":
            outputs.append(found.reaches)
        return found

    monkeypatch.setattr(Launcher, "run", sharing)
    job = Job(_pair("llama"), _PROMPT, PARTS[parts], 40, is_fixed=True)
    assert job.run().tokens == _plain("llama", "greedy")


@pytest.mark.parametrize("parts", ["spec", "specx"])
def test_trees_and_acceptance_are_those_of_the_hosts_drafter(parts: str) -> None:
    """A fixed tree is the same tree, whoever grows it."""
    pair = _pair("llama")
    tree = TreeConfig(nodes=12, depth=4, threshold=0.3, size="fixed")
    runs: list[Run] = []
    for is_fixed in (False, True):
        job = Job(pair, _PROMPT, PARTS[parts], 40, tree=tree, is_fixed=is_fixed)
        runs.append(job.run())
    host, device = runs
    assert device.tokens == host.tokens
    assert [step.accepted for step in device.steps] == [step.accepted for step in host.steps]
    assert [step.nodes for step in device.steps] == [step.nodes for step in host.steps]
    assert [step.depth for step in device.steps] == [step.depth for step in host.steps]
    assert device.chunks == host.chunks
    assert host.tokens_per_step > 1.3


@pytest.mark.parametrize("setting", ["greedy", "everything"])
@pytest.mark.parametrize(
    ("prompt", "new"), [(1, 60), (5, 56), (47, 24), (48, 24), (49, 24), (300, 24)]
)
def test_short_and_long_prompts(prompt: int, new: int, setting: str) -> None:
    """Around the retrieval budget of 48 rows, and one chunk more or less than the caches' own.

    Where the prompt does not reach it, the text does.
    """
    sampling = SETTINGS[setting]
    text = random_tokens(prompt, seed=3)
    pair = _pair("llama")
    plain = Job(pair, text, max_tokens=new, sampling=sampling).run()
    for parts in ("spec", "specx", "window"):
        job = Job(pair, text, PARTS[parts], new, sampling, is_fixed=True)
        assert job.run().tokens == plain.tokens


class Schedule(Governor):
    """Drafts and pauses at given steps."""

    def __init__(self, *lengths: int) -> None:
        super().__init__(1.0)
        self._ways = [index % 2 == 0 for index, length in enumerate(lengths) for _ in range(length)]

    def observe(self, step: StepStats, drafted: bool | None = None) -> None:
        self._ways.pop(0)
        self.drafting = self._ways[0]


@pytest.mark.parametrize("parts", ["spec", "specx", "window"])
def test_drafting_that_pauses_and_resumes_is_lossless(parts: str) -> None:
    """Off for one, three and forty plain steps: what a recording reads, and more than that."""
    governor = Schedule(3, 1, 3, 3, 2, 40, 100)
    job = Job(_pair("llama"), _PROMPT, PARTS[parts], 90, is_fixed=True, governor=governor)
    plain = Job(_pair("llama"), _PROMPT, max_tokens=90).run()
    run = job.run()
    assert run.tokens == plain.tokens
    assert run.tokens_per_step > 1.05


def test_an_end_token_ends_the_text_although_a_step_is_under_way() -> None:
    known = _plain("llama", "greedy")
    end = known[17]
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"], 40, is_fixed=True)
    job.end_tokens = frozenset({end})
    run = job.run()
    assert run.tokens == known[: known.index(end)]
    assert run.finish_reason == "eos"


def test_a_measured_tree_forecasts_its_size() -> None:
    """Free rows and levels: the whole tree; dear ones: none to speak of."""
    sizes = []
    for costs in (StepCosts({1: 1.0, 64: 1.0}, 0.001), StepCosts({1: 1.0, 8: 50.0}, 40.0)):
        tree = TreeConfig(nodes=30, depth=4, size="measured")
        job = Job(_pair("llama"), _PROMPT, PARTS["specx"], 40, tree=tree, is_fixed=True)
        job.costs = costs
        run = job.run()
        assert run.tokens == _plain("llama", "greedy")
        sizes.append(run.steps[-2].nodes)
    assert sizes == [31, 8]


def test_copies_hear_what_the_target_attends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every refresh, the same with fixed shapes and without."""
    attend, heard = Copies.attend, list[Tensor]()

    def spy(self: Copies, attention: Tensor) -> None:
        attend(self, attention)
        heard.append(attention.clone())

    monkeypatch.setattr(Copies, "attend", spy)
    tree = TreeConfig(nodes=12, depth=4, threshold=0.3, size="fixed")
    both: list[list[Tensor]] = []
    for is_fixed in (False, True):
        heard.clear()
        run = Job(_pair("llama"), _PROMPT, PARTS["specx"], 40, tree=tree, is_fixed=is_fixed).run()
        both.append(heard[: 1 + sum(chunks is not None for chunks in run.chunks)])
    host, device = both
    assert len(host) == len(device) > 3
    for ours, theirs in zip(device, host, strict=True):
        torch.testing.assert_close(ours[: len(theirs)], theirs)
        assert not ours[len(theirs) :].any()
        assert float(ours.sum()) > 0
    assert not torch.equal(host[0][:10], host[-1][:10])


def test_recorded_trees_are_those_of_their_own_step() -> None:
    """Trees are read from places that the next step overwrites, so nothing runs ahead then."""
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"], 40, is_fixed=True, records_trees=True)
    text = _PROMPT.tolist() + _plain("llama", "greedy")
    position = len(_PROMPT)
    for event in job.decoding().run():
        tree = getattr(event, "tree", None)
        if tree is not None:
            path = [tree.tokens[node] for node in tree.path]
            expected = text[position : position + len(path) + 1]
            assert [*path, tree.bonus][: len(expected)] == expected
            position += len(path)
    assert position > len(_PROMPT) + 30


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, 1), (2, 8), (8, 8), (51, 64), (64, 64), (65, 128)]
)
def test_sizes_for_which_there_are_recordings(rows: int, padded: int) -> None:
    assert padded_rows(rows) == padded
    assert padded in RECORDED_ROWS or padded % RECORDED_ROWS[-1] == 0


def test_buffers_of_a_longer_request_serve_a_shorter_one() -> None:
    """Nothing of the first document is seen by the second, though its keys are still there."""
    pair = _pair("llama")
    long = Job(pair, random_tokens(300, seed=9), PARTS["specx"], 30, is_fixed=True)
    short = Job(pair, random_tokens(70, seed=2), PARTS["specx"], 30, is_fixed=True)
    first = long.decoding()
    list(first.run())
    second = short.decoding(reuse=first)
    run = Run()
    for event in second.run():
        run.take(event)
    assert second.target.cache is first.target.cache
    assert run.tokens == Job(pair, short.prompt, max_tokens=30).run().tokens
    assert RETRIEVAL.budget_tokens < len(short.prompt)


def test_a_step_that_compiled_or_recorded_is_no_evidence() -> None:
    """Regression: on a GPU the first steps took seconds, so ``auto`` went plain for good."""

    class Listener(Governor):
        def __init__(self) -> None:
            super().__init__(1.0)
            self.heard: list[StepStats] = []

        def observe(self, step: StepStats, drafted: bool | None = None) -> None:
            self.heard.append(step)

    governor = Listener()
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"], 40, is_fixed=True, governor=governor)
    steps = [step.nodes for step in job.run().steps]
    assert 0 < len(governor.heard) < len(steps)
    assert [step.nodes for step in governor.heard] == steps[-len(governor.heard) :]
