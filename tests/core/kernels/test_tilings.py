"""The rules by which products are cut: what they must never give, whatever the shape."""

import pytest

from specx.core.kernels.tilings import MAX_ROWS, OneRow, Short, Tiling, choose

#: qkv, o, gate and up, down, head of some models: Vicuna, Llama 3.1, Qwen2 0.5B, a small draft.
SHAPES = [
    *[(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32000, 4096)],
    *[(6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)],
    *[(1152, 896), (896, 896), (9728, 896), (896, 4864), (151936, 896)],
    *[(2304, 768), (768, 768), (6144, 768), (768, 3072), (1024, 512), (512, 1280), (8192, 512)],
]
SHARED_MEMORY = 227 * 1024  # bytes that a program can have on Hopper


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 10, 16, 17, 32, 33, 50, 64])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_cut_divides_its_shape_and_fits_the_hardware(
    outputs: int, inputs: int, rows: int, gated: bool
) -> None:
    cut = choose(rows, outputs, inputs, gated=gated)
    if cut is None:
        return
    assert _is_power_of_2(cut.outputs)
    assert _is_power_of_2(cut.inputs)
    assert isinstance(cut, OneRow) == (rows == 1)
    tall = cut.outputs * (2 if gated else 1)
    if isinstance(cut, Tiling):
        assert inputs % (cut.inputs * cut.splits) == 0
        assert not (gated and cut.splits > 1)
        assert _is_power_of_2(cut.ahead_lines)
        wide = max(16, 1 << (rows - 1).bit_length())
        assert (tall + wide) * cut.inputs * 2 * cut.stages <= SHARED_MEMORY
    if isinstance(cut, Short):
        assert rows <= 16
        assert _is_power_of_2(cut.groups)
        assert (tall + 16) * cut.groups * cut.inputs * 2 <= SHARED_MEMORY


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(MAX_ROWS + 1, 4096, 4096), (2048, 4096, 4096), (8, 4096, 1000), (8, 4090, 4096)],
)
def test_other_products_are_left_to_cublas(rows: int, outputs: int, inputs: int) -> None:
    assert choose(rows, outputs, inputs) is None


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
