"""Two sets of weight files -> do they hold the same model? Neither torch nor much memory is needed."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from llmt.checkpoints.header import TensorInfo, parse_header
from llmt.checkpoints.pickled import open_pickled
from llmt.checkpoints.reading import FETCH_AGAIN, read_errors, read_exactly, shown
from llmt.checkpoints.weightfiles import WeightFiles
from llmt.errors import ModelFileError

_PIECE = 2**18


@dataclass(frozen=True)
class _Held:
    """One tensor: what it is, and its bytes; `place` is equal for tied ones."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]
    place: object


def disagreement(left: WeightFiles, right: WeightFiles) -> str | None:
    """How two sets of weight files differ, or None where they hold the same tensors, byte for byte.

    A tensor that is tied to another may stand in one of them alone.

    Raises:
        ModelFileError: A file is damaged or unsafe.
    """
    with ExitStack() as stack:
        ours, theirs = _open(stack, left), _open(stack, right)
        for one, other, file in ((ours, theirs, right.names[0]), (theirs, ours, left.names[0])):
            tied = {held.place for name, held in one.items() if name in other}
            lacking = sorted(name for name, held in one.items() if name not in other and held.place not in tied)
            if lacking:
                return f"{file} has no {shown(lacking[0])}"
        for name in sorted(ours.keys() & theirs.keys()):
            if not _equal(ours[name], theirs[name]):
                return f"{shown(name)} is not the same in both"
    return None


def _open(stack: ExitStack, files: WeightFiles) -> dict[str, _Held]:
    held: dict[str, _Held] = {}
    for name, path in zip(files.names, files.paths, strict=True):
        if files.format == "safetensors":
            file = stack.enter_context(files.open(name))
            for info in parse_header(file, path).tensors.values():
                pieces = partial(_pieces, file, path, info)
                held[info.name] = _Held(info.dtype, info.shape, pieces, info)
        else:
            source = stack.enter_context(open_pickled(path, files.open(name)))
            for tensor in source.tensors:
                pieces = partial(source.read, tensor)
                held[tensor.name] = _Held(tensor.dtype, tensor.shape, pieces, (path, tensor.place))
    return held


def _pieces(file: FileIO, path: Path, info: TensorInfo) -> Iterator[memoryview]:
    for begin in range(info.begin, info.end, _PIECE):
        buffer = memoryview(bytearray(min(_PIECE, info.end - begin)))
        with read_errors(path):
            try:
                read_exactly(file, begin, buffer)
            except EOFError as error:
                raise ModelFileError(f"{path}: it became shorter while it was read", FETCH_AGAIN) from error
        yield buffer


def _equal(left: _Held, right: _Held) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return _digest(left) == _digest(right)


def _digest(held: _Held) -> bytes:
    """A hash, since the two sides come in pieces of different lengths."""
    digest = hashlib.sha256()
    for piece in held.pieces():
        digest.update(piece)
    return digest.digest()
