"""``specx help TOPIC``: what belongs to no single command."""

from typing import Annotated, Literal

from typer import Argument

from specx.cli.errors import EXIT_CODES
from specx.cli.output_file import Sink
from specx.errors import UsageError

ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("SPECX_PRESET", "as --preset"),
    ("SPECX_MODE", "as --mode"),
    ("SPECX_OUTPUT", "as --output"),
    ("SPECX_SEED", "as --seed; random, too"),
    ("SPECX_DEVICE", "as --device"),
    ("SPECX_OFFLINE", "as --offline, when 1"),
    ("SPECX_NO_PROGRESS", "1: no bars, no live line"),
    ("SPECX_DEBUG", "1: tracebacks"),
    ("SPECX_CONFIG_DIR", "the folder of your own presets/*.yaml"),
    ("SPECX_STATE_DIR", "where specx bench keeps its journals"),
    ("SPECX_CACHE_DIR", "where compiled kernels are kept, in triton/"),
    ("TRITON_CACHE_DIR", "where Triton keeps its kernels instead"),
    ("HF_HOME, HF_TOKEN", "Hugging Face's cache folder and access token"),
    ("HF_HUB_OFFLINE", "1: no network, as --offline"),
    ("NO_COLOR, FORCE_COLOR", "color of stderr, where --color is auto"),
    ("CUDA_VISIBLE_DEVICES", "which GPUs there are"),
)
#: Name → the module and the model that its JSON Schema is made from.
SCHEMAS = {
    "result": "specx.trace.result:AnyResult",
    "settings": "specx.cli.result_json:SettingsObject",
    "presets": "specx.cli.result_json:PresetsObject",
    "presets-check": "specx.cli.result_json:PresetsCheckObject",
    "trace": "specx.trace.records:Line",
    "bench": "specx.bench.schema:Bench",
    "compare": "specx.bench.schema:Comparison",
}
OUTPUT = """\
stdout has the answer and nothing else; progress, stats and messages go to stderr.

  -o text    the answer, streamed as it is accepted; several files: each under ==> name <==
  -o json    one object with text, settings, times and acceptance; one document only
  -o jsonl   one such object a line, one line a document, as each is finished

JSON Schema of these objects: specx help schema (specx.result/1, specx.error/1). Of others:
specx help schema NAME (bench, compare, trace, settings, presets, presets-check).
accepted = draft tokens kept in a step, without the target's own token that ends the step;
tok/step = accepted + 1 (plain decoding has 1); decode rate = (new - 1) / decode time.

A thought of a model that thinks is no part of the answer: it is dim on stderr where that is a
terminal, and "thought" in JSON. --think auto (the default) thinks where the chat template does so
by itself, but not for a summary if there is a choice. -n bounds the answer, --think-tokens N
the thought (4,096 where the context has room): the closing tag is then put in place of the model's
next token, a warning says so, and --verify checks both parts. Blanks between them are left out.

Sampling is as options say, else as the preset's sampling group has it, else as the target's
generation_config.json. The closing line has temperature and seed; --seed random draws a seed.
"""


def help(
    topic: Annotated[
        Literal["environment", "exit-codes", "output", "schema"] | None,
        Argument(metavar="[TOPIC]", help="environment, exit-codes, output or schema."),
    ] = None,
    name: Annotated[
        str, Argument(metavar="[NAME]", help="Which schema: result, bench, compare, trace …")
    ] = "result",
) -> int:
    """Explain environment, exit codes, output, schemas."""
    text = "topics: environment, exit-codes, output, schema\n"
    if topic == "schema":
        text = read_schema(name)
    elif topic == "output":
        text = OUTPUT
    elif topic is not None:
        rows = ENVIRONMENT if topic == "environment" else EXIT_CODES
        width = max(len(str(key)) for key, _ in rows)
        text = "".join(f"{key!s:>{width}}  {meaning}\n" for key, meaning in rows)
    Sink().write(text)
    return 0


def read_schema(name: str) -> str:
    """The JSON Schema ``specx.NAME/1`` of what a command writes. Raises ``UsageError``."""
    from pkgutil import resolve_name

    from pydantic import TypeAdapter

    from specx.cli.result_json import dumps

    if name not in SCHEMAS:
        known = ", ".join(SCHEMAS)
        raise UsageError(f"there is no schema named {name!r}", hints=[f"schemas: {known}"])
    schema = TypeAdapter(resolve_name(SCHEMAS[name])).json_schema(mode="serialization")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"specx.{name}/1"}
    return dumps(head | schema | head, "json")  # the head first
