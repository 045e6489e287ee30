"""Natural text to measure on, from files, from the Hub, or the sample that comes with specx. In:
names of sources. Out: texts, and a record of everything that was left out; and a text cut so that
its whole prompt has a wanted number of tokens."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from specx.bench.schema import BenchDocument, SkippedText
from specx.checkpoints.download import fetch_file
from specx.checkpoints.repository import find, not_cached
from specx.documents.document import read_document
from specx.errors import DocumentError, UsageError

if TYPE_CHECKING:
    from specx.engine import Engine
    from specx.prompts import Prompt, Prompter

MAX_LINE_BYTES = 16 << 20
MAX_FILE_BYTES = 1 << 30  # of lines; reached only by a file with almost no usable one
MAX_CHARACTERS = 256 << 20  # of all texts together
MAX_SKIPPED = 100  # named one by one; the rest is counted
MAX_BELOW_TOKENS = 8
_LINES = (".jsonl", ".jsonl.gz")
_TABLES = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.zst", ".jsonl.bz2", ".jsonl.xz")
_TEXTS = (".txt", ".md", ".markdown", ".text", ".gz")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
#: Parts of a file's name, the most wanted first: what a model was not trained on.
_SPLITS = (r"(?<![a-z])test(?![a-z])", r"(?<![a-z])(validation|valid|val|dev)(?![a-z])")
# The evaluation files published with SpecExtend wrap every text in a request of their own; the
# preset's takes its place.
_FRAME_BEGIN = re.compile(r"\A.{0,300}?^### Text:[ \t]*\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Text:
    name: str
    text: str

    @property
    def document(self) -> BenchDocument:
        sha256 = hashlib.sha256(self.text.encode()).hexdigest()
        return BenchDocument(name=self.name, sha256=sha256, characters=len(self.text))


@dataclass(frozen=True, slots=True)
class BenchData:
    """Different texts in the order of reading, more than were asked for where there are more."""

    name: str
    documents: tuple[Text, ...]
    skipped: tuple[SkippedText, ...]


Found = Iterator[Text | SkippedText]


def load_data(
    spec: str | Sequence[str], *, field: str = "text", samples: int, offline: bool = False
) -> BenchData:
    """Texts of ``sample``, of files, or of a data set ``OWNER/NAME`` on the Hub. A file is one
    text, or JSON lines (``.jsonl``, ``.jsonl.gz``) with a text in ``field``. Several sources take
    turns. As some texts will be too short, up to 4 × ``samples`` + 32 are read. Raises
    ``DocumentError``, ``UsageError``, ``ModelUnavailableError``, ``ResourceError``."""
    if samples < 1:
        raise UsageError(f"the number of documents must be at least 1, not {samples}")
    specs = (spec,) if isinstance(spec, str) else tuple(dict.fromkeys(spec))
    if not specs:
        raise UsageError("no data was named", hints=["name a file, a data set, or: sample"])
    names = [each if _is_repo(each) else os.path.basename(each) or each for each in specs]
    name = "+".join([*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])])
    texts: dict[str, Text] = {}
    skipped: list[SkippedText] = []
    left_out = characters = 0
    in_turns = zip_longest(*[_texts_of(each, field, offline) for each in specs])
    for found in filter(None, chain.from_iterable(in_turns)):
        if isinstance(found, Text):
            first = texts.setdefault(found.text, found)
            if first is found:
                characters += len(found.text)
                if len(texts) >= 4 * samples + 32 or characters >= MAX_CHARACTERS:
                    break
                continue
            found = SkippedText(where=found.name, reason=f"the same text as {first.name}")
        left_out += 1
        if left_out <= MAX_SKIPPED:
            skipped.append(found)
    if (more := left_out - MAX_SKIPPED) > 0:
        skipped.append(SkippedText(where=name, reason=f"{more:,} more, not named one by one"))
    if not texts:
        reasons = [f"{each.where}: {each.reason}" for each in skipped[:3]]
        raise DocumentError(
            f"there is no usable text in {name}",
            reason="; ".join(reasons + ["and so on"] * (len(skipped) > 3)) or "it is empty",
            hints=[f"a line is a JSON object with a text in its field {field!r}"],
        )
    return BenchData(name, tuple(texts.values()), tuple(skipped))


def cut_prompt(maker: "Engine | Prompter", text: str, tokens: int) -> "Prompt | None":
    """The summary request over the beginning of ``text`` that has ``tokens`` tokens in all.
    Template, instruction and BOS count. Nothing is padded or repeated: None when ``text`` is too
    short. Where no cut fits exactly, up to 8 tokens fewer, never more. Raises ``UsageError`` when
    the request leaves no room for a document."""
    smallest = maker.prompt("x")
    frame_tokens = len(smallest.tokens) - smallest.document_tokens
    keep = tokens - frame_tokens
    if keep < 1:
        raise UsageError(
            f"a prompt of {tokens:,} tokens leaves no room for a document",
            reason=f"template and instruction alone have {frame_tokens:,}",
        )
    ends: list[int] = []
    wanted, characters = keep + MAX_BELOW_TOKENS, 0
    while len(ends) < wanted and characters < len(text):
        characters = 2 * characters or 6 * wanted  # a token of prose is usually shorter than 6
        ends = maker.tokenizer.token_ends(text[:characters])
    if len(ends) < wanted:  # perhaps too short
        whole = maker.prompt(text)
        if len(whole.tokens) <= tokens:
            return whole if len(whole.tokens) == tokens else None
    if not ends:
        return None
    tried: dict[int, Prompt] = {}

    def excess_of(count: int) -> int:
        if count not in tried:
            tried[count] = maker.prompt(text[: ends[count - 1]])
        return len(tried[count].tokens) - tokens

    # The count of the whole is not the sum of its parts: a word that was cut in two, or the line
    # break after the last word, may be encoded in another way. So the excess corrects the cut.
    keep = min(keep, len(ends))
    for _ in range(4):
        keep = min(max(1, keep - excess_of(keep)), len(ends))
    around = range(max(1, keep - MAX_BELOW_TOKENS), min(len(ends), keep + MAX_BELOW_TOKENS) + 1)
    for count in sorted(around, key=lambda count: abs(count - keep)):
        if excess_of(count) == 0:
            break
    least = tokens - MAX_BELOW_TOKENS
    near = [prompt for prompt in tried.values() if least <= len(prompt.tokens) <= tokens]
    return max(near, key=lambda prompt: len(prompt.tokens), default=None)


def _is_repo(spec: str) -> bool:
    """Whether it looks like a data set's name and neither is nor looks like a file."""
    is_file = spec.lower().endswith((*_LINES, *_TABLES, *_TEXTS)) or os.path.exists(spec)
    return _REPO.fullmatch(spec) is not None and not is_file


