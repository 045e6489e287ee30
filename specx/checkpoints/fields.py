"""Typed values out of a config.json that a stranger wrote; every error names the field.

``null`` counts as not said. All functions raise ``ModelError``; who knows the file names it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from specx.errors import ModelError


def whole(fields: Mapping[str, Any], name: str, most: int, otherwise: int | None = None) -> int:
    """A whole number between 1 and ``most``."""
    value = fields.get(name)
    value = otherwise if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise wrong(name, value, f"it must be a whole number between 1 and {most}")
    return value


def number(
    fields: Mapping[str, Any], name: str, above: float, below: float, otherwise: object = None
) -> float:
    """A number between ``above`` and ``below``, and neither of them."""
    value = fields.get(name)
    value = otherwise if value is None else value
    if type(value) not in (int, float) or not above < value < below:  # type: ignore[operator]
        raise wrong(name, value, f"it must be a number between {above:g} and {below:g}")
    return float(value)  # type: ignore[arg-type]


def flag(fields: Mapping[str, Any], name: str) -> bool | None:
    """A setting that is on or off; None where ``fields`` do not say."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, value, "it must be true or false")
    return value


def check_activation(fields: Mapping[str, Any], what: str) -> None:
    """Refuse every activation but SiLU, which ``what`` has."""
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise wrong("hidden_act", fields["hidden_act"], f"specx runs {what} with silu")


def wrong(name: str, value: object, reason: str) -> ModelError:
    """The error for a ``value`` that cannot be in the field ``name``."""
    return ModelError(f"{name} is {str(value)[:40]}", reason=reason)


@contextlib.contextmanager
def naming(place: object) -> Iterator[None]:
    """Begin the message of a ``ModelError`` from this block with ``place``."""
    try:
        yield
    except ModelError as error:
        message = f"{place}: {error.message}"
        raise ModelError(message, reason=error.reason, hints=error.hints) from error
