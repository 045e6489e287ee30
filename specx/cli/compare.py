"""``specx compare``: one document through several modes or presets, one run after another."""
# ruff: noqa: RUF009 (what ``given`` returns is a field, not a value that requests would share)

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context, Option

from specx.cli import options as opt
from specx.cli.bench_output import draw_report, settle_libraries
from specx.cli.console import Screen
from specx.cli.format import phases_line
from specx.cli.options import RunRequest, counter, given, shared, sources_of, takes
from specx.cli.output_file import Sink, open_sink
from specx.cli.progress import downloads_shown
from specx.cli.result_json import dumps
from specx.cli.run import choose_inputs, read_input
from specx.cli.settings import chosen_preset, parse_assignments, resolve
from specx.cli.signals import Interrupts, Stopped
from specx.errors import SpecxError, UsageError, VerifyError, one_line

if TYPE_CHECKING:
    from specx.bench.comparison import LiveRun, Race
    from specx.cli.compare_view import Columns, OneByOne
    from specx.documents.document import Document

_COMMON = ("max_tokens", "sampling", "device", "dtype", "offline")  # of the settings


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The options of ``specx compare``. None and empty mean: not given."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="A document; - or a pipe means stdin.")
    ] = field(default_factory=list)
    with_: list[str] = given("--with MODE", "MODE, PRESET:MODE or PRESET: [plain, specx].", list)
    text: bool = given("--text", "Also the text: once if all are equal.", False)
    prompt: str | None = given("-p --prompt TEXT", "What to do [the preset's summary].")
    preset: str = given(
        "-m --preset NAME", "Preset of a --with that names none [pocket].", "pocket", env=True
    )
    target: opt.TargetRepo = None
    draft: opt.DraftRepo = None
    max_tokens: opt.MaxTokens = None
    temperature: opt.Temperature = None
    seed: opt.Seed = None
    set_: opt.Assignments = field(default_factory=list)
    device: opt.Device = "auto"
    dtype: opt.DType = "auto"
    offline: opt.Offline = False
    encoding: opt.Encoding = None
    # What ``specx bench diff`` does now; still read, so that the answer can name it.
    saved: Annotated[bool, Option("--saved", hidden=True)] = False
    metric: Annotated[str | None, Option("--metric", hidden=True)] = None
    fail_if: Annotated[list[str], Option("--fail-if", hidden=True)] = field(default_factory=list)
    output: opt.Format = given("-o --output FORMAT", "text or json [text].", "text", env=True)
    out: str | None = given("--out PATH", "Write to PATH, not to stdout.")
    force: bool = given("--force", "Let --out replace an existing file.", False)
    quiet: Annotated[int, counter("-q", "--quiet", help="No live view; -qq: errors only.")] = 0
    verbose: Annotated[int, counter("-v", "--verbose", help="Plan and times of each run.")] = 0
    color: opt.ColorChoice = "auto"


@takes(CompareRequest)
def compare(context: Context, request: CompareRequest) -> int:
    """Compare modes or presets on one document.

    Runs take turns, each warmed up; --with is repeatable, the first one is compared against.
    Saved benches are compared by: specx bench diff A B.
    """
    from specx.bench.comparison import Race, Task, parse_contestants

    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    _check(request)
    name = choose_inputs(request.files, sys.stdin, command="compare")[0]
    sources = sources_of(context)
    base = chosen_preset(
        request.preset, request.target, request.draft, sources, offline=request.offline
    )
    contestants = parse_contestants(request.with_, base, parse_assignments(request.set_))
    # All runs sample alike; what was not given is decided by the preset that is compared against.
    settings = resolve(RunRequest(**shared(request, RunRequest)), preset=contestants[0].preset)
    with open_sink(request.out, force=request.force, inputs=[name]) as sink:
        document = read_input(name, request.encoding)
        common = {each: getattr(settings, each) for each in _COMMON}
        race = Race(contestants, Task(document.text, request.prompt, **common))
        _announce(race, screen)
        display = _display(race, document.name, screen, sink, request)
        with downloads_shown(screen), Interrupts() as interrupts:
            failure = _run(race, display, interrupts)
            if race.runs:
                _write(race, document, screen, sink, request)
                return _code(race.runs, screen, failure, interrupts)
            if failure is not None:
                raise failure
            return interrupts.exit_code or 0


