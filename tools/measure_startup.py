#!/usr/bin/env python3
"""How long a specx command takes to start, and what it spends that time on.

    python tools/measure_startup.py                          # the bundled pair on the CPU
    python tools/measure_startup.py --target DIR --draft DIR --prompt-tokens 12000 -n 126   # a GPU
    python tools/measure_startup.py --repetitions 9 --json startup.json

Every command is a fresh process. The commands take turns, once in every round, so that a busy
machine disturbs all of them alike; the table has medians. The first round only warms the disk's
cache and writes Python's bytecode, and is not counted. "First word" and "last word" are the times,
from the start of the process, at which stdout delivered its first and its last byte; "exit" is the
end of the process. The checkout that this file lies in is measured, from whatever directory it is
run.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SPECX = ("-m", "specx")
IMPORT_TORCH, HELP, ONE_TOKEN = "import torch", "specx --help", "specx summarize, 1 KB, -n 1"
PACKAGES_SHOWN = 15
# Runs a command line of specx in this process; the last line of stderr is what it has imported.
COUNT_MODULES = """
import sys
from specx.cli.main import run
code = run(sys.argv[1:])
print(sum(n.partition(".")[0] == "transformers" for n in sys.modules), file=sys.stderr)
sys.exit(code)
"""
IMPORT_TIME = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Timing:
    """One process; seconds from its start. Without output the words are as late as the exit."""

    first_word_s: float
    last_word_s: float
    exit_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """What a process wrote, and when."""

    timing: Timing
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Command:
    """Python's arguments, and whether the kernel caches are to be empty."""

    name: str
    arguments: tuple[str, ...]
    is_cold: bool = False


