"""Cross-model Retrieval: the target's own attention chooses which chunks the draft keeps.

In: one query of the target's last layer and that layer's keys. Out: row numbers. It does not know
the draft, its cache, or where the query came from (SpecExtend, arXiv 2505.20776 §3.3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specx.core.config import RetrievalConfig

_BLOCK_ROWS = 8192  # keys that are converted to float32 at a time


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows for the draft's working cache."""

    rows: Tensor  # [m] int64, increasing
    chunks: tuple[int, ...]  # chunk numbers, increasing


def chunk_scores(query: Tensor, keys: Tensor, scale: float, chunk_tokens: int) -> Tensor:
    """Mean attention probability of each chunk, averaged over heads; [chunks] float32.

    ``query`` [H, D], ``keys`` [Hkv, S, D]. The last chunk may be partial and is averaged over its
    own rows. Everything is float32: a running sum in float16 loses small scores next to an
    attention sink.
    """
    heads, width = query.shape
    kv_heads, rows, _ = keys.shape
    grouped = query.reshape(kv_heads, heads // kv_heads, width)
    products = [
        torch.matmul(grouped.float(), block.float().transpose(1, 2))
        for block in torch.split(keys, _BLOCK_ROWS, dim=1)
    ]
    scores = torch.cat(products, dim=-1) * scale
    probabilities = scores.softmax(dim=-1).mean(dim=(0, 1))
    chunks = -(-rows // chunk_tokens)
    padded = torch.nn.functional.pad(probabilities, (0, chunks * chunk_tokens - rows))
    sums = padded.view(chunks, chunk_tokens).sum(dim=1)
    sums[:-1] /= chunk_tokens
    sums[-1] /= rows - (chunks - 1) * chunk_tokens
    return sums


class Retriever:
    """Chooses sink, recent and the best other chunks; says when a refresh is due."""

    def __init__(self, config: RetrievalConfig) -> None:
        self.config = config

    def due(self, step: int) -> bool:
        """Whether to refresh after verify step ``step`` (0-based)."""
        return step % self.config.every_steps == 0

    def is_needed(self, rows: int) -> bool:
        """Whether ``rows`` of context exceed what the draft may keep."""
        return rows > self.config.budget_tokens

    def select(self, query: Tensor, keys: Tensor, scale: float) -> Selection:
        """Rows of the chunks to keep among the S rows of ``keys`` [Hkv, S, D]; query [H, D]."""
        config, rows = self.config, keys.shape[1]
        chunks = -(-rows // config.chunk_tokens)
        always = forced_chunks(config, chunks)
        scores = chunk_scores(query, keys, scale, config.chunk_tokens)
        scores[always] = float("inf")
        wanted = min(chunks, len(always) + config.top_chunks)
        chosen = scores.topk(wanted).indices.sort().values
        return Selection(
            rows=chunk_rows(chosen, config.chunk_tokens, rows),
            chunks=tuple(chosen.tolist()),
        )


def recent_selection(config: RetrievalConfig, rows: int) -> Selection:
    """Sink and as many recent chunks as fill the same budget (StreamingLLM's window)."""
    chunks = -(-rows // config.chunk_tokens)
    first = max(0, chunks - config.recent_chunks - config.top_chunks)
    kept = sorted({*range(min(config.sink_chunks, chunks)), *range(first, chunks)})
    return Selection(
        rows=chunk_rows(torch.tensor(kept, dtype=torch.int64), config.chunk_tokens, rows),
        chunks=tuple(kept),
    )


def forced_chunks(config: RetrievalConfig, chunks: int) -> list[int]:
    """The sink and recent chunks, whatever their scores."""
    recent = max(0, chunks - config.recent_chunks)
    return sorted({*range(min(config.sink_chunks, chunks)), *range(recent, chunks)})


def chunk_rows(chunks: Tensor, chunk_tokens: int, rows: int) -> Tensor:
    """Row numbers of increasing chunk numbers, cut at ``rows``."""
    offsets = torch.arange(chunk_tokens, device=chunks.device)
    every = (chunks[:, None] * chunk_tokens + offsets).reshape(-1)
    return every[every < rows]
