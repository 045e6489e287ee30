"""Judges the bundled pair on documents it never saw: needles, summaries, and acceptance by length.

In: an evaluation directory with GovReport and PG-19 prompts (JSON lines with `text`, `answer`),
and any preset. Out: one JSON file with every number and text; `card` turns it into the tables of
the model card. It knows the engine only through its public face.

    python -m training.evaluate run --eval DIR --out results.json
    python -m training.evaluate card results.json
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import specx
from specx.bench.data import unframed
from training import notes

LENGTHS = "1024,4096,8192,16384"
SUMMARY_FILES = ("1K", "2K", "4K", "8K", "16K")
#: Draft caches that are compared, as (mode, preset overrides). The tree is the paper's.
CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "spec": ("spec", {}),
    "window": ("specx", {"parts.draft_cache": "window"}),
    "specx": ("specx", {}),
}
TREE = {"tree.size": "fixed", "tree.nodes": 50, "tree.depth": 10, "tree.threshold": 0.7}


def read_documents(path: Path) -> list[dict[str, str]]:
    """Rows with `text` (the shipped prompt's frame removed) and `answer`."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.append({"text": unframed(row["text"]), "answer": row.get("answer", "")})
    return rows


def joined(rows: Sequence[dict[str, str]], characters: int) -> list[str]:
    """One document per row, continued by the following rows until it is long enough to cut."""
    texts = [row["text"] for row in rows]
    documents = []
    for start in range(len(texts)):
        document = texts[start]
        for step in range(1, len(texts)):
            if len(document) >= characters:
                break
            document += "\n\n" + texts[(start + step) % len(texts)]
        documents.append(document)
    return documents


def cut(engine: "specx.Engine", document: str, tokens: int, instruction: str | None = None) -> str:
    """The longest beginning of `document` whose whole prompt has at most `tokens` tokens."""
    ids = engine.tokenizer.encode(document)
    keep = tokens - len(engine.prompt("x", instruction).tokens)
    while True:
        text = engine.tokenizer.decode(ids[:keep])
        excess = len(engine.prompt(text, instruction).tokens) - tokens
        if excess <= 0:
            return text
        keep -= excess


def needles(
    engine: "specx.Engine", documents: Sequence[str], lengths: Sequence[int], tries: int
) -> dict[str, Any]:
    """Share of planted sentences that are copied out exactly, by prompt length."""
    found: dict[str, Any] = {}
    for length in lengths:
        rng = np.random.default_rng([length, 7])
        hits, misses = 0, []
        for number in range(tries):
            label, content = notes.label(rng, set()), notes.content(rng)
            sentence = f"{label.text} {content}"
            question = f"What does {label.noun.lower()} {label.number} {label.verb}?"
            room = len(engine.tokenizer.encode(sentence)) + 2
            text = cut(engine, documents[number % len(documents)], length - room, question)
            planted = plant(text, sentence, (number + 0.5) / tries)
            result = engine.generate(engine.prompt(planted, question), mode="plain", max_tokens=64)
            if result.text.strip() == content.strip():
                hits += 1
            else:
                misses.append({"wanted": content, "got": result.text, "depth": number / tries})
        found[str(length)] = {"tries": tries, "hits": hits, "misses": misses}
        print(f"needle {length}: {hits}/{tries}", flush=True)
    return found


def plant(text: str, sentence: str, depth: float) -> str:
    """`text` with `sentence` after the sentence end nearest behind the relative `depth`."""
    at = text.find(". ", int(depth * len(text)))
    at = len(text) if at < 0 else at + 2
    return f"{text[:at]}{sentence} {text[at:]}"


def summaries(engine: "specx.Engine", folder: Path) -> dict[str, Any]:
    """Greedy summaries of the evaluation documents, each file at its own length."""
    out: dict[str, Any] = {}
    for name in SUMMARY_FILES:
        rows: list[dict[str, Any]] = []
        for row in read_documents(folder / "govreport" / f"govreport_{name}.jsonl"):
            prompt = engine.prompt(row["text"])
            result = engine.generate(prompt, mode="specx", max_tokens=512)
            rows.append(
                {
                    "prompt_tokens": len(prompt.tokens),
                    "new_tokens": len(result.tokens),
                    "ended": result.finish_reason == "eos",
                    "repeated_4grams": repeated_share(result.text.split(), 4),
                    "text": result.text,
                    "reference": row["answer"],
                    "lead": " ".join(row["text"].split()[: len(result.text.split())]),
                }
            )
        out[name] = rows
        ended = sum(row["ended"] for row in rows)
        print(f"summaries {name}: {ended}/{len(rows)} ended", flush=True)
    return out


def repeated_share(words: Sequence[str], size: int) -> float:
    """Share of n-grams that occurred before in the same text."""
    grams = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    total = sum(grams.values())
    return sum(count - 1 for count in grams.values()) / total if total else 0.0


def acceptance(
    engines: dict[str, "specx.Engine"],
    documents: Sequence[str],
    lengths: Sequence[int],
    max_tokens: int,
) -> dict[str, Any]:
    """Tokens per step of every draft cache on the same documents cut to every length."""
    out: dict[str, Any] = {name: {} for name in engines}
    for length in lengths:
        for name, engine in engines.items():
            mode, rows = CACHES[name][0], []
            for document in documents:
                prompt = engine.prompt(cut(engine, document, length))
                result = engine.generate(prompt, mode=mode, max_tokens=max_tokens)
                stats = result.stats
                rows.append(
                    {
                        "prompt_tokens": len(prompt.tokens),
                        "new_tokens": len(result.tokens),
                        "steps": len(stats.steps),
                        "accepted": stats.accepted,
                        "text": result.text,
                    }
                )
            out[name][str(length)] = rows
            print(f"{name} {length}: {tokens_per_step(rows):.2f} tokens/step", flush=True)
    return out


def tokens_per_step(rows: Sequence[dict[str, Any]]) -> float:
    """Accepted tokens over steps, over all documents, plus the bonus token."""
    steps = sum(row["steps"] for row in rows)
    return 1.0 + sum(row["accepted"] for row in rows) / steps if steps else 0.0


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen tests and write the results after each of them."""
    import torch
    import transformers

    began = time.time()
    folder = Path(arguments.eval)
    engine = specx.load(arguments.preset, device=arguments.device)
    reports = read_documents(folder / "govreport" / "govreport_16K.jsonl")
    books = read_documents(folder / "pg-19" / "pg19_16K.jsonl")
    lengths = [int(length) for length in arguments.lengths.split(",")]
    settings = dict(setting.split("=", 1) for setting in arguments.set)
    characters = 6 * max(lengths)
    results: dict[str, Any] = {
        "device": engine.device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    for test in arguments.tests.split(","):
        if test == "needle":
            texts = [text for pair in zip(reports, books, strict=False) for text in pair]
            documents = joined(texts, characters)
            results[test] = needles(engine, documents, lengths, arguments.tries)
        elif test == "summaries":
            results[test] = summaries(engine, folder)
        elif test == "acceptance":
            engines = {}
            for name in arguments.caches.split(","):
                overrides = {**TREE, **CACHES[name][1], **settings}
                engines[name] = specx.load(
                    arguments.preset, overrides=overrides, device=arguments.device
                )
            documents = joined(reports, characters)[: arguments.documents]
            results[test] = acceptance(engines, documents, lengths, arguments.max_tokens)
        results["seconds"] = round(time.time() - began, 1)
        Path(arguments.out).write_text(json.dumps(results, indent=1), encoding="utf-8")


def rouge(rows: Sequence[dict[str, Any]], field: str) -> tuple[float, float, float]:
    """Mean ROUGE-1/2/L F1 of `field` against the reference."""
    from rouge_score import rouge_scorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(row["reference"], row[field]) for row in rows]
    means = [100 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds]
    return means[0], means[1], means[2]


def card(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = [f"Measured {results['date']} on `{results['device']}`, torch {results['torch']}.", ""]
    if "needle" in results:
        lines += ["| needle: prompt tokens | copied out exactly |", "|---|---|"]
        for length, row in results["needle"].items():
            lines.append(f"| {length} | {row['hits']} of {row['tries']} |")
        lines.append("")
    if "summaries" in results:
        head = "| summaries | end by themselves | repeated 4-grams | new tokens |"
        lines += [f"{head} ROUGE-1/2/L | lead words ROUGE-1/2/L |", "|---|---|---|---|---|---|"]
        for name, rows in results["summaries"].items():
            ended = sum(row["ended"] for row in rows)
            repeated = 100 * np.mean([row["repeated_4grams"] for row in rows])
            length = np.mean([row["new_tokens"] for row in rows])
            own, lead = (" / ".join(f"{x:.1f}" for x in rouge(rows, f)) for f in ("text", "lead"))
            cells = [
                name,
                f"{ended} of {len(rows)}",
                f"{repeated:.1f} %",
                f"{length:.0f}",
                own,
                lead,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if "acceptance" in results:
        lengths = list(next(iter(results["acceptance"].values())))
        lines += ["| tokens per step | " + " | ".join(lengths) + " |"]
        lines += ["|---" * (1 + len(lengths)) + "|"]
        for name, by_length in results["acceptance"].items():
            cells = [f"{tokens_per_step(by_length[length]):.2f}" for length in lengths]
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point of `python -m training.evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m training.evaluate")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure and write JSON")
    runner.add_argument("--eval", required=True, help="directory with govreport/ and pg-19/")
    runner.add_argument("--out", required=True, help="JSON file to write")
    runner.add_argument("--preset", default="pocket")
    runner.add_argument("--device", default="auto")
    runner.add_argument("--tests", default="needle,summaries,acceptance")
    runner.add_argument("--lengths", default=LENGTHS, help="prompt tokens")
    runner.add_argument("--caches", default=",".join(CACHES), help="draft caches to compare")
    runner.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    runner.add_argument("--tries", type=int, default=50, help="needles a length")
    runner.add_argument("--documents", type=int, default=10, help="documents for acceptance")
    runner.add_argument("--max-tokens", type=int, default=128, help="new tokens for acceptance")
    printer = commands.add_parser("card", help="print Markdown tables of a results file")
    printer.add_argument("results")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    else:
        print(card(json.loads(Path(arguments.results).read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
