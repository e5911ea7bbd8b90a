""".pt, .pth, .bin -> tensors, with nothing in the file executed and torch not imported.

The pickle in it is read by a machine that builds plain values only (`pickle_values`); the file is checked before
any number is read (`archive`), and each storage against its CRC-32 while it is.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llmt.checkpoints.archive import Archive, Piece, damaged, read, read_archive
from llmt.checkpoints.dtypes import DTYPE_BYTES
from llmt.checkpoints.reading import FETCH_AGAIN, RESAVE, open_file, shown
from llmt.checkpoints.statedict import find_state_dict
from llmt.checkpoints.torch_globals import TensorView
from llmt.errors import ModelFileError
from llmt.units import format_size

MAX_EXPANSION = 4
# Small enough for the cache of a core: bytes that were read are looked at once more.
_CHUNK = 2**18
_GATHERED = 4 * 2**20


@dataclass(frozen=True)
class PickledTensor:
    """One tensor of the file.

    `written` is its name in the file, with the prefixes of wrappers; `dtype` is the safetensors name; `strides` are in
    elements; `offset` is in bytes from the start of the storage.
    """

    name: str
    written: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: Piece
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
    def whole(self) -> bool:
        """Whether its bytes are those of its storage, no more and no fewer."""
        return self.contiguous and self.nbytes == self.storage.size

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two names of the same numbers: tied tensors."""
        return (self.storage, self.offset, self.dtype, self.shape, self.strides)


class PickledFile:
    """An open file of `torch.save`: its tensors, and their bytes on demand. Made by `open_pickled`.

    Attributes:
        path: Where it lies.
        tensors: Those of the model.
        left_out: Names of what else stands in it, such as an optimizer.
        checked: Whether it keeps a checksum of each storage.
    """

    def __init__(
        self, path: Path, file: FileIO, tensors: tuple[PickledTensor, ...], left_out: tuple[str, ...] = ()
    ) -> None:
        self.path = path
        self.tensors = tensors
        self.left_out = left_out
        self.checked = all(tensor.storage.crc is not None for tensor in tensors)
        self._file = file

    def fileno(self) -> int:
        """The descriptor of the open file."""
        return self._file.fileno()

    def read_at(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` of the file on.

        Raises:
            ModelFileError: It cannot be read any more.
        """
        read(self._file, offset, buffer, self.path)

    def read(self, tensor: PickledTensor) -> Iterator[memoryview]:
        """The bytes of a tensor, row by row, in pieces that are valid until the next one is asked for.

        A contiguous tensor needs little memory whatever its size; a transposed one its own size. The checksum is
        not looked at: see `check`.

        Raises:
            ModelFileError: The file cannot be read any more.
        """
        if tensor.contiguous:
            yield from self._pieces(tensor.begin, tensor.nbytes)
        else:
            yield from self._gathered(tensor)

    def read_storage(self, storage: Piece, buffer: memoryview) -> None:
        """Fill `buffer` with all bytes of a storage, and compare them with its CRC-32.

        Raises:
            ModelFileError: The file cannot be read any more, or is damaged.
        """
        crc = 0
        for done in range(0, storage.size, _CHUNK):
            piece = buffer[done : done + _CHUNK]
            self.read_at(storage.begin + done, piece)
            crc = zlib.crc32(piece, crc) if storage.crc is not None else 0
        self._compare(storage, crc)

    def check(self, storage: Piece) -> None:
        """Compare a storage with its CRC-32, where the file keeps one.

        Raises:
            ModelFileError: It is damaged.
        """
        crc = 0
        for piece in self._pieces(storage.begin, storage.size) if storage.crc is not None else ():
            crc = zlib.crc32(piece, crc)
        self._compare(storage, crc)

    def _compare(self, storage: Piece, crc: int) -> None:
        if storage.crc is not None and crc != storage.crc:
            raise ModelFileError(f"{self.path}: damaged: CRC-32 of {shown(storage.name)} differs", FETCH_AGAIN)

    def _pieces(self, begin: int, size: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK, size)))
        for done in range(0, size, _CHUNK):
            piece = buffer[: min(_CHUNK, size - done)]
            self.read_at(begin + done, piece)
            yield piece

    def _gathered(self, tensor: PickledTensor) -> Iterator[memoryview]:
        import numpy as np

        width = DTYPE_BYTES[tensor.dtype]
        span = bytearray(_span(tensor) * width)
        self.read_at(tensor.begin, memoryview(span))
        # Only the width matters for moving elements; numpy knows no bfloat16.
        flat = np.frombuffer(span, dtype=f"u{width}")
        strides = [stride * width for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
        rows = max(1, _GATHERED // max(1, tensor.nbytes // tensor.shape[0]))
        for row in range(0, tensor.shape[0], rows):
            part = np.ascontiguousarray(view[row : row + rows])
            yield part.reshape(-1).view(np.uint8).data


@contextmanager
def open_pickled(path: Path, opened: FileIO | None = None) -> Iterator[PickledFile]:
    """Open a file of `torch.save`, find the state dict in it, and check everything but the numbers.

    The state dict is the value itself, or what stands in it under `model_state_dict`, `state_dict`, `model`
    or `module`. Prefixes of wrappers (`module.`, `_orig_mod.`, `_fsdp_wrapped_module.`) are removed from the
    names. The rest is ignored.

    Args:
        path: Where it lies.
        opened: The file itself, where it was opened already; it is closed at the end.

    Raises:
        ModelFileError: Missing, damaged, unsafe, or of a kind that llmt does not read; the message says
            which.
    """
    with open_file(path) if opened is None else opened as file:
        archive = read_archive(file, path)
        found = find_state_dict(archive.value, path)
        tensors = tuple(_locate(name, found.written[name], view, archive, path) for name, view in found.views.items())
        distinct = {tensor.place: tensor.nbytes for tensor in tensors}
        stored = sum(storage.size for storage in {tensor.storage for tensor in tensors})
        if sum(distinct.values()) > MAX_EXPANSION * stored:
            wanted, have = format_size(sum(distinct.values())), format_size(stored)
            raise ModelFileError(f"{path}: would expand from {have} to {wanted}", RESAVE)
        yield PickledFile(path, file, tensors, found.left_out)


def _locate(name: str, written: str, view: TensorView, archive: Archive, path: Path) -> PickledTensor:
    """Find a tensor's bytes and check that it stays inside its storage."""
    piece = archive.pieces.get(view.storage.key)
    if piece is None:
        raise damaged(path, f"the numbers of the tensor {shown(name)} are missing")
    if view.dtype not in DTYPE_BYTES:
        raise ModelFileError(f"{path}: {shown(name)} is {view.dtype}, which safetensors cannot hold", RESAVE)
    width = DTYPE_BYTES[view.dtype]
    tensor = PickledTensor(name, written, view.dtype, view.shape, view.strides, piece, view.offset * width)
    last = view.offset + _span(tensor)
    if view.storage.nbytes != piece.size or last * width > piece.size:
        raise damaged(path, f"the tensor {shown(name)} reaches beyond its storage")
    return tensor


def _span(tensor: PickledTensor) -> int:
    """Elements from a tensor's first to its last in memory."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
