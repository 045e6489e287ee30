"""The training corpus as token arrays on disk: read, clean, cut into sentences, tokenise, cache.

In: a folder with the two files, `.jsonl.zst` or unpacked `.jsonl`, and the tokenizer. Out: a
`Corpus`, memory-mapped arrays that worker processes share. Knows nothing of tasks or models.
"""

import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training import text as texts

FILES = ("train_text.jsonl.zst", "train_summ.jsonl.zst", "train_text.jsonl", "train_summ.jsonl")
CACHE_VERSION = 4
SUMMARY = "summary"
"""Category of the reference summaries; they stand among the documents but are never sampled."""

HELD_OUT_ONE_IN = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One document of the corpus files; `kind` is the pair's type, empty for plain text."""

    text: str
    category: str
    kind: str
    summary: str
    source: str

    @property
    def key(self) -> int:
        """A number that depends only on where the document came from: shuffles and splits."""
        return int.from_bytes(hashlib.blake2b(self.source.encode(), digest_size=8).digest())


def read_rows(folder: Path) -> Iterator[Row]:
    """All rows of the corpus files found in `folder`, without repeated texts.

    Raises FileNotFoundError where none of the files is there.
    """
    found = [folder / name for name in FILES if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(f"none of {', '.join(FILES)} in {folder}")
    seen: set[bytes] = set()
    for path in found:
        for line in _lines(path):
            row = _row(json.loads(line))
            digest = hashlib.blake2b(row.text[:4000].encode(), digest_size=12).digest()
            if digest not in seen:
                seen.add(digest)
                yield row


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if path.suffix != ".zst":
            yield from io.TextIOWrapper(file, encoding="utf-8")
            return
        import zstandard

        with zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file) as stream:
            yield from io.TextIOWrapper(stream, encoding="utf-8")


