"""The options that ``generate`` and ``summarize`` share, each written once.

A field of a request is None or empty where nothing was given: ``settings`` decides what that means.
"""
# ruff: noqa: RUF009 (what ``given`` returns is a field, not a value that requests would share)

import functools
import inspect
import secrets
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from typer import Argument, BadParameter, Context, Option
from typer.core import TyperCommand

from specx.core.config import Mode, Think

Format = Literal["text", "json", "jsonl"]
Color = Literal["auto", "always", "never"]
Show = Literal["none", "accept", "map"]
Sources = Mapping[str, str]  # parameter → where its value came from; absent: not given


def option(
    *names: str,
    help: str,
    metavar: str | None = None,
    env: str | None = None,
    parser: Callable[[str], Any] | None = None,
) -> Any:
    """An option as all commands show them; ``env``: the variable that may give it instead.

    ``"-n --max-tokens N"`` as the only name gives both names and the metavar.
    """
    first, *more = " ".join(names).split()
    if more and not more[-1].startswith("-"):
        metavar = more.pop()
    return Option(
        first,
        *more,
        metavar=metavar,
        help=help,
        envvar=env,
        parser=parser,
        show_envvar=False,
        show_default=False,
    )


def parse_seed(word: str) -> int:
    """``--seed``: a number, or ``random``, which draws one."""
    if word == "random":
        return secrets.randbelow(1 << 32)
    try:
        return int(word)
    except ValueError as error:
        raise BadParameter(f"{word!r} is neither a number nor random") from error


def counter(*names: str, help: str) -> Any:
    """An option that counts how often it is given."""
    return Option(*names, help=help, count=True, show_default=False)


def given(names: str, help: str, default: object = None, *, env: bool = False) -> Any:
    """A field of a request that ``option`` fills; ``default`` may be a type to be called.

    ``env``: ``SPECX_NAME`` may give it instead of ``--name``.
    """
    name = names.partition("--")[2].split()[0]
    variable = f"SPECX_{name.upper()}" if env else None
    metadata = {"option": option(names, help=help, env=variable)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


# Options that several commands have, each with its words.
MaxTokens = Annotated[
    int | None,
    option("-n --max-tokens N", help="Tokens of the answer at most [the preset's]."),
]
Temperature = Annotated[
    float | None, option("-t --temperature T", help="0 = greedy [the preset's].")
]
Seed = Annotated[
    int | None,
    option(
        "--seed N",
        env="SPECX_SEED",
        parser=parse_seed,
        help="Same seed, same text in every mode; or random [0].",
    ),
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


@dataclass(frozen=True, slots=True)
class Question:
    """What ``generate`` alone asks of the model."""

    prompt: str | None = given(
        "-p --prompt TEXT", "What to do; {document}: its place [document alone]."
    )
    system: str | None = given("--system TEXT", "System message.")
    raw: bool = given("--raw", "Continue the document itself, no chat template.", False)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What both commands accept. None and empty mean: not given."""

    files: Annotated[
        list[str], Argument(metavar="FILE", help="Documents; - or a pipe means stdin.")
    ] = field(default_factory=list)
    preset: str = given(
        "-m --preset NAME", "Model pair: preset or YAML file [pocket].", "pocket", env=True
    )
    target: TargetRepo = None
    draft: DraftRepo = None
    mode: Mode | None = given("--mode MODE", "auto, specx, spec or plain [the preset's].", env=True)
    max_tokens: MaxTokens = None
    think: Think | None = given("--think WHEN", "auto, on, off; --think-tokens N bounds it [auto].")
    # Not listed by itself: the help of a command fits a screen.
    think_tokens: Annotated[int | None, Option("--think-tokens", hidden=True)] = None
    temperature: Temperature = None
    top_p: float | None = given("--top-p P", "Keep the likeliest tokens of mass P; 1 = all.")
    top_k: int | None = given("--top-k K", "Keep the K likeliest tokens; 0 = all.")
    min_p: float | None = given("--min-p P", "Drop tokens below P of the likeliest one.")
    repetition_penalty: float | None = given(
        "--repetition-penalty R", "Divide seen tokens' logits; 1 = off."
    )
    seed: Seed = None
    stop: list[str] = given("--stop TEXT", "End before TEXT (repeatable).", list)
    ignore_eos: bool = given("--ignore-eos", "Do not end at the end-of-text token.", False)
    set_: Assignments = field(default_factory=list)
    device: Device = "auto"
    dtype: DType = "auto"
    offline: Offline = False
    verify: str = given("--verify [N]", "Check (the first N) tokens against plain decoding.", "off")
    output: Format = given(
        "-o --output FORMAT", "text, json, jsonl (a line a document) [text].", "text", env=True
    )
    show: Show = given("--show WHAT", "none, accept or map: watch the method work [none].", "none")
    trace: str | None = given("--trace PATH", "Record each step and the document's text in PATH.")
    out: str | None = given("--out PATH", "Write the answer to PATH, not to stdout.")
    force: bool = given("--force", "Let --out and --trace replace an existing file.", False)
    encoding: Encoding = None
    pages: str = given("--pages LIST", "Pages of the document, as 3-10,15 [all].", "")
    keep_going: bool = given("--keep-going", "Go on with the next file after a failure.", False)
    quiet: Annotated[int, counter("-q", "--quiet", help="No stats; -qq: errors only.")] = 0
    verbose: Annotated[
        int, counter("-v", "--verbose", help="Plan, phase times; -vv: the libraries' logs.")
    ] = 0
    color: ColorChoice = "auto"
    show_settings: bool = given(
        "--show-settings", "Print each setting with its source; run nothing.", False
    )


class VerifyCommand(TyperCommand):
    """Lets ``--verify`` go without a value: a following file name is not taken for one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        full = list(args)
        for at, word in enumerate(args[:end]):
            value = args[at + 1] if at + 1 < end else ""
            if word == "--verify" and value not in ("on", "off") and not value.isdecimal():
                full[at] = "--verify=on"
        return super().parse_args(ctx, full)


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


def shared(request: Any, kind: type) -> dict[str, Any]:
    """The fields of ``request`` that dataclass ``kind`` has too, for its constructor."""
    known = {each.name for each in fields(kind)}
    return {
        each.name: getattr(request, each.name) for each in fields(request) if each.name in known
    }


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

        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("ctx", kind, annotation=Context)]
        for group in groups:
            hints = get_type_hints(group, include_extras=True)
            parameters += [_parameter(each, hints[each.name]) for each in fields(group)]
        run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(each: Field[Any], hint: Any) -> inspect.Parameter:
    default = each.default if each.default_factory is MISSING else each.default_factory()
    if "option" in each.metadata:
        hint = Annotated[hint, each.metadata["option"]]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(each.name, kind, default=default, annotation=hint)
