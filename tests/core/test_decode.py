"""The decode loop. Losslessness first: whatever guesses, the text is that of plain decoding."""

import functools

import pytest
import torch
from torch import Tensor

from specx.core.config import MODES, Parts, RetrievalConfig, SamplingConfig, TreeConfig
from specx.core.decode import Emitted
from specx.core.drafts.growth import Governor, StepCosts
from specx.core.retrieval import Selection
from specx.core.sampling import Sampler
from specx.core.stats import Prefill, StepStats
from specx.core.tree import TokenTree
from tests.core.tiny import (
    RETRIEVAL,
    TREE,
    VOCABULARY,
    Job,
    Pair,
    Run,
    hf_logits,
    interleave,
    random_tokens,
)

PARTS = {
    "lookup": Parts(drafter="lookup"),
    "spec": MODES["spec"],
    "specx": MODES["specx"],
    "window-cache": Parts(draft_cache="window"),
    "full-cache": Parts(draft_cache="full"),
    "full-draft-prefill": Parts(draft_prefill="full"),
    "eager-prefill": Parts(prefill_attention="eager"),
    "masked-tree": Parts(tree_attention="masked"),
}
SETTINGS = {
    "greedy": SamplingConfig(),
    "greedy-penalty": SamplingConfig(repetition_penalty=1.4),
    "nucleus": SamplingConfig(temperature=0.7, top_p=0.9, seed=3),
    "everything": SamplingConfig(1.0, 20, 0.95, 0.02, 1.3, seed=2**63 - 1),
}
_PROMPT = torch.cat([random_tokens(60), random_tokens(50, seed=1), random_tokens(40)])


@functools.cache
def _pair(family: str) -> Pair:
    return Pair.make(family)


@functools.cache
def _run(family: str, parts: str, setting: str) -> Run:
    return Job(_pair(family), _PROMPT, PARTS[parts], sampling=SETTINGS[setting]).run()


@functools.cache
def _plain(family: str, setting: str, count: int = 24) -> list[int]:
    job = Job(_pair(family), _PROMPT, max_tokens=count, sampling=SETTINGS[setting])
    return job.run().tokens


_ROOM = TreeConfig(nodes=24)  # cache rows for an oracle's tree of depth 8


class Oracle:
    """Knows the output and guesses it, on a bushy tree in which every right guess stands between
    wrong ones; ``wrong_first`` spoils the first level, so nothing can be accepted."""

    runs_ahead = False
    context_tokens = 0
    cache_bytes = 0

    def __init__(self, output: list[int], depth: int, *, wrong_first: bool = False) -> None:
        self._output, self._depth, self._wrong_first = output, depth, wrong_first
        self._known = 0
        self.focused: list[tuple[int, list[int]]] = []  # output tokens known, rows to keep

    def prefill(self, tokens: Tensor, features: Tensor) -> None:
        """Nothing to read."""

    def begin(self, costs: StepCosts | None) -> None:
        """Nothing to plan."""

    def refocus(self, selection: Selection) -> None:
        self.focused.append((self._known, _rows(selection)))

    def observe(
        self, draft_s: float, reaches: Tensor | None, depths: Tensor | None
    ) -> tuple[float, ...]:
        return ()

    def extend(self, tokens: list[int]) -> None:
        assert tokens == self._output[self._known : self._known + len(tokens)]
        self._known += len(tokens)

    def draft(self) -> TokenTree:
        tokens, parents, here = [self._output[self._known - 1]], [0], 0
        for level in range(self._depth):
            right = self._output[self._known + level]
            wrong = [(right + 1) % VOCABULARY, (right + 2) % VOCABULARY]
            spoiled = self._wrong_first and level == 0
            for token in wrong if spoiled else [wrong[0], right, wrong[1]]:
                tokens.append(token)
                parents.append(here)
            here = len(tokens) - (1 if spoiled else 2)
        return TokenTree.build(tokens, parents)


