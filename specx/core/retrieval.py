"""Cross-model Retrieval: the target's own attention chooses which chunks the draft keeps
(SpecExtend, arXiv 2505.20776 §3.3). It does not know the draft or its cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specx.core.config import RetrievalConfig

_BLOCK_ROWS = 8192  # keys that are converted to float32 at a time


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows for the draft's working cache, in shapes that do not depend on the length."""

    rows: Tensor  # [m] int64, increasing; only the first ``count`` are meant
    count: Tensor  # [] int64
    chunks: Tensor  # [c] int64: chunk numbers, increasing; −1 where there are fewer
    attention: Tensor  # [chunks] float32 ≥ 0: the target's attention to every chunk


def chunk_scores(query: Tensor, keys: Tensor, scale: float, chunk_tokens: int) -> Tensor:
    """Mean attention probability of each chunk, averaged over heads; [chunks] float32.

    ``query`` [H, D], ``keys`` [Hkv, S, D]. The last chunk may be partial and is averaged over its
    own rows. Everything is float32: a running sum in float16 loses small scores next to an
    attention sink.
    """
    heads, width = query.shape
    kv_heads, rows, _ = keys.shape
    grouped = query.reshape(kv_heads, heads // kv_heads, width).float()
    products = [
        torch.matmul(grouped, block.float().transpose(1, 2))
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


def select(config: RetrievalConfig, scores: Tensor, length: Tensor) -> Selection:
    """Sink, recent and best-scored chunks of the first ``length`` [] int64 rows, without the host.

    ``scores`` [c] float32 of all chunks of these rows; further ones are ignored.
    """
    numbers = torch.arange(scores.shape[0], device=scores.device)
    chunks = (length + config.chunk_tokens - 1) // config.chunk_tokens
    forced = (numbers < config.sink_chunks) | (numbers >= chunks - config.recent_chunks)
    attention = scores.masked_fill(numbers >= chunks, 0.0)
    ranked = scores.masked_fill(forced, float("inf"))
    ranked = ranked.masked_fill(numbers >= chunks, float("-inf"))
    wanted = config.sink_chunks + config.recent_chunks + config.top_chunks
    chosen = ranked.topk(min(wanted, scores.shape[0])).indices.sort().values
    offsets = torch.arange(config.chunk_tokens, device=scores.device)
    rows = (chosen[:, None] * config.chunk_tokens + offsets).reshape(-1)
    return Selection(
        rows=torch.minimum(rows, length - 1).clamp(min=0),  # a head has read less than a prompt
        count=(rows < length).sum(),
        chunks=torch.where(chosen < chunks, chosen, -1),
        attention=attention,
    )


def select_recent(config: RetrievalConfig, capacity: int, length: Tensor) -> Selection:
    """Sink and as many recent chunks as fill the same budget (StreamingLLM's window), of the
    first ``length`` [] int64 of ``capacity`` rows."""
    chunks = -(-capacity // config.chunk_tokens)
    newest = torch.arange(chunks, dtype=torch.float32, device=length.device)
    return select(config, newest, length)
