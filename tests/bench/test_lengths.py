"""The length grammar: what it means, what it refuses, and where the caret points."""

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.bench.lengths import (
    MAX_LENGTH_TOKENS,
    MAX_LENGTHS,
    parse_lengths,
)
from specx.errors import UsageError

LENGTHS = st.integers(1, MAX_LENGTH_TOKENS)


def written(tokens: int) -> st.SearchStrategy[str]:
    """Every way to write a number of tokens."""
    ways = [str(tokens), f"00{tokens}"]
    if tokens % 1024 == 0:
        ways += [f"{tokens >> 10}k", f"{tokens >> 10}.0K"]
    if tokens % (1 << 20) == 0:
        ways += [f"{tokens >> 20}m", f"{tokens >> 20}M"]
    if tokens % 1024 == 512:
        ways.append(f"{tokens >> 10}.5k")
    return st.sampled_from(ways)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("1k..16k", (1024, 2048, 4096, 8192, 16384)),
        ("1k..12k", (1024, 2048, 4096, 8192, 12288)),
        ("1k,4k,16k", (1024, 4096, 16384)),
        ("1k..16k:5", (1024, 2048, 4096, 8192, 16384)),
        ("1k..16k:4", (1024, 2560, 6528, 16384)),
        ("1k..16k:x4", (1024, 4096, 16384)),
        ("1k..4k:+1k", (1024, 2048, 3072, 4096)),
        ("512,1k..4k,16k", (512, 1024, 2048, 4096, 16384)),
        ("16k,1k,1K,1024", (1024, 16384)),
        ("1.5k", (1536,)),
        ("0.5k", (512,)),
        ("1.50000000000000000000000000k", (1536,)),
        ("0.00000095367431640625m", (1,)),
        ("1m", (1 << 20,)),
        ("16M", (16 << 20,)),
        ("16777216", (16 << 20,)),
        ("0" * 5000 + "7", (7,)),
        ("1..16", (1, 2, 4, 8, 16)),
        ("1.5k..3k", (1536, 3072)),
        ("7..7", (7,)),
        ("7..7:3", (7,)),
        ("7..7:+1", (7,)),
        ("1k..4k:+2k", (1024, 3072, 4096)),
        ("100..1k:x1.5", (100, 150, 225, 338, 506, 759, 1024)),
        ("1..3:x1.1", (1, 2, 3)),
        ("1k..2k:x" + "9" * 400, (1024, 2048)),
        ("1k..16k:2", (1024, 16384)),
        ("10..40:3", (10, 20, 40)),  # too close together for multiples of 64
        ("100..120:4", (100, 106, 113, 120)),
    ],
)
def test_examples(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("16k..1k", 5, "below its start"),
        ("1k..", 4, "a length is missing"),
        ("0", 0, "at least 1"),
        ("0.0k", 0, "at least 1"),
        ("1.3", 1, "a fraction needs k or m"),
        ("1.0001k", 1, "not a whole number of tokens"),
        ("1." + "0" * 30 + "1m", 1, "not a whole number of tokens"),
        ("1k..16k:1", 8, "2 to 1,000 points"),
        ("1k..16k:1001", 8, "2 to 1,000 points"),
        ("1k..16k:" + "9" * 9, 8, "2 to 1,000 points"),
        ("1k..16k:x1", 9, "above 1"),
        ("1k..16k:x0.5", 9, "above 1"),
        ("1k..16k:x", 9, "a factor is missing"),
        ("1k..16k:x4k", 10, "unexpected 'k'"),
        ("1k..16k:", 8, "a number of points, x or + is missing"),
        ("1k..16k:+", 9, "a length is missing"),
        ("1k..16k:+0", 9, "at least 1"),
        ("1g", 1, "'g' is not a unit"),
        ("1kk", 2, "'kk' is not a unit"),
        ("1.5g", 3, "'g' is not a unit"),
        ("1k..16k*2", 7, "written :x4"),
        ("1k:4", 2, "a spacing comes after a range"),
        ("", 0, "a length is missing"),
        ("1k,", 3, "a length is missing"),
        (",1k", 0, "a length is missing"),
        ("1k, 4k", 3, "a length is missing"),
        ("1k ,4k", 2, "a space is not allowed"),
        ("1k...4k", 4, "a length is missing"),
        ("1漢字", 1, "'漢' is not a unit"),
        ("1k…4k", 2, "unexpected '…'"),
        ("1.", 1, "unexpected '.'"),
        ("-1", 0, "a length is missing"),
        ("٣", 0, "a length is missing"),  # a digit to Python, not to this grammar
        ("1k\x1b[2J", 2, "unexpected '?'"),
        ("17m", 0, "at most 16m"),
        ("1k,16777217", 3, "at most 16m"),
    ],
)
def test_errors_point_at_the_fault(text: str, column: int, said: str) -> None:
    with pytest.raises(UsageError, match="lengths: ") as caught:
        parse_lengths(text)
    shown, caret = caught.value.reason.split("\n")
    assert said in caught.value.message
    assert caret == " " * column + "^"
    assert len(shown) == len(text) or shown.endswith("…")
    assert shown.isprintable()
    assert caught.value.exit_code == 2
    assert "1k..16k:x4" in " ".join(caught.value.hints)


