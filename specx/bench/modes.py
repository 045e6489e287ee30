"""Names of what is compared: modes, modes with a single part replaced, and outside witnesses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from specx.errors import UsageError
from specx.preset.yaml import did_you_mean

#: A base is a mode of the engine, with parts of its own.
BASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "plain": ("plain", {}),
    "standard": ("spec", {"prefill_attention": "eager", "tree_attention": "masked"}),
    "spec": ("spec", {}),
    "specx": ("specx", {}),
    "auto": ("auto", {}),
    "lookup": ("specx", {"drafter": "lookup"}),
}
#: What ``+NAME`` replaces. ``plain`` has an attention over one row, layers and graphs too.
PARTS: Mapping[str, tuple[str, str]] = {
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
#: What transformers runs, not the engine.
WITNESSES: Mapping[str, str] = {
    "hf": "transformers' own generate",
    "hf-assisted": "transformers' assisted generation with the same draft",
}
# The ablation of SpecExtend (arXiv 2505.20776, Table 4): the method's parts, each alone upon the
# plainest speculation.
_STANDARD = ("standard", *(f"standard+{it}" for it in ("flash", "hybrid", "window", "retrieval")))
# What makes a step fast on a GPU, taken away one at a time.
_ON_GPU = ("plain", "plain+no-graphs", "plain+sdpa", "specx", "specx+no-graphs", "specx+sdpa")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "default": ("plain", "spec", "specx"),
    "ablation": ("plain", *_STANDARD, "specx"),
    "gpu": (*_ON_GPU, "specx+window", "specx+full", "hf"),
    "witnesses": tuple(WITNESSES),
    "all": ("plain", "spec", "specx", "auto", "lookup", *_STANDARD, *WITNESSES),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to run. A witness is not run by the engine and has no parts."""

    name: str
    mode: str
    parts: Mapping[str, str]


def parse_modes(words: Sequence[str]) -> list[Variant]:
    """``["plain", "spec,specx+window"]`` as variants, groups expanded, in order, without repeats.
    Raises ``UsageError`` for an unknown name, with the nearest one."""
    names: list[str] = []
    for name in map(str.strip, ",".join(words).split(",")):
        names += GROUPS.get(name, (name,))
    return [parse_mode(name) for name in dict.fromkeys(names)]


def parse_mode(name: str) -> Variant:
    """One variant by name: ``specx``, ``standard+window``, ``hf``. Raises ``UsageError``."""
    if name in WITNESSES:
        return Variant(name, "plain", {})
    base, *changes = name.split("+")
    if base not in BASES:
        raise _unknown("mode", base, (*BASES, *WITNESSES, *GROUPS), name)
    mode, parts = BASES[base]
    for change in changes:
        if change not in PARTS:
            raise _unknown("part", change, PARTS, name)
        part, value = PARTS[change]
        parts = {**parts, part: value}
    return Variant(name, mode, parts)


def _unknown(what: str, word: str, known: Iterable[str], whole: str) -> UsageError:
    where = "" if word == whole else f" in {whole!r}"
    listed = (f"{what}s: {', '.join(known)}", "for example specx+window, standard+hybrid")
    hints = (*did_you_mean(word, known), *listed)
    return UsageError(f"unknown {what} {word!r}{where}", hints=hints)
