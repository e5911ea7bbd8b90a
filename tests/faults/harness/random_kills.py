"""a run that is killed again and again at any moment -> the weights of a run that never was.

What counts is a kill that ended a process which had said a step since it began: the moment is drawn from what is left
of the run, one that came too late is drawn again, and where a run is done a fresh one begins. Some more kills come
while a process starts; they are told apart.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import cases, peers
from harness.lab import LORA, SCRATCH, Lab, finished, inside
from harness.lanes import Ended, spawn, spread, wait
from harness.signals import steps
from harness.verdicts import LLMT, Family, Verdict, families

COUNT, PER_RUN, PEER_COUNT = 200, 10, 10
TRAINING, STARTING = "in training", "while it starts"

EARLY, START = 0.2, 0.4
"""Share of the kills that come while a process starts, and the seconds in which they come."""

LONG = ("--max-steps", "60", "--save-steps", "4", "--eval-steps", "1000", "--logging-steps", "1")
ACCUMULATED = (
    *SCRATCH, "--gradient-accumulation-steps", "3", "--hidden-dropout", "0.1", "--max-steps", "24", "--save-steps", "3",
    "--eval-steps", "4", "--logging-steps", "1",
)  # fmt: skip
RUNS = {"scratch": (*SCRATCH, *LONG), "lora": (*LORA, *LONG), "accumulation, evaluation, dropout": ACCUMULATED}

HF = "HF Trainer"
HF_RUN = {"max_steps": 60, "save_steps": 4}


@dataclass(frozen=True)
class Job:
    """One run that is killed.

    Attributes:
        name: Of its configuration.
        source: The folder that it begins with.
        digest: The finished model of a run that nothing killed.
        seconds: From its first step to its end.
        number: Of the run, for its random moments.
        kills: How often it is killed in training.
    """

    name: str
    source: Path
    digest: str
    seconds: float
    number: int
    kills: int

    @property
    def total(self) -> int:
        """Steps of the run."""
        arguments = RUNS[self.name]
        return int(arguments[arguments.index("--max-steps") + 1])


def jobs(lab: Lab) -> list[Job]:
    """The runs to kill, after each configuration was run once undisturbed."""
    found = []
    runs = max(round(lab.count(COUNT) / PER_RUN), len(RUNS))
    kills = min(PER_RUN, lab.count(COUNT))
    for number, (name, arguments) in enumerate(RUNS.items()):
        source = lab.prepared(name.split(",")[0], lambda place: cases.with_base(lab, place))
        whole = lab.copy(source, f"whole-{number}")
        seconds = undisturbed(whole, lab.log(whole), cases.train(arguments))
        digest = finished(whole / cases.RUN_DIRECTORY)
        found += [Job(name, source, digest, seconds, at, kills) for at in range(number, runs, len(RUNS))]
    return found


def undisturbed(place: Path, log: Path, work: Callable[[], object]) -> float:
    """Seconds from the first step of a run to its end.

    Raises:
        RuntimeError: It failed.
    """
    child = spawn(lambda: inside(place, work), log)
    wait_for_step(child, log)
    ended = wait(child, log)
    if ended.code:
        raise RuntimeError(f"exit code {ended.code}: {ended.log}")
    return ended.seconds


def wait_for_step(child: int, log: Path) -> None:
    """Return once a child has said a step, or has ended."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if log.exists() and steps(log.read_text(encoding="utf-8", errors="replace")):
            return
        time.sleep(0.002)


def killed_after(place: Path, log: Path, work: Callable[[], object], delay: float, *, stepped: bool = False) -> Ended:
    """Start `work` in a child and kill it some time after its start, or after its first step; how it ended."""
    log.unlink(missing_ok=True)
    child = spawn(lambda: inside(place, work), log)
    if stepped:
        wait_for_step(child, log)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return wait(child, log)


