"""``specx presets``: which model pairs there are, and what is in them."""

import sys
from dataclasses import asdict
from typing import Annotated, Literal

from typer import Argument, Context, Option, Typer

from specx.cli.output import dumps
from specx.cli.screen import out_console
from specx.cli.settings import parse_assignments
from specx.cli.sink import Sink
from specx.cli.view import tab_separated, table

Format = Annotated[
    Literal["text", "json"],
    Option("-o", "--output", metavar="FORMAT", help="text or json [text].", show_default=False),
]

presets = Typer(rich_markup_mode=None)


@presets.callback(invoke_without_command=True)
def _presets(context: Context) -> int:
    """List and show presets: the model pairs that specx can run."""
    return list_presets() if context.invoked_subcommand is None else 0


@presets.command("list")
def list_presets(output: Format = "text") -> int:
    """List the presets that a name reaches."""
    from specx.preset import available_presets

    entries = available_presets()
    if output == "json":
        rows = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
        Sink().write(dumps({"schema": "specx.presets/1", "presets": rows}, output))
        return 0
    header = ("name", "from", "about")
    cells = [
        (entry.name, entry.origin, entry.about or f"broken: {entry.problem}") for entry in entries
    ]
    if sys.stdout.isatty():
        out_console().print(table(header, cells))
    else:
        Sink().write(tab_separated(header, cells))
    return 0


@presets.command("show")
def show_preset(
    name: Annotated[str, Argument(metavar="NAME", help="Preset name or YAML file.")],
    set_: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a field (repeatable).")
    ] = None,
    output: Format = "text",
) -> int:
    """Print a preset with all its fields, defaults included, as YAML."""
    from specx.preset import load_preset

    preset = load_preset(name, parse_assignments(set_ or []))
    Sink().write(preset.to_yaml() if output == "text" else dumps(preset.as_mapping(), output))
    return 0


@presets.command("schema")
def print_schema() -> int:
    """Print the JSON Schema of a preset file."""
    from specx.preset import preset_json_schema

    Sink().write(dumps(preset_json_schema(), "json"))
    return 0
