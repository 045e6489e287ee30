"""Guesses copied from the text, against what the docstrings say in plain Python."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.drafts.copies import Copies
from specx.core.kernels.types import LONGEST, SHORTEST, WIDTH

DEPTH = 6
_CPU = torch.device("cpu")
#: One row of guesses: tokens with their chances, best first.
Guesses = list[tuple[int, float]]


@dataclass
class PlainCopies:
    """``Copies`` over lists; a row is on the chain if its path begins it."""

    depth: int = DEPTH
    chunk_tokens: int = 1000
    attention: list[float] = field(default_factory=lambda: [0.0] * 20)
    chain: list[int] = field(default_factory=list)
    match: int = SHORTEST  # tokens
    start: int = 0
    doubted: set[int] = field(default_factory=set)
    hits: dict[int, float] = field(default_factory=lambda: {2: 0.4, 3: 0.6, 4: 0.8, 5: 1.0})
    tries: dict[int, float] = field(default_factory=lambda: dict.fromkeys((2, 3, 4, 5), 2.0))

    def find(self, text: list[int]) -> None:
        self._judge(text)
        self.chain, self.match, self.doubted, self.start = [], SHORTEST, set(), len(text)
        best = (SHORTEST - 1, 0.0, -1)
        for place in range(len(text) - 1):
            equal = 0
            while equal < min(LONGEST, place + 1) and text[place - equal] == text[-1 - equal]:
                equal += 1
            if equal >= SHORTEST:
                best = max(best, (equal, self.attention[place // self.chunk_tokens], place))
        if best[2] >= 0:
            self.match = best[0]
            self.chain = text[best[2] + 1 :][: self.depth]

    def _judge(self, text: list[int]) -> None:
        hits = tries = 0
        for level, (token, came) in enumerate(zip(self.chain, text[self.start :], strict=False)):
            tries += level in self.doubted
            if token != came:
                break
            hits += level in self.doubted
        if tries:
            first = PlainCopies()
            for counts, prior, news in (
                (self.hits, first.hits, hits),
                (self.tries, first.tries, tries),
            ):
                older = counts[self.match] - prior[self.match]
                counts[self.match] = prior[self.match] + 0.95 * older + news

    @property
    def chance(self) -> float:
        return self.hits[self.match] / self.tries[self.match]

    def joined(self, rows: list[Guesses], paths: list[list[int]]) -> list[Guesses]:
        return [self._row(row, path) for row, path in zip(rows, paths, strict=True)]

    def _row(self, row: Guesses, path: list[int]) -> Guesses:
        level = len(path)
        if level >= len(self.chain) or path != self.chain[:level]:
            return row
        token = self.chain[level]
        if row[0][0] == token:
            return row
        self.doubted.add(level)
        tokens = [token for token, _ in row]
        place = tokens.index(token) if token in tokens else len(row) - 1
        if row[place][1] >= self.chance:
            return row
        return [*row[:place], (token, self.chance), *row[place + 1 :]]


def text_of(tokens: list[int], spare: int = 0, device: torch.device = _CPU) -> tuple[Any, Any]:
    """A text with ``spare`` places of something else behind it, and its length."""
    behind = [tokens[index % len(tokens)] for index in range(spare)]
    text = torch.tensor(tokens + behind, dtype=torch.int64, device=device)
    return text, torch.tensor(len(tokens), device=device)


def random_row(random: Random, vocabulary: int, count: int) -> Guesses:
    """Different tokens, falling chances; now and then one that is impossible."""
    chances = sorted((random.random() ** 3 for _ in range(count)), reverse=True)
    if random.random() < 0.2:
        chances[-1] = 0.0
    # As float32 has them, so that no rounding decides.
    exact = torch.tensor(chances).tolist()
    return list(zip(random.sample(range(vocabulary), count), exact, strict=True))


def tensors(rows: list[Guesses], device: torch.device = _CPU) -> tuple[Any, Any]:
    """Chances and tokens of rows."""
    chances = [[chance for _, chance in row] for row in rows]
    tokens = [[token for token, _ in row] for row in rows]
    return (
        torch.tensor(chances, dtype=torch.float32, device=device),
        torch.tensor(tokens, dtype=torch.int64, device=device),
    )


def assert_guesses(got: tuple[Any, Any], want: list[Guesses]) -> None:
    chances, tokens = tensors(want)
    assert got[1].tolist() == tokens.tolist()
    torch.testing.assert_close(got[0].cpu(), chances, rtol=1e-6, atol=0.0)


def assert_same(copies: Copies, plain: PlainCopies) -> None:
    assert copies.chain.tolist() == plain.chain + [-1] * (plain.depth - len(plain.chain))
    if plain.chain:
        assert float(copies.chance) == pytest.approx(plain.chance, rel=1e-6)


@dataclass
class Beams:
    """Random beams whose frontiers often follow the chain."""

    random: Random
    vocabulary: int
    count: int  # guesses a row
    paths: list[list[int]] = field(default_factory=lambda: [[]])  # of the last level's rows

    def next(self, level: int, chain: list[int]) -> tuple[list[Guesses], list[int], list[int]]:
        """Rows of a level, the frontier they stand under and its parents' staged rows."""
        random, parents = self.random, []
        if level:
            parents = [random.randrange(len(self.paths)) for _ in range(WIDTH)]
            paths = [[*self.paths[row], random.randrange(self.vocabulary)] for row in parents]
            leads = [row for row, path in enumerate(self.paths) if path == chain[: level - 1]]
            if leads and len(chain) >= level and random.random() < 0.8:
                place, parent = random.randrange(WIDTH), random.choice(leads)
                parents[place], paths[place] = parent, chain[:level]
            self.paths = paths
        else:
            self.paths = [[]]
        rows = [random_row(random, self.vocabulary, self.count) for _ in self.paths]
        staged = [max(0, level - 2) * WIDTH + row for row in parents]
        return rows, [path[-1] for path in self.paths if path], staged