# Losslessness


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_the_text_is_that_of_plain_decoding(family: str, parts: str, setting: str) -> None:
    run = _run(family, parts, setting)
    assert run.tokens == _plain(family, setting)
    assert run.finish_reason == "length"


@pytest.mark.parametrize("family", ["llama-llama3", "llama-yarn", "llama-linear", "qwen2"])
@pytest.mark.parametrize("parts", ["spec", "specx"])
def test_other_families_and_rotations_are_lossless_too(family: str, parts: str) -> None:
    for setting in ("greedy", "everything"):
        assert _run(family, parts, setting).tokens == _plain(family, setting)


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_plain_decoding_draws_from_the_logits_of_hugging_face(family: str, setting: str) -> None:
    """The baseline itself, judged from outside: teacher-forced, one Hugging Face forward."""
    pair, output = _pair(family), _plain(family, setting)
    text = torch.cat([_PROMPT, torch.tensor(output)])
    logits = hf_logits(pair.reference, text)[len(_PROMPT) - 1 : -1]
    seen = torch.zeros(len(output), VOCABULARY, dtype=torch.bool)
    for row in range(len(output)):
        seen[row, text[: len(_PROMPT) + row]] = True
    drawn = Sampler(SETTINGS[setting])(logits, torch.arange(len(output)), seen)
    assert drawn.tolist() == output


def test_the_drafts_of_these_tests_are_accepted_now_and_then() -> None:
    """Equal texts prove nothing where every guess is refused."""
    for parts in ("spec", "specx", "window-cache"):
        steps = [step for setting in SETTINGS for step in _run("llama", parts, setting).steps]
        assert sum(step.accepted for step in steps) > len(steps) / 4
        assert max(step.accepted for step in steps) >= 2


@pytest.mark.parametrize("parts", ["lookup", "spec", "specx"])
def test_a_tree_sized_by_measured_costs_is_lossless(parts: str) -> None:
    tree = TreeConfig(nodes=16, depth=4, size="measured")
    for costs in (None, StepCosts({1: 1.0, 16: 1.0}, 0.01), StepCosts({1: 1.0, 4: 9.0}, 0.01)):
        job = Job(_pair("llama"), _PROMPT, PARTS[parts], tree=tree, costs=costs)
        assert job.run().tokens == _plain("llama", "greedy")


class Schedule(Governor):
    """Drafts and does not, by a list of run lengths: drafting, plain, drafting, …"""

    def __init__(self, *lengths: int) -> None:
        super().__init__(1.0)
        self._ways = [index % 2 == 0 for index, length in enumerate(lengths) for _ in range(length)]

    def observe(self, step: StepStats, drafted: bool | None = None) -> None:
        assert (step.nodes > 1) <= self._ways.pop(0)
        self.drafting = self._ways[0]


@pytest.mark.parametrize("parts", [part for part in PARTS if part != "eager-prefill"])
@pytest.mark.parametrize("setting", ["greedy", "everything"])
def test_drafting_that_pauses_and_resumes_is_lossless(parts: str, setting: str) -> None:
    """Off after three steps, on again after five plain ones, off for so long that the draft must
    read its backlog apart, and on to the end."""
    job = Job(_pair("llama"), _PROMPT, PARTS[parts], max_tokens=50, sampling=SETTINGS[setting])
    job.governor, job.trained_tokens = Schedule(3, 5, 2, 18, 99), 64
    run = job.run()
    assert run.tokens == _plain("llama", setting, 50)
    assert [step.nodes for step in run.steps[3:8]] == [1] * 5
    assert run.chunks[3:8] == [None] * 5
    assert run.steps[-1].nodes > 1 or parts == "lookup"


@pytest.mark.parametrize("verify_s", [1e-9, 1e9])
def test_a_real_governor_is_lossless_whatever_it_decides(verify_s: float) -> None:
    governor, costs = Governor(), StepCosts({1: verify_s})
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"], 50, governor=governor, costs=costs)
    assert job.run().tokens == _plain("llama", "greedy", 50)
    assert bool(governor.reason) == (verify_s < 1)


