"""The attention backends of an NVIDIA GPU, and which of them runs."""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from specx.core.attention import Kernels, Partial, masked, merge
from specx.core.cache import KV
from specx.core.config import Parts
from specx.core.decoder import Model
from specx.core.kernels import is_available
from specx.core.kernels.reference import StaticKernels

_WIDEST_HEAD = 256
_HALF = (torch.float16, torch.bfloat16)


def choose_kernels(model: Model, parts: Parts) -> tuple[Kernels, str]:
    """The fastest backend for ``model`` that ``parts`` allows, and what was lost ("" = nothing).

    A backend that was asked for by name and cannot run gives way to the next one.
    """
    kind = parts.tree_attention
    if kind == "masked" or model.device.type != "cuda" or kind == "sdpa":
        return Kernels(kind), ""
    lost = []
    if kind != "flash":
        if not (lack := _lack_of_triton(model)):
            return TritonKernels(), ""
        lost.append(f"no Triton kernels ({lack})")
    if not (lack := _lack_of_flash(model)):
        return FlashKernels(), f"{lost[0]}: flash-attn runs instead" if lost else ""
    lost.append(f"no flash-attn ({lack})")
    if kind == "flash" and not _lack_of_triton(model):
        return TritonKernels(), f"{lost[0]}: Triton runs instead"
    return Kernels(), f"{'; '.join(lost)}: PyTorch's attention, without CUDA graphs"


class _HalfPrefill(StaticKernels):
    """Prefill by the fastest kernel for half precision: cuDNN's where it takes the shape."""

    def prefix(self, query: Tensor, held: KV, scale: float) -> Partial:
        if not _cudnn_takes(query):
            return super().prefix(query, held, scale)
        return _cudnn(query, held, scale, causal=False)

    def causal(self, query: Tensor, held: KV, scale: float) -> Partial:
        if not _cudnn_takes(query):
            return super().causal(query, held, scale)
        return _cudnn(query, held, scale, causal=True)


class TritonKernels(_HalfPrefill):
    def __init__(self) -> None:
        from specx.core.kernels import rows, scores, tree_attention

        self.name = "triton"
        self._rows, self._scores, self._tree = rows, scores, tree_attention

    def store(self, cached: KV, start: Tensor, new: KV) -> None:
        self._rows.store(*cached, start, *new)

    def tree(self, query: Tensor, cached: KV, prefix: Tensor, mask: Tensor, scale: float) -> Tensor:
        return self._tree.tree_attention(query, *cached, prefix, mask, scale).transpose(0, 1)

    def merge(self, first: Partial, second: Partial) -> Tensor:
        return self._rows.merge(*first, *second)

    def chunk_scores(
        self, query: Tensor, keys: Tensor, length: Tensor, scale: float, chunk_tokens: int
    ) -> Tensor:
        return self._scores.chunk_scores(query, keys, length, scale, chunk_tokens)


class FlashKernels(_HalfPrefill):
    """flash-attn over the prefix, masked attention among the tree's rows, merged."""

    def __init__(self) -> None:
        from flash_attn import flash_attn_with_kvcache  # type: ignore[import-not-found]

        self.name = "flash"
        self._attend: Any = flash_attn_with_kvcache

    def tree(self, query: Tensor, cached: KV, prefix: Tensor, mask: Tensor, scale: float) -> Tensor:
        out, lse = self._attend(
            query.transpose(0, 1)[None],
            *(side.transpose(0, 1)[None] for side in cached),
            cache_seqlens=prefix.to(torch.int32).view(1),
            softmax_scale=scale,
            return_softmax_lse=True,
        )
        staged = prefix + torch.arange(mask.shape[1], device=mask.device)
        keys, values = (side.index_select(1, staged) for side in cached)
        own = masked(query, (keys, values), mask, scale)
        # A row that sees no key at all has +inf there.
        lse = torch.where(prefix > 0, lse[0, :, : query.shape[1]], float("-inf"))
        before = torch.where(prefix > 0, out[0].transpose(0, 1), 0.0)
        return merge((before, lse), own)


def _lack_of_triton(model: Model) -> str:
    if not is_available():
        return "Triton is not installed"
    if not (lack := _too_wide(model)) and torch.cuda.get_device_capability(model.device) < (8, 0):
        return "the GPU is older than Ampere"
    return lack


def _lack_of_flash(model: Model) -> str:
    if importlib.util.find_spec("flash_attn") is None:
        return "not installed"
    if model.dtype not in _HALF:
        return f"it does not take {str(model.dtype).removeprefix('torch.')}"
    return _too_wide(model)


def _too_wide(model: Model) -> str:
    width = model.shape.head_dim
    return f"heads of {width} are wider than {_WIDEST_HEAD}" if width > _WIDEST_HEAD else ""


def _cudnn_takes(query: Tensor) -> bool:
    width = query.shape[-1]
    has_cudnn = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_cudnn) and query.dtype in _HALF and width % 8 == 0 and width <= 128


def _cudnn(query: Tensor, held: KV, scale: float, *, causal: bool) -> Partial:
    key, value = held
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query[None], key[None], value[None], None, True, 0.0, causal, False, scale=scale
    )
    rows = query.shape[1]
    return out[0], lse.reshape(1, query.shape[0], -1)[0, :, :rows]