def _row(fields: dict[str, object]) -> Row:
    def field(name: str) -> str:
        value = fields.get(name)
        return value if isinstance(value, str) else ""

    return Row(field("text"), field("cat"), field("type"), field("summary"), field("source"))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised documents, each in its own lines and once more joined on one line.

    `tokens` [N] uint16 holds all documents; document `d` is `tokens[offsets[d]:offsets[d + 1]]`.
    Its quotable sentences are `spans[span_offsets[d]:span_offsets[d + 1]]`, rows of (start, end)
    counted from the document's first token, with the fitness `priors` of each. `pairs[d]` is the
    document that holds its reference summary, or -1.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    priors: np.ndarray
    categories: np.ndarray
    held_out: np.ndarray
    pairs: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Tokens of every document."""
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        """The tokens of document `index`, a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def sentences(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(spans [S, 2], priors [S]) of document `index`."""
        where = slice(self.span_offsets[index], self.span_offsets[index + 1])
        return self.spans[where], self.priors[where]


_ARRAYS = (
    "tokens", "offsets", "spans", "span_offsets", "priors", "categories", "held_out", "pairs",
)  # fmt: skip


def load(folder: Path, cache: Path, tokenizer: Path, *, processes: int | None = None) -> Corpus:
    """The corpus of `folder`, tokenised into `cache` unless it is there already."""
    stamp = {
        "version": CACHE_VERSION,
        "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        "files": [name for name in FILES if (folder / name).exists()],
    }
    meta = cache / "corpus.json"
    if not meta.exists() or json.loads(meta.read_text())["stamp"] != stamp:
        cache.mkdir(parents=True, exist_ok=True)
        names = _build(folder, cache, tokenizer, processes or len(os.sched_getaffinity(0)))
        meta.write_text(json.dumps({"stamp": stamp, "names": names}))
    names = json.loads(meta.read_text())["names"]
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Corpus(**arrays, names=tuple(names))


def wanted(row: Row) -> bool:
    """False for what is sampled out: half of the plant articles, most one-sentence abstracts."""
    if row.kind == "sci_article" and "tigr2ess" in row.source:
        return row.key % 2 == 0
    return row.kind != "abstract_tldr" or row.key % 4 == 0


def _build(folder: Path, cache: Path, tokenizer: Path, processes: int) -> list[str]:
    rows = sorted(filter(wanted, read_rows(folder)), key=lambda row: row.key)
    names = sorted({_category(row) for row in rows} | {SUMMARY})
    jobs = list(_batches(rows, chars=400_000))
    with multiprocessing.get_context("fork").Pool(
        processes, initializer=_start_worker, initargs=(str(tokenizer), names)
    ) as pool:
        batches = pool.map(_encode_rows, jobs, chunksize=1)
    documents = [document for batch in batches for document in batch]
    for name, array in _arrays(documents).items():
        np.save(cache / f"{name}.npy", array)
    return names


def _category(row: Row) -> str:
    """Sections repeat chapters, so they serve only as the documents of summary pairs."""
    return "section" if row.kind == "textbook_section" else row.category


def _batches(rows: Iterable[Row], *, chars: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Document:
    tokens: np.ndarray
    spans: np.ndarray
    priors: np.ndarray
    category: int
    held_out: bool
    is_summary: bool = False


_worker: dict[str, object] = {}


def _start_worker(tokenizer: str, names: list[str]) -> None:
    _worker["tokenizer"] = Tokenizer.from_file(tokenizer)
    _worker["names"] = names


def _encode_rows(rows: list[Row]) -> list[_Document]:
    """Both forms of each row, each followed by its reference summary where there is one."""
    tokenizer, names = _worker["tokenizer"], _worker["names"]
    assert isinstance(tokenizer, Tokenizer)
    assert isinstance(names, list)
    out: list[_Document] = []
    for row in rows:
        parts = texts.pieces(texts.clean(row.text))
        held_out = row.key % HELD_OUT_ONE_IN == 0
        summary = texts.clean(row.summary)
        for form in (parts, texts.joined(parts)):
            out.append(_encode(tokenizer, form, names.index(_category(row)), held_out))
            if summary:
                tokens = np.array(tokenizer.encode(summary).ids, np.uint16)
                empty = np.zeros((0, 2), np.int32), np.zeros(0, np.float32)
                out.append(_Document(tokens, *empty, names.index(SUMMARY), held_out, True))
    return out


def _encode(
    tokenizer: Tokenizer, parts: list[texts.Piece], category: int, held_out: bool
) -> _Document:
    """Tokenise piece by piece: no token spans a sentence border (see `tokenizer.SPLIT`)."""
    strings: list[str] = []
    for piece in parts:
        if piece.separator in ("", " "):
            strings += ["", piece.separator + piece.text]
        else:
            strings += [piece.separator, piece.text]
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(strings)]
    ends = np.cumsum([len(one) for one in ids]) if ids else np.zeros(0, np.int64)
    quotable = np.array([piece.sentence for piece in parts], bool)
    starts, stops = ends[0::2], ends[1::2]
    spans = np.stack([starts, stops], 1)[quotable] if len(parts) else np.zeros((0, 2))
    priors = np.array([piece.prior for piece in parts], np.float32)[quotable]
    tokens = np.array([token for one in ids for token in one], np.uint16)
    return _Document(tokens, spans.astype(np.int32), priors, category, held_out)


def _arrays(documents: list[_Document]) -> dict[str, np.ndarray]:
    def offsets(sizes: Iterable[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(list(sizes))]).astype(np.int64)

    followed = [document.is_summary for document in documents[1:]] + [False]
    pairs = [index + 1 if pair else -1 for index, pair in enumerate(followed)]
    return {
        "tokens": np.concatenate([document.tokens for document in documents]),
        "offsets": offsets(len(document.tokens) for document in documents),
        "spans": np.concatenate([document.spans for document in documents]),
        "span_offsets": offsets(len(document.spans) for document in documents),
        "priors": np.concatenate([document.priors for document in documents]),
        "categories": np.array([document.category for document in documents], np.uint8),
        "held_out": np.array([document.held_out for document in documents], bool),
        "pairs": np.array(pairs, np.int64),
    }
