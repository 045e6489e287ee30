"""Two saved benches from file names to exit code.

Goes in: two paths, a metric, conditions. Comes out: a table or a JSON object in the sink, an exit
code. It does not know how benches are joined.
"""

from dataclasses import dataclass

from specx.cli.compare.words import row_label, saved_report
from specx.cli.console import Screen
from specx.cli.errors import CONDITION_HELD
from specx.cli.options import Format
from specx.cli.output_file import open_sink
from specx.cli.result_json import dumps
from specx.errors import UsageError


@dataclass(frozen=True, slots=True)
class Saved:
    """What to compare: ``before`` is A, ``after`` is B."""

    before: str
    after: str
    metric: str
    conditions: tuple[str, ...]


def run_saved(saved: Saved, screen: Screen, *, output: Format, out: str | None, force: bool) -> int:
    """Join, show, judge; ``CONDITION_HELD`` if a condition did. Raises ``SpecxError``."""
    from specx.bench.conditions import (
        COMPARE_METRICS,
        change_failures,
        change_unmatched,
        parse_condition,
    )
    from specx.bench.saved import comparison_object, join, read_bench

    conditions = [parse_condition(text, COMPARE_METRICS) for text in saved.conditions]
    paths = (saved.before, saved.after)
    with open_sink(out, force=force, inputs=list(paths)) as sink:
        before, after = (read_bench(path) for path in paths)
        found = comparison_object(join(before, after, saved.metric), paths)
        if output != "text":
            sink.write(dumps(found, output))
        elif out is None and sink.is_terminal:
            saved_report(found).draw(screen.color)
        else:
            sink.write(saved_report(found).markdown())
    rows = [(row_label(row), row["change_percent"]) for row in found["rows"]]
    for sentence in change_unmatched(conditions, rows):
        raise UsageError(sentence)
    held = change_failures(conditions, rows)
    for sentence in held:
        screen.warn(f"--fail-if: {sentence}")
    return CONDITION_HELD if held else 0
