"""a run that is killed again and again at any moment -> the weights of a run that never was."""

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from harness import cases
from harness.lab import LORA, SCRATCH, Lab, finished, inside
from harness.lanes import spawn, spread, wait
from harness.verdicts import LLMT, Family, Verdict, families

COUNT, PER_RUN = 200, 10

LONG = ("--max-steps", "60", "--save-steps", "4", "--eval-steps", "1000")
ACCUMULATED = (
    *SCRATCH, "--gradient-accumulation-steps", "3", "--hidden-dropout", "0.1", "--max-steps", "24", "--save-steps", "3",
    "--eval-steps", "4",
)  # fmt: skip
RUNS = {"scratch": (*SCRATCH, *LONG), "lora": (*LORA, *LONG), "accumulation, evaluation, dropout": ACCUMULATED}


@dataclass(frozen=True)
class Job:
    """One run that is killed.

    Attributes:
        name: Of its configuration.
        source: The folder that it begins with.
        digest: The finished model of a run that nothing killed.
        seconds: How long that run took.
        number: Of the run, for its random moments.
    """

    name: str
    source: Path
    digest: str
    seconds: float
    number: int


def jobs(lab: Lab) -> list[Job]:
    """The runs to kill, after each configuration was run once undisturbed."""
    found = []
    runs = max(round(lab.count(COUNT) / PER_RUN), len(RUNS))
    for number, (name, arguments) in enumerate(RUNS.items()):
        source = lab.prepared(name.split(",")[0], lambda place: cases.with_base(lab, place))
        whole = lab.copy(source, f"whole-{number}")
        ended = lab.must(whole, *arguments, "-o", cases.RUN_DIRECTORY)
        digest = finished(whole / cases.RUN_DIRECTORY)
        found += [Job(name, source, digest, ended.seconds, at) for at in range(number, runs, len(RUNS))]
    return found


def kill_often(lab: Lab, job: Job) -> list[Verdict]:
    """Kill one run ten times, going on each time, and let it end."""
    from llmt.checkpoints.store import CheckpointStore

    choose = random.Random(lab.seed * 1000 + job.number)
    place = lab.copy(job.source, f"kills-{job.number}")
    run, log, verdicts, before = place / cases.RUN_DIRECTORY, lab.log(place), [], 0
    work = cases.train_again(RUNS[job.name])
    kills = min(PER_RUN, lab.count(COUNT))
    for kill in range(kills):
        child = spawn(lambda: inside(place, work), log)
        delay = choose.uniform(0.05, job.seconds)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        ended = wait(child, log)
        messages: list[str] = []
        store = CheckpointStore(run)
        store.clean()
        found = store.latest(messages.append)
        step = found.step if found is not None else 0
        why = messages[0] if messages else ""
        if not why and step < before:
            why = f"checkpoint {before} is gone, the newest is {step}"
        if not why and not ended.killed and ended.code:
            why = f"went on with exit code {ended.code}: {ended.last_line}"
        what = f"{job.name}: run {job.number}, kill {kill + 1} after {delay:.2f} s, at step {step}"
        verdicts.append(Verdict(what, why, LLMT, (job.name, job.number), "broken" if why else "whole"))
        before = step
    ended = lab.child(place, work)
    why = f"cannot go on: exit code {ended.code}: {ended.last_line}" if ended.code else ""
    if not why and finished(run) != job.digest:
        why = "ends with other weights"
    if why:
        verdicts[-1] = Verdict(verdicts[-1].what, why, LLMT, verdicts[-1].cell, "broken")
    else:
        shutil.rmtree(place)
    return verdicts


def run(lab: Lab) -> list[Family]:
    """Kill runs of three configurations at random."""
    started = time.monotonic()
    work = jobs(lab)
    found = spread(work, lambda job: kill_often(lab, job), lab.lanes)
    digests = {job.name: job.digest[:16] for job in work}
    return families("random_kills", [v for verdicts in found for v in verdicts], started, {"final weights": digests})
