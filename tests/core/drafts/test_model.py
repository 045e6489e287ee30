"""The drafter around a model: un-rotated keys, compact positions, the rows it is to keep."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specx.core.architecture import DecoderConfig
from specx.core.attention import Kernels
from specx.core.config import Parts, RetrievalConfig, SamplingConfig, TreeConfig
from specx.core.decoder import AttentionPass, Model
from specx.core.drafts.growth import StepCosts
from specx.core.drafts.model import DraftSettings
from specx.core.forward_passes import ReadPass, Rotary, TreePass
from specx.core.retrieval import select_recent
from tests.core import reference
from tests.core.tiny import (
    FAMILIES,
    RETRIEVAL,
    TRAINED_TOKENS,
    Fed,
    Job,
    Pair,
    config,
    disturbed,
    hf_logits,
    hf_model,
    own,
    random_tokens,
)

FULL = Parts(draft_cache="full", draft_prefill="full")
WINDOW = Parts(draft_cache="window")
SPECX = Parts()
_BUSHY = TreeConfig(nodes=300, depth=4, threshold=0.0, size="fixed")


@dataclass
class Call:
    """One forward over the working cache."""

    tokens: list[int]
    positions: list[int]
    mask: Tensor | None
    committed: int  # rows of the working cache before it
    logits: Tensor


class SpyModel(Model):
    """Remembers its forwards over a working cache."""

    def __init__(self, config: DecoderConfig, tensors: dict[str, Tensor]) -> None:
        super().__init__(config, tensors)
        self.calls: list[Call] = []

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        is_read = isinstance(attention_pass, ReadPass)
        if is_read:
            positions = attention_pass.positions
        is_drafting = is_read or isinstance(attention_pass, TreePass)
        before = int(attention_pass.prefix) if is_drafting else 0
        nowhere = torch.zeros_like(tokens) if is_read else positions
        states = super().hidden(tokens, nowhere, attention_pass, features)
        if is_drafting:
            mask = None if is_read else attention_pass.mask.clone()
            logits = self.logits(states)
            self.calls.append(Call(tokens.tolist(), positions.tolist(), mask, before, logits))
        return states

    def paths(self) -> list[tuple[list[int], Tensor]]:
        """Since the last commit: the guesses on the path to each staged row, and its logits."""
        levels = self.calls[self._last_commit() + 1 :]
        staged = [token for call in levels for token in call.tokens]
        found = []
        for call in levels:
            assert call.mask is not None
            for row, logits in zip(call.mask, call.logits, strict=True):
                found.append(([staged[i] for i in row.nonzero()[:, 0].tolist()], logits))
        return found

    @property
    def after_root(self) -> Tensor:
        """Logits [V] after the last committed token."""
        return self.calls[self._last_commit()].logits[-1]

    def _last_commit(self) -> int:
        return max(index for index, call in enumerate(self.calls) if call.mask is None)


def _drafter(
    model: Model, parts: Parts = FULL, *, costs: StepCosts | None = None, **changes: Any
) -> Fed:
    settings = DraftSettings(
        model=model,
        vocabulary=model.shape.vocabulary,
        trained_tokens=TRAINED_TOKENS,
        parts=parts,
        tree=_BUSHY,
        retrieval=RETRIEVAL,
        kernels=Kernels(),
    )
    return Fed(replace(settings, **changes), model, costs)


def _recent(rows: int) -> list[int]:
    recent = select_recent(RETRIEVAL, rows, torch.tensor(rows))
    kept: list[int] = recent.rows[: int(recent.count)].tolist()
    return kept


def _one_layer(seed: int = 0) -> PreTrainedModel:
    """One layer deep, keys depend on their own token alone: leaving rows out of the cache is
    then exactly leaving the tokens out of the text."""
    return hf_model(config(num_hidden_layers=1), seed)


def _assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_a_full_cache_the_draft_computes_what_hugging_face_computes(name: str) -> None:
    """Un-rotated keys, re-rotated on use, scaled where YaRN scales: prompt, tree and next tree."""
    plain = hf_model(config(name))
    model = own(plain, SpyModel)
    drafter = _drafter(model, trained_tokens=32)
    text = random_tokens(75).tolist()
    for chunk in torch.tensor(text).split(40):
        drafter.prefill(chunk)
    for new in ([5], [17, 3, 60], [9]):
        drafter.extend(new)
        text += new
        tree = drafter.drafter.draft()
        assert int(tree.tokens[0]) == text[-1]
        _assert_same(model.after_root, hf_logits(plain, text)[-1])
        paths = model.paths()
        assert {len(path) for path, _ in paths} == {1, 2, 3}
        for path, logits in paths:
            _assert_same(logits, hf_logits(plain, text + path)[-1])


@pytest.mark.parametrize("parts", [FULL, WINDOW, SPECX], ids=["full", "window", "retrieval"])
def test_a_node_at_depth_d_stands_d_behind_the_root(parts: Parts) -> None:
    """The root is the last committed row; one position more, and every guess is off by one."""
    model = own(hf_model(config()), SpyModel)
    drafter = _drafter(model, parts)
    drafter.prefill(random_tokens(90))
    for new in ([4], [8, 15], [16]):
        drafter.extend(new)
        drafter.drafter.draft()
    commits = 0
    for call in model.calls:
        if call.mask is None:
            commits += 1
            start = call.committed
            assert call.positions == list(range(start, start + len(call.tokens)))
        else:
            depths = call.mask.sum(dim=1)
            assert call.positions == (call.committed - 1 + depths).tolist()
    assert commits == 3


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("nodes", [1, 7, 60])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_a_draft_is_a_valid_tree_within_its_bounds(
    depth: int, nodes: int, threshold: float
) -> None:
    tree_config = TreeConfig(nodes=nodes, depth=depth, threshold=threshold, size="fixed")
    drafter = _drafter(own(hf_model(config())), tree=tree_config)
    drafter.prefill(random_tokens(20))
    drafter.extend([3])
    tree = drafter.drafter.draft()
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    assert tokens[0] == 3
    assert 2 <= tree.size <= nodes + 1
    assert int(tree.depths.max()) <= depth
    assert torch.equal(tree.mask, reference.mask(parents))
    assert len(set(zip(parents[1:], tokens[1:], strict=True))) == tree.size - 1


def test_the_first_level_is_the_drafts_own_ranking() -> None:
    plain = hf_model(config())
    config_ = TreeConfig(nodes=5, depth=1, size="fixed")
    drafter = _drafter(own(plain), tree=config_)
    prompt = random_tokens(30)
    drafter.prefill(prompt)
    drafter.extend([3])
    best = hf_logits(plain, [*prompt.tolist(), 3])[-1].topk(5).indices
    assert drafter.drafter.draft().tokens.tolist() == [3, *best.tolist()]


def test_measured_costs_cut_the_tree() -> None:
    sizes = []
    for seconds in ({1: 1.0, 64: 1.0}, {1: 1.0, 2: 50.0}):
        costs = StepCosts(seconds, level_s=0.001)
        config_ = TreeConfig(nodes=20, depth=3, size="measured")
        drafter = _drafter(own(hf_model(config())), tree=config_, costs=costs)
        drafter.prefill(random_tokens(20))
        drafter.extend([3])
        sizes.append(drafter.drafter.draft().size)
    assert sizes == [21, 1]


def test_a_refocused_draft_sees_the_chosen_rows_and_nothing_else() -> None:
    """Rows of the prompt, of the generated text, and all of them, one choice after the other."""
    plain = _one_layer()
    model = own(plain, SpyModel)
    drafter = _drafter(model, SPECX)
    text = random_tokens(90).tolist()
    drafter.prefill(torch.tensor(text))
    for rows in ([0, 1, 2, 50, 51, 88, 89], [5], list(range(92)), [0, 30, 90, 91, 92]):
        drafter.extend([7])
        drafter.refocus(torch.tensor(rows))
        drafter.drafter.draft()
        seen = [text[row] for row in rows] + [7]
        assert drafter.drafter.context_tokens == len(seen)
        _assert_same(model.after_root, hf_logits(plain, seen)[-1])
        text.append(7)


def test_rows_that_the_draft_has_not_read_follow_by_themselves() -> None:
    """The target is ahead of the draft by the last step's tokens, and a selection may name them."""
    plain = _one_layer()
    model = own(plain, SpyModel)
    drafter = _drafter(model, SPECX)
    text = random_tokens(40).tolist()
    drafter.prefill(torch.tensor(text))
    drafter.extend([3, 1, 4])
    drafter.refocus(torch.arange(30, 43))
    drafter.extend([1, 5])
    drafter.drafter.draft()
    _assert_same(model.after_root, hf_logits(plain, [*text[30:], 3, 1, 4, 1, 5])[-1])


