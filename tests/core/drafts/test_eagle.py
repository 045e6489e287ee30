"""EAGLE heads against a second, naive implementation; drafting with them never changes the text."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.config import MODES, SamplingConfig, TreeConfig
from specx.core.decoder import AttentionPass
from specx.core.drafts.eagle import EagleHead
from specx.core.drafts.model import DraftSettings
from specx.core.forward_passes import ReadPass, TreePass
from tests.core.drafts.heads import (
    FORMS,
    LAYERS,
    make_config,
    make_pair,
    make_tensors,
    naive_logits,
    naive_states,
    true_features,
)
from tests.core.tiny import RETRIEVAL, TRAINED_TOKENS, TREE, Fed, Job, Pair, random_tokens

SPEC, SPECX = (replace(MODES[name], drafter="eagle") for name in ("spec", "specx"))
_CLOSE = {"rtol": 1e-3, "atol": 1e-3}
_BUSHY = TreeConfig(nodes=14, depth=4, threshold=0.0, size="fixed")


class SpyHead(EagleHead):
    """Remembers, for every row of the working cache, its guesses, position and logits."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.rows: list[tuple[tuple[int, ...], int, Tensor]] = []
        self._staged: list[tuple[int, ...]] = []

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention_pass: AttentionPass,
        features: Tensor | None = None,
    ) -> Tensor:
        states = super().hidden(tokens, positions, attention_pass, features)
        if isinstance(attention_pass, ReadPass):
            place = int(attention_pass.positions[-1])
            self._staged, self.rows = [], [((), place, self.logits(states)[-1])]
        elif isinstance(attention_pass, TreePass):
            own, places = tokens.tolist(), positions.tolist()
            mask, logits = attention_pass.mask.tolist(), self.logits(states)
            self._staged += [(token,) for token in own]
            for token, seen, place, row in zip(own, mask, places, logits, strict=True):
                path = [self._staged[i][-1] for i, sees in enumerate(seen) if sees]
                assert path[-1] == token
                self.rows.append((tuple(path), place, row))
        return states


def _drafter(pair: Pair) -> Fed:
    settings = DraftSettings(
        model=pair.draft,
        vocabulary=pair.target.shape.vocabulary,
        trained_tokens=TRAINED_TOKENS,
        parts=SPEC,
        tree=_BUSHY,
        retrieval=RETRIEVAL,
        kernels=Kernels(),
    )
    return Fed(settings, pair.target)


def _weights(pair: Pair) -> tuple[Tensor, Tensor]:
    """Embedding and output matrix of the untouched target."""
    reference = pair.reference
    return reference.get_input_embeddings().weight, reference.get_output_embeddings().weight


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_node_gets_the_logits_of_the_naive_head(form: str) -> None:
    """Prompt by chunks, two drafts, every node of both trees: its path recomputed from nothing.

    This holds the shift by one, the features fed back, the masks and the positions at once.
    """
    pair = make_pair(form)
    tensors = make_tensors(form, pair.target.shape.hidden, pair.target.shape.vocabulary)
    spy = pair.draft = SpyHead(make_config(form), tensors, pair.target)
    embedding, head = _weights(pair)
    text = random_tokens(70, seed=3)
    known = true_features(pair, form, text)
    drafter = _drafter(pair)
    for start, end in ((0, 20), (20, 21), (21, 50)):
        drafter.prefill(text[start:end], known[start:end])
    for start, end in ((50, 51), (51, 55)):  # the bonus token alone, then an accepted path
        drafter.extend(text[start:end].tolist(), known[start - 1 : end - 1])
        drafter.drafter.draft()
        assert len(spy.rows) > 12, "a tree with several levels"
        for path, place, logits in spy.rows:
            states = naive_states(
                form, tensors, embedding, known[: end - 1], text[1:end], guesses=path
            )
            wanted = naive_logits(form, tensors, head, states[-1:])[0]
            torch.testing.assert_close(logits, wanted, **_CLOSE)
            # c + d - 1: the root's pair is the last of c = end - 1 committed rows.
            assert place == end - 1 + len(path) - 1


