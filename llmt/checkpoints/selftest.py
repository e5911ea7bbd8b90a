"""a folder -> does its file system keep what checkpoints rely on? It is tried, not looked up."""

import errno
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory
from llmt.checkpoints.files import require_free_space, storage_errors, write_text_atomic
from llmt.checkpoints.lock import output_lock
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import BusyOutputError, LlmtError

SECONDS = 12.0
"""How long processes are killed; the rest takes a few seconds on a usual disk."""

KILLS = 12
FLIPS = 10

_NEEDED = 64_000_000
_WEIGHTS = 2**18
# From the first checkpoint of a process to its end: some saves on a fast disk, a part of one on a slow one.
_LONGEST = 0.25
_ANSWER_SECONDS = 10.0
_HELD, _BUSY = b"held\n", b"busy\n"

Start: TypeAlias = Callable[..., "subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: What.
        status: `ok`; `warn` where less is kept than elsewhere; `fail` where checkpoints are not safe.
        detail: What was seen.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


class _Broken(Exception):  # noqa: N818 - never leaves this module
    """The file system did not do what it has to; the text says what was seen."""


def try_folder(directory: Path, start: Start, seconds: float = SECONDS) -> Iterator[Finding]:
    """Try what checkpoints rely on in a new folder inside `directory`, which is removed afterwards.

    Args:
        directory: A folder on the file system in question.
        start: Starts a process that calls `serve` of a module with arguments, as `llmt.system.children` does.
        seconds: About how long to kill processes.

    Raises:
        StorageError: Nothing can be written there.
    """
    with _playground(directory) as place:
        yield _tried("rename", lambda: _rename(place))
        yield _tried("fsync", lambda: _fsync(place))
        yield _tried("lock", lambda: _lock(place / "lock", start))
        yield _tried("flipped bit", lambda: _flipped(place / "flips"))
        yield _tried("kill", lambda: _kill(place / "kills", start, seconds))


def serve(task: str, directory: str, step: str = "0") -> None:
    """What the other process does: `lock` says whether it got the lock and holds it; `save` saves until it is killed.

    Args:
        task: One of the two.
        directory: Where.
        step: Of the last checkpoint that is there.
    """
    folder = Path(directory)
    if task == "save":
        _save_for_ever(folder, int(step))
        return
    try:
        with output_lock(folder):
            _say(_HELD)
            os.read(0, 1)  # until the input ends
    except BusyOutputError:
        _say(_BUSY)


def _save_for_ever(folder: Path, step: int) -> None:
    store = CheckpointStore(folder)
    while True:
        step += 1
        store.save(step, _fill)
        store.retain(2)
        try:
            _say(f"{step}\n".encode())
        except OSError:  # nobody listens any more
            return


def _say(line: bytes) -> None:
    os.write(1, line)


@contextmanager
def _playground(directory: Path) -> Iterator[Path]:
    with storage_errors("trying the file system", directory):
        if not directory.is_dir():
            kind = errno.ENOTDIR if directory.exists() else errno.ENOENT
            raise OSError(kind, os.strerror(kind))
        require_free_space(directory, _NEEDED, "trying the file system", files=100)
        place = Path(tempfile.mkdtemp(prefix=f"{layout.TEMPORARY_PREFIX}selftest-", dir=directory))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _tried(name: str, attempt: Callable[[], Finding]) -> Finding:
    """What an attempt found; what it raised is a failure too."""
    try:
        return attempt()
    except LlmtError as error:
        return Finding(name, "fail", error.message)
    except (_Broken, OSError, NotImplementedError) as error:  # the last where there are no locks
        return Finding(name, "fail", str(error))


def _rename(place: Path) -> Finding:
    path, texts = place / "text", ("old\n" * 1000, "new\n" * 1000)
    write_text_atomic(path, texts[0])
    if os.name == "posix":
        with path.open(encoding="utf-8") as before:
            write_text_atomic(path, texts[1])
            if before.read() != texts[0]:
                raise _Broken("who had a file open while it was replaced does not read the old one to its end")
    else:  # a file that is open cannot be replaced there
        write_text_atomic(path, texts[1])
    if path.read_text(encoding="utf-8") != texts[1]:
        raise _Broken("a file that was replaced still has its old content")
    folder, renamed = place / "folder", place / "renamed"
    folder.mkdir()
    path.rename(folder / "text")
    folder.rename(renamed)
    if folder.exists() or (renamed / "text").read_text(encoding="utf-8") != texts[1]:
        raise _Broken("a folder that was renamed is not whole under its new name")
    return Finding("rename", "ok", "files are replaced and folders renamed as a whole")


def _fsync(place: Path) -> Finding:
    with (place / "forced").open("wb", buffering=0) as file:
        file.write(b"x" * _WEIGHTS)
        began = time.perf_counter()
        os.fsync(file.fileno())
        spent = time.perf_counter() - began
    detail = f"a file is forced to the disk in {1000 * spent:.1f} ms"
    if os.name != "posix":
        return Finding("fsync", "warn", f"{detail}; folders cannot be forced on this system")
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return Finding("fsync", "warn", f"{detail}; folders cannot be forced on this file system")
    finally:
        os.close(descriptor)
    return Finding("fsync", "ok", f"{detail}, a folder too; only a power failure shows whether the disk keeps its word")


def _lock(place: Path, start: Start) -> Finding:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _try_lock(place, start)
    if any("flock" in str(one.message) for one in said):
        detail = "the file system has no locks: a file stands for one, and after a power failure it may stay"
        return Finding("lock", "warn", detail)
    return Finding("lock", "ok", "one process holds it, and that of a killed one is free")


def _try_lock(place: Path, start: Start) -> None:
    with output_lock(place), _other(start, "lock", place) as (_, first):
        if first != _BUSY:
            raise _Broken("a second process got the lock that the first one holds")
    with _other(start, "lock", place) as (process, first):
        if first != _HELD:
            raise _Broken("a process did not get a lock that was free")
        if not _is_busy(place):
            raise _Broken("a lock that another process holds was given away")
        process.kill()
        process.wait()
    if _is_busy(place):
        raise _Broken("the lock of a process that was killed is still held")


def _is_busy(place: Path) -> bool:
    try:
        with output_lock(place):
            return False
    except BusyOutputError:
        return True


def _flipped(place: Path) -> Finding:
    store = CheckpointStore(place)
    store.save(1, _fill)
    for _ in range(FLIPS):
        path = store.save(2, _fill)
        at = random.randrange(_WEIGHTS)
        with (path / layout.MODEL_FILE).open("r+b", buffering=0) as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << random.randrange(8)]))
        damaged: list[str] = []
        found = store.latest(damaged.append)
        if found is None or found.step != 1 or len(damaged) != 1:
            raise _Broken(f"a bit of byte {at} was flipped, and the checkpoint was taken for whole")
    return Finding("flipped bit", "ok", f"each of {FLIPS} was found, and the checkpoint before it taken")


