"""Outside witnesses: transformers' own ``generate`` and its assisted generation, as users run them.

In: prompt tokens. Out: tokens, times and counts. It knows nothing of specx's engine: the models
are transformers' own, read from their files by transformers, with the attention that it chooses by
itself. Only a stand-in's, which has no files, are put together from specx's tensors.

What a careful opponent would set is set. Greedy, with nothing inherited from the checkpoint's
sampling settings. ``hf`` decodes over a static cache on a GPU, where transformers then compiles
the step; elsewhere over a static or a growing cache, whichever is faster in a few timed steps
(once for each power of two of the length). ``hf-assisted`` cannot use a static cache; how many
tokens its assistant drafts is left to the library's defaults (with scikit-learn installed, these
adapt a threshold during a run).

Times come from a streamer, which ``generate`` hands its tokens after every forward of the target.
Assisted generation has no prefill of its own: its first forward reads the prompt and a first draft
together. So its prefill time holds that draft, ``first_tokens`` may exceed one, and ``steps`` and
``accepted`` count the later forwards only.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
)

from specx.bench.modes import Witness
from specx.bench.schema import MemoryBytes
from specx.checkpoints import load as hub
from specx.checkpoints.config import DAMAGE, model_config, summary
from specx.checkpoints.load import LoadedModel
from specx.checkpoints.tokenizer import quiet
from specx.core.architecture import Shape
from specx.errors import ModelError, PairError, ResourceError, UsageError
from specx.memory import peak_bytes, reset_peak
from specx.preset.preset import Preset

CacheKind = Literal["static", "dynamic"]
_GPU_GRAIN_TOKENS = 128  # a compiled step belongs to one cache size: let similar prompts share it
_PROBE_STEPS = 4


@dataclass(frozen=True, slots=True)
class WitnessRun:
    """One run. ``prefill_s`` lasts up to the first tokens, ``decode_s`` from there to the last."""

    tokens: tuple[int, ...]  # without an end token, as specx gives them
    finish_reason: Literal["eos", "length"]
    prefill_s: float
    decode_s: float
    total_s: float  # both
    first_tokens: int  # that came with the prefill, an end token included; 1 without an assistant
    steps: int  # forwards of the target after the first
    accepted: int  # draft tokens that these steps kept
    histogram: tuple[int, ...]  # histogram[a] = steps that kept exactly a draft tokens
    cache: CacheKind
    memory: MemoryBytes  # the models and caches of this run; ``peak`` of the whole process or GPU
    note: str


class Witnesses:
    """A pair of untouched models; every run is independent of those before it."""

    def __init__(
        self,
        preset: Preset,
        device: str,
        dtype: str,
        offline: bool,
        pair: hub.ModelPair | None = None,
    ) -> None:
        """Load the preset's models, or take the stand-ins of ``pair``, which has no head.

        Raises what ``hub.load_pair`` raises.
        """
        self._preset = preset
        self._target, self._draft, ends = (
            _from_files(preset, device, dtype, offline) if pair is None else _from_tensors(pair)
        )
        self._end_tokens = tuple(sorted(ends))
        self._static: StaticCache | None = None
        self._chosen: dict[int, CacheKind] = {}

    def check(self, kind: Witness) -> None:
        """Raise ``UsageError`` or ``PairError`` where this pair cannot be that witness."""
        if kind == "hf":
            return
        if self._draft is None:
            raise UsageError(
                f"preset {self._preset.name} has no draft model to assist transformers",
                hints=["leave hf-assisted out"],
            )
        sizes = [model.config.vocab_size for model in (self._target, self._draft)]
        if sizes[0] != sizes[1]:
            raise PairError(
                "transformers does not assist a target with this draft",
                reason=f"the target has {sizes[0]:,} vocabulary rows, the draft {sizes[1]:,}",
                hints=["leave hf-assisted out"],
            )

    def run(
        self,
        kind: Witness,
        prompt_tokens: Sequence[int],
        max_tokens: int,
        ignore_eos: bool,
        on_tokens: Callable[[int], None] | None = None,
    ) -> WitnessRun:
        """Generate greedily; with ``ignore_eos`` exactly ``max_tokens`` tokens.

        ``on_tokens`` is called with the number of tokens so far after every forward; its own time
        is not counted, and an exception from it ends the run (``RuntimeError`` and ``ValueError``
        would pass for the library's own). Raises what ``check`` raises, ``ResourceError`` and,
        where transformers fails, ``ModelError``.
        """
        self.check(kind)
        try:
            with quiet():
                return self._run(kind, prompt_tokens, max_tokens, ignore_eos, on_tokens)
        except (torch.OutOfMemoryError, MemoryError) as error:
            rows = len(prompt_tokens) + max_tokens
            raise ResourceError(
                f"no memory for transformers' generate with {rows:,} tokens", reason=summary(error)
            ) from error
        except (RuntimeError, ValueError) as error:
            raise ModelError("transformers' generate failed", reason=summary(error)) from error

    def _run(
        self,
        kind: Witness,
        prompt_tokens: Sequence[int],
        max_tokens: int,
        ignore_eos: bool,
        on_tokens: Callable[[int], None] | None,
    ) -> WitnessRun:
        target, draft = self._target, self._draft if kind == "hf-assisted" else None
        rows = len(prompt_tokens) + max_tokens
        cache = self._cache(rows) if draft is None else None
        for model in (target, draft):
            if model is not None:
                # Afresh each time: it would fill in the checkpoint's sampling, and an assistant
                # may keep there what it learnt in the last run.
                model.generation_config = _settings()
        ends = () if ignore_eos else self._end_tokens
        prompt = torch.tensor([list(prompt_tokens)], device=target.device)
        reset_peak(target.device)
        if target.device.type == "cuda":
            torch.cuda.synchronize(target.device)
        clock = _Clock(on_tokens)
        produced = target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=_settings(max_tokens, ends),
            past_key_values=cache,
            assistant_model=draft,
            streamer=clock,
        )
        tokens = produced[0, len(prompt_tokens) :].tolist()
        ended = bool(tokens) and tokens[-1] in ends
        static = 0 if cache is None else cache.get_max_length()
        return clock.run(
            tokens[:-1] if ended else tokens,
            ended,
            "dynamic" if cache is None else "static",
            self._memory(len(prompt_tokens) + len(tokens) - 1, static, draft),
            self._note(kind, cache is not None),
        )

    def _cache(self, rows: int) -> StaticCache | None:
        """An emptied static cache for so many rows, kept between runs; None: a growing one."""
        grain = _GPU_GRAIN_TOKENS if self._target.device.type == "cuda" else 1
        rows = math.ceil(rows / grain) * grain
        if self._cache_kind(rows) == "dynamic":
            return None
        if self._static is None or self._static.get_max_length() != rows:
            self._static = None  # free it before the next one
            self._static = StaticCache(config=self._target.config, max_cache_len=rows)
        else:
            self._static.reset()
        return self._static

    def _cache_kind(self, rows: int) -> CacheKind:
        if self._target.device.type == "cuda":
            return "static"  # the only one that transformers compiles
        scale = rows.bit_length()
        if scale not in self._chosen:
            self._chosen[scale] = _faster_cache(self._target, rows)
        return self._chosen[scale]

    def _memory(self, rows: int, static_rows: int, draft: PreTrainedModel | None) -> MemoryBytes:
        models = [self._target] if draft is None else [self._target, draft]
        return MemoryBytes(
            weights=sum(part.nbytes for model in models for part in model.parameters()),
            kv_target=max(rows, static_rows) * _row_bytes(self._target),
            kv_draft=0 if draft is None else rows * _row_bytes(draft),
            peak=peak_bytes(self._target.device),
        )

    def _note(self, kind: Witness, static: bool) -> str:
        which = "generate" if kind == "hf" else "assisted generation"
        compiled = static and self._target.device.type == "cuda"
        cache = ("static" if static else "dynamic") + " cache"
        return f"transformers {transformers.__version__} {which}, {cache}" + (
            ", compiled" if compiled else ""
        )


class _Clock:
    """A streamer that notes when tokens arrive. They come from the device, so it has finished."""

    def __init__(self, on_tokens: Callable[[int], None] | None) -> None:
        self._on_tokens = on_tokens
        self._counts: list[int] = []  # tokens of each forward
        self._prompt_seen = False
        self._began = time.perf_counter()
        self._seconds: list[float] = []  # up to each forward's tokens, callbacks excluded

    def put(self, value: Tensor) -> None:
        """Called by ``generate``: with the prompt, then after each forward."""
        now = time.perf_counter()
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._counts.append(value.numel())
        self._seconds.append(now - self._began)
        if self._on_tokens is not None:
            self._on_tokens(sum(self._counts))
            self._began += time.perf_counter() - now

    def end(self) -> None:
        """Called by ``generate`` after the last token."""

    def run(
        self, tokens: list[int], ended: bool, cache: CacheKind, memory: MemoryBytes, note: str
    ) -> WitnessRun:
        """The finished run."""
        first, *kept = [count - 1 for count in self._counts]
        prefill_s, total_s = self._seconds[0], self._seconds[-1]
        return WitnessRun(
            tokens=tuple(tokens),
            finish_reason="eos" if ended else "length",
            prefill_s=prefill_s,
            decode_s=total_s - prefill_s,
            total_s=total_s,
            first_tokens=first + 1,
            steps=len(kept),
            accepted=sum(kept),
            histogram=tuple(kept.count(number) for number in range(max(kept, default=-1) + 1)),
            cache=cache,
            memory=memory,
            note=note,
        )


def _settings(max_tokens: int | None = None, end_tokens: Sequence[int] = ()) -> GenerationConfig:
    """Greedy decoding with the library's defaults."""
    ends = list(end_tokens) or None
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0] if ends else 0,  # never written with one prompt; unset, it warns
    )