def test_drafting_leaves_nothing_of_a_tree_behind() -> None:
    """Many trees, each discarded, then a text: the same keys as reading the text at once."""
    plain = hf_model(config())
    model = own(plain, SpyModel)
    drafter = _drafter(model)
    text = random_tokens(50).tolist()
    drafter.prefill(torch.tensor(text[:20]))
    for token in text[20:]:
        drafter.extend([token])
        drafter.drafter.draft()
    _assert_same(model.after_root, hf_logits(plain, text)[-1])


def test_generated_text_is_kept_without_rotation_like_the_prompt() -> None:
    """A later selection may take generated rows: they must be re-indexed just the same."""
    model = own(_one_layer())
    text = random_tokens(60).tolist()
    at_once, by_steps = _drafter(model, SPECX), _drafter(model, SPECX)
    at_once.prefill(torch.tensor(text))
    by_steps.prefill(torch.tensor(text[:30]))
    for token in text[30:]:
        by_steps.extend([token])
        by_steps.drafter.draft()
    rows = torch.tensor([0, 10, 29, 30, 31, 45, 59])
    trees = []
    for drafter in (at_once, by_steps):
        drafter.extend([2])
        drafter.refocus(rows)
        trees.append(drafter.drafter.draft())
    assert torch.equal(trees[0].tokens, trees[1].tokens)
    assert torch.equal(trees[0].parents, trees[1].parents)


