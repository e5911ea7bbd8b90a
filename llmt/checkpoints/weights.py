"""Weight files -> tensors, of either format: names and shapes first, then the numbers, one tensor at a time.

Files that a manifest lists are read into memory of their own and compared with it on the way. Others may be mapped,
which costs nothing until a number is used, and ends the process if somebody else cuts the file meanwhile.
"""

import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.archive import Piece
from llmt.checkpoints.detect import find_weights
from llmt.checkpoints.files import FileRecord
from llmt.checkpoints.header import Header, TensorInfo, parse_header
from llmt.checkpoints.layout import Format
from llmt.checkpoints.manifest import Manifest, hash_file, read_manifest
from llmt.checkpoints.pickled import PickledFile, PickledTensor, open_pickled
from llmt.checkpoints.reading import FETCH_AGAIN, PARALLEL, read_errors, read_exactly, shown
from llmt.checkpoints.torch_dtypes import DTYPES
from llmt.checkpoints.weightfiles import WeightFiles
from llmt.errors import ModelFileError

_AHEAD = 3
_WORKERS = 2 if PARALLEL else 1

Named: TypeAlias = Iterator[tuple[str, Tensor]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Described:
    """A tensor that was not read yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightReader:
    """Open weight files, made by `open_weights`.

    Attributes:
        files: Which they are.
        described: The tensors by name.
        metadata: Text that was saved with them.
    """

    files: WeightFiles
    described: Mapping[str, Described]
    metadata: Mapping[str, str]
    _read: Callable[[torch.dtype | None, bool], Named] = field(repr=False)

    def tensors(self, dtype: torch.dtype | None = None, *, mapped: bool = False) -> Named:
        """Names and CPU tensors, of which one or two are in memory beside those that were taken.

        Args:
            dtype: What floating numbers become; None keeps them.
            mapped: Map what no manifest lists, and needs no conversion, instead of reading it.

        Raises:
            ModelFileError: Damaged, once the last one was asked for; use none of them before.
        """
        return self._read(dtype, mapped)


@contextmanager
def open_weights(path: Path, wanted: Format | None = None) -> Iterator[WeightReader]:
    """Open the weight files that `path` means; see `detect` for the rule.

    Args:
        path: A model directory, a weight file, or the index of shards.
        wanted: Take this format alone.

    Raises:
        ModelFileError: Missing, damaged, unsafe, or several that differ.
    """
    files = find_weights(path, wanted)
    manifest = read_manifest(files.directory)
    if manifest is not None and not files.named:
        _require_listed(files, manifest)
    records = {name: manifest.files.get(name) if manifest is not None else None for name in files.names}
    with ExitStack() as stack:
        if files.format == "safetensors":
            yield _open_safetensors(stack, files, records)
        else:
            yield _open_pickled(stack, files, records)


def _require_listed(files: WeightFiles, manifest: Manifest) -> None:
    """The weights that a manifest lists are there: what stands beside them is not taken in their place."""
    listed = [name for name in manifest.files if layout.is_weight_file(name)]
    missing = [name for name in listed if not (files.directory / name).exists()]
    if missing:
        raise ModelFileError(f"{files.directory}: damaged: {missing[0]} is missing", FETCH_AGAIN)


def _open_safetensors(stack: ExitStack, files: WeightFiles, records: Mapping[str, FileRecord | None]) -> WeightReader:
    opened: list[tuple[FileIO, Path, Header, FileRecord | None]] = []
    described: dict[str, Described] = {}
    metadata = dict(files.metadata)
    for name in files.names:
        path = files.directory / name
        file = stack.enter_context(files.open(name))
        header = parse_header(file, path)
        _check_index(files, name, header.tensors.keys())
        described |= {info.name: Described(DTYPES[info.dtype], info.shape) for info in header.tensors.values()}
        metadata = {**header.metadata, **metadata}
        opened.append((file, path, header, records[name]))

    def read(dtype: torch.dtype | None, mapped: bool) -> Named:
        for file, path, header, record in opened:
            if mapped and record is None:
                yield from _map(file, path, header, dtype)
            else:
                yield from _read_file(file, path, header, record, dtype)

    return WeightReader(files, described, metadata, read)


def _check_index(files: WeightFiles, name: str, held: Iterable[str]) -> None:
    """Names first: nothing large is read from a shard that does not fit its index."""
    if files.listed is None:
        return
    differing = sorted({tensor for tensor, file in files.listed.items() if file == name} ^ set(held))
    if differing:
        index = layout.MODEL_INDEX if files.format == "safetensors" else layout.PICKLED_INDEX
        count = f"{len(differing)} tensors, {shown(differing[0])} among them"
        raise ModelFileError(f"{files.directory / index}: it and {name} disagree about {count}", FETCH_AGAIN)


def _map(file: FileIO, path: Path, header: Header, dtype: torch.dtype | None) -> Named:
    with read_errors(path):
        # A private copy: what training writes stays in memory.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    for info in header.tensors.values():
        kind = DTYPES[info.dtype]
        convert = dtype is not None and kind.is_floating_point and kind != dtype
        if convert or info.begin % kind.itemsize or info.begin == info.end:
            yield info.name, _cast(_shaped(_read_tensor(file, path, info), info), dtype)
        else:
            yield info.name, _shaped(whole[info.begin : info.end], info)


def _read_file(file: FileIO, path: Path, header: Header, record: FileRecord | None, dtype: torch.dtype | None) -> Named:
    infos = list(header.tensors.values())
    digest = hashlib.sha256()
    if record is not None:
        head = bytearray(infos[0].begin if infos else record.size)
        _fill(file, path, 0, memoryview(head))
        digest.update(head)
    # The tensors cover the rest of the file in this order.
    jobs = (partial(_read_tensor, file, path, info) for info in infos)
    for info, flat in zip(infos, _ordered(jobs), strict=True):
        if record is not None:
            digest.update(flat.numpy().data)
        yield info.name, _cast(_shaped(flat, info), dtype)
    if record is not None and digest.hexdigest() != record.sha256:
        raise ModelFileError(f"{path}: damaged: sha256 is not that of the manifest", FETCH_AGAIN)


def _ordered(jobs: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """The results of jobs in their order, a few of them computed ahead in threads."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: deque[Future[_T]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_tensor(file: FileIO, path: Path, info: TensorInfo) -> Tensor:
    flat = torch.empty(info.end - info.begin, dtype=torch.uint8)
    _fill(file, path, info.begin, flat.numpy().data)
    return flat


def _fill(file: FileIO, path: Path, begin: int, buffer: memoryview) -> None:
    with read_errors(path):
        try:
            read_exactly(file, begin, buffer)
        except EOFError as error:
            raise ModelFileError(f"{path}: it became shorter while it was read", FETCH_AGAIN) from error


def _shaped(flat: Tensor, info: TensorInfo) -> Tensor:
    return flat.view(DTYPES[info.dtype]).reshape(info.shape)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _open_pickled(stack: ExitStack, files: WeightFiles, records: Mapping[str, FileRecord | None]) -> WeightReader:
    opened: list[PickledFile] = []
    described: dict[str, Described] = {}
    for name in files.names:
        path = files.directory / name
        if (record := records[name]) is not None and hash_file(files.directory, name) != record:
            raise ModelFileError(f"{path}: damaged: sha256 is not that of the manifest", FETCH_AGAIN)
        file = stack.enter_context(open_pickled(path, files.open(name)))
        _check_index(files, name, [tensor.written for tensor in file.tensors])
        described |= {tensor.name: Described(DTYPES[tensor.dtype], tensor.shape) for tensor in file.tensors}
        opened.append(file)

    def read(dtype: torch.dtype | None, mapped: bool) -> Named:
        for file in opened:
            yield from _read_pickled(file, dtype)

    return WeightReader(files, described, dict(files.metadata), read)


def _read_pickled(file: PickledFile, dtype: torch.dtype | None) -> Named:
    groups: dict[Piece, list[PickledTensor]] = {}
    for tensor in file.tensors:
        groups.setdefault(tensor.storage, []).append(tensor)
    jobs = (partial(_read_storage, file, storage) for storage in groups)
    for members, flat in zip(groups.values(), _ordered(jobs), strict=True):
        made: dict[object, Tensor] = {}
        for tensor in members:
            if tensor.place not in made:
                made[tensor.place] = _cast(_view(flat, tensor), dtype)
            yield tensor.name, made[tensor.place]


def _read_storage(file: PickledFile, storage: Piece) -> Tensor:
    flat = torch.empty(storage.size, dtype=torch.uint8)
    file.read_storage(storage, flat.numpy().data)
    return flat


def _view(flat: Tensor, tensor: PickledTensor) -> Tensor:
    """A tensor with memory of its own, unless it is all of its storage."""
    typed = flat[tensor.offset :]
    typed = typed[: len(typed) - len(typed) % DTYPES[tensor.dtype].itemsize]
    if tensor.offset % DTYPES[tensor.dtype].itemsize:
        typed = typed.clone()
    view = typed.view(DTYPES[tensor.dtype]).as_strided(tensor.shape, tensor.strides)
    return view if tensor.whole else view.clone(memory_format=torch.contiguous_format)


def load_weights(source: Path, wanted: Format | None = None) -> dict[str, Tensor]:
    """Read all tensors of a model directory, or of one weight file, into memory.

    Args:
        source: A directory, a weight file, or the index of shards; see `detect` for what a directory means.
        wanted: Take this format alone.

    Returns:
        CPU tensors by name, in the dtype of the file, each with memory of its own unless they are tied.

    Raises:
        ModelFileError: Missing, damaged or unsafe; the file is named.
    """
    with open_weights(source, wanted) as reader:
        return dict(reader.tensors())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of one safetensors file into memory.

    Raises:
        ModelFileError: Missing or damaged.
    """
    return load_weights(path, "safetensors")
