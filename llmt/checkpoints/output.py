"""Where a result goes: a directory of its own, that appears whole and replaces nothing unasked."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, publish_into, remove_abandoned, staged_directory
from llmt.checkpoints.casting import FloatName
from llmt.checkpoints.files import make_directory, storage_errors
from llmt.checkpoints.reading import open_inside, read_json
from llmt.errors import BusyOutputError

_OF_A_RUN = (layout.RUN_CONFIG, layout.LOCK, layout.STATE, layout.RESULT)


def folder_beside(source: Path, suffix: str) -> Path:
    """The folder or file beside `source` that has its name, without an ending, and `-SUFFIX`.

    An index of shards stands for the folder that it lies in.
    """
    if source.name.endswith(".index.json"):
        source = source.absolute().parent
    named = source if source.name not in ("", "..") else Path(os.path.realpath(source))
    return named.with_name(f"{named.name if source.is_dir() else named.stem}-{suffix}")


def require_free_output(output: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Refuse to write where something is, or where a source is.

    Args:
        output: The directory to write.
        sources: What is read; it has to stay.
        overwrite: Whether a model that stands there may be replaced; a run is more than a model.

    Raises:
        BusyOutputError: The directory is a file, a source, around one, or not empty.
    """
    for source in sources:
        _require_apart(output, source)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise BusyOutputError(
            f"{output}: is a file or a link, a directory is to be written", "name another --output-dir"
        )
    present = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if present and not overwrite:
        raise BusyOutputError(f"{output}: is not empty", "add --overwrite, or name another --output-dir")
    if present:
        _require_model(output, present)


def _require_model(output: Path, present: list[str]) -> None:
    """A directory with these names is a model, and no more than one."""
    if not any(map(layout.is_weight_file, present)):
        raise BusyOutputError(f"{output}: is no model, so --overwrite leaves it alone", "name another --output-dir")
    if run := [name for name in present if name in _OF_A_RUN or layout.parse_checkpoint_step(name) is not None]:
        raise BusyOutputError(
            f"{output}: is a run or its checkpoint ({run[0]}), so --overwrite leaves it alone",
            "name another --output-dir",
        )


def _require_apart(output: Path, source: Path) -> None:
    place = Path(os.path.realpath(output))
    # As it was named and as it really lies: a file may be a link out of the folder that is meant.
    read = [Path(os.path.realpath(source)), Path(os.path.realpath(source.parent), source.name)]
    if place in read or any(place in path.parents for path in read):
        where = "is the source itself" if place in read else f"holds the source {source}"
        raise BusyOutputError(f"{output}: {where}, and that is not touched", "name another --output-dir")


@contextmanager
def output_directory(
    output: Path, *, durable: bool, extra: Mapping[str, object] | None = None
) -> Iterator[StagedDirectory]:
    """Fill the directory that `require_free_output` allowed.

    A new one appears whole or not at all. Into one that exists the files are moved one by one, what makes them a model
    last; of the model that stood there nothing is left.

    Args:
        output: The directory to write.
        durable: Wait until the disk has it.
        extra: The caller's own fields of the manifest; None for a directory without a manifest.

    Raises:
        StorageError: The disk refused.
    """
    with storage_errors("creating a folder", output):
        make_directory(output.parent)
        remove_abandoned(output if output.is_dir() else output.parent)
    if output.is_dir():
        with publish_into(output, extra=extra, durable=durable, alone=True) as staged:
            yield staged
    else:
        with staged_directory(output, extra=extra, durable=durable) as staged:
            yield staged


def require_companions(directory: Path) -> None:
    """Refuse a small file that could not be copied, before anything large is written.

    Raises:
        ModelFileError: One is a link out of the directory, or not readable.
    """
    for name in companions(directory):
        open_inside(directory, name).close()


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
