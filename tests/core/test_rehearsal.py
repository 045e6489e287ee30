"""A rehearsal on the kernels that stand for a GPU's: launched, not only compiled."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from specx.core.config import MODES
from specx.core.drafts.model import drafter_in
from specx.core.sampling import Sampler
from tests.core.drafts.heads import make_pair
from tests.core.tiny import PLAIN, Job, Pair, Run, random_tokens

rehearsal = pytest.importorskip("specx.core.rehearsal", reason="needs Triton")


def _job(kind: str) -> Job:
    if kind in ("eagle", "eagle3"):
        parts = replace(MODES["specx"], drafter="eagle")
        return Job(make_pair(kind), random_tokens(150, seed=2), parts, is_fixed=True)
    parts = PLAIN if kind == "plain" else MODES["specx"]
    return Job(Pair.make(), random_tokens(150, seed=2), parts, is_fixed=True)


@pytest.mark.parametrize("kind", ["plain", "lm", "eagle", "eagle3"])
def test_a_request_after_a_rehearsal_is_as_without(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version chose rows for a head that had read none: −1, an assertion on a GPU."""
    job = _job(kind)
    monkeypatch.setattr(rehearsal, "compiling_ahead", nullcontext)
    decoding = job.decoding()
    settings = job.settings() if job.parts.has_draft_model else None
    sampler = Sampler(job.sampling)
    chunk = job.prefill_chunk_tokens
    rehearsal.rehearse(decoding.target, settings, decoding.retrieval, sampler, chunk)
    if settings is not None:
        drafter_in(decoding.target.workspace, settings, sampler)
    run = Run()
    for event in decoding.run():
        run.take(event)
    assert run.tokens == job.run().tokens
