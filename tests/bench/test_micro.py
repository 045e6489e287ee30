"""Pieces of a step: every piece is timed, starts where a prefill ends, and has the right floor."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import torch
from specx.core.drafts.device import DeviceDrafter

import specx
from specx.bench import micro, rig
from specx.bench import roofline as floor
from specx.bench.micro import Limits, Measured, Piece, measure, micro_object
from specx.bench.render import micro as views
from specx.bench.rig import Rig
from specx.core.kernels.reference import StaticKernels
from specx.errors import ContextError
from specx.preset.preset import load_preset
from tests.helpers import PairDirs, preset_for

BANDWIDTH, RATE = 2e9, 5e9
TICK_S = 0.001
LENGTHS = (40, 200)
STEP = ["step", "plain step", *["verify"] * 5, *["tree attention"] * 2]
DRAFT = ["draft of one level", "draft", "draft level"]
PREFILL = ["prefill target", "prefill draft", "prefill"]


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of round figures."""
    monkeypatch.setattr(floor, "bandwidth", lambda *_, **__: BANDWIDTH)
    monkeypatch.setattr(floor, "matmul_rate", lambda *_, **__: RATE)


@pytest.fixture(scope="module")
def engine(tiny_pair: PairDirs) -> specx.Engine:
    return specx.load(preset_for(tiny_pair, {"retrieval.every_steps": 2}))