def _check(request: CompareRequest) -> None:
    files = request.files
    are_benches = len(files) > 1 and all(name.lower().endswith(".json") for name in files)
    if are_benches or request.saved or request.metric or request.fail_if:
        words = files if len(files) == 2 else ["before.json", "after.json"]
        words = [*words, *(["--metric", request.metric] if request.metric else [])]
        words += [f"--fail-if '{condition}'" for condition in request.fail_if]
        hints = (f"specx bench diff {' '.join(words)}",)
        raise UsageError("saved benches are compared by specx bench diff", hints=hints)
    if len(files) > 1:
        raise UsageError(
            f"compare takes one document, not {len(files)}",
            reason="modes and presets are named by --with",
            hints=("specx compare report.txt --with plain --with spec",),
        )
    if request.prompt is not None and not request.prompt.strip():
        raise UsageError("--prompt is empty")


def _announce(race: "Race", screen: Screen) -> None:
    from specx.bench.comparison import WARMUP_NEW_TOKENS, WARMUP_PROMPT_TOKENS

    settle_libraries(screen)
    is_small = any(each.preset.target.repo == "pocket/target" for each in race.contestants)
    if is_small and (screen.is_terminal or screen.verbose):
        screen.note("pocket is a small demonstration model; see specx presets for others")
    screen.detail(
        f"runs one after another: {', '.join(each.title for each in race.contestants)} · warm-up "
        f"of each, not counted: {WARMUP_NEW_TOKENS} tokens on the first {WARMUP_PROMPT_TOKENS} of "
        "the prompt"
    )


def _display(
    race: "Race", subject: str, screen: Screen, sink: Sink, request: CompareRequest
) -> "Columns | OneByOne":
    from specx.cli.compare_view import FEWEST_ROWS, Columns, OneByOne

    titles = [each.title for each in race.contestants]
    is_text = sink.is_terminal and request.output == "text"
    has_room = screen.is_live and screen.console.height >= FEWEST_ROWS
    if is_text and has_room and not screen.quiet:
        return Columns(screen.console, titles, subject)
    return OneByOne(titles, lambda title: screen.progress(title, shows_text=False))


def _run(race: "Race", display: "Columns | OneByOne", interrupts: Interrupts) -> SpecxError | None:
    """To the end, to an error or until the user stops it; what was finished is in ``race.runs``."""
    from specx.bench.comparison import Began

    try:
        with closing(display):
            for event in race.events():
                # While a model loads nothing runs that could end in good order.
                is_loading = isinstance(event, Began) and event.phase == "loading"
                interrupts.on_first(None if is_loading else race.cancel)
                display.show(event)
    except SpecxError as error:
        return error
    except Stopped:
        pass
    finally:
        interrupts.on_first(None)
    return None


def _write(
    race: "Race", document: "Document", screen: Screen, sink: Sink, request: CompareRequest
) -> None:
    from specx.bench.comparison import live_comparison
    from specx.bench.render.report import live_report
    from specx.environment import environment

    for run in race.runs:
        title = one_line(run.contestant.title)
        for message in run.result.warnings:
            screen.warn(f"{title}: {message}")
        if run.result.mode_reason:
            screen.note(f"{title}: {run.result.mode_reason}")
        screen.detail(f"{title}: {phases_line(run.result.stats)}")
    if request.output != "text":
        found = live_comparison(race.runs, document, environment(race.runs[0].device))
        sink.write(dumps(found.as_json(), request.output))
        return
    report = live_report(race.runs, document.name, race.task)
    if request.out is None and sink.is_terminal:
        draw_report(replace(report, table=report.table.turned()), screen.color)
    else:
        sink.write(report.markdown())
    if request.text:
        _write_texts(race.runs, sink)


def _write_texts(runs: "Sequence[LiveRun]", sink: Sink) -> None:
    """Once if all runs that have been compared with the first agree, else each under its name."""
    agree = all(run.equal for run in runs[1:])
    for run in runs[:1] if agree else runs:
        sink.write("\n" if agree else f"\n==> {one_line(run.contestant.title)} <==\n")
        sink.write(run.result.text)
        sink.end_line()


def _code(
    runs: "Sequence[LiveRun]", screen: Screen, failure: SpecxError | None, interrupts: Interrupts
) -> int:
    different = [run for run in runs if run.difference is not None]
    problems = [_not_the_text(different, runs[0])] if different else []
    problems += [failure] if failure else []
    for problem in problems:
        screen.fail(problem)
    if interrupts.exit_code is not None:
        return interrupts.exit_code
    return problems[-1].exit_code if problems else 0


def _not_the_text(different: "Sequence[LiveRun]", first: "LiveRun") -> SpecxError:
    from specx.bench.render.report import difference_line

    names = ", ".join(one_line(run.contestant.title) for run in different)
    hints = (
        "in half precision, kernels round differently for different row counts",
        "--dtype float32 removes such differences",
    )
    return VerifyError(
        f"not the text of {one_line(first.contestant.title)}: {names}",
        reason=difference_line(different[0], first),
        hints=() if first.dtype == "float32" else hints,
    )
