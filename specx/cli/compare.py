"""``specx compare``: one document through several modes or presets, one run after another.

Goes in: options and a document's name. Comes out: a view on stderr while it runs, then a table or a
JSON object in the sink, an exit code. It does not know how a run is made.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context, Option

from specx.cli.bench_output import Report, settle_libraries
from specx.cli.console import Screen
from specx.cli.errors import DIFFERENCE
from specx.cli.fetching import downloads_shown
from specx.cli.format import phases_line
from specx.cli.options import (
    Assignments,
    ColorChoice,
    Device,
    DraftRepo,
    DType,
    Encoding,
    Format,
    MaxTokens,
    Offline,
    RunRequest,
    Sources,
    TargetRepo,
    Temperature,
    counter,
    option,
    sources_of,
    takes,
)
from specx.cli.output_file import Sink, open_sink
from specx.cli.result_json import dumps
from specx.cli.run import choose_inputs, read_input
from specx.cli.settings import Settings, chosen_preset, parse_assignments, resolve
from specx.cli.signals import Interrupts, Stopped
from specx.errors import SpecxError, UsageError, VerifyError, one_line

if TYPE_CHECKING:
    from specx.bench.comparison import Contestant, LiveRun, Race
    from specx.cli.compare_view import RaceDisplay
    from specx.documents.document import Document

_NAME_CELLS = 40
#: Options that ``RunRequest`` knows by the same name.
_SHARED = (
    *("preset", "target", "draft", "max_tokens", "temperature", "seed", "set_", "device", "dtype"),
    *("offline", "output", "out", "force", "encoding"),
)


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The options of ``specx compare``. None and empty mean: not given."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="A document; - or a pipe means stdin.")
    ] = field(default_factory=list)
    with_: Annotated[
        list[str],
        option("--with", metavar="MODE", help="MODE, PRESET:MODE or PRESET: [plain, specx]."),
    ] = field(default_factory=list)
    text: Annotated[bool, option("--text", help="Also the text: once if all are equal.")] = False
    prompt: Annotated[
        str | None,
        option("-p", "--prompt", metavar="TEXT", help="What to do [the preset's summary]."),
    ] = None
    preset: Annotated[
        str,
        option(
            "-m",
            "--preset",
            metavar="NAME",
            env="SPECX_PRESET",
            help="Preset of a --with that names none [pocket].",
        ),
    ] = "pocket"
    target: TargetRepo = None
    draft: DraftRepo = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    seed: Annotated[
        int | None, option("--seed", metavar="N", env="SPECX_SEED", help="Sampling seed [0].")
    ] = None
    set_: Assignments = field(default_factory=list)
    device: Device = "auto"
    dtype: DType = "auto"
    offline: Offline = False
    encoding: Encoding = None
    # What ``specx bench diff`` does now; still read, so that the answer can name it.
    saved: Annotated[bool, Option("--saved", hidden=True)] = False
    metric: Annotated[str | None, Option("--metric", hidden=True)] = None
    fail_if: Annotated[list[str], Option("--fail-if", hidden=True)] = field(default_factory=list)
    output: Annotated[
        Format,
        option("-o", "--output", metavar="FORMAT", env="SPECX_OUTPUT", help="text or json [text]."),
    ] = "text"
    out: Annotated[
        str | None, option("--out", metavar="PATH", help="Write to PATH, not to stdout.")
    ] = None
    force: Annotated[bool, option("--force", help="Let --out replace an existing file.")] = False
    quiet: Annotated[int, counter("-q", "--quiet", help="No live view; -qq: errors only.")] = 0
    verbose: Annotated[int, counter("-v", "--verbose", help="Plan and times of each run.")] = 0
    color: ColorChoice = "auto"


@takes(CompareRequest)
def compare(context: Context, request: CompareRequest) -> int:
    """Compare modes or presets on one document.

    Runs take turns, each warmed up; --with is repeatable, the first one is compared against.
    Saved benches are compared by: specx bench diff A B.
    """
    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    _check(request)
    name = choose_inputs(request.files, sys.stdin, command="compare")[0]
    return _race(name, request, screen, sources_of(context))


def _check(request: CompareRequest) -> None:
    files = request.files
    if request.saved or request.metric or request.fail_if:
        benches = files if len(files) == 2 else ["before.json", "after.json"]
        words = [*benches, *(["--metric", request.metric] if request.metric else [])]
        words += [f"--fail-if '{condition}'" for condition in request.fail_if]
        raise UsageError(
            "saved benches are compared by specx bench diff",
            hints=(f"specx bench diff {' '.join(words)}",),
        )
    if len(files) > 1:
        benches = files if all(name.lower().endswith(".json") for name in files) else []
        raise UsageError(
            f"compare takes one document, not {len(files)}",
            reason="" if benches else "modes and presets are named by --with",
            hints=(
                f"specx bench diff {' '.join(benches)}"
                if benches
                else "specx compare report.txt --with plain --with spec",
            ),
        )
    if request.prompt is not None and not request.prompt.strip():
        raise UsageError("--prompt is empty")


def _race(name: str, request: CompareRequest, screen: Screen, sources: Sources) -> int:
    """Run the comparison; its exit code. Raises ``SpecxError`` when nothing was finished."""
    from specx.bench.comparison import Race, Task, parse_contestants

    base = chosen_preset(
        request.preset, request.target, request.draft, sources, offline=request.offline
    )
    contestants = parse_contestants(request.with_, base, parse_assignments(request.set_))
    # All runs sample alike; what was not given is decided by the preset that is compared against.
    shared = RunRequest(**{each: getattr(request, each) for each in _SHARED})
    settings = resolve(shared, preset=contestants[0].preset)
    with open_sink(request.out, force=request.force, inputs=[name]) as sink:
        document = read_input(name, request.encoding)
        task = Task(
            document=document.text,
            instruction=request.prompt,
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            device=settings.device,
            dtype=settings.dtype,
            offline=settings.offline,
        )
        _announce(contestants, settings, screen)
        race = Race(contestants, task)
        display = _display(race, document.name, screen, sink, request)
        with downloads_shown(screen), Interrupts() as interrupts:
            failure = _run(race, display, interrupts)
            if race.runs:
                _write(race, document, settings, screen, sink, request)
                return _code(race.runs, screen, failure, interrupts)
            if failure is not None:
                raise failure
            return interrupts.exit_code or 0


def _announce(contestants: "Sequence[Contestant]", settings: Settings, screen: Screen) -> None:
    from specx.bench.comparison import WARMUP_NEW_TOKENS, WARMUP_PROMPT_TOKENS

    settle_libraries(screen)
    is_small = any(each.preset.target.repo == "pocket/target" for each in contestants)
    if is_small and (screen.is_terminal or screen.verbose):
        screen.note("pocket is a small demonstration model; see specx presets for others")
    screen.detail(
        f"runs one after another: {', '.join(each.title for each in contestants)} · warm-up of "
        f"each, not counted: {WARMUP_NEW_TOKENS} tokens on the first {WARMUP_PROMPT_TOKENS} of "
        "the prompt"
    )


def _display(
    race: "Race", subject: str, screen: Screen, sink: Sink, request: CompareRequest
) -> "RaceDisplay":
    from specx.cli.compare_view import FEWEST_ROWS, Columns, OneByOne

    titles = [each.title for each in race.contestants]
    is_text = sink.is_terminal and request.output == "text"
    has_room = screen.is_live and screen.console.height >= FEWEST_ROWS
    if is_text and has_room and not screen.quiet:
        return Columns(screen.console, titles, subject)
    return OneByOne(titles, lambda title: screen.progress(title, shows_text=False))


def _run(race: "Race", display: "RaceDisplay", interrupts: Interrupts) -> SpecxError | None:
    """To the end, to an error or until the user stops it; what was finished is in ``race.runs``."""
    from specx.bench.comparison import Began

    try:
        for event in race.events():
            # While a model loads nothing runs that could end in good order.
            is_loading = isinstance(event, Began) and event.phase == "loading"
            interrupts.on_first(None if is_loading else race.cancel)
            display.show(event)
    except SpecxError as error:
        return error
    except Stopped:
        return None
    finally:
        interrupts.on_first(None)
        display.close()
    return None


def _write(
    race: "Race",
    document: "Document",
    settings: Settings,
    screen: Screen,
    sink: Sink,
    request: CompareRequest,
) -> None:
    from specx.bench.comparison import live_comparison
    from specx.environment import environment

    for run in race.runs:
        _remark(run, screen)
    if request.output != "text":
        found = live_comparison(race.runs, document, environment(race.runs[0].device))
        sink.write(dumps(found.as_json(), request.output))
        return
    report = _report(race.runs, _subject(race.runs[0], document.name, settings))
    if request.out is None and sink.is_terminal:
        report.turned().draw(screen.color)
    else:
        sink.write(report.markdown())
    if request.text:
        _write_texts(race.runs, sink)


def _report(runs: "Sequence[LiveRun]", title: str) -> Report:
    """One row a run, compared with the first one."""
    from specx.bench.render.numbers import plain_text
    from specx.bench.render.tables import TableModel

    first = runs[0]
    header = (
        *("run", "prompt tokens", "new tokens", "prefill tok/s", "decode tok/s", "overall tok/s"),
        *(
            "tok/step",
            "accepted/step",
            "peak memory",
            "decode speed-up",
            "overall speed-up",
            "text",
        ),
    )
    owner = "the process" if first.device.startswith("cpu") else "the allocator on the GPU"
    return Report(
        title=(plain_text(title, 400),),
        table=TableModel(
            title="",
            header=header,
            rows=[_row(run, first) for run in runs],
            align=("left", *["right"] * (len(header) - 2), "left"),  # type: ignore[arg-type]
        ),
        findings=tuple(_difference(run, first) for run in runs if run.difference),
        notes=(
            "prefill = prompt tokens / prefill time of target and draft",
            "decode = (new tokens - 1) / decode time; overall = new tokens / total time",
            "accepted = draft tokens kept a step; tok/step = that + 1 (plain = 1)",
            f"speed-ups and text are compared with {_title(first)}; peak memory is that of {owner}",
        ),
    )


def _row(run: "LiveRun", first: "LiveRun") -> tuple[str, ...]:
    from specx.bench.comparison import end_to_end_speedup, rates, speedup
    from specx.bench.render.numbers import NOTHING, number, size, times

    stats = run.result.stats
    peak = stats.memory.peak_bytes
    ratios = (speedup(run, first), end_to_end_speedup(run, first))
    return (
        _title(run),
        f"{stats.prompt_tokens:,}",
        f"{stats.new_tokens:,}",
        *(NOTHING if rate is None else number(rate) for _, rate in rates(stats)),
        f"{stats.tokens_per_step:.2f}" if stats.steps else NOTHING,
        f"{stats.accepted_per_step:.2f}" if stats.steps else NOTHING,
        size(peak) if peak else NOTHING,
        *(NOTHING if ratio is None else times(ratio) for ratio in ratios),
        _verdict(run, first),
    )


def _title(run: "LiveRun") -> str:
    from specx.bench.render.numbers import plain_text

    return plain_text(run.contestant.title, _NAME_CELLS)


def _verdict(run: "LiveRun", first: "LiveRun") -> str:
    if run is first:
        return "interrupted" if run.result.finish_reason == "interrupted" else "reference"
    if run.equal is None:
        return run.why
    return "equal" if run.difference is None else f"differs at {run.difference.index + 1:,}"


def _difference(run: "LiveRun", first: "LiveRun") -> str:
    """Where a text leaves the first run's: the token's number, both tokens, the margin."""
    from specx.bench.render.numbers import plain_text

    found = run.difference
    if found is None:
        return ""
    got, expected = (
        "the end" if token is None else f"{plain_text(repr(text))} (id {token})"
        for token, text in ((found.got, run.got_text), (found.expected, run.expected_text))
    )
    margin = "" if found.margin is None else f"; logit margin {found.margin:.3g}"
    place = f"{_title(run)}: token {found.index + 1:,} is {got}"
    return f"{place}, in {_title(first)} {expected}{margin}"


def _subject(first: "LiveRun", name: str, settings: Settings) -> str:
    sampling = settings.sampling
    drawn = f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    how = drawn if sampling.temperature else "greedy"
    parts = (name, f"up to {settings.max_tokens:,} new tokens", how)
    return " · ".join((*parts, f"{first.device} {first.dtype}"))


def _write_texts(runs: "Sequence[LiveRun]", sink: Sink) -> None:
    """Once if all runs that have been compared with the first agree, else each under its name."""
    sink.write("\n")
    if all(run.equal for run in runs[1:]):
        sink.write(runs[0].result.text)
        sink.end_line()
        return
    for number, run in enumerate(runs):
        sink.write("\n" if number else "")
        sink.write(f"==> {one_line(run.contestant.title)} <==\n")
        sink.write(run.result.text)
        sink.end_line()


def _remark(run: "LiveRun", screen: Screen) -> None:
    title = one_line(run.contestant.title)
    for message in run.result.warnings:
        screen.warn(f"{title}: {message}")
    if run.result.mode_reason:
        screen.note(f"{title}: {run.result.mode_reason}")
    screen.detail(f"{title}: {phases_line(run.result.stats)}")


def _code(
    runs: "Sequence[LiveRun]", screen: Screen, failure: SpecxError | None, interrupts: Interrupts
) -> int:
    different = [run for run in runs if run.difference is not None]
    if different:
        screen.fail(_not_the_text(different, runs[0]))
    if failure is not None:
        screen.fail(failure)
    if interrupts.exit_code is not None:
        return interrupts.exit_code
    if failure is not None:
        return failure.exit_code
    return DIFFERENCE if different else 0


def _not_the_text(different: "Sequence[LiveRun]", first: "LiveRun") -> VerifyError:
    names = ", ".join(one_line(run.contestant.title) for run in different)
    hints = (
        "in half precision, kernels round differently for different row counts",
        "--dtype float32 removes such differences",
    )
    return VerifyError(
        f"not the text of {one_line(first.contestant.title)}: {names}",
        reason=_difference(different[0], first),
        hints=() if first.dtype == "float32" else hints,
    )
