"""Chat templates: a checkpoint's Jinja program that lays out a conversation as one text.

Templates come from strangers: they run in Jinja's sandbox, with what transformers offers there, and
within bounds of work and size.
"""

import datetime
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from specx.checkpoints.config import DAMAGE, summary
from specx.errors import ModelError

_MAX_ROUNDS = 1_000_000  # of all loops together
_MAX_CHARACTERS = 256 << 20  # of a text that a template makes
_MAX_EXPONENT = 64
_ROUNDS, _SIZE = "__rounds", "__size"  # filters that no template's own text needs

Message = Mapping[str, str]

_NONE: Mapping[str, bool] = {}

#: What a template's own fault raises while it is compiled or rendered.
_FAULTS = (
    *DAMAGE,
    jinja2.TemplateError,
    RuntimeError,
    MemoryError,
    SyntaxError,  # from Python, about blocks that are nested too deep
)


class ChatTemplate:
    """A compiled template. ``owner`` names the checkpoint in errors.

    ``render`` raises ``ModelError`` for a template that is broken, refuses the messages, or works
    without end.
    """

    def __init__(self, source: str, special: Mapping[str, str], owner: str) -> None:
        self.source, self._special, self.owner = source, special, owner
        self._rounds = 0

    def render(self, messages: Sequence[Message], switches: Mapping[str, bool] = _NONE) -> str:
        """The conversation as text, up to where the model's answer begins; ``switches`` are
        variables that the template may ask for."""
        self._rounds = 0
        try:
            pieces = self._template.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
                **switches,
            )
            return _joined(pieces)
        except _FAULTS as error:
            raise ModelError(
                f"the chat template of {self.owner} is broken",
                reason=summary(error),
                hints=["do without it: --set prompt.template=raw"],
            ) from error

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters |= {"tojson": _to_json, _ROUNDS: self._counted, _SIZE: _sized}
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": _now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        return environment.from_string(_Bounds().visit(environment.parse(self.source)))

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._rounds += 1
            if self._rounds > _MAX_ROUNDS:
                raise jinja2.TemplateRuntimeError(f"it loops more than {_MAX_ROUNDS:,} times")
            yield item


@dataclass(frozen=True, slots=True)
class SwitchedTemplate:
    """A template with values for variables that it may ask for, ``enable_thinking`` among them."""

    template: ChatTemplate
    switches: Mapping[str, bool]

    @property
    def owner(self) -> str:
        """Names the checkpoint in errors."""
        return self.template.owner

    def render(self, messages: Sequence[Message]) -> str:
        """As ``ChatTemplate.render``."""
        return self.template.render(messages, self.switches)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds on the operators that make much of little."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**" and not abs(right) <= _MAX_EXPONENT:
            raise jinja2.TemplateRuntimeError(f"an exponent is above {_MAX_EXPONENT}")
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and len(one) * times > _MAX_CHARACTERS:
                    raise _too_long()
        return _sized(super().call_binop(context, operator, left, right))


class _Bounds(jinja2.visitor.NodeTransformer):
    """Puts a filter around whatever a loop runs over and around texts that are put together."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        self.generic_visit(node)
        node.iter = jinja2.nodes.Filter(node.iter, _ROUNDS, [], [], None, None)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Filter:
        self.generic_visit(node)
        return jinja2.nodes.Filter(node, _SIZE, [], [], None, None)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what a model wrote, for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """``dict`` without the type's attributes."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` whose names cannot reach into Python."""

    def __init__(*args: Any, **fields: Any) -> None:
        for name in dict(*args[1:], **fields):
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not have the name {name!r}")


def _sized(value: Any) -> Any:
    if isinstance(value, (str, list)) and len(value) > _MAX_CHARACTERS:
        raise _too_long()
    return value


def _joined(pieces: Iterable[str]) -> str:
    kept, size = [], 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > _MAX_CHARACTERS:
            raise _too_long()
    text = "".join(kept)
    text.encode()  # half a surrogate pair is no text
    return text


def _too_long() -> jinja2.TemplateRuntimeError:
    return jinja2.TemplateRuntimeError(f"it makes more than {_MAX_CHARACTERS:,} characters")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    style: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **style)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
