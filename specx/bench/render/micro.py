"""The pieces of a step as tables and as Markdown.

In: a ``specx.micro/1`` object. Out: rows of short strings, or a whole text. It does not know the
screen, files, or how a value was measured.
"""

import statistics
from collections.abc import Sequence

from specx.bench.record import Object
from specx.bench.render.markdown import escaped, pipe_table
from specx.bench.render.numbers import (
    NOTHING,
    duration,
    hardware,
    milliseconds,
    moment,
    number,
    plain_text,
    preset_line,
    size,
    stand_in_label,
    stand_in_lines,
    times,
)
from specx.bench.render.tables import TableModel
from specx.preset.sections import HEADS

_ORDER = (
    *("step", "plain step", "verify", "tree attention"),
    *("draft level", "draft", "draft of one level", "prefill", "prefill target", "prefill draft"),
)
_SLOW_FIRST_S = 5.0  # a first call that is worth a word
_SEPARATOR = " · "


def pieces_table(found: Object) -> TableModel:
    """Every piece at every length against its floor."""
    pieces = sorted(found["pieces"], key=_place)
    return TableModel(
        title=_titled(found, "Pieces of a step"),
        header=("prompt", "piece", "time", "spread", "floor", "/floor"),
        rows=[_row(found, piece) for piece in pieces],
        align=("right", "left", "right", "right", "right", "right"),
        group_breaks=frozenset(
            row
            for row in range(1, len(pieces))
            if pieces[row]["length"] != pieces[row - 1]["length"]
        ),
    )


def memory_table(found: Object) -> TableModel:
    """Memory by owner at every length."""
    columns = ("weights", "kv_target", "kv_draft", "peak", "rest")
    return TableModel(
        title=_titled(found, "Memory"),
        header=("prompt", "weights", "target KV", "draft KV", "peak", "rest"),
        rows=[
            (f"{each['length']:,}", *(_size(each[column]) for column in columns))
            for each in found["memory"]
        ],
        align=("right",) * 6,
    )


def floor_lines(found: Object) -> list[str]:
    """What a forward has to read, and how fast this machine reads and computes."""
    lines = []
    for each in found["limits"]:
        gigabytes, least = each["forward_bytes"] / 1e9, each["least_forward_bytes"] / 1e9
        without = f" ({least:.2f} without the input embedding)" if least < gigabytes else ""
        lines.append(
            f"floor {each['length']:,}: {_time(each['forward_s'])} a forward = "
            f"{gigabytes:.2f} GB{without} over {each['bandwidth_bytes_s'] / 1e9:,.0f} GB/s, "
            f"prefill on {each['rate_flop_s'] / 1e12:,.2f} TFLOP/s, both measured here"
        )
    return lines


def notes(found: Object) -> list[str]:
    """What the rows mean, what is missing, and what the numbers hold for."""
    plan = found["plan"]
    reads_features = plan["parts"]["drafter"] in HEADS
    invented = "keys, values and the features that the head reads"
    invented = invented if reads_features else "keys and values"
    lines = [
        f"time = median of {plan['rounds']} turns, pieces in turns; spread = from the first to the "
        f"third quartile; {invented} are random numbers",
        "floor = bytes that have to be read over the bandwidth measured here (the faster of "
        "copying and summing); a forward's: all weights, and keys and values of the prompt; "
        "prefill's: operations of the target over the fastest product",
        "step = draft, forward over its tree, accept, commit, retrieval when due, one launched "
        "behind the other; its floor is the forward's",
        "draft level = one level behind the first; floor = weights of the draft and its working "
        "cache",
        "rest = peak - weights - keys and values; the peak is the allocator's (GPU) or the "
        "process's (CPU) after prefill and some steps",
    ]
    lines += _slow_first(found)
    lines += [
        f"not measured at {each['length']:,} tokens: {each['what']}: {each['reason']}"
        for each in found["skipped"]
    ]
    return [plain_text(line, 400) for line in lines]