def drive(seed: int, vocabulary: int, fused: bool, device: torch.device = _CPU) -> PlainCopies:
    """Some requests of a few steps: texts that grow, sometimes along the chain, with beams whose
    guesses doubt it."""
    random = Random(seed)
    depth, count = random.randint(1, 9), random.randint(1, min(vocabulary, 10))
    chunk_tokens = random.choice([1, 4, 16])
    copies = Copies(depth, device, fused=fused, chunks=200, chunk_tokens=chunk_tokens)
    plain = PlainCopies(depth)
    for _ in range(2):
        copies.begin()
        plain = PlainCopies(depth, chunk_tokens, [0.0] * 200)
        text = [random.randrange(vocabulary) for _ in range(random.randint(1, 40))]
        for _ in range(6):
            if random.random() < 0.5:
                known = random.randint(1, 200)
                plain.attention[:known] = random.choices([0.0, 0.25, 0.5], k=known)
                copies.attend(torch.tensor(plain.attention[:known], device=device))
            copies.find(*text_of(text, random.choice([0, 1, 7]), device))
            plain.find(text)
            assert_same(copies, plain)
            beams = Beams(random, vocabulary, count)
            for level in range(random.randint(1, depth)):
                rows, frontier, parents = beams.next(level, plain.chain)
                got = copies.joined(
                    *tensors(rows, device),
                    level,
                    torch.tensor(frontier, device=device) if level else None,
                    torch.tensor(parents, device=device) if level > 1 else None,
                )
                assert_guesses(got, plain.joined(rows, beams.paths))
            followed = plain.chain[: random.randint(0, depth)]
            text += followed + [random.randrange(vocabulary) for _ in range(random.randint(1, 3))]
    return plain


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), vocabulary=st.sampled_from([2, 3, 3, 5, 12]))
def test_requests_go_as_the_docstrings_say(seed: int, vocabulary: int) -> None:
    drive(seed, vocabulary, fused=False)


