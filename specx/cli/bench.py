"""``specx bench``: speed over prompt length, measured so that it can be believed and rerun."""
# ruff: noqa: RUF009 (what ``given`` returns is a field, not a value that requests would share)

import datetime
import re
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Context, Option, Typer

from specx.cli import options as opt
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
from specx.cli.options import counter, given, shared, sources_of, takes
from specx.cli.output_file import Sink
from specx.cli.progress import downloads_shown
from specx.cli.result_json import dumps
from specx.cli.settings import chosen_presets, parse_assignments
from specx.cli.signals import Interrupts, Stopped
from specx.environment import user_folder
from specx.errors import SpecxError, UsageError

if TYPE_CHECKING:
    from specx.bench.conditions import Condition
    from specx.bench.journal import Journal
    from specx.bench.prepare import Options, Setup
    from specx.bench.schema import Bench

_UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_LEAST = {"samples": 1, "reps": 1, "warmup": 0, "max_tokens": 2}


@dataclass(frozen=True, slots=True)
class BenchRequest:
    lengths: str = given("--lengths LIST", "Prompt tokens, k = 1024 [1k..16k].", "1k..16k")
    modes: list[str] = given(
        "--modes LIST", "specx, specx+window, ablation, gpu, witnesses …", list
    )
    preset: list[str] = given("-m --preset NAME", "Model pair (repeatable) [pocket].", list)
    target: opt.TargetRepo = None
    draft: opt.DraftRepo = None
    paper: bool = given("--paper", "The paper's numbers of the same pair beside ours.", False)
    stand_in: bool = given("--stand-in", "Build the preset's shapes; download nothing.", False)
    data: list[str] = given("--data SRC", "JSONL, text files, Hub OWNER/NAME [sample].", list)
    field_: str = given("--field KEY", "Which field of a JSONL row [text].", "text")
    samples: int = given("--samples N", "Documents, each cut to every length [5].", 5)
    reps: int = given("--reps N", "Repetitions of a cell [1].", 1)
    warmup: int = given("--warmup N", "Discarded runs of each mode and length [1].", 1)
    max_tokens: int = given("-n --max-tokens N", "New tokens of each run [128].", 128)
    eos: bool = given("--eos", "End at the end-of-text token, not always at N.", False)
    temperature: opt.Temperature = None
    seed: int | None = given("--seed N", "Sampling seed [0].")
    baseline: str = given("--baseline MODE", "What speed-ups are over [plain].", "plain")
    verify: bool = given("--verify/--no-verify", "Compare outputs with plain [yes].", True)
    fail_if: list[str] = given("--fail-if COND", "'speedup<1.0@specx' → exit 9 (repeatable).", list)
    budget: str | None = given("--budget TIME", "Stop before, as 20m; marks the rest.")
    dry_run: bool = given("--dry-run", "Show cells, memory, time; run nothing.", False)
    resume: str | None = given("--resume FILE", "Go on with a journal; last: the newest.")
    saved: str | None = given("--from FILE", "Show a saved .json; run nothing.")
    profile: bool = given("--profile", "Also where a step's time goes.", False)
    micro: Annotated[bool, Option("--micro", hidden=True)] = False
    plot: bool = given("--plot", "Also a plot in the terminal.", False)
    energy: bool = given("--energy", "Joules per token (NVIDIA GPUs).", False)
    export: list[str] = given("--export FILE", ".json .jsonl .csv .md .png .svg .html", list)
    force: bool = given("--force", "Let --export replace files.", False)
    skip_unfit: bool = given("--skip-unfit", "Leave out lengths beyond the context.", False)
    set_: opt.Assignments = field(default_factory=list)
    device: opt.Device = "auto"
    dtype: opt.DType = "auto"
    offline: opt.Offline = False
    output: Literal["auto", "md", "csv", "json", "jsonl"] = given(
        "-o --output FORMAT", "auto, md, csv, json, jsonl [auto].", "auto"
    )
    quiet: Annotated[int, counter("-q", "--quiet", help="No progress; -qq: errors only.")] = 0
    verbose: Annotated[int, counter("-v", "--verbose", help="Every cell as it is measured.")] = 0
    color: opt.ColorChoice = "auto"


bench = Typer(rich_markup_mode=None)
bench.command("diff")(diff)