def settings(found: Object) -> list[str]:
    """Hardware, versions, models, parts, date."""
    env, specx, plan = found["env"], found["specx"], found["plan"]
    versions = [
        f"specx {specx['version']}" + (f" ({specx['commit']})" if specx["commit"] else ""),
        f"CUDA {env['cuda']}" if env["cuda"] else "",
        f"driver {env['driver']}" if env["driver"] else "",
        f"torch {env['torch']}",
        f"transformers {env['transformers']}" if env["transformers"] else "",
        f"Python {env['python']}",
        env["os"],
    ]
    parts = ", ".join(f"{name} {value}" for name, value in plan["parts"].items())
    lines = [
        _SEPARATOR.join([hardware(found), plan["device"], plan["dtype"]]),
        _SEPARATOR.join(filter(None, versions)),
        *(preset_line(preset) for preset in plan["presets"]),
        f"parts: {parts}",
        f"{moment(found['created'])}{_SEPARATOR}took {duration(found['elapsed_s'])}",
    ]
    return [plain_text(line, 400) for line in lines]


def to_markdown(found: Object) -> str:
    """The whole report as GitHub Markdown."""
    names = ", ".join(escaped(plain_text(each["name"])) for each in found["plan"]["presets"])
    blocks = [f"# specx bench --micro: {names}"]
    blocks += [f"**{escaped(line)}.**" for line in stand_in_lines(found)]
    blocks.append(_bullets(floor_lines(found)))
    for table in (pieces_table(found), memory_table(found)):
        if table.rows:
            grid = [[escaped(cell) for cell in row] for row in (table.header, *table.rows)]
            numbers = [align == "right" for align in table.align]
            blocks += [f"## {escaped(table.title)}", pipe_table(grid, numbers)]
    blocks += ["## Notes", _bullets(notes(found)), "## Settings", _bullets(settings(found))]
    return "\n\n".join(blocks) + "\n"


def label(piece: Object, plan: Object) -> str:
    """``verify 64 nodes, no-graphs``: a piece in words."""
    levels, is_static = plan["levels"], plan["static"]
    name, nodes, variant = str(piece["name"]), piece["nodes"], piece["variant"]
    many = "1 node" if nodes == 1 else f"{nodes} nodes"
    words = {
        "step": f"step, {levels} levels, {many}" if is_static else f"step, up to {levels} levels",
        "verify": f"verify {many}",
        "tree attention": f"tree attention/layer, {many}",
        "draft level": f"draft level, {nodes} rows",
        "draft": f"draft, {levels} levels" if is_static else f"draft, up to {levels} levels",
        "draft of one level": "draft, 1 level",
    }
    return words.get(name, name) + (f", {variant}" if variant else "")


def _row(found: Object, piece: Object) -> tuple[str, ...]:
    median_s, floor_s, ratio = piece["median_s"], piece["floor_s"], piece["ratio"]
    words = label(piece, found["plan"])
    if piece["name"] == "prefill" and median_s:
        words += f", {number(piece['length'] / median_s)} tok/s"
    return (
        f"{piece['length']:,}",
        plain_text(words),
        _time(median_s),
        _spread(piece["samples_s"], median_s),
        NOTHING if floor_s is None else _time(floor_s),
        NOTHING if ratio is None else times(ratio),
    )


def _place(piece: Object) -> tuple[int, int, str, int]:
    return piece["length"], _ORDER.index(piece["name"]), piece["variant"], piece["nodes"] or 0


def _time(seconds: float) -> str:
    """``73.1 µs``, ``9.53 ms``, ``1,204 ms``."""
    if seconds < 1e-3:
        return f"{milliseconds(seconds * 1e6)} µs"
    return f"{milliseconds(seconds * 1e3)} ms"


def _spread(samples: Sequence[float], median: float) -> str:
    """Distance of the quartiles in percent of the median."""
    if len(samples) < 2 or not median:
        return NOTHING
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{(high - low) / median:.1%}".replace("%", " %")


def _size(value: int) -> str:
    return size(value) if value >= 0 else f"-{size(-value)}"


def _slow_first(found: Object) -> list[str]:
    slow = [piece for piece in found["pieces"] if (piece["first_s"] or 0) > _SLOW_FIRST_S]
    plan = found["plan"]
    return [
        f"first call of {label(piece, plan)} at {piece['length']:,}: "
        f"{duration(piece['first_s'])} (compiling and setting up)"
        for piece in slow
        if not piece["name"].startswith("prefill")
    ]


def _titled(found: Object, title: str) -> str:
    words = stand_in_label(found)
    return f"{title} with {words}" if words else title


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)
