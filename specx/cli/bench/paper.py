"""``specx bench --paper``: published rows beside the measured ones.

Goes in: the options of ``specx bench``. Comes out: a bench object with the rows, or a
``UsageError`` before anything is measured. It does not know what the rows say.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from specx.errors import UsageError

if TYPE_CHECKING:
    from specx.bench.prepare import Options
    from specx.preset.preset import Preset


def check_paper(options: "Options") -> None:
    """Raise ``UsageError`` where there is nothing to set beside what will be measured."""
    if options.stand_in:
        raise UsageError(
            "--paper does not go with --stand-in",
            reason="a stand-in's text and acceptance are pocket's, not the paper's pair's",
        )
    from specx.bench import paper

    paper.check_paper(_presets(options))


def presets_of(saved: dict[str, Any]) -> "dict[str, Preset]":
    """The presets of a saved bench, among those that a name reaches: a file may name anything.

    Raises ``UsageError`` where one is gone.
    """
    from specx.preset.preset import available_presets, load_preset

    planned = saved["plan"]["presets"]
    if any(each.get("stand_in") for each in planned):
        raise UsageError("--paper does not go with a bench of stand-in weights")
    known = {entry.name: entry.path for entry in available_presets() if not entry.problem}
    missing = [each["name"] for each in planned if each["name"] not in known]
    if missing:
        raise UsageError(
            f"there is no preset named {missing[0]!r} any more",
            reason="--paper takes the paper's rows from the presets of the bench",
        )
    return {each["name"]: load_preset(str(known[each["name"]])) for each in planned}


def with_paper(bench: dict[str, Any], presets: "Mapping[str, Preset]") -> dict[str, Any]:
    """A bench with the rows of its ``presets``. Raises ``UsageError`` where one has none."""
    from specx.bench import paper

    paper.check_paper(presets.values())
    return paper.with_paper(bench, presets)


def _presets(options: "Options") -> "Iterator[Preset]":
    from specx.preset.preset import load_preset

    for name in options.presets:
        yield load_preset(name)
