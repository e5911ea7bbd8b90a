"""bytes -> one file on the disk. All that llmt writes goes through here or through `atomic`."""

import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llmt.checkpoints import layout
from llmt.errors import StorageError
from llmt.units import format_size

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Data: TypeAlias = bytes | bytearray | memoryview
Content: TypeAlias = Data | Iterable[Data]

# What only some systems have is zero elsewhere; O_EXCL alone already refuses an existing link.
_CREATE = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_HASHED_BESIDE, _MOST_UNHASHED = 1 << 18, 1 << 26
_MORE_ROOM = "free some space or choose another output directory"
_REASONS = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EFBIG: "the file is larger than the file system or the process limit allows",
    errno.EMFILE: "too many open files",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reported an input/output error",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "something is already there",
    errno.ENOTEMPTY: "something is already there",
    errno.ENOENT: "the folder does not exist",
}


@dataclass(frozen=True)
class FileRecord:
    """What a manifest knows about one file: bytes and hexadecimal SHA-256 (empty: not computed)."""

    size: int
    sha256: str


@contextmanager
def storage_errors(doing: str, path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` of the body into a `StorageError` in plain words.

    Args:
        doing: What the body does, as in "disk full while `doing`".
        path: Where.
        needed: Bytes that the body has to write, where known.

    Raises:
        StorageError: The body raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(doing, path, needed) from error
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"{doing} ({path}): {reason}", "choose another output directory") from error


def require_free_space(directory: Path, needed: int, what: str = "the output", files: int = 16) -> None:
    """Refuse before any work what does not fit where `directory` is or will be. A quota cannot be known beforehand.

    Args:
        directory: Where it is to be written.
        needed: Bytes of it.
        what: What is written, as in "there is not enough room for `what`".
        files: Files and folders of it, about.

    Raises:
        StorageError: Less than `needed` bytes are free, or the file system takes fewer files.
    """
    free, files_free = _free_space(directory), _free_files(directory)
    lacks = ""
    if free < needed:
        lacks = f"need {format_size(needed)}, free {format_size(free)}"
    elif files_free is not None and files_free < files:
        lacks = f"need about {files} more files and folders, and the file system takes {files_free}"
    if lacks:
        raise StorageError(
            f"there is not enough room for {what} ({directory}): {lacks}; nothing was written", _MORE_ROOM
        )


def _disk_full(doing: str, path: Path, needed: int | None) -> StorageError:
    need = f"need {format_size(needed)}, " if needed is not None else ""
    free = format_size(_free_space(path))
    return StorageError(f"disk full while {doing} ({path}): {need}free {free}", _MORE_ROOM)


def _free_space(path: Path) -> int:
    """Bytes free to this user on the disk of the nearest part of `path` that exists."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0


def _free_files(path: Path) -> int | None:
    """Files that this user may still make there; None where the file system has no fixed number of them."""
    if not hasattr(os, "statvfs"):
        return None
    for place in (path, *path.absolute().parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        return status.f_favail if status.f_files > 0 else None
    return None


class NewFile:
    """A file being written; made by `new_file`.

    Large pieces are hashed in a thread beside the writing.
    """

    def __init__(self, descriptor: int, *, hashed: bool) -> None:
        self._descriptor = descriptor
        self._digest = hashlib.sha256() if hashed else None
        self._hasher: Executor | None = None
        self._unhashed: deque[tuple[Future[None], int]] = deque()
        self._size = 0

    def write(self, data: Data, *, lasting: bool = False) -> None:
        """Append all of `data`, however often the system takes only a part.

        Args:
            data: The bytes.
            lasting: They stay as they are until the file is done, so that hashing them may end later.

        Raises:
            OSError: The disk refused; `new_file` turns it into a `StorageError`.
        """
        view = memoryview(data).cast("B")
        self._hash(view)
        self._size += len(view)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        finally:
            self._catch_up(_MOST_UNHASHED if lasting else 0)

    def _hash(self, view: memoryview) -> None:
        if self._digest is None:
            return
        if len(view) < _HASHED_BESIDE:
            self._catch_up(0)
            self._digest.update(view)
            return
        if self._hasher is None:
            from concurrent.futures import ThreadPoolExecutor

            self._hasher = ThreadPoolExecutor(1, thread_name_prefix="llmt-hash")
        self._unhashed.append((self._hasher.submit(self._digest.update, view), len(view)))

    def _catch_up(self, most: int) -> None:
        """Wait until no more than so many bytes are still to be hashed."""
        while sum(size for _, size in self._unhashed) > most:
            self._unhashed.popleft()[0].result()

    def close(self) -> None:
        """End what runs beside the writing; the descriptor stays open."""
        self._catch_up(0)
        if self._hasher is not None:
            self._hasher.shutdown()

    def fileno(self) -> int:
        """The descriptor of the open file, for what is written at a place of it: neither counted nor hashed."""
        return self._descriptor

    @property
    def record(self) -> FileRecord:
        """Size and SHA-256 of what was handed in so far."""
        self._catch_up(0)
        return FileRecord(self._size, "" if self._digest is None else self._digest.hexdigest())


def write_at(descriptor: int, offset: int, data: Data) -> None:
    """Write all of `data` at a place of an open file.

    Raises:
        OSError: The disk refused.
    """
    view = memoryview(data).cast("B")
    if not hasattr(os, "pwrite"):
        os.lseek(descriptor, offset, os.SEEK_SET)
    while view:
        count = os.pwrite(descriptor, view, offset) if hasattr(os, "pwrite") else os.write(descriptor, view)
        view, offset = view[count:], offset + count


@contextmanager
def new_file(path: Path, *, hashed: bool = True, size: int | None = None, durable: bool = True) -> Iterator[NewFile]:
    """Write a file that does not exist yet, and force it to the disk at the end; mode 0666 less the umask.

    Args:
        path: A name that is not taken. What exists is never overwritten, a link never followed.
        hashed: Compute the SHA-256 while writing.
        size: Bytes to come, where known, for the message of a full disk.
        durable: Wait for the disk. Without, the file is as safe as one that `cp` wrote.

    Raises:
        StorageError: The disk refused. What was written of the file is removed again.
    """
    with storage_errors("writing", path, size):
        descriptor = os.open(path, _CREATE, 0o666)
        done = False
        try:
            file = NewFile(descriptor, hashed=hashed)
            try:
                yield file
                if durable:
                    flush(descriptor)
            finally:
                file.close()
            done = True
        finally:
            os.close(descriptor)
            if not done:
                path.unlink(missing_ok=True)


def write_file(path: Path, content: Content, *, hashed: bool = True) -> FileRecord:
    """Write a new file from bytes, or from an iterable of them that need not fit in memory at once; see
    `new_file`. Each piece has to stay as it is until the file is done.

    Raises:
        StorageError: The disk refused.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        size, chunks = memoryview(content).nbytes, iter((content,))
    else:
        size, chunks = None, iter(content)
    with new_file(path, hashed=hashed, size=size) as file:
        for chunk in chunks:
            file.write(chunk, lasting=True)
    return file.record


def flush(descriptor: int) -> None:
    """Force a file to the disk itself, not only to the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:  # not every file system of macOS knows it
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def fsync_directory(directory: Path) -> None:
    """Force the names in `directory` to the disk, where the system can (Windows cannot open a folder).

    Raises:
        OSError: The disk refused.
    """
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know fsync of a folder; they order names themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a folder and those above it that are missing, so that they survive a power failure.

    Raises:
        OSError: The disk refused.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_directory(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` (UTF-8): a reader sees all of the old or all of the new.

    Raises:
        StorageError: The disk refused; the old file is untouched.
    """
    temporary = path.with_name(f"{layout.TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")
    write_file(temporary, text.encode())
    with storage_errors("replacing", path):
        try:
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to a log, in one write; a half line that a crash left behind is closed first.

    Raises:
        ValueError: `line` holds a line break.
        StorageError: The disk refused.
    """
    if "\n" in line or "\r" in line:
        raise ValueError("a line of a log cannot hold a line break")
    with storage_errors("appending a line", path), path.open("ab+", buffering=0) as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
