"""Processes that run a function of llmt, and messages through their pipes.

Not `multiprocessing`: its spawned processes import the caller's main module again, which a script without a guard
does not survive, and forked ones inherit the threads of libraries half dead.
"""

import json
import signal
import subprocess
import sys
from typing import IO

from llmt.errors import DataError, LlmtError, OutOfMemoryError

_LENGTH = 8
_KILLED = -getattr(signal, "SIGKILL", signal.SIGTERM)
_NEW_GROUP = 0
if sys.platform == "win32":
    _NEW_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP
_PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from importlib import import_module
import_module(sys.argv[2]).serve(*sys.argv[3:])"""


def start_child(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a process that calls the function `serve` of a module.

    It is of its own group: Ctrl-C reaches this process alone, which ends the other. Its standard input and output
    are pipes; `serve` returns when the input ends, so that nothing outlives a parent that was killed.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        creationflags=_NEW_GROUP,
    )


def death(setting: str, number: int, status: int, hint: str) -> LlmtError:
    """The error for a worker that ended before its time.

    Args:
        setting: The setting that asked for workers, which stands first in the message.
        number: Of the worker, from 1.
        status: What it ended with; minus the signal's number where a signal ended it.
        hint: How to do without workers.
    """
    if status == _KILLED:  # on Linux the system ends a process so where memory runs out
        reason = f"signal {-status}, maybe since memory ran out"
        return OutOfMemoryError(f"{setting}: worker {number} died ({reason})", hint)
    reason = f"signal {-status}" if status < 0 else f"exit code {status}"
    return DataError(f"{setting}: worker {number} died ({reason})", hint)


def send(pipe: IO[bytes] | None, data: bytes) -> None:
    """Send one message: eight bytes of length and the content.

    Raises:
        OSError: Nobody reads any more.
    """
    assert pipe is not None
    pipe.write(len(data).to_bytes(_LENGTH, "little"))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> bytes | None:
    """The next message, or None at the end, expected or not."""
    assert pipe is not None
    head = pipe.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    length = int.from_bytes(head, "little")
    data = pipe.read(length)
    return data if len(data) == length else None
