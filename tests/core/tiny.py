"""Tiny random Hugging Face models in memory, and one request decoded over them.

Weights are drawn wide (initializer_range 0.25): with the usual 0.02 the logits are so flat that
two tokens tie within a rounding error, and an exact comparison would test the rounding.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from specx.checkpoints.config import model_config
from specx.core.attention import Kernels
from specx.core.bounds import ThoughtBound
from specx.core.cache import KVCache
from specx.core.config import MODES, Parts, RetrievalConfig, SamplingConfig, TreeConfig
from specx.core.decode import Decoding, Emitted, Request
from specx.core.decoder import Model
from specx.core.drafts import Drafter
from specx.core.drafts.growth import Governor, StepCosts
from specx.core.drafts.model import DraftSettings, drafter_in
from specx.core.drafts.ngram import LookupDrafter
from specx.core.joined import join
from specx.core.kernels.reference import StaticKernels
from specx.core.retrieval import Selection
from specx.core.sampling import Sampler
from specx.core.stats import FinishReason, Prefill, StepStats
from specx.core.target import CostTable, Target
from specx.core.workspace import Workspace

VOCABULARY = 97
TRAINED_TOKENS = 128
RETRIEVAL = RetrievalConfig(
    chunk_tokens=8, top_chunks=3, sink_chunks=1, recent_chunks=2, every_steps=2
)
TREE = TreeConfig(nodes=12, depth=4, threshold=0.02, size="fixed")
PLAIN = MODES["plain"]
GREEDY = SamplingConfig()

_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
_ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
#: Family names, some with a rope type behind a dash.
FAMILIES = ("llama", "llama-llama3", "llama-yarn", "llama-linear", "mistral", "qwen2", "qwen3")


def config(name: str = "llama", **changes: Any) -> PreTrainedConfig:
    """A config of a family, or of ``family-ropetype``; GQA with two query heads a key head."""
    family, _, rope = name.partition("-")
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family == "mistral":
        fields["sliding_window"] = None
    if rope:
        fields["rope_parameters"] = _ROPES[rope]
    fields |= changes
    if fields["head_dim"] is None:  # Qwen2 and old Llama configs leave it out
        del fields["head_dim"]
    return _CONFIGS[family](**fields)


def hf_model(settings_: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A seeded float32 model with a config object of its own and non-trivial biases."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(settings_), dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(std=0.5)
                elif "norm" in name:
                    weight.uniform_(0.7, 1.3)
    result: PreTrainedModel = model.eval()
    return result


def own(model: PreTrainedModel, kind: type[Model] = Model) -> Model:
    """The core's model over the weights of ``model``, which it leaves as they are."""
    config = model_config(model.config.to_dict())
    tensors = {name.removeprefix("model."): each for name, each in model.state_dict().items()}
    if config.is_tied:
        del tensors["lm_head.weight"]
    return kind(config.decoder, join(tensors, model.device, model.dtype))


def disturbed(model: PreTrainedModel, amount: float = 0.05, seed: int = 1) -> PreTrainedModel:
    """A copy with noise on every weight: a draft that agrees with the original now and then."""
    copied = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in copied.parameters():
            weight += torch.randn(weight.shape, generator=noise) * amount * weight.std()
    return copied


@torch.no_grad()
def hf_logits(model: PreTrainedModel, tokens: list[int] | Tensor) -> Tensor:
    """Plain Hugging Face: logits [n, V] of one causal forward."""
    logits: Tensor = model(torch.as_tensor(tokens)[None]).logits[0]
    return logits


