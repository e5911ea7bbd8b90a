"""A file that others wrote -> bytes, within bounds and inside its directory."""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from llmt.errors import ModelFileError
from llmt.units import format_size

MAX_JSON_BYTES = 64 * 2**20
PARALLEL = hasattr(os, "preadv") and hasattr(os, "pwrite")
"""Whether this system reads and writes at a place of a file without moving its position."""

FETCH_AGAIN = "download or convert it again"
RESAVE = "in the program that made it: torch.save(model.state_dict(), 'weights.pt'), then convert that"

_MAX_NAME = 255
_SURROGATE = re.compile("[\ud800-\udfff]")
# What JSON grows by when it is read: values, long numbers, wide characters.
_MAX_NODES = 1_200_000
_OPENERS = (b",", b"[", b"{")
_LONG_NUMBER = re.compile(rb"[0-9]{400}")
_MAX_WIDE = 4 * 2**20

# O_NONBLOCK: opening a planted pipe must not wait for its other end.
_READ = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


def shown(name: object) -> str:
    """A foreign name as it may stand in a message: quoted, escaped, at most 120 characters."""
    text = str(name)
    return ascii(text if len(text) <= 120 else text[:117] + "...")


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body into a `ModelFileError` that names `path`.

    Raises:
        ModelFileError: The body could not read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: does not exist", "check the path") from error
    except IsADirectoryError as error:
        raise ModelFileError(f"{path}: is a directory, a file was expected", "name the file") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelFileError(f"{path}: cannot be read: {reason}", "check the file and its permissions") from error


def open_file(path: Path) -> FileIO:
    """Open the regular file that `path`, named by the user, leads to; unbuffered, for reading.

    Raises:
        ModelFileError: Missing, not a regular file, or not readable.
    """
    with read_errors(path):
        return _open_regular(os.path.realpath(path), path)


def open_inside(directory: Path, name: str) -> FileIO:
    """Open the regular file `name` that lies directly in `directory`; a link out of it is refused.

    The one link that is followed is that of a Hugging Face cache, whose `snapshots/REVISION/` files are links
    into the `blobs/` folder beside `snapshots/`.

    Raises:
        ModelFileError: `name` is not a plain file name, or the file is missing, a link or not readable.
    """
    if not is_plain_name(name):
        raise ModelFileError(f"{directory}: the file name {shown(name)} leaves the directory", FETCH_AGAIN)
    path = directory / name
    with read_errors(path):
        if path.is_symlink():
            # realpath, unlike resolve, leaves a link to itself as it is.
            target, folder = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
            if folder.parent.name != "snapshots" or target.parent != folder.parent.parent / "blobs":
                raise ModelFileError(f"{path}: is a link out of its directory", "replace it by the file itself")
            return _open_regular(str(target), path)
        return _open_regular(str(path), path)


def is_plain_name(name: str) -> bool:
    """Whether `name` is one path component on every system: no separator, drive, `.` or `..`, and not too long."""
    if not name or name in (".", "..") or set(name) & set("/\\:\0"):
        return False
    return len(name.encode("utf-8", "replace")) <= _MAX_NAME and not _SURROGATE.search(name)


def _open_regular(target: str, path: Path) -> FileIO:
    """Open `target`, which the user knows as `path`."""
    descriptor = os.open(target, _READ)
    file = FileIO(descriptor, "rb")
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise ModelFileError(f"{path}: is not a regular file", "name a file")
    return file


def read_exactly(file: FileIO, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from `offset` of `file`; from several threads at once where `PARALLEL`.

    Raises:
        EOFError: The file ends before the buffer is full.
        OSError: The disk refused.
    """
    done = 0
    if not PARALLEL:
        file.seek(offset)
    while done < len(buffer):
        rest = buffer[done:]
        count = os.preadv(file.fileno(), (rest,), offset + done) if PARALLEL else file.readinto(rest)
        if not count:
            raise EOFError
        done += count


def file_size(file: FileIO) -> int:
    """Bytes in an open file."""
    return os.fstat(file.fileno()).st_size


def read_json(directory: Path, name: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, object]:
    """The JSON object in the file `name` of `directory`.

    Raises:
        ModelFileError: Missing, larger than `max_bytes`, or not one JSON object with unique keys.
    """
    path = directory / name
    with open_inside(directory, name) as file, read_errors(path):
        size = file_size(file)
        if size > max_bytes:
            limit = format_size(max_bytes)
            raise ModelFileError(f"{path}: {format_size(size)} of JSON, the limit is {limit}", FETCH_AGAIN)
        data = bytearray()
        # A loop, because a raw read may return less than what is there.
        while part := file.read(size + 1 - len(data)):
            data += part
    return parse_json(data, path)


def parse_json(data: bytes | bytearray, path: Path) -> dict[str, object]:
    """The JSON object in `data`; two equal keys in one object are an error, not a choice.

    Raises:
        ModelFileError: Not one JSON object with unique keys; `path` is named.
    """
    if sum(map(data.count, _OPENERS)) > _MAX_NODES or _LONG_NUMBER.search(data):
        raise ModelFileError(f"{path}: more JSON than any such file needs", FETCH_AGAIN)
    if len(data) > _MAX_WIDE and not data.isascii():
        raise ModelFileError(f"{path}: {format_size(len(data))} of JSON that is not plain ASCII", FETCH_AGAIN)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ModelFileError(f"{path}: not valid JSON: {reason}", FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: holds JSON, but not an object", FETCH_AGAIN)
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found
