"""``specx bench``: speed over prompt length, measured so that it can be believed and rerun."""

import datetime
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Context, Option, Typer

from specx.cli.bench_diff import diff
from specx.cli.bench_output import (
    BenchProgress,
    as_text,
    check_exports,
    export,
    render,
    settle_libraries,
)
from specx.cli.console import Screen
from specx.cli.errors import CONDITION_HELD, DIFFERENCE, SOME_FAILED
from specx.cli.options import (
    Assignments,
    ColorChoice,
    Device,
    DraftRepo,
    DType,
    Offline,
    TargetRepo,
    Temperature,
    counter,
    option,
    sources_of,
    takes,
)
from specx.cli.output_file import Sink
from specx.cli.progress import downloads_shown
from specx.cli.result_json import dumps
from specx.cli.settings import chosen_presets, parse_assignments
from specx.cli.signals import Interrupts, Stopped
from specx.errors import SpecxError, UsageError

if TYPE_CHECKING:
    from specx.bench.conditions import Condition
    from specx.bench.engine_runner import Subject
    from specx.bench.journal import Journal
    from specx.bench.prepare import Options, Setup
    from specx.bench.schema import Bench

_BUDGET_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
#: Options that ``prepare`` knows by the same name.
_AS_GIVEN = (
    *("baseline", "samples", "reps", "warmup", "max_tokens", "temperature", "seed", "verify"),
    *("energy", "device", "dtype", "offline", "skip_unfit", "stand_in"),
)


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """The options of ``specx bench``."""

    lengths: Annotated[str, option("--lengths LIST", help="Prompt tokens, k = 1024 [1k..16k].")] = (
        "1k..16k"
    )
    modes: Annotated[
        list[str], option("--modes LIST", help="specx, specx+window, ablation, gpu, witnesses …")
    ] = field(default_factory=list)
    preset: Annotated[
        list[str], option("-m --preset NAME", help="Model pair (repeatable) [pocket].")
    ] = field(default_factory=list)
    target: TargetRepo = None
    draft: DraftRepo = None
    paper: Annotated[
        bool, option("--paper", help="The paper's numbers of the same pair beside ours.")
    ] = False
    stand_in: Annotated[
        bool, option("--stand-in", help="Build the preset's shapes; download nothing.")
    ] = False
    data: Annotated[
        list[str], option("--data SRC", help="JSONL, text files, Hub OWNER/NAME [sample].")
    ] = field(default_factory=list)
    field_: Annotated[str, option("--field KEY", help="Which field of a JSONL row [text].")] = (
        "text"
    )
    samples: Annotated[
        int, option("--samples N", help="Documents, each cut to every length [5].")
    ] = 5
    reps: Annotated[int, option("--reps N", help="Repetitions of a cell [1].")] = 1
    warmup: Annotated[
        int, option("--warmup N", help="Discarded runs of each mode and length [1].")
    ] = 1
    max_tokens: Annotated[
        int, option("-n --max-tokens N", help="New tokens of each run [128].")
    ] = 128
    eos: Annotated[bool, option("--eos", help="End at the end-of-text token, not always at N.")] = (
        False
    )
    temperature: Temperature = None
    seed: Annotated[int | None, option("--seed N", help="Sampling seed [0].")] = None
    baseline: Annotated[str, option("--baseline MODE", help="What speed-ups are over [plain].")] = (
        "plain"
    )
    verify: Annotated[
        bool, option("--verify/--no-verify", help="Compare outputs with plain [yes].")
    ] = True
    fail_if: Annotated[
        list[str], option("--fail-if COND", help="'speedup<1.0@specx' → exit 9 (repeatable).")
    ] = field(default_factory=list)
    budget: Annotated[
        str | None, option("--budget TIME", help="Stop before, as 20m; marks the rest.")
    ] = None
    dry_run: Annotated[bool, option("--dry-run", help="Show cells, memory, time; run nothing.")] = (
        False
    )
    resume: Annotated[
        str | None, option("--resume FILE", help="Go on with a journal; last: the newest.")
    ] = None
    saved: Annotated[str | None, option("--from FILE", help="Show a saved .json; run nothing.")] = (
        None
    )
    profile: Annotated[bool, option("--profile", help="Also where a step's time goes.")] = False
    micro: Annotated[bool, Option("--micro", hidden=True)] = False
    plot: Annotated[bool, option("--plot", help="Also a plot in the terminal.")] = False
    energy: Annotated[bool, option("--energy", help="Joules per token (NVIDIA GPUs).")] = False
    export: Annotated[
        list[str], option("--export FILE", help=".json .jsonl .csv .md .png .svg .html")
    ] = field(default_factory=list)
    force: Annotated[bool, option("--force", help="Let --export replace files.")] = False
    skip_unfit: Annotated[
        bool, option("--skip-unfit", help="Leave out lengths beyond the context.")
    ] = False
    set_: Assignments = field(default_factory=list)
    device: Device = "auto"
    dtype: DType = "auto"
    offline: Offline = False
    output: Annotated[
        Literal["auto", "md", "csv", "json", "jsonl"],
        option("-o --output FORMAT", help="auto, md, csv, json, jsonl [auto]."),
    ] = "auto"
    quiet: Annotated[int, counter("-q", "--quiet", help="No progress; -qq: errors only.")] = 0
    verbose: Annotated[int, counter("-v", "--verbose", help="Every cell as it is measured.")] = 0
    color: ColorChoice = "auto"


