"""Hybrid tree attention against float64, in Triton's interpreter or on a GPU."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from specx.core.kernels import tree_attention as tree
from specx.core.kernels.types import TreeTiling
from tests.core import reference

#: The interpreter computes what is thrown away, too.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
#: Unit roundoff of the weights and of the output; keys and values are of size 1.
CLOSE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
HALVES = [torch.float16, torch.bfloat16]
NAN = float("nan")
SMALL = TreeTiling(16, 16, 4, 2, 1, descriptors=False)


class Case:
    """Random inputs of one call. Whatever must not be read is NaN."""

    def __init__(
        self,
        heads: tuple[int, int] = (4, 2),
        nodes: int = 5,
        prefix: int = 37,
        width: int = 64,
        dtype: torch.dtype = torch.float16,
        *,
        staged: int | None = None,
        room: int = 11,
        seed: int = 0,
    ) -> None:
        noise = torch.Generator(DEVICE).manual_seed(seed)
        self.prefix, self.room = prefix, room
        self.staged = nodes if staged is None else staged
        end = prefix + self.staged

        def random(*shape: int) -> Tensor:
            values = torch.empty(shape, dtype=dtype, device=DEVICE)
            return values.normal_(generator=noise)

        # As a model makes them: the heads of one row lie behind each other.
        self.query = random(nodes, heads[0], width).transpose(0, 1)
        # One layer of two, and rows that a longer text would use.
        self.caches = random(2, 2, heads[1], end + room, width)
        self.caches[:, :, :, end:] = NAN
        self.keys, self.values = self.caches[0, 1], self.caches[1, 1]
        self.length = torch.tensor([prefix], device=DEVICE)
        parents = [-1, *(int(torch.randint(0, i, ()).item()) for i in range(1, self.staged))]
        self.mask = ancestors(parents)[self.staged - nodes :].to(DEVICE)
        self.scale = width**-0.5

    def expected(self) -> Tensor:
        nodes, end = self.mask.shape[0], self.prefix + self.staged
        sees = torch.ones(nodes, self.prefix, dtype=torch.bool, device=DEVICE)
        sees = torch.cat([sees, self.mask], dim=1)
        keys, values = self.keys[:, :end], self.values[:, :end]
        out, _ = reference.attention(self.query, keys, values, sees, self.scale)
        return out.transpose(0, 1)

    def check(self, chosen: TreeTiling | None = None, splits: int | None = None) -> None:
        inputs = (self.query, self.keys, self.values, self.length, self.mask, self.scale)
        if chosen is None and splits is None:
            out = tree.tree_attention(*inputs)
        else:
            out = tree.launch(*inputs, chosen or SMALL, splits)
        expected, bound = self.expected(), CLOSE[self.query.dtype]
        assert out.dtype == self.query.dtype
        assert out.is_contiguous()
        torch.testing.assert_close(out.double(), expected, atol=bound, rtol=bound)


def ancestors(parents: Sequence[int]) -> Tensor:
    """Reflexive ancestor relation [n, n] bool; a parent comes before its children."""
    sees = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return sees


@pytest.mark.parametrize(
    ("heads", "nodes"), [((3, 3), 1), ((3, 3), 17), ((8, 2), 3), ((7, 1), 5), ((16, 2), 3)], ids=str
)
def test_groups_of_query_heads(heads: tuple[int, int], nodes: int) -> None:
    Case(heads, nodes, prefix=70).check()


@pytest.mark.parametrize("prefix", [0, 1, 16, 31, 300])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_every_split_of_every_prefix(prefix: int, splits: int) -> None:
    Case((2, 1), prefix=prefix).check(SMALL, splits)


def test_more_splits_than_tiles() -> None:
    """Some see nothing."""
    Case((2, 1), prefix=31).check(SMALL, 40)


@pytest.mark.parametrize(("rows", "keys"), [(16, 64), (64, 16), (64, 128), (128, 32), (128, 128)])
@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
def test_tiles(rows: int, keys: int, descriptors: bool) -> None:
    """Whole tiles, a remainder of the prefix in several masked tiles, two staged ones."""
    case = Case((2, 1), nodes=33, prefix=2 * keys + 100, staged=70)
    case.check(TreeTiling(rows, keys, 4, 2, 1, descriptors), 3)


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("width", [8, 64, 96, 128, 256])
def test_widths_and_dtypes(width: int, dtype: torch.dtype) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies the bits of bfloat16")
    Case((4, 1), nodes=3, prefix=75, width=width, dtype=dtype).check()


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
def test_a_padded_width(descriptors: bool) -> None:
    Case(width=24, prefix=50).check(TreeTiling(16, 16, 4, 2, 1, descriptors), 2)


@pytest.mark.parametrize(("nodes", "staged"), [(1, 9), (10, 100)])
def test_a_level_sees_staged_rows_of_levels_before_it(nodes: int, staged: int) -> None:
    Case((2, 1), nodes, staged=staged, prefix=20).check(SMALL, 2)


def test_rows_that_see_nothing_in_a_tile() -> None:
    """A staged tile before a row's own, without a prefix: nothing to take a maximum of."""
    case = Case((2, 2), nodes=40, prefix=0)
    case.mask = torch.eye(40, dtype=torch.bool, device=DEVICE)
    for splits in (1, 3):
        case.check(SMALL, splits)


