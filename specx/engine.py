"""The library's face: a loaded pair that turns prompts into streams of text.

In: a preset and prompts. Out: events and results. It knows files only through ``hub``, and no
screen.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from specx.checkpoints import load as hub
from specx.checkpoints.eagle.loader import LoadedHead
from specx.core.attention import Kernels
from specx.core.config import MODES, Parts, SamplingConfig, Think, parts_for
from specx.core.decode import Decoding, Request, plain_logits
from specx.core.decoder import Model
from specx.core.drafts import Drafter
from specx.core.drafts.eagle import EagleHead
from specx.core.drafts.growth import Governor
from specx.core.drafts.model import DraftSettings, drafter_in
from specx.core.drafts.ngram import LookupDrafter
from specx.core.graphs import padded_rows
from specx.core.kernels import is_available
from specx.core.kernels.choice import choose_kernels
from specx.core.sampling import Sampler
from specx.core.target import CostTable, Target
from specx.core.workspace import Workspaces
from specx.errors import ContextError, ResourceError, UsageError
from specx.memory import Shortage, needs_of, release, reset_peak, room_on, with_room
from specx.preset.preset import Preset, load_preset
from specx.prompts import Prompt, Prompter, TextStream
from specx.stream import Difference, Result, Stream, ThoughtText, Verification
from specx.thinking import USUAL_THINK_TOKENS, room_tokens


def kernels_on(device: str) -> str:
    """The attention kernels that an engine on ``device`` will very likely run."""
    return "triton" if device.startswith("cuda") and is_available() else "sdpa"


def load(
    preset: str | Preset = "pocket",
    *,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> "Engine":
    """Load a pair by preset name, YAML path or ``Preset``.

    Raises ``UsageError``, ``ModelUnavailableError``, ``ModelError``, ``PairError``.
    """
    if isinstance(preset, str):
        preset = load_preset(preset, overrides or {})
    elif overrides:
        preset = preset.with_overrides(overrides)
    began = time.perf_counter()
    pair = hub.load_pair(preset, device=device, dtype=dtype, offline=offline)
    return Engine(preset, pair, load_s=time.perf_counter() - began)


class Engine:
    """A target, its draft and their tokenizer. Requests are independent; one at a time.

    ``target`` and ``draft`` (None without weights of its own) are as the core runs them.
    """

    def __init__(self, preset: Preset, pair: hub.ModelPair, load_s: float = 0.0) -> None:
        self.preset, self.load_s = preset, load_s
        self.tokenizer = pair.tokenizer
        #: What the user should know about the files, in sentences.
        self.notes = pair.notes
        self._prompter = Prompter(pair.tokenizer, preset.prompt)
        #: How tokens are drawn where a request does not say: as the preset has it, or the target.
        own = pair.target.config.sampling
        self.sampling = preset.sampling if preset.has_sampling else own
        self._end_tokens = hub.end_tokens(pair.target.config, pair.tokenizer)
        self.target = Model(pair.target.config.decoder, pair.target.tensors)
        self.draft: Model | EagleHead | None = None
        if isinstance(pair.draft, LoadedHead):
            self.draft = EagleHead(pair.draft.config, pair.draft.tensors, self.target)
        elif pair.draft is not None:
            self.draft = Model(pair.draft.config.decoder, pair.draft.tensors)
        self._costs = CostTable()
        self._is_rehearsed = False  # whether the kernels of a request were compiled ahead
        self._workspaces = Workspaces(self.target)
        #: Which attention kernels run, and what could not ("" = nothing).
        kernels, self.kernels_note = choose_kernels(self.target, parts_for("plain"))
        self.kernels = kernels.name
        self.device = str(self.target.device)
        self.dtype = str(self.target.dtype).removeprefix("torch.")

    def prompt(
        self,
        document: str,
        instruction: str | None = None,
        *,
        system: str | None = None,
        raw: bool = False,
        think: Think | None = None,
    ) -> Prompt:
        """Token ids of a request about ``document``; see ``Prompter.prompt``."""
        return self._prompter.prompt(document, instruction, system=system, raw=raw, think=think)

    def stream(
        self,
        prompt: Prompt | str,
        *,
        mode: str | None = None,
        max_tokens: int | None = None,
        max_think_tokens: int | None = None,
        limit: int | None = None,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] | str = (),
        ignore_eos: bool = False,
        parts: Mapping[str, str] | None = None,
        records_trees: bool = False,
    ) -> "Stream":
        """Start a request; iterate over the stream to run it.

        A plain string is one user message. ``mode``, ``max_tokens``, ``max_think_tokens`` and
        ``sampling`` default to the preset's. ``max_tokens`` bounds the answer. A thought before it
        is closed at ``max_think_tokens``: the closing tag is put there in the model's place, or
        the text ends where that tag is no single token. ``limit`` bounds both together. ``parts``
        replaces single parts of the mode (see ``core.config.Parts``), for ablations;
        ``records_trees`` puts each step's tree into its chunk. Raises ``UsageError`` for bad
        values, ``ContextError`` when prompt and output exceed the preset's context.
        """
        if isinstance(prompt, str):
            prompt = self.prompt("", prompt)
        mode = self.preset.mode if mode is None else mode
        max_tokens = self.preset.max_new_tokens if max_tokens is None else max_tokens
        thought = self._thought(prompt, max_tokens, max_think_tokens)
        request = Request(
            prompt=torch.tensor(prompt.tokens, dtype=torch.int64),
            max_tokens=max_tokens,
            end_tokens=frozenset() if ignore_eos else self._end_tokens,
            sampler=Sampler(self.sampling if sampling is None else sampling),
            prefill_chunk_tokens=self.preset.prefill_chunk_tokens,
            thought=None if thought is None else thought.bound,
            limit=limit,
        )
        self._check(prompt, mode, request)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        chosen = self._parts(mode, parts or {})
        kernels, lost = choose_kernels(self.target, chosen)
        explain = partial(self._no_memory, chosen, len(prompt.tokens), request.most_tokens)
        reset_peak(self.target.device)
        decoding = with_room(
            partial(self._decoding, request, chosen, kernels, mode == "auto", records_trees),
            self._make_room,
            explain,
        )
        return Stream(
            decoding,
            TextStream(self.tokenizer, stop, prompt.context),
            thought,
            mode=mode,
            ignore_eos=ignore_eos,
            load_s=self.load_s,
            weights_bytes=self.weights_bytes,
            no_memory=explain,
            warnings=prompt.warnings + ((lost,) if lost and lost != self.kernels_note else ()),
        )

    def generate(self, prompt: Prompt | str, **settings: Any) -> Result:
        """Run ``stream`` with the same settings to its end."""
        stream = self.stream(prompt, **settings)
        for _ in stream:
            pass
        return stream.result

    def verify(
        self, prompt: Prompt, result: Result, first_tokens: int | None = None
    ) -> Verification:
        """Decode ``prompt`` again plainly, with the same seed, and compare token by token.

        Certifies ``result.tokens`` (the first ``first_tokens`` of them, or all and where they
        end). Raises ``UsageError`` for a negative count.
        """
        if first_tokens is not None and first_tokens < 0:
            raise UsageError(f"the number of tokens to verify must be ≥ 0, not {first_tokens}")
        count = len(result.tokens[:first_tokens])
        limit: int | None = count
        if count == len(result.tokens):
            # Where the text ended by itself, plain decoding has to end there too.
            limit = {"eos": count + 1, "length": None}.get(result.finish_reason, count)
        if limit == 0:
            return Verification(0, True)
        thought = 0 if result.thought is None else result.thought.tokens
        sampling = result.sampling
        again = self.generate(
            prompt,
            mode="plain",
            max_tokens=max(count - thought, result.max_tokens),
            max_think_tokens=result.max_think_tokens,
            limit=limit,
            sampling=sampling,
            ignore_eos=result.ignore_eos,
        )
        found = self.difference(prompt, again.tokens, result.tokens[:count], sampling=sampling)
        return Verification(count, found is None, found)

    def difference(
        self,
        prompt: Prompt,
        plain: Sequence[int],
        tokens: Sequence[int],
        *,
        sampling: SamplingConfig | None = None,
    ) -> Difference | None:
        """The first token on which ``tokens`` part from ``plain``, plain decoding's of ``prompt``.

        None when both are the same to the end. The margin costs plain decoding to that place.
        """
        sampling = self.sampling if sampling is None else sampling
        for index in range(max(len(tokens), len(plain))):
            expected, got = (each[index] if index < len(each) else None for each in (plain, tokens))
            if expected != got:
                margin = self._margin(prompt.tokens, plain[:index], (expected, got), sampling)
                return Difference(index, expected, got, margin)
        return None

    def _margin(
        self,
        prompt: Sequence[int],
        before: Sequence[int],
        pair: tuple[int | None, int | None],
        sampling: SamplingConfig,
    ) -> float | None:
        """How much better the target scores the first token of ``pair`` after ``before`` than the
        second (None: the end of the text); None where it does not know one of them, or a filter
        has removed one."""
        end = min(self._end_tokens, default=None)
        expected, got = (end if token is None else token for token in pair)
        known = range(self.target.shape.vocabulary)
        if expected not in known or got not in known:
            return None
        parts, tokens = parts_for("plain"), torch.tensor([*prompt, *before], device=self.device)

        def replay() -> torch.Tensor:
            kernels, _ = choose_kernels(self.target, parts)
            target = Target(self.target, len(tokens) + 1, parts, kernels)
            return plain_logits(target, tokens, len(prompt), self.preset.prefill_chunk_tokens)

        explain = partial(self._no_memory, parts, len(prompt), len(before))
        logits = with_room(replay, self._make_room, explain)
        position = torch.tensor([len(before)], device=self.device)
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, tokens] = True
        scores = Sampler(sampling).scores(logits, position, seen)[0]
        margin = float(scores[expected] - scores[got])
        return margin if math.isfinite(margin) else None

    def _thought(
        self, prompt: Prompt, max_tokens: int, max_think_tokens: int | None
    ) -> ThoughtText | None:
        """None where no thought is expected."""
        if max_think_tokens is not None and max_think_tokens < 0:
            raise UsageError(f"max think tokens must be ≥ 0, not {max_think_tokens}")
        if prompt.thoughts is None:
            return None
        bound = self.preset.max_think_tokens if max_think_tokens is None else max_think_tokens
        if bound is None:  # what the context leaves, up to a usual one
            left = self.preset.context_tokens - len(prompt.tokens) - max_tokens - room_tokens(0)
            bound = max(0, min(USUAL_THINK_TOKENS, left))
        return ThoughtText(self.tokenizer, prompt.thoughts, bound)

    def _check(self, prompt: Prompt, mode: str, request: Request) -> None:
        most = request.most_tokens
        if mode not in MODES:
            raise UsageError(f"unknown mode {mode!r}", hints=[f"modes: {', '.join(MODES)}"])
        if request.max_tokens < 1:
            raise UsageError(f"max tokens must be at least 1, not {request.max_tokens}")
        if not prompt.tokens:
            raise UsageError("the prompt is empty")
        if not 0 <= min(prompt.tokens) <= max(prompt.tokens) < self.target.shape.vocabulary:
            raise UsageError("the prompt has token ids outside the target's vocabulary")
        context = self.preset.context_tokens
        if len(prompt.tokens) + most > context:
            raise ContextError(
                f"the prompt has {len(prompt.tokens):,} tokens",
                reason=f"with {most:,} new ones it exceeds the {context:,} of "
                f"preset {self.preset.name}",
                hints=[
                    f"shorten the document by {len(prompt.tokens) + most - context:,} tokens",
                    "ask for fewer new tokens (-n)",
                    "choose a preset with a longer context (-m)",
                ],
            )

    def _parts(self, mode: str, changes: Mapping[str, str]) -> Parts:
        # Checked as a preset's parts are.
        self.preset.with_overrides({f"parts.{name}": value for name, value in changes.items()})
        own = self.preset.parts.items()  # of which plain decoding has only the launch
        kept = {name: value for name, value in own if mode != "plain" or name == "launch"}
        overrides: dict[str, Any] = {**kept, **changes}
        if mode != "plain":
            overrides.setdefault("drafter", self.preset.draft.kind)
        return parts_for(mode, overrides)

    def _decoding(
        self, request: Request, parts: Parts, kernels: Kernels, governs: bool, records_trees: bool
    ) -> Decoding:
        """Allocates what the request needs, or takes it over from an earlier one."""
        preset, tree = self.preset, self.preset.tree
        # Two steps may be under way when the output ends.
        rows = len(request.prompt) + request.most_tokens
        rows += padded_rows(tree.nodes + 1) + 2 * (tree.depth + 1)
        workspace = self._workspaces.take(max(rows, preset.retrieval.budget_tokens))
        target = Target(self.target, workspace.capacity, parts, kernels, workspace)
        drafter: Drafter = Drafter() if parts.drafter == "none" else LookupDrafter(tree)
        drafts, retrieves = parts.drafter != "none", parts.draft_cache == "retrieval"
        retrieval = preset.retrieval if parts.has_draft_model and retrieves else None
        settings = self._draft_settings(parts, kernels) if parts.has_draft_model else None
        if settings is not None:
            drafter = drafter_in(workspace, settings, request.sampler)
        if kernels.name == "triton" and not self._is_rehearsed:
            from specx.core.rehearsal import rehearse  # imports Triton

            self._is_rehearsed = True
            rehearse(target, settings, retrieval, request.sampler, preset.prefill_chunk_tokens)
            if settings is not None:
                drafter = drafter_in(workspace, settings, request.sampler)  # afresh
        needs_costs = drafts and (governs or tree.size == "measured")
        return Decoding(
            request,
            target,
            drafter,
            retrieval=retrieval,
            governor=Governor() if drafts and governs else None,
            costs=self._costs if needs_costs else None,
            workspaces=self._workspaces,
            records_trees=records_trees,
        )

    def _draft_settings(self, parts: Parts, kernels: Kernels) -> DraftSettings:
        preset, vocabulary = self.preset, self.target.shape.vocabulary
        if self.draft is None:
            raise UsageError(f"preset {preset.name} has no draft model", hints=["--mode plain"])
        trained_tokens, tree = preset.draft.trained_context_tokens, preset.tree
        return DraftSettings(
            self.draft, vocabulary, trained_tokens, parts, tree, preset.retrieval, kernels
        )

    def _make_room(self, error: BaseException) -> None:
        """Free what the failed request held, and what earlier ones left for the next."""
        self._workspaces.drop()
        release(error, self.target.device)

    def _no_memory(
        self, parts: Parts, prompt_tokens: int, max_tokens: int, error: BaseException
    ) -> ResourceError:
        self._make_room(error)
        preset, chunk = self.preset, self.preset.prefill_chunk_tokens
        rows, trained = prompt_tokens + max_tokens, preset.draft.trained_context_tokens
        models = self.target, self.draft
        return Shortage(
            needs_of(*models, parts, rows=rows, chunk_tokens=chunk, trained_tokens=trained),
            room_on(self.target.device),
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            chunk_tokens=chunk,
            dtype=self.dtype,
            device=self.device,
            preset=preset.name,
        ).error(error)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What this machine could not give, then what the files are like."""
        return *((self.kernels_note,) if self.kernels_note else ()), *self.notes

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights of target and draft."""
        models = [self.target] if self.draft is None else [self.target, self.draft]
        return sum(model.weights_bytes for model in models)
