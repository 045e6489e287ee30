"""Decoder layers of the Llama shape (Llama, Mistral, Qwen2, Qwen3) in about nine launches each.

In: hidden states [1, n, hidden] of one sequence, as transformers' own decoder loop passes them,
and an attention pass. Out: the same buffer, updated in place. It does not know caches, masks,
trees or whole models; transformers' decoder keeps its embedding, its rotary tables and its loop.

One product makes queries, keys and values, one makes gate and up and multiplies them, and two add
into the residual stream as they finish. The small operations between them are one kernel each on a
GPU with Triton, and plain PyTorch elsewhere. The matrices are laid behind each other once; the
original parameters become views of them, so both forms of a layer run on one copy of the weights.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specx.core import kernels

_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

Norms = tuple[Tensor, Tensor, float]  # weights of the query and the key norm [D], epsilon


class RowOperations(Protocol):
    """What a layer does between its products; shapes as in ``specx.core.kernels.rows``."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[n, d], [d] → [n, d]."""
        ...

    def rotate(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        kv_heads: int,
        norms: Norms | None = None,
    ) -> None:
        """Rotates query and key heads of [n, (H + 2·Hkv)·D] in place, after ``norms`` if given."""
        ...

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """[n, 2·m] → [n, m]."""
        ...

    def rotary_tables(
        self, positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Positions [n] int64 and frequencies [D/2] float32 → cosines and sines [n, D]."""
        ...


class Products(Protocol):
    """The products of a layer with its weights; shapes as in ``specx.core.kernels.linear``."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias: [n, K], [N, K], [N] → [n, N]."""
        ...

    def add_linear(
        self, stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """stream += x · weightᵀ + bias, in place, without a temporary of its size."""
        ...

    def swiglu_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """silu(gate) · up of gate | up = x · weightᵀ + bias: [n, K], [2·m, K], [2·m] → [n, m]."""
        ...


class TorchProducts:
    """``Products`` by PyTorch."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Products.linear``."""
        return F.linear(x, weight, bias)

    def add_linear(
        self, stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """See ``Products.add_linear``."""
        stream.addmm_(x, weight.t())
        if bias is not None:
            stream.add_(bias)

    def swiglu_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Products.swiglu_linear``."""
        return row_operations(weight).swiglu(F.linear(x, weight, bias))


class TorchRows:
    """``RowOperations`` in plain PyTorch, for any device and dtype."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``RowOperations.rms_norm``."""
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (wide * inverse).to(x.dtype)

    def rotate(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        kv_heads: int,
        norms: Norms | None = None,
    ) -> None:
        """See ``RowOperations.rotate``."""
        width = cos.shape[1]
        by_head = qkv.view(qkv.shape[0], -1, width)
        both = by_head[:, : heads + kv_heads]
        turned = both
        if norms is not None:
            query_norm, key_norm, eps = norms
            query = self.rms_norm(both[:, :heads], query_norm, eps)
            turned = torch.cat([query, self.rms_norm(both[:, heads:], key_norm, eps)], dim=1)
        first, second = turned.chunk(2, dim=-1)
        crossed = torch.cat([-second, first], dim=-1)
        both.copy_(turned * cos[:, None] + crossed * sin[:, None])

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """See ``RowOperations.swiglu``."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotary_tables(
        self, positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See ``RowOperations.rotary_tables``."""
        angles = positions[:, None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


class FusedLayer(nn.Module):
    """One transformers decoder layer, called as the original is; inference only.

    Lays the layer's matrices behind each other and turns its parameters into views of them, so
    the layer must be on its device by then and must not be moved afterwards.
    """

    def __init__(self, layer: nn.Module, products: Products | None = None) -> None:
        super().__init__()
        check_layer(layer)
        self.layer = layer  # its parameters stay this module's parameters
        attention, mlp = cast(Any, layer).self_attn, cast(Any, layer).mlp
        self._index: int = attention.layer_idx
        self._scale: float = attention.scaling
        self._width: int = attention.head_dim
        self._heads: int = attention.q_proj.out_features // self._width
        self._kv_heads: int = attention.k_proj.out_features // self._width
        self._sizes = [self._heads, self._kv_heads, self._kv_heads]
        self._qkv = _join([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up = _join([mlp.gate_proj, mlp.up_proj])
        self._out = _parts(attention.o_proj)
        self._down = _parts(mlp.down_proj)
        self._norms: Norms | None = None
        query_norm = getattr(attention, "q_norm", None)
        if query_norm is not None:
            eps = query_norm.variance_epsilon
            self._norms = (query_norm.weight.detach(), attention.k_norm.weight.detach(), eps)
        self._before = _norm_parts(cast(Any, layer).input_layernorm)
        self._between = _norm_parts(cast(Any, layer).post_attention_layernorm)
        self._rows = row_operations(self._qkv[0])
        self._products = products or fastest_products(self._qkv[0].device)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_pass: Any,
        **_unused: Any,
    ) -> Tensor:
        """[1, n, hidden] → the same tensor, updated in place.

        ``position_embeddings`` are cosines and sines [1, n, D]; ``attention_pass`` is an
        ``AttentionPass``. What transformers passes besides (masks, caches) is not used.
        """
        rows, products, stream = self._rows, self._products, hidden_states[0]
        cos, sin = position_embeddings
        qkv = products.linear(rows.rms_norm(stream, *self._before), *self._qkv)
        rows.rotate(qkv, cos[0], sin[0], self._heads, self._kv_heads, self._norms)
        by_head = qkv.view(qkv.shape[0], -1, self._width).transpose(0, 1)
        query, key, value = by_head.split_with_sizes(self._sizes)
        attended = attention_pass.attend(self._index, query, key, value, self._scale)
        attended = attended.transpose(0, 1).reshape(qkv.shape[0], -1)
        products.add_linear(stream, attended, *self._out)
        inner = products.swiglu_linear(rows.rms_norm(stream, *self._between), *self._gate_up)
        products.add_linear(stream, inner, *self._down)
        return hidden_states


class FusedNorm(nn.Module):
    """A transformers RMSNorm module in one launch."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self._weight, self._eps = _norm_parts(norm)
        self._rows = row_operations(self._weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[…, d] → […, d]."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self._rows.rms_norm(rows, self._weight, self._eps).view(hidden_states.shape)


class FusedRotary(nn.Module):
    """The cosines and sines of a transformers rotary embedding in one launch."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self._frequencies: Tensor = cast(Any, rotary).inv_freq.detach().float()
        self._scaling: float = cast(Any, rotary).attention_scaling
        self._rows = row_operations(self._frequencies)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [1, n] → two tables [1, n, D] in the dtype of ``x``."""
        cos, sin = self._rows.rotary_tables(
            position_ids[0], self._frequencies, self._scaling, x.dtype
        )
        return cos[None], sin[None]


class Layers:
    """The forms of a decoder's layers over one copy of the weights.

    Building it leaves the decoder's own layers in use. ``fuses``: whether there is a fused form;
    else the decoder's own layers stand for it. ``products`` are the device's fastest unless
    others are given. Raises ``ValueError`` before anything is changed if a layer that is to be
    fused is not of the Llama shape with a SiLU.
    """

    def __init__(
        self, decoder: nn.Module, products: Products | None = None, *, fuses: bool = True
    ) -> None:
        self._decoder = cast(Any, decoder)
        layers, norm, rotary = self._decoder.layers, self._decoder.norm, self._decoder.rotary_emb
        if fuses:
            for layer in layers:
                check_layer(layer)
            self._decoder.layers = nn.ModuleList(FusedLayer(layer, products) for layer in layers)
            self._decoder.norm = FusedNorm(norm)
            # These change their frequencies with the length.
            if not any(kind in rotary.rope_type for kind in ("dynamic", "longrope")):
                self._decoder.rotary_emb = FusedRotary(rotary)
        if next(decoder.parameters()).is_cuda:
            torch.cuda.empty_cache()  # the separate matrices, which nothing else can reuse

    @property
    def lists(self) -> tuple[nn.Module, ...]:
        """The list of layers."""
        return (self._decoder.layers,)


def check_layer(layer: nn.Module) -> None:
    """Raise ``ValueError`` if ``FusedLayer`` cannot stand for ``layer``."""
    attention, mlp = cast(Any, layer).self_attn, cast(Any, layer).mlp
    activation = mlp.config.hidden_act
    if activation not in ("silu", "swish"):
        raise ValueError(f"fused layers need the activation silu, not {activation}")
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    for linear in [*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj]:
        if type(linear) is not nn.Linear:
            raise ValueError(f"fused layers need plain linear layers, not {type(linear).__name__}")


def row_operations(sample: Tensor) -> RowOperations:
    """The fastest operations for tensors like ``sample``."""
    if sample.is_cuda and sample.dtype in _KERNEL_DTYPES and kernels.is_available():
        from specx.core.kernels import rows  # imports Triton

        return cast(RowOperations, rows)
    return TorchRows()


def fastest_products(device: torch.device) -> Products:
    """The fastest products on ``device``."""
    if device.type == "cuda" and kernels.is_available():
        from specx.core.kernels import linear  # imports Triton

        return cast(Products, linear)
    return TorchProducts()


@torch.no_grad()
def _join(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layers side by side; their parameters become views."""
    sizes = [linear.out_features for linear in linears]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, view in zip(linears, weight.split_with_sizes(sizes), strict=True):
        linear.weight.data = view
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if not biases:
        return weight, None
    bias = torch.cat(biases)
    for linear, view in zip(linears, bias.split_with_sizes(sizes), strict=True):
        linear.bias.data = view
    return weight, bias


def _parts(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def _norm_parts(norm: Any) -> tuple[Tensor, float]:
    return norm.weight.detach(), float(norm.variance_epsilon)
