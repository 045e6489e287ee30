"""Train the pocket pair: `python -m training.train target …`, then `… draft …`; and EAGLE
heads for the target: `… eagle …`, `… eagle3 …`.

In: the corpus folder. Out: a folder each, with weights, configuration and log.
Runs on every GPU of the machine (one process each, or under torchrun), or slowly on the CPU.
"""

import argparse
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from training import checkpoint
from training.batches import Source
from training.forward import make_config, make_model, weights_of
from training.head_training import HEADS, Job, add_options, head_job
from training.loop import Log, Phase, Place, Plan, Trainer
from training.objectives import DistilObjective, Objective, TargetObjective
from training.optim import Optimizer
from training.probe import Probe
from training.tasks import Mixture

TOKENIZER = Path(__file__).parent.parent / "specx" / "pocket" / "target"
TARGET_PHASES = "2048:0.3,8192:0.15,17408:0.55"
DRAFT_PHASES = "1024:1.0"
TARGET_PROBES, DRAFT_PROBES = "1024,4096,8192,16384", "1024"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training.train", description=__doc__)
    parser.add_argument(
        "model", choices=("target", "draft", *HEADS, "corpus"), help="corpus: only the cache"
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder with the *.jsonl.zst files")
    add("--work", type=Path, required=True, help="folder for the token cache and the log")
    add("--out", type=Path, help="folder for the trained model")
    add("--tokenizer", type=Path, default=TOKENIZER, help="folder with tokenizer.json")
    add("--target", type=Path, help="trained target, teacher of draft and heads")
    add("--resume", type=Path, help="start from these weights")
    add("--seconds", type=float, default=450.0, help="training time, without compilation")
    add("--limit", type=float, help="seconds for the whole run, start and compilation included")
    add("--phases", help="length:share,… of --seconds (shares > 1 are seconds)")
    add("--step-tokens", type=int, default=131_072, help="per GPU and optimizer step")
    add("--micro-tokens", type=int, default=69_632, help="per GPU and forward pass")
    add("--rate", type=float, default=0.006, help="peak learning rate of Muon")
    add("--adam-rate", type=float, default=0.003, help="peak learning rate of AdamW")
    add("--warm", type=float, default=0.02, help="share of the time to warm up")
    add("--flat", type=float, default=0.4, help="share of the time before the rate falls")
    add("--pointer", type=float, default=0.1, help="weight of the pointer loss")
    add("--text-weight", type=float, default=0.5, help="weight of plain tokens beyond 4K context")
    add("--seed", type=int, default=1)
    add("--workers", type=int, help="data processes per GPU")
    add("--attention", choices=("auto", "flash", "cudnn"), default="auto")
    add("--no-compile", action="store_true")
    add("--plain", type=float, default=0.28, help="share of plain text among sequences up to 4K")
    add("--sync-steps", type=int, default=8, help="steps between looks at the clock")
    add("--max-steps", type=int, help="end every phase after so many steps")
    add("--save-every", type=float, default=100.0, metavar="SECONDS")
    add("--probe-every", type=float, default=60.0, metavar="SECONDS")
    add("--probe-lengths", help="tokens; default 1024,4096,8192,16384, and 1024 for a draft")
    add("--probe-count", type=int, default=6)
    add("--micro", action="store_true", help="a toy model, to try the program out")
    add_options(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Prepare the corpus, then train in one process per GPU."""
    options = parse()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    options.work.mkdir(parents=True, exist_ok=True)
    begin = options.began = time.monotonic()
    corpus = source(options).load()
    seconds = round(time.monotonic() - begin, 1)
    print(f"corpus: {len(corpus.tokens)} tokens, {len(corpus)} documents, {seconds} s", flush=True)
    if options.model == "corpus":
        return
    if options.out is None:
        raise SystemExit("--out is missing: the folder for the trained model")
    gpus = torch.cuda.device_count()
    if "RANK" in os.environ:
        work(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), options)
    elif gpus > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        run = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        run(work, args=(gpus, options), nprocs=gpus)  # type: ignore[no-untyped-call]
    else:
        work(0, 1, options)


def work(rank: int, world: int, options: argparse.Namespace) -> None:
    """Everything that one process does."""
    place = start(rank, world)
    torch.manual_seed(options.seed)
    log = Log(options.work / f"{options.model}.log.jsonl", place, options.began)
    data = source(options)
    job = head_job(options, place, data) if options.model in HEADS else pair_job(options, place)

    def save() -> None:
        job.save(summary(options, log))

    optimizer = Optimizer(job.parameters, job.embedding)
    what = plan(options, world)
    Trainer(optimizer, job.objective, data, what, place, log, save, job.score).run()
    log.write(saved=str(options.out))
    if world > 1:
        dist.destroy_process_group()


def start(rank: int, world: int) -> Place:
    """Join the other processes and take a device."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", rank))
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
        torch.set_float32_matmul_precision("high")
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world)
    return Place(rank, world, device)


