"""one call of a save -> killed, refused or cut in half; then what is there, and whether one can go on.

After each fault the newest checkpoint must be whole and no older than the last one that had been published, its
bytes must be those of a run that nothing disturbed, and going on must end with the same weights. A run whose disk
refused a call ends with 6, or with 0 where it could do without.

A kill, EIO, a full disk and a short write strike every call of every kind of save, and every fault every call of a full
save. In the other saves, which take the same way to the disk, what resembles one of these (`ALIKE`) strikes at every
sixteenth or thirty-second call, and a torn write at every fourth or eighth (`Case.sparse`): all of it has to end within
about forty minutes on two cores.
"""

import errno
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from harness.cases import CASES, Case
from harness.lab import Lab
from harness.lanes import Ended, spread
from harness.shim import COUNT, ERROR, FULL, KILL, RETRIED, SHORT, TORN, Call, read_journal
from harness.verdicts import LLMT, Family, Verdict, families

ACTIONS = {
    "kill": (KILL, 0), "torn write, kill": (TORN, 0), "EIO": (ERROR, errno.EIO), "ENOSPC": (ERROR, errno.ENOSPC),
    "EDQUOT": (ERROR, errno.EDQUOT), "EINTR": (ERROR, errno.EINTR), "short write, ENOSPC": (SHORT, errno.ENOSPC),
    "full from here on": (FULL, errno.ENOSPC),
}  # fmt: skip
EVERYWHERE = ("kill", "EIO", "ENOSPC", "short write, ENOSPC")
ALIKE = ("EDQUOT", "EINTR", "full from here on")
LESS = 4
"""Actions whose like is tried oftener, and how much oftener; not in a full save."""

PEER_ACTIONS = ("kill", "ENOSPC")
DISK = 6

CHANGING = ("state.json", "adapter_config.json")
"""Files of a checkpoint that hold the time or a place."""


@dataclass(frozen=True)
class Reference:
    """What a run does and leaves when nothing disturbs it.

    Attributes:
        calls: In order.
        digest: Of what it leaves.
        checkpoints: step -> the hash of each of its files that depends on no clock.
    """

    calls: list[Call]
    digest: str
    checkpoints: dict[int, dict[str, str]]


@dataclass(frozen=True)
class Fault:
    """Where and how one run is struck."""

    case: Case
    action: str
    at: int


def record(lab: Lab, case: Case) -> Reference:
    """Run a case once, writing down every call.

    Raises:
        RuntimeError: It fails when nothing disturbs it.
    """
    source = lab.prepared(case.name, lambda place: case.make(lab, place))
    place = lab.copy(source, f"reference-{case.name}")
    journal, kept = lab.root / f"{case.name}.journal", lab.root / f"kept-{case.name}"

    def work() -> object:
        lab.shim.journal(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), data=False)
        lab.shim.arm(place / case.struck, action=COUNT)
        return case.work()

    ended = lab.child(place, work)
    if ended.code:
        raise RuntimeError(f"{case.name}: {ended.log}")
    calls = [call for call in read_journal(journal) if call.kind != "more"]
    shutil.rmtree(kept, ignore_errors=True)
    checkpoints = _checkpoints(lab, case, source) if case.run else {}
    return Reference(calls, case.digest(place), checkpoints)


def _published(calls: list[Call], run: Path) -> int:
    """The highest checkpoint that was safely there after these calls."""
    waiting, safe = 0, 0
    for call in calls:
        name = Path(call.other).name
        if call.kind == "rename" and name.startswith("checkpoint-"):
            waiting = int(name.removeprefix("checkpoint-"))
        if call.kind == "fsync" and Path(call.path) == run:
            safe = max(safe, waiting)
    return safe


def _checkpoints(lab: Lab, case: Case, source: Path) -> dict[int, dict[str, str]]:
    """Every checkpoint of an undisturbed run that removes none: their hashes, out of their manifests."""
    place = lab.copy(source, f"all-{case.name}")
    lab.child(place, lambda: _keep_all(case))
    return {step: _hashes(path) for path in (place / case.run).glob("checkpoint-*") if (step := _step(path))}


def _keep_all(case: Case) -> object:
    from llmt.checkpoints.store import CheckpointStore

    CheckpointStore.retain = lambda self, limit, keep=(): []  # type: ignore[method-assign]
    return case.work()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _hashes(checkpoint: Path) -> dict[str, str]:
    listed = json.loads((checkpoint / "MANIFEST.json").read_bytes())["files"]
    return {name: record[1] for name, record in listed.items() if name not in CHANGING}


def plan(lab: Lab, case: Case, reference: Reference) -> list[Fault]:
    """The faults of a case: each action at each call where it may happen; a share of them in a quick run."""
    chosen = []
    for number, name in enumerate(ACTIONS if case.subject == LLMT else PEER_ACTIONS):
        action, error = ACTIONS[name]
        possible = [
            at for at, call in enumerate(reference.calls, 1)
            if not (action in (SHORT, TORN) and call.kind != "write")
            and not (error == errno.EINTR and call.kind not in RETRIED)
            and not at % _every(case, name)
        ]  # fmt: skip
        every = max(round(1 / min(lab.scale, 1)), 1)
        chosen += [Fault(case, name, at) for at in possible[37 * number % every :: every]]
    return chosen