@pytest.mark.parametrize("form", ["eagle", "eagle3"])
@torch.no_grad()
def test_reading_in_one_call_equals_reading_in_parts(form: str) -> None:
    pair = make_pair(form)
    text = random_tokens(90, seed=5)
    known = true_features(pair, form, text)
    caches = []
    for cuts in ((0, 90), (0, 1, 2, 33, 64, 90)):
        drafter = _drafter(pair)
        for start, end in itertools.pairwise(cuts):
            drafter.prefill(text[start:end], known[start:end])
        caches.append(drafter.full)
    one, several = caches
    assert one.length == several.length == 89, "a pair less than tokens"
    for rows in ("keys", "values"):
        first, second = (getattr(cache, rows)[:, :, :89] for cache in (one, several))
        torch.testing.assert_close(first, second, **_CLOSE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_features_are_what_enters_the_layers(family: str) -> None:
    pair = make_pair("eagle3", family)
    tokens = random_tokens(40)
    _, features = Job(pair, tokens).decoding().target.read(tokens)
    torch.testing.assert_close(features, true_features(pair, "eagle3", tokens), **_CLOSE)
    assert pair.target.feature_width == len(LAYERS) * pair.target.shape.hidden
    pair.target.tap(())
    _, features = Job(pair, tokens).decoding().target.read(tokens)
    torch.testing.assert_close(features, true_features(pair, "eagle", tokens), **_CLOSE)


_SAMPLED = SamplingConfig(temperature=1.5, seed=4)


@functools.cache
def _plain(form: str) -> tuple[Job, list[int], list[int]]:
    """A request over a target that is tapped for a head of this form, and its greedy and sampled
    text without one."""
    job = Job(make_pair(form), random_tokens(150, seed=2), max_tokens=24)
    return job, job.run().tokens, replace(job, sampling=_SAMPLED).run().tokens


@pytest.mark.parametrize("is_fixed", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("parts", [SPEC, SPECX, replace(SPECX, draft_cache="window")],
                         ids=["spec", "specx", "window"])  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_the_text_is_that_of_plain_decoding(form: str, parts: object, is_fixed: bool) -> None:
    plain, greedy, sampled = _plain(form)
    job = replace(plain, parts=parts, is_fixed=is_fixed)
    assert job.run().tokens == greedy
    drafted = replace(job, sampling=_SAMPLED).run()
    assert drafted.tokens == sampled
    assert drafted.tokens_per_step > 1.0, "now and then even a random head is right"


@pytest.mark.parametrize("form", ["eagle", "eagle3"])
def test_the_device_grows_the_host_s_trees(form: str) -> None:
    """Same trees, step by step: the features of accepted paths reach the recordings."""
    job = Job(make_pair(form), random_tokens(120, seed=6), SPECX, 30, records_trees=True)
    sampling = SamplingConfig(temperature=1.2, seed=1)
    trees = []
    for is_fixed in (False, True):
        decoding = replace(job, is_fixed=is_fixed, sampling=sampling).decoding()
        trees.append([each.tree for each in decoding.run() if getattr(each, "tree", None)])
    assert len(trees[0]) > 10
    for host, device in zip(*trees, strict=True):
        guesses = [token for token in device.tokens if token >= 0]
        assert sorted(host.tokens) == sorted(guesses)
        assert host.bonus == device.bonus


def test_a_second_request_starts_from_nothing() -> None:
    pair = make_pair("eagle3")
    long = Job(pair, random_tokens(300, seed=1), SPECX, 20, is_fixed=True)
    short = replace(long, prompt=random_tokens(40, seed=2))
    alone = short.run()
    first = long.decoding()
    for _ in first.run():
        pass
    tokens: list[int] = []
    for event in short.decoding(reuse=first).run():
        tokens += getattr(event, "tokens", [])
    assert tokens == alone.tokens
    assert TREE.depth + 1 < 40
