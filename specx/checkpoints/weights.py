"""The weights in a directory: which files hold them, what is in those, and their tensors.

In goes a directory in Hugging Face format; out come names, shapes and CPU tensors, or a
``ModelError`` that names the file at fault. Safetensors are preferred. Pickles are opened by
PyTorch's restricted loader alone, which runs no code. This module does not know presets, the Hub,
devices or what a tensor is for.
"""

import json
import math
import operator
import pickle
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_KINDS = _FLOATS | {  # as safetensors and as torch spell it
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NOT_READ = "rotary_emb.inv_freq"  # old files store what follows from the config
_MAX_HEADER_BYTES = 100 << 20
_ZIP = b"PK\x03\x04"
_LFS_POINTER = b"version "
_CODE = re.compile(r"GLOBAL ([\w.]+)")  # how PyTorch names what a pickle wanted to call


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as a file describes it: its shape, its type as safetensors spells it, its file."""

    shape: tuple[int, ...]
    kind: str
    file: Path


def choose_entry(names: Collection[str]) -> str | None:
    """The one of ``names`` that leads to the weights: a file or an index of shards; or None."""
    return next((name for name in ENTRIES if name in names), None)


def is_pickled(entry: str) -> bool:
    """Whether ``entry``, from ``choose_entry``, stands for pickles."""
    return entry.startswith("pytorch_model.bin")


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
    tensors: dict[str, torch.Tensor] = {}
    for path, promised in _files(directory):
        found = _map(path) if _is_safe(path) else _unpickle(path)
        _check_share(path, promised, found.keys(), tensors.keys())
        tensors |= found
    return tensors


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

    found = read_tensors(directory)
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in found.items()
        if not name.endswith(_NOT_READ)
    }
    del found  # so that each part can be freed once it has its place
    if config.is_tied:
        own, table = tensors.get("lm_head.weight"), tensors.get("embed_tokens.weight")
        if own is not None and (table is None or torch.equal(own, table)):
            tensors["embed_tokens.weight"] = tensors.pop("lm_head.weight")
    return join(tensors, device, dtype)


def check_weights(directory: Path, config: ModelConfig) -> None:
    """Compare the weights with ``config``: names, shapes, sizes, all files present.

    Of safetensors only headers are read. Raises ``ModelError`` naming the file and the tensor.
    """
    found = read_entries(directory)
    expected = expected_shapes(config)
    for name, entry in found.items():
        file, shape, wanted = entry.file, entry.shape, expected.get(name)
        if entry.kind not in _FLOATS:
            raise ModelError(f"{file} is not supported", reason=f"{name} is of type {entry.kind}")
        if wanted is None and not name.endswith(_NOT_READ):
            raise ModelError(
                f"{file} does not fit config.json", reason=f"the tensor {name} has no place in it"
            )
        if wanted is not None and shape != wanted:
            raise ModelError(
                f"{file} does not fit config.json",
                reason=f"{name} has the shape {by(shape)}, and the config asks for {by(wanted)}",
            )
    missing = expected.keys() - found.keys()
    if config.is_tied and missing != {_TABLE, _HEAD}:
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


def read_entries(directory: Path) -> dict[str, Entry]:
    """Tensor name → entry. Of safetensors only headers are read. Raises ``ModelError``."""
    entries: dict[str, Entry] = {}
    for path, promised in _files(directory):
        found = _read_header(path) if _is_safe(path) else _pickled_entries(path)
        _check_share(path, promised, found.keys(), entries.keys())
        entries |= found
    return entries


def _files(directory: Path) -> list[tuple[Path, list[str]]]:
    """The weight files, each with the tensors that an index promises there."""
    entry = choose_entry({path.name for path in directory.iterdir()} if directory.is_dir() else ())
    if entry is None:
        raise ModelError(
            f"{directory} has no model.safetensors",
            reason="nor any other weights in Hugging Face format",
        )
    if not entry.endswith(".json"):
        return [(directory / entry, [])]
    files = shards(directory / entry)
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        raise ModelError(f"{directory} is incomplete", reason=f"the shard {missing[0]} is missing")
    return [(directory / name, promised) for name, promised in files.items()]


def _is_safe(path: Path) -> bool:
    """Whether a weight file is no pickle; the name decides, as it does for everybody else."""
    return path.suffix == ".safetensors"


def _check_share(
    path: Path, promised: Collection[str], found: Collection[str], earlier: Collection[str]
) -> None:
    """Refuse a shard without a tensor of the index, or with one that came before."""
    lacking, again = set(promised) - set(found), set(found) & set(earlier)
    if lacking:
        raise ModelError(f"{path} lacks {min(lacking)}", reason="the index places it there")
    if again:
        raise ModelError(
            f"{path} repeats another shard", reason=f"{min(again)} is in both, and only one counts"
        )


def _read_header(path: Path) -> dict[str, Entry]:
    """Tensor name → entry; raises ``ModelError`` unless header and file size agree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        _refuse_pointer(start, path)
        if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ModelError(f"{path} is damaged", reason="it is cut off or no safetensors file")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {name: _entry(entry) for name, entry in header.items()}
    except DAMAGE as error:
        raise ModelError(f"{path} is damaged", reason="its header is unreadable") from error
    described = 8 + length + max((end for _, _, _, end in entries.values()), default=0)
    if described != size:
        raise ModelError(
            f"{path} is damaged",
            reason=f"its header describes {described:,} bytes, the file has {size:,}",
        )
    for name, (shape, kind, begin, end) in entries.items():
        if kind not in _KINDS:
            raise ModelError(f"{path} is not supported", reason=f"{name} is of type {kind}")
        if begin < 0 or end - begin != math.prod(shape) * _item_bytes(kind):
            raise ModelError(f"{path} is damaged", reason=f"{name} has a wrong number of bytes")
    return {name: Entry(shape, kind, path) for name, (shape, kind, _, _) in entries.items()}


def _item_bytes(kind: str) -> int:
    bits = re.search(r"\d+$", kind)
    return int(bits[0]) // 8 if bits else 1


def _entry(entry: Any) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, type, first byte and end of one tensor; raises one of ``DAMAGE``."""
    begin, end = entry["data_offsets"]
    return tuple(map(operator.index, entry["shape"])), str(entry["dtype"]), int(begin), int(end)


def _map(path: Path) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError, safe_open

    _read_header(path)  # its words name the tensor at fault, those of the library do not
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (*DAMAGE, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged", reason=summary(error)) from error


def _unpickle(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a ``.bin`` file, by the restricted unpickler, which calls nothing unknown."""
    import torch

    with path.open("rb") as file:
        start = file.read(8)
    _refuse_pointer(start, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files older than PyTorch 1.6 are no archives and cannot be mapped.
            data = torch.load(
                path, map_location="cpu", weights_only=True, mmap=start.startswith(_ZIP)
            )
    except (*DAMAGE, EOFError, MemoryError, RuntimeError, pickle.UnpicklingError) as error:
        wanted = _CODE.search(str(error))
        if wanted:
            raise ModelError(
                f"{path} is refused",
                reason=f"it is a pickle that asks for {wanted[1]}, and that would run code",
                hints=["take a repository that has model.safetensors"],
            ) from error
        raise ModelError(f"{path} is damaged", reason=_first_line(error)) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not supported", reason="it does not map names to tensors")
    for name, tensor in data.items():
        _check_tensor(path, name, tensor)
    return {str(name): tensor.detach() for name, tensor in data.items()}


def _check_tensor(path: Path, name: object, tensor: object) -> None:
    """Refuse what is no plain tensor, and a shape that the file's bytes cannot fill."""
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ModelError(
            f"{path} is not supported", reason=f"under {str(name)[:80]!r} there is no tensor"
        )
    is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or not _kind(tensor):
        raise ModelError(f"{path} is not supported", reason=f"{name} is of type {tensor.dtype}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(f"{path} is damaged", reason=f"{name} has a wrong number of bytes")


def _pickled_entries(path: Path) -> dict[str, Entry]:
    return {
        name: Entry(tuple(tensor.shape), _kind(tensor), path)
        for name, tensor in _unpickle(path).items()
    }


def _kind(tensor: "torch.Tensor") -> str:
    """The type as safetensors spells it; "" for one that is not read."""
    name = str(tensor.dtype).removeprefix("torch.")
    return next((kind for kind, spelled in _KINDS.items() if spelled == name), "")


def _refuse_pointer(start: bytes, path: Path) -> None:
    if start == _LFS_POINTER:
        hint = "fetch the file itself: git lfs pull"
        raise ModelError(f"{path} is a Git LFS pointer, not weights", hints=[hint])


def _first_line(error: BaseException) -> str:
    """PyTorch appends a stack trace of its own and advice to turn the protection off."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def by(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    return "x".join("?" if n < 0 else str(n) for n in shape) or "a single number"
