"""How ``linear`` cuts a product of a few rows: by shape, from what was measured on an H100.

The rules, for 16-bit weights on Hopper (132 multiprocessors, 3 TB/s, 227 KB of shared memory
each); other GPUs keep cuBLAS, for nothing was measured there:

* One row needs no tensor core: every warp streams weight rows through registers.
* A tile of ``outputs`` weight rows reads all of x once, through an L2 cache that gives about twice
  the memory's bandwidth. At 64 rows of x a tile must therefore be 128 outputs tall.
* Memory is kept busy by 32 … 128 KB in flight a multiprocessor. Tiles under 114 KB share it with a
  second tile, of this product or of the next one, which is launched while this one drains.
* Tiles that leave multiprocessors idle are cut along the inputs until about 128 programs run.
* Matrices of a few megabytes are over before a pipeline is full: their programs load all they need
  at once, before they wait for x.
"""

from dataclasses import dataclass

MAX_ROWS = 64
_ENOUGH_PROGRAMS = 96  # splitting further costs more than it brings
_LEAST_INPUTS = 1024  # that a share of a sum should have


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles on the tensor cores: weight rows and columns a tile, stages in flight, shared sums."""

    outputs: int
    inputs: int
    stages: int
    warps: int
    splits: int = 1
    ahead_lines: int = 4  # L2 lines a weight row that are fetched before x is there; a power of 2


@dataclass(frozen=True, slots=True)
class OneRow:
    """Weight rows and columns that a program multiplies at a time with one row of x."""

    outputs: int
    inputs: int
    warps: int


@dataclass(frozen=True, slots=True)
class Short:
    """A few weight rows with ``groups`` × ``inputs`` columns at once, up to 16 rows of x."""

    outputs: int
    groups: int
    inputs: int
    warps: int


Cut = Tiling | OneRow | Short


def choose(rows: int, outputs: int, inputs: int, *, gated: bool = False) -> Cut | None:
    """The cut of a product [rows, inputs] · [outputs, inputs]ᵀ; ``None``: better by cuBLAS.

    ``gated``: the outputs are halves that a program computes in pairs, so a tile holds twice its
    outputs.
    """
    if rows > MAX_ROWS or inputs % 64 or outputs % 16:
        return None
    is_small = inputs <= 1024
    if rows == 1:
        return _one_row(outputs, inputs, gated)
    if gated:
        return _gated(rows, inputs, is_small)
    if is_small:
        return _small(rows, outputs, inputs)
    return _large(rows, outputs, inputs)


def _one_row(outputs: int, inputs: int, gated: bool) -> OneRow:
    if inputs >= 2048:
        return OneRow(1, 2048, 4) if gated else OneRow(4, 2048, 8)
    if outputs >= 16384:
        return OneRow(4, 256, 2)
    return OneRow(4, 512, 4) if gated or inputs <= 512 else OneRow(4, 1024, 4)


def _gated(rows: int, inputs: int, is_small: bool) -> Tiling:
    if rows > 16:
        return Tiling(64, 64, 6, 4, ahead_lines=8)
    if is_small:
        return Tiling(64, _width(inputs), 4, 4, ahead_lines=8)
    return Tiling(64, _width(inputs), 3, 8, ahead_lines=2)


def _small(rows: int, outputs: int, inputs: int) -> Tiling | Short:
    if outputs >= 16384:
        return Tiling(64, _width(inputs), 4 if rows <= 16 else 3, 4)
    if rows > 16:
        return Tiling(64, 64, 6, 4, ahead_lines=8)
    return Short(16, 4, 128, 4) if inputs <= 512 else Short(32, 4, 256, 4)


def _large(rows: int, outputs: int, inputs: int) -> Tiling | None:
    width = _width(inputs)
    if rows > 16 and outputs >= 8192:
        return Tiling(128, width, 3, 8)
    if rows <= 32:
        return Tiling(64, width, 6, 4, _splits(outputs, inputs, 64))
    if outputs < 4608 and inputs < 8192:
        return None
    return Tiling(64, width, 4, 4, _splits(outputs, inputs, 64))


def _width(inputs: int) -> int:
    return 128 if inputs % 128 == 0 else 64


def _splits(outputs: int, inputs: int, tall: int) -> int:
    tiles, splits = -(-outputs // tall), 1
    while (
        tiles * splits < _ENOUGH_PROGRAMS
        and inputs % (2 * splits * _width(inputs)) == 0
        and inputs // (2 * splits) >= _LEAST_INPUTS
    ):
        splits *= 2
    return splits
