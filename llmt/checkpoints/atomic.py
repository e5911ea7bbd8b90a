"""files -> a directory that is whole or absent.

The protocol: a folder under a temporary name, each file forced to the disk, a manifest last, the folder
forced to the disk, a rename, the parent forced to the disk. A process that dies at any point leaves what was
there before.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.files import (
    Content,
    FileRecord,
    NewFile,
    flush,
    fsync_directory,
    new_file,
    storage_errors,
    write_file,
)
from llmt.checkpoints.manifest import encode_manifest, hash_file, read_manifest
from llmt.checkpoints.reading import open_inside, read_errors
from llmt.errors import ModelFileError

_PIECE = 2**20
_OWNER = re.compile(r"-([0-9]{1,9})-[0-9a-f]{8}$", re.ASCII)


class StagedDirectory:
    """A folder under a temporary name, being filled.

    Files arrive through `write_file`, or are written into `path` by others (a tokenizer that saves itself);
    the latter are hashed and forced to the disk when the folder is published. Only plain files, no folders.
    """

    def __init__(self, path: Path, *, hashed: bool, durable: bool = True) -> None:
        self.path = path
        self._hashed = hashed
        self._durable = durable
        self._records: dict[str, FileRecord] = {}

    def write_file(self, name: str, content: Content) -> None:
        """Write the file `name`; see `files.write_file`.

        Raises:
            StorageError: The disk refused, or the name is taken.
        """
        self._records[name] = write_file(self.path / name, content, hashed=self._hashed)

    @contextmanager
    def new_file(self, name: str, size: int | None = None) -> Iterator[NewFile]:
        """Write the file `name` piece by piece; see `files.new_file`.

        Raises:
            StorageError: The disk refused, or the name is taken.
        """
        with new_file(self.path / name, hashed=self._hashed, size=size, durable=self._durable) as file:
            yield file
        self._records[name] = file.record

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Write `value` as the JSON file `name`.

        Raises:
            ValueError: `value` holds what JSON cannot, NaN and infinity among it.
            StorageError: The disk refused, or the name is taken.
        """
        self.write_file(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def copy_file(self, directory: Path, name: str) -> None:
        """Write a copy of the file `name` of another directory, in constant memory.

        Raises:
            ModelFileError: It cannot be read.
            StorageError: The disk refused, or the name is taken.
        """
        with open_inside(directory, name) as file, read_errors(directory / name):
            self.write_file(name, iter(lambda: file.read(_PIECE) or b"", b""))

    def names(self) -> list[str]:
        """The names of all files that lie in the folder now, sorted."""
        return sorted(path.name for path in self.path.iterdir())

    def complete(self, extra: Mapping[str, object] | None) -> None:
        """Adopt what others wrote, write the manifest last unless `extra` is None, force all to the disk."""
        for name in self.names():
            if name not in self._records:
                self._adopt(name)
        if extra is not None:
            write_file(self.path / layout.MANIFEST, encode_manifest(self._records, extra))
        if self._durable:
            fsync_directory(self.path)

    def _adopt(self, name: str) -> None:
        path = self.path / name
        if not path.is_file() or path.is_symlink():
            raise ValueError(f"{name}: only plain files can be published")
        if os.name == "posix":
            # Some writers use mode 0600 whatever the umask; the record's own folder says what the umask
            # allows.
            path.chmod(path.parent.stat().st_mode & 0o666)
        descriptor = os.open(path, os.O_RDWR)
        try:
            flush(descriptor)
        finally:
            os.close(descriptor)
        self._records[name] = hash_file(self.path, name) if self._hashed else FileRecord(path.stat().st_size, "")


@contextmanager
def staged_directory(
    target: Path, *, extra: Mapping[str, object] | None, replace: bool = False, durable: bool = True
) -> Iterator[StagedDirectory]:
    """Fill a new directory; it appears as `target` when the body is done, whole, or not at all.

    Args:
        target: Its final path, in a folder that exists.
        extra: The caller's own fields of the manifest; None for a directory without a manifest.
        replace: Whether a directory that is already there may be replaced. It is renamed to `.del-...` until the
            new one stands in its place, and removed then.
        durable: Wait for the disk, so that the directory survives a power failure.

    Raises:
        StorageError: `target` exists, or the disk refused. Nothing new is left behind, and what was there stays.
    """
    with _staging(target.parent, target.name, hashed=extra is not None, durable=durable) as staged:
        yield staged
        with storage_errors("publishing", target):
            staged.complete(extra)
            old = None
            if os.path.lexists(target):
                if not replace:
                    raise FileExistsError(errno.EEXIST, "something is already there")
                old = _aside(target, layout.DELETED_PREFIX)
            try:
                if old is not None:
                    target.rename(old)
                    fsync_directory(target.parent)
                staged.path.rename(target)
            except OSError:
                if old is not None and not os.path.lexists(target):
                    old.rename(target)
                raise
            if durable:
                fsync_directory(target.parent)
            if replace:  # what a process left that was killed while it replaced, too
                for left in _replaced(target):
                    remove(left)


def _replaced(target: Path) -> list[Path]:
    """What stood at `target` and was renamed."""
    prefix = f"{layout.DELETED_PREFIX}{target.name}-"
    beside = [path for path in target.parent.iterdir() if path.name.startswith(prefix)]
    return [path for path in beside if len(path.name) == len(prefix) + 8]


def remove_abandoned(parent: Path) -> None:
    """Remove temporary folders in `parent` whose process is gone: a killed one leaves them behind.

    Raises:
        OSError: The disk refused.
    """
    for path in sorted(parent.glob(f"{layout.TEMPORARY_PREFIX}*")):
        owner = _OWNER.search(path.name)
        if owner is not None and path.is_dir() and not path.is_symlink() and not _lives(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether a process of this number runs; where the system cannot tell without harm, it is taken to."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def set_aside(path: Path, prefix: str) -> Path:
    """Rename a file or folder to `PREFIX-NAME-RANDOM` beside it, durably, and return its new path.

    Raises:
        OSError: The disk refused.
    """
    new = _aside(path, prefix)
    path.rename(new)
    fsync_directory(path.parent)
    return new


def _aside(path: Path, prefix: str) -> Path:
    return path.with_name(f"{prefix}{path.name}-{secrets.token_hex(4)}")


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file, or a link (not what it leads to).

    Raises:
        OSError: The disk refused.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def publish_into(
    root: Path, *, extra: Mapping[str, object] | None, durable: bool = True, alone: bool = False
) -> Iterator[StagedDirectory]:
    """Fill a finished model; its files replace those of `root`, one by one, when the body is done.

    Files of an earlier model that the new one does not overwrite are removed, since a loader might pick
    them up: its weights and, if the new model has a manifest, those that the earlier one lists. The old
    manifest goes first and the new one comes last: without a verifying manifest, `root` is not finished.

    Args:
        root: An existing folder. Its other files stay.
        extra: The caller's own fields of the manifest; None for a model without a manifest.
        durable: Wait for the disk.
        alone: The small files of the earlier model, such as its tokenizer, go too.

    Raises:
        StorageError: The disk refused. Nothing half-written is left under a final name.
    """
    with _staging(root, "model", hashed=extra is not None, durable=durable) as staged:
        yield staged
        with storage_errors("publishing", root):
            staged.complete(extra)
            names = sorted(staged.names(), key=_publishing_order)
            stale = _stale_files(root, names) | (set(layout.COMPANIONS) - set(names) if alone else set())
            _replace_files(staged, root, names, stale, durable=durable)
            if durable:
                fsync_directory(root)


def _replace_files(staged: StagedDirectory, root: Path, names: list[str], stale: set[str], *, durable: bool) -> None:
    # First what makes the old files a model: a kill from here on leaves no model rather than a mixed one.
    for name in (layout.MANIFEST, layout.MODEL_INDEX, layout.PICKLED_INDEX, layout.CONFIG_FILE):
        if name in names or name in stale:
            (root / name).unlink(missing_ok=True)
    if durable:  # in this order on the disk too: a configuration never stands beside the weights of two models
        fsync_directory(root)
    weights = [name for name in names if _publishing_order(name)[0] < 3]
    for name in weights:
        (staged.path / name).replace(root / name)
    for name in stale:
        (root / name).unlink(missing_ok=True)
    if durable:
        fsync_directory(root)
    for name in names[len(weights) :]:
        (staged.path / name).replace(root / name)


def _stale_files(root: Path, names: Sequence[str]) -> set[str]:
    """Files of an earlier model in `root` that the files `names` do not overwrite."""
    stale = {layout.MANIFEST}
    if layout.MANIFEST in names:
        try:
            earlier = read_manifest(root)
        except ModelFileError:  # what it listed cannot be known any more
            earlier = None
        stale |= set(earlier.files) if earlier else set()
        if (
            layout.TOKENIZER_FILE not in names
        ):  # a model that is saved without its tokenizer keeps the one that is there
            stale -= set(layout.COMPANIONS)
    adapters = {name for name in names if name.startswith("adapter_")}
    if any(layout.is_weight_file(name) for name in names):
        present = {path.name for path in root.iterdir() if layout.is_weight_file(path.name)}
        # An adapter may lie on its base. A whole model has none, and a loader would put it on.
        stale |= {name for name in present if name.startswith("adapter_")} if adapters else present
        stale |= set() if adapters else {layout.ADAPTER_CONFIG}
    return stale - set(names)


def _publishing_order(name: str) -> tuple[int, str]:
    """Shards, then what points at them, then what makes it a model, then what makes it finished."""
    last = (layout.MODEL_INDEX, layout.PICKLED_INDEX, layout.CONFIG_FILE, layout.MANIFEST)
    return (last.index(name) + 1 if name in last else 0, name)


@contextmanager
def _staging(parent: Path, name: str, *, hashed: bool, durable: bool = True) -> Iterator[StagedDirectory]:
    path = parent / f"{layout.TEMPORARY_PREFIX}{name}-{os.getpid()}-{secrets.token_hex(4)}"
    with storage_errors("creating a folder", path):
        path.mkdir()
    try:
        yield StagedDirectory(path, hashed=hashed, durable=durable)
    finally:
        # After a rename nothing is there any more; after a failure everything has to go.
        shutil.rmtree(path, ignore_errors=True)
