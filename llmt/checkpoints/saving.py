"""tensors -> weight files, of either format.

Written from memory, tensor by tensor, through `atomic`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory
from llmt.checkpoints.files import Content, NewFile, new_file, write_file
from llmt.checkpoints.header import encode_header, file_order
from llmt.checkpoints.layout import Format
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE, index_json, plan_shards
from llmt.checkpoints.torch_dtypes import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_weights(
    directory: Path | StagedDirectory,
    tensors: Mapping[str, Tensor],
    *,
    save_format: Format = "safetensors",
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    metadata: Mapping[str, str] | None = None,
    single: str | None = None,
) -> list[str]:
    """Write a model's tensors as `model.safetensors` or `pytorch_model.bin`, or as shards and their index.

    Args:
        directory: Where; a `StagedDirectory` also records the hashes. The names must not be taken.
        tensors: By parameter name, of any shape and device. Tied tensors are written as often as they are
            named: see `drop_tied`.
        save_format: Which kind of files.
        max_shard_size: Bytes of tensors per file.
        metadata: Text to keep with them: in the header of each file and in the index. Files of PyTorch have no
            header, so that there is always an index beside them.
        single: The name of a single file, from which those of shards are made; None takes that of a model.

    Returns:
        The names of the files written.

    Raises:
        StorageError: The disk refused.
        ValueError: A tensor that safetensors cannot hold (sparse, quantised, complex128).
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    single = single or (layout.MODEL_FILE if save_format == "safetensors" else layout.PICKLED_MODEL)
    plan = plan_shards(sizes, max_shard_size, single)
    for file, names in plan.files.items():
        members = {name: tensors[name] for name in names}
        if save_format == "safetensors":
            save_tensors(directory, file, members, metadata)
        else:
            _save_pickled(directory, file, members)
    if len(plan.files) == 1 and (save_format == "safetensors" or single == layout.PICKLED_ADAPTER):
        return list(plan.files)
    _write(directory, f"{single}.index.json", index_json(plan, metadata).encode())
    return [*plan.files, f"{single}.index.json"]


def _save_pickled(directory: Path | StagedDirectory, file: str, tensors: Mapping[str, Tensor]) -> None:
    """A file of `torch.save`; a view is written as the numbers it shows, not as the memory it looks at."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shown = {
        name: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        for name, tensor in plain.items()
    }
    opened = directory.new_file(file) if isinstance(directory, StagedDirectory) else new_file(directory / file)
    with opened as output:
        sink = _Sink(output)
        try:
            torch.save(shown, cast(IO[bytes], sink))
        except RuntimeError as error:
            # After a write that failed torch still ends its archive, and that fails in place of what the disk said.
            if sink.refusal is None:
                raise
            raise sink.refusal from error


class _Sink:
    """A file for `torch.save`, which wants to be told how much was written; keeps the first refusal of the disk."""

    def __init__(self, output: NewFile) -> None:
        self._output = output
        self.refusal: OSError | None = None

    def write(self, data: memoryview) -> int:
        try:
            self._output.write(data)
        except OSError as error:
            self.refusal = self.refusal or error
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


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
