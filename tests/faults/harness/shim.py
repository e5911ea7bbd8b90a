"""calls that change the disk -> counted, written down, and one of them struck.

`shim.c` sees the calls of every library in the process; where there is no C compiler, a hook over the functions
of `os` sees those of Python.
"""

import builtins
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

COUNT, KILL, ERROR, SHORT, FULL, TORN = range(6)
"""What happens at the call: nothing, SIGKILL, an error, half a write then a full disk, a full disk from then on,
half a write then SIGKILL."""

RETRIED = frozenset(("create", "empty", "open", "write", "fsync", "truncate", "allocate"))
"""Kinds of calls that a signal may interrupt (EINTR)."""


@dataclass(frozen=True)
class Call:
    """One call that was done.

    Attributes:
        kind: create, empty, open, write, truncate, allocate, fsync, chmod, rename, link, symlink, unlink, rmdir,
            mkdir, failed (it changed nothing), more (a further part of a write), or mark (a note of the program).
        path: What it changed; of a mark, its text.
        other: The new name of a rename or a link.
        offset: Where a write began; the size of a truncate.
        data: What was written, where it was asked for.
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


class Shim(Protocol):
    """What strikes; armed in a process of its own."""

    def arm(self, root: Path, at: int = 0, action: int = COUNT, error: int = errno.EIO) -> None:
        """From now on, do `action` at call number `at` of those under `root`."""
        ...

    def journal(self, descriptor: int, *, data: bool) -> None:
        """Write every call down there."""
        ...

    def mark(self, text: str) -> None:
        """Write a note of the program down among the calls."""
        ...


class Preloaded:
    """The shim of C, which this process was started with."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)

    def arm(self, root: Path, at: int = 0, action: int = COUNT, error: int = errno.EIO) -> None:
        self._library.fault_arm(os.fsencode(root), ctypes.c_long(at), action, error)

    def journal(self, descriptor: int, *, data: bool) -> None:
        self._library.fault_journal(descriptor, int(data))

    def mark(self, text: str) -> None:
        self._library.fault_mark(text.encode())


