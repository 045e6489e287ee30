"""Published rows beside the measured ones, as a table and as the lines that it needs.

In: a ``specx.bench/1`` object with ``paper``. Out: short strings. It does not know the screen or
where the published numbers come from; a bench without them gives an empty table and no lines.
"""

from specx.bench.record import Object
from specx.bench.render.model import Align, TableModel
from specx.bench.render.numbers import (
    NOTHING,
    baseline_name,
    number,
    plain_text,
    preset_names,
    times,
)

_MARK = " ?"  # beside a published number that cannot be right


_PAIRS = (
    "tok/step\nhere",
    "tok/step\npaper",
    "overall\ntok/s here",
    "overall\ntok/s paper",
    "overall\nspeed-up",
    "speed-up\npaper",
)


def paper_table(bench: Object) -> TableModel:
    """Ours and theirs in pairs of columns: tokens per step, end-to-end rate, speed-up."""
    cells = {(cell["preset"], cell["mode"], cell["length"]): cell for cell in bench["cells"]}
    rows = [row for row in bench.get("paper", []) if _place(row) in cells]
    several = len(preset_names(bench)) > 1
    header = ("prompt", "mode", *_PAIRS)
    numbers: list[Align] = ["right"] * len(_PAIRS)
    align: tuple[Align, ...] = ("right", "left", *numbers)
    lengths = [(row["preset"], row["length"]) for row in rows]
    return TableModel(
        title="Beside the paper",
        header=("preset", *header) if several else header,
        rows=[_row(cells[_place(row)]["summary"], row, several) for row in rows],
        align=("left", *align) if several else align,
        group_breaks=frozenset(r for r in range(1, len(rows)) if lengths[r] != lengths[r - 1]),
    )


def paper_lines(bench: Object) -> list[str]:
    """Whose the published numbers are, how they were counted, and which of them are doubtful."""
    rows: list[Object] = bench.get("paper", [])
    if not rows:
        return []
    lines = [
        f"paper = {plain_text(source)}, {plain_text(device)}, {plain_text(data)}"
        for source, device, data in dict.fromkeys(
            (row["source"], row["device"], row["data"]) for row in rows
        )
    ]
    lines.append(
        "paper's tok/s = new tokens / total time, the prefill included: compare it with overall, "
        "not with decode; its speed-up is that rate over its own plain decoding on its device"
    )
    if not all(row["same_data"] for row in rows):
        lines.append(f"the texts here are others: {plain_text(bench['plan']['data']['name'])}")
    new = bench["plan"]["max_tokens"]
    lines.append(f"overall speed-up is over {baseline_name(bench) or NOTHING}; {new:,} new tokens")
    lines += _whole(rows)
    reasons = dict.fromkeys(row["reason"] for row in rows if row["suspect"])
    return lines + [f"{_MARK.strip()} = suspect: {plain_text(reason)}" for reason in reasons]


def _whole(rows: list[Object]) -> list[str]:
    """Rows that have no prompt length, and so no row in the table."""
    return [
        f"paper, {plain_text(row['data'])} without a prompt length, {plain_text(row['mode'])}: "
        f"{row['tokens_per_step']:.2f} tok/step, {number(row['tok_s'])} tok/s"
        for row in rows
        if row["length"] is None
    ]


def _place(row: Object) -> tuple[str, str, int | None]:
    return row["preset"], row["mode"], row["length"]


def _row(summary: Object, row: Object, several: bool) -> tuple[str, ...]:
    mark = _MARK if row["suspect"] else ""
    per_step, rate = summary["tokens_per_step"], summary["end_to_end_tok_s"]
    speedup, theirs = summary["end_to_end_speedup"], row["speedup_vs_ar"]
    cells = (
        f"{row['length']:,}",
        plain_text(row["mode"], 40),
        f"{per_step['value']:.2f}" if per_step else NOTHING,
        f"{row['tokens_per_step']:.2f}{mark}",
        number(rate["median"]) if rate else NOTHING,
        f"{number(row['tok_s'])}{mark}",
        times(speedup["value"]) if speedup else NOTHING,
        f"{times(theirs)}{mark}" if theirs else NOTHING,
    )
    return (plain_text(row["preset"], 40), *cells) if several else cells
