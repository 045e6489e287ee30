"""``specx help TOPIC``: what belongs to no single command."""

from typing import Annotated, Literal

from typer import Argument

from specx.cli.errors import EXIT_CODES
from specx.cli.output_file import Sink

ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("SPECX_PRESET", "as --preset"),
    ("SPECX_MODE", "as --mode"),
    ("SPECX_OUTPUT", "as --output"),
    ("SPECX_SEED", "as --seed"),
    ("SPECX_DEVICE", "as --device"),
    ("SPECX_OFFLINE", "as --offline, when 1"),
    ("SPECX_NO_PROGRESS", "1: no bars, no live line"),
    ("SPECX_DEBUG", "1: tracebacks"),
    ("SPECX_CONFIG_DIR", "where presets/*.yaml of your own stand"),
    ("SPECX_STATE_DIR", "where specx bench keeps its journals"),
    ("SPECX_CACHE_DIR", "where compiled kernels are kept, in triton/"),
    ("TRITON_CACHE_DIR", "where Triton keeps its kernels instead"),
    ("HF_HOME, HF_TOKEN", "Hugging Face's cache folder and access token"),
    ("HF_HUB_OFFLINE", "1: no network, as --offline"),
    ("NO_COLOR, FORCE_COLOR", "color of stderr, where --color is auto"),
    ("CUDA_VISIBLE_DEVICES", "which GPUs there are"),
)
OUTPUT = """\
stdout has the answer and nothing else; progress, stats and messages go to stderr.

  -o text    the answer, streamed as it is accepted; several files: each under ==> name <==
  -o json    one object with text, settings, times and acceptance; one document only
  -o jsonl   one such object a line, one line a document, as each is finished

Schemas of the objects: specx help schema (specx.result/1, specx.error/1), and with the name of
another one: specx help schema bench, compare or trace.
accepted = draft tokens kept in a step, without the target's own token that ends the step;
tok/step = accepted + 1 (plain decoding has 1); decode rate = (new - 1) / decode time.
"""


def help_topic(
    topic: Annotated[
        Literal["environment", "exit-codes", "output", "schema"] | None,
        Argument(metavar="[TOPIC]", help="environment, exit-codes, output or schema."),
    ] = None,
    name: Annotated[
        Literal["result", "bench", "compare", "trace"],
        Argument(metavar="[NAME]", help="Which schema: result, bench, compare or trace."),
    ] = "result",
) -> int:
    """Explain environment, exit codes, output, schemas."""
    if topic is None:
        Sink().write("topics: environment, exit-codes, output, schema\n")
    elif topic == "schema":
        Sink().write(read_schema(name))
    elif topic == "output":
        Sink().write(OUTPUT)
    else:
        rows = ENVIRONMENT if topic == "environment" else EXIT_CODES
        width = max(len(str(key)) for key, _ in rows)
        Sink().write("".join(f"{key!s:>{width}}  {meaning}\n" for key, meaning in rows))
    return 0


def read_schema(name: str) -> str:
    """A JSON Schema: generated, or one that is part of the package by its file's first word."""
    if name in ("bench", "compare"):
        from specx.bench.schema import json_schema

        return json_schema(name)
    from importlib.resources import files

    return (files("specx") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
