"""Raw training text into clean pieces: sentences, headings and the white space between them.

In: the text of one document. Out: `Piece` values, in order, whose texts and separators give the
document back. Knows no file, no tokenizer and no model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

UNFIT = -9.0
"""Prior of a sentence that must never stand in an extractive summary."""

MIN_WORDS, MAX_WORDS = 6, 70
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 8, 55

_SPECIAL = re.compile(r"</?s>|<\|(?:user|assistant|reserved\d*)\|>")
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u3000]+")
_INVISIBLE = re.compile(r"[\u200b-\u200f\u2028\u2029\ufeff\u00ad]")
_BORDER = re.compile(r"""[.?!]["'”’)\]]{0,2}(?=\s+["“'‘(\[]?[A-Z0-9])""")
_INITIALS = re.compile(r"(?:^|[\s(\[])(?:[A-Za-z]\.)*[A-Za-z]$")
_LAST_WORD = re.compile(r"([A-Za-z.]+)$")
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """
        al amdt approx apr art arts aug ave blvd capt cf ch chs cit co col cong corp dec
        dept dr e.g ed eds eq est etc feb fig figs ft gen gov hon i.e ibid inc jan jr jul
        jun lt ltd mar messrs mlle mme mr mrs ms mt no nos nov oct op p para ph.d pp prof
        pub ref refs rep reps res rev sec secs sen sens sep sept sgt sp spp sr st stat
        subsec subsp supp tab u.s.c var viz vol vols vs
        """,
    )
)
_CUE = re.compile(
    r"\b(?:report(?:ed|s)?|found|finds|recommend\w*|provid(?:es|ed)|requir(?:es|ed)|in summary|"
    r"established|total(?:ed|s)?|conclu\w+|show(?:s|ed)|suggest(?:s|ed)|estimat\w+|authori[sz]\w+|"
    r"purpose|important|significant\w*|result(?:s|ed)|increas\w+|declin\w+|propos\w+|main|primary)\b",
    re.IGNORECASE,
)
_WEAK_START = re.compile(
    r"(?:He|She|It|They|This|These|Those|That|Such|But|And|Or|So|I|We|You|His|Her|Their|Its|My|Our|"
    r"There|Here|Then|Yet|For example|For instance|See|Note|Figure|Fig|Table|Mr|Mrs)\b"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document: `separator` stands before `text`.

    `sentence` says that it is a whole, quotable sentence; `prior` is its fitness for a summary
    before its words are weighed (0 is neutral, `UNFIT` excludes it).
    """

    separator: str
    text: str
    sentence: bool
    prior: float


def clean(text: str) -> str:
    """Plain text with single spaces, no invisible characters and no chat markers."""
    text = _SPECIAL.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    lines = (line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def pieces(text: str) -> list[Piece]:
    """Cut a cleaned document at its sentence borders; white space goes before each piece.

    Lines of a hard-wrapped text belong together; in other texts a line is a paragraph.
    """
    out: list[Piece] = []
    pattern = r"(\n\n+)" if is_wrapped(text) else r"(\n+)"
    parts = re.split(pattern, text)
    for index in range(0, len(parts), 2):
        separator = parts[index - 1] if index else ""
        for sentence in sentences(parts[index]):
            whole = is_sentence(sentence)
            out.append(Piece(separator, sentence, whole, prior(sentence) if whole else UNFIT))
            separator = " "
    return out


def joined(parts: list[Piece]) -> list[Piece]:
    """The same document on one line, without headings and other short fragments."""
    kept = [piece for piece in parts if _ends(piece.text) or len(piece.text.split()) >= 12]
    return [
        Piece(
            " " if index else "",
            _SPACES.sub(" ", piece.text.replace("\n", " ")),
            piece.sentence,
            piece.prior,
        )
        for index, piece in enumerate(kept)
    ]


def is_wrapped(text: str) -> bool:
    """True when most lines of the text end where a column does, as in Gutenberg's files."""
    lengths = [len(line) for line in text[:40_000].split("\n") if line]
    if len(lengths) < 20:
        return False
    column = sum(50 <= length <= 80 for length in lengths)
    return column > 0.5 * len(lengths) and max(lengths) < 120


def sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph; white space between them is dropped."""
    start = 0
    for match in _BORDER.finditer(paragraph):
        before = paragraph[max(start, match.start() - 24) : match.start()]
        if paragraph[match.start()] == "." and _is_abbreviation(before):
            continue
        yield paragraph[start : match.end()]
        start = match.end()
        while start < len(paragraph) and paragraph[start].isspace():
            start += 1
    if start < len(paragraph):
        yield paragraph[start:]


def _is_abbreviation(before: str) -> bool:
    if _INITIALS.search(before):
        return True
    word = _LAST_WORD.search(before)
    return word is not None and word.group(1).lower() in _ABBREVIATIONS


def is_sentence(text: str) -> bool:
    """A quotable sentence: 6 to 70 words, a capital first, `.?!` last, mostly letters."""
    words = text.count(" ") + text.count("\n") + 1
    if not MIN_WORDS <= words <= MAX_WORDS or len(text) > 12 * words + 40:
        return False
    if not _ends(text):
        return False
    if not text.lstrip("\"'“‘([")[:1].isupper():
        return False
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return letters >= 0.7 * len(text)


def _ends(text: str) -> bool:
    return text.rstrip("\"'”’)]").endswith((".", "?", "!"))


def prior(text: str) -> float:
    """Fitness of a sentence for a summary by its form alone; `UNFIT` where it must not stand."""
    words = text.count(" ") + text.count("\n") + 1
    digits = sum(character.isdigit() for character in text)
    balanced = text.count("(") == text.count(")") and text.count("[") == text.count("]")
    if not MIN_SUMMARY_WORDS <= words <= MAX_SUMMARY_WORDS or digits > 0.1 * len(text):
        return UNFIT
    if not balanced or not text[0].isupper() or text[-1] != "." or '"' in text or "“" in text:
        return UNFIT
    value = 0.7 if _CUE.search(text) else 0.0
    value -= 0.9 if _WEAK_START.match(text) else 0.0
    value -= 0.5 if words < 12 else 0.0
    value -= 0.4 if words > 40 else 0.0
    return value - 0.1 * (text.count(";") + text.count(":"))
