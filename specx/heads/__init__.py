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
from typing import TYPE_CHECKING, Any, Literal

from specx.checkpoint import read_json
from specx.errors import ModelError, PairError
from specx.heads.layout import LAYER, TABLES, named, refuse_other_kinds
from specx.heads.rope import rotation
from specx.heads.vocabulary import check_embedding, check_output
from specx.preset import DraftSpec
from specx.weights import read_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from specx.core.eagle import HeadConfig


@dataclass(frozen=True, slots=True)
class LoadedHead:
    """A head that fits its target; tensors [out, in] on the CPU in the file's dtype."""

    config: "HeadConfig"
    tensors: dict[str, "Tensor"] = field(repr=False)
    notes: tuple[str, ...] = ()  # what was decided for want of a fact


def load_head(
    directory: Path, spec: DraftSpec, target: "PreTrainedConfig", known_tokens: int
) -> LoadedHead:
    """The head of ``spec`` in ``directory``, for a target with ``known_tokens`` real tokens.

    Raises ``ModelError`` for a file that does not hold together and ``PairError`` for a head of
    another target.
    """
    raw = read_json(directory / "config.json")
    tensors = named(directory, read_tensors(directory))
    reader = _Reader(directory, spec, target, raw, tensors)
    return reader.read(known_tokens)