@pytest.mark.parametrize("chunk", [1, 7, 149, 150])
def test_the_prefill_chunk_does_not_change_the_text(chunk: int) -> None:
    for parts in (Parts(drafter="none"), PARTS["specx"]):
        job = Job(_pair("llama"), _PROMPT, parts, max_tokens=8, prefill_chunk_tokens=chunk)
        assert job.run().tokens == _plain("llama", "greedy")[:8]


@pytest.mark.parametrize("every_steps", [1, 3, 100])
@pytest.mark.parametrize("trained_tokens", [1, 7, 4096])
def test_odd_retrieval_settings_are_lossless(every_steps: int, trained_tokens: int) -> None:
    retrieval = RetrievalConfig(
        chunk_tokens=5, top_chunks=0, sink_chunks=0, recent_chunks=1, every_steps=every_steps
    )
    job = Job(
        _pair("llama"),
        _PROMPT,
        PARTS["specx"],
        max_tokens=12,
        retrieval=retrieval,
        trained_tokens=trained_tokens,
    )
    assert job.run().tokens == _plain("llama", "greedy")[:12]


def test_requests_of_any_length_one_after_the_other_on_the_same_models() -> None:
    """Regression of the method's reference code: chunks chosen for a long document survived it
    and were looked up in the next, shorter one: an index error, or silently the wrong rows."""
    pair = _pair("llama")
    prompts = [random_tokens(count, seed=count) for count in (400, 20, 1, 160, 155)]
    expected = [Job(pair, prompt, max_tokens=9).run().tokens for prompt in prompts]
    for parts in ("specx", "window-cache", "spec", "lookup"):
        got = [Job(pair, prompt, PARTS[parts], max_tokens=9).run() for prompt in prompts]
        assert [run.tokens for run in got] == expected, parts


def test_a_request_leaves_no_trace_in_the_next() -> None:
    """The same request before and after another one takes exactly the same steps."""
    pair = _pair("llama")

    def record(run: Run) -> list[tuple[int, ...]]:
        return [
            (step.nodes, step.accepted, step.draft_context_tokens, *(chunks or ()))
            for step, chunks in zip(run.steps, run.chunks, strict=True)
        ]

    first = Job(pair, _PROMPT, PARTS["specx"]).run()
    Job(pair, random_tokens(400, seed=9), PARTS["specx"]).run()
    assert record(Job(pair, _PROMPT, PARTS["specx"]).run()) == record(first)


def test_two_requests_in_turns_on_the_same_models_do_not_mix() -> None:
    pair = _pair("llama")
    jobs = [
        Job(pair, _PROMPT, PARTS["specx"]),
        Job(pair, random_tokens(30, seed=5), PARTS["spec"], sampling=SETTINGS["nucleus"]),
    ]
    alone = [job.run().tokens for job in jobs]
    together = interleave(*(job.decoding() for job in jobs))
    assert [run.tokens for run in together] == alone


@pytest.mark.parametrize("parts", [*PARTS, "plain"])
def test_a_prompt_of_one_token_and_an_output_longer_than_the_budget(parts: str) -> None:
    prompt = torch.tensor([11])
    plain = Job(_pair("llama"), prompt, max_tokens=65).run().tokens
    job = Job(_pair("llama"), prompt, (PARTS | MODES)[parts], max_tokens=65)
    assert job.run().tokens == plain


# Acceptance: the best and the worst drafter


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("depth", [1, 4])
def test_an_oracle_gives_depth_plus_one_tokens_a_step(setting: str, depth: int) -> None:
    known = _plain("llama", setting, 50)
    count = 1 + 6 * (depth + 1)
    job = Job(_pair("llama"), _PROMPT, max_tokens=count, sampling=SETTINGS[setting])
    job.tree, job.drafter = _ROOM, Oracle(known, depth)
    run = job.run()
    assert run.tokens == known[:count]
    assert run.tokens_per_step == depth + 1
    assert len(run.steps) == 6


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_hostile_draft_gives_one_token_a_step_and_the_same_text(setting: str) -> None:
    """Wrong on the first level, right below: what agrees below a wrong guess must not count."""
    known = _plain("llama", setting, 50)
    job = Job(_pair("llama"), _PROMPT, max_tokens=15, sampling=SETTINGS[setting])
    job.tree, job.drafter = _ROOM, Oracle(known, 4, wrong_first=True)
    run = job.run()
    assert run.tokens == known[:15]
    assert run.tokens_per_step == 1
    assert len(run.steps) == 14