Models = tuple[PreTrainedModel, PreTrainedModel | None, frozenset[int]]  # and their end tokens


def _from_files(preset: Preset, device: str, dtype: str, offline: bool) -> Models:
    device = hub.choose_device(device)
    files, sources = hub.located(preset, offline=offline)
    hub.fetch_weights(files, sources)

    def read(directory: Path, preset_dtype: str) -> PreTrainedModel:
        try:
            with quiet():
                model = AutoModelForCausalLM.from_pretrained(
                    directory,
                    dtype=hub.choose_dtype(dtype, preset_dtype, device),
                    weights_only=True,  # the unpickler that runs no code, should it be a pickle
                    local_files_only=True,
                    trust_remote_code=False,
                )
            return model.to(device).eval()  # type: ignore[no-any-return]
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = summary(error)
            raise ResourceError(f"no memory on {device} for transformers", reason=reason) from error
        except (*DAMAGE, RuntimeError) as error:
            message = f"transformers cannot read {directory}"
            raise ModelError(message, reason=summary(error)) from error

    target = read(files.target_dir, preset.target.dtype)
    draft = None
    if files.draft_dir is not None and files.draft_config is not None:
        draft = read(files.draft_dir, preset.draft.dtype)
    return target, draft, hub.end_tokens(files.target_config, files.tokenizer)


