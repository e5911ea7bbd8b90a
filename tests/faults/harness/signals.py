"""SIGTERM at any moment of a run -> exit 143 after at most one step and one save, nothing half-written.

A run that does not listen fails: it may end with 0 only where nothing but the last words was left to do. To know
exactly what had been said before the signal, a child is stopped while its log is read.
"""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import cases, peers
from harness.lab import SCRATCH, TEXT, Lab, finished, inside
from harness.lanes import Ended, spawn, spread, wait
from harness.verdicts import LLMT, Family, Verdict, families

COUNT, PEER_COUNT = 100, 10
STOPPED = 128 + signal.SIGTERM
STEPS = 300

SHARE = 0.25
"""Part of the time of a whole run within which a process has to be gone: a step and a save take a fiftieth of it."""

FINISHING = 0.3
"""Seconds after which a run that had taken its last step, but not said so, may still end with 0."""

LATE = 5
"""Every so many signals come after the last step."""

STEP = re.compile(r"^step +(\d+)/", re.MULTILINE)

RUN = (
    *SCRATCH[:4], *SCRATCH[4:-2], "--algo", "bpe", "--vocab-size", "300", "--max-steps", str(STEPS),
    "--save-steps", "50", "--eval-steps", "100", "--logging-steps", "1",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run that is told to stop.

    Attributes:
        number: Of the run, for its random moment.
        seconds: How long a run takes that nothing disturbs.
        digest: What it ends with.
        late: Wait for the last step first.
    """

    number: int
    seconds: float
    digest: str
    late: bool


def start(lab: Lab, place: Path) -> None:
    """A folder without a cache: a run there trains its tokenizer first, on a longer text."""
    (place / "text.txt").write_text(TEXT * 20, encoding="utf-8")


def steps(log: str) -> set[int]:
    """The steps that a run has said."""
    return {int(number) for number in STEP.findall(log)}


def phase(log: str) -> str:
    """What a run had been doing, from what it had said."""
    if not steps(log):
        return "before training"
    if "\ndone" in log:
        return "at the end"
    return "publishing" if STEPS in steps(log) else "training"


def deafened(work: Callable[[], object]) -> object:
    """`work`, and no signal after it: this program has no handler where Python's own end has one."""
    try:
        return work()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def held(child: int) -> bool:
    """Stop a child where it is; False where it has ended already."""
    os.kill(child, signal.SIGSTOP)
    found = os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return found is not None and found.si_code == os.CLD_STOPPED


def said(log: Path) -> str:
    """What is in a log."""
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def struck(place: Path, log: Path, job: Job, choose: random.Random) -> tuple[str, float, Ended]:
    """One run with a signal in it: what it had said before, the delay, and how it ended.

    Begins again where the run was over before the signal came.
    """
    work = cases.train(RUN)
    while True:
        child = spawn(lambda: inside(place, lambda: deafened(work)), log)
        delay = choose.uniform(0.0, FINISHING) if job.late else choose.uniform(0.03, job.seconds)
        deadline = time.monotonic() + 10 * job.seconds
        while job.late and STEPS not in steps(said(log)) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        if held(child):
            before = said(log)
            os.kill(child, signal.SIGTERM)
            os.kill(child, signal.SIGCONT)
            return before, delay, wait(child, log)
        wait(child, log)
        shutil.rmtree(place / cases.RUN_DIRECTORY)


def examine(lab: Lab, job: Job) -> Verdict:
    """One run that is told to stop after some time."""
    choose = random.Random(lab.seed * 1000 + job.number)
    place = lab.copy(lab.prepared("signals", lambda place: start(lab, place)), f"signals-{job.number}")
    run, log = place / cases.RUN_DIRECTORY, lab.log(place)
    before, delay, ended = struck(place, log, job, choose)
    doing = phase(before)
    why = _ending(ended, before, SHARE * job.seconds) or _left(run, ended, before)
    if not why:
        again = lab.child(place, cases.train_again(RUN)) if ended.code else ended
        why = f"cannot go on: exit code {again.code}: {again.last_line}" if again.code else ""
        if not why and finished(run) != job.digest:
            why = "goes on and ends with other weights"
    if not why:
        shutil.rmtree(place)
        log.unlink(missing_ok=True)
    what = f"SIGTERM after {'the last step and ' if job.late else ''}{delay:.2f} s, {doing}"
    return Verdict(what, why, LLMT, (doing, job.number), "broken" if why else "saved")


def _ending(ended: Ended, before: str, limit: float) -> str:
    """Whether it ended as it promises: soon, after at most one more step, and with 143 where it was not done."""
    if ended.hung or ended.seconds > limit:
        return f"took {ended.seconds:.1f} s to end"
    if "Traceback" in ended.log:
        return f"traceback: {ended.last_line}"
    more = steps(ended.log) - steps(before)
    if len(more) > 1:
        return f"took {len(more)} more steps"
    if ended.code == STOPPED or (ended.code == 0 and "\ndone" in before):
        return ""
    if ended.code == 0 and STEPS in steps(before) and ended.seconds <= FINISHING:
        return ""
    # Before the command has begun, it listens to nothing: the system ends it, which is 143 to a shell.
    if ended.code == -signal.SIGTERM and not before:
        return ""
    return f"exit code {ended.code}, {phase(before)}, {ended.seconds:.2f} s after the signal: {ended.last_line}"


def _left(run: Path, ended: Ended, before: str) -> str:
    """What is wrong with what is there."""
    from llmt.checkpoints.store import CheckpointStore

    half = [path.name for path in run.glob(".*")] if run.is_dir() else []
    if half:
        return f"{half[0]} was left behind"
    messages: list[str] = []
    found = CheckpointStore(run).latest(messages.append)
    if messages:
        return messages[0]
    if steps(before) and (found is None or found.step < max(steps(before))):
        return f"step {max(steps(before))} was taken, and {found.step if found is not None else 'nothing'} was saved"
    published = "\ndone" in ended.log
    if ended.code == STOPPED and found is not None and not published and f"checkpoint-{found.step}" not in ended.log:
        return f"does not say that checkpoint-{found.step} is there"
    return ""


def examine_hf(lab: Lab, number: int) -> Verdict:
    """The same of the Trainer of transformers: once it trains, it should save."""
    place = lab.fresh(f"signals-hf-{number}")
    log = lab.log(place)
    child = spawn(
        lambda: inside(place, lambda: peers.hf_trainer(Path("runs/hf"), max_steps=400, save_steps=100).train()), log
    )
    time.sleep(random.Random(lab.seed + number).uniform(0.5, 1.0))
    os.kill(child, signal.SIGTERM)
    ended = wait(child, log)
    saved = list((place / "runs/hf").glob("checkpoint-*"))
    why = "" if saved and ended.code in (0, STOPPED) else f"ends with {ended.code}, {len(saved)} checkpoints"
    return Verdict("SIGTERM, training", why, "HF Trainer")


def run(lab: Lab) -> list[Family]:
    """Stop runs at random moments of all phases."""
    started = time.monotonic()
    source = lab.prepared("signals", lambda place: start(lab, place))
    whole = lab.copy(source, "signals-whole")
    ended = lab.must(whole, *RUN, "-o", cases.RUN_DIRECTORY)
    digest = finished(whole / cases.RUN_DIRECTORY)
    jobs = [Job(n, ended.seconds, digest, n % LATE == LATE - 1) for n in range(lab.count(COUNT, LATE))]
    found = spread(jobs, lambda job: examine(lab, job), lab.lanes)
    found += spread(range(lab.count(PEER_COUNT)), lambda number: examine_hf(lab, number), lab.lanes)
    phases = [verdict.cell[0] for verdict in found if verdict.subject == LLMT]
    notes = {
        "seconds of a run": round(ended.seconds, 1), "seconds allowed": round(SHARE * ended.seconds, 2),
        "phases": {name: phases.count(name) for name in sorted(set(phases))},
    }  # fmt: skip
    return families("signals", found, started, notes)
