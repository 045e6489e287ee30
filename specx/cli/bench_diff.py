"""``specx bench diff A B``: two saved benches, row by row."""
# ruff: noqa: RUF009 (what ``given`` returns is a field, not a value that requests would share)

from dataclasses import dataclass, field
from typing import Annotated

from typer import Argument, Context

from specx.cli.bench_output import draw_report
from specx.cli.console import Screen
from specx.cli.errors import CONDITION_HELD
from specx.cli.options import ColorChoice, Format, counter, given, takes
from specx.cli.output_file import open_sink
from specx.cli.result_json import dumps
from specx.errors import UsageError


@dataclass(frozen=True, slots=True)
class DiffRequest:
    """The options of ``specx bench diff``."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="A and B: the .json files of two --export.")
    ] = field(default_factory=list)
    metric: str = given("--metric NAME", "What to compare [decode_tok_s].", "decode_tok_s")
    fail_if: list[str] = given("--fail-if COND", "'change<-5%' → exit 9 (repeatable).", list)
    output: Format = given("-o --output FORMAT", "text or json [text].", "text", env=True)
    out: str | None = given("--out --export PATH", "Write to PATH, not to stdout.")
    force: bool = given("--force", "Let --out replace an existing file.", False)
    quiet: Annotated[int, counter("-q", "--quiet", help="-qq: errors only.")] = 0
    color: ColorChoice = "auto"


@takes(DiffRequest)
def diff(context: Context, request: DiffRequest) -> int:
    """Compare two saved benches, document by document."""
    from specx.bench import conditions
    from specx.bench.render.report import row_label, saved_report
    from specx.bench.saved import join, read_bench

    if len(request.files) != 2:
        raise UsageError(
            f"diff takes two benches, not {len(request.files)}",
            hints=("specx bench diff before.json after.json",),
        )
    screen = Screen(color=request.color, quiet=request.quiet)
    metrics = conditions.COMPARE_METRICS
    limits = [conditions.parse_condition(text, metrics) for text in request.fail_if]
    before, after = request.files
    with open_sink(request.out, force=request.force, inputs=request.files) as sink:
        found = join(read_bench(before), read_bench(after), request.metric, (before, after))
        if request.output != "text":
            sink.write(dumps(found.as_json(), request.output))
        elif request.out is None and sink.is_terminal:
            draw_report(saved_report(found), screen.color)
        else:
            sink.write(saved_report(found).markdown())
    rows = [(row_label(row), row.change_percent) for row in found.rows]
    held = conditions.change_failures(limits, rows)
    for sentence in held:
        screen.warn(f"--fail-if: {sentence}")
    return CONDITION_HELD if held else 0
