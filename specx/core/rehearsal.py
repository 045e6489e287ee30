"""What a first request will launch, compiled many kernels at a time before it needs the first:
every part of a step runs once, over the first layer alone (the others launch the same kernels),
with launches that compile and start nothing. Whatever was in the workspace is lost."""

from dataclasses import replace

import torch

from specx.core.config import RetrievalConfig
from specx.core.drafts.model import DraftSettings, ModelDrafter
from specx.core.kernels.launch import can_compile_ahead, compiling_ahead
from specx.core.sampling import Sampler
from specx.core.target import Target

#: Levels of a head's draft: the next ones choose rows by what the first would have written.
_LEVELS_OF_A_HEAD = 2


@torch.inference_mode()
def rehearse(
    target: Target,
    settings: DraftSettings | None,
    retrieval: RetrievalConfig | None,
    sampler: Sampler,
    chunk_tokens: int,
) -> None:
    """Compile what ``target`` and the drafter of ``settings`` (None: there is none), which has its
    caches, will launch for a prompt that is read in chunks of ``chunk_tokens``. Nothing happens
    where Triton cannot compile in the background."""
    if not can_compile_ahead():
        return
    parts, device = replace(target.parts, launch="eager"), target.model.device
    nothing = torch.zeros(chunk_tokens, dtype=torch.int64, device=device)
    with compiling_ahead(device):
        short = target.over(target.model.first_layer(), parts)
        chunk = nothing[: target.cache.capacity // 2]
        for _ in range(2):  # the second chunk has a prefix
            short.read(chunk)
        if retrieval is not None:
            short.select(retrieval, None)
        short.progress.begin(chunk, nothing[:1])
        short.verify_widths()
        if settings is not None:
            _draft(replace(settings, parts=parts), target, sampler, chunk)
    target.cache.reach(0)


def _draft(settings: DraftSettings, target: Target, sampler: Sampler, chunk: torch.Tensor) -> None:
    model, tree = settings.model, settings.tree
    if model.reads_features:
        tree = replace(tree, depth=min(tree.depth, _LEVELS_OF_A_HEAD))
    settings = replace(settings, model=model.first_layer(), tree=tree)
    drafter = ModelDrafter(settings, target.workspace)
    drafter.start(sampler)
    shape, dtype = (len(chunk), target.model.feature_width), target.model.dtype
    drafter.prefill(chunk, torch.zeros(shape, dtype=dtype, device=chunk.device))
    drafter.begin(None)
    drafter.extend([0])
    drafter.draft()
