"""EAGLE heads in a directory: which of the published layouts it is, and whether it fits its target.

In: a directory with a raw config.json and weights, the target's config, and what the preset knows
better. Out: a ``LoadedHead`` whose tensors carry one set of names, or an error that names the
tensor at fault. What a head is follows from its tensors; its config only decides what they cannot
(rotation, heads, flags). It does not know devices, the Hub or how a head is run.

Layouts: the official EAGLE-1/2 and EAGLE-3 files, copies with a ``model.`` prefix or ``layers.0``
for ``midlayer`` (AngelSlim, ModelOpt), and vLLM's speculators.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.checkpoints.config import ModelConfig, read_json
from specx.checkpoints.eagle.config import (
    HeadFacts,
    HeadKind,
    check_kind,
    feature_layers,
    layer_config,
    read_head,
)
from specx.checkpoints.eagle.layout import (
    LAYER,
    Generation,
    check_flags,
    check_places,
    named,
    needed_shapes,
    optional_shapes,
    refuse_other_kinds,
)
from specx.checkpoints.eagle.rotation import rotation
from specx.checkpoints.eagle.vocabulary import check_embedding, check_output
from specx.checkpoints.fields import flag
from specx.checkpoints.weights import by, read_tensors
from specx.errors import ModelError, PairError
from specx.preset.sections import DraftSpec, HeadShapeSpec

if TYPE_CHECKING:
    from torch import Tensor

    from specx.core.drafts.eagle import HeadConfig


@dataclass(frozen=True, slots=True)
class LoadedHead:
    """A head that fits its target; tensors [out, in] on the CPU in the file's dtype."""

    config: "HeadConfig"
    tensors: dict[str, "Tensor"] = field(repr=False)
    notes: tuple[str, ...] = ()  # what was decided for want of a fact


def load_head(
    directory: Path, spec: DraftSpec, target: ModelConfig, known_tokens: int
) -> LoadedHead:
    """The head of ``spec`` in ``directory``, for a target with ``known_tokens`` real tokens.

    Raises ``ModelError`` for a file that does not hold together and ``PairError`` for a head of
    another target or another kind.
    """
    raw = read_json(directory / "config.json")
    facts = read_head(raw)
    tensors = named(directory, read_tensors(directory))
    refuse_other_kinds(directory, tensors)
    return _Reader(directory, spec, target, raw, facts, tensors).read(known_tokens)


