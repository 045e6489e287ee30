"""EAGLE heads in a directory: which of the published layouts it is, and whether it fits its target.

What a head is follows from its tensors; its config only decides what they cannot (rotation, heads,
flags). Layouts: the official EAGLE-1/2 and EAGLE-3 files, copies with a ``model.`` prefix or
``layers.0`` for ``midlayer`` (AngelSlim, ModelOpt), and vLLM's speculators.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.checkpoints.config import ModelConfig, read_json
from specx.checkpoints.eagle.config import (
    HeadFacts,
    check_kind,
    feature_layers,
    layer_config,
    read_head,
    rotation,
)
from specx.checkpoints.eagle.layout import LAYER, Generation, check_places, check_table, named
from specx.checkpoints.fields import flag, naming
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
    facts, found = read_head(raw), read_tensors(directory)
    with naming(f"the head in {directory} cannot be used"):
        return _Reader(spec, target, raw, facts, named(found)).read(known_tokens)


@dataclass(slots=True)
class _Reader:
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
        is_third, tensors = generation == 3, dict(self.tensors)
        check_places(tensors, shape, generation, self.target.shape.hidden, self.raw)
        self._check_vocabulary(shape, known_tokens)
        self._note_differences(shape)
        rope, note = rotation(layer_config(self.raw), self.spec)
        self._note(note)
        layers: tuple[int, ...] = ()
        if is_third:
            override = self.spec.head.feature_layers if self.spec.head else None
            known = self.target.shape.layers
            layers, note = feature_layers(self.raw, known, override, shape.features)
            self._note(note)
        config = HeadConfig(
            generation=generation,
            heads=shape.heads,
            head_dim=shape.head_dim,
            epsilon=self.facts.epsilon,
            rope=rope,
            feature_layers=layers,
            residual_is_normed=is_third and self._residual_is_normed(),
            output_is_normed=is_third and flag(self.raw, "norm_output") is True,
        )
        tensors.pop("t2d", None)
        if shape.vocabulary == self.target.shape.vocabulary:
            tensors.pop("d2t", None)  # the identity
        return LoadedHead(config, tensors, tuple(self.notes))

    def _generation(self) -> Generation:
        """By the tensors; the preset has to agree."""
        mark = f"{LAYER}hidden_norm.weight"
        _, inputs = self._size(f"{LAYER}self_attn.q_proj")
        hidden, _ = self._size(f"{LAYER}self_attn.o_proj")
        is_third = mark in self.tensors or inputs == 2 * hidden
        proof = f"it has {mark}" if mark in self.tensors else f"q_proj reads {inputs}"
        kind = self.spec.kind
        check_kind("eagle3" if is_third else "eagle", kind, str(self.spec.repo), proof)
        return 3 if is_third else 1

    def _shape(self, generation: Generation) -> HeadShapeSpec:
        """Of the tensors. The config's head_dim is not asked: some heads were trained with
        hidden_size / heads."""
        heads, wide, said = self.facts.heads, self.target.shape.hidden, self.facts.target_hidden
        rows, _ = self._size(f"{LAYER}self_attn.q_proj")
        keys, _ = self._size(f"{LAYER}self_attn.k_proj")
        hidden, inputs = self._size("fc")
        width = rows // heads
        if rows % heads or width % 2:
            raise ModelError(f"num_attention_heads is {heads}, and q_proj has {rows} rows")
        if keys % width or heads % (keys // width):
            name = f"{LAYER}self_attn.k_proj.weight"
            raise ModelError(f"{name} has {keys} rows for {heads} heads of {width}")
        if said not in (None, wide):
            raise self._foreign(f"it reads states of width {said}, and the target's have {wide}")
        is_first = generation == 1
        if (hidden, inputs) != (wide, 2 * wide) if is_first else inputs % wide:
            asked = f"{wide}x{2 * wide}" if is_first else f"a multiple of {wide} columns"
            raise self._foreign(f"fc.weight is {hidden}x{inputs}, and the target asks for {asked}")
        return HeadShapeSpec.model_construct(  # a file may go beyond what presets can say
            hidden=hidden,
            mlp=self._size(f"{LAYER}mlp.gate_proj")[0],
            heads=heads,
            kv_heads=keys // width,
            head_dim=width,
            vocabulary=self._own_rows or self.target.shape.vocabulary,
            features=1 if is_first else inputs // wide,
            bias="fc.bias" in self.tensors,
        )

    def _check_vocabulary(self, shape: HeadShapeSpec, known_tokens: int) -> None:
        """The head's own embedding must know every token; without one the target's must fit. A
        head without an output matrix uses the target's, of all its words."""
        tensors, own, rows = self.tensors, self._own_rows, self.target.shape.vocabulary
        embedding, table = tensors.get("embed_tokens.weight"), tensors.get("d2t")
        fits = shape.hidden == self.target.shape.hidden
        if embedding is None and not fits:
            reason = f"the target's has width {self.target.shape.hidden}, not {shape.hidden}"
            raise ModelError("embed_tokens.weight is missing", reason=reason)
        if embedding is not None and len(embedding) < min(known_tokens, rows):
            reason = f"embed_tokens.weight has {len(embedding)} rows for {known_tokens} tokens"
            raise self._foreign(reason)
        if own > rows:
            reason = f"lm_head.weight has {own} rows, and the target's vocabulary {rows}"
            raise self._foreign(reason)
        if own and table is not None:
            check_table(table, tensors.get("t2d"), own, rows)
        elif own not in (0, rows):
            reason = f"lm_head.weight has {own} of the target's {rows} rows"
            raise ModelError("d2t is missing", reason=reason)
        elif not own:
            is_smaller = table is not None and (table.shape != (rows,) or bool(table.any()))
            said = self.raw.get("draft_vocab_size") if self.spec.kind == "eagle3" else None
            if not fits or is_smaller or said not in (None, rows):
                raise ModelError("lm_head.weight is missing")

    def _note_differences(self, shape: HeadShapeSpec) -> None:
        said = {name: getattr(self.facts, name) for name in ("hidden", "mlp", "kv_heads")}
        layer = layer_config(self.raw)
        if layer.get("head_dim") is not None:
            said["head_dim"] = self.facts.head_dim
        if self._own_rows and self.raw.get("draft_vocab_size") is not None:
            said["vocabulary"] = self.facts.draft_vocabulary
        if wrong := shape.differences(said):
            listed = ", ".join(f"{name} {said[name]}, not {getattr(shape, name)}" for name in wrong)
            self._note(f"the config.json of {self.spec.repo} says {listed}: weights decide")

    def _residual_is_normed(self) -> bool:
        head = self.spec.head
        if head is not None and head.norm_before_residual is not None:
            return head.norm_before_residual
        said = flag(self.raw, "norm_before_residual")
        if said is None and "speculators_model_type" in self.raw:
            self._note(
                f"{self.spec.repo} does not say norm_before_residual: taken as false; if it "
                "accepts little, try --set draft.head.norm_before_residual=true"
            )
        return said is True

    @property
    def _own_rows(self) -> int:
        """Of the head's own output matrix; 0: it has none."""
        return self._size("lm_head")[0] if "lm_head.weight" in self.tensors else 0

    def _size(self, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix that must be there."""
        tensor = self.tensors.get(f"{name}.weight")
        if tensor is None:
            raise ModelError(f"{name}.weight is missing")
        if tensor.dim() != 2 or not tensor.numel():
            raise ModelError(f"{name}.weight is {by(tuple(tensor.shape))}, no matrix")
        rows, columns = tensor.shape
        return rows, columns

    def _foreign(self, reason: str) -> PairError:
        return PairError(f"{self.spec.repo} is a head for another target", reason=reason)

    def _note(self, text: str) -> None:
        self.notes += [text] if text else []
