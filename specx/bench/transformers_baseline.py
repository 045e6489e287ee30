"""Outside witnesses: transformers' own ``generate`` and its assisted generation, as users run them.
In: prompt tokens. Out: samples. The models are transformers' own, read from their files, with the
attention that it chooses by itself; only a stand-in's are put together from specx's tensors."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, StaticCache
from transformers.generation import GenerationConfig

from specx.bench.schema import BenchCell, MemoryBytes, Sample
from specx.checkpoints import load as hub
from specx.checkpoints.config import DAMAGE, model_config, summary
from specx.checkpoints.load import LoadedModel, ModelPair
from specx.checkpoints.tokenizer import quiet
from specx.errors import ModelError, PairError, ResourceError, UsageError
from specx.memory import peak_bytes, reset_peak
from specx.preset.preset import Preset

_GPU_GRAIN_TOKENS = 128  # a compiled step belongs to one cache size: let similar prompts share it
Models = tuple[PreTrainedModel, PreTrainedModel | None, frozenset[int]]  # and their end tokens


class Witnesses:
    """A pair of untouched models; every run is independent of those before it. What a careful
    opponent would set is set: greedy, with nothing of the checkpoint's sampling settings, and for
    ``hf`` a static cache, over which transformers compiles the step on a GPU, and which is the
    faster one on a CPU too. ``hf-assisted`` cannot use it; how many tokens its assistant drafts is
    left to the library (with scikit-learn, it adapts a threshold)."""

    def __init__(
        self, preset: Preset, device: str, dtype: str, offline: bool, pair: ModelPair | None = None
    ) -> None:
        """Load the preset's models, or take the stand-ins of ``pair``, which has no head."""
        self._name = preset.name
        if pair is None:
            self._target, self._draft, ends = _from_files(preset, device, dtype, offline)
        else:
            self._target = assembled(pair.target)
            self._draft = assembled(pair.draft) if isinstance(pair.draft, LoadedModel) else None
            ends = hub.end_tokens(pair.target.config, pair.tokenizer)
        self._end_tokens = sorted(ends)
        self._cache: StaticCache | None = None

    def run(
        self,
        cell: BenchCell,
        prompt_tokens: Sequence[int],
        max_tokens: int,
        ignore_eos: bool,
        on_tokens: Callable[[], None] = lambda: None,
    ) -> Sample:
        """Generate greedily as ``cell.mode`` says; with ``ignore_eos`` exactly ``max_tokens``.
        ``on_tokens`` is called after every forward; its own time is not counted, and an exception
        from it ends the run (``RuntimeError`` and such would pass for the library's own). Assisted
        generation has no prefill of its own: its first forward reads the prompt and a first draft
        together. So its prefill time holds that draft, ``first_tokens`` may exceed one, and
        ``steps`` and ``accepted`` count the later forwards only. Raises ``SpecxError``."""
        target, draft = self._target, self._assistant() if cell.mode == "hf-assisted" else None
        ends = [] if ignore_eos else self._end_tokens
        prompt = torch.tensor([list(prompt_tokens)], device=target.device)
        rows = len(prompt_tokens) + max_tokens
        no_memory = f"no memory for {rows:,} tokens of transformers"
        with _failing_as(no_memory, "transformers' generate failed"):
            cache = self._emptied(rows) if draft is None else None
            # Afresh each time: it would fill in the checkpoint's sampling, and an assistant may
            # keep there what it learnt in the last run.
            for model in filter(None, (target, draft)):
                model.generation_config = _settings()
            reset_peak(target.device)
            if target.device.type == "cuda":
                torch.cuda.synchronize(target.device)
            clock = _Clock(on_tokens)
            target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=_settings(max_tokens, ends),
                past_key_values=cache,
                assistant_model=draft,
                streamer=clock,
            )
        static_rows = 0 if cache is None else cache.get_max_length()
        models = [target] if draft is None else [target, draft]
        return _sample(cell, len(prompt_tokens), clock, ends, models, static_rows)

    def _assistant(self) -> PreTrainedModel:
        hints = ["leave hf-assisted out"]
        if self._draft is None:
            no_draft = f"preset {self._name} has no draft model to assist transformers"
            raise UsageError(no_draft, hints=hints)
        rows, draft_rows = (each.config.vocab_size for each in (self._target, self._draft))
        if rows != draft_rows:
            raise PairError(
                "transformers does not assist a target with this draft",
                reason=f"the target has {rows:,} vocabulary rows, the draft {draft_rows:,}",
                hints=hints,
            )
        return self._draft

    def _emptied(self, rows: int) -> StaticCache:
        if self._target.device.type == "cuda":
            rows = math.ceil(rows / _GPU_GRAIN_TOKENS) * _GPU_GRAIN_TOKENS
        if self._cache is not None and self._cache.get_max_length() == rows:
            self._cache.reset()
        else:
            self._cache = None  # free it before the next one
            self._cache = StaticCache(config=self._target.config, max_cache_len=rows)
        return self._cache


