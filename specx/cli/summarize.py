"""``specx summarize``: the preset's own summary request for each document."""

from typing import TYPE_CHECKING

from typer import Context

from specx.cli.job import execute
from specx.cli.options import Request, sources_of, takes

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt


@takes(Request)
def summarize(context: Context, request: Request) -> int:
    """Summarize long documents.

    Several files: each text under ==> name <==. Only the answer is written to stdout.
    """

    def ask(engine: "Engine", document: "Document | None") -> "Prompt":
        return engine.prompt("" if document is None else document.text)

    return execute("summarize", request, sources_of(context), ask)