def test_a_long_text_is_shown_around_the_fault() -> None:
    with pytest.raises(UsageError) as caught:
        parse_lengths("1k," * 200 + "x" + ",2k" * 200)
    shown, caret = caught.value.reason.split("\n")
    assert len(shown) < 70
    assert shown[0] == shown[-1] == "…"
    assert shown[len(caret) - 1] == "x"


@pytest.mark.parametrize(
    "text",
    [
        "1..16m:+1",
        "1..1001:+1",
        "1..16m:x1.0000001",
        "1..2:x1.0000001",
        "1..999:+1,2k..4k:+1",
        "9" * 100_000,
        "1..16m:" + "9" * 100_000,
        "1." + "9" * 100_000 + "k",
        "1," * 50_000 + "x",
    ],
)
def test_hostile_input_is_refused_at_once(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        parse_lengths(text)
    assert time.perf_counter() - began < 1
    assert len(str(caught.value)) < 300


def test_a_thousand_lengths_are_not_too_many() -> None:
    assert parse_lengths("1..1000:+1") == tuple(range(1, MAX_LENGTHS + 1))
    assert len(parse_lengths("1..16m:1000")) <= MAX_LENGTHS


@given(st.data(), st.lists(LENGTHS, min_size=1, max_size=8))
def test_every_spelling_means_the_same(data: st.DataObject, lengths: Sequence[int]) -> None:
    text = ",".join(data.draw(written(length)) for length in lengths)
    assert parse_lengths(text) == tuple(sorted(set(lengths)))


@given(
    st.tuples(LENGTHS, LENGTHS).map(sorted),
    st.one_of(
        st.just(""),
        st.integers(2, MAX_LENGTHS).map(lambda count: f":{count}"),
        st.floats(1.05, 1e6).map(lambda factor: f":x{factor:.4f}"),
        st.integers(MAX_LENGTH_TOKENS // 900, MAX_LENGTH_TOKENS).map(lambda step: f":+{step}"),
    ),
)
def test_a_range_stays_between_its_ends(ends: list[int], spacing: str) -> None:
    lengths = parse_lengths(f"{ends[0]}..{ends[1]}{spacing}")
    assert lengths[0] == ends[0]
    assert lengths[-1] == ends[1]
    assert all(a < b for a, b in itertools.pairwise(lengths))
    assert len(lengths) <= MAX_LENGTHS


@given(st.text(alphabet="0123456789kKmM.,:x+* g…\n", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        lengths = parse_lengths(text)
    except UsageError as error:
        shown, caret = error.reason.split("\n")
        assert len(caret) <= len(shown) + 1
    else:
        assert lengths == tuple(sorted(set(lengths)))
        assert 1 <= lengths[0] <= lengths[-1] <= MAX_LENGTH_TOKENS
