""".pt, .pth, .bin -> safetensors, byte by byte, without torch."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from llmt.checkpoints import layout
from llmt.checkpoints.casting import FloatName, cast_dtype
from llmt.checkpoints.copying import WORKERS, Placed, verify_tensors, write_tensors
from llmt.checkpoints.detect import find_weights
from llmt.checkpoints.dtypes import DTYPE_BYTES
from llmt.checkpoints.files import require_free_space
from llmt.checkpoints.header import encode_header, file_order, read_header
from llmt.checkpoints.metadata import with_dtype
from llmt.checkpoints.output import (
    companions,
    copy_companions,
    folder_beside,
    output_directory,
    require_companions,
    require_free_output,
)
from llmt.checkpoints.pickled import PickledFile, PickledTensor, open_pickled
from llmt.checkpoints.reading import FETCH_AGAIN, read_json, shown
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE, ShardPlan, index_json, plan_shards
from llmt.checkpoints.weightfiles import WeightFiles
from llmt.errors import ModelFileError, StorageError

_PREFERRED = "model.embed_tokens.weight"


@dataclass(frozen=True)
class ConvertPlan:
    """What is to be converted into what.

    Attributes:
        source: The files, and what their index says.
        output: The directory to write.
        file: The name of a single weight file, from which those of shards are made.
        max_shard_size: Bytes of tensors in a file.
        dtype: What floating numbers become; None keeps them.
        verify: Read the result back before it is published.
        dry_run: Write nothing.
    """

    source: WeightFiles
    output: Path
    file: str
    max_shard_size: int = DEFAULT_SHARD_SIZE
    dtype: FloatName | None = None
    verify: bool = True
    dry_run: bool = False


@dataclass(frozen=True)
class ConvertProgress:
    """How far a conversion is: bytes written and read back, of how many, and the file under way."""

    done: int
    total: int
    file: str


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did, or would do; always its last event.

    Attributes:
        output: The directory of the result.
        files: The weight files by name, with their bytes of tensors; an index has 0.
        tensors: Their number.
        parameters: Their numbers.
        size: Bytes of all tensors.
        seconds: How long it took.
        tied: Each name that was left out, with the name that holds the same numbers.
        copied: Names of the files that were copied along.
        left_out: What else the source holds, such as an optimizer.
        too_large: Tensors that fill a file of their own, being larger than the limit.
        verified: Whether the result was read back and compared.
        checksums: Whether the source keeps checksums, so that its own damage is seen.
        written: False after a dry run.
    """

    output: Path
    files: Mapping[str, int]
    tensors: int
    parameters: int
    size: int
    seconds: float
    tied: Mapping[str, str]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    too_large: tuple[str, ...]
    verified: bool
    checksums: bool
    written: bool


ConvertEvent: TypeAlias = ConvertProgress | ConvertReport
_Chosen: TypeAlias = dict[str, tuple[PickledFile, PickledTensor]]


@dataclass(frozen=True)
class _File:
    """A file to write: its header, and the tensors behind it."""

    name: str
    header: bytes
    placed: tuple[Placed, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.header) + sum(item.nbytes for item in self.placed)