bench = Typer(rich_markup_mode=None)
bench.command("diff")(diff)


@bench.callback(invoke_without_command=True)
@takes(BenchRequest)
def _bench(context: Context, request: BenchRequest) -> int:
    """Measure speed over prompt length: all modes on the same texts, in turns."""
    if context.invoked_subcommand is not None:
        _refuse_before(context, context.invoked_subcommand)
        return 0
    if request.micro:
        raise UsageError(
            "specx bench has no --micro any more",
            hints=("in a checkout, python tools/profile_step.py times each piece of a step",),
        )
    from specx.bench.conditions import BENCH_METRICS, parse_condition

    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    conditions = [parse_condition(text, BENCH_METRICS) for text in request.fail_if]
    check_exports([*map(Path, request.export)], force=request.force, inputs=request.data)
    if request.plot:
        from specx.bench.render.chart import require_plotext

        require_plotext()
    if request.saved is not None:
        return _show(request, screen, conditions, _read(request.saved, request.paper))
    options = _options(request)
    budget_s = _seconds(request.budget)
    settle_libraries(screen)
    setup = _prepare(options, screen)
    if request.dry_run:
        from specx.bench.estimate import estimate, estimate_lines

        plan = estimate(setup)
        lines = "".join(f"{line}\n" for line in estimate_lines(plan))
        Sink().write(dumps(plan.as_json(), "json") if request.output == "json" else lines)
        return 0
    found, stopped = _measure(request, screen, setup, budget_s)
    if request.paper:
        from specx.bench.paper import with_paper

        found = with_paper(found, setup.presets)
    code = _show(request, screen, [] if stopped else conditions, found)
    return stopped or code


def _refuse_before(context: Context, command: str) -> None:
    for source in sources_of(context).values():
        if source.startswith("--"):  # a variable may be meant for other commands
            raise UsageError(
                f"{source} means nothing before {command}",
                hints=(f"specx bench {command} --help shows its own options",),
            )


def _read(path: str, paper: bool) -> "Bench":
    from specx.bench.saved import read_bench

    saved = read_bench(path)
    if paper:
        from specx.bench.paper import presets_of, with_paper

        saved = with_paper(saved, presets_of(saved))
    return saved


def _options(request: BenchRequest) -> "Options":
    from specx.bench.lengths import parse_lengths
    from specx.bench.prepare import Options

    for name, least in (("samples", 1), ("reps", 1), ("warmup", 0), ("max_tokens", 2)):
        if getattr(request, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} must be ≥ {least}, not {getattr(request, name)}")
    if request.paper and request.stand_in:
        raise UsageError(
            "--paper does not go with --stand-in",
            reason="a stand-in's text and acceptance are pocket's, not the paper's pair's",
        )
    options = Options(
        presets=chosen_presets(
            request.preset, request.target, request.draft, offline=request.offline
        ),
        overrides=parse_assignments(request.set_),
        lengths=parse_lengths(request.lengths),
        modes=tuple(request.modes or ["default"]),
        data=tuple(request.data or ["sample"]),
        text_field=request.field_,
        ignore_eos=not request.eos,
        **{name: getattr(request, name) for name in _AS_GIVEN},
    )
    if request.paper:  # there must be something to set beside what will be measured
        from specx.bench.paper import check_paper
        from specx.preset.preset import load_preset

        check_paper(load_preset(name) for name in options.presets)
    return options


def _prepare(options: "Options", screen: Screen) -> "Setup":
    progress = screen.progress("bench", shows_text=False)
    progress.busy("reading documents and tokenizers")
    try:
        from specx.bench.prepare import prepare

        with downloads_shown(screen, progress):
            setup = prepare(options)
    finally:
        progress.close()
    for note in setup.notes:
        screen.note(note)
    return setup