class Hooked:
    """The same over the functions of `os`; what libraries write by themselves is not seen."""

    def __init__(self) -> None:
        self._root, self._at, self._action, self._error = "", 0, COUNT, errno.EIO
        self._count, self._journal, self._data, self._starved = 0, -1, False, False
        self._write = os.write

    def arm(self, root: Path, at: int = 0, action: int = COUNT, error: int = errno.EIO) -> None:
        first = not self._root
        self._root, self._at, self._action, self._error = str(root), at, action, error
        self._count, self._starved = 0, False
        if first:
            self._install()

    def journal(self, descriptor: int, *, data: bool) -> None:
        self._journal, self._data = descriptor, data

    def mark(self, text: str) -> None:
        self._note("mark", text)

    def _note(self, kind: str, path: str, other: str = "", offset: int = 0, data: bytes = b"") -> None:
        if self._journal >= 0:
            data = data if self._data else b""
            self._write(self._journal, f"{kind}\t{path}\t{other}\t{offset}\t{len(data)}\n".encode() + data)

    @contextmanager
    def _noted(self, kind: str, path: str, other: str = "", offset: int = 0) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._note("failed", path, other)
            raise
        self._note(kind, path, other, offset)

    def _install(self) -> None:
        paths = {"unlink": "unlink", "remove": "unlink", "rmdir": "rmdir", "mkdir": "mkdir", "chmod": "chmod"}
        for name, kind in paths.items():
            setattr(os, name, self._on_path(getattr(os, name), kind))
        for name in ("rename", "replace"):
            setattr(os, name, self._renaming(getattr(os, name)))
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._on_descriptor(getattr(os, name), "fsync"))
        os.ftruncate = self._on_descriptor(os.ftruncate, "truncate")
        os.open = self._opening(os.open)
        os.write = self._writing(os.write)  # type: ignore[assignment]
        builtins.open = self._opening_text(builtins.open)  # type: ignore[assignment]

    def _strike(self, *, writes: bool = False, creates: bool = False) -> bool:
        """Whether only half of the write is to be done; raises where the call fails."""
        self._count += 1
        if (self._starved and writes) or (self._action == FULL and self._count >= self._at and (writes or creates)):
            raise OSError(self._error if not self._starved else errno.ENOSPC, "struck")
        if self._count != self._at:
            return False
        if self._action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._action == ERROR and self._error != errno.EINTR:  # Python retries what was interrupted
            raise OSError(self._error, "struck")
        return writes and self._action in (SHORT, TORN)

    def _full_path(self, path: Any, folder: int | None = None) -> str:
        base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        full = (
            os.path.join(base, os.fspath(path)) if not isinstance(path, int) else os.readlink(f"/proc/self/fd/{path}")
        )
        return full if full.startswith(self._root) else ""

    def _on_path(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def hooked(path: Any, *args: Any, **more: Any) -> Any:
            full = self._full_path(path, more.get("dir_fd"))
            if not full:
                return call(path, *args, **more)
            self._strike(creates=kind == "mkdir")
            with self._noted(kind, full):
                return call(path, *args, **more)

        return hooked

    def _renaming(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(source: Any, target: Any, **more: Any) -> Any:
            before, after = self._full_path(source), self._full_path(target)
            if not (before or after):
                return call(source, target, **more)
            self._strike(creates=True)
            with self._noted("rename", before, after):
                return call(source, target, **more)

        return hooked

    def _on_descriptor(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def hooked(descriptor: int, *args: int) -> Any:
            full = self._full_path(descriptor)
            if not full:
                return call(descriptor, *args)
            self._strike()
            with self._noted(kind, full, offset=args[0] if args else 0):
                return call(descriptor, *args)

        return hooked

    def _opening(self, call: Callable[..., int]) -> Callable[..., int]:
        def hooked(path: Any, flags: int, *args: Any, **more: Any) -> int:
            full = self._full_path(path, more.get("dir_fd"))
            if not full or not flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                return call(path, flags, *args, **more)
            fresh = bool(flags & os.O_CREAT) and not os.path.lexists(full)
            self._strike(creates=fresh)
            with self._noted("create" if fresh else "empty" if flags & os.O_TRUNC else "open", full):
                return call(path, flags, *args, **more)

        return hooked

    def _opening_text(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if isinstance(path, int) or mode.startswith("r") or not self._full_path(path):
                return call(path, mode, *args, **more)
            self._strike(creates=True)
            return call(path, mode, *args, **more)

        return hooked

    def _writing(self, call: Callable[..., int]) -> Callable[..., int]:
        def hooked(descriptor: int, data: Any) -> int:
            full = self._full_path(descriptor) if descriptor > 2 else ""
            if not full:
                return call(descriptor, data)
            half = self._strike(writes=True) and len(data) > 1
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            done = call(descriptor, memoryview(data)[: len(data) // 2] if half else data)
            self._note("write", full, offset=offset, data=bytes(memoryview(data)[:done]))
            if half and self._action == TORN:
                os.kill(os.getpid(), signal.SIGKILL)
            self._starved = half
            return done

        return hooked


_LIBRARY = "LLMT_FAULTS_SHIM"


def preload(scratch: Path) -> None:
    """Start this program again with the shim of C in it; without a C compiler, go on as it is."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if _LIBRARY in os.environ or compiler is None or sys.platform != "linux":
        return
    library = scratch / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("shim.c")), "-ldl"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return
    environment = {**os.environ, _LIBRARY: str(library), "LD_PRELOAD": str(library)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def find_shim() -> Shim:
    """The shim of this process; what it starts is started without it."""
    library = os.environ.pop(_LIBRARY, None)
    os.environ.pop("LD_PRELOAD", None)
    return Hooked() if library is None else Preloaded(library)


def read_journal(path: Path) -> list[Call]:
    """The calls that were written down, in order."""
    content, calls, at = path.read_bytes(), [], 0
    while at < len(content):
        end = content.index(b"\n", at)
        kind, name, other, offset, size = content[at:end].decode(errors="surrogateescape").split("\t")
        at = end + 1 + int(size)
        calls.append(Call(kind, name, other, int(offset), content[end + 1 : at]))
    return calls
