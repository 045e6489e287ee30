"""Times the bundled pair on this machine: plain, spec and specx, interleaved on the same documents.

In: GovReport prompts. Out: a Markdown table of medians and the raw samples as JSON. It knows the
engine only through its public face. Documents are continued by the next one where they are
shorter than a length, so every length shows the same beginnings.

    python -m specx.pocket.speed --eval DIR --out speed.json
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import specx
from specx.pocket.evaluate import cut, joined, read_documents

MODES = ("plain", "spec", "specx", "auto")


def sample(engine: "specx.Engine", prompt: "specx.Prompt", mode: str, count: int) -> dict[str, Any]:
    """One greedy run of exactly `count` new tokens."""
    result = engine.generate(prompt, mode=mode, max_tokens=count, ignore_eos=True)
    stats = result.stats
    return {
        "mode": mode,
        "prompt_tokens": stats.prompt_tokens,
        "prefill_target_s": stats.prefill_target_s,
        "prefill_draft_s": stats.prefill_draft_s,
        "tune_s": stats.tune_s,
        "decode_tokens_per_s": stats.decode_tokens_per_s,
        "tokens_per_step": stats.tokens_per_step,
        "nodes": sum(step.nodes for step in stats.steps) / max(len(stats.steps), 1),
        "kv_bytes": stats.memory.kv_target_bytes + stats.memory.kv_draft_bytes,
        "weights_bytes": stats.memory.weights_bytes,
        "peak_bytes": stats.memory.peak_bytes,
        "mode_reason": result.mode_reason,
        "tokens": list(result.tokens),
    }


def measure(
    engine: "specx.Engine", documents: Sequence[str], lengths: Sequence[int], count: int
) -> list[dict[str, Any]]:
    """Every mode on every document at every length; the order of the modes rotates."""
    samples: list[dict[str, Any]] = []
    warm = engine.prompt(cut(engine, documents[0], min(lengths)))
    for mode in MODES:
        sample(engine, warm, mode, count)
    for length in lengths:
        for number, document in enumerate(documents):
            prompt = engine.prompt(cut(engine, document, length))
            for turn in range(len(MODES)):
                row = sample(engine, prompt, MODES[(turn + number) % len(MODES)], count)
                samples.append({"length": length, "document": number, **row})
                print(f"{length} {number} {row['mode']}: {row['decode_tokens_per_s']:.1f} tok/s")
    return samples


def table(samples: Sequence[dict[str, Any]]) -> str:
    """Medians by length and mode; speed-ups are medians of ratios on the same document."""
    lines = [
        "| prompt | mode | prefill s | decode tok/s | over plain | tokens/step | nodes | equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for length in sorted({row["length"] for row in samples}):
        here = [row for row in samples if row["length"] == length]
        plain = {row["document"]: row for row in here if row["mode"] == "plain"}
        for mode in MODES:
            rows = [row for row in here if row["mode"] == mode]
            base = [plain[row["document"]] for row in rows]
            ratio = median(
                row["decode_tokens_per_s"] / other["decode_tokens_per_s"]
                for row, other in zip(rows, base, strict=True)
            )
            equal = sum(a["tokens"] == b["tokens"] for a, b in zip(rows, base, strict=True))
            prefill = median(row["prefill_target_s"] + row["prefill_draft_s"] for row in rows)
            rate, step, nodes = (
                median(row[key] for row in rows)
                for key in ("decode_tokens_per_s", "tokens_per_step", "nodes")
            )
            lines.append(
                f"| {length} | `{mode}` | {prefill:.2f} | {rate:.1f} | {ratio:.2f}x | {step:.2f} "
                f"| {nodes:.0f} | {equal} of {len(rows)} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point of `python -m specx.pocket.speed`."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m specx.pocket.speed")
    parser.add_argument("--eval", required=True, help="directory with govreport/")
    parser.add_argument("--out", required=True, help="JSON file for the raw samples")
    parser.add_argument("--preset", default="pocket")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,16384")
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    import torch
    import transformers

    lengths = [int(length) for length in arguments.lengths.split(",")]
    rows = read_documents(Path(arguments.eval) / "govreport" / "govreport_16K.jsonl")
    documents = joined(rows, 6 * max(lengths))[: arguments.documents]
    engine = specx.load(arguments.preset)
    samples = measure(engine, documents, lengths, arguments.max_tokens)
    environment = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": engine.device,
        "dtype": engine.dtype,
    }
    out = {"environment": environment, "samples": samples}
    Path(arguments.out).write_text(json.dumps(out) + "\n", encoding="utf-8")
    print(table(samples), end="")


if __name__ == "__main__":
    main()