def _measure(
    request: BenchRequest, screen: Screen, setup: "Setup", budget_s: float | None
) -> tuple["Bench", int]:
    """Run what the journal does not have; the bench, and 128 + signal when stopped by one."""
    from specx.bench.runner import Runner
    from specx.bench.summary import report

    with Interrupts() as interrupts, _journal(request, setup) as journal:
        screen.note(f"journal: {journal.path}")
        load = partial(_load, setup, interrupts)
        runner = Runner(setup.plan, setup.variants, setup.texts, load, journal, budget_s=budget_s)
        interrupts.on_first(runner.cancel)
        progress = BenchProgress(screen, setup.plan.size)
        try:
            with downloads_shown(screen):
                for event in runner.run():
                    progress.show(event)
        except SpecxError as error:
            kept = len(journal.finished.samples)
            if not kept:
                raise
            hint = f"{kept} finished runs are kept: --resume {journal.path}"
            raise type(error)(
                error.message, reason=error.reason, hints=[*error.hints[:2], hint]
            ) from error
        finally:
            progress.close()
        if runner.stopped:
            screen.note(f"stopped ({runner.stopped}); --resume {journal.path} goes on")
        found = report(
            setup.plan,
            journal.finished,
            environment=setup.environment,
            build=setup.build,
            elapsed_s=runner.elapsed_s,
            stopped=runner.stopped,
        )
        return found, interrupts.exit_code or 0


def _load(setup: "Setup", interrupts: Interrupts, name: str) -> "Subject":
    """Load a preset: the first signal ends that at once, and with it a download."""
    from specx.bench.engine_runner import Interrupted

    try:
        with interrupts.at_once():
            return setup.load(name)
    except Stopped as stopped:  # what was measured before is still shown
        raise Interrupted from stopped


def _journal(request: BenchRequest, setup: "Setup") -> "Journal":
    import platformdirs

    from specx.bench.journal import Journal, newest

    state = os.environ.get("SPECX_STATE_DIR") or platformdirs.user_state_path("specx")
    directory = Path(state) / "bench"
    if request.resume is not None:
        path = newest(directory) if request.resume == "last" else Path(request.resume)
        if path is None:
            raise UsageError("there is no journal to resume", reason=f"none in {directory}")
        return Journal.resume(path, setup.plan, setup.environment, setup.build)
    now = datetime.datetime.now(datetime.UTC)
    name = "+".join(preset.name for preset in setup.plan.presets)
    path = directory / f"{now:%Y-%m-%d_%H%M%S_%f}_{name}.jsonl"
    created = now.isoformat(timespec="seconds")
    return Journal.create(path, setup.plan, setup.environment, setup.build, created)


def _show(
    request: BenchRequest, screen: Screen, conditions: "list[Condition]", found: "Bench"
) -> int:
    """Exports, tables and the verdict of a bench that has been measured or read."""
    from specx.bench.conditions import failures, unmatched
    from specx.bench.modes import WITNESSES

    if not found.cells:
        screen.note("nothing was measured")
        return SOME_FAILED
    for path in map(Path, request.export):  # before a reader can go away
        export(found, path, profile=request.profile)
        screen.note(f"wrote {path}")
    if request.output == "auto" and sys.stdout.isatty():
        render(found, screen.color, profile=request.profile, plot=request.plot)
    else:
        kind = "md" if request.output == "auto" else request.output
        Sink().write(as_text(found, kind, profile=request.profile))
        if request.plot and kind == "md":
            from specx.bench.render.terminal_plot import terminal_plot

            Sink().write(f"\n```\n{terminal_plot(found, 100, 24, color=False)}\n```\n")
    for sentence in unmatched(conditions, found):
        raise UsageError(sentence)
    held = failures(conditions, found)
    for sentence in held:
        screen.warn(f"--fail-if: {sentence}")
    # Others' kernels may round differently: witnesses are shown, not judged.
    if any(row.summary.is_unequal for row in found.cells if row.mode not in WITNESSES):
        return DIFFERENCE
    if held:
        return CONDITION_HELD
    return SOME_FAILED if found.missing else 0


def _seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``20m``, ``1.5h`` as seconds. Raises ``UsageError``."""
    if text is None:
        return None
    digits = text.strip().rstrip("smhin")
    unit = text.strip()[len(digits) :]
    try:
        seconds = float(digits) * _BUDGET_UNITS[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--budget takes a time, not {text!r}", hints=["90s, 20m or 1.5h"])
    return seconds
