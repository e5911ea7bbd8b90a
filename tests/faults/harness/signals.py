"""SIGTERM at any moment of a run -> exit 143, a checkpoint once a step was taken, nothing half-written."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from harness import cases, peers
from harness.lab import SCRATCH, TEXT, Lab, finished, inside
from harness.lanes import Ended, spawn, spread, wait
from harness.verdicts import LLMT, Family, Verdict, families

COUNT, PEER_COUNT = 100, 10
STOPPED = 128 + signal.SIGTERM
SLOW = 5.0
"""Seconds within which a process has to be gone: a step and a save of this model take a twentieth of one."""

RUN = (
    *SCRATCH[:4], *SCRATCH[4:-2], "--algo", "bpe", "--vocab-size", "300", "--max-steps", "40", "--save-steps", "10",
    "--eval-steps", "5", "--logging-steps", "1",
)  # fmt: skip


def start(lab: Lab, place: Path) -> None:
    """A folder without a cache: a run there trains its tokenizer first, on a longer text."""
    (place / "text.txt").write_text(TEXT * 20, encoding="utf-8")


def phase(log: str, run: Path) -> str:
    """What a run had been doing, from what it had said and written."""
    if "step " not in log.partition("steps ")[2]:
        return "before training"
    return "at the end" if "\ndone" in log else "training"


def examine(lab: Lab, job: tuple[int, float, str]) -> Verdict:
    """One run that is told to stop after some time."""
    number, seconds, digest = job
    choose = random.Random(lab.seed * 1000 + number)
    place = lab.copy(lab.prepared("signals", lambda place: start(lab, place)), f"signals-{number}")
    run, log = place / cases.RUN_DIRECTORY, lab.log(place)
    work = cases.train(RUN)
    child = spawn(lambda: inside(place, work), log)
    delay = choose.uniform(0.03, seconds)
    time.sleep(delay)
    before = log.read_text(errors="replace") if log.exists() else ""
    doing = phase(before, run)
    os.kill(child, signal.SIGTERM)
    ended = wait(child, log)
    # Before the command has begun, it listens to nothing: the system ends it, which is 143 to a shell.
    why = _ending(ended, before) or _left(run, ended, before)
    if not why:
        again = lab.child(place, cases.train_again(RUN)) if ended.code else ended
        why = f"cannot go on: exit code {again.code}: {again.last_line}" if again.code else ""
        if not why and finished(run) != digest:
            why = "goes on and ends with other weights"
    if not why:
        shutil.rmtree(place)
    return Verdict(f"SIGTERM after {delay:.2f} s, {doing}", why, LLMT, (doing, number), "broken" if why else "saved")


def _ending(ended: Ended, before: str) -> str:
    if ended.hung or ended.seconds > SLOW:
        return f"took {ended.seconds:.1f} s to end"
    if "Traceback" in ended.log:
        return f"traceback: {ended.last_line}"
    if ended.code not in (0, STOPPED) and not (ended.code == -signal.SIGTERM and not before):
        return f"exit code {ended.code}: {ended.last_line}"
    return ""


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
    stepped = phase(before, run) != "before training"
    if stepped and found is None:
        return "a step was taken, and nothing was saved"
    if ended.code == STOPPED and found is not None and f"checkpoint-{found.step}" not in ended.log:
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
    jobs = [(number, ended.seconds, digest) for number in range(lab.count(COUNT, 5))]
    found = spread(jobs, lambda job: examine(lab, job), lab.lanes)
    found += spread(range(lab.count(PEER_COUNT)), lambda number: examine_hf(lab, number), lab.lanes)
    phases = [verdict.cell[0] for verdict in found if verdict.subject == LLMT]
    return families("signals", found, started, {"phases": {name: phases.count(name) for name in sorted(set(phases))}})
