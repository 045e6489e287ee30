"""The weights in a directory: which files hold them, what is in those, and their tensors.
Pickles are opened by PyTorch's restricted loader alone, which runs no code."""

import pickle
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from specx.checkpoints.config import DAMAGE, ModelConfig, read_json, summary
from specx.core.architecture import Shape
from specx.errors import ModelError

if TYPE_CHECKING:
    import torch

    from specx.preset.sections import HeadShapeSpec

#: What a directory or repository is asked for, the most wanted first.
ENTRIES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_KINDS = (*_FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NOT_READ = "rotary_emb.inv_freq"  # old files store what follows from the config
_ZIP = b"PK\x03\x04"
_LFS_POINTER = b"version "
_CODE = re.compile(r"GLOBAL ([\w.]+)")  # how PyTorch names what a pickle wanted to call


def choose_entry(names: Collection[str]) -> str | None:
    """The one of ``names`` that leads to the weights: a file or an index of shards; or None."""
    return next((name for name in ENTRIES if name in names), None)


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a file in its directory, and can be nothing else on any system."""
    return Path(name).name == name and "\\" not in name and name not in ("", ".", "..")


def shards(index: Path) -> dict[str, list[str]]:
    """File name → the tensors that the index places there. Raises ``ModelError``."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelError(f"{index} is damaged", reason="it has no weight_map")
    files: dict[str, list[str]] = {}
    for tensor, name in sorted(placed.items()):
        if not isinstance(name, str) or not is_plain_name(name):
            raise ModelError(f"{index} is damaged", reason=f"{name!r} is no file beside it")
        files.setdefault(name, []).append(tensor)
    return files


def read_tensors(directory: Path) -> "dict[str, torch.Tensor]":
    """All tensors by name, on the CPU in the type they were saved in, mapped where possible.

    Floating and integer tensors and bools; safetensors, or pickles where there are none. Raises
    ``ModelError`` for files that are missing, damaged or that want to run code.
    """
    return {name: tensor for _, name, tensor in _read(directory)}


def load_weights(
    directory: Path, config: ModelConfig, device: str, dtype: "torch.dtype"
) -> "dict[str, torch.Tensor]":
    """The tensors of a model that ``check_weights`` approved, on ``device`` in ``dtype``, as
    ``core.decoder.Model`` takes them.

    Each goes straight from the file to its place; what needs no change stays mapped. Raises
    ``ModelError`` as ``read_tensors`` does.
    """
    import torch

    from specx.core.joined import join

    tensors = {
        name.removeprefix("model."): tensor
        for _, name, tensor in _read(directory)
        if not name.endswith(_NOT_READ)
    }
    if config.is_tied:
        own, table = tensors.get("lm_head.weight"), tensors.get("embed_tokens.weight")
        if own is not None and (table is None or torch.equal(own, table)):
            tensors["embed_tokens.weight"] = tensors.pop("lm_head.weight")
    return join(tensors, device, dtype)


def check_weights(directory: Path, config: ModelConfig) -> None:
    """Compare the weights with ``config``: names, shapes, types, all files present.

    Of safetensors only headers are read. Raises ``ModelError`` naming the file and the tensor.
    """
    expected = expected_shapes(config)
    missing = set(expected)
    for file, name, tensor in _read(directory):
        missing.discard(name)
        wanted, shape, kind = expected.get(name), tuple(tensor.shape), kind_of(tensor)
        if kind not in _FLOATS:
            raise ModelError(f"{file} is not supported", reason=f"{name} is of type {kind}")
        if wanted == shape or (wanted is None and name.endswith(_NOT_READ)):
            continue
        reason = f"the tensor {name} has no place in it"
        if wanted is not None:
            reason = f"{name} has the shape {by(shape)}, and the config asks for {by(wanted)}"
        raise ModelError(f"{file} does not fit config.json", reason=reason)
    if config.is_tied and not missing >= {_TABLE, _HEAD}:
        missing -= {_TABLE, _HEAD}  # either is both
    if missing:
        raise ModelError(
            f"weights are missing in {directory}",
            reason=f"{len(missing)} tensors are not there, the first is {min(missing)}",
        )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, of all that a model of this ``config`` may have: a tied one keeps its
    embedding, its output matrix or both."""
    shape = config.shape
    matrices = projections(shape, shape.hidden)
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": size for name, size in matrices.items()}
    layer |= {f"{name}.bias": matrices[name][:1] for name in config.biased}
    layer |= {
        f"{name}.weight": (shape.hidden,)
        for name in (config.decoder.attention_norm, config.decoder.mlp_norm)
    }
    if config.norms_heads:
        layer |= {f"self_attn.{each}_norm.weight": (shape.head_dim,) for each in "qk"}
    table = (shape.vocabulary, shape.hidden)
    return {_TABLE: table, "model.norm.weight": (shape.hidden,), _HEAD: table} | {
        f"model.layers.{index}.{name}": size
        for index in range(shape.layers)
        for name, size in layer.items()
    }


def outline(config: ModelConfig, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """The tensors of such a model as ``core.decoder.Model`` takes them, without memory: on torch's
    meta device."""
    import torch

    from specx.core.joined import join

    shapes = expected_shapes(config)
    if config.is_tied:
        del shapes[_HEAD]
    tensors = {
        name.removeprefix("model."): torch.empty(shape, dtype=dtype, device="meta")
        for name, shape in shapes.items()
    }
    return join(tensors, "meta", dtype)


def projections(shape: "Shape | HeadShapeSpec", inputs: int) -> dict[str, tuple[int, int]]:
    """Name → rows and columns in one layer, whose attention reads ``inputs`` numbers."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, mlp = shape.hidden, shape.mlp
    return {
        "self_attn.q_proj": (queries, inputs),
        "self_attn.k_proj": (keys, inputs),
        "self_attn.v_proj": (keys, inputs),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }


def _read(directory: Path) -> "Iterator[tuple[Path, str, torch.Tensor]]":
    """File, name and tensor of all there are; a shard must have what the index promises of it, and
    nothing that came before."""
    entry = choose_entry({path.name for path in directory.iterdir()} if directory.is_dir() else ())
    if entry is None:
        reason = "nor any other weights in Hugging Face format"
        raise ModelError(f"{directory} has no model.safetensors", reason=reason)
    files = shards(directory / entry) if entry.endswith(".json") else {entry: []}
    for name in files:
        if not (directory / name).is_file():
            raise ModelError(f"{directory} is incomplete", reason=f"the shard {name} is missing")
    seen: set[str] = set()
    for file, promised in files.items():
        path = directory / file
        found = _tensors(path)
        for name in sorted(set(promised) - found.keys()):
            raise ModelError(f"{path} lacks {name}", reason="the index places it there")
        for name in sorted(seen & found.keys()):
            reason = f"{name} is in both, and only one counts"
            raise ModelError(f"{path} repeats another shard", reason=reason)
        seen |= found.keys()
        for name, tensor in found.items():
            if kind_of(tensor) not in _KINDS:
                reason = f"{name} is of type {kind_of(tensor)}"
                raise ModelError(f"{path} is not supported", reason=reason)
            yield path, name, tensor


def _tensors(path: Path) -> "dict[str, torch.Tensor]":
    """What one file holds, mapped; the name decides what is a pickle, as for everybody else."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as raw:
        start = raw.read(8)
    if start == _LFS_POINTER:
        hint = "fetch the file itself: git lfs pull"
        raise ModelError(f"{path} is a Git LFS pointer, not weights", hints=[hint])
    if path.suffix != ".safetensors":
        return _unpickle(path, is_mapped=start.startswith(_ZIP))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (*DAMAGE, RuntimeError, SafetensorError) as error:
        reason = f"it is cut off or no safetensors file ({summary(error)})"
        raise ModelError(f"{path} is damaged", reason=reason) from error


def _unpickle(path: Path, *, is_mapped: bool) -> "dict[str, torch.Tensor]":
    """The tensors of a ``.bin`` file, by the restricted unpickler, which calls nothing unknown.
    Files older than PyTorch 1.6 are no archives and cannot be mapped."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except (*DAMAGE, EOFError, MemoryError, RuntimeError, pickle.UnpicklingError) as error:
        if wanted := _CODE.search(str(error)):
            raise ModelError(
                f"{path} is refused",
                reason=f"it is a pickle that asks for {wanted[1]}, and that would run code",
                hints=["take a repository that has model.safetensors"],
            ) from error
        # PyTorch appends a stack trace of its own and advice to turn the protection off.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{path} is damaged", reason=reason) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not supported", reason="it does not map names to tensors")
    for name, tensor in data.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            reason = f"under {str(name)[:80]!r} there is no tensor"
            raise ModelError(f"{path} is not supported", reason=reason)
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_quantized:
            raise ModelError(
                f"{path} is not supported", reason=f"{name} is of type {tensor.type()}"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path} is damaged", reason=f"{name} has a wrong number of bytes")
    return {name: tensor.detach() for name, tensor in data.items()}


def kind_of(tensor: "torch.Tensor") -> str:
    """The name of its type, as ``float16``."""
    return str(tensor.dtype).removeprefix("torch.")


def by(shape: tuple[int, ...]) -> str:
    return "x".join("?" if n < 0 else str(n) for n in shape) or "a single number"