@bench.callback(invoke_without_command=True)
@takes(BenchRequest)
def _bench(context: Context, request: BenchRequest) -> int:
    """Measure speed over prompt length: all modes on the same texts, in turns."""
    if context.invoked_subcommand is not None:
        return _refuse_before(context, context.invoked_subcommand)
    if request.micro:
        hints = ("in a checkout, python tools/profile_step.py times each piece of a step",)
        raise UsageError("specx bench has no --micro any more", hints=hints)
    from specx.bench.conditions import BENCH_METRICS, parse_condition

    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    conditions = [parse_condition(text, BENCH_METRICS) for text in request.fail_if]
    check_exports([*map(Path, request.export)], force=request.force, inputs=request.data)
    if request.plot:
        from specx.bench.render.chart import require_plotext

        require_plotext()
    if request.saved is not None:
        from specx.bench.paper import presets_of, with_paper
        from specx.bench.saved import read_bench

        found = read_bench(request.saved)
        found = with_paper(found, presets_of(found)) if request.paper else found
        return _show(request, screen, conditions, found)
    options, budget_s = _options(request), _seconds(request.budget)
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


def _refuse_before(context: Context, command: str) -> int:
    for source in sources_of(context).values():
        if source.startswith("--"):  # a variable may be meant for other commands
            hints = (f"specx bench {command} --help shows its own options",)
            raise UsageError(f"{source} means nothing before {command}", hints=hints)
    return 0


def _options(request: BenchRequest) -> "Options":
    from specx.bench.lengths import parse_lengths
    from specx.bench.prepare import Options

    for name, least in _LEAST.items():
        if (value := getattr(request, name)) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be ≥ {least}, not {value}")
    if request.paper and request.stand_in:
        raise UsageError(
            "--paper does not go with --stand-in",
            reason="a stand-in's text and acceptance are pocket's, not the paper's pair's",
        )
    presets = chosen_presets(request.preset, request.target, request.draft, offline=request.offline)
    read = {
        "lengths": parse_lengths(request.lengths),
        "modes": tuple(request.modes or ["default"]),
        "data": tuple(request.data or ["sample"]),
    }
    options = Options(
        presets=presets,
        overrides=parse_assignments(request.set_),
        text_field=request.field_,
        ignore_eos=not request.eos,
        **(shared(request, Options) | read),
    )
    if request.paper:  # there must be something to set beside what will be measured
        from specx.bench.paper import check_paper
        from specx.preset.preset import load_preset

        check_paper(load_preset(name) for name in presets)
    return options


def _prepare(options: "Options", screen: Screen) -> "Setup":
    progress = screen.progress("bench", shows_text=False)
    with closing(progress), downloads_shown(screen, progress):
        progress.busy("reading documents and tokenizers")
        from specx.bench.prepare import prepare

        setup = prepare(options)
    for note in setup.notes:
        screen.note(note)
    return setup


def _measure(
    request: BenchRequest, screen: Screen, setup: "Setup", budget_s: float | None
) -> tuple["Bench", int]:
    """Run what the journal does not have; the bench, and 128 + signal when stopped by one."""
    from specx.bench.runner import Interrupted, Runner, Subject
    from specx.bench.summary import report

    def load(name: str) -> Subject:
        try:
            with interrupts.at_once():  # a signal ends a download, too
                return Subject(setup, name)
        except Stopped as stopped:  # what was measured before is still shown
            raise Interrupted("interrupted") from stopped

    with Interrupts() as interrupts, _journal(request, setup) as journal:
        screen.note(f"journal: {journal.path}")
        runner = Runner(setup.plan, setup.texts, load, journal, budget_s=budget_s)
        interrupts.on_first(runner.cancel)
        try:
            with closing(BenchProgress(screen, setup.plan.size)) as shown, downloads_shown(screen):
                for event in runner.run():
                    shown.show(event)
        except SpecxError as error:
            if kept := len(journal.finished.samples):
                hint = f"{kept} finished runs are kept: --resume {journal.path}"
                error.hints = (*error.hints[:2], hint)
            raise
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


def _journal(request: BenchRequest, setup: "Setup") -> "Journal":
    from specx.bench.journal import Journal, newest

    facts = setup.plan, setup.environment, setup.build
    state = user_folder("state")
    if state is None:
        hint = "name a folder: SPECX_STATE_DIR=/tmp/specx"
        raise UsageError("there is no place for the journal", reason="no home", hints=[hint])
    directory = state / "bench"
    if request.resume is not None:
        path = newest(directory) if request.resume == "last" else Path(request.resume)
        if path is None:
            raise UsageError("there is no journal to resume", reason=f"none in {directory}")
        return Journal.resume(path, *facts)
    now = datetime.datetime.now(datetime.UTC)
    name = "+".join(preset.name for preset in setup.plan.presets)
    path = directory / f"{now:%Y-%m-%d_%H%M%S_%f}_{name}.jsonl"
    return Journal.create(path, *facts, now.isoformat(timespec="seconds"))


def _show(
    request: BenchRequest, screen: Screen, conditions: "list[Condition]", found: "Bench"
) -> int:
    """Exports, tables and the verdict of a bench that has been measured or read."""
    from specx.bench.conditions import failures
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
    found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(s|m|min|h|)\s*", text, re.ASCII)
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--budget takes a time, not {text!r}", hints=["90s, 20m or 1.5h"])
    return seconds