def test_a_cache_without_spare_rows() -> None:
    Case(prefix=61, nodes=3, room=0).check()


def test_the_length_is_read_on_the_device() -> None:
    """The same tensors at a shorter prefix: what lay behind it is staged or unread."""
    case = Case(prefix=50, nodes=4)
    case.prefix = 33
    case.length.fill_(33)
    case.check(SMALL, 2)


def test_a_query_of_any_strides_and_a_mask_of_wider_rows() -> None:
    case = Case(nodes=6, prefix=20)
    wide = torch.zeros(6, 13, dtype=torch.bool, device=DEVICE)
    wide[:, :6] = case.mask
    case.mask = wide[:, :6]
    case.check(SMALL, 2)
    case.query = case.query.contiguous()
    case.check(SMALL, 2)


def test_scores_that_differ_by_thousands_stay_finite() -> None:
    case = Case(prefix=40, dtype=torch.float32)
    case.query *= 1000
    inputs = (case.query, case.keys, case.values, case.length, case.mask, case.scale)
    out = tree.launch(*inputs, SMALL, 3)
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-3, rtol=1e-3)


@settings(max_examples=10)
@given(
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 5),
    nodes=st.integers(1, 9),
    before=st.integers(0, 20),
    prefix=st.integers(0, 90),
    splits=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_shape(
    kv_heads: int, group: int, nodes: int, before: int, prefix: int, splits: int, seed: int
) -> None:
    heads = kv_heads * group, kv_heads
    case = Case(heads, nodes, prefix, 16, torch.float32, staged=nodes + before, seed=seed)
    case.check(SMALL, splits)


def test_tilings_fit_shared_memory() -> None:
    """227 KB a program on Hopper; on what came before, the 99 KB of the smallest."""
    for capability, most in (((9, 0), 227 * 1024), ((8, 6), 99 * 1024)):
        for dtype in CLOSE:
            for width in (64, 96, 128, 256):
                for rows in (1, 16, 17, 64, 65, 448):
                    chosen = tree.tiling(rows, width, dtype, capability)
                    block = 2 ** math.ceil(math.log2(width))
                    # Only a product of warp groups still reads its tile when the next is loaded.
                    buffers = chosen.stages if chosen.rows >= 64 else chosen.stages - 1
                    tiles = chosen.rows + 2 * chosen.keys * buffers
                    used = tiles * block * dtype.itemsize + 1024
                    assert used * chosen.resident <= most + 1024, (capability, rows, width)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("prefix", [0, 1, 31, 1000, 16384, 131072])
@pytest.mark.parametrize("nodes", [1, 3, 17, 50, 64, 130])
def test_real_shapes(nodes: int, prefix: int, dtype: torch.dtype) -> None:
    shapes = [((4, 1), 128)]
    if prefix <= 16384:
        shapes += [((32, 8), 128), ((12, 12), 64), ((14, 2), 64), ((8, 1), 256), ((8, 2), 96)]
    for heads, width in shapes:
        Case(heads, nodes, prefix, width, dtype).check()


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("nodes", [1, 50])
def test_real_shapes_in_float32(nodes: int) -> None:
    for prefix in (0, 1000, 16384):
        Case((8, 2), nodes, prefix, 128, torch.float32).check()


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(32, 32), (32, 8)], ids=str)
@pytest.mark.parametrize("nodes", [1, 64])
def test_one_graph_serves_every_length_and_repeats_to_the_last_bit(
    nodes: int, heads: tuple[int, int]
) -> None:
    case = Case(heads, nodes, 5000, 128)
    inputs = (case.query, case.keys, case.values, case.length, case.mask, case.scale)
    tree.tree_attention(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):  # launches that overlap
            out = tree.tree_attention(*inputs)
    for prefix in (5000, 4097, 640, 1, 0):
        case.prefix = prefix
        case.length.fill_(prefix)
        graph.replay()
        first = out.clone()
        bound = CLOSE[torch.float16]
        torch.testing.assert_close(first.double(), case.expected(), atol=bound, rtol=bound)
        for _ in range(20):
            graph.replay()
            assert torch.equal(out, first)