def source(options: argparse.Namespace) -> Source:
    """Where the training sequences come from."""
    return Source(options.corpus, options.work / "cache", options.tokenizer / "tokenizer.json")


def pair_job(options: argparse.Namespace, place: Place) -> Job:
    """The job of the target or the draft."""
    model = initial(options).to(place.device)

    def save(summary: Mapping[str, object]) -> None:
        checkpoint.save(model, options.out, options.tokenizer, summary)

    return Job(
        list(model.parameters()), model.get_input_embeddings().weight,
        make_objective(options, model, place), save, LazyProbe(options, model),
    )  # fmt: skip


def config(options: argparse.Namespace) -> LlamaConfig:
    """The architecture to train."""
    if options.model == "target":
        size = {"hidden": 512, "layers": 8, "heads": 4, "kv_heads": 2, "mlp": 1280}
        theta, positions = 1e6, 32768
    else:
        size = {"hidden": 256, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 768}
        theta, positions = 1e4, 1024
    if options.micro:
        layers = 8 if options.model == "target" else 2  # EAGLE-3 reads layers 2, 4 and 7
        size = size | {"hidden": 64, "layers": layers, "mlp": 128}
    return make_config(**size, theta=theta, positions=positions)


def initial(options: argparse.Namespace) -> LlamaForCausalLM:
    """The model to start from, in float32."""
    if options.resume:
        return checkpoint.load(options.resume)
    return make_model(config(options), options.seed)


def make_objective(options: argparse.Namespace, model: LlamaForCausalLM, place: Place) -> Objective:
    """The loss of the model; the draft's needs its teacher."""
    if options.model == "target":
        return TargetObjective(weights_of(model), options.pointer)
    if options.target is None:
        raise SystemExit("draft: --target is missing: the folder of the trained target")
    teacher = checkpoint.load(options.target).to(place.device).requires_grad_(False)
    return DistilObjective(weights_of(model), weights_of(teacher))


def plan(options: argparse.Namespace, world: int) -> Plan:
    """The plan that the options describe."""
    workers = options.workers
    if workers is None:
        workers = min(14, max(0, len(os.sched_getaffinity(0)) // world - 2))
    cuda = torch.cuda.is_available()
    return Plan(
        phases=phases(options), step_tokens=options.step_tokens,
        micro_tokens=options.micro_tokens, rate=options.rate, adam_rate=options.adam_rate,
        warm=options.warm, flat=options.flat, seed=options.seed, workers=workers,
        compiled=cuda and not options.no_compile, attention=options.attention,
        sync_steps=options.sync_steps if cuda else 1, max_steps=options.max_steps,
        limit_s=options.limit,
        save_every_s=options.save_every, probe_every_s=options.probe_every,
    )  # fmt: skip


def phases(options: argparse.Namespace) -> tuple[Phase, ...]:
    """The phases: short ones learn the language, long ones to read."""
    default = TARGET_PHASES if options.model == "target" else DRAFT_PHASES
    out = []
    for part in (options.phases or default).split(","):
        length, share = part.split(":")
        seconds = float(share) if float(share) > 1 else float(share) * options.seconds
        short = int(length) <= 4096
        mixture = Mixture(options.plain, 0.06) if short else Mixture(0.12, 0.06)
        text_weight = 1.0 if short else options.text_weight
        if options.model in HEADS:  # no head agrees with its target much on plain text
            text_weight = options.text
        out.append(Phase(int(length), seconds, mixture, text_weight))
    return tuple(out)


class LazyProbe:
    """Scores the model on held-out conversations, which are written at the first call."""

    def __init__(self, options: argparse.Namespace, model: LlamaForCausalLM) -> None:
        self._options, self._model = options, model
        self._probe: Probe | None = None

    def __call__(self) -> dict[str, float]:
        """The scores now."""
        if self._probe is None:
            default = TARGET_PROBES if self._options.model == "target" else DRAFT_PROBES
            lengths = [int(n) for n in (self._options.probe_lengths or default).split(",")]
            writer = source(self._options).writer(held_out=True)
            self._probe = Probe(writer, lengths, self._options.probe_count)
        return self._probe.score(weights_of(self._model))


def summary(options: argparse.Namespace, log: Log) -> dict[str, object]:
    """What `training.json` tells: options, machine, amounts, losses."""
    world = log.place.world
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    total = max(1, sum(log.kinds.values()))
    return {
        "options": {
            name: value.name if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if value is not None and name != "began"
        },
        "machine": f"{world} x {gpu or platform.machine()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds_with_compilation": round(time.monotonic() - log.started, 1),
        "tokens": log.tokens,
        "token_shares": {name: round(n / total, 4) for name, n in log.kinds.items()},
        "phases": log.phases,
        "last": log.last,
        "probe": log.probe,
    }


if __name__ == "__main__":
    main()
