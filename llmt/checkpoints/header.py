"""safetensors header <-> names, dtypes, shapes.

The format: 8 bytes, the header's length as a little-endian integer; the header, JSON; then the tensors,
little-endian and row-major, without holes. See https://github.com/huggingface/safetensors#format.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llmt.checkpoints.dtypes import DTYPE_BYTES
from llmt.checkpoints.reading import (
    FETCH_AGAIN,
    file_size,
    open_file,
    parse_json,
    read_errors,
    read_exactly,
    shown,
)
from llmt.errors import ModelFileError
from llmt.units import format_size

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64
METADATA_KEY = "__metadata__"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its dtype by the format's name, its shape, its byte range in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself; the tensors in the order of their bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a file, without reading its tensors.

    Raises:
        ModelFileError: Missing, damaged, or not a safetensors file.
    """
    with open_file(path) as file:
        return parse_header(file, path)


def parse_header(file: FileIO, path: Path) -> Header:
    """Read and check the header of an open file: every byte after it belongs to exactly one tensor.

    Raises:
        ModelFileError: Damaged, or not a safetensors file.
    """
    with read_errors(path):
        size = file_size(file)
        if size < 8:
            raise _damaged(path, f"{size} bytes are too few for a safetensors file")
        try:
            prefix = bytearray(8)
            read_exactly(file, 0, memoryview(prefix))
            _refuse_other_kinds(bytes(prefix), path)
            length = int.from_bytes(prefix, "little")
            if length > size - 8:
                raise _damaged(path, "it is truncated, or not a safetensors file")
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, f"a header of {format_size(length)}, at most 16 MiB is read")
            text = bytearray(length)
            read_exactly(file, 8, memoryview(text))
        except EOFError as error:
            raise _damaged(path, "it became shorter while it was read") from error
    if not text.startswith(b"{"):
        raise _damaged(path, "it is not a safetensors file")
    content = parse_json(text, path)
    metadata = _check_metadata(content.pop(METADATA_KEY, {}), path)
    if not all(_is_writable(text) for text in (*content, *metadata, *metadata.values())):
        raise _damaged(path, "a name or text in it holds half a character")
    if len(content) > MAX_TENSORS:
        raise _damaged(path, f"{len(content)} tensors, at most {MAX_TENSORS} are read")
    begin = 8 + length
    infos = sorted(
        (_check_entry(name, entry, begin, path) for name, entry in content.items()),
        key=lambda i: (i.begin, i.end),
    )
    end = begin
    for info in infos:
        if info.begin != end:
            raise _damaged(path, f"the tensor {shown(info.name)} overlaps another or leaves a hole")
        end = info.end
    if end != size:
        raise _damaged(path, f"the tensors end at byte {end}, the file at byte {size}")
    return Header({info.name: info for info in infos}, metadata)


def _is_writable(text: str) -> bool:
    """Whether text can be encoded: half a character of UTF-16, which JSON can spell, cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _refuse_other_kinds(begin: bytes, path: Path) -> None:
    """What is often found under this file name, each with its own message."""
    if begin.startswith(b"PK\x03\x04"):
        renamed = path.with_suffix(".pt").name
        raise ModelFileError(f"{path}: is a file of torch.save, not a safetensors file", f"rename it to {renamed}")
    if begin.startswith(b"version "):
        raise ModelFileError(f"{path}: is a git-lfs pointer, not the file itself", "git lfs pull")
    if begin.startswith((b"<!DOCTYP", b"<html", b"<!doctyp")):
        raise ModelFileError(f"{path}: is a web page, not the file itself", FETCH_AGAIN)


def _check_metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _damaged(path, f"{METADATA_KEY} is not text by name")
    return value


def _check_entry(name: str, entry: object, data: int, path: Path) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            isinstance(entry, dict) and len(entry) == 3 and type(begin) is type(end) is int
        ):
            pass
        case _:
            raise _damaged(path, f"the entry of the tensor {shown(name)} is malformed")
    if dtype not in DTYPE_BYTES:
        raise _damaged(path, f"the tensor {shown(name)} has dtype {shown(dtype)}, which llmt does not read")
    if len(shape) > MAX_DIMENSIONS or not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise _damaged(path, f"the tensor {shown(name)} has no valid shape")
    if not 0 <= begin <= end or math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise _damaged(path, f"the tensor {shown(name)} has a shape that does not fit its bytes")
    return TensorInfo(name, dtype, tuple(shape), data + begin, data + end)


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path}: {reason}", FETCH_AGAIN)


def file_order(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The order in which tensors (name, dtype, shape) are to stand in a file: wide elements first.

    So each tensor begins at a multiple of its element's size, which readers that map the file need.
    """
    return sorted(tensors, key=lambda tensor: -DTYPE_BYTES[tensor[1]])


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the first tensor's, for tensors (name, dtype, shape) that follow in this order.

    Raises:
        ValueError: Two tensors of one name, or a name that is reserved or not valid text.
    """
    content: dict[str, object] = {METADATA_KEY: {"format": "pt", **metadata}}
    begin = 0
    for name, dtype, shape in tensors:
        if name in content:
            raise ValueError(f"two tensors are named {shown(name)}")
        end = begin + math.prod(shape) * DTYPE_BYTES[dtype]
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