@pytest.mark.parametrize("seed", range(6))
def test_the_repetition_penalty_follows_the_path_of_each_node(seed: int) -> None:
    """A node's penalty counts its own ancestors, which are not in the text yet, and no sibling.
    A short prompt leaves most tokens unseen, so a token too many or too few changes the text."""
    pair, prompt = _pair("llama"), random_tokens(3, seed=seed)
    sampling = SamplingConfig(repetition_penalty=2.5)
    known = Job(pair, prompt, max_tokens=60, sampling=sampling).run().tokens
    job = Job(pair, prompt, max_tokens=41, sampling=sampling, tree=_ROOM)
    job.drafter = Oracle(known, 7)
    run = job.run()
    assert run.tokens == known[:41]
    assert run.tokens_per_step == 8


# The end of a text


@pytest.mark.parametrize("parts", [*PARTS, "plain"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_output_is_never_longer_than_asked_for(parts: str, count: int) -> None:
    run = Job(_pair("llama"), _PROMPT, (PARTS | MODES)[parts], max_tokens=count).run()
    assert run.tokens == _plain("llama", "greedy")[:count]
    assert run.finish_reason == "length"


@pytest.mark.parametrize("count", range(1, 14))
def test_an_accepted_path_is_cut_at_the_token_budget(count: int) -> None:
    known = _plain("llama", "greedy", 50)
    job = Job(_pair("llama"), _PROMPT, max_tokens=count)
    job.tree, job.drafter = _ROOM, Oracle(known, 5)
    run = job.run()
    assert (run.tokens, run.finish_reason) == (known[:count], "length")
    if not run.steps:  # the one token came with the prefill
        return
    *whole, last = run.steps
    assert all(step.accepted == 5 for step in whole)
    assert last.accepted == min(5, last.new_tokens), "counted after the stop rule"


def _first_use(output: list[int], index: int) -> int:
    """The first index from ``index`` on whose token the output has not used before."""
    return next(i for i in range(index, len(output)) if output[i] not in output[:i])


@pytest.mark.parametrize("start", range(14))
def test_an_end_token_inside_an_accepted_path_ends_the_text_before_it(start: int) -> None:
    known = _plain("llama", "everything", 50)
    end = _first_use(known, start)
    job = Job(_pair("llama"), _PROMPT, max_tokens=40, sampling=SETTINGS["everything"])
    job.end_tokens = frozenset({known[end]})
    job.tree, job.drafter = _ROOM, Oracle(known, 5)
    run = job.run()
    assert (run.tokens, run.finish_reason) == (known[:end], "eos")


@pytest.mark.parametrize("parts", [*PARTS, "plain"])
def test_every_drafter_ends_at_the_same_end_token(parts: str) -> None:
    known = _plain("llama", "everything", 50)
    end = _first_use(known, 9)
    job = Job(_pair("llama"), _PROMPT, (PARTS | MODES)[parts], max_tokens=40)
    job.sampling, job.end_tokens = SETTINGS["everything"], frozenset({known[end], 10**6})
    run = job.run()
    assert (run.tokens, run.finish_reason) == (known[:end], "eos")


def test_an_end_token_right_behind_the_budget_is_not_seen() -> None:
    """Plain decoding stops at the budget and never looks at the next token."""
    known = _plain("llama", "everything", 50)
    end = _first_use(known, 4)
    for drafter in (None, Oracle(known, 8)):
        job = Job(_pair("llama"), _PROMPT, max_tokens=end, sampling=SETTINGS["everything"])
        job.end_tokens, job.tree, job.drafter = frozenset({known[end]}), _ROOM, drafter
        run = job.run()
        assert (run.tokens, run.finish_reason) == (known[:end], "length")


def test_an_end_token_first_of_all_gives_an_empty_text() -> None:
    known = _plain("llama", "greedy")
    run = Job(_pair("llama"), _PROMPT, end_tokens=frozenset(known[:1])).run()
    assert (run.tokens, run.finish_reason, run.steps) == ([], "eos", [])


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("parts", ["lookup", "specx", "plain"])
def test_cancelling_ends_after_the_step_under_way(parts: str, after: int) -> None:
    decoding = Job(_pair("llama"), _PROMPT, (PARTS | MODES)[parts]).decoding()
    run, emitted = Run(), 0
    for event in decoding.run():
        run.take(event)
        emitted += isinstance(event, Emitted)
        if emitted == after:
            decoding.cancel()
    assert run.finish_reason == "interrupted"
    assert emitted <= after + 1
    assert run.tokens == _plain("llama", "greedy")[: len(run.tokens)]
    assert len(run.tokens) >= after


def test_cancelling_a_prefill_ends_before_the_next_chunk() -> None:
    decoding = Job(_pair("llama"), _PROMPT, PARTS["specx"], prefill_chunk_tokens=50).decoding()
    run = Run()
    for event in decoding.run():
        run.take(event)
        decoding.cancel()
    assert [event.done_tokens for event in run.prefills] == [50]
    assert (run.tokens, run.finish_reason) == ([], "interrupted")


def test_cancelling_before_the_start_reads_nothing() -> None:
    decoding = Job(_pair("llama"), _PROMPT).decoding()
    decoding.cancel()
    assert list(decoding.run()) == [Emitted([], "interrupted")]


# Events and numbers


def test_prefill_events_report_progress() -> None:
    run = Job(_pair("llama"), _PROMPT, PARTS["specx"], prefill_chunk_tokens=64).run()
    assert [(event.done_tokens, event.total_tokens) for event in run.prefills] == [
        (64, 150),
        (128, 150),
        (150, 150),
    ]
    elapsed = [event.elapsed_s for event in run.prefills]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize("parts", [*PARTS, "plain"])
def test_the_numbers_of_the_steps_add_up(parts: str) -> None:
    job = Job(_pair("llama"), _PROMPT, (PARTS | MODES)[parts])
    events = list(job.decoding().run())
    emitted = [event for event in events if isinstance(event, Emitted)]
    assert isinstance(events[0], Prefill)
    assert emitted[0].step is None
    assert len(emitted[0].tokens) == 1
    assert [event.finish_reason for event in emitted[:-1]] == [None] * (len(emitted) - 1)
    assert sum(len(event.tokens) for event in emitted) == 24
    for event in emitted[1:]:
        step = event.step
        assert step is not None
        assert step.new_tokens == len(event.tokens)
        assert 0 <= step.accepted <= step.depth <= step.nodes - 1
        assert step.depth <= job.tree.depth
        assert step.nodes <= job.tree.nodes + 1
        assert step.new_tokens == step.accepted + 1 or event is emitted[-1]
        assert sum(step.draft_levels_s) <= step.draft_s
        phases = (step.verify_s, step.accept_s, step.commit_s, step.retrieve_s, step.host_s)
        assert min(phases) >= 0.0
        assert step.total_s > 0.0


def test_chunks_are_reported_in_the_steps_that_refreshed() -> None:
    """Every second step, from the first on, and within the 3 + 1 + 2 chunks of the budget."""
    run = Job(_pair("llama"), _PROMPT, PARTS["specx"], max_tokens=40).run()
    assert len(run.steps) > 6
    length = len(_PROMPT) + 1
    for number, (step, chunks) in enumerate(zip(run.steps, run.chunks, strict=True)):
        length += step.new_tokens
        assert (chunks is not None) == (number % 2 == 0)
        if chunks is not None:
            committed = length - 1  # the last token is the next root and not in the cache
            newest = (committed - 1) // RETRIEVAL.chunk_tokens
            assert len(chunks) == 6
            assert {0, newest - 1, newest} <= set(chunks)


def test_the_chunks_are_those_that_the_last_accepted_token_attends_to() -> None:
    """Judged by reading the text so far at once: the query at its last row, not at the root."""
    known = _plain("llama", "greedy", 50)
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"], max_tokens=30, tree=_ROOM)
    job.drafter = Oracle(known, 4)
    run, text = job.run(), _PROMPT.tolist() + known[:1]
    refreshes = 0
    for step, chunks in list(zip(run.steps, run.chunks, strict=True))[:-1]:
        committed = len(text) + step.accepted  # the bonus token is not cached yet
        text = _PROMPT.tolist() + known[: committed + 1 - len(_PROMPT)]
        if chunks is None:
            continue
        fresh = Job(job.pair, torch.tensor(text)).decoding().target
        fresh.read(torch.tensor(text[:committed]))
        assert tuple(fresh.select(RETRIEVAL, None).chunks.tolist()) == chunks
        refreshes += 1
    assert refreshes >= 3


def _rows(selection: Selection) -> list[int]:
    return selection.rows[: int(selection.count)].tolist()


def test_the_last_query_of_the_prefill_serves_the_first_draft() -> None:
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"], max_tokens=5, tree=_ROOM)
    oracle = job.drafter = Oracle(_plain("llama", "greedy", 50), 4)
    job.run()
    fresh = Job(job.pair, _PROMPT).decoding().target
    fresh.read(_PROMPT)
    known, rows = oracle.focused[0]
    assert known == 0, "before any output"
    assert rows == _rows(fresh.select(RETRIEVAL, None))


def test_a_short_context_needs_no_retrieval() -> None:
    run = Job(_pair("llama"), random_tokens(10), PARTS["specx"], max_tokens=20).run()
    assert set(run.chunks) == {None}


def test_generated_text_is_retrieved_too() -> None:
    """From a prompt of one chunk, a long output: the chunks chosen must lie behind the prompt."""
    run = Job(_pair("llama"), random_tokens(8), PARTS["specx"], max_tokens=120).run()
    chosen = {chunk for chunks in run.chunks for chunk in chunks or ()}
    assert len(chosen) > RETRIEVAL.budget_tokens // RETRIEVAL.chunk_tokens
    assert max(chosen) >= 14


def test_the_times_of_a_request_are_kept_apart() -> None:
    """And costs are measured when the prompt is read: that takes its own time."""
    tree = TreeConfig(nodes=12, depth=4, size="measured")
    decoding = Job(_pair("llama"), _PROMPT, PARTS["specx"], tree=tree).decoding()
    for event in decoding.run():
        assert (decoding.tune_s > 0.0) == isinstance(event, Emitted)
    assert decoding.prefill_target_s > 0.0
    assert decoding.prefill_draft_s > 0.0
    unmeasured = Job(_pair("llama"), _PROMPT, PARTS["specx"], tree=TREE).decoding()
    list(unmeasured.run())
    assert unmeasured.tune_s == 0.0


def test_a_target_cache_ends_with_every_token_but_the_last() -> None:
    """Compaction over a whole request: the cached keys are those of one plain forward."""
    job = Job(_pair("llama"), _PROMPT, PARTS["specx"])
    decoding = job.decoding()
    run = Run()
    for event in decoding.run():
        run.take(event)
    fresh = Job(job.pair, torch.cat([_PROMPT, torch.tensor(run.tokens)])).decoding().target
    for chunk in torch.cat([_PROMPT, torch.tensor(run.tokens)]).split(64):
        fresh.read(chunk)
    length = len(_PROMPT) + len(run.tokens) - 1
    assert decoding.target.cache.length >= length
    ours, theirs = (target.cache.keys[:, :, :length] for target in (decoding.target, fresh))
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
