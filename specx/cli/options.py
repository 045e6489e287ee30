"""The options that ``generate`` and ``summarize`` share, each written once.

Typer fills one frozen ``RunRequest`` (and a ``Question`` for ``generate``) with None or empty
wherever nothing was given; what an absent option means is decided in ``settings``.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from typer import Argument, Context, Option
from typer.core import TyperCommand

from specx.core.config import Mode

Format = Literal["text", "json", "jsonl"]
Color = Literal["auto", "always", "never"]
Show = Literal["none", "accept", "map"]
Sources = Mapping[str, str]  # parameter → where its value came from; absent: not given


def option(*names: str, help: str, metavar: str | None = None, env: str | None = None) -> Any:
    """An option as all commands show them; ``env``: the variable that may give it instead.

    ``"-n --max-tokens N"`` as the only name gives both names and the metavar.
    """
    first, *more = " ".join(names).split()
    if more and not more[-1].startswith("-"):
        metavar = more.pop()
    return Option(
        first, *more, metavar=metavar, help=help, envvar=env, show_envvar=False, show_default=False
    )


def counter(*names: str, help: str) -> Any:
    """An option that counts how often it is given."""
    return Option(*names, help=help, count=True, show_default=False)


# Options that several commands have, each with its words.
MaxTokens = Annotated[
    int | None, option("-n --max-tokens N", help="New tokens at most [the preset's].")
]
Temperature = Annotated[
    float | None, option("-t --temperature T", help="0 = greedy [the preset's].")
]
Assignments = Annotated[
    list[str], option("--set KEY=VALUE", help="Change a preset field (repeatable).")
]
Device = Annotated[str, option("--device DEV", env="SPECX_DEVICE", help="cpu, cuda:0, mps [auto].")]
DType = Annotated[str, option("--dtype TYPE", help="float32, bfloat16, float16 [auto].")]
TargetRepo = Annotated[
    str | None, option("--target REPO", help="Model of no preset: Hub id or directory.")
]
DraftRepo = Annotated[
    str | None, option("--draft REPO", help="Its draft, or the preset's: REPO, none, lookup.")
]
Offline = Annotated[bool, option("--offline", env="SPECX_OFFLINE", help="Never use the network.")]
Encoding = Annotated[
    str | None, option("--encoding NAME", help="Encoding of the documents [utf-8].")
]
ColorChoice = Annotated[Color, option("--color WHEN", help="auto, always or never [auto].")]
Number = float | None
Whole = int | None
Text = str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What ``generate`` alone asks of the model."""

    prompt: Annotated[
        Text, option("-p --prompt TEXT", help="What to do; {document}: its place [document alone].")
    ] = None
    system: Annotated[Text, option("--system TEXT", help="System message.")] = None
    raw: Annotated[
        bool, option("--raw", help="Continue the document itself, no chat template.")
    ] = False


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What both commands accept. None and empty mean: not given."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="Documents; - or a pipe means stdin.")
    ] = field(default_factory=list)
    preset: Annotated[
        str,
        option(
            "-m --preset NAME", env="SPECX_PRESET", help="Model pair: preset or YAML file [pocket]."
        ),
    ] = "pocket"
    target: TargetRepo = None
    draft: DraftRepo = None
    mode: Annotated[
        Mode | None,
        option("--mode MODE", env="SPECX_MODE", help="auto, specx, spec or plain [the preset's]."),
    ] = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: Annotated[
        Number, option("--top-p P", help="Keep the likeliest tokens of mass P; 1 = all.")
    ] = None
    top_k: Annotated[Whole, option("--top-k K", help="Keep the K likeliest tokens; 0 = all.")] = (
        None
    )
    min_p: Annotated[
        Number, option("--min-p P", help="Drop tokens below P of the likeliest one.")
    ] = None
    repetition_penalty: Annotated[
        Number, option("--repetition-penalty R", help="Divide seen tokens' logits; 1 = off.")
    ] = None
    seed: Annotated[
        Whole,
        option("--seed N", env="SPECX_SEED", help="Same seed, same text in every mode [0]."),
    ] = None
    stop: Annotated[list[str], option("--stop TEXT", help="End before TEXT (repeatable).")] = field(
        default_factory=list
    )
    ignore_eos: Annotated[
        bool, option("--ignore-eos", help="Do not end at the end-of-text token.")
    ] = False
    set_: Assignments = field(default_factory=list)
    device: Device = "auto"
    dtype: DType = "auto"
    offline: Offline = False
    verify: Annotated[
        str, option("--verify [N]", help="Check (the first N) tokens against plain decoding.")
    ] = "off"
    output: Annotated[
        Format,
        option(
            "-o --output FORMAT",
            env="SPECX_OUTPUT",
            help="text, json, jsonl (a line a document) [text].",
        ),
    ] = "text"
    show: Annotated[
        Show, option("--show WHAT", help="none, accept or map: watch the method work [none].")
    ] = "none"
    trace: Annotated[
        Text, option("--trace PATH", help="Record each step and the document's text in PATH.")
    ] = None
    out: Annotated[Text, option("--out PATH", help="Write the answer to PATH, not to stdout.")] = (
        None
    )
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
    """Lets ``--verify`` go without a value: a following file name is not taken for one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
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

        only = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("ctx", only, annotation=Context)]
        for group in groups:
            hints = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(
                    each.name, only, default=_default(each), annotation=hints[each.name]
                )
                for each in fields(group)
            ]
        run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()
