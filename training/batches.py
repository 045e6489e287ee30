"""Batches of training sequences, written by worker processes.

In: where the corpus lies, a mixture, a seed. Out: an endless iterator of `Batch`es on a device.
Batch k of a phase is the same for every number of workers. Knows no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.corpus import Corpus, load
from training.tasks import Mixture, Sequence, SequenceWriter

POINTER_ROWS = 256


class Batch(NamedTuple):
    """`tokens` [B, T + 1] and `kinds` [B, T + 1] (see `tasks.Sequence`); `rows` [B, R] query
    positions in 0..T-1 whose next token is copied from `sources` [B, R] (-1: unused)."""

    tokens: Tensor
    kinds: Tensor
    rows: Tensor
    sources: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, integers as int64."""
        return Batch(*(part.to(device, non_blocking=True).long() for part in self))


@dataclass(frozen=True, slots=True)
class Source:
    """Where sequences come from."""

    corpus: Path
    cache: Path
    tokenizer: Path

    def load(self, *, processes: int | None = None) -> Corpus:
        """The corpus, tokenised on the first call ever."""
        return load(self.corpus, self.cache, self.tokenizer, processes=processes)

    def writer(self, *, held_out: bool = False) -> SequenceWriter:
        """A writer of sequences from the training half or the held-out half."""
        return SequenceWriter(self.load(), self.tokenizer, held_out=held_out)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`size` sequences of `length` + 1 tokens of a `mixture`; `seed` tells runs, phases, ranks
    apart."""

    length: int
    size: int
    mixture: Mixture
    seed: tuple[int, ...]


class _Stream(IterableDataset[Batch]):
    def __init__(self, source: Source, recipe: Recipe) -> None:
        self._source, self._recipe = source, recipe

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        index, step = (info.id, info.num_workers) if info else (0, 1)
        writer = self._source.writer()
        while True:
            yield make_batch(writer, self._recipe, index)
            index += step


def make_batch(writer: SequenceWriter, recipe: Recipe, index: int) -> Batch:
    """Batch `index` of a recipe, on the CPU, in small integer types."""
    sequences: list[Sequence] = []
    rows = np.zeros((recipe.size, POINTER_ROWS), np.int32)
    sources = np.full((recipe.size, POINTER_ROWS), -1, np.int32)
    for row in range(recipe.size):
        rng = np.random.default_rng([*recipe.seed, index, row])
        sequence = writer.write(rng, recipe.length + 1, recipe.mixture)
        queries, targets = pointers(sequence, rng, POINTER_ROWS)
        rows[row, : len(queries)], sources[row, : len(queries)] = queries, targets
        sequences.append(sequence)
    tokens = np.stack([sequence.tokens for sequence in sequences]).astype(np.int32)
    kinds = np.stack([sequence.kinds for sequence in sequences])
    return Batch(*(torch.from_numpy(part) for part in (tokens, kinds, rows, sources)))


def pointers(
    sequence: Sequence, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` (query position, source position) pairs.

    The query that predicts token i stands at i - 1: there the model has to look at the source.
    """
    copied = np.flatnonzero(sequence.sources >= 0)
    copied = copied[copied > 0]
    if len(copied) > count:
        copied = np.sort(rng.choice(copied, count, replace=False))
    return copied - 1, sequence.sources[copied]


def batches(source: Source, recipe: Recipe, workers: int) -> Iterator[Batch]:
    """An endless iterator over a recipe's batches; `workers` 0 writes them in this process."""
    loader = DataLoader(
        _Stream(source, recipe),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