def _every(case: Case, name: str) -> int:
    """A fault is tried at every so many calls."""
    if case.subject == LLMT and (name in EVERYWHERE or case.sparse == 1):
        return 1
    return case.sparse * (LESS if name in ALIKE else 1)


def strike(lab: Lab, fault: Fault, reference: Reference) -> Verdict | None:
    """One fault, and going on after it; None where there was no write to cut: threads take turns as they like."""
    case, (action, error) = fault.case, ACTIONS[fault.action]
    place = lab.copy(lab.prepared(case.name, lambda place: None), f"{case.name}-{fault.action}-{fault.at}")
    journal = lab.root / f"{place.name}.journal"

    def work() -> object:
        lab.shim.journal(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), data=False)
        lab.shim.arm(place / case.struck, fault.at, action, error)
        return case.work()

    ended = lab.child(place, work)
    done = [call for call in read_journal(journal) if call.kind != "more"]
    journal.unlink()
    call = reference.calls[fault.at - 1]
    if action == TORN and not ended.killed and len(done) >= fault.at and done[fault.at - 1].kind != "write":
        shutil.rmtree(place)
        return None
    what = f"{case.name}: {fault.action} at call {fault.at} ({call.kind} {Path(call.path).name})"
    problem = _ending(fault, ended) if case.subject == LLMT else ""
    if not problem and case.subject == LLMT and ended.code == 0 and case.digest(place) != reference.digest:
        problem = "says that it is done, and what it left is something else"
    outcome = ""
    if not problem and case.run:
        copy = lab.copy(place, f"{place.name}-judged")  # going on has to cope with what was left as it was left
        problem, outcome = _newest(copy / case.run, reference, _published(done[: fault.at - 1], place / case.run))
        shutil.rmtree(copy)
    if not problem:
        problem = _go_on(lab, fault, reference, place)
    if not problem:
        shutil.rmtree(place)
        lab.log(place).unlink(missing_ok=True)
    cell = (f"{case.name}, {fault.action}", fault.at)
    return Verdict(what, problem, case.subject, cell, "broken" if problem else outcome or "whole")


def _ending(fault: Fault, ended: Ended) -> str:
    """Whether the struck process ended as the contract says."""
    if ended.hung:
        return "hangs"
    if fault.action in ("kill", "torn write, kill"):
        return "" if ended.killed else f"was not killed, exit code {ended.code}: {ended.last_line}"
    if "Traceback" in ended.log or ended.code == 1:
        return f"traceback: {ended.last_line}"
    if ended.code not in (0, DISK):
        return f"exit code {ended.code}: {ended.last_line}"
    if fault.action == "EINTR" and ended.code:
        return f"did not try again: exit code {ended.code}: {ended.last_line}"
    return ""


def _newest(run: Path, reference: Reference, published: int) -> tuple[str, str]:
    """What is wrong with the newest checkpoint, and whether it is the old or the new one."""
    from llmt.checkpoints.store import CheckpointStore

    store, damaged = CheckpointStore(run), []
    if not any(path.name.startswith(".del-") for path in run.glob(".*")) and not store.steps():
        return (f"checkpoint {published} is gone", "broken") if published else ("", "old")
    store.clean()
    found = store.latest(damaged.append)
    if damaged:
        return f"half a checkpoint under a final name: {damaged[0]}", "broken"
    step = found.step if found is not None else 0
    if step < published:
        return f"checkpoint {published} is gone, the newest is {step}", "broken"
    if found is not None:
        now = {name: record.sha256 for name, record in found.manifest.files.items() if name not in CHANGING}
        if now != reference.checkpoints[step]:
            return f"checkpoint {step} holds other bytes than an undisturbed run wrote", "broken"
    return "", "new" if step > published else "old"


def _go_on(lab: Lab, fault: Fault, reference: Reference, place: Path) -> str:
    """Do what a user does then; what is wrong with the end of it."""
    case = fault.case
    ended = lab.child(place, case.again)
    if ended.code:
        return f"cannot go on: exit code {ended.code}: {ended.last_line}"
    if case.digest(place) != reference.digest:
        return "ends with other weights"
    if case.subject == LLMT:
        left = [p.name for p in (place / case.struck).rglob(".*") if p.name.startswith((".tmp-", ".del-", ".bad-"))]
        if left and not case.shared:
            return f"leaves {left[0]} behind"
    return ""


def run(lab: Lab) -> list[Family]:
    """Strike every kind of save."""
    started, notes, every = time.monotonic(), {}, {}
    work: list[tuple[Fault, Reference]] = []
    for case in CASES:
        reference = record(lab, case)
        notes[case.name] = len(reference.calls)
        if case.subject == LLMT:
            every[case.name] = case.sparse
        work += [(fault, reference) for fault in plan(lab, case, reference)]
    found = spread(work, lambda pair: strike(lab, *pair), lab.lanes)
    figures = {"calls": notes, "other faults at every so many calls": every}
    return families("calls", [verdict for verdict in found if verdict is not None], started, figures)
