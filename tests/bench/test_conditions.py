"""--fail-if: what a condition means, where it holds, and that a typo does not pass silently."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.bench.conditions import (
    BENCH_METRICS,
    COMPARE_METRICS,
    MetricKind,
    change_failures,
    failures,
    parse_condition,
)
from specx.bench.schema import (
    Bench,
    BenchRow,
    Equality,
    Interval,
    MemoryBytes,
    OverFloor,
    Spread,
    Summary,
)
from specx.errors import UsageError
from tests.bench.objects import bench_of, header, sample


def bench(text: str) -> Any:
    return parse_condition(text, BENCH_METRICS)


def change(text: str) -> Any:
    return parse_condition(text, COMPARE_METRICS)


def cell(mode: str, length: int, speedup: float | None = None, **changes: Any) -> BenchRow:
    def spread(value: float, **more: Any) -> Spread:
        fields = {"median": value, "mean": value, "sd": None, "low": value, "high": value}
        return Spread(**fields | more, outliers=0)

    fields: dict[str, Any] = dict.fromkeys(Summary.model_fields)
    fields |= {
        "n": 1,
        "documents": 1,
        "prompt_tokens": length,
        "speedup": None if speedup is None else Interval(value=speedup, low=None, high=2.0),
        "tokens_per_step": Interval(value=1.0 if mode == "plain" else 3.0, low=2.5, high=3.5),
        "decode_tok_s": spread(50.0, mean=51.0, low=40.0, high=60.0),
        "prefill_tok_s": spread(900.0),
        "floor": OverFloor(decode=1.6, prefill=2.0),
        "memory": MemoryBytes(peak=3 << 29),
        "equal": Equality(checked=4, equal=3),
    }
    run = sample("pocket", mode, length)
    summary = Summary(**fields | changes)
    return BenchRow(preset="pocket", mode=mode, length=length, samples=[run], summary=summary)


def bench_with(*rows: BenchRow) -> Bench:
    modes = tuple(dict.fromkeys(row.mode for row in rows))
    lengths = tuple(dict.fromkeys(row.length for row in rows))
    empty = bench_of(header(modes=modes, lengths=lengths), [])
    return empty.model_copy(update={"cells": list(rows)})


BENCH = bench_with(
    cell("plain", 2048),
    cell("spec", 2048, 0.83),
    cell("specx", 2048, 1.4),
    cell("plain", 16384),
    cell("specx", 16384, 0.9996),
)


class TestParsing:
    def test_everything_at_once(self) -> None:
        condition = bench(" speedup.low <= 1.50 @ specx+window @16k ")
        assert condition.text == "speedup.low <= 1.50 @ specx+window @16k"
        assert (condition.metric, condition.part, condition.operator) == ("speedup", "low", "<=")
        assert (condition.limit, condition.limit_text) == (1.5, "1.50")
        assert (condition.mode, condition.length) == ("specx+window", 16384)
        assert condition.name == "speedup.low"

    def test_the_order_of_the_scope_does_not_matter(self) -> None:
        assert bench("equal<1@16k@hf-assisted").mode == "hf-assisted"
        assert bench("equal<1@16k@hf-assisted").length == 16384

    @pytest.mark.parametrize("text", ["change<-5%", "change < -5 %", "change!=0%", "change>+2.5%"])
    def test_percent(self, text: str) -> None:
        assert change(text).metric == "change"

    @pytest.mark.parametrize(
        ("sign", "value", "holds"),
        [
            ("<", 0.9, True),
            ("<", 1.0, False),
            ("<=", 1.0, True),
            (">", 1.0, False),
            (">=", 1.0, True),
            ("==", 1.0, True),
            ("!=", 1.0, False),
            ("!=", 1.1, True),
        ],
    )
    def test_operators(self, sign: str, value: float, holds: bool) -> None:
        assert bench(f"floor{sign}1").holds(value) is holds

    @pytest.mark.parametrize(
        ("text", "metrics", "said"),
        [
            ("", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup<", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup<fast", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup<nan", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup<1e3", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup<" + "9" * 10_000, BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup<1.0 specx", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("1.0<speedup", BENCH_METRICS, "METRIC OPERATOR NUMBER"),
            ("speedup=1", BENCH_METRICS, "'=' is not one of"),
            ("speedup=<1", BENCH_METRICS, "'=<' is not one of"),
            ("spedup<1", BENCH_METRICS, "did you mean speedup"),
            ("change<-5%", BENCH_METRICS, "known: speedup"),
            ("speedup.lo<1", BENCH_METRICS, "not .lo"),
            ("speedup.<1", BENCH_METRICS, "not ."),
            ("floor.low<1", BENCH_METRICS, "a single number"),
            ("speedup<95%", BENCH_METRICS, "not in percent"),
            ("speedup<1@", BENCH_METRICS, "unknown mode ''"),
            ("speedup<1@spce", BENCH_METRICS, "did you mean spec"),
            ("speedup<1@spec@specx", BENCH_METRICS, "only one mode"),
            ("speedup<1@1k@2k", BENCH_METRICS, "only one length"),
            ("speedup<1@1k..2k", BENCH_METRICS, "only one length"),
            ("speedup<1@1g", BENCH_METRICS, "'g' is not a unit"),
            ("change<-5", COMPARE_METRICS, "write -5%"),
            ("change<-5%@specx", COMPARE_METRICS, "every row is checked"),
            ("speedup<1", COMPARE_METRICS, "known: change"),
        ],
    )
    def test_refusals(self, text: str, metrics: Mapping[str, MetricKind], said: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_condition(text, metrics)
        assert said in " ".join((str(caught.value), *caught.value.hints))
        assert caught.value.exit_code == 2

    @given(st.text(alphabet="speduploriginal<>=!.@%019 k\n", max_size=40))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            condition = bench(text)
        except UsageError:
            return
        assert condition.metric in BENCH_METRICS


class TestBench:
    def test_every_cell_where_it_holds(self) -> None:
        assert failures([bench("speedup<1.0")], BENCH) == [
            "speedup 0.83 < 1.0 at pocket · spec · 2,048",
            "speedup 0.9996 < 1.0 at pocket · specx · 16,384",  # 1.00 would read as a mistake
        ]

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("speedup<1.0@spec", 1),
            ("speedup<1.0@2k", 1),
            ("speedup>=1@2048@specx", 1),
            ("speedup.high>1.9", 3),
            ("decode_tok_s==50", 5),
            ("decode_tok_s.low==40", 5),
            ("decode_tok_s.high>60", 0),
            ("prefill_tok_s>899.5", 5),
            ("floor>1.5", 5),
            ("peak_gib==1.5", 5),
            ("equal<1", 5),
            ("equal==0.75", 5),
            ("tokens_per_step<4", 3),  # plain is one by definition
            ("tokens_per_step<4@plain", 2),
        ],
    )
    def test_values(self, text: str, count: int) -> None:
        assert len(failures([bench(text)], BENCH)) == count

    @pytest.mark.parametrize("text", ["equal<1", "floor>0", "speedup<9", "floor<9"])
    def test_a_value_that_is_not_there_fails_nothing(self, text: str) -> None:
        floor = OverFloor(decode=None, prefill=2.0)
        empty = bench_with(cell("specx", 1024, equal=None, floor=floor))
        with pytest.raises(UsageError, match="no cell there has a value"):
            failures([bench(text)], empty)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("speedup<1.0@auto", "mode auto was not measured"),
            ("speedup<1.0@4k", "nothing was measured at 4,096 tokens"),
            ("speedup<1.0@spec@16k", "no run of spec was measured at 16,384 tokens"),
            ("speedup<1.0@plain", "no cell there has a value of speedup"),
            ("speedup.low<1.0", "no cell there has a value of speedup.low"),
            ("end_to_end_speedup<1", "no cell there has a value of end_to_end_speedup"),
        ],
    )
    def test_what_was_not_checked_is_said(self, text: str, reason: str) -> None:
        with pytest.raises(UsageError) as caught:
            failures([bench("speedup<1.0"), bench(text)], BENCH)
        assert (caught.value.message, caught.value.reason) == (f"{text} was not checked", reason)

    def test_an_empty_bench_checks_nothing(self) -> None:
        with pytest.raises(UsageError, match="nothing was measured"):
            failures([bench("speedup<1")], bench_with())

    @given(st.floats(0, 10), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
    def test_a_sentence_is_true_as_it_reads(self, value: float, sign: str) -> None:
        condition = bench(f"speedup{sign}1.0")
        for sentence in failures([condition], bench_with(cell("specx", 1024, value))):
            shown = float(sentence.split()[1])
            assert condition.holds(shown) or abs(value - 1) < 1e-14


class TestCompare:
    ROWS = (("specx · 2,048", -7.52), ("specx · 8,192", 3.0))

    def test_rows(self) -> None:
        assert change_failures([change("change<-5%")], self.ROWS) == [
            "change -7.52% < -5% at specx · 2,048"
        ]
        assert len(change_failures([change("change!=0%")], self.ROWS)) == 2
