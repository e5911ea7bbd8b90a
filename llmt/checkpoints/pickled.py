""".pt, .pth, .bin -> tensors, with nothing in the file executed and torch not imported.

`torch.save` writes a zip archive: `NAME/data.pkl`, a pickle that describes everything but the numbers, and
one stored member `NAME/data/KEY` for each storage. The pickle is read by a machine that builds plain values
only (`pickle_values`); the archive is checked before any number is read, and each storage against its CRC-32
while it is.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llmt.checkpoints.header import DTYPE_BYTES, METADATA_KEY
from llmt.checkpoints.pickle_values import PickleRefusedError, read_pickle
from llmt.checkpoints.reading import FETCH_AGAIN, file_size, open_file, read_errors, read_exactly, shown
from llmt.checkpoints.torch_globals import Storage, TensorView, refer_to_storage, resolve_global
from llmt.errors import ModelFileError
from llmt.units import format_size

MAX_PICKLE_BYTES = 64 * 2**20
MAX_EXPANSION = 4
_CHUNK = 4 * 2**20
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_RESAVE = "in the program that made it: torch.save(model.state_dict(), 'weights.pt'), then convert that"


@dataclass(frozen=True)
class ZipMember:
    """One stored member of the archive: where its bytes lie in the file, and their CRC-32."""

    name: str
    begin: int
    size: int
    crc: int


@dataclass(frozen=True)
class PickledTensor:
    """One tensor of the file.

    `dtype` is the safetensors name; `strides` are in elements; `offset` is in bytes from the start of the
    storage.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: ZipMember
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once written out row by row."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def begin(self) -> int:
        """Where its first element lies in the file."""
        return self.storage.begin + self.offset

    @property
    def contiguous(self) -> bool:
        """Whether its bytes lie in the file exactly as they are to be written."""
        expected = 1
        if 0 in self.shape:
            return True
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != expected:
                return False
            expected *= length
        return True

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two names of the same numbers: tied tensors."""
        return (self.storage, self.offset, self.dtype, self.shape, self.strides)


class PickledFile:
    """An open file of `torch.save`: its tensors, and their bytes on demand. Made by `open_pickled`."""

    def __init__(self, path: Path, file: FileIO, tensors: tuple[PickledTensor, ...]) -> None:
        self.path = path
        self.tensors = tensors
        self._file = file
        self._verified: set[ZipMember] = set()

    def read(self, tensor: PickledTensor) -> Iterator[memoryview]:
        """The bytes of a tensor, row by row, in pieces that are valid until the next one is asked for.

        A contiguous tensor needs 4 MiB of memory whatever its size; a transposed one its own size.

        Raises:
            ModelFileError: The storage is damaged (its CRC-32 differs), or the file cannot be read any more.
        """
        storage = tensor.storage
        if tensor.contiguous and tensor.nbytes == storage.size:
            yield from self._checked(storage)
            return
        if storage not in self._verified:
            for _ in self._checked(storage):
                pass
            self._verified.add(storage)
        if tensor.contiguous:
            yield from self._pieces(tensor.begin, tensor.nbytes)
        else:
            yield from self._gathered(tensor)

    def _checked(self, member: ZipMember) -> Iterator[memoryview]:
        crc = 0
        for piece in self._pieces(member.begin, member.size):
            crc = zlib.crc32(piece, crc)
            yield piece
        if crc != member.crc:
            raise ModelFileError(f"{self.path}: damaged: CRC-32 of {shown(member.name)} differs", FETCH_AGAIN)

    def _pieces(self, begin: int, size: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK, size)))
        for done in range(0, size, _CHUNK):
            piece = buffer[: min(_CHUNK, size - done)]
            _read(self._file, begin + done, piece, self.path)
            yield piece

    def _gathered(self, tensor: PickledTensor) -> Iterator[memoryview]:
        import numpy as np

        width = DTYPE_BYTES[tensor.dtype]
        span = bytearray(_span(tensor) * width)
        _read(self._file, tensor.begin, memoryview(span), self.path)
        # Only the width matters for moving elements; numpy knows no bfloat16.
        flat = np.frombuffer(span, dtype=f"u{width}")
        strides = [stride * width for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
        rows = max(1, _CHUNK // max(1, tensor.nbytes // tensor.shape[0]))
        for row in range(0, tensor.shape[0], rows):
            part = np.ascontiguousarray(view[row : row + rows])
            yield part.reshape(-1).view(np.uint8).data


@contextmanager
def open_pickled(path: Path) -> Iterator[PickledFile]:
    """Open a file of `torch.save`, find the state dict in it, and check everything but the numbers.

    The state dict is the value itself, or what stands in it under `model_state_dict`, `state_dict`, `model`
    or `module`. Prefixes of wrappers (`module.`, `_orig_mod.`) are removed from the names. The rest is
    ignored.

    Raises:
        ModelFileError: Missing, damaged, unsafe, or of a kind that llmt does not read; the message says
            which.
    """
    with open_file(path) as file:
        _check_kind(file, path)
        members = _read_directory(file, path)
        top = _find_top(members, path)
        views = _name_tensors(_read_value(file, members, top, path), path)
        tensors = tuple(_locate(name, view, members, top, path) for name, view in views.items())
        distinct = {tensor.place: tensor.nbytes for tensor in tensors}
        stored = sum(storage.size for storage in {tensor.storage for tensor in tensors})
        if sum(distinct.values()) > MAX_EXPANSION * stored:
            wanted, have = format_size(sum(distinct.values())), format_size(stored)
            raise ModelFileError(f"{path}: would expand from {have} to {wanted}", _RESAVE)
        yield PickledFile(path, file, tensors)


def _read(file: FileIO, offset: int, buffer: memoryview, path: Path) -> None:
    with read_errors(path):
        try:
            read_exactly(file, offset, buffer)
        except EOFError as error:
            raise ModelFileError(f"{path}: it became shorter while it was read", FETCH_AGAIN) from error


def _check_kind(file: FileIO, path: Path) -> None:
    """Refuse, each with its own message, what is often found under these file names."""
    with read_errors(path):
        head = file.read(512) or b""
    renamed = path.with_suffix(".safetensors").name
    kinds = (
        (head.startswith(b"PK\x03\x04"), "", ""),
        (not head, "is empty", FETCH_AGAIN),
        (
            head.startswith(b"version https://git-lfs"),
            "is a git-lfs pointer, not the file itself",
            "git lfs pull",
        ),
        (head.startswith(_LEGACY_MAGIC), "is in the format of PyTorch before 1.6", _RESAVE),
        (head.startswith(b"\x80"), "is a plain pickle, not a file of torch.save", _RESAVE),
        (head[8:9] == b"{", "is a safetensors file already", f"rename it to {renamed}"),
        (head.lstrip().startswith(b"<"), "is a web page, not the file itself", FETCH_AGAIN),
        (True, "is not a file of torch.save", FETCH_AGAIN),
    )
    reason, hint = next((reason, hint) for found, reason, hint in kinds if found)
    if reason:
        raise ModelFileError(f"{path}: {reason}", hint)


def _read_directory(file: FileIO, path: Path) -> dict[str, ZipMember]:
    """Every member of the archive by name: stored, named once, none overlapping, none outside the file."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, OSError) as error:
        raise ModelFileError(f"{path}: is truncated or damaged ({error})", FETCH_AGAIN) from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ModelFileError(f"{path}: is a TorchScript program, not weights", _RESAVE)
    members: dict[str, ZipMember] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name, parts = entry.filename, entry.filename.split("/")
        if ".." in parts or "\\" in name or name.startswith("/") or name in members:
            raise _damaged(path, f"the member {shown(name)} is named twice or leaves the archive")
        if _is_packed(entry):
            raise _damaged(path, f"the member {shown(name)} is compressed; torch.save never does that")
        begin = _data_begin(file, entry.header_offset, path)
        if entry.header_offset < end or begin + entry.file_size > file_size(file):
            raise _damaged(path, f"the member {shown(name)} overlaps another or the end of the file")
        end = begin + entry.file_size
        members[name] = ZipMember(name, begin, entry.file_size, entry.CRC)
    return members


