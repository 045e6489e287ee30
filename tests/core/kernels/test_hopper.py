"""Specialized warps: where they are used, that they compile, and, on a Hopper GPU, what they give.

Triton's interpreter does not run Gluon. Without a GPU the kernels are compiled for one instead, in
a process that does not interpret.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton

from specx.core.kernels import tree_attention as tree
from specx.core.kernels.types import TreeTiling
from tests.core.kernels.test_tree_attention import CLOSE, DEVICE, HALVES, Case

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
ON_HOPPER = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
    reason="needs a Hopper GPU",
)
HAS_GLUON = pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="another Gluon")
SPECIALIZED = TreeTiling(128, 128, 4, 3, 1, specialized=True)
#: Query and key/value heads: groups of 4, 7 and 8.
HEADS = [(8, 2), (14, 2), (8, 1)]
GH100 = (9, 0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [129, 256, 448])
def test_many_rows_on_hopper_get_specialized_warps(rows: int, dtype: torch.dtype) -> None:
    assert tree.tiling(rows, 128, dtype, GH100, gluon=True) == SPECIALIZED


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "capability", "gluon"),
    [
        (64, 128, torch.float16, GH100, True),
        (128, 128, torch.float16, GH100, True),
        (1, 128, torch.float16, GH100, True),
        (256, 64, torch.float16, GH100, True),
        (256, 96, torch.float16, GH100, True),
        (256, 256, torch.bfloat16, GH100, True),
        (256, 128, torch.float32, GH100, True),
        (256, 128, torch.float16, (8, 0), True),
        (256, 128, torch.float16, (10, 0), True),
        (256, 128, torch.bfloat16, (12, 0), True),
        (256, 128, torch.float16, GH100, False),
    ],
)
def test_all_else_keeps_the_common_kernel(
    rows: int, width: int, dtype: torch.dtype, capability: tuple[int, int], gluon: bool
) -> None:
    chosen = tree.tiling(rows, width, dtype, capability, gluon=gluon)
    assert not chosen.specialized
    assert chosen == tree.tiling(rows, width, dtype, capability)


@pytest.mark.parametrize("version", ["3.5.1", "3.7.0", "3.60.0", "4.0.0"])
def test_another_gluon_is_not_trusted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    assert not tree._has_gluon.__wrapped__()


def test_a_triton_without_gluon_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    monkeypatch.delitem(sys.modules, "specx.core.kernels.hopper", raising=False)
    monkeypatch.setitem(sys.modules, "triton.experimental.gluon", None)
    assert not tree._has_gluon.__wrapped__()


@HAS_GLUON
def test_the_known_gluon_is_found() -> None:
    assert tree._has_gluon()


def test_a_cache_must_be_the_rows_of_one_matrix() -> None:
    cache = torch.zeros(3, 40, 128, dtype=torch.float16)
    assert tree._are_rows(cache)
    assert tree._are_rows(cache[:, 5:])
    # As a model makes keys: the heads of one position lie behind each other.
    assert not tree._are_rows(cache.view(40, 3, 128).transpose(0, 1))
    assert not tree._are_rows(torch.zeros(3, 40, 132, dtype=torch.float16)[:, :, :128])


def test_many_rows_without_a_gpu() -> None:
    if DEVICE == "cuda":
        pytest.skip("the interpreter stands for a GPU without Gluon")
    Case((4, 1), nodes=17, prefix=140, width=128).check()


#: Compiles what ``tree.launch`` launches, for a GPU that is not there; a line for each kernel.
_COMPILE = """
import math, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

def compiled(function, grid, *arguments, **options):
    kernel = function.run(*arguments, grid=grid, warmup=True, **options)
    ptx = kernel.asm["ptx"]
    words = [word for word in ("wgmma", "setmaxnreg", "cp.async.bulk.tensor") if word in ptx]
    print(function.__name__, grid, kernel.metadata.shared, ",".join(words))

