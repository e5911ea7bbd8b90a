"""Tensors of PyTorch files -> their places in a safetensors file, and proof that they arrived.

Contiguous bytes go from file to file inside the kernel, some threads at a time; nothing of them passes through Python.
"""

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from llmt.checkpoints.archive import Piece
from llmt.checkpoints.casting import cast
from llmt.checkpoints.dtypes import DTYPE_BYTES
from llmt.checkpoints.files import NewFile, write_at
from llmt.checkpoints.pickled import PickledFile, PickledTensor
from llmt.checkpoints.reading import PARALLEL, open_file, read_errors, read_exactly, shown
from llmt.errors import ModelFileError, StorageError

WORKERS = min(4, os.cpu_count() or 1) if PARALLEL else 1
"""Threads that copy, and files that are open for it."""

_RANGE = 16 * 2**20
_PIECE = 2**18
# What the systems answer where two files cannot be copied inside the kernel.
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY)

Job = Callable[[], int]


@dataclass(frozen=True)
class Placed:
    """A tensor of a source, the dtype that it gets, and where its bytes begin in the new file."""

    file: PickledFile
    tensor: PickledTensor
    dtype: str
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return self.tensor.nbytes // DTYPE_BYTES[self.tensor.dtype] * DTYPE_BYTES[self.dtype]

    def pieces(self) -> Iterator[memoryview]:
        """The bytes that belong into the new file, one piece after another.

        Raises:
            ModelFileError: The source cannot be read, or a number does not fit the dtype.
        """
        for piece in self.file.read(self.tensor):
            try:
                yield cast(piece, self.tensor.dtype, self.dtype)
            except OverflowError as error:
                raise ModelFileError(
                    f"{self.file.path}: {shown(self.tensor.name)}: {error}", "leave --dtype out, or take bfloat16"
                ) from error


def write_tensors(outputs: Sequence[tuple[NewFile, Iterable[Placed]]]) -> Iterator[int]:
    """Write the tensors of several files to their places; yields the bytes that were written since the last time.

    Two files are written faster by two threads than by one; one file is not, since the system lets one write at a time.

    Raises:
        ModelFileError: A source cannot be read.
        OSError: The disk refused; `files.new_file` turns it into a `StorageError`.
    """
    yield from _run([_write_lane(output.fileno(), placed) for output, placed in outputs])


def verify_tensors(path: Path, placed: Sequence[Placed]) -> Iterator[int]:
    """Read a new file back and compare it with its sources; yields the bytes that were compared.

    A tensor that is a whole storage is compared through the CRC-32 that the source keeps of it; any other byte by
    byte, and its storage with that CRC-32.

    Raises:
        ModelFileError: A source is damaged.
        StorageError: The new file is not what was written.
    """
    partly = {(item.file, item.tensor.storage) for item in placed if not _by_checksum(item)}
    with open_file(path) as file:
        checks: list[Job] = [partial(_check, source, storage) for source, storage in partly]
        compared: list[Job] = [partial(_compare, file, path, item) for item in placed]
        yield from _run([[job] for job in (*checks, *compared)])


def _run(lanes: Sequence[Iterable[Job]]) -> Iterator[int]:
    """Do the jobs of some lanes at a time, those of one lane in their order; yields what each job returns."""
    done: SimpleQueue[int | None] = SimpleQueue()
    stopped = Event()

    def drive(lane: Iterable[Job]) -> None:
        try:
            for job in lane:
                if stopped.is_set():
                    return
                done.put(job())
        finally:
            done.put(None)

    with ThreadPoolExecutor(WORKERS) as pool:
        running = [pool.submit(drive, lane) for lane in lanes]
        ended = 0
        try:
            while ended < len(running):
                count = done.get()
                if count is None:
                    ended += 1
                    for lane in running:
                        if lane.done():
                            lane.result()
                else:
                    yield count
            for lane in running:
                lane.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _write_lane(target: int, placed: Iterable[Placed]) -> Iterator[Job]:
    for item in placed:
        yield from _write_jobs(target, item)


def _write_jobs(target: int, item: Placed) -> Iterator[Job]:
    if not item.tensor.contiguous or item.dtype != item.tensor.dtype:
        yield partial(_write_pieces, target, item)
        return
    for done in range(0, item.nbytes, _RANGE):
        yield partial(_copy, target, item, done, min(_RANGE, item.nbytes - done))


def _write_pieces(target: int, item: Placed) -> int:
    done = 0
    for piece in item.pieces():
        write_at(target, item.begin + done, piece)
        done += len(piece)
    return done


def _copy(target: int, item: Placed, first: int, size: int) -> int:
    """Copy `size` bytes of a tensor from its byte `first` on, inside the kernel where the system can."""
    begin, at, done = item.tensor.begin + first, item.begin + first, 0
    while done < size and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(item.file.fileno(), target, size - done, begin + done, at + done)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            break
        if not count:  # the source ended: reading says so
            break
        done += count
    for offset in range(done, size, _PIECE):
        piece = memoryview(bytearray(min(_PIECE, size - offset)))
        item.file.read_at(begin + offset, piece)
        write_at(target, at + offset, piece)
    return size


def _by_checksum(item: Placed) -> bool:
    return item.tensor.whole and item.tensor.storage.crc is not None and item.dtype == item.tensor.dtype


def _check(source: PickledFile, storage: Piece) -> int:
    source.check(storage)
    return 0


def _compare(file: FileIO, path: Path, item: Placed) -> int:
    buffer = memoryview(bytearray(_PIECE))
    equal, crc = True, 0
    if _by_checksum(item):
        for done in range(0, item.nbytes, _PIECE):
            piece = _read(file, path, item.begin + done, buffer[: min(_PIECE, item.nbytes - done)])
            crc = zlib.crc32(piece, crc)
        equal = crc == item.tensor.storage.crc
    else:
        done = 0
        for expected in item.pieces():
            for part in range(0, len(expected), _PIECE):
                wanted = expected[part : part + _PIECE]
                # Of two equal buffers only bytes-like objects that own their memory are compared at full speed.
                equal = equal and bytes(_read(file, path, item.begin + done, buffer[: len(wanted)])) == bytes(wanted)
                done += len(wanted)
    if not equal:
        item.file.check(item.tensor.storage)  # damage of the source is the more likely reason
        raise StorageError(f"{path}: {shown(item.tensor.name)} was not written as it was read", "check the disk")
    return item.nbytes


def _read(file: FileIO, path: Path, offset: int, buffer: memoryview) -> memoryview:
    with read_errors(path):
        try:
            read_exactly(file, offset, buffer)
        except EOFError as error:
            raise StorageError(f"{path}: became shorter while it was read back", "check the disk") from error
    return buffer