def _from_tensors(pair: hub.ModelPair) -> Models:
    draft = assembled(pair.draft) if isinstance(pair.draft, LoadedModel) else None
    ends = hub.end_tokens(pair.target.config, pair.tokenizer)
    return assembled(pair.target), draft, ends


def assembled(model: LoadedModel) -> PreTrainedModel:
    """transformers' model of the same config over the very same tensors."""
    config = AutoConfig.for_model(**model.config.raw)
    tensors = model.separate()
    table = tensors["embed_tokens.weight"]
    tensors = {name if name == "lm_head.weight" else f"model.{name}": each
               for name, each in tensors.items()}  # fmt: skip
    with quiet(), torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=table.dtype)
    built.load_state_dict(tensors, strict=False, assign=True)
    built.tie_weights()
    # Rotary tables are no weights: without memory so far, they are computed anew.
    decoder = built.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(table.device)
    return built.eval().requires_grad_(False)


def _shape(model: PreTrainedModel) -> Shape:
    return model_config(model.config.to_dict()).shape


def _row_bytes(model: PreTrainedModel) -> int:
    """Keys and values of one token over all layers."""
    return _shape(model).numbers_per_token * int(model.dtype.itemsize)


def _faster_cache(model: PreTrainedModel, rows: int) -> CacheKind:
    """Time a few steps behind ``rows`` made-up tokens over either cache, in turns."""
    config = model.config
    caches: dict[CacheKind, DynamicCache | StaticCache] = {
        "static": StaticCache(config=config, max_cache_len=rows + _PROBE_STEPS),
        "dynamic": DynamicCache(config=config),
    }
    best = dict.fromkeys(caches, math.inf)
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        for cache in caches.values():
            _fill(model, cache, rows)
        for step in range(_PROBE_STEPS):
            position = torch.full_like(token, rows + step)
            for kind, cache in caches.items():
                began = time.perf_counter()
                logits = model(input_ids=token, position_ids=position, past_key_values=cache).logits
                float(logits[0, -1, 0])  # waits for the device
                best[kind] = min(best[kind], time.perf_counter() - began)
    return "static" if best["static"] <= best["dynamic"] else "dynamic"


def _fill(model: PreTrainedModel, cache: DynamicCache | StaticCache, rows: int) -> None:
    shape = _shape(model)
    size = (1, shape.kv_heads, rows, shape.head_dim)
    some = torch.zeros(size, dtype=model.dtype, device=model.device)
    for layer in range(shape.layers):
        cache.update(some, some, layer)