def convert_to_safetensors(
    source: Path,
    output: Path | None = None,
    *,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    dtype: FloatName | None = None,
    verify: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Iterator[ConvertEvent]:
    """Write the weights of PyTorch files as safetensors; the source is not touched. Reports as it goes.

    The model appears in `output` whole or not at all. Nothing in the source is executed. Like `cp`, it does not wait
    until the disk has everything.

    Args:
        source: A file of `torch.save`, or a directory with one, or with the shards of one model.
        output: Where to write. By default the folder beside the source that has its name and `-safetensors`.
        max_shard_size: Bytes of tensors per file.
        dtype: What floating numbers become; None keeps them.
        verify: Compare the result with the source, name by name and byte by byte, before it is published.
        overwrite: Replace a model that stands there already.
        dry_run: Look at everything but the numbers, and write nothing.

    Raises:
        ModelFileError: The source is missing, damaged, unsafe or ambiguous.
        BusyOutputError: `output` is the source, or not empty.
        StorageError: The disk refused, or the result is not what was written.
    """
    found = find_weights(source, "pytorch")
    output = output or folder_beside(source, "safetensors")
    require_free_output(output, [source, *found.paths], overwrite)
    require_companions(found.directory)
    name = layout.ADAPTER_MODEL if found.names == (layout.PICKLED_ADAPTER,) else layout.MODEL_FILE
    yield from run_conversion(ConvertPlan(found, output, name, max_shard_size, dtype, verify, dry_run))


def run_conversion(plan: ConvertPlan) -> Iterator[ConvertEvent]:
    """Execute a plan; events and errors as `convert_to_safetensors`."""
    start = time.monotonic()
    with ExitStack() as stack:
        opened = [stack.enter_context(open_pickled(path, plan.source.open(path.name))) for path in plan.source.paths]
        chosen, tied = _choose_tensors(plan.source, opened)
        sizes = {name: _size(tensor, plan.dtype) for name, (_, tensor) in chosen.items()}
        shards = plan_shards(sizes, plan.max_shard_size, plan.file)
        files = [_lay_out(plan, name, [chosen[member] for member in names]) for name, names in shards.files.items()]
        if not plan.dry_run:
            yield from _write(plan, shards, files)
    yield ConvertReport(
        output=plan.output,
        files={
            **{file.name: sum(item.nbytes for item in file.placed) for file in files},
            **({f"{plan.file}.index.json": 0} if len(files) > 1 else {}),
        },
        tensors=len(chosen),
        parameters=sum(math.prod(tensor.shape) for _, tensor in chosen.values()),
        size=shards.total_size,
        seconds=time.monotonic() - start,
        tied=tied,
        copied=companions(plan.source.directory),
        left_out=tuple(dict.fromkeys(name for file in opened for name in file.left_out)),
        too_large=tuple(name for name, size in sizes.items() if size > plan.max_shard_size),
        verified=plan.verify and not plan.dry_run,
        checksums=all(file.checked for file in opened),
        written=not plan.dry_run,
    )


def _choose_tensors(source: WeightFiles, opened: list[PickledFile]) -> tuple[_Chosen, dict[str, str]]:
    """Each tensor with the file that holds it, tied ones once; and the names left out for the names kept."""
    named: _Chosen = {}
    for file in opened:
        for tensor in file.tensors:
            if tensor.name in named:
                raise ModelFileError(f"{file.path}: {shown(tensor.name)} is in another file too", FETCH_AGAIN)
            named[tensor.name] = (file, tensor)
    if source.listed is not None:
        held = {tensor.written: file.path.name for file, tensor in named.values()}
        differing = sorted(name for name, _ in held.items() ^ source.listed.items())
        if differing:
            index = source.directory / layout.PICKLED_INDEX
            raise ModelFileError(f"{index}: it and its files disagree about {shown(differing[0])}", FETCH_AGAIN)
    return _once(named) if _may_tie(source) else (named, {})


def _once(named: _Chosen) -> tuple[_Chosen, dict[str, str]]:
    """Of tied tensors one, the embedding before any other; and the names left out for the names kept."""
    keepers: dict[tuple[object, ...], str] = {}
    for name, (file, tensor) in named.items():
        if name == _PREFERRED or (file, tensor.place) not in keepers:
            keepers[file, tensor.place] = name
    chosen, tied = {}, {}
    for name, (file, tensor) in named.items():
        keeper = keepers[file, tensor.place]
        if keeper == name or not tensor.nbytes:
            chosen[name] = (file, tensor)
        else:
            tied[name] = keeper
    return chosen, tied


def _may_tie(source: WeightFiles) -> bool:
    """Whether a reader of the result would find a tensor that is left out: not where the configuration ties nothing."""
    if not (source.directory / layout.CONFIG_FILE).is_file():
        return True
    values = read_json(source.directory, layout.CONFIG_FILE)
    # Llamas are not tied unless they say so; of others, silence may mean either.
    return bool(values.get("tie_word_embeddings", values.get("model_type") not in ("llama", "mistral")))


def _size(tensor: PickledTensor, dtype: FloatName | None) -> int:
    return math.prod(tensor.shape) * DTYPE_BYTES[cast_dtype(tensor.dtype, dtype)]


def _lay_out(plan: ConvertPlan, name: str, tensors: list[tuple[PickledFile, PickledTensor]]) -> _File:
    by_name = {tensor.name: (file, tensor) for file, tensor in tensors}
    order = file_order((tensor.name, cast_dtype(tensor.dtype, plan.dtype), tensor.shape) for _, tensor in tensors)
    header = encode_header(order, with_dtype(plan.source.metadata, plan.dtype))
    placed, begin = [], len(header)
    for member, dtype, _ in order:
        placed.append(Placed(*by_name[member], dtype, begin))
        begin += placed[-1].nbytes
    return _File(name, header, tuple(placed))


def _write(plan: ConvertPlan, shards: ShardPlan, files: list[_File]) -> Iterator[ConvertProgress]:
    require_free_space(plan.output, shards.total_size)
    total, done = shards.total_size * (2 if plan.verify else 1), 0
    with output_directory(plan.output, durable=False) as staged:
        for first in range(0, len(files), WORKERS):
            some = files[first : first + WORKERS]
            with ExitStack() as stack:
                opened = [stack.enter_context(staged.new_file(file.name, file.size)) for file in some]
                for file, output in zip(some, opened, strict=True):
                    output.write(file.header)
                for count in write_tensors([(output, file.placed) for file, output in zip(some, opened, strict=True)]):
                    done += count
                    yield ConvertProgress(done, total, some[0].name)
            for file in some if plan.verify else ():
                for count in _verify(staged.path / file.name, file):
                    done += count
                    yield ConvertProgress(done, total, file.name)
        if len(files) > 1:
            index = index_json(shards, with_dtype(plan.source.metadata, plan.dtype))
            staged.write_file(f"{plan.file}.index.json", index.encode())
        copy_companions(staged, plan.source.directory, plan.dtype)


def _verify(path: Path, file: _File) -> Iterator[int]:
    """The header as any reader finds it, then the bytes."""
    found = {name: (info.dtype, info.shape, info.begin) for name, info in read_header(path).tensors.items()}
    expected = {item.tensor.name: (item.dtype, item.tensor.shape, item.begin) for item in file.placed}
    if found != expected:
        raise StorageError(f"{path}: its header was not written as planned", "check the disk")
    yield from verify_tensors(path, file.placed)
