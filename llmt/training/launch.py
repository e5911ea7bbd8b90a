"""one command -> several processes of it, which end together.

Processes are numbered from 0. Nothing here imports torch.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO

from llmt.errors import Interrupted, LlmtError, PeerLostError
from llmt.system.memory import physical_cores
from llmt.training.signals import STOP_SIGNALS, handled_by, signal_name
from llmt.training.worker import LAUNCHED, SETTLING

GRACE = 5.0
"""Seconds to end after a failure elsewhere, and again after SIGTERM."""

_POLL = 0.02
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
_LOST = PeerLostError.exit_code
_SHOWN_BYTES = 1 << 16
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}

# A worker ends with its parent, however that ends: its standard input ends then, and on Linux the kernel sees to it
# even where the worker is stopped.
_PROGRAM = """import ctypes, json, os, runpy, signal, sys, threading
def watch(pipe=os.dup(0)):
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))
if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
"""


@dataclass
class _Worker:
    """One of the processes.

    Attributes:
        rank: Its number.
        process: It.
        said: What it wrote to stderr; None for the first, which writes to ours.
        code: How it ended; None while it runs.
        ended_by_us: It was told to end since another failed.
    """

    rank: int
    process: subprocess.Popen[bytes]
    said: IO[bytes] | None
    code: int | None = None
    ended_by_us: bool = False

    @property
    def signum(self) -> int:
        """The signal that ended it; 0 where none did."""
        return max(-(self.code or 0), 0)

    @property
    def failed(self) -> bool:
        """It ended with an error of its own: neither a signal, nor a stop, nor for want of the others."""
        stops = (128 + signum for signum in STOP_SIGNALS)
        return self.code is not None and self.code > 0 and self.code not in (_LOST, *stops)

    def errors(self) -> tuple[str, str]:
        """The last error that it printed, and its hint."""
        if self.said is None:
            return "", ""
        self.said.seek(max(self.said.seek(0, os.SEEK_END) - _SHOWN_BYTES, 0))
        lines = self.said.read().decode("utf-8", "replace").splitlines()
        error = next((line for line in reversed(lines) if line.startswith("error: ")), "")
        hint = next((line for line in reversed(lines) if line.startswith("hint: ")), "") if error else ""
        last = next((line for line in reversed(lines) if line.strip()), "")
        return error.removeprefix("error: ") or last.strip(), hint.removeprefix("hint: ")


def launch(
    num_processes: int, arguments: Sequence[str], *, timeout: float, hint: str = "", module: str = "llmt"
) -> int:
    """Run a command line of llmt in several processes of this machine, to the end of all of them.

    Signals that ask to stop are passed on. The first process has our stdout and stderr; what the others say is only
    shown where one of them is what the run ended by.

    Args:
        num_processes: How many.
        arguments: What follows `llmt`.
        timeout: Seconds that they wait for each other.
        hint: What to type when one is lost.
        module: What to run instead of llmt.

    Returns:
        The exit code that they agreed on.

    Raises:
        Interrupted: They were stopped before they listened to signals.
        LlmtError: One of them failed alone; with its exit code.
        PeerLostError: One of them was killed, or did not answer.
    """
    crew = _Crew(timeout, hint)
    with _passed_on(crew):
        try:
            crew.start(num_processes, [module, *arguments])
            while crew.running():
                time.sleep(_POLL)
                crew.look()
            return crew.outcome()
        finally:
            crew.kill()


class _Crew:
    """The processes of one run.

    Args:
        timeout: Seconds that they wait for each other.
        hint: What to type when one is lost.
    """

    def __init__(self, timeout: float, hint: str) -> None:
        self._timeout = timeout
        self._hint = hint
        self._workers: list[_Worker] = []
        self._ends: list[_Worker] = []
        self._failed_at: float | None = None
        self._main_done_at: float | None = None
        self._asked: int | None = None

    def start(self, number: int, arguments: Sequence[str]) -> None:
        """Start a module with its arguments in each; the first has our output."""
        shared = {**_settings(number), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
        program = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), *arguments]
        for rank in range(number):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), LAUNCHED: "1"}
            said = tempfile.TemporaryFile() if rank else None  # noqa: SIM115 - `kill` closes it
            process = subprocess.Popen(
                program, env=shared | own, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL if rank else None,
                stderr=said, start_new_session=True,
            )  # fmt: skip
            self._workers.append(_Worker(rank, process, said))
        if self._asked is not None:
            self.signal(self._asked)

    def running(self) -> list[_Worker]:
        """Those that have not ended."""
        return [worker for worker in self._workers if worker.code is None]

    def signal(self, signum: int) -> None:
        """Tell all to stop."""
        self._asked = self._asked or signum
        for worker in self.running():
            worker.process.send_signal(signum)

    def look(self) -> None:
        """See who has ended, and end the others where one of them failed and they do not end by themselves."""
        now = time.monotonic()
        for worker in self.running():
            worker.code = worker.process.poll()
            if worker.code is None:
                continue
            self._ends.append(worker)
            if worker.code and self._failed_at is None:
                self._failed_at = now
            if worker.rank == 0 and not worker.code:
                self._main_done_at = now
        if self._failed_at is not None:
            self._end_others(now - self._failed_at)
        elif self._main_done_at is not None and now - self._main_done_at > self._timeout:
            self._tell(_KILL)

    def _end_others(self, since: float) -> None:
        """What is due so many seconds after the first failure."""
        if all(worker.code == _LOST for worker in self._ends if worker.code):
            if since > SETTLING:  # who still waits then is who the others waited for
                self._tell(_KILL)
        elif since > GRACE:
            self._tell(_KILL if since > 2 * GRACE else signal.SIGTERM)

    def _tell(self, signum: int) -> None:
        for worker in self.running():
            if not worker.ended_by_us or signum == _KILL:
                worker.ended_by_us = True
                worker.process.send_signal(signum)

    def outcome(self) -> int:
        """How the run ended; see `launch`."""
        own = [worker for worker in self._ends if worker.code and not worker.ended_by_us]
        failed = [worker for worker in own if worker.failed]
        if failed:
            return self._failed(min(failed, key=lambda w: w.rank > 0))  # the first process has said why itself
        killed = [worker for worker in own if worker.signum not in (0, self._asked)]
        if killed:
            raise PeerLostError(f"{self._name(killed[0])} was ended by {_signal_name(killed[0].signum)}", self._hint)
        if self._asked is not None:
            return self._stopped(self._asked)
        if any(worker.code == _LOST for worker in own):
            raise self._hung()
        return own[0].code or 0 if own else 0

    def _failed(self, worker: _Worker) -> int:
        """The code of a process that failed by itself; what it said, where only we have read it."""
        assert worker.code is not None
        if worker.rank == 0:
            return worker.code
        said, hint = worker.errors()
        error = LlmtError(f"{self._name(worker)}: {said or f'ended with exit code {worker.code}'}", hint)
        error.exit_code = worker.code
        raise error

    def _stopped(self, signum: int) -> int:
        """The end that a signal asked for; the first process has said so, unless it was not listening yet."""
        code = self._workers[0].code
        if code is not None and code in (
            0,
            *(128 + stop for stop in STOP_SIGNALS),
        ):  # a second signal may be another one
            return code
        if code == _LOST and any(worker.ended_by_us for worker in self._ends):
            raise self._hung()
        raise Interrupted("stopped, and nothing new was saved", "the same command starts again", signum)

    def _hung(self) -> PeerLostError:
        """Who did not answer; where all gave up, what one of them said."""
        silent = [worker for worker in self._ends if worker.ended_by_us]
        if silent:
            name = self._name(silent[0])
            return PeerLostError(f"{name} did not answer for {self._timeout:g} s and was ended", self._hint)
        said = next((text for worker in self._workers if (text := worker.errors()[0])), "they lost each other")
        return PeerLostError(f"the processes ended: {said}", self._hint)

    def _name(self, worker: _Worker) -> str:
        return f"process {worker.rank} (of {len(self._workers)}, from 0)"

    def kill(self) -> None:
        """Leave nobody behind."""
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
            if worker.process.stdin is not None:
                worker.process.stdin.close()
            if worker.said is not None:
                worker.said.close()


@contextmanager
def _passed_on(crew: _Crew) -> Iterator[None]:
    """While the body runs, signals that ask to stop go to the crew; an ignored one stays ignored."""

    def handle(signum: int, frame: FrameType | None) -> None:
        crew.signal(signum)

    with handled_by(handle):
        yield


def _settings(number: int) -> dict[str, str]:
    """Our environment, and where the processes meet: at a free port, which nobody outside this machine reaches."""
    chosen = {"OMP_NUM_THREADS": str(max(physical_cores() // number, 1)), "TORCH_NCCL_BLOCKING_WAIT": "1"}
    if sys.platform in _LOOPBACK:
        chosen["GLOO_SOCKET_IFNAME"] = _LOOPBACK[sys.platform]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {**chosen, **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _signal_name(signum: int) -> str:
    name = signal_name(signum)
    return f"{name}, maybe since memory ran out" if name == "SIGKILL" else name