def test_a_recent_window_holds_sink_and_recent_rows() -> None:
    plain = _one_layer()
    model = own(plain, SpyModel)
    drafter = _drafter(model, WINDOW)
    text = random_tokens(200).tolist()
    drafter.prefill(torch.tensor(text))
    drafter.extend([7])
    drafter.drafter.draft()
    seen = [text[row] for row in _recent(200)] + [7]
    assert len(seen) < 60
    _assert_same(model.after_root, hf_logits(plain, seen)[-1])


@pytest.mark.parametrize("parts", [FULL, WINDOW, SPECX], ids=["full", "window", "retrieval"])
def test_a_long_backlog_is_read_before_the_next_draft(parts: Parts) -> None:
    """Tokens may come without a draft in between, hundreds of them."""
    plain = _one_layer()
    model = own(plain, SpyModel)
    drafter = _drafter(model, parts)
    text = random_tokens(60).tolist()
    drafter.prefill(torch.tensor(text))
    drafter.extend([9])
    drafter.drafter.draft()
    backlog = random_tokens(300, seed=8).tolist()
    text += [9, *backlog]
    drafter.extend(backlog[:100])
    drafter.extend(backlog[100:])
    drafter.drafter.draft()
    rows = range(len(text))
    if parts is not FULL:
        rows = [*_recent(len(text) - 1), len(text) - 1]
    _assert_same(model.after_root, hf_logits(plain, [text[row] for row in rows])[-1])


def test_the_noise_of_a_guess_is_the_one_that_the_target_will_draw() -> None:
    """Common random numbers: a draft as good as its target guesses even what was drawn by chance.
    Without the shared noise it would be right in a few of a hundred guesses here."""
    plain = hf_model(config())
    pair = Pair(own(plain), own(plain), plain)
    sampling = SamplingConfig(temperature=1.5, seed=4)
    tree = TreeConfig(nodes=300, depth=3, threshold=0.0, size="fixed")
    job = Job(pair, random_tokens(50), FULL, max_tokens=41, sampling=sampling, tree=tree)
    assert job.run().tokens_per_step > 3.8


