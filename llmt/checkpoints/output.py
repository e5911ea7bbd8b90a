"""Where a result goes: a directory of its own, that appears whole and replaces nothing unasked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, staged_directory
from llmt.checkpoints.casting import FloatName
from llmt.checkpoints.files import storage_errors
from llmt.checkpoints.reading import read_json
from llmt.errors import BusyOutputError


def folder_beside(source: Path, suffix: str) -> Path:
    """The folder beside `source` that has its name, without an ending, and `-SUFFIX`."""
    named = source if source.name not in ("", "..") else Path(os.path.realpath(source))
    return named.with_name(f"{named.name if source.is_dir() else named.stem}-{suffix}")


def require_free_output(output: Path, source: Path, overwrite: bool) -> None:
    """Refuse to write where something is, or where the source is.

    Args:
        output: The directory to write.
        source: What is read; it has to stay.
        overwrite: Whether a model that stands there may be replaced.

    Raises:
        BusyOutputError: The directory is a file, the source, around it, or not empty.
    """
    place, read = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if place == read or place in read.parents:
        where = "is the source itself" if place == read else f"holds the source {source}"
        raise BusyOutputError(f"{output}: {where}, and that is not touched", "name another --output-dir")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise BusyOutputError(
            f"{output}: is a file or a link, a directory is to be written", "name another --output-dir"
        )
    present = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if not present:
        return
    if not overwrite:
        raise BusyOutputError(f"{output}: is not empty", "add --overwrite, or name another --output-dir")
    if not any(map(layout.is_weight_file, present)):
        raise BusyOutputError(f"{output}: is no model, so --overwrite leaves it alone", "name another --output-dir")


@contextmanager
def output_directory(output: Path, *, durable: bool) -> Iterator[StagedDirectory]:
    """Fill the directory that `require_free_output` allowed; it appears whole or not at all.

    Args:
        output: The directory to write. An empty one, or the model that stands there, is replaced.
        durable: Wait until the disk has it.

    Raises:
        StorageError: The disk refused. What was there stays.
    """
    with storage_errors("creating a folder", output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with staged_directory(output, extra=None, replace=output.is_dir(), durable=durable) as staged:
        yield staged


def companions(directory: Path) -> tuple[str, ...]:
    """The small files of `directory` that a model needs besides its weights, by name."""
    return tuple(name for name in layout.COMPANIONS if (directory / name).is_file())


def copy_companions(staged: StagedDirectory, directory: Path, dtype: FloatName | None = None) -> None:
    """Copy the companions of weights as they are; but a `config.json` names the dtype that the weights have now.

    Args:
        staged: Where to.
        directory: Where from.
        dtype: What the weights were converted to; None where they were not.

    Raises:
        ModelFileError: One cannot be read.
        StorageError: The disk refused.
    """
    for name in companions(directory):
        if dtype is not None and name == layout.CONFIG_FILE:
            values = read_json(directory, name)
            values.pop("torch_dtype", None)
            staged.write_json(name, {**values, "dtype": dtype})
            continue
        staged.copy_file(directory, name)