@dataclass(slots=True)
class _Reader:
    """One head while it is examined."""

    directory: Path
    spec: DraftSpec
    target: ModelConfig
    raw: dict[str, Any]
    facts: HeadFacts
    tensors: dict[str, "Tensor"]
    notes: list[str] = field(default_factory=list)

    def read(self, known_tokens: int) -> LoadedHead:
        from specx.core.drafts.eagle import HeadConfig

        generation = self._generation()
        shape = self._shape(generation)
        wide = self.target.shape.hidden
        needed = needed_shapes(shape, generation, wide)
        optional = optional_shapes(shape, generation, wide)
        check_places(self.directory, self.tensors, needed, optional, generation)
        check_flags(self.directory, self.tensors, generation, self.raw)
        check_embedding(self.directory, self.tensors, self.target, known_tokens)
        if generation == 3:
            check_output(self.directory, self.tensors, self.raw, self.target)
        self._compare_config(shape)
        self._compare_preset(shape)
        layers = self._feature_layers(shape.features) if generation == 3 else ()
        rope, note = rotation(layer_config(self.raw), self.spec)
        self.notes += [note] if note else []
        config = HeadConfig(
            generation=generation,
            heads=shape.heads,
            head_dim=shape.head_dim,
            epsilon=self.facts.epsilon,
            rope=rope,
            feature_layers=layers,
            residual_is_normed=generation == 3 and self._residual_is_normed(),
            output_is_normed=generation == 3 and flag(self.raw, "norm_output") is True,
        )
        tensors = {name: each for name, each in self.tensors.items() if name != "t2d"}
        if "lm_head.weight" not in tensors or self._rows("lm_head") == self.target.shape.vocabulary:
            tensors.pop("d2t", None)  # the identity
        return LoadedHead(config, tensors, tuple(self.notes))

    def _generation(self) -> Generation:
        """By the tensors; the preset has to agree."""
        mark = f"{LAYER}hidden_norm.weight"
        query = self._matrix(f"{LAYER}self_attn.q_proj.weight")
        hidden = self._rows(f"{LAYER}self_attn.o_proj")
        is_third = mark in self.tensors or query.shape[1] == 2 * hidden
        kind: HeadKind = "eagle3" if is_third else "eagle"
        proof = f"it has {mark}" if mark in self.tensors else f"q_proj reads {query.shape[1]}"
        check_kind(kind, self.spec.kind, str(self.spec.repo), proof)
        return 3 if is_third else 1

    def _shape(self, generation: Generation) -> HeadShapeSpec:
        rows = self._rows(f"{LAYER}self_attn.q_proj")
        keys = self._rows(f"{LAYER}self_attn.k_proj")
        heads = self.facts.heads
        # A head_dim of the config is not asked: some were trained with hidden_size / heads.
        width = rows // heads
        if rows % heads or width % 2:
            raise ModelError(
                f"{self.directory}/config.json does not fit the weights",
                reason=f"num_attention_heads is {heads}, and q_proj has {rows} rows",
            )
        if keys % width or heads % (keys // width):
            reason = f"{LAYER}self_attn.k_proj.weight has {keys} rows for {heads} heads of {width}"
            raise ModelError(f"the tensors in {self.directory} do not fit together", reason=reason)
        has_own = "lm_head.weight" in self.tensors
        return HeadShapeSpec.model_construct(  # a file may go beyond what presets can say
            hidden=self._rows("fc"),
            mlp=self._rows(f"{LAYER}mlp.gate_proj"),
            heads=heads,
            kv_heads=keys // width,
            head_dim=width,
            vocabulary=self._rows("lm_head") if has_own else self.target.shape.vocabulary,
            features=self._features(generation),
            bias="fc.bias" in self.tensors,
        )

    def _features(self, generation: int) -> int:
        """How many of the target's states the head reads at a position."""
        wide, declared = self.target.shape.hidden, self.facts.target_hidden
        fc = self._matrix("fc.weight")
        hidden, inputs = fc.shape
        if declared is not None and declared != wide:
            reason = f"it reads states of width {declared}, and the target's have {wide}"
        elif generation == 1 and (hidden, inputs) != (wide, 2 * wide):
            reason = (
                f"fc.weight is {by(tuple(fc.shape))}, and the target's states of width {wide} "
                f"ask for {wide}x{2 * wide}"
            )
        elif generation == 3 and inputs % wide:
            reason = f"fc.weight reads {inputs} numbers, no multiple of the target's {wide}"
        else:
            return 1 if generation == 1 else int(inputs // wide)
        raise PairError(f"{self.directory} is a head for another target", reason=reason)

    def _compare_config(self, shape: HeadShapeSpec) -> None:
        """The tensors decide, and what the config says otherwise is told."""
        layer = layer_config(self.raw)
        found = {
            "hidden_size": shape.hidden,
            "intermediate_size": shape.mlp,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
        }
        said = {name: layer.get(name) for name in found}
        if "lm_head.weight" in self.tensors:
            found["draft_vocab_size"] = shape.vocabulary
            said["draft_vocab_size"] = self.raw.get("draft_vocab_size")
        wrong = [name for name in found if said[name] not in (None, found[name])]
        if wrong:
            listed = ", ".join(
                f"{name} {repr(said[name])[:40]}, not {found[name]}" for name in wrong
            )
            self.notes.append(f"the config.json of {self.spec.repo} says {listed}: weights decide")

    def _compare_preset(self, shape: HeadShapeSpec) -> None:
        """A preset's shape is only what stand-in weights are made of."""
        said, found = self.spec.head_shape, shape.model_dump()
        if said is not None and (wrong := said.differences(found)):
            listed = ", ".join(
                f"{name} {getattr(said, name)}, the file has {found[name]}" for name in wrong
            )
            self.notes.append(
                f"the preset's draft.head_shape says {listed}: "
                "stand-in measurements of this preset are off"
            )

    def _residual_is_normed(self) -> bool:
        head = self.spec.head
        if head is not None and head.norm_before_residual is not None:
            return head.norm_before_residual
        said = flag(self.raw, "norm_before_residual")
        if said is None and "speculators_model_type" in self.raw:
            self.notes.append(
                f"{self.spec.repo} does not say norm_before_residual: taken as false; if it "
                "accepts little, try --set draft.head.norm_before_residual=true"
            )
        return said is True

    def _feature_layers(self, count: int) -> tuple[int, ...]:
        """Which layers' inputs the head reads; as many as ``fc`` takes."""
        layers = self.target.shape.layers
        override = self.spec.head.feature_layers if self.spec.head else None
        chosen, note = feature_layers(self.raw, layers, override)
        if len(chosen) != count:
            raise PairError(
                f"{self.directory} does not fit a target of {layers} layers",
                reason=f"fc.weight reads {count} of its states, and the layers are "
                f"{', '.join(map(str, chosen))}",
                hints=["name them: --set draft.head.feature_layers=[2, 16, 29]"],
            )
        self.notes += [note] if note else []
        return chosen

    def _matrix(self, name: str) -> "Tensor":
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.directory} is no EAGLE head", reason=f"{name} is missing")
        if tensor.dim() != 2 or not tensor.numel():
            reason = f"{name} is {by(tuple(tensor.shape))}, no matrix"
            raise ModelError(f"{self.directory} is no EAGLE head", reason=reason)
        return tensor

    def _rows(self, name: str) -> int:
        rows: int = self._matrix(f"{name}.weight").shape[0]
        return rows
