"""safetensors -> .bin files, for programs that read nothing else."""

import time
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.agree import disagreement
from llmt.checkpoints.files import require_free_space
from llmt.checkpoints.output import (
    companions,
    copy_companions,
    folder_beside,
    output_directory,
    require_companions,
    require_free_output,
)
from llmt.checkpoints.saving import save_weights
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE
from llmt.checkpoints.weightfiles import WeightFiles
from llmt.checkpoints.weights import open_weights
from llmt.errors import StorageError


@dataclass(frozen=True)
class PytorchReport:
    """What was written.

    Attributes:
        output: The directory.
        files: Names of the weight files and their index.
        tensors: Number of tensors.
        parameters: Their numbers.
        size: Bytes of all tensors.
        seconds: How long it took.
        copied: Names of the files that were copied along.
    """

    output: Path
    files: tuple[str, ...]
    tensors: int
    parameters: int
    size: int
    seconds: float
    copied: tuple[str, ...]


def convert_to_pytorch(
    source: Path, output: Path | None = None, *, max_shard_size: int = DEFAULT_SHARD_SIZE, overwrite: bool = False
) -> PytorchReport:
    """Write the weights of safetensors files as `pytorch_model.bin`; the source is not touched.

    The result is read back and compared byte by byte before it is published. It appears whole or not at all.

    Args:
        source: A model directory, one safetensors file, or the index of shards.
        output: Where to write. By default the folder beside the source that has its name and `-pytorch`.
        max_shard_size: Bytes of tensors per file.
        overwrite: Replace a model that stands there already.

    Raises:
        ModelFileError: The source is missing, damaged or unsafe.
        BusyOutputError: `output` is the source, or not empty.
        StorageError: The disk refused.
    """
    start = time.monotonic()
    output = output or folder_beside(source, "pytorch")
    with open_weights(source, "safetensors") as reader:
        require_free_output(output, [source, *reader.files.paths], overwrite)
        require_companions(reader.files.directory)
        tensors = dict(reader.tensors(mapped=True))
        size = sum(tensor.nbytes for tensor in tensors.values())
        require_free_space(output, size)
        with output_directory(output, durable=True) as staged:
            adapter = reader.files.names == (layout.ADAPTER_MODEL,)
            names = save_weights(
                staged,
                tensors,
                save_format="pytorch",
                max_shard_size=max_shard_size,
                metadata=reader.metadata,
                single=layout.PICKLED_ADAPTER if adapter else layout.PICKLED_MODEL,
            )
            written = tuple(name for name in names if not name.endswith(".json"))
            if difference := disagreement(reader.files, WeightFiles("pytorch", staged.path, written)):
                raise StorageError(f"{output}: was not written as it was read: {difference}", "check the disk")
            copy_companions(staged, reader.files.directory)
    return PytorchReport(
        output=output,
        files=tuple(names),
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        size=size,
        seconds=time.monotonic() - start,
        copied=companions(reader.files.directory),
    )