def _is_packed(entry: zipfile.ZipInfo) -> bool:
    """Compressed or encrypted."""
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    return not stored or bool(entry.flag_bits & 1)


def _data_begin(file: FileIO, offset: int, path: Path) -> int:
    """Where a member's bytes begin: after its own header, which may be longer than the directory says."""
    header = bytearray(30)
    _read(file, offset, memoryview(header), path)
    if not header.startswith(b"PK\x03\x04"):
        raise _damaged(path, f"no member begins at byte {offset}")
    return offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _find_top(members: dict[str, ZipMember], path: Path) -> str:
    """The one folder that holds everything, as `NAME` in `NAME/data.pkl`."""
    tops = [name.removesuffix("/data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise ModelFileError(f"{path}: is a zip archive, but not one of torch.save", FETCH_AGAIN)
    return tops[0]


def _read_value(file: FileIO, members: dict[str, ZipMember], top: str, path: Path) -> object:
    if (order := members.get(f"{top}/byteorder")) and _member_bytes(file, order, path) != b"little":
        raise ModelFileError(f"{path}: was written on a big-endian machine", _RESAVE)
    program = _member_bytes(file, members[f"{top}/data.pkl"], path)
    try:
        return read_pickle(program, resolve_global, refer_to_storage)
    except PickleRefusedError as error:
        raise ModelFileError(f"{path}: {error}; nothing in it was run", _RESAVE) from error


def _member_bytes(file: FileIO, member: ZipMember, path: Path) -> bytes:
    if member.size > MAX_PICKLE_BYTES:
        size, limit = format_size(member.size), format_size(MAX_PICKLE_BYTES)
        raise ModelFileError(f"{path}: {size} of data beside the tensors, at most {limit} is read", _RESAVE)
    data = bytearray(member.size)
    _read(file, member.begin, memoryview(data), path)
    if zlib.crc32(data) != member.crc:
        raise _damaged(path, f"CRC-32 of {shown(member.name)} differs")
    return bytes(data)


def _check_entry(key: object, item: object, path: Path) -> None:
    """An entry of a state dict is a parameter's name and a plain tensor."""
    if not isinstance(key, str):
        raise ModelFileError(f"{path}: in its state dict, {shown(key)} is not text", _RESAVE)
    if not isinstance(item, TensorView):
        raise ModelFileError(f"{path}: in its state dict, {shown(key)} is not a plain tensor", _RESAVE)
    if not key.isprintable() or len(key) > 1000:
        raise ModelFileError(f"{path}: {shown(key)} is not the name of a parameter", _RESAVE)


def _name_tensors(value: object, path: Path) -> dict[str, TensorView]:
    """Find the state dict and give each of its tensors the name that the model itself uses."""
    for _ in range(3):
        if not isinstance(value, dict):
            break
        inner = [value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)]
        if not inner:
            break
        value = inner[0]
    if not isinstance(value, dict) or not value:
        raise ModelFileError(f"{path}: holds no state dict (a dictionary of tensors)", _RESAVE)
    for key, item in value.items():
        _check_entry(key, item, path)
    # torch.compile marks each module it wrapped; DistributedDataParallel only the outermost.
    plain = {key: key.replace("_orig_mod.", "") for key in value}
    while all(name.startswith("module.") for name in plain.values()):
        plain = {key: name.removeprefix("module.") for key, name in plain.items()}
    if not all(plain.values()) or METADATA_KEY in plain.values():
        raise ModelFileError(f"{path}: one of its tensors has no usable name", _RESAVE)
    if len(set(plain.values())) != len(plain):
        raise ModelFileError(f"{path}: two tensors have one name without module. and _orig_mod.", _RESAVE)
    return {plain[key]: view for key, view in value.items()}


def _locate(name: str, view: TensorView, members: dict[str, ZipMember], top: str, path: Path) -> PickledTensor:
    """Find a tensor's bytes and check that it stays inside its storage."""
    storage: Storage = view.storage
    member = members.get(f"{top}/data/{storage.key}")
    if member is None:
        raise _damaged(path, f"the numbers of the tensor {shown(name)} are missing")
    if view.dtype not in DTYPE_BYTES:
        raise ModelFileError(f"{path}: {shown(name)} is {view.dtype}, which safetensors cannot hold", _RESAVE)
    width = DTYPE_BYTES[view.dtype]
    tensor = PickledTensor(name, view.dtype, view.shape, view.strides, member, view.offset * width)
    last = view.offset + _span(tensor)
    if storage.nbytes != member.size or last * width > member.size:
        raise _damaged(path, f"the tensor {shown(name)} reaches beyond its storage")
    return tensor


def _span(tensor: PickledTensor) -> int:
    """Elements from a tensor's first to its last in memory."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path}: damaged: {reason}", FETCH_AGAIN)
