"""``specx bench``: speed over prompt length, measured so that it can be believed and rerun.

Goes in: options. Comes out: tables on stdout, exports, a journal, an exit code. It does not know
how a cell is run or what the numbers mean.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Context

from specx.cli.bench.exports import Exports, as_text
from specx.cli.bench.paper import check_paper, presets_of, with_paper
from specx.cli.bench.progress import BenchProgress
from specx.cli.bench.view import render
from specx.cli.console import Screen
from specx.cli.errors import CONDITION_HELD, DIFFERENCE, SOME_FAILED
from specx.cli.fetching import downloads_shown
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
    takes,
)
from specx.cli.output_file import Sink
from specx.cli.result_json import dumps
from specx.cli.settings import chosen_presets, parse_assignments
from specx.cli.signals import Interrupts, Stopped
from specx.errors import SpecxError, UsageError

if TYPE_CHECKING:
    from specx.bench.conditions import Condition
    from specx.bench.engine_runner import Subject
    from specx.bench.journal import Journal
    from specx.bench.prepare import Options, Setup

BenchFormat = Literal["auto", "md", "csv", "json", "jsonl"]
_BUDGET_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """The options of ``specx bench``."""

    lengths: Annotated[
        str, option("--lengths", metavar="LIST", help="Prompt tokens, k = 1024 [1k..16k].")
    ] = "1k..16k"
    modes: Annotated[
        list[str],
        option(
            "--modes",
            metavar="LIST",
            help="specx, specx+window, ablation, gpu, witnesses …",
        ),
    ] = field(default_factory=list)
    preset: Annotated[
        list[str],
        option("-m", "--preset", metavar="NAME", help="Model pair (repeatable) [pocket]."),
    ] = field(default_factory=list)
    target: TargetRepo = None
    draft: DraftRepo = None
    paper: Annotated[
        bool, option("--paper", help="The paper's numbers of the same pair beside ours.")
    ] = False
    stand_in: Annotated[
        bool,
        option("--stand-in", help="Build the preset's shapes; download nothing."),
    ] = False
    data: Annotated[
        list[str],
        option("--data", metavar="SRC", help="JSONL, text files, Hub OWNER/NAME [sample]."),
    ] = field(default_factory=list)
    field_: Annotated[
        str, option("--field", metavar="KEY", help="Which field of a JSONL row [text].")
    ] = "text"
    samples: Annotated[
        int, option("--samples", metavar="N", help="Documents, each cut to every length [5].")
    ] = 5
    reps: Annotated[int, option("--reps", metavar="N", help="Repetitions of a cell [1].")] = 1
    warmup: Annotated[
        int,
        option("--warmup", metavar="N", help="Discarded runs of each mode and length [1]."),
    ] = 1
    max_tokens: Annotated[
        int, option("-n", "--max-tokens", metavar="N", help="New tokens of each run [128].")
    ] = 128
    eos: Annotated[bool, option("--eos", help="End at the end-of-text token, not always at N.")] = (
        False
    )
    temperature: Temperature = None
    seed: Annotated[int | None, option("--seed", metavar="N", help="Sampling seed [0].")] = None
    baseline: Annotated[
        str, option("--baseline", metavar="MODE", help="What speed-ups are over [plain].")
    ] = "plain"
    verify: Annotated[
        bool, option("--verify/--no-verify", help="Compare outputs with plain [yes].")
    ] = True
    fail_if: Annotated[
        list[str],
        option("--fail-if", metavar="COND", help="'speedup<1.0@specx' → exit 9 (repeatable)."),
    ] = field(default_factory=list)
    budget: Annotated[
        str | None, option("--budget", metavar="TIME", help="Stop before, as 20m; marks the rest.")
    ] = None
    dry_run: Annotated[bool, option("--dry-run", help="Show cells, memory, time; run nothing.")] = (
        False
    )
    resume: Annotated[
        str | None,
        option("--resume", metavar="FILE", help="Go on with a journal; last: the newest."),
    ] = None
    saved: Annotated[
        str | None, option("--from", metavar="FILE", help="Show a saved .json; run nothing.")
    ] = None
    profile: Annotated[bool, option("--profile", help="Also where a step's time goes.")] = False
    plot: Annotated[bool, option("--plot", help="Also a plot in the terminal.")] = False
    energy: Annotated[bool, option("--energy", help="Joules per token (NVIDIA GPUs).")] = False
    export: Annotated[
        list[str],
        option("--export", metavar="FILE", help=".json .jsonl .csv .md .png .svg .html"),
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
        BenchFormat,
        option("-o", "--output", metavar="FORMAT", help="auto, md, csv, json, jsonl [auto]."),
    ] = "auto"
    quiet: Annotated[int, counter("-q", "--quiet", help="No progress; -qq: errors only.")] = 0
    verbose: Annotated[int, counter("-v", "--verbose", help="Every cell as it is measured.")] = 0
    color: ColorChoice = "auto"


@takes(BenchRequest)
def bench(context: Context, request: BenchRequest) -> int:
    """Measure speed over prompt length: all modes on the same texts, in turns."""
    from specx.bench.conditions import BENCH_METRICS, parse_condition

    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    conditions = [parse_condition(text, BENCH_METRICS) for text in request.fail_if]
    exports = Exports(request.export, force=request.force, inputs=request.data)
    if request.plot:
        from specx.bench.render.plots import require_plotext

        require_plotext()
    if request.saved is not None:
        from specx.bench.saved import read_bench

        saved = read_bench(request.saved)
        saved = with_paper(saved, presets_of(saved)) if request.paper else saved
        return _show(request, screen, exports, conditions, saved)
    options = _options(request)
    if request.paper:
        check_paper(options)
    budget_s = _seconds(request.budget)
    _settle_libraries(screen, offline=options.offline)
    setup = _prepare(options, screen)
    if request.dry_run:
        return _dry_run(request, setup)
    found, stopped = _measure(request, screen, setup, budget_s)
    if request.paper:
        found = with_paper(found, setup.presets)
    code = _show(request, screen, exports, [] if stopped else conditions, found)
    return stopped or code


def _settle_libraries(screen: Screen, *, offline: bool) -> None:
    """What others read when they are imported."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if screen.verbose < 2:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _options(request: BenchRequest) -> "Options":
    from specx.bench.lengths import parse_lengths
    from specx.bench.prepare import Options

    for name, least in (("samples", 1), ("reps", 1), ("warmup", 0), ("max_tokens", 2)):
        if getattr(request, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} must be ≥ {least}, not {getattr(request, name)}")
    return Options(
        presets=chosen_presets(
            request.preset, request.target, request.draft, offline=request.offline
        ),
        overrides=parse_assignments(request.set_),
        lengths=parse_lengths(request.lengths),
        modes=tuple(request.modes or ["default"]),
        baseline=request.baseline,
        data=tuple(request.data or ["sample"]),
        text_field=request.field_,
        samples=request.samples,
        reps=request.reps,
        warmup=request.warmup,
        max_tokens=request.max_tokens,
        ignore_eos=not request.eos,
        temperature=request.temperature,
        seed=request.seed,
        verify=request.verify,
        energy=request.energy,
        device=request.device,
        dtype=request.dtype,
        offline=request.offline,
        skip_unfit=request.skip_unfit,
        stand_in=request.stand_in,
    )


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
) -> tuple[dict[str, Any], int]:
    """Run what the journal does not have; the object, and 128 + signal when stopped by one."""
    from specx.bench.results import result_object
    from specx.bench.runner import Runner

    with Interrupts() as interrupts, _journal(request, setup) as journal:
        screen.note(f"journal: {journal.path}")
        load = _loading(setup, interrupts)
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
        found = result_object(
            setup.plan,
            journal.finished,
            environment=setup.environment,
            build=setup.build,
            elapsed_s=runner.elapsed_s,
            stopped=runner.stopped,
        )
        return found, interrupts.exit_code or 0