def kill_often(lab: Lab, job: Job) -> list[Verdict]:
    """Kill one run some times, going on each time, and let it end."""
    choose = random.Random(lab.seed * 1000 + job.number)
    place = lab.copy(job.source, f"kills-{job.number}")
    run, log, work = place / cases.RUN_DIRECTORY, lab.log(place), cases.train_again(RUNS[job.name])
    verdicts: list[Verdict] = []
    before = counted = 0
    while counted < job.kills:
        early = choose.random() < EARLY
        delay = choose.uniform(0.0, START if early else job.seconds * (1 - before / job.total))
        ended = killed_after(place, log, work, delay, stepped=not early)
        copy = lab.copy(place, f"{place.name}-judged")  # the next run has to cope with what was left as it was left
        step, why = _newest(copy / cases.RUN_DIRECTORY, before)
        shutil.rmtree(copy)
        if not ended.killed and not ended.code and not why:  # it was done before
            if verdicts and finished(run) != job.digest:
                verdicts[-1] = _broken(verdicts[-1], "ends with other weights")
            shutil.rmtree(run)
            before = 0
            continue
        if not ended.killed:
            why = why or f"went on with exit code {ended.code}: {ended.last_line}"
        doing = TRAINING if steps(ended.log) else STARTING
        counted += bool(why) or doing == TRAINING
        what = f"{job.name}: run {job.number}, kill {len(verdicts) + 1} {doing}, after {delay:.2f} s, at step {step}"
        verdicts.append(Verdict(what, why, LLMT, (f"{job.name}, {doing}", job.number), "broken" if why else "whole"))
        before = step
    why = _end(lab, place, work, job.digest)
    if why:
        verdicts[-1] = _broken(verdicts[-1], why)
    else:
        shutil.rmtree(place)
    return verdicts


def _end(lab: Lab, place: Path, work: Callable[[], object], digest: str) -> str:
    """Let a run end; what is wrong then."""
    ended = lab.child(place, work)
    if ended.code:
        return f"cannot go on: exit code {ended.code}: {ended.last_line}"
    return "" if finished(place / cases.RUN_DIRECTORY) == digest else "ends with other weights"


def _newest(run: Path, before: int) -> tuple[int, str]:
    """The step of the newest checkpoint, and what is wrong with it."""
    from llmt.checkpoints.store import CheckpointStore

    messages: list[str] = []
    store = CheckpointStore(run)
    store.clean()
    found = store.latest(messages.append)
    step = found.step if found is not None else 0
    gone = f"checkpoint {before} is gone, the newest is {step}" if step < before else ""
    return step, messages[0] if messages else gone


def _broken(verdict: Verdict, why: str) -> Verdict:
    return Verdict(verdict.what, why, verdict.subject, verdict.cell, "broken")


def kill_hf(lab: Lab, number: int, seconds: float, digest: str) -> Verdict:
    """Kill the Trainer of transformers once, and go on from the checkpoint that it finds."""
    choose = random.Random(lab.seed * 1000 + number)
    place = lab.fresh(f"kills-hf-{number}")
    while True:
        delay = choose.uniform(0.3 * seconds, seconds)
        if killed_after(place, lab.log(place), lambda: peers.train_hf(**HF_RUN), delay).killed:
            break
        shutil.rmtree(place / "run")
    ended = lab.child(place, lambda: peers.train_hf(**HF_RUN))
    why = f"cannot go on: exit code {ended.code}: {ended.last_line}" if ended.code else ""
    if not why and peers.digest_hf(place) != digest:
        why = "ends with other weights"
    shutil.rmtree(place)
    return Verdict(f"killed after {delay:.2f} of {seconds:.2f} s", why, HF, ("", number), "broken" if why else "whole")


def hf_whole(lab: Lab) -> tuple[float, str]:
    """Seconds and weights of a run of the Trainer that nothing kills.

    Raises:
        RuntimeError: It failed.
    """
    place = lab.fresh("kills-hf-whole")
    ended = lab.child(place, lambda: peers.train_hf(**HF_RUN))
    if ended.code:
        raise RuntimeError(f"HF Trainer: {ended.log}")
    return ended.seconds, peers.digest_hf(place)


def run(lab: Lab) -> list[Family]:
    """Kill runs of three configurations at random."""
    started = time.monotonic()
    work = jobs(lab)
    found = [v for verdicts in spread(work, lambda job: kill_often(lab, job), lab.lanes) for v in verdicts]
    kills = {f"kills {doing}": sum(v.cell[0].endswith(doing) for v in found) for doing in (TRAINING, STARTING)}
    notes = {**kills, "final weights": {job.name: job.digest[:16] for job in work}}
    whole = hf_whole(lab)
    found += spread(range(lab.count(PEER_COUNT, 2)), lambda number: kill_hf(lab, number, *whole), lab.lanes)
    return families("random_kills", found, started, notes)
