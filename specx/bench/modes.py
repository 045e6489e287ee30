"""Names of what is compared: modes, modes with a single part replaced, and outside witnesses.

The paper's ablation (SpecExtend, arXiv 2505.20776, Table 4) starts from ``standard``: tree
speculation with dense prefill attention, masked tree attention and a full draft cache; each of its
rows replaces one part. ``gpu`` takes away, one at a time, what makes a step fast on a GPU.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

from specx.errors import UsageError

Witness = Literal["hf", "hf-assisted"]

#: A base is a mode of the engine, with parts of its own.
BASES: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "plain": ("plain", {}),
        "standard": ("spec", {"prefill_attention": "eager", "tree_attention": "masked"}),
        "spec": ("spec", {}),
        "specx": ("specx", {}),
        "auto": ("auto", {}),
        "lookup": ("specx", {"drafter": "lookup"}),
    }
)
#: What ``+NAME`` replaces. ``plain`` has an attention over one row, layers and graphs too.
PARTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "eager": ("prefill_attention", "eager"),
        "flash": ("prefill_attention", "fused"),
        "masked": ("tree_attention", "masked"),
        "hybrid": ("tree_attention", "hybrid"),
        "full": ("draft_cache", "full"),
        "window": ("draft_cache", "window"),
        "retrieval": ("draft_cache", "retrieval"),
        "draft-full": ("draft_prefill", "full"),
        "draft-window": ("draft_prefill", "window"),
        "triton": ("tree_attention", "triton"),
        "flash-attn": ("tree_attention", "flash"),
        "sdpa": ("tree_attention", "sdpa"),
        "no-graphs": ("launch", "eager"),
        "copies": ("copies", "tree"),
        "no-copies": ("copies", "none"),
    }
)
WITNESSES: Mapping[str, str] = MappingProxyType(
    {
        "hf": "transformers' own generate",
        "hf-assisted": "transformers' assisted generation with the same draft",
    }
)
#: The method's parts, each alone upon the plainest speculation.
_STANDARD = (
    "standard",
    *(f"standard+{part}" for part in ("flash", "hybrid", "window", "retrieval")),
)
_PLAIN_ON_GPU = ("plain", "plain+no-graphs", "plain+sdpa")
_SPECX_ON_GPU = ("specx", *(f"specx+{part}" for part in ("no-graphs", "sdpa", "window", "full")))
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": ("plain", "spec", "specx"),
        "ablation": ("plain", *_STANDARD, "specx"),
        "gpu": (*_PLAIN_ON_GPU, *_SPECX_ON_GPU, "hf"),
        "witnesses": tuple(WITNESSES),
        "all": ("plain", "spec", "specx", "auto", "lookup", *_STANDARD, *WITNESSES),
    }
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to run. A witness is not run by the engine and has no parts."""

    name: str
    mode: str
    parts: Mapping[str, str]
    witness: Witness | None = None


def parse_modes(words: Sequence[str]) -> list[Variant]:
    """``["plain", "spec,specx+window"]`` as variants, groups expanded, in order, without repeats.

    Raises ``UsageError`` for an unknown name, with the nearest ones.
    """
    names: list[str] = []
    for word in ",".join(words).split(","):
        name = word.strip()
        names += GROUPS.get(name, (name,))
    return [parse_mode(name) for name in dict.fromkeys(names)]


def parse_mode(name: str) -> Variant:
    """One variant by name: ``specx``, ``standard+window``, ``hf``. Raises ``UsageError``."""
    if name in WITNESSES:
        return Variant(name, "plain", {}, cast(Witness, name))
    base, *changes = name.split("+")
    if base not in BASES:
        raise _unknown("mode", base, (*BASES, *WITNESSES, *GROUPS), name)
    mode, parts = BASES[base]
    parts = dict(parts)
    for change in changes:
        if change not in PARTS:
            raise _unknown("part", change, PARTS, name)
        part, value = PARTS[change]
        parts[part] = value
    return Variant(name, mode, MappingProxyType(parts))


def _unknown(what: str, word: str, known: Iterable[str], whole: str) -> UsageError:
    names = list(known)
    where = "" if word == whole else f" in {whole!r}"
    listed = (f"{what}s: {', '.join(names)}", "for example specx+window, standard+hybrid")
    return UsageError(
        f"unknown {what} {word!r}{where}", hints=(*did_you_mean(word, names), *listed)
    )


def did_you_mean(word: str, known: Iterable[str]) -> list[str]:
    """At most one hint, with the two nearest names at most."""
    near = difflib.get_close_matches(word, list(known), n=2)
    return [f"did you mean {' or '.join(near)}?"] if near else []