class _Clock:
    """A streamer that notes when tokens arrive. They come from the device, so it has finished."""

    def __init__(self, on_tokens: Callable[[], None]) -> None:
        self._on_tokens, self._prompt_seen = on_tokens, False
        self.tokens: list[int] = []
        self.counts: list[int] = []  # tokens of each forward
        self.seconds: list[float] = []  # up to each forward's tokens, callbacks excluded
        self._began = time.perf_counter()

    def put(self, value: Tensor) -> None:  # the prompt, then the tokens of each forward
        now = time.perf_counter()
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.tokens += value.flatten().tolist()
        self.counts.append(value.numel())
        self.seconds.append(now - self._began)
        self._on_tokens()
        self._began += time.perf_counter() - now

    def end(self) -> None: ...


def _sample(
    cell: BenchCell,
    prompt_tokens: int,
    clock: _Clock,
    ends: Sequence[int],
    models: Sequence[PreTrainedModel],
    static_rows: int,
) -> Sample:
    tokens = clock.tokens
    rows = prompt_tokens + len(tokens) - 1
    ended = tokens[-1] in ends
    if ended:
        tokens.pop()  # as specx gives them
    first, *kept = [count - 1 for count in clock.counts]
    prefill_s, total_s = clock.seconds[0], clock.seconds[-1]
    return Sample(
        cell=cell,
        prompt_tokens=prompt_tokens,
        new_tokens=len(tokens),
        finish_reason="eos" if ended else "length",
        prefill_target_s=prefill_s,
        prefill_draft_s=0.0,
        ttft_s=prefill_s,
        decode_s=total_s - prefill_s,
        total_s=total_s,
        first_tokens=first + 1,
        steps=len(kept),
        drafted=None,
        accepted=sum(kept),
        histogram=[kept.count(number) for number in range(max(kept, default=-1) + 1)],
        memory=MemoryBytes(
            weights=sum(part.nbytes for model in models for part in model.parameters()),
            kv_target=row_bytes(models[0]) * max(rows, static_rows),
            kv_draft=sum(rows * row_bytes(model) for model in models[1:]),
            peak=peak_bytes(models[0].device),
        ),
        tokens=tokens,
    )


@contextlib.contextmanager
def _failing_as(no_memory: str, message: str) -> Iterator[None]:
    """What transformers prints is left out, and what it raises is specx's error."""
    try:
        with quiet():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(no_memory, reason=summary(error)) from error
    except (*DAMAGE, RuntimeError) as error:
        raise ModelError(message, reason=summary(error)) from error


def _settings(max_tokens: int | None = None, ends: Sequence[int] = ()) -> GenerationConfig:
    """Greedy decoding with the library's defaults."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,  # never written with one prompt; unset, it warns
    )


def _from_files(preset: Preset, device: str, dtype: str, offline: bool) -> Models:
    device = hub.choose_device(device)
    files, sources = hub.located(preset, offline=offline)
    hub.fetch_weights(files, sources)

    def read(directory: Path, preset_dtype: str) -> PreTrainedModel:
        no_memory = f"no memory on {device} for transformers"
        with _failing_as(no_memory, f"transformers cannot read {directory}"):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=hub.choose_dtype(dtype, preset_dtype, device),
                weights_only=True,  # the unpickler that runs no code, should it be a pickle
                local_files_only=True,
                trust_remote_code=False,
            )
            return model.to(device).eval()

    target, draft = read(files.target_dir, preset.target.dtype), None
    if files.draft_dir is not None and files.draft_config is not None:
        draft = read(files.draft_dir, preset.draft.dtype)
    return target, draft, hub.end_tokens(files.target_config, files.tokenizer)


def assembled(model: LoadedModel) -> PreTrainedModel:
    """transformers' model of the same config over the very same tensors."""
    config = AutoConfig.for_model(**model.config.raw)
    tensors = model.separate()
    table = tensors["embed_tokens.weight"]
    named = {
        name if name == "lm_head.weight" else f"model.{name}": tensors[name] for name in tensors
    }
    with quiet(), torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=table.dtype)
    built.load_state_dict(named, strict=False, assign=True)
    built.tie_weights()
    # Rotary tables are no weights: without memory so far, they are computed anew.
    decoder = built.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(table.device)
    return built.eval().requires_grad_(False)


def row_bytes(model: PreTrainedModel) -> int:
    """Keys and values of one token over all layers."""
    shape = model_config(model.config.to_dict()).shape
    return shape.numbers_per_token * int(model.dtype.itemsize)
