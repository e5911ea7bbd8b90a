"""one process of two -> killed or stopped at a random moment; then who is left, and whether one can go on.

The others have to end, the command has to exit with 11, and going on must end with the weights of a run of two
processes that nothing disturbed. Before that, what two processes compute and read is compared with one; see
`harness.together`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness import together
from harness.lab import SCRATCH, Lab, finished
from harness.lanes import LIMIT
from harness.verdicts import Family, Verdict, families

PROCESSES = 2
KILLS = 20
HANGS = 4
TIMEOUT = 15
"""Seconds that the processes wait for each other."""

SPARE = 2.0
"""Seconds beside the timeout in which all of them have to be gone."""

ALONE = 30.0
"""Seconds that they may do something alone, before they wait for one that is stopped."""

LOST = 11
COMMAND = (
    *SCRATCH, "--max-steps", "60", "--save-steps", "10", "--eval-steps", "20", "--logging-steps", "5",
    "--num-processes", str(PROCESSES), "--distributed-timeout", str(TIMEOUT),
)  # fmt: skip
RUN = Path("runs", "quickstart")


@dataclass(frozen=True)
class Fault:
    """Which process is struck, how, and when.

    Attributes:
        number: Of the fault.
        rank: Of the process.
        signum: SIGKILL or SIGSTOP.
        moment: Seconds after the start.
    """

    number: int
    rank: int
    signum: signal.Signals
    moment: float

    @property
    def what(self) -> str:
        """In a few words."""
        return f"{self.signum.name} to process {self.rank} after {self.moment:.1f} s"


def start(place: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A command line of llmt, in a process that a user could have started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMT_", "LD_PRELOAD"))}
    settings = {
        "HOME": str(place),
        "XDG_CACHE_HOME": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "llmt", *arguments], cwd=place, env=kept | settings,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


def workers(parent: int) -> dict[int, int]:
    """Number of the process in the run -> its process, of those that are there."""
    found = {}
    for child in _read(Path(f"/proc/{parent}/task/{parent}/children")).split():
        variables = _read(Path("/proc", child, "environ")).split("\0")
        rank = next((value.removeprefix("RANK=") for value in variables if value.startswith("RANK=")), "")
        if rank and alive(int(child)):
            found[int(rank)] = int(child)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def alive(process: int) -> bool:
    """It runs, or is stopped; one that has ended and was not waited for does not count."""
    state = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return bool(state) and state[0] not in ("Z", "X")


def whole(lab: Lab) -> tuple[Path, str, float]:
    """A folder whose text is read already; the weights of a run that nothing disturbs, and its seconds."""
    place = lab.fresh("ranks-whole")
    for more in (("--max-steps", "1"), ()):  # the second finds the text prepared, as the struck ones do
        shutil.rmtree(place / "runs", ignore_errors=True)
        begun, log = time.monotonic(), lab.log(place)
        process = start(place, log, *COMMAND, *more)
        if process.wait(LIMIT):
            raise RuntimeError(f"exit code {process.returncode}: {_read(log)}")
        seconds = time.monotonic() - begun
    digest = finished(place / RUN)
    shutil.rmtree(place / "runs")
    return place, digest, seconds


def strike(lab: Lab, fault: Fault, source: Path, digest: str) -> Verdict | None:
    """One fault, and going on after it; None where the run was over before."""
    place = lab.copy(source, f"ranks-{fault.number}")
    log, begun = lab.log(place), time.monotonic()
    process = start(place, log, *COMMAND)
    try:
        there = _wait_for(process, fault, begun)
        if not there:
            return None if process.wait(LIMIT) == 0 else Verdict(fault.what, f"exit code {process.returncode}")
        rank = fault.rank if fault.rank in there else min(there)
        os.kill(there[rank], fault.signum)
        struck = time.monotonic()
        problem = _ending(process, fault, there, struck)
        if not problem and process.returncode == LOST:
            problem = _go_on(lab, place)
        if not problem and finished(place / RUN) != digest:
            problem = "ends with other weights"
    finally:
        process.kill()
        process.wait()
    if problem:
        return Verdict(fault.what, f"{problem} | {_read(log).strip()[-300:]}")
    shutil.rmtree(place)
    log.unlink(missing_ok=True)
    return Verdict(fault.what)


def _wait_for(process: subprocess.Popen[bytes], fault: Fault, begun: float) -> dict[int, int]:
    """The processes at the moment of the fault; none where the run was over before."""
    while process.poll() is None:
        there = workers(process.pid)
        if there and time.monotonic() - begun >= fault.moment:
            return there
        time.sleep(0.02)
    return {}


def _ending(process: subprocess.Popen[bytes], fault: Fault, there: dict[int, int], struck: float) -> str:
    """Whether all of them ended as the contract says."""
    limit = TIMEOUT + SPARE + (ALONE if fault.signum == signal.SIGSTOP else 0.0)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"still runs {time.monotonic() - struck:.1f} s later"
    left = [rank for rank, worker in there.items() if alive(worker)]
    if left:
        return f"leaves process {left[0]} behind"
    # What is stopped after its last step is not waited for: the run is whole.
    return "" if code == LOST or (code == 0 and fault.signum == signal.SIGSTOP) else f"exit code {code}"


def _go_on(lab: Lab, place: Path) -> str:
    """Do what a user does then; why that cannot be done."""
    saved = any(path.name.removeprefix("checkpoint-").isdecimal() for path in (place / RUN).glob("checkpoint-*"))
    arguments = ("train", str(RUN), "--resume") if saved else COMMAND
    log = lab.root / f"{place.name}-again.log"
    code = start(place, log, *arguments).wait(LIMIT)
    if code:
        return f"cannot go on: exit code {code}: {_read(log).strip()[-300:]}"
    log.unlink(missing_ok=True)
    return ""


def run(lab: Lab) -> list[Family]:
    """Strike one of two processes, at moments from the start to the end."""
    started = time.monotonic()
    difference, turns, alone = together.compare(lab.root)
    source, digest, seconds = whole(lab)
    choose = random.Random(lab.seed)
    signals = [signal.SIGKILL] * lab.count(KILLS) + [signal.SIGSTOP] * lab.count(HANGS, 0)
    found: list[Verdict] = []
    # One at a time: each is two processes, and the moments are those of a machine that has nothing else to do.
    while len(found) < len(signals):
        number = len(found)
        moment = choose.uniform(0.2, 0.95 * seconds)
        verdict = strike(lab, Fault(number, choose.randrange(PROCESSES), signals[number], moment), source, digest)
        found += [] if verdict is None else [verdict]
    found.append(
        Verdict(
            "gradients of two processes against one on the whole batch",
            f"differ by {difference:.1e}" if difference > together.LARGEST else "",
        )
    )
    found.append(Verdict("samples of two processes in turn against one", "are others" if turns != alone else ""))
    notes = {"seconds of a run": round(seconds, 1), "largest difference of a gradient": f"{difference:.1e}",
             "samples of two processes": turns, "samples of one": alone}  # fmt: skip
    return families("ranks", found, started, notes)
