"""``specx generate``: continue a text, or answer a question about it."""

from typing import TYPE_CHECKING

from typer import Context

from specx.cli.job import execute
from specx.cli.options import Question, Request, sources_of, takes
from specx.errors import UsageError

if TYPE_CHECKING:
    from specx.documents.document import Document
    from specx.engine import Engine
    from specx.prompts import Prompt

PLACE = "{document}"


@takes(Question, Request)
def generate(context: Context, question: Question, request: Request) -> int:
    """Answer a question about long documents, or continue them."""
    if question.raw and (question.prompt is not None or question.system is not None):
        raise UsageError(
            "--raw excludes --prompt and --system",
            reason="a raw document is continued as it stands",
        )
    if question.prompt is not None and not question.prompt.strip():
        raise UsageError("--prompt is empty")

    def ask(engine: "Engine", document: "Document | None") -> "Prompt":
        return _prompt(engine, document, question)

    needs_document = question.prompt is None or PLACE in question.prompt
    return execute("generate", request, sources_of(context), ask, needs_document=needs_document)


def _prompt(engine: "Engine", document: "Document | None", question: Question) -> "Prompt":
    text = "" if document is None else document.text
    if question.raw:
        return engine.prompt(text, raw=True)
    if question.prompt is None:
        return engine.prompt("", text, system=question.system)
    if PLACE in question.prompt:
        # Replaced, never formatted: braces in the question or the document are only text.
        return engine.prompt("", question.prompt.replace(PLACE, text), system=question.system)
    return engine.prompt(text, question.prompt, system=question.system)
