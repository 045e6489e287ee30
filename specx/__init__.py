"""specx: long documents through local language models, several times faster, token for token the
same text.

    import specx

    engine = specx.load("pocket")
    prompt = engine.prompt(document, "Summarize the text above.")
    for event in engine.stream(prompt): ...        # specx.Prefill | specx.TextChunk
    result = engine.generate(prompt)               # specx.Result

Importing this package does not import torch; ``load`` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specx._version import __version__

if TYPE_CHECKING:
    from specx.core.config import SamplingConfig
    from specx.core.stats import GenerationStats, Prefill, StepStats
    from specx.engine import Engine, load
    from specx.errors import SpecxError
    from specx.preset.preset import Preset
    from specx.prompts import Prompt
    from specx.stream import Result, Stream, TextChunk, Thought, Verification

_HOMES = {
    "Engine": "specx.engine",
    "GenerationStats": "specx.core.stats",
    "Prefill": "specx.core.stats",
    "Preset": "specx.preset.preset",
    "Prompt": "specx.prompts",
    "Result": "specx.stream",
    "SamplingConfig": "specx.core.config",
    "SpecxError": "specx.errors",
    "StepStats": "specx.core.stats",
    "Stream": "specx.stream",
    "TextChunk": "specx.stream",
    "Thought": "specx.stream",
    "Verification": "specx.stream",
    "load": "specx.engine",
}

__all__ = [
    "Engine",
    "GenerationStats",
    "Prefill",
    "Preset",
    "Prompt",
    "Result",
    "SamplingConfig",
    "SpecxError",
    "StepStats",
    "Stream",
    "TextChunk",
    "Thought",
    "Verification",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
