"""A bench on a real GPU: events, allocator, energy counter, compiled witnesses."""

import json
from pathlib import Path

import pytest
import torch

from specx.cli.main import run
from tests.cli.support import write_preset
from tests.helpers import save_pair, story

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_every_mode_and_witness_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    preset = write_preset(tmp_path, save_pair(tmp_path, draft_weights="noisy"))
    rows = [json.dumps({"text": story(400, seed=seed)}) for seed in (1, 2)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    words = ["bench", "-m", preset, "--data", tmp_path / "texts.jsonl", "--lengths", "96,160"]
    words += ["-n", "12", "--samples", "2", "--modes", "all", "--device", "cuda", "--energy"]
    words += ["--dtype", "float32", "-o", "json"]
    code = run([str(word) for word in words])
    found = json.loads(capsys.readouterr().out)
    assert code in (0, 8), "float32 on a GPU may still round a tie differently"
    assert found["env"]["gpu"]
    assert found["plan"]["energy"]
    assert {cell["mode"] for cell in found["cells"]} == set(found["plan"]["modes"])
    for cell in found["cells"]:
        for sample in cell["samples"]:
            assert sample["prefill_target_s"] > 0
            assert sample["decode_s"] > 0
            assert 0 < sample["memory"]["weights"] < sample["memory"]["peak"]
            phases = sample["phases"]
            if phases is None:
                continue
            named = sum(value for name, value in phases.items() if name != "draft_levels")
            assert named + sum(phases["draft_levels"]) == pytest.approx(
                sample["decode_s"], rel=0.2, abs=0.01
            )
