"""tensors <-> safetensors files.

Written from memory, tensor by tensor, through `atomic`; read into memory of their own, so that a file which
changes afterwards changes nothing here (a mapped file that shrinks ends the process with a signal).
"""

from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory
from llmt.checkpoints.files import Content, write_file
from llmt.checkpoints.header import encode_header, file_order, parse_header, read_header
from llmt.checkpoints.reading import (
    FETCH_AGAIN,
    open_file,
    open_inside,
    read_errors,
    read_exactly,
    read_json,
    shown,
)
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE, index_json, is_shard_file_name, plan_shards
from llmt.errors import ModelFileError

__all__ = ["drop_tied", "load_tensors", "load_weights", "read_header", "save_tensors", "save_weights"]

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def save_weights(
    directory: Path | StagedDirectory,
    tensors: Mapping[str, Tensor],
    *,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a model's tensors as `model.safetensors`, or as shards and their index.

    Args:
        directory: Where; a `StagedDirectory` also records the hashes. The names must not be taken.
        tensors: By parameter name, of any shape and device. Tied tensors are written as often as they are
            named: see `drop_tied`.
        max_shard_size: Bytes of tensors per file.
        metadata: Text to keep in each file's header; `format: pt` is always there.

    Returns:
        The names of the files written.

    Raises:
        StorageError: The disk refused.
        ValueError: A tensor that the format cannot hold (sparse, quantised, complex128).
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    plan = plan_shards(sizes, max_shard_size)
    for file, names in plan.files.items():
        save_tensors(directory, file, {name: tensors[name] for name in names}, metadata)
    if len(plan.files) == 1:
        return list(plan.files)
    _write(directory, layout.MODEL_INDEX, index_json(plan).encode())
    return [*plan.files, layout.MODEL_INDEX]


def save_tensors(
    directory: Path | StagedDirectory,
    file: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as the one file `file`: an adapter, an optimizer's state, a shard.

    Raises:
        StorageError: The disk refused, or the name is taken.
        ValueError: A tensor that the format cannot hold (sparse, quantised, complex128).
    """
    order = file_order((name, _dtype_name(name, tensor), tuple(tensor.shape)) for name, tensor in tensors.items())
    header = encode_header(order, metadata or {})
    _write(directory, file, _file_bytes(header, (tensors[name] for name, _, _ in order)))


def _write(directory: Path | StagedDirectory, file: str, content: Content) -> None:
    if isinstance(directory, StagedDirectory):
        directory.write_file(file, content)
    else:
        write_file(directory / file, content, hashed=False)


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.dtype not in _NAMES:
        raise ValueError(f"{name}: safetensors cannot hold a {tensor.layout} tensor of {tensor.dtype}")
    return _NAMES[tensor.dtype]


def _file_bytes(header: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield header
    for tensor in tensors:
        yield _bytes_of(tensor.detach().cpu().contiguous())


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, not copied."""
    # A conjugate or negative view is lazy: its bytes are not yet its values.
    plain = tensor.resolve_conj().resolve_neg().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def drop_tied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name per piece of memory: of tied tensors the first stays, the embedding before `lm_head`."""
    kept: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        # Tensors without elements all lie at address zero.
        kept.setdefault(place if tensor.numel() else (name,), name)
    return {name: tensors[name] for name in kept.values()}


def load_weights(source: Path) -> dict[str, Tensor]:
    """Read all tensors of a model directory, or of one safetensors file, into memory.

    Args:
        source: A file, or a directory with `model.safetensors` or with shards and their index.

    Returns:
        CPU tensors by name, in the dtype of the file, each with memory of its own.

    Raises:
        ModelFileError: Missing, damaged or unsafe; the file is named.
    """
    if not source.is_dir():
        return load_tensors(source)
    if (source / layout.MODEL_FILE).exists():
        return _load(source, layout.MODEL_FILE)
    if (source / layout.MODEL_INDEX).exists():
        return _load_shards(source)
    if any(source.glob("*.bin")) or any(source.glob("*.pt")) or any(source.glob("*.pth")):
        raise ModelFileError(f"{source}: holds PyTorch files, no {layout.MODEL_FILE}", f"llmt convert {source}")
    raise ModelFileError(f"{source}: has no {layout.MODEL_FILE}", "name a model directory")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of one safetensors file into memory.

    Raises:
        ModelFileError: Missing or damaged.
    """
    with open_file(path) as file:
        return _read_tensors(file, path)


def _load(directory: Path, name: str) -> dict[str, Tensor]:
    with open_inside(directory, name) as file:
        return _read_tensors(file, directory / name)


def _load_shards(directory: Path) -> dict[str, Tensor]:
    path = directory / layout.MODEL_INDEX
    shards: dict[str, set[str]] = {}
    weight_map = read_json(directory, layout.MODEL_INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFileError(f"{path}: has no weight_map", FETCH_AGAIN)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_shard_file_name(shard):
            raise ModelFileError(f"{path}: {shown(shard)} is not a safetensors file beside it", FETCH_AGAIN)
        shards.setdefault(shard, set()).add(name)
    tensors: dict[str, Tensor] = {}
    for shard, listed in shards.items():
        with open_inside(directory, shard) as file:
            # Names first: nothing large is read from a shard that does not fit its index.
            differing = sorted(listed ^ set(parse_header(file, directory / shard).tensors))
            if differing:
                count = f"{len(differing)} tensors, {shown(differing[0])} among them"
                raise ModelFileError(f"{path}: it and {shard} disagree about {count}", FETCH_AGAIN)
            tensors |= _read_tensors(file, directory / shard)
    return tensors


def _read_tensors(file: FileIO, path: Path) -> dict[str, Tensor]:
    tensors = {}
    with read_errors(path):
        for info in parse_header(file, path).tensors.values():
            flat = torch.empty(info.end - info.begin, dtype=torch.uint8)
            try:
                read_exactly(file, info.begin, flat.numpy().data)
            except EOFError as error:
                raise ModelFileError(f"{path}: it became shorter while it was read", FETCH_AGAIN) from error
            tensors[info.name] = flat.view(_DTYPES[info.dtype]).reshape(info.shape)
    return tensors