@dataclass(slots=True)
class _Reader:
    """One head while it is examined."""

    directory: Path
    spec: DraftSpec
    target: "PreTrainedConfig"
    raw: dict[str, Any]
    tensors: dict[str, "Tensor"]
    notes: list[str] = field(default_factory=list)

    def read(self, known_tokens: int) -> LoadedHead:
        from specx.core.eagle import HeadConfig

        refuse_other_kinds(self.directory, self.raw, self.tensors)
        generation = self._generation()
        heads, width = self._heads()
        features = self._features(generation)
        self._check_tensors(generation, heads, width, features)
        check_embedding(self.directory, self.tensors, self.target, known_tokens)
        if generation == 3:
            check_output(self.directory, self.tensors, self.raw, self.target)
        self._check_shape(generation, heads, width, features)
        frequencies, scaling, note = rotation(self._layer_config(), self.spec, width)
        self.notes += [note] if note else []
        config = HeadConfig(
            generation=generation,
            heads=heads,
            head_dim=width,
            epsilon=self._epsilon(),
            inverse_frequencies=frequencies,
            rotary_scaling=scaling,
            feature_layers=self._feature_layers(features) if generation == 3 else (),
            residual_is_normed=generation == 3 and self._residual_is_normed(),
            output_is_normed=self.raw.get("norm_output") is True,
        )
        tensors = {name: each for name, each in self.tensors.items() if name != "t2d"}
        if "lm_head.weight" not in tensors or self._rows("lm_head") == self.target.vocab_size:
            tensors.pop("d2t", None)  # the identity
        return LoadedHead(config, tensors, tuple(self.notes))

    def _layer_config(self) -> dict[str, Any]:
        """Where sizes and rotation stand: speculators nest them."""
        nested = self.raw.get("transformer_layer_config")
        return nested if isinstance(nested, dict) else self.raw

    def _generation(self) -> Literal[1, 3]:
        """By the tensors; the preset has to agree."""
        marks = f"{LAYER}hidden_norm.weight"
        query = self._tensor(f"{LAYER}self_attn.q_proj.weight")
        hidden = self._tensor(f"{LAYER}self_attn.o_proj.weight").shape[0]
        is_third = marks in self.tensors or query.shape[-1] == 2 * hidden
        found, proof = ("eagle3", marks) if is_third else ("eagle", "fc.weight")
        if found == "eagle3" and self.raw.get("use_aux_hidden_state") is False:
            raise ModelError(f"{self.directory} reads no layers of the target, as EAGLE-3 does")
        if self.spec.kind != found:
            raise ModelError(
                f"{self.directory} is of kind {found}, and the preset says {self.spec.kind}",
                reason=f"its tensors tell, {proof} first",
                hints=[f"--set draft.kind={found}"],
            )
        return 3 if is_third else 1

    def _heads(self) -> tuple[int, int]:
        """Query heads and the width of each."""
        layer = self._layer_config()
        rows = self._tensor(f"{LAYER}self_attn.q_proj.weight").shape[0]
        heads, width = layer.get("num_attention_heads"), layer.get("head_dim")
        if not isinstance(heads, int) or not 1 <= heads <= rows or rows % heads:
            raise ModelError(
                f"{self.directory}/config.json does not fit the weights",
                reason=f"num_attention_heads is {heads!r}, and q_proj has {rows} rows",
            )
        if isinstance(width, int) and width > 0 and rows % width == 0:
            return int(rows // width), width
        return heads, int(rows // heads)

    def _features(self, generation: int) -> int:
        """How many of the target's states the head reads at a position."""
        wide = self.target.hidden_size
        inputs = self._tensor("fc.weight").shape[1]
        declared = self.raw.get("target_hidden_size")
        if isinstance(declared, int) and declared != wide:
            raise PairError(
                f"{self.directory} is a head for another target",
                reason=f"it reads states of width {declared}, and the target's have {wide}",
            )
        if generation == 1:
            hidden = self._rows("fc")
            if inputs != 2 * hidden or hidden != wide:
                raise PairError(
                    f"{self.directory} is a head for another target",
                    reason=f"fc.weight is {_by(self.tensors['fc.weight'])}, and the target's "
                    f"states of width {wide} ask for {wide}x{2 * wide}",
                )
            return 1
        if inputs % wide:
            raise PairError(
                f"{self.directory} is a head for another target",
                reason=f"fc.weight reads {inputs} numbers, no multiple of the target's {wide}",
            )
        return int(inputs // wide)

    def _check_tensors(self, generation: int, heads: int, width: int, features: int) -> None:
        """Strictly: every tensor has a place and every place its tensor."""
        needed, optional = self._places(generation, heads, width, features)
        for name, tensor in self.tensors.items():
            if name in TABLES:
                continue
            wanted = needed.get(name) or optional.get(name)
            if wanted is None:
                raise ModelError(
                    f"{self.directory} has a tensor that no EAGLE head has", reason=f"it is {name}"
                )
            if tuple(tensor.shape) != wanted:
                raise ModelError(
                    f"the tensors in {self.directory} do not fit together",
                    reason=f"{name} is {_by(tensor)}, and the others ask for "
                    f"{'x'.join(map(str, wanted))}",
                )
            if not tensor.is_floating_point():
                raise ModelError(f"{name} in {self.directory} is not of floating point")
        missing = sorted(needed.keys() - self.tensors.keys())
        if missing:
            raise ModelError(f"{self.directory} is incomplete", reason=f"{missing[0]} is missing")
        self._check_biases(generation)

    def _places(
        self, generation: int, heads: int, width: int, features: int
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Name → shape of the tensors that must be there, and of those that may."""
        attention, mlp = f"{LAYER}self_attn.", f"{LAYER}mlp."
        hidden, inner = self._rows("fc"), self._rows(f"{mlp}gate_proj")
        wide, keys = self.target.hidden_size, self._rows(f"{attention}k_proj")
        inputs = hidden if generation == 1 else 2 * hidden
        if keys % width or heads % max(1, keys // width):
            reason = f"{attention}k_proj.weight has {keys} rows for {heads} heads of {width}"
            raise ModelError(f"the tensors in {self.directory} do not fit together", reason=reason)
        needed: dict[str, tuple[int, ...]] = {
            "fc.weight": (hidden, 2 * hidden if generation == 1 else features * wide),
            f"{attention}q_proj.weight": (heads * width, inputs),
            f"{attention}k_proj.weight": (keys, inputs),
            f"{attention}v_proj.weight": (keys, inputs),
            f"{attention}o_proj.weight": (hidden, heads * width),
            f"{mlp}gate_proj.weight": (inner, hidden),
            f"{mlp}up_proj.weight": (inner, hidden),
            f"{mlp}down_proj.weight": (hidden, inner),
            f"{LAYER}post_attention_layernorm.weight": (hidden,),
        }
        optional: dict[str, tuple[int, ...]] = {}
        for name in ("embed_tokens.weight", "lm_head.weight"):
            if name in self.tensors:
                optional[name] = (self.tensors[name].shape[0], hidden)
        biases = {"fc.bias": (hidden,)} | {
            f"{attention}{name}_proj.bias": (heads * width if name == "q" else keys,)
            for name in "qkv"
        }
        if generation == 1:
            optional.pop("lm_head.weight", None)  # EAGLE-1 has the target's
            return needed, optional | biases
        needed |= {
            f"{LAYER}hidden_norm.weight": (hidden,),
            f"{LAYER}input_layernorm.weight": (hidden,),
            "norm.weight": (hidden,),
        }
        optional |= {"input_norm.weight": (features * wide,)}
        optional |= {f"fc_norm.{index}.weight": (wide,) for index in range(features)}
        optional |= {f"{attention}{name}_norm.weight": (width,) for name in "qk"}
        return needed, optional

    def _check_biases(self, generation: int) -> None:
        """All of a group or none, and as the config says if it says anything."""
        groups = {
            "query, key and value biases": [f"{LAYER}self_attn.{n}_proj.bias" for n in "qkv"],
            "query and key norms": [f"{LAYER}self_attn.{n}_norm.weight" for n in "qk"],
        }
        for what, names in groups.items():
            there = [name for name in names if name in self.tensors]
            if there and len(there) < len(names):
                absent = next(name for name in names if name not in self.tensors)
                reason = f"{absent} is missing beside {there[0]}"
                raise ModelError(f"{self.directory} has only some {what}", reason=reason)
        said = self.raw.get("bias")
        if generation == 1 and isinstance(said, bool) and said != ("fc.bias" in self.tensors):
            raise ModelError(
                f"{self.directory}/config.json does not fit the weights",
                reason=f"bias is {str(said).lower()}, and fc.bias is "
                f"{'there' if not said else 'missing'}",
            )

    def _check_shape(self, generation: int, heads: int, width: int, features: int) -> None:
        """A preset's shape is what stand-in weights are measured with, so it has to be true."""
        spec = self.spec.head_shape
        if spec is None:
            return
        rows = self.target.vocab_size
        found = {
            "hidden": self._rows("fc"),
            "mlp": self._rows(f"{LAYER}mlp.gate_proj"),
            "heads": heads,
            "kv_heads": self._rows(f"{LAYER}self_attn.k_proj") // width,
            "head_dim": width,
            "vocabulary": self._rows("lm_head") if "lm_head.weight" in self.tensors else rows,
            "features": features,
            "bias": "fc.bias" in self.tensors,
        }
        said = spec.model_dump()
        for name, value in found.items():
            if said[name] != value:
                raise ModelError(
                    f"{self.directory} does not have the shape that the preset says",
                    reason=f"{name} is {value}, the preset says {said[name]}",
                    hints=["correct draft.head_shape in the preset, or leave it out"],
                )

    def _epsilon(self) -> float:
        value = self._layer_config().get("rms_norm_eps", 1e-6)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            reason = f"rms_norm_eps is {value!r}"
            raise ModelError(f"{self.directory}/config.json is damaged", reason=reason)
        return float(value)

    def _residual_is_normed(self) -> bool:
        head = self.spec.head
        if head is not None and head.norm_before_residual is not None:
            return head.norm_before_residual
        said = self.raw.get("norm_before_residual")
        if said is None and "speculators_model_type" in self.raw:
            self.notes.append(
                f"{self.spec.repo} does not say norm_before_residual: taken as false; if it "
                "accepts little, try --set draft.head.norm_before_residual=true"
            )
        return said is True

    def _feature_layers(self, count: int) -> tuple[int, ...]:
        """Which layers' inputs the head reads: the preset's, the config's or the usual ones."""
        layers = self.target.num_hidden_layers
        chosen = self._declared_layers(layers)
        if len(chosen) != count or min(chosen) < 0 or max(chosen) >= layers:
            raise PairError(
                f"{self.directory} does not fit a target of {layers} layers",
                reason=f"fc.weight reads {count} of its states, and the layers are "
                f"{', '.join(map(str, chosen))}",
                hints=["name them: --set draft.head.feature_layers=[2, 16, 29]"],
            )
        return chosen

    def _declared_layers(self, layers: int) -> tuple[int, ...]:
        usual = (2, layers // 2, layers - 3)
        head = self.spec.head
        if head is not None and head.feature_layers is not None:
            return head.feature_layers
        name = "eagle_aux_hidden_state_layer_ids"
        listed = _layer_list(self.raw.get(name))
        if listed is not None:
            return listed
        nested = self.raw.get("eagle_config")
        listed = _layer_list(nested.get(name)) if isinstance(nested, dict) else None
        if listed is None or listed == usual:
            return usual
        # Nested lists name the layers whose outputs are read, but not all of them do.
        shifted = tuple(layer + 1 for layer in listed)
        chosen = listed if max(shifted) >= layers else shifted
        self.notes.append(
            f"{self.spec.repo} lists the layers {', '.join(map(str, listed))}: taken as the inputs "
            f"of layers {', '.join(map(str, chosen))}; --set draft.head.feature_layers overrides it"
        )
        return chosen

    def _tensor(self, name: str) -> "Tensor":
        tensor = self.tensors.get(name)
        if tensor is None or tensor.dim() != 2:
            reason = f"{name} is {'missing' if tensor is None else 'no matrix'}"
            raise ModelError(f"{self.directory} is no EAGLE head", reason=reason)
        return tensor

    def _rows(self, name: str) -> int:
        rows: int = self._tensor(f"{name}.weight").shape[0]
        return rows


def _layer_list(value: object) -> tuple[int, ...] | None:
    is_list = isinstance(value, list) and bool(value) and all(type(each) is int for each in value)
    return tuple(value) if is_list else None  # type: ignore[arg-type]


def _by(tensor: "Tensor") -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
