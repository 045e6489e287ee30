"""Numbers as people read them: the status line, the closing line, tables.

It prints nothing: everything is returned as strings or as what Rich can draw.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from specx.errors import size

if TYPE_CHECKING:
    from rich.table import Table

    from specx.core.config import SamplingConfig
    from specx.core.stats import GenerationStats, Prefill

_SEPARATOR = " · "


def closing_line(
    stats: "GenerationStats", verdict: str, *remarks: str, thought_tokens: int = 0
) -> str:
    """The one line that remains: prompt, prefill, decode, acceptance, memory, equality."""
    prefill, decode = f"prefill {seconds(stats.prefill_s)}", ""
    if stats.new_tokens:  # else ended while reading: a rate would be over tokens never read
        prefill += _rate(stats.prefill_tokens_per_s)
        decode = f"decode {seconds(stats.decode_s)}{_rate(stats.decode_tokens_per_s)}"
    thought = f" ({thought_tokens:,} of them thought)" if thought_tokens else ""
    parts = [
        f"{stats.prompt_tokens:,} prompt + {stats.new_tokens:,} new{thought}",
        prefill,
        decode,
        acceptance(stats) if stats.steps else "",
        f"peak {size(stats.memory.peak_bytes)}" if stats.memory.peak_bytes else "",
        f"equal to plain: {verdict}",
        *remarks,
    ]
    return _SEPARATOR.join(filter(None, parts))


def drawn(sampling: "SamplingConfig") -> str:
    """What a sampled text hangs on; "" where nothing is drawn."""
    has_noise = sampling.temperature > 0
    return f"temperature {sampling.temperature:g}, seed {sampling.seed}" if has_noise else ""


def status_line(stats: "GenerationStats", mode: str) -> str:
    """The live line while decoding; the document's length is known by then, so it is left out."""
    rate = f"{_number(stats.decode_tokens_per_s)} tok/s" if stats.decode_s > 0 else ""
    parts = [f"{stats.new_tokens:,} tok", rate, acceptance(stats) if stats.steps else "", mode]
    return _SEPARATOR.join(filter(None, parts))


def prefill_line(event: "Prefill") -> str:
    """Progress of the prefill in words, for a log."""
    rate = _rate(prefill_tokens_per_s(event))
    return f"prefill {event.done_tokens:,} of {event.total_tokens:,} tokens{rate}"


def prefill_tokens_per_s(event: "Prefill") -> float:
    """How fast the prompt is being read; 0 at the very beginning."""
    return event.done_tokens / event.elapsed_s if event.elapsed_s > 0 else 0.0


def download_line(repo: str, percent: int, total_bytes: int) -> str:
    """Progress of a download in words, for a log."""
    return f"download {percent} % of {size(total_bytes)}{_SEPARATOR}{repo}"


def phases_line(stats: "GenerationStats") -> str:
    """Where the time went, and how much of the accepted was in the text before (``-v``)."""
    phases = (
        ("load", stats.load_s),
        ("prefill target", stats.prefill_target_s),
        ("prefill draft", stats.prefill_draft_s),
        ("tune", stats.tune_s),
        ("first token", stats.ttft_s),
        *stats.phases_s.items(),
    )
    line = _SEPARATOR.join(f"{name} {seconds(value)}" for name, value in phases)
    if stats.copied:
        line += f"{_SEPARATOR}{stats.copied_share:.0%} of the accepted could be copied"
    return line


def acceptance(stats: "GenerationStats") -> str:
    """Both definitions at once: with the bonus token and without it."""
    return f"{stats.tokens_per_step:.2f} tok/step = {stats.accepted_per_step:.2f} accepted + 1"


def seconds(value: float) -> str:
    """``3.2 s``, ``0.04 s``, ``2 min 05 s``."""
    if value >= 120:
        return f"{int(value) // 60} min {int(value) % 60:02d} s"
    return f"{value:.1f} s" if value >= 1 or value == 0 else f"{value:.2f} s"


def fold(line: str, width: int) -> list[str]:
    """``line`` as rows of at most ``width`` cells, broken between its ``·`` parts."""
    rows: list[str] = []
    for part in line.split(_SEPARATOR):
        if rows and len(rows[-1]) + len(_SEPARATOR) + len(part) <= width:
            rows[-1] += _SEPARATOR + part
        else:
            rows.append(part)
    return rows


def table(header: Sequence[str], rows: Iterable[Sequence[str]], **look: Any) -> "Table":
    """A borderless table for a terminal; cells are text, never markup. ``look``: as Rich has it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, **look)
    for title in header:
        grid.add_column(Text(title), overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def tab_separated(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for a pipe: a header line, then one line a row."""
    return "".join(
        "\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row) + "\n"
        for row in (header, *rows)
    )


def _rate(tokens_per_s: float) -> str:
    return f" ({_number(tokens_per_s)} tok/s)" if tokens_per_s > 0 else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
