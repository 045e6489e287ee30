"""The words of a head: its embedding, its output matrix, and which of the target's tokens it has.

In: a head's tensors and the target's sizes. Out: nothing, or an error that names the tensor. It
does not know layers or rotation.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.checkpoints.config import ModelConfig
from specx.errors import ModelError, PairError

if TYPE_CHECKING:
    from torch import Tensor


def check_embedding(
    directory: Path, tensors: "dict[str, Tensor]", target: ModelConfig, known_tokens: int
) -> None:
    """The head's own embedding must know every token; without one the target's must fit.

    Raises ``PairError`` and ``ModelError``.
    """
    hidden = tensors["fc.weight"].shape[0]
    own = tensors.get("embed_tokens.weight")
    if own is None and hidden != target.shape.hidden:
        raise ModelError(
            f"{directory} is incomplete",
            reason=f"embed_tokens.weight is missing, and the target's has width "
            f"{target.shape.hidden}, not {hidden}",
        )
    if own is not None and own.shape[0] < min(known_tokens, target.shape.vocabulary):
        raise PairError(
            f"{directory} does not know all tokens of the target",
            reason=f"embed_tokens.weight has {own.shape[0]} rows for {known_tokens} tokens",
        )


def check_output(
    directory: Path, tensors: "dict[str, Tensor]", raw: dict[str, Any], target: ModelConfig
) -> None:
    """``target id = id + d2t[id]`` must rise within the target's vocabulary, and ``t2d`` mark the
    same ids; a head without an output matrix uses the target's.

    Raises ``PairError`` and ``ModelError``.
    """
    rows, matrix, table = target.shape.vocabulary, tensors.get("lm_head.weight"), tensors.get("d2t")
    if matrix is None:
        fits = tensors["fc.weight"].shape[0] == target.shape.hidden
        is_smaller = table is not None and (table.shape != (rows,) or bool(table.any()))
        if not fits or is_smaller or raw.get("draft_vocab_size") not in (None, rows):
            raise ModelError(f"{directory} is incomplete", reason="lm_head.weight is missing")
        return
    own = matrix.shape[0]
    if own > rows:
        raise PairError(
            f"{directory} is a head for another target",
            reason=f"lm_head.weight has {own} rows, and the target's vocabulary {rows}",
        )
    if table is not None:
        _check_table(directory, table, tensors.get("t2d"), own, rows)
    elif own != rows:
        reason = f"d2t is missing: lm_head.weight has {own} of the target's {rows} rows"
        raise ModelError(f"{directory} is incomplete", reason=reason)


def _check_table(
    directory: Path, table: "Tensor", marks: "Tensor | None", own: int, rows: int
) -> None:
    import torch

    if table.shape != (own,) or table.is_floating_point() or table.dtype == torch.bool:
        size = "x".join(map(str, table.shape)) or "one number"
        kind = str(table.dtype).removeprefix("torch.")
        reason = f"d2t is {size} of type {kind}, and lm_head.weight has {own} rows"
        raise ModelError(f"the tensors in {directory} do not fit together", reason=reason)
    ids = table.to(torch.int64) + torch.arange(own)
    marked = None if marks is None else marks.bool().flatten().nonzero()[:, 0]
    agrees = marked is not None and torch.equal(marked, ids)
    if own < rows and not table.any() and not agrees:
        raise ModelError(f"d2t in {directory} is empty", reason="all of it is 0")
    # The bounds first: within them, no difference overflows.
    is_inside = int(ids.min()) >= 0 and int(ids.max()) < rows
    if not is_inside or not bool((ids.diff() > 0).all()):
        reason = f"its ids do not rise within the target's {rows}"
        raise ModelError(f"d2t in {directory} is damaged", reason=reason)
    if marked is not None and not agrees:
        raise ModelError(f"d2t in {directory} is damaged", reason="t2d marks other tokens")
