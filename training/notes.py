"""Words and templates of the planted sentences ("Note 482 says: …") and their questions.

In: a random generator. Out: texts. Knows no token and no document.
"""

from dataclasses import dataclass

import numpy as np


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(separator))


_ADJECTIVES = _words(
    """
    copper silver wooden broken hidden ancient yellow crimson quiet heavy narrow hollow frozen
    painted rusty velvet marble bitter gentle crooked golden dusty northern southern eastern
    western secret faded polished tangled restless amber iron paper glass orange purple green blue
    white black smooth jagged tiny enormous forgotten borrowed missing woven
    """
)
_NOUNS = _words(
    """
    lantern bridge compass violin harbor kettle orchard ladder mirror anchor basket candle drum
    engine feather garden hammer island jacket key lamp map needle oven piano quilt river saddle
    telescope umbrella valley wagon bell clock door window tower boat mill barn ferry statue
    tunnel cabin coin ring letter parcel trumpet blanket rocket tractor pump sensor archive
    """
)
_NAMES = _words(
    """
    Hallam Verona Kessel Marlow Tindal Oakhurst Brenner Salida Quimby Radley Norwood Pelham
    Dunmore Ashford Corbin Fenwick Galway Hadley Ilford Jarrow Kirkby Langley Merton Naseby Orwell
    Preston Ripley Selby Thornton Upton Vance Whitby Yarrow Zeller Alden Bishop Cardiff Denton
    Elgin Foster
    """
)
_PEOPLE = _words(
    """
    Anna Boris Clara David Elena Felix Greta Henry Irene Jacob Karen Louis Maria Nadia Oscar Paula
    Quentin Rosa Simon Teresa Ursula Victor Wanda Xavier Yusuf Zelda Arthur Bianca Carlos Diana
    """
)
_VERBS = _words(
    """
    carried painted repaired sold borrowed measured photographed hid found returned counted
    cleaned lost inspected moved stored donated described bought weighed
    """
)
_UNITS = _words(
    """
    pounds dollars meters gallons days miles kilograms crates letters acres tons hours
    """
)
_PLACES = _words(
    """
    behind the chapel | under the old bridge | near the harbor | inside the museum | beside the
    station | in the second drawer | at the edge of the forest | on the third floor | in a locked
    cellar | next to the bakery | below the clock tower | at the county fair | across from the
    library
    """,
    "|",
)
_MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
_TEMPLATES = (
    "the {adjective} {noun} of {name} weighs {number} {unit}.",
    "the {adjective} {noun} is kept {place}.",
    "{person} {verb} the {adjective} {noun} {place}.",
    "the meeting in {name} was moved to {month} {day}.",
    "{person} and {other} {verb} {number} {noun}s in {name}.",
    "the password for the {adjective} {noun} is {name}{number}.",
    "the best {noun} in {name} costs {number} {unit}.",
    "every {noun} must be {verb} before {month} {day}.",
    "the {noun} from {name} arrived {number} {unit} late with {person}.",
    "{person} said that the {adjective} {noun} was {verb} by {other}.",
    "the code of the {noun} is {number}-{day}-{small}.",
    "{name} has {number} {adjective} {noun}s and {small} {other_noun}s.",
)
_LABELS = (("Note", "says", "say"), ("Memo", "states", "state"), ("Entry", "reads", "read"))
_QUESTIONS = (
    "What does {label} {number} {verb}?",
    "What does {label} {number} {verb}?",
    "What does {label} {number} {verb}?",
    "Copy out what {label} {number} {says}.",
    "Tell me what {label} {number} {says}.",
    "Which sentence follows {label} {number}?",
)


@dataclass(frozen=True, slots=True)
class Label:
    """How a planted sentence is announced, and its number (1 to 9999)."""

    noun: str
    says: str
    verb: str
    number: int

    @property
    def text(self) -> str:
        """What stands before the content: "Note 482 says:"."""
        return f"{self.noun} {self.number} {self.says}:"

    def question(self, rng: np.random.Generator) -> str:
        """A question that asks for the content."""
        template = _QUESTIONS[rng.integers(len(_QUESTIONS))]
        return template.format(
            label=self.noun.lower(), number=self.number, verb=self.verb, says=self.says
        )


def label(rng: np.random.Generator, taken: set[int]) -> Label:
    """A label whose number is not in `taken`, which grows by it."""
    kind = _LABELS[0 if rng.random() < 0.85 else rng.integers(1, len(_LABELS))]
    number = _number(rng)
    while number in taken:
        number = int(rng.integers(1, 10_000))
    taken.add(number)
    return Label(*kind, number)


def sibling(rng: np.random.Generator, last: Label, taken: set[int]) -> Label:
    """A label of the same kind; its number is near the last a third of the time, so that every
    digit has to be read."""
    number = last.number + int(rng.integers(-20, 21)) if rng.random() < 0.33 else 0
    while not 1 <= number <= 9999 or number in taken:
        number = int(rng.integers(1, 10 ** int(rng.integers(2, 5))))
    taken.add(number)
    return Label(last.noun, last.says, last.verb, number)


def content(rng: np.random.Generator) -> str:
    """A made-up sentence without a capital of its own."""

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    return template.format(
        adjective=pick(_ADJECTIVES), noun=pick(_NOUNS), other_noun=pick(_NOUNS),
        name=pick(_NAMES), person=pick(_PEOPLE), other=pick(_PEOPLE), verb=pick(_VERBS),
        unit=pick(_UNITS), place=pick(_PLACES), month=pick(_MONTHS), number=_number(rng),
        day=rng.integers(1, 29), small=rng.integers(2, 100),
    )  # fmt: skip


def _number(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 10 ** int(rng.integers(2, 5))))
