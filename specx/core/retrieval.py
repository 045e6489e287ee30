"""Cross-model Retrieval: the target's own attention chooses which chunks the draft keeps.

In: one query of the target's last layer and that layer's keys. Out: row numbers. It does not know
the draft, its cache, or where the query came from (SpecExtend, arXiv 2505.20776 §3.3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specx.core.attention import Kernels
from specx.core.config import RetrievalConfig

_BLOCK_ROWS = 8192  # keys that are converted to float32 at a time


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows for the draft's working cache."""

    rows: Tensor  # [m] int64, increasing
    chunks: Tensor  # [c] int64: chunk numbers, increasing; −1 where a static selection has fewer
    count: Tensor | None = None  # [] int64: a static selection's rows; the others are padding
    #: [chunks] float32 ≥ 0: the target's attention to every chunk; None where nobody asked it
    attention: Tensor | None = None


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
        attention = chunk_scores(query, keys, scale, config.chunk_tokens)
        scores = attention.clone()
        scores[always] = float("inf")
        wanted = min(chunks, len(always) + config.top_chunks)
        chosen = scores.topk(wanted).indices.sort().values
        return Selection(
            rows=chunk_rows(chosen, config.chunk_tokens, rows),
            chunks=chosen,
            attention=attention,
        )

    def select_within(
        self, query: Tensor, keys: Tensor, length: Tensor, scale: float, kernels: Kernels
    ) -> Selection:
        """``select`` among the first ``length`` [] int64 rows of a whole cache [Hkv, capacity, D],
        with static shapes and without the host."""
        chunk_tokens = self.config.chunk_tokens
        scores = kernels.chunk_scores(query, keys, length, scale, chunk_tokens)
        return best_chunks(self.config, scores, length)


def best_chunks(config: RetrievalConfig, scores: Tensor, length: Tensor) -> Selection:
    """Sink, recent and best-scored chunks of the first ``length`` [] int64 rows, on the device.

    ``scores`` [chunks of the whole cache] float32. ``rows`` and ``chunks`` have their full static
    size even if there are fewer.
    """
    numbers = torch.arange(scores.shape[0], device=scores.device)
    chunks = (length + config.chunk_tokens - 1) // config.chunk_tokens
    forced = (numbers < config.sink_chunks) | (numbers >= chunks - config.recent_chunks)
    attention = scores.masked_fill(numbers >= chunks, 0.0)
    scores = scores.masked_fill(forced, float("inf"))
    scores = scores.masked_fill(numbers >= chunks, float("-inf"))
    wanted = config.sink_chunks + config.recent_chunks + config.top_chunks
    chosen = scores.topk(min(wanted, scores.shape[0])).indices.sort().values
    offsets = torch.arange(config.chunk_tokens, device=scores.device)
    rows = (chosen[:, None] * config.chunk_tokens + offsets).reshape(-1)
    return Selection(
        rows=torch.minimum(rows, length - 1),
        chunks=torch.where(chosen < chunks, chosen, -1),
        count=(rows < length).sum(),
        attention=attention,
    )


def recent_selection(config: RetrievalConfig, rows: int) -> Selection:
    """Sink and as many recent chunks as fill the same budget (StreamingLLM's window)."""
    chunks = -(-rows // config.chunk_tokens)
    first = max(0, chunks - config.recent_chunks - config.top_chunks)
    kept = sorted({*range(min(config.sink_chunks, chunks)), *range(first, chunks)})
    return Selection(
        rows=chunk_rows(torch.tensor(kept, dtype=torch.int64), config.chunk_tokens, rows),
        chunks=torch.tensor(kept, dtype=torch.int64),
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
