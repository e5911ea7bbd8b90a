"""things to try -> each in a process of its own, some at a time.

The parent has imported everything and computed nothing with gradients, so that a child of it starts in
milliseconds and computes as a fresh process does.
"""

import ctypes
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LIMIT = 120.0
"""Seconds after which a child is taken to hang."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: Its exit code; -signal when a signal ended it.
        log: What it wrote to its standard streams.
        hung: It was killed since it took too long.
        seconds: How long it took.
    """

    code: int
    log: str
    hung: bool
    seconds: float

    @property
    def killed(self) -> bool:
        """SIGKILL ended it, and not for taking too long."""
        return self.code == -signal.SIGKILL and not self.hung

    @property
    def last_line(self) -> str:
        """The last thing it said: of a traceback, the error."""
        lines = self.log.strip().splitlines()
        return lines[-1][:200] if lines else ""


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def spawn(action: Callable[[], object], log: Path) -> int:
    """Start `action` in a child whose streams go to `log`; its number. An `int` of `action` is the exit code."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _die_with_parent()
        streams = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(streams, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        result = action()
        code = result if isinstance(result, int) else 0
    finally:  # a child must never go on with the program of its parent
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 0
        elif error is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, log: Path, limit: float = LIMIT) -> Ended:
    """Wait for a child, and kill it when it takes too long."""
    started = time.monotonic()
    hung = not _ends_within(child, limit)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), text, hung, time.monotonic() - started)


def _ends_within(child: int, limit: float) -> bool:
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(child)
        try:
            return bool(select.select([descriptor], [], [], limit)[0])
        finally:
            os.close(descriptor)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.005)
    return False


def run_child(action: Callable[[], object], log: Path, limit: float = LIMIT) -> Ended:
    """Run `action` in a child to its end."""
    return wait(spawn(action, log), log, limit)


def spread(items: Sequence[Item], work: Callable[[Item], Result], lanes: int) -> list[Result]:
    """`work` over all items, in `lanes` processes; the results in the order of the items.

    Raises:
        RuntimeError: The harness itself failed in a lane.
    """
    lanes = max(min(lanes, len(items)), 1)
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for lane in range(lanes):
            place = Path(folder, str(lane))

            def steps(lane: int = lane, place: Path = place) -> None:
                place.write_bytes(pickle.dumps([work(item) for item in items[lane::lanes]]))

            children.append(spawn(steps, place.with_suffix(".log")))
        results: dict[int, Result] = {}
        for lane, child in enumerate(children):
            ended = wait(child, Path(folder, f"{lane}.log"), 4 * 3600)
            if ended.code:
                raise RuntimeError(f"the harness failed: {ended.log}")
            found = pickle.loads(Path(folder, str(lane)).read_bytes())  # our own, of a moment ago
            results.update(zip(range(lane, len(items), lanes), found, strict=True))
    return [results[number] for number in range(len(items))]