def _texts_of(spec: str, field: str, offline: bool) -> Found:
    """Read as it is asked for; what a source cannot be is refused at once."""
    if spec == "sample":
        return _read_lines(spec, Path(__file__).parent / "sample.jsonl", field)
    if _is_repo(spec):
        path = _hub_file(spec, offline=offline)
        return _read_lines(f"{spec}/{path.name}", path, field)
    path = Path(os.path.expanduser(spec))
    if os.path.isdir(path):
        raise DocumentError(f"{spec} is a directory", hints=["name the files in it"])
    exists, name = os.path.exists(path), path.name.lower()
    if exists and name.endswith(_TABLES):
        raise DocumentError(
            f"{spec} is neither text nor JSON lines",
            hints=["write one JSON object a line into a .jsonl or .jsonl.gz file"],
        )
    if exists and name.endswith(_LINES):
        return _read_lines(path.name, path, field)
    return _read_whole(path)  # looks for similar names where there is no such file


def _hub_file(repo: str, *, offline: bool) -> Path:
    """A file of JSON lines of data set ``OWNER/NAME``, a test split if there is one."""
    source = find(repo, None, offline=offline, kind="dataset")
    if source.files is not None:
        return fetch_file(source, source.files[_choose(repo, source.files)])
    paths = filter(Path.is_file, source.directory.rglob("*"))
    try:
        names = [path.relative_to(source.directory).as_posix() for path in paths]
        return source.directory / _choose(repo, names)
    except UsageError as error:  # of other files, which say nothing of what the Hub has
        raise not_cached(repo, "dataset") from error


