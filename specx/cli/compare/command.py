"""``specx compare``: one document through several modes or presets, or two saved benches.

Goes in: options. Comes out: a table on stdout or in a file, an exit code. It does not know how a
run is made or how benches are joined.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

from typer import Argument, Context

from specx.cli.console import Screen
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
from specx.cli.run import choose_inputs
from specx.errors import UsageError

_SAVED_ONLY = ("metric", "fail_if")
_LIVE_ONLY = (
    *("with_", "text", "prompt", "preset", "target", "draft", "max_tokens", "temperature"),
    *("seed", "set_", "device", "dtype", "offline", "encoding"),
)


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """The options of ``specx compare``. None and empty mean: not given."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="A document (- or a pipe: stdin), or two benches.")
    ] = field(default_factory=list)
    with_: Annotated[
        list[str],
        option(
            "--with",
            metavar="MODE",
            help="MODE, PRESET:MODE or PRESET: [plain, specx].",
        ),
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
    saved: Annotated[bool, option("--saved", help="Compare two saved benches: A.json B.json.")] = (
        False
    )
    metric: Annotated[
        str,
        option("--metric", metavar="NAME", help="With --saved: what to compare [decode_tok_s]."),
    ] = "decode_tok_s"
    fail_if: Annotated[
        list[str],
        option("--fail-if", metavar="COND", help="With --saved: 'change<-5%' → exit 9."),
    ] = field(default_factory=list)
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
    """Compare modes or presets on one document, or two saved benches.

    Runs take turns, each warmed up; --with is repeatable, the first one is compared against.
    """
    screen = Screen(color=request.color, quiet=request.quiet, verbose=request.verbose)
    sources = sources_of(context)
    _check(request, sources)
    if request.saved:
        from specx.cli.compare.saved import Saved, run_saved

        before, after = request.files
        return run_saved(
            Saved(before, after, request.metric, tuple(request.fail_if)),
            screen,
            output=request.output,
            out=request.out,
            force=request.force,
        )
    from specx.cli.compare.live import run_live

    names = choose_inputs(request.files, sys.stdin, command="compare")
    return run_live(
        names[0],
        _as_request(request),
        screen,
        request.with_,
        request.prompt,
        sources=sources,
        shows_text=request.text,
    )


def _as_request(request: CompareRequest) -> RunRequest:
    """What a live comparison has in common with ``generate`` and ``summarize``."""
    return RunRequest(
        preset=request.preset,
        target=request.target,
        draft=request.draft,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        set_=request.set_,
        device=request.device,
        dtype=request.dtype,
        offline=request.offline,
        output=request.output,
        out=request.out,
        force=request.force,
        encoding=request.encoding,
    )


def _check(request: CompareRequest, sources: Sources) -> None:
    kind, foreign = ("with", _LIVE_ONLY) if request.saved else ("without", _SAVED_ONLY)
    for name in foreign:
        if sources.get(name, "").startswith("--"):  # a variable may be meant for other commands
            raise UsageError(f"{sources[name]} means nothing {kind} --saved")
    count = len(request.files)
    if request.saved and count != 2:
        raise UsageError(
            f"--saved takes two benches, not {count}",
            hints=("specx compare --saved before.json after.json",),
        )
    if not request.saved and count > 1:
        benches = all(name.lower().endswith(".json") for name in request.files)
        hint = "specx compare --saved compares saved benches"
        raise UsageError(
            f"compare takes one document, not {count}",
            reason="" if benches else "modes and presets are named by --with",
            hints=(hint,) if benches else ("specx compare report.txt --with plain --with spec",),
        )
    if request.prompt is not None and not request.prompt.strip():
        raise UsageError("--prompt is empty")