def _highest_position(monkeypatch: pytest.MonkeyPatch, job: Job) -> int:
    """The largest position that the draft rotated anything to while ``job`` ran."""
    highest = [0]
    rotate_at, hidden = Rotary.rotate_at, job.pair.draft.hidden

    def spy(self: Rotary, vectors: Tensor, positions: Tensor | slice) -> Tensor:
        top = positions.stop - 1 if isinstance(positions, slice) else int(positions.max())
        highest[0] = max(highest[0], top)
        return rotate_at(self, vectors, positions)

    def spy_on_model(tokens: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        highest[0] = max(highest[0], int(positions.max()))
        return hidden(tokens, positions, *rest)

    monkeypatch.setattr(Rotary, "rotate_at", spy)
    monkeypatch.setattr(job.pair.draft, "hidden", spy_on_model)
    job.run()
    return highest[0]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("llama")


@pytest.mark.parametrize("parts", [WINDOW, SPECX], ids=["window", "retrieval"])
@pytest.mark.parametrize(("prompt", "output"), [(700, 20), (5, 150), (60, 90)])
def test_no_position_exceeds_the_trained_length(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, parts: Parts, prompt: int, output: int
) -> None:
    """A budget of 48 rows, a refresh every second step, a draft trained on 96 tokens."""
    job = Job(pair, random_tokens(prompt), parts, max_tokens=output, trained_tokens=96)
    assert _highest_position(monkeypatch, job) < 96


@pytest.mark.parametrize("parts", [WINDOW, SPECX], ids=["window", "retrieval"])
def test_no_position_exceeds_the_trained_length_however_rare_the_refresh(
    monkeypatch: pytest.MonkeyPatch, pair: Pair, parts: Parts
) -> None:
    """Regression: between two refreshes the working cache grew by up to 256 rows, whatever length
    the draft was trained on."""
    rare = RetrievalConfig(
        chunk_tokens=8, top_chunks=3, sink_chunks=1, recent_chunks=2, every_steps=1000
    )
    job = Job(pair, random_tokens(200), parts, max_tokens=80, trained_tokens=96, retrieval=rare)
    assert _highest_position(monkeypatch, job) < 96


@pytest.mark.parametrize("trained_tokens", [1, 3])
def test_a_draft_trained_on_less_than_a_tree_has_room_for_the_tree(
    pair: Pair, trained_tokens: int
) -> None:
    """Regression: rows for staged levels were reserved for min(depth, trained length) levels, so
    the last steps of a text ran out of cache."""
    tree = TreeConfig(nodes=60, depth=6, threshold=0.0, size="fixed")
    prompt = random_tokens(30)
    job = Job(pair, prompt, FULL, tree=tree, trained_tokens=trained_tokens)
    assert job.run().tokens == Job(pair, prompt).run().tokens


@pytest.mark.parametrize(("parts", "extra"), [(SPECX, 2 * 5 + 1), (WINDOW, 8 + 5)])
def test_the_working_cache_keeps_to_its_budget(pair: Pair, parts: Parts, extra: int) -> None:
    """Beyond the 48 rows: the tokens until the next refresh, or a chunk of sliding; one step's
    tokens. The draft's training length is no limit here."""
    job = Job(pair, random_tokens(300), parts, max_tokens=60, trained_tokens=4096)
    assert 40 < max(step.draft_context_tokens for step in job.run().steps) <= 48 + extra


def test_bytes_are_counted_for_rows_in_use(pair: Pair) -> None:
    shape = pair.draft.shape
    row_bytes = 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim
    drafter = _drafter(pair.draft, WINDOW)
    empty = drafter.drafter.cache_bytes
    drafter.prefill(random_tokens(50))
    assert drafter.drafter.cache_bytes - empty == 50 * row_bytes


def test_a_draft_with_a_longer_vocabulary_guesses_only_what_the_target_knows() -> None:
    """Rows beyond the real tokens are padding and may differ between the models of a family: a
    guess from there has no embedding in the target."""
    target = hf_model(config())
    draft = hf_model(config(vocab_size=128, hidden_size=16), seed=1)
    pair = Pair(own(target), own(draft), target)
    prompt = random_tokens(60)
    plain = Job(pair, prompt).run()
    assert Job(pair, prompt, FULL).run().tokens == plain.tokens


def test_a_smaller_draft_of_another_shape_fits(pair: Pair) -> None:
    """Heads, width, depth and rotation are the draft's own business."""
    small = config(
        "llama-yarn",
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=12,
    )
    other = Pair(pair.target, own(disturbed(hf_model(small))), pair.reference)
    prompt = random_tokens(100)
    for parts in (FULL, WINDOW, SPECX):
        assert Job(other, prompt, parts).run().tokens == Job(pair, prompt).run().tokens


@pytest.mark.parametrize("chunks", [[300], [60, 240], [40] * 7 + [20]])
def test_a_prompt_is_read_alike_in_any_chunks(chunks: list[int]) -> None:
    """Blocks of 20 rows, each with the 20 before it, go through a layer one by one or together."""
    tokens, read = random_tokens(300), []
    for pieces in ([20] * 15, chunks):
        drafter = _drafter(own(hf_model(config("llama-yarn"))), SPECX, trained_tokens=40)
        for piece in tokens.split(pieces):
            drafter.prefill(piece)
        assert drafter.full.length == 300
        read.append(drafter.full.keys[:, :, :300])
    _assert_same(read[1], read[0])