driver.set_active(Hopper())
from specx.core.kernels import launch, tree_attention as tree
launch.launch_kernel = compiled
launch._starts_early = lambda device: True
for dtype, splits in ((torch.float16, 4), (torch.bfloat16, 1)):
    query = torch.zeros(33, 8, 128, dtype=dtype).transpose(0, 1)
    cache = torch.zeros(2, 2, 500, 128, dtype=dtype)
    mask = torch.eye(33, dtype=torch.bool)
    chosen = tree.tiling(132, 128, dtype, (9, 0), gluon=tree._has_gluon())
    tree.launch(query, *cache, torch.tensor([400]), mask, 0.1, chosen, splits)
"""


@HAS_GLUON
def test_both_halves_compile_for_hopper(tmp_path: Path) -> None:
    """Products of warp groups, registers dealt anew, tiles by the tensor memory accelerator."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", _COMPILE]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["attend", "_combine", "attend"]
    assert "(2, 2, 4)" in lines[0]
    assert "(2, 2, 1)" in lines[2]
    for line in (lines[0], lines[2]):
        shared, words = line.split()[-2:]
        assert words == "wgmma,setmaxnreg,cp.async.bulk.tensor"
        assert int(shared) <= 227 * 1024


@ON_HOPPER
@HAS_GLUON
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("prefix", [0, 1, 31, 127, 128, 129, 5000, 131072])
@pytest.mark.parametrize("nodes", [17, 33, 51, 64])
def test_real_shapes(nodes: int, prefix: int, dtype: torch.dtype) -> None:
    for heads in HEADS:
        case = Case(heads, nodes, prefix, 128, dtype)
        case.check(SPECIALIZED)
        if prefix <= 5000:
            case.check(SPECIALIZED, 1)
            case.check(SPECIALIZED, 5)


@ON_HOPPER
@HAS_GLUON
@pytest.mark.gpu
@pytest.mark.parametrize("prefix", [0, 100, 1000])
def test_more_splits_than_tiles_and_staged_rows_of_levels_before(prefix: int) -> None:
    Case((8, 2), 17, prefix, 128).check(SPECIALIZED, 100)
    Case((8, 2), 20, prefix, 128, staged=300, room=0).check(SPECIALIZED, 3)


@ON_HOPPER
@HAS_GLUON
@pytest.mark.gpu
def test_the_public_entry_dispatches(monkeypatch: pytest.MonkeyPatch) -> None:
    from specx.core.kernels import hopper

    launch, calls = tree.launch_early, []

    def counted(kernel: object, *rest: Any, **options: Any) -> None:
        calls.extend([kernel] if kernel is hopper.attend else [])
        launch(kernel, *rest, **options)

    monkeypatch.setattr(tree, "launch_early", counted)
    Case((32, 8), 64, 1000, 128).check()
    assert len(calls) == 1
    Case((32, 32), 64, 1000, 128).check()  # 64 rows a key/value head
    Case((32, 8), 64, 1000, 64).check()
    assert len(calls) == 1


@ON_HOPPER
@HAS_GLUON
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_one_graph_serves_every_length_and_repeats_to_the_last_bit(
    heads: tuple[int, int], dtype: torch.dtype
) -> None:
    case = Case(heads, 64, 5000, 128, dtype)
    inputs = (case.query, case.keys, case.values, case.length, case.mask, case.scale)
    tree.launch(*inputs, SPECIALIZED)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):  # launches that overlap
            out = tree.launch(*inputs, SPECIALIZED)
    for prefix in (5000, 4097, 640, 129, 128, 127, 1, 0):
        case.prefix = prefix
        case.length.fill_(prefix)
        graph.replay()
        first = out.clone()
        torch.testing.assert_close(
            first.double(), case.expected(), atol=CLOSE[dtype], rtol=CLOSE[dtype]
        )
        for _ in range(20):
            graph.replay()
            assert torch.equal(out, first)
