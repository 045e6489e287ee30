"""A live comparison from options to exit code: race, view, table.

Goes in: a document's name and what to run on it. Comes out: a view on stderr while it runs, then
a table or a JSON object in the sink, an exit code. It does not know how a run is made.
"""

import os
from collections.abc import Sequence

from specx.bench.comparison import (
    WARMUP_NEW_TOKENS,
    WARMUP_PROMPT_TOKENS,
    Began,
    Contestant,
    Race,
    Run,
    Task,
    live_object,
    parse_contestants,
)
from specx.cli.compare.versus import FEWEST_ROWS, Columns, Display, OneByOne
from specx.cli.compare.words import difference_line, runs_report
from specx.cli.console import Screen
from specx.cli.errors import DIFFERENCE
from specx.cli.fetching import downloads_shown
from specx.cli.format import phases_line
from specx.cli.options import RunRequest, Sources
from specx.cli.output_file import Sink, open_sink
from specx.cli.result_json import dumps
from specx.cli.run import read_input
from specx.cli.settings import Settings, chosen_preset, parse_assignments, resolve
from specx.cli.signals import Interrupts, Stopped
from specx.documents.document import Document
from specx.environment import environment
from specx.errors import SpecxError, VerifyError, one_line


def run_live(
    name: str,
    request: RunRequest,
    screen: Screen,
    words: Sequence[str],
    instruction: str | None,
    *,
    sources: Sources,
    shows_text: bool,
) -> int:
    """Run the comparison; its exit code. Raises ``SpecxError`` when nothing was finished."""
    changes = parse_assignments(request.set_)
    base = chosen_preset(
        request.preset, request.target, request.draft, sources, offline=request.offline
    )
    contestants = parse_contestants(words, base, changes)
    # All runs sample alike; what was not given is decided by the preset that is compared against.
    settings = resolve(request, preset=contestants[0].preset)
    with open_sink(request.out, force=request.force, inputs=[name]) as sink:
        document = read_input(name, request.encoding)
        task = Task(
            document=document.text,
            instruction=instruction,
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            device=settings.device,
            dtype=settings.dtype,
            offline=settings.offline,
        )
        _announce(contestants, settings, screen)
        race = Race(contestants, task)
        display = _display(race, document, screen, sink, request)
        with downloads_shown(screen), Interrupts() as interrupts:
            failure = _run(race, display, interrupts)
            if not race.runs:
                return _nothing(failure, interrupts)
            _write(race, document, settings, screen, sink, request, shows_text=shows_text)
            return _code(race.runs, screen, failure, interrupts)


def _announce(contestants: Sequence[Contestant], settings: Settings, screen: Screen) -> None:
    if screen.verbose < 2:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    is_small = any(each.preset.target.repo == "pocket/target" for each in contestants)
    if is_small and (screen.is_terminal or screen.verbose):
        screen.note("pocket is a small demonstration model; see specx presets for others")
    screen.detail(
        f"runs one after another: {', '.join(each.title for each in contestants)} · warm-up of "
        f"each, not counted: {WARMUP_NEW_TOKENS} tokens on the first {WARMUP_PROMPT_TOKENS} of "
        "the prompt"
    )


def _display(
    race: Race, document: Document, screen: Screen, sink: Sink, request: RunRequest
) -> Display:
    titles = [each.title for each in race.contestants]
    has_columns = (
        *(screen.is_live, sink.is_terminal, request.output == "text", not screen.quiet),
        screen.console.height >= FEWEST_ROWS,
    )
    if all(has_columns):
        return Columns(screen.console, titles, document.name)
    return OneByOne(titles, lambda title: screen.progress(title, shows_text=False))


def _run(race: Race, display: Display, interrupts: Interrupts) -> SpecxError | None:
    """To the end, to an error or to the user's wish; what was finished is in ``race.runs``."""
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


def _nothing(failure: SpecxError | None, interrupts: Interrupts) -> int:
    if failure is not None:
        raise failure
    return interrupts.exit_code or 0


def _write(
    race: Race,
    document: Document,
    settings: Settings,
    screen: Screen,
    sink: Sink,
    request: RunRequest,
    *,
    shows_text: bool,
) -> None:
    for run in race.runs:
        _remark(run, screen)
    if request.output != "text":
        found = live_object(race.runs, document, environment(race.runs[0].device))
        sink.write(dumps(found, request.output))
        return
    report = runs_report(race.runs, _subject(race.runs[0], document, settings))
    if request.out is None and sink.is_terminal:
        report.draw(screen.color, turned=True)
    else:
        sink.write(report.markdown())
    if shows_text:
        _write_texts(race.runs, sink)


def _subject(first: Run, document: Document, settings: Settings) -> str:
    sampling = settings.sampling
    how = (
        "greedy"
        if sampling.temperature == 0
        else f"temperature {sampling.temperature:g}, seed {sampling.seed}"
    )
    parts = (document.name, f"up to {settings.max_tokens:,} new tokens", how)
    return " · ".join((*parts, f"{first.device} {first.dtype}"))


def _write_texts(runs: Sequence[Run], sink: Sink) -> None:
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


def _remark(run: Run, screen: Screen) -> None:
    title = one_line(run.contestant.title)
    for message in run.result.warnings:
        screen.warn(f"{title}: {message}")
    if run.result.mode_reason:
        screen.note(f"{title}: {run.result.mode_reason}")
    screen.detail(f"{title}: {phases_line(run.result.stats)}")


def _code(
    runs: Sequence[Run], screen: Screen, failure: SpecxError | None, interrupts: Interrupts
) -> int:
    different = [run for run in runs if run.difference is not None]
    if different:
        screen.fail(_verdict(different, runs[0]))
    if failure is not None:
        screen.fail(failure)
    if interrupts.exit_code is not None:
        return interrupts.exit_code
    if failure is not None:
        return failure.exit_code
    return DIFFERENCE if different else 0


def _verdict(different: Sequence[Run], first: Run) -> VerifyError:
    names = ", ".join(one_line(run.contestant.title) for run in different)
    hints = []
    if first.dtype != "float32":
        hints.append("in half precision, kernels round differently for different row counts")
        hints.append("--dtype float32 removes such differences")
    return VerifyError(
        f"not the text of {one_line(first.contestant.title)}: {names}",
        reason=difference_line(different[0], first),
        hints=hints,
    )