def random_tokens(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    """[count] int64."""
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


@dataclass
class Pair:
    """A target and a draft, taken over by the core, with an untouched twin of the target."""

    target: Model
    draft: Model
    reference: PreTrainedModel

    @classmethod
    def make(cls, name: str = "llama", amount: float = 0.05, seed: int = 0) -> "Pair":
        model = hf_model(config(name), seed)
        return cls(own(model), own(disturbed(model, amount)), model)


@dataclass
class Run:
    """Everything that one request produced."""

    tokens: list[int] = field(default_factory=list)
    steps: list[StepStats] = field(default_factory=list)
    chunks: list[tuple[int, ...] | None] = field(default_factory=list)  # retrieved, by step
    prefills: list[Prefill] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def tokens_per_step(self) -> float:
        return 1.0 + sum(step.accepted for step in self.steps) / len(self.steps)

    def take(self, event: Prefill | Emitted) -> None:
        """Add one event of the decode loop."""
        if isinstance(event, Prefill):
            self.prefills.append(event)
            return
        self.tokens += event.tokens
        self.finish_reason = event.finish_reason
        if event.step is not None:
            self.steps.append(event.step)
            self.chunks.append(event.retrieved_chunks)


class KnownCosts(CostTable):
    """Costs that nobody measured."""

    def __init__(self, costs: StepCosts) -> None:
        super().__init__()
        self._costs = costs

    def of(self, target: Target) -> StepCosts:
        return self._costs


@dataclass
class Job:
    """One request and how it is decoded; ``decoding()`` makes fresh state around the models."""

    pair: Pair
    prompt: Tensor
    parts: Parts = PLAIN
    max_tokens: int = 24
    sampling: SamplingConfig = GREEDY
    tree: TreeConfig = TREE
    retrieval: RetrievalConfig = RETRIEVAL
    end_tokens: frozenset[int] = frozenset()
    prefill_chunk_tokens: int = 64
    trained_tokens: int = TRAINED_TOKENS
    drafter: Drafter | None = None
    costs: StepCosts | None = None
    governor: Governor | None = None
    is_fixed: bool = False  # as on a GPU: fixed shapes, no host, steps launched ahead
    records_trees: bool = False
    thought: Callable[[], ThoughtBound] | None = None  # made anew for each decoding

    def decoding(self, reuse: Decoding | None = None) -> Decoding:
        """Capacities are those that an engine would choose; ``reuse`` the workspace of an earlier
        request."""
        request = Request(
            self.prompt,
            self.max_tokens,
            self.end_tokens,
            Sampler(self.sampling),
            self.prefill_chunk_tokens,
            None if self.thought is None else self.thought(),
        )
        workspace = self.workspace() if reuse is None else reuse.target.workspace
        kernels = self.kernels()
        target = Target(self.pair.target, workspace.capacity, self.parts, kernels, workspace)
        drafter = self.drafter or self._drafter(request, workspace)
        uses_retrieval = self.parts.has_draft_model and self.parts.draft_cache == "retrieval"
        measures = self.parts.drafter != "none" and self.tree.size == "measured"
        costs = CostTable() if measures else None
        return Decoding(
            request,
            target,
            drafter,
            retrieval=self.retrieval if uses_retrieval else None,
            governor=self.governor,
            costs=costs if self.costs is None else KnownCosts(self.costs),
            records_trees=self.records_trees,
        )

    def workspace(self) -> Workspace:
        """Room for the request, and for two trees after its end."""
        rows = len(self.prompt) + 2 * self.max_tokens + 2 * max(64, self.tree.nodes + 1)
        return Workspace(self.pair.target, rows)

    def kernels(self) -> Kernels:
        """Those of a CPU, or the ones that stand for a GPU's."""
        if self.is_fixed:
            return StaticKernels()
        return Kernels("masked" if self.parts.tree_attention == "masked" else "hybrid")

    def settings(self) -> DraftSettings:
        """What a draft model drafts with."""
        return DraftSettings(
            model=self.pair.draft,
            vocabulary=self.pair.target.shape.vocabulary,
            trained_tokens=self.trained_tokens,
            parts=self.parts,
            tree=self.tree,
            retrieval=self.retrieval,
            kernels=self.kernels(),
        )

    def run(self) -> Run:
        """Decode to the end."""
        run = Run()
        for event in self.decoding().run():
            run.take(event)
        return run

    def _drafter(self, request: Request, workspace: Workspace) -> Drafter:
        if self.parts.drafter == "none":
            return Drafter()
        if self.parts.drafter == "lookup":
            return LookupDrafter(self.tree)
        return drafter_in(workspace, self.settings(), request.sampler)


class Fed:
    """A drafter fed as the decode loop feeds it: text and features through the workspace."""

    def __init__(self, settings: DraftSettings, target: Model, costs: StepCosts | None = None):
        self.workspace = Workspace(target, 600)
        self.drafter = drafter_in(self.workspace, settings, Sampler(GREEDY))
        self._costs, self._prompt, self._produced = costs, torch.zeros(0, dtype=torch.int64), 0

    @property
    def full(self) -> KVCache:
        """Keys of the whole context."""
        return self.workspace.draft_cache(self.drafter.settings.model, 0)

    def prefill(self, tokens: Tensor, features: Tensor | None = None) -> None:
        """More of the prompt."""
        self._prompt = torch.cat([self._prompt, tokens])
        self.drafter.prefill(tokens, torch.empty(0) if features is None else features)

    def extend(self, tokens: list[int], features: Tensor | None = None) -> None:
        """Output tokens; the first ones begin the output."""
        progress, rest = self.workspace.progress, torch.tensor(tokens)
        for index in range(0 if features is None else len(tokens)):
            row = (self._produced + index) % len(self.workspace.features)
            self.workspace.features[row] = features[index]  # type: ignore[index]
        if self._produced == 0:
            progress.begin(self._prompt, rest[:1])
            self.drafter.begin(self._costs)
            rest = rest[1:]
        progress.advance(rest, torch.tensor(len(rest)))
        self.drafter.extend(tokens)
        self._produced += len(tokens)

    def refocus(self, rows: Tensor) -> None:
        """Keep these rows."""
        nothing = torch.zeros(1)
        count = torch.tensor(len(rows))
        self.drafter.refocus(Selection(rows, count, nothing.long(), nothing))


def interleave(*decodings: Decoding) -> list[Run]:
    """Advance several requests in turns, one event each, until all have ended."""
    runs = [Run() for _ in decodings]
    streams: list[Iterator[Prefill | Emitted] | None] = [decoding.run() for decoding in decodings]
    while any(stream is not None for stream in streams):
        for index, stream in enumerate(streams):
            event = None if stream is None else next(stream, None)
            if event is None:
                streams[index] = None
            else:
                runs[index].take(event)
    return runs
