"""One process per output directory."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.files import make_directory, storage_errors, write_text_atomic
from llmt.checkpoints.reading import read_json, shown
from llmt.errors import BusyOutputError, ModelFileError


@contextmanager
def output_lock(directory: Path) -> Iterator[str | None]:
    """Hold `directory`, which is made where it is missing, for this process alone.

    The lock is the system's own (flock, LockFileEx), so that it ends with the process however that ends: the
    lock of a dead process is free. Who holds it is written beside it, for the message.

    Yields:
        The process that held it last and could not say that it ended, since it was killed; None where all is well.

    Raises:
        BusyOutputError: Another process holds it; the message says which, where and since when.
        StorageError: The directory cannot be made or written.
    """
    from filelock import FileLock, Timeout

    with storage_errors("locking the output directory", directory):
        make_directory(directory)
        lock = FileLock(directory / layout.LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise BusyOutputError(
                f"{directory}: in use by {_owner(directory)}", "wait for it, or name another output directory"
            ) from None
    try:
        killed = _owner(directory) if (directory / layout.LOCK_OWNER).exists() else None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        write_text_atomic(directory / layout.LOCK_OWNER, json.dumps(owner) + "\n")
        yield killed
    finally:
        with storage_errors("unlocking the output directory", directory):
            (directory / layout.LOCK_OWNER).unlink(missing_ok=True)
            lock.release()


def _owner(directory: Path) -> str:
    try:
        owner = read_json(directory, layout.LOCK_OWNER)
    except ModelFileError:  # the other process is just starting, or another user's
        return "another process"
    pid, host, since = (shown(owner.get(key)).strip("'") for key in ("pid", "host", "since"))
    return f"process {pid} on {host} since {since}"
