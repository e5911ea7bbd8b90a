"""standard input -> a temporary file, so that it can be read as often as any other."""

import atexit
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import BinaryIO

from llmt.errors import StorageError
from llmt.text.compressed import unreadable

_READ_BYTES = 1 << 20


def spooled_input() -> Path:
    """The file that holds all of standard input; the first call in a process reads it, and waits for its end.

    The file is removed when the process ends.

    Raises:
        StorageError: Standard input cannot be read, or the temporary folder has no room for it.
    """
    return _spool(sys.stdin.buffer)


@cache
def _spool(stream: BinaryIO) -> Path:
    folder = Path(tempfile.gettempdir())
    try:
        number, name = tempfile.mkstemp(prefix="llmt-input-")
    except OSError as error:
        raise _no_room(folder, error) from error
    atexit.register(Path(name).unlink, missing_ok=True)
    with os.fdopen(number, "wb", buffering=0) as target:
        while content := _read(stream):
            try:
                while content:
                    content = content[target.write(content) :]
            except OSError as error:
                raise _no_room(folder, error) from error
    return Path(name)


def _read(stream: BinaryIO) -> bytes:
    try:
        return stream.read(_READ_BYTES)
    except OSError as error:
        raise unreadable(Path("-"), error) from error


def _no_room(folder: Path, error: OSError) -> StorageError:
    reason = error.strerror or error
    return StorageError(
        f"-: standard input cannot be kept in {folder}: {reason}", "make room there, or set TMPDIR to another folder"
    )