def run(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> Finished:
    """Run Python to the end. Raises SystemExit with the end of stderr where it fails."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(variables or {})}
    with tempfile.TemporaryFile() as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            bufsize=0,
        )
        assert process.stdout is not None
        pieces: list[bytes] = []
        moments: list[float] = []
        while piece := process.stdout.read(1 << 16):
            moments.append(time.perf_counter() - began)
            pieces.append(piece)
        code = process.wait()
        ended = time.perf_counter() - began
        stderr.seek(0)
        err = stderr.read().decode(errors="replace")
    if code:
        raise SystemExit(f"error: {' '.join(arguments)} ended with code {code}:\n{err[-2000:]}")
    moments = moments or [ended]
    return Finished(Timing(moments[0], moments[-1], ended), b"".join(pieces).decode(), err)


def run_command(command: Command, *more: str) -> Finished:
    """Run it, with ``more`` arguments; a cold one with caches in a fresh folder."""
    if not command.is_cold:
        return run([*command.arguments, *more])
    with tempfile.TemporaryDirectory() as folder:
        empty = {name: f"{folder}/{name}" for name in ("SPECX_CACHE_DIR", "TRITON_CACHE_DIR")}
        return run([*command.arguments, *more], empty)


def measure(commands: Sequence[Command], repetitions: int) -> dict[str, list[Timing]]:
    """Timings of each command, by its name; they take turns."""
    timings: dict[str, list[Timing]] = {command.name: [] for command in commands}
    for repetition in range(repetitions + 1):
        for command in commands:
            if repetition or not command.is_cold:
                print(f"\rround {repetition} of {repetitions}: {command.name:<48}",
                      end="", file=sys.stderr, flush=True)  # fmt: skip
                timing = run_command(command).timing
                if repetition:
                    timings[command.name].append(timing)
    print(f"\r{'':<80}\r", end="", file=sys.stderr, flush=True)
    return timings


def count_transformers_modules(arguments: Sequence[str]) -> int:
    """Modules of transformers that a command of one token has imported when it ends, which is at
    least what it had imported before its first token."""
    return int(run(["-c", COUNT_MODULES, *arguments]).err.strip().rpartition("\n")[2])


def import_seconds(report: str) -> dict[str, float]:
    """Package → seconds that its modules took themselves, by ``-X importtime``; longest first."""
    spent: Counter[str] = Counter()
    for microseconds, module in IMPORT_TIME.findall(report):
        spent[module.partition(".")[0]] += int(microseconds)
    return {name: value / 1e6 for name, value in spent.most_common(PACKAGES_SHOWN)}


def phases(command: Command) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by phase of one run, and the whole object that specx wrote of it."""
    finished = run_command(command, "-o", "json")
    result = json.loads(finished.out)
    times = result["time_s"]
    names = ("load", "prefill_target", "prefill_draft", "tune", "decode")
    spent = {name: times[name] for name in names if times[name] is not None}
    spent["start, imports and exit"] = finished.timing.exit_s - times["load"] - times["total"]
    return spent, result


def write_document(path: Path, characters: int) -> None:
    """The bundled report, repeated and cut."""
    report = (ROOT / "specx" / "pocket" / "report.txt").read_text(encoding="utf-8")
    path.write_text((report * (characters // len(report) + 1))[:characters], encoding="utf-8")


def pair_arguments(options: argparse.Namespace, document: Path) -> list[str]:
    """specx's arguments for the user's own pair; the document gets the length asked for."""
    pair = ["--target", options.target, *(["--draft", options.draft] if options.draft else [])]
    words = ["summarize", str(document), *pair, "--offline", "--device", options.device]
    characters = 4 * options.prompt_tokens
    for _ in range(2):  # one token to learn how many characters it has, one to check
        write_document(document, characters)
        found = json.loads(run([*SPECX, *words, "-n", "1", "-o", "json"]).out)["tokens"]["prompt"]
        characters = round(characters * options.prompt_tokens / found)
    return [*words, "-n", str(options.max_tokens), "--ignore-eos"]


def report(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything measured."""
    short = folder / "short.txt"
    write_document(short, 1000)
    bundled = ["summarize", str(short), "-m", "pocket", "-n", "1", "--device", "cpu", "--offline"]
    one_token = Command(ONE_TOKEN, (*SPECX, *bundled))
    commands = [
        Command(IMPORT_TORCH, ("-c", "import torch")),
        Command(HELP, (*SPECX, "--help")),
        one_token,
    ]
    profiled = [one_token]
    if options.target:
        words = (*SPECX, *pair_arguments(options, folder / "long.txt"))
        name = f"own pair, {options.prompt_tokens:,} + {options.max_tokens} tokens"
        pair = [Command(f"{name}, warm", words), Command(f"{name}, cold", words, is_cold=True)]
        commands, profiled = commands + pair, profiled + pair
    timings = measure(commands, options.repetitions)
    split = {command.name: phases(command) for command in profiled}
    _, result = split[profiled[-1].name]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "env": result["env"],
        "repetitions": options.repetitions,
        "seconds": {
            name: [[each.first_word_s, each.last_word_s, each.exit_s] for each in found]
            for name, found in timings.items()
        },
        "transformers_modules": count_transformers_modules(bundled),
        "import_s": import_seconds(run(["-X", "importtime", *SPECX, *bundled]).err),
        "phase_s": {name: spent for name, (spent, _) in split.items()},
        "tokens": {name: whole["tokens"] for name, (_, whole) in split.items()},
    }


def table(found: Mapping[str, Any]) -> str:
    """The report as text."""
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found["seconds"].items()
    }
    facts = [found["env"][key] for key in ("gpu", "cpu", "threads", "torch", "python")]
    width = max(map(len, medians))
    lines = [
        f"{found['date']} · " + " · ".join(str(fact) for fact in facts if fact is not None),
        f"seconds, medians of {found['repetitions']}, in turns",
        f"{'':{width}}  first word  last word   exit  exit/import torch",
    ]
    for name, (first, last, end) in medians.items():
        ratio = end / medians[IMPORT_TORCH][2]
        lines.append(f"{name:{width}}  {first:10.2f} {last:10.2f} {end:6.2f} {ratio:18.2f}")
    lines += ["", f"modules of transformers imported: {found['transformers_modules']}"]
    lines += ["", f"imports of {ONE_TOKEN}: seconds by package"]
    lines += [f"{seconds:8.3f}  {name}" for name, seconds in found["import_s"].items()]
    for name, spent in found["phase_s"].items():
        tokens = found["tokens"][name]
        lines += ["", f"{name} ({tokens['prompt']:,} + {tokens['new']} tokens): seconds by phase"]
        lines += [f"{seconds:8.3f}  {phase}" for phase, seconds in spent.items()]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="rounds [5]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--target", metavar="DIR", help="measure this pair too, warm and cold")
    parser.add_argument("--draft", metavar="DIR", help="its draft [prompt lookup]")
    parser.add_argument("--device", default="cuda:0", help="where that pair runs [cuda:0]")
    parser.add_argument("--prompt-tokens", type=int, default=12_000, metavar="N", help="[12000]")
    parser.add_argument("-n", "--max-tokens", type=int, default=126, metavar="N", help="[126]")
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    if options.draft and not options.target:
        parser.error("--draft needs --target")
    for name in ("target", "draft"):  # the children run wherever they like
        if getattr(options, name) and Path(getattr(options, name)).is_dir():
            setattr(options, name, str(Path(getattr(options, name)).resolve()))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = report(options, Path(folder))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
