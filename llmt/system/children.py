"""Processes that run a function of llmt, and messages through their pipes.

Not `multiprocessing`: its spawned processes import the caller's main module again, which a script without a guard
does not survive, and forked ones inherit the threads of libraries half dead.
"""

import json
import subprocess
import sys
from typing import IO

_LENGTH = 8
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