def _choose(repo: str, names: Iterable[str]) -> str:
    names = sorted(names)
    usable = [name for name in names if name.lower().endswith(_LINES)]
    if not usable:
        counts = Counter(os.path.splitext(name)[1][:20] for name in names)
        counts.pop("", None)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
        raise UsageError(
            f"data set {repo} holds no {' or '.join(_LINES)} file",
            reason=f"it holds {kinds or 'no data'}",
            hints=["convert one to JSON lines, one object a line, and name that file"],
        )
    wanted = (name for split in _SPLITS for name in usable if re.search(split, name.lower()))
    return next(wanted, usable[0])


def _read_whole(path: Path) -> Found:
    try:
        document = read_document(str(path))
    except DocumentError as error:
        hints = [hint for hint in error.hints if " | specx " not in hint and "--" not in hint]
        if len(hints) < len(error.hints):  # they were about other commands
            hints.append("a file of UTF-8 text is needed")
        raise DocumentError(error.message, reason=error.reason, hints=hints) from error
    yield Text(document.name, document.text)


def _read_lines(label: str, path: Path, field: str) -> Found:
    stem, number = re.sub(r"\.jsonl(\.gz)?$", "", label, flags=re.IGNORECASE), 0
    try:
        plain = path.open("rb")
    except OSError as error:
        raise DocumentError(f"{path} cannot be read", reason=error.strerror or "") from error
    with plain, gzip.open(plain) if path.name.lower().endswith(".gz") else plain as file:
        try:
            for number, raw in enumerate(_lines(file.readline), start=1):
                try:
                    name, text = _parse(raw, field)
                except ValueError as error:
                    if raw.strip():
                        yield SkippedText(where=f"{label} line {number}", reason=str(error))
                    continue
                yield Text(name or f"{stem}-{number}", text)
        except (OSError, EOFError, zlib.error) as error:
            yield SkippedText(
                where=f"{label} line {number + 1}", reason=f"the file is damaged: {error}"
            )
        except OverflowError as error:
            yield SkippedText(where=label, reason=str(error))


def _lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long, its first part. Raises ``OverflowError``."""
    total = 0
    while line := read(MAX_LINE_BYTES + 1):
        total += len(line)
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n") and total < MAX_FILE_BYTES:
            line = read(MAX_LINE_BYTES + 1) or b"\n"
            total += len(line)
        if total >= MAX_FILE_BYTES:
            raise OverflowError(f"not read beyond {MAX_FILE_BYTES >> 20:,} MiB")


def _parse(raw: bytes, field: str) -> tuple[str, str]:
    """Name (or "") and text of a line. Raises ``ValueError``, which says what is wrong with it."""
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if field not in row:
        fields = ", ".join(each[:30] for each in list(row)[:6]) or "none"
        raise ValueError(f"no field {field!r}; there are: {fields}")
    if not isinstance(row[field], str):
        raise ValueError(f"field {field!r} is not a string")
    text, name = unframed(row[field]), row.get("name")
    if not text:
        raise ValueError("the text is empty")
    if found := re.search("[\ud800-\udfff\0]", text):
        kind = "NUL characters" if found[0] == "\0" else "half a surrogate pair"
        raise ValueError(f"the text holds {kind}")
    has_name = isinstance(name, str) and len(name) <= 80 and name.isprintable()
    return str(name).strip() if has_name else "", text


def unframed(text: str) -> str:
    """``text`` without the prompt that SpecExtend's evaluation files put around it."""
    begin = _FRAME_BEGIN.match(text)
    if begin is None:
        return text.strip()
    return text[begin.end() :].strip().removesuffix("### Summary:").strip()
