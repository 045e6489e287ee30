"""Published results beside our own: which rows of a preset's paper belong to a bench. Nothing is
judged: devices, texts and clocks differ, and every row says so."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from specx.bench.schema import Bench, PublishedRow
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


def presets_of(saved: Bench) -> dict[str, Preset]:
    """The presets of a saved bench, among those that a name reaches: a file may name anything.
    Raises ``UsageError`` where one is gone."""
    planned = saved.plan.presets
    if any(preset.stand_in for preset in planned):
        raise UsageError("--paper does not go with a bench of stand-in weights")
    known = {entry.name: entry.path for entry in available_presets() if not entry.problem}
    missing = [preset.name for preset in planned if preset.name not in known]
    if missing:
        raise UsageError(
            f"there is no preset named {missing[0]!r} any more",
            reason="--paper takes the paper's rows from the presets of the bench",
        )
    return {preset.name: load_preset(str(known[preset.name])) for preset in planned}


def with_paper(bench: Bench, presets: Mapping[str, Preset]) -> Bench:
    """``bench`` with the rows that ``presets`` (by name in the plan) name for its cells. A row
    belongs to the cells of its mode and length, and rows without a length to the whole bench. Where
    the paper has the bench's texts, only those rows are taken, else its first data set's, and
    ``same_data`` is false. Raises ``UsageError`` for a preset without rows."""
    check_paper(presets.values())
    rows: list[PublishedRow] = []
    folded = re.sub(r"[^a-z0-9]", "", bench.plan.data.name.lower())  # however it is spelt
    for name, preset in presets.items():
        same = [row for row in preset.paper if row.data in folded]
        chosen = same or [row for row in preset.paper if row.data == preset.paper[0].data]
        places: list[tuple[str, PaperRow]] = []
        places += [(row.mode, row) for row in chosen if not row.prompt_tokens]
        for cell in (cell for cell in bench.cells if cell.preset == name):
            fitting = (row for row in chosen if row.prompt_tokens == cell.length)
            places += [(cell.mode, row) for row in fitting if cell.mode in _MODES[row.mode]]
        for mode, row in places:
            here: dict[str, Any] = {"preset": name, "mode": mode, "length": row.prompt_tokens}
            rows.append(PublishedRow.of(row, same_data=bool(same), **here))
    return bench.model_copy(update={"paper": rows})