FOUND = {
    "nothing has stood before": ([1, 2, 3, 4], []),
    "a text of one token": ([1], []),
    "one token alone is no match": ([1, 2, 3, 1], []),
    "the last pair itself is none": ([1, 2, 3, 3], []),
    "the shortest match": ([1, 2, 8, 1, 2], [8, 1, 2]),
    "the latest of equals": ([1, 2, 8, 1, 2, 9, 1, 2], [9, 1, 2]),
    "the longest before the latest": ([5, 1, 2, 8, 1, 2, 9, 5, 1, 2], [8, 1, 2, 9, 5, 1]),
    "no more than LONGEST counts": (
        [0, 1, 2, 3, 4, 5, 8, 9, 1, 2, 3, 4, 5, 7, 0, 1, 2, 3, 4, 5],
        [7, 0, 1, 2, 3, 4],
    ),
    "a run of one token": ([7] * 9, [7]),
    "a match at the text's beginning": ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
    "no match from before the beginning": ([2, 6, 0, 2], []),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("spare", [0, 1, 5])
def test_the_longest_and_then_the_latest_match_is_continued(name: str, spare: int) -> None:
    """What stands behind the text's end is never read."""
    text, chain = FOUND[name]
    copies = Copies(DEPTH, _CPU)
    copies.find(*text_of(text, spare))
    assert copies.chain.tolist() == chain + [-1] * (DEPTH - len(chain))


@pytest.mark.parametrize(
    ("attention", "first"),
    [
        ([0.0, 0.0, 0.0], 9),  # nobody was asked: the latest
        ([0.3, 0.1, 0.0], 8),
        ([0.1, 0.3, 0.0], 9),
        ([0.3, 0.1, 0.9], 8),  # what the text's end attends to at its own place is no match
        ([0.3], 8),
        ([0.3001, 0.3, 0.0], 9),  # equal but for float32's last bits
        ([1e-9, 0.0, 0.0], 8),
    ],
)
def test_attention_decides_between_equal_matches(attention: list[float], first: int) -> None:
    text = [3, 1, 2, 8, 4, 1, 2, 9, 5, 1, 2]
    copies = Copies(DEPTH, _CPU, chunks=3, chunk_tokens=4)
    copies.attend(torch.tensor(attention))
    copies.find(*text_of(text))
    assert copies.chain[0] == first
    copies.begin()
    copies.find(*text_of(text))
    assert copies.chain[0] == 9  # the next request's text is another


def test_a_longer_match_counts_more_than_attention() -> None:
    text = [5, 1, 2, 8, 1, 2, 9, 0, 5, 1, 2]
    copies = Copies(DEPTH, _CPU, chunks=3, chunk_tokens=4)
    copies.attend(torch.tensor([0.0, 1.0, 0.0]))
    copies.find(*text_of(text))
    assert copies.chain[0] == 8


def _doubting(copies: Copies, level: int, chance: float = 0.5) -> tuple[list[float], list[int]]:
    """One row that begins the chain and thinks of something else."""
    rows: list[Guesses] = [[(90, chance), (91, 0.03), (92, 0.02)]]
    frontier = parents = None
    for above in range(1, level + 1):
        frontier = copies.chain[above - 1 : above]
        parents = torch.tensor([(above - 2) * WIDTH]) if above > 1 else None
        if above < level:
            nothing: list[Guesses] = [[(-5, 0.9), (-6, 0.8), (-7, 0.7)]]
            before = copies.chain[above].clone()
            copies.chain[above] = -1  # on the chain, and without a doubt
            copies.joined(*tensors(nothing), above, frontier, parents)
            copies.chain[above] = before
    chances, tokens = copies.joined(*tensors(rows), level, frontier, parents)
    return chances[0].tolist(), tokens[0].tolist()


def test_a_doubted_copy_takes_the_last_place_with_its_prior() -> None:
    copies = Copies(DEPTH, _CPU)
    copies.find(*text_of([1, 2, 8, 1, 2]))
    chances, tokens = _doubting(copies, 0)
    assert tokens == [90, 91, 8]
    assert chances == pytest.approx([0.5, 0.03, 0.2])
    copies.find(*text_of([1, 2, 3, 4, 5, 8, 1, 2, 3, 4, 5]))
    assert _doubting(copies, 0)[0][2] == pytest.approx(0.5)


def test_a_guess_that_is_worth_more_keeps_its_place() -> None:
    copies = Copies(DEPTH, _CPU)
    copies.find(*text_of([1, 2, 8, 1, 2]))
    rows: list[Guesses] = [[(90, 0.4), (91, 0.3), (92, 0.25)]]
    assert_guesses(copies.joined(*tensors(rows), 0), rows)
    rows = [[(90, 0.4), (8, 0.3), (92, 0.25)]]
    assert_guesses(copies.joined(*tensors(rows), 0), rows)
    rows = [[(90, 0.4), (8, 0.1), (92, 0.05)]]
    want: list[Guesses] = [[(90, 0.4), (8, 0.2), (92, 0.05)]]
    assert_guesses(copies.joined(*tensors(rows), 0), want)


def test_only_doubted_levels_are_judged_and_old_news_fade() -> None:
    """Hits and tries by hand, for matches of two tokens: 0.4 of 2 before anything."""
    copies = Copies(DEPTH, _CPU)
    text = [1, 2, 8, 9, 7, 1, 2]
    copies.find(*text_of(text))
    _doubting(copies, 0)
    _doubting(copies, 2)
    text += [8, 9, 6]  # two right and the third, which was doubted, wrong
    copies.find(*text_of(text))
    text += [1, 2]
    copies.find(*text_of(text))
    assert float(copies.chance) == pytest.approx(1.4 / 4)
    _doubting(copies, 0)
    text += [8, 5, 1, 2]
    copies.find(*text_of(text))
    assert float(copies.chance) == pytest.approx((0.4 + 0.95 + 1) / (2 + 0.95 * 2 + 1))
    copies.find(*text_of([*text, 8, 5, 1, 2]))  # nothing was doubted: nothing is learnt
    assert copies.chain.tolist()[0] == 8
    text += [3, 4, 1, 2]
    copies.find(*text_of(text))
    assert float(copies.chance) == pytest.approx((0.4 + 0.95 + 1) / (2 + 0.95 * 2 + 1))


def test_a_new_request_knows_nothing_of_the_last() -> None:
    copies = Copies(DEPTH, _CPU)
    copies.find(*text_of([1, 2, 8, 1, 2]))
    _doubting(copies, 0)
    copies.begin()
    assert copies.chain.tolist() == [-1] * DEPTH
    copies.find(*text_of([1, 2, 8, 1, 2, 8, 7, 1, 2]))
    assert float(copies.chance) == pytest.approx(0.2)