def _kill(place: Path, start: Start, seconds: float) -> Finding:
    store, began = CheckpointStore(place), time.monotonic()
    kills = saved = 0
    while kills < KILLS and (not kills or time.monotonic() - began < seconds):
        newest = saved
        with _other(start, "save", place, str(saved)) as (process, first):
            if not first:
                raise _Broken(f"a process saved nothing within {_ANSWER_SECONDS:.0f} seconds, or ended")
            time.sleep(random.uniform(0, _LONGEST))
            process.kill()
            assert process.stdout is not None
            said = [line for line in (first + process.stdout.read()).split(b"\n") if line]
            newest = int(said[-1])
        saved = _newest(store, newest)
        kills += 1
    detail = f"{kills} processes were killed while they saved, {saved} checkpoints in all; the newest was always whole"
    return Finding("kill", "ok", detail)


def _newest(store: CheckpointStore, said: int) -> int:
    """The step of the newest whole checkpoint, after a kill and what the next process cleans up."""
    damaged: list[str] = []
    store.clean()
    found = store.latest(damaged.append, rename=False)
    if damaged:
        raise _Broken(f"after a kill {damaged[0]}")
    if found is None or found.step < said:
        there = "none" if found is None else f"step {found.step}"
        raise _Broken(f"step {said} was said to be saved, and the newest whole checkpoint after a kill is {there}")
    return found.step


def _fill(staged: StagedDirectory) -> None:
    staged.write_file(layout.MODEL_FILE, os.urandom(_WEIGHTS))
    staged.write_json(layout.STATE, {"of": "llmt doctor --selftest"})


@contextmanager
def _other(start: Start, task: str, place: Path, *more: str) -> "Iterator[tuple[subprocess.Popen[bytes], bytes]]":
    """Another process and the first line that it says, empty where it says none; afterwards it is gone."""
    process = start(__name__, task, str(place), *more)
    assert process.stdin is not None
    assert process.stdout is not None
    late = threading.Timer(_ANSWER_SECONDS, process.kill)
    late.start()
    try:
        first = process.stdout.readline()
        late.cancel()
        yield process, first
    finally:
        late.cancel()
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