@pytest.fixture(params=["host", "device"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lengths that the host knows, as on a CPU, or the device, as on a GPU."""
    if request.param == "device":
        monkeypatch.setattr(rig, "choose_kernels", lambda *_: (StaticKernels(), ""))
    return str(request.param)


def ticking() -> Callable[[], float]:
    """A clock on which every interval takes a tick."""
    ticks = itertools.count()
    return lambda: next(ticks) * TICK_S


@pytest.fixture(scope="module")
def known() -> dict[str, Measured]:
    """What has been measured, by way."""
    return {}


@pytest.fixture
def measured(engine: specx.Engine, way: str, known: dict[str, Measured]) -> Measured:
    """Every piece at all lengths: measured once in each way, read only."""
    if way not in known:
        known[way] = measure(engine, LENGTHS, clock=ticking())
    return known[way]


def schema() -> jsonschema.Draft202012Validator:
    path = files("specx") / "schemas" / "micro.schema.json"
    found = json.loads(path.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_every_length_has_every_piece(measured: Measured, way: str) -> None:
    for length in LENGTHS:
        plain = [each for each in measured.pieces if each.length == length and not each.variant]
        drafts = DRAFT if way == "device" else DRAFT[1:]
        assert sorted(each.name for each in plain) == sorted(STEP + drafts + PREFILL)
        assert [each.nodes for each in plain if each.name == "verify"] == [1, 8, 16, 32, 64]
    varied = [each for each in measured.pieces if each.variant]
    assert {(each.length, each.variant) for each in varied} <= {(200, "masked")}
    assert [each.nodes for each in varied] == ([1, 64] if way == "host" else [])
    assert [each.length for each in measured.memory] == list(LENGTHS)
    assert not measured.skipped


def test_samples_are_seconds_of_one_piece(
    measured: Measured, engine: specx.Engine, way: str
) -> None:
    layers = engine.target.shape.layers
    for each in measured.pieces:
        if each.name.startswith("prefill") or (each.name == "draft level" and way == "host"):
            assert min(each.samples_s) > 0  # by the real clock
            continue
        assert len(each.samples_s) == 3
        parts = layers if each.name == "tree attention" else 1
        expected = 0.0 if each.name == "draft level" else TICK_S / each.repeats / parts
        assert each.samples_s == pytest.approx([expected] * 3), each.name


def test_floors_are_bytes_over_bandwidth(
    measured: Measured, engine: specx.Engine, way: str
) -> None:
    target, draft = engine.target, engine.draft
    assert draft is not None
    row = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, float32
    draft_row = 2 * 1 * 1 * 16 * 4
    budget = engine.preset.retrieval.budget_tokens
    for each in measured.pieces:
        level = draft.weights_bytes + draft_row * min(each.length, budget)
        forward = target.weights_bytes + row * each.length
        expected: dict[str, float | None] = {
            "tree attention": row / 2 * each.length / BANDWIDTH,
            "draft level": level / BANDWIDTH,
            "draft of one level": level / BANDWIDTH,
            "draft": 4 * level / BANDWIDTH if way == "device" else None,
            "prefill draft": None,
        }
        if each.name in ("prefill", "prefill target"):
            flop = floor.cost_of(target).prefill_flop(each.length)
            expected[each.name] = flop / RATE
        assert each.floor_s == pytest.approx(expected.get(each.name, forward / BANDWIDTH))
        if each.floor_s is not None:
            assert each.ratio == pytest.approx(each.median_s / each.floor_s)
    for limits in measured.limits:
        embedding = 512 * 64 * 4
        assert limits.forward_bytes - limits.least_forward_bytes == embedding


def test_the_object_fits_its_schema(engine: specx.Engine, measured: Measured) -> None:
    found = micro_object(engine, measured, elapsed_s=1.5, stand_in=False)
    schema().validate(json.loads(json.dumps(found)))
    assert found["plan"]["levels"] == 4
    assert found["plan"]["parts"]["drafter"] == "lm"
    (memory, _) = found["memory"]
    assert memory["rest"] == memory["peak"] - sum(
        memory[owner] for owner in ("weights", "kv_target", "kv_draft")
    )
    broken = {**found, "surprise": 1}
    assert not schema().is_valid(broken)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_task_starts_behind_the_prompt(engine: specx.Engine, way: str, length: int) -> None:
    made = Rig(engine, length)
    with torch.inference_mode():
        made.prefill(made.tokens())
        made.fill()
        for task in [*made.tasks(), *made.variants()[0]]:
            for _ in range(2):
                task.prepare()
                starts = int(made.target.progress.length)
                first = starts - length  # what one untimed step or draft has committed
                has_begun = task.name in ("step", "draft", "draft of one level")
                assert (first > 0) == (has_begun and (way == "device" or task.name == "step"))
                for _ in range(task.repeats or 1):
                    task.work()
                assert int(made.target.progress.length) <= made.target.cache.capacity
                assert made.target.cache.staged == 0


def test_drafts_have_as_many_levels_as_they_are_named_after(engine: specx.Engine, way: str) -> None:
    made = Rig(engine, 200)
    forwards: list[int] = []
    assert engine.draft is not None
    handle = engine.draft.decoder.register_forward_pre_hook(lambda *_: forwards.append(1))
    with torch.inference_mode():
        made.prefill(made.tokens())
        made.fill()
        tasks = {task.name: task for task in made.tasks() if task.name.startswith("draft")}
        for name, levels in {"draft of one level": 1, "draft": 4}.items():
            if name not in tasks:
                assert way == "host"
                continue
            task = tasks[name]
            task.prepare()
            forwards.clear()
            task.work()
            assert len(forwards) == levels if way == "device" else 1 <= len(forwards) <= levels
    handle.remove()
    assert (made.told_level_s is None) == (way == "device")


def test_the_engine_is_as_it_was(engine: specx.Engine, way: str) -> None:
    before = engine.generate("the harbour was quiet", max_tokens=8, ignore_eos=True)
    measure(engine, (40,), clock=ticking())
    after = engine.generate("the harbour was quiet", max_tokens=8, ignore_eos=True)
    assert after.tokens == before.tokens


def test_without_a_draft_there_are_plain_pieces(tiny_pair: PairDirs) -> None:
    overrides = {"draft.kind": "none", "draft.repo": None, "mode": "plain"}
    engine = specx.load(preset_for(tiny_pair, overrides))
    found = measure(engine, (40,), clock=ticking())
    names = {each.name for each in found.pieces}
    assert names == {"plain step", "verify", "tree attention", "prefill target"}
    assert found.memory[0].kv_draft == 0
    schema().validate(
        json.loads(json.dumps(micro_object(engine, found, elapsed_s=1.0, stand_in=False)))
    )


def test_a_length_without_memory_is_left_out(
    engine: specx.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(engine: specx.Engine, length: int) -> Rig:
        if length > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return Rig(engine, length)

    monkeypatch.setattr(micro, "Rig", small)
    found = measure(engine, LENGTHS, clock=ticking())
    assert {each.length for each in found.pieces} == {40}
    (skipped,) = found.skipped
    assert (skipped.length, skipped.what) == (200, "all pieces")
    assert "9 GiB" in skipped.reason
    assert "\n" not in skipped.reason
    object_ = micro_object(engine, found, elapsed_s=1.0, stand_in=False)
    assert any("9 GiB" in line for line in views.notes(object_))


def test_a_variant_without_memory_costs_nothing_else(
    engine: specx.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = Rig.variants

    def variants(self: Rig) -> tuple[list[rig.Task], dict[str, str]]:
        tasks, _ = made(self)
        return [replace(task, work=none_left) for task in tasks], {"flash-attn": "not installed"}

    monkeypatch.setattr(Rig, "variants", variants)
    found = measure(engine, (40,), clock=ticking())
    assert not [each for each in found.pieces if each.variant]
    assert [each.what for each in found.skipped] == ["flash-attn", "masked", "masked"]
    assert {each.name for each in found.pieces} >= {"step", "prefill"}


def test_other_errors_are_not_hidden(engine: specx.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(micro, "Rig", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        measure(engine, (40,))


def test_a_length_beyond_the_context_is_refused() -> None:
    with pytest.raises(ContextError, match="32,769"):
        micro.prepare("pocket", {}, (32769,), stand_in=False)
    assert micro.prepare("pocket", {}, (32768,), stand_in=False) == load_preset("pocket")


def test_a_stand_in_is_labelled_everywhere(engine: specx.Engine) -> None:
    found = micro_object(
        engine, measure(engine, (40,), clock=ticking()), elapsed_s=2.0, stand_in=True
    )
    schema().validate(json.loads(json.dumps(found)))
    text = views.to_markdown(found)
    assert views.pieces_table(found).title == "Pieces of a step with stand-in weights"
    assert views.memory_table(found).title == "Memory with stand-in weights"
    assert "**Stand-in weights: tiny has the shapes of" in text
    assert text.count("stand-in weights") >= 3


def piece(**changes: Any) -> Piece:
    return replace(Piece("verify", 1024, (0.01, 0.012, 0.011), nodes=64, repeats=2), **changes)


def test_a_piece_counts_its_median() -> None:
    limits = Limits(1024, 4 * 10**9, 3 * 10**9, 10, 2e12, 1e9)
    found = piece(floor_bytes=limits.forward_bytes).within(limits)
    assert found.median_s == 0.011
    assert found.floor_s == pytest.approx(0.002)
    assert found.ratio == pytest.approx(5.5)
    assert found.as_object()["ratio"] == found.ratio
    assert limits.as_object()["forward_s"] == pytest.approx(0.002)
    unlimited = piece().within(limits)
    assert (unlimited.floor_s, unlimited.ratio) == (None, None)


def test_rows_are_in_order_and_in_words(engine: specx.Engine) -> None:
    limits = Limits(1024, 4 * 10**9, 3 * 10**9, 10, 2e12, 1e9)
    pieces = [
        piece(name="prefill", nodes=None, samples_s=(0.5,), first_s=20.0),
        piece(variant="no-graphs", floor_bytes=4 * 10**9, first_s=33.0),
        piece(floor_bytes=4 * 10**9),
        piece(name="tree attention", samples_s=(35e-6,), floor_bytes=46 * 10**6),
        piece(name="step", nodes=51),
        piece(nodes=1),
        piece(length=512, nodes=1),
    ]
    measured = Measured([each.within(limits) for each in pieces], [limits], static=True)
    found = micro_object(engine, measured, elapsed_s=1.0, stand_in=False)
    rows = views.pieces_table(found)
    assert [(row[0], row[1]) for row in rows.rows] == [
        ("512", "verify 1 node"),
        ("1,024", "step, 4 levels, 51 nodes"),
        ("1,024", "verify 1 node"),
        ("1,024", "verify 64 nodes"),
        ("1,024", "verify 64 nodes, no-graphs"),
        ("1,024", "tree attention/layer, 64 nodes"),
        ("1,024", "prefill, 2,048 tok/s"),
    ]
    assert rows.group_breaks == {1}
    assert rows.rows[3][2:] == ("11.0 ms", "9.1 %", "2.00 ms", "5.50x")
    assert rows.rows[5][2:] == ("35.0 µs", "–", "23.0 µs", "1.52x")
    assert rows.rows[6][2:] == ("500 ms", "–", "–", "–")
    assert rows.width() <= 80
    assert views.floor_lines(found) == [
        "floor 1,024: 2.00 ms a forward = 4.00 GB (3.00 without the input embedding) over "
        "2,000 GB/s, prefill on 0.00 TFLOP/s, both measured here"
    ]
    slow = [line for line in views.notes(found) if line.startswith("first call")]
    assert slow == [
        "first call of verify 64 nodes, no-graphs at 1,024: 33.0 s (compiling and setting up)"
    ]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_has_the_same_pieces(way: str, kind: str) -> None:
    """It reads features, and is a row behind the prompt's tokens after every prefill."""
    engine = specx.load(f"pocket-{kind}", overrides={"tree.depth": 3, "tree.nodes": 6})
    made = Rig(engine, 200)
    assert made.parts.drafter == kind
    with torch.inference_mode():
        for _ in range(2):  # the second one in the caches of the first
            made.prefill(made.tokens())
            assert made._full is not None
            assert made._full.length == 199
        made.fill()
        for task in made.tasks():
            for _ in range(2):
                task.prepare()
                if task.name == "draft":
                    drafter = made._drafter
                    if isinstance(drafter, DeviceDrafter):
                        assert drafter._prompt == 200
                    else:  # has read the prompt's first token and one more
                        assert made._full.length == 199 + 2
                for _ in range(task.repeats or 1):
                    task.work()
            assert task.floor_bytes > 0 or (task.name == "draft" and way == "host")


@pytest.mark.parametrize(
    ("drafter", "invented"),
    [
        ("lm", "; keys and values are random numbers"),
        ("eagle3", "; keys, values and the features that the head reads are random numbers"),
    ],
)
def test_what_is_random_is_said(engine: specx.Engine, drafter: str, invented: str) -> None:
    found = micro_object(engine, Measured([], [], static=True), elapsed_s=1.0, stand_in=False)
    found["plan"]["parts"]["drafter"] = drafter
    assert invented in views.to_markdown(found)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_level_of_a_head_reads_the_targets_output_matrix(kind: str) -> None:
    made = Rig(specx.load(f"pocket-{kind}"), 200)
    layer = 512 * 1280 * 3 + 512 * 512 + (512 + 2 * 256) * (512 if kind == "eagle" else 1024)
    joint = 512 * 1024 + 512 if kind == "eagle" else 0  # EAGLE-3 merges features once a draft
    rows = 200 * 2 * 256
    assert made.level_bytes == 4 * (layer + joint + 512 * 8192 + rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_pieces_add_up() -> None:
    engine = specx.load("pocket", device="cuda", dtype="float16")
    found = measure(engine, (2048,))
    plain = {(each.name, each.nodes): each for each in found.pieces if not each.variant}
    assert {each.variant for each in found.pieces} >= {"", "no-graphs", "original", "sdpa"}
    whole, draft, verify = (
        plain[key].median_s for key in (("step", 33), ("draft", None), ("verify", 32))
    )
    assert draft + 0.5 * verify < whole < 3 * (draft + 2 * verify)
    assert plain["draft level", 10].median_s > 0
    schema().validate(
        json.loads(json.dumps(micro_object(engine, found, elapsed_s=1.0, stand_in=False)))
    )
