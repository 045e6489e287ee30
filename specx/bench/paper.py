"""Published results beside our own: which rows of a preset's paper belong to a bench.

In: presets that name such rows, and a ``specx.bench/1`` object. Out: the object with those rows
added under ``paper``. It does not know tables or the screen, and it judges nothing: devices, texts
and clocks differ, and every row says so.
"""

import re
from collections.abc import Iterable, Mapping

from specx.bench.record import Object
from specx.errors import UsageError
from specx.preset.preset import Preset, available_presets, load_preset
from specx.preset.sections import PaperRow

#: A mode of the paper → ours that do the same; ``standard`` has its attention kernels as well.
_MODES = {"plain": ("plain",), "spec": ("spec", "standard"), "specx": ("specx",)}


def check_paper(presets: Iterable[Preset]) -> None:
    """Raise ``UsageError`` unless every preset names rows of a paper."""
    for preset in presets:
        if not preset.paper:
            named = [entry.name for entry in available_presets() if not entry.problem]
            having = [name for name in named if load_preset(name).paper]
            raise UsageError(
                f"preset {preset.name} names no rows of a paper",
                reason="--paper sets published numbers of the same pair beside the measured ones",
                hints=[f"these do: {', '.join(having)}"],
            )


def with_paper(bench: Object, presets: Mapping[str, Preset]) -> Object:
    """``bench`` with the rows that ``presets`` (by name in the plan) name for its cells.

    A row belongs to the cells of its mode and length, and rows without a length to the whole
    bench. Where the paper has the bench's texts, only those rows are taken, else its first data
    set's, and ``same_data`` is false.
    """
    rows: list[Object] = []
    for name, preset in presets.items():
        chosen, is_same = _of_data(preset.paper, bench["plan"]["data"]["name"])
        rows += [_as_object(name, None, row, is_same) for row in chosen if not row.prompt_tokens]
        for cell in bench["cells"]:
            if cell["preset"] == name:
                rows += [
                    _as_object(name, cell, row, is_same)
                    for row in chosen
                    if row.prompt_tokens == cell["length"] and cell["mode"] in _MODES[row.mode]
                ]
    return bench | {"paper": rows}


def _of_data(rows: tuple[PaperRow, ...], name: str) -> tuple[list[PaperRow], bool]:
    """The rows over the texts called ``name``, however that is spelt; True if there are any."""
    folded = re.sub(r"[^a-z0-9]", "", name.lower())
    same = [row for row in rows if row.data in folded]
    return (same, True) if same else ([row for row in rows if row.data == rows[0].data], False)


def _as_object(preset: str, cell: Object | None, row: PaperRow, is_same: bool) -> Object:
    return {
        "preset": preset,
        "mode": cell["mode"] if cell else row.mode,
        "length": row.prompt_tokens,
        "source": row.source,
        "device": row.device,
        "data": row.data,
        "same_data": is_same,
        "tokens_per_step": row.tokens_per_step,
        "tok_s": row.tok_s,
        "speedup_vs_ar": row.speedup_vs_ar,
        "suspect": row.suspect,
        "reason": row.reason,
    }
