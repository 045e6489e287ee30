"""The options that ``generate`` and ``summarize`` share, each written once.

Goes in: the command line and ``SPECX_*`` variables, read by Typer. Comes out: one frozen
``Request`` (and a ``Question`` for ``generate``) with None or empty wherever nothing was given.
It does not know presets, documents or models: what an absent option means is decided in
``settings``.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from typer import Argument, Context, Option
from typer.core import TyperCommand

Format = Literal["text", "json", "jsonl"]
Mode = Literal["auto", "plain", "spec", "specx"]
Color = Literal["auto", "always", "never"]
Show = Literal["none", "accept", "map"]
Sources = Mapping[str, str]  # parameter → where its value came from; absent: not given


def option(*names: str, metavar: str | None = None, help: str, env: str | None = None) -> Any:
    """An option as all commands show them; ``env``: the variable that may give it instead."""
    return Option(
        *names, metavar=metavar, help=help, envvar=env, show_envvar=False, show_default=False
    )


def counter(*names: str, help: str) -> Any:
    """An option that counts how often it is given."""
    return Option(*names, help=help, count=True, show_default=False)


# Options that several commands have, each with its words.
MaxTokens = Annotated[
    int | None,
    option("-n", "--max-tokens", metavar="N", help="New tokens at most [the preset's]."),
]
Temperature = Annotated[
    float | None, option("-t", "--temperature", metavar="T", help="0 = greedy [the preset's].")
]
Assignments = Annotated[
    list[str], option("--set", metavar="KEY=VALUE", help="Change a preset field (repeatable).")
]
Device = Annotated[
    str, option("--device", metavar="DEV", env="SPECX_DEVICE", help="cpu, cuda:0, mps [auto].")
]
DType = Annotated[str, option("--dtype", metavar="TYPE", help="float32, bfloat16, float16 [auto].")]
TargetRepo = Annotated[
    str | None,
    option("--target", metavar="REPO", help="Model of no preset: Hub id or directory."),
]
DraftRepo = Annotated[
    str | None,
    option("--draft", metavar="REPO", help="Its draft, or the preset's: REPO, none, lookup."),
]
Offline = Annotated[bool, option("--offline", env="SPECX_OFFLINE", help="Never use the network.")]
Encoding = Annotated[
    str | None, option("--encoding", metavar="NAME", help="Encoding of the documents [utf-8].")
]
ColorChoice = Annotated[
    Color, option("--color", metavar="WHEN", help="auto, always or never [auto].")
]


@dataclass(frozen=True, slots=True)
class Question:
    """What ``generate`` alone asks of the model."""

    prompt: Annotated[
        str | None,
        option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="What to do; {document}: its place [document alone].",
        ),
    ] = None
    system: Annotated[str | None, option("--system", metavar="TEXT", help="System message.")] = None
    raw: Annotated[
        bool, option("--raw", help="Continue the document itself, no chat template.")
    ] = False


@dataclass(frozen=True, slots=True)
class Request:
    """What both commands accept. None and empty mean: not given."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="Documents; - or a pipe means stdin.")
    ] = field(default_factory=list)
    preset: Annotated[
        str,
        option(
            "-m",
            "--preset",
            metavar="NAME",
            env="SPECX_PRESET",
            help="Model pair: preset or YAML file [pocket].",
        ),
    ] = "pocket"
    target: TargetRepo = None
    draft: DraftRepo = None
    mode: Annotated[
        Mode | None,
        option(
            "--mode",
            metavar="MODE",
            env="SPECX_MODE",
            help="auto, specx, spec or plain [the preset's].",
        ),
    ] = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: Annotated[
        float | None,
        option("--top-p", metavar="P", help="Keep the likeliest tokens of mass P; 1 = all."),
    ] = None
    top_k: Annotated[
        int | None,
        option("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 = all."),
    ] = None
    min_p: Annotated[
        float | None,
        option("--min-p", metavar="P", help="Drop tokens below P of the likeliest one."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        option("--repetition-penalty", metavar="R", help="Divide seen tokens' logits; 1 = off."),
    ] = None
    seed: Annotated[
        int | None,
        option(
            "--seed",
            metavar="N",
            env="SPECX_SEED",
            help="Same seed, same text in every mode [0].",
        ),
    ] = None
    stop: Annotated[
        list[str],
        option("--stop", metavar="TEXT", help="End before TEXT (repeatable)."),
    ] = field(default_factory=list)
    ignore_eos: Annotated[
        bool, option("--ignore-eos", help="Do not end at the end-of-text token.")
    ] = False
    set_: Assignments = field(default_factory=list)
    device: Device = "auto"
    dtype: DType = "auto"
    offline: Offline = False
    verify: Annotated[
        str,
        option(
            "--verify",
            metavar="[N]",
            help="Check (the first N) tokens against plain decoding.",
        ),
    ] = "off"
    output: Annotated[
        Format,
        option(
            "-o",
            "--output",
            metavar="FORMAT",
            env="SPECX_OUTPUT",
            help="text, json, jsonl (a line a document) [text].",
        ),
    ] = "text"
    show: Annotated[
        Show,
        option(
            "--show",
            metavar="WHAT",
            help="none, accept or map: watch the method work [none].",
        ),
    ] = "none"
    trace: Annotated[
        str | None,
        option(
            "--trace",
            metavar="PATH",
            help="Record each step and the document's text in PATH.",
        ),
    ] = None
    out: Annotated[
        str | None,
        option("--out", metavar="PATH", help="Write the answer to PATH, not to stdout."),
    ] = None
    force: Annotated[
        bool, option("--force", help="Let --out and --trace replace an existing file.")
    ] = False
    encoding: Encoding = None
    keep_going: Annotated[
        bool, option("--keep-going", help="Go on with the next file after a failure.")
    ] = False
    quiet: Annotated[int, counter("-q", "--quiet", help="No stats; -qq: errors only.")] = 0
    verbose: Annotated[
        int, counter("-v", "--verbose", help="Plan, phase times; -vv: the libraries' logs.")
    ] = 0
    color: ColorChoice = "auto"
    show_settings: Annotated[
        bool, option("--show-settings", help="Print each setting with its source; run nothing.")
    ] = False


class VerifyCommand(TyperCommand):
    """Lets ``--verify`` stand alone: a following file name is not taken for its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give every bare ``--verify`` before ``--`` the value ``on``."""
        end = args.index("--") if "--" in args else len(args)
        full = list(args)
        for at, word in enumerate(args[:end]):
            if word == "--verify" and not _is_verify_value(args[at + 1 : end][:1]):
                full[at] = "--verify=on"
        return super().parse_args(ctx, full)


def _is_verify_value(following: list[str]) -> bool:
    return bool(following) and (following[0] in ("on", "off") or following[0].isdecimal())


def sources_of(context: Context) -> dict[str, str]:
    """``{"mode": "SPECX_MODE", "seed": "--seed"}``: parameters that were given, and how."""
    found: dict[str, str] = {}
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            found[name] = f"--{name.strip('_').replace('_', '-')}"
        elif source is not None and source.name == "ENVIRONMENT":
            found[name] = f"SPECX_{name.upper()}"
    return found


def takes(*groups: type) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Turn ``command(context, *groups)`` into a function whose parameters are the groups' fields.

    Typer reads that signature; the command receives the filled dataclasses.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def run(ctx: Context, **values: Any) -> int:
            filled = [
                group(**{each.name: values[each.name] for each in fields(group)})
                for group in groups
            ]
            return command(ctx, *filled)

        parameters = [_parameter("ctx", Context, inspect.Parameter.empty)]
        for group in groups:
            hints = get_type_hints(group, include_extras=True)
            parameters += [
                _parameter(each.name, hints[each.name], _default(each)) for each in fields(group)
            ]
        run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default