def _loading(setup: "Setup", interrupts: Interrupts) -> "Callable[[str], Subject]":
    """How presets are loaded: the first signal ends that at once, and with it a download."""
    from specx.bench.engine_runner import Interrupted

    def load(name: str) -> "Subject":
        try:
            with interrupts.at_once():
                return setup.load(name)
        except Stopped as stopped:  # what was measured before is still shown
            raise Interrupted from stopped

    return load


def _journal(request: BenchRequest, setup: "Setup") -> "Journal":
    import datetime

    import platformdirs

    from specx.bench.journal import Journal, newest

    directory = Path(os.environ.get("SPECX_STATE_DIR") or platformdirs.user_state_path("specx"))
    directory = directory / "bench"
    environment = {**setup.environment, "specx": setup.build}
    if request.resume is not None:
        path = newest(directory) if request.resume == "last" else Path(request.resume)
        if path is None:
            raise UsageError("there is no journal to resume", reason=f"none in {directory}")
        return Journal.resume(path, setup.plan, environment)
    now = datetime.datetime.now(datetime.UTC)
    name = "+".join(preset.name for preset in setup.plan.presets)
    path = directory / f"{now:%Y-%m-%d_%H%M%S_%f}_{name}.jsonl"
    return Journal.create(path, setup.plan, environment, now.isoformat(timespec="seconds"))


def _show(
    request: BenchRequest,
    screen: Screen,
    exports: Exports,
    conditions: "list[Condition]",
    found: dict[str, Any],
) -> int:
    """Tables, exports and the verdict of a bench that has been measured or read."""
    from specx.bench.conditions import failures, unmatched

    if not found["cells"]:
        screen.note("nothing was measured")
        return SOME_FAILED
    for path in exports.write(found, profile=request.profile):  # before a reader can go away
        screen.note(f"wrote {path}")
    if request.output == "auto" and sys.stdout.isatty():
        render(found, screen.color, profile=request.profile, plot=request.plot)
    else:
        kind = "md" if request.output == "auto" else request.output
        Sink().write(as_text(found, kind, profile=request.profile))
        if request.plot and kind == "md":
            from specx.bench.render.plots import terminal_plot

            Sink().write(f"\n```\n{terminal_plot(found, 100, 24, color=False)}\n```\n")
    for sentence in unmatched(conditions, found):
        raise UsageError(sentence)
    held = failures(conditions, found)
    for sentence in held:
        screen.warn(f"--fail-if: {sentence}")
    return _code(found, held)


def _code(found: dict[str, Any], held: list[str]) -> int:
    from specx.bench.modes import WITNESSES

    # Others' kernels may round differently: witnesses are shown, not judged.
    unequal = [
        cell
        for cell in found["cells"]
        if cell["mode"] not in WITNESSES
        and cell["summary"]["equal"] is not None
        and cell["summary"]["equal"]["equal"] < cell["summary"]["equal"]["checked"]
    ]
    if unequal:
        return DIFFERENCE
    if held:
        return CONDITION_HELD
    return SOME_FAILED if found["missing"] else 0


def _dry_run(request: BenchRequest, setup: "Setup") -> int:
    from specx.bench.estimate import estimate, estimate_lines

    found = estimate(setup)
    if request.output == "json":
        Sink().write(dumps(found, "json"))
    else:
        Sink().write("".join(f"{line}\n" for line in estimate_lines(found)))
    return 0


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
