"""what safety costs: a save against `torch.save` and fsync of the same bytes; the checks of a run against its steps.

Every check of `llmt/training/sanity.py` that a run of 200 steps makes is timed where the run makes it: those of each
step, those of the first steps, and those of what is saved.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import cases
from harness.lab import RUN, TEXT, Lab
from harness.lanes import run_child
from harness.verdicts import LLMT, Family, Verdict, families

LARGEST_RATIO = 1.3
LARGEST_SHARE = 0.01
REPEATS = 15
MEGABYTES = 128

STEPS, FEWEST, FIRST = 200, 20, 3
"""Steps of the run, the fewest of a quick one, and those after which only what comes in each step is left."""

CHECKED = {
    "llmt.training.loop": ("check_finite", "check_moved", "check_weights"),
    "llmt.training.sanity": ("Guard.begin", "Guard.before", "Guard.gradients", "Guard.after"),
}  # fmt: skip
"""Every way from the loop into the checks, by module."""

CHECKED_RUN = ("train", "quickstart", "--data", "text.txt", *RUN[2:], "--block-size", "128", "--algo", "byte",
               "--per-device-train-batch-size", "8", "--save-steps", "100", "--eval-steps", "1000")  # fmt: skip
"""The model of the quickstart, of five million weights, in steps of a thousand tokens."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def save_times(folder: Path, repeats: int) -> dict[str, float]:
    """Medians of a checkpoint of llmt, and of the plain way, in turns, on the disk of the working directory."""
    import torch

    from llmt.checkpoints.saving import save_tensors
    from llmt.checkpoints.store import CheckpointStore

    torch.manual_seed(0)
    tensors = {f"layer.{n}": torch.randn(2**18) for n in range(MEGABYTES)}
    store = CheckpointStore(folder / "run")

    def own(step: int) -> None:
        store.save(step, lambda staged: save_tensors(staged, "model.safetensors", tensors))

    def plain(step: int) -> None:
        with open(folder / f"plain-{step}.pt", "wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())

    taken: dict[str, list[float]] = {"own": [], "plain": []}
    for step in range(1, repeats + 2):
        for name, work in (("own", own), ("plain", plain)) if step % 2 else (("plain", plain), ("own", own)):
            taken[name].append(timed(lambda work=work, step=step: work(step)))
        store.retain(1)
        (folder / f"plain-{step}.pt").unlink()
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


class Clock:
    """Seconds inside of functions, apart by the step in which they were called.

    Attributes:
        steps: Seconds of each step.
        checks: For each step, the seconds of each check in it or after it.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.checks: list[dict[str, float]] = [{}]

    def watch(self, place: Any, name: str, label: str) -> None:
        """Put a clock around a function of a module or a class."""
        inner = getattr(place, name)

        def timing(*args: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*args, **more)
            finally:
                spent = self.checks[-1]
                spent[label] = spent.get(label, 0.0) + time.perf_counter() - begun

        setattr(place, name, timing)

    def watch_steps(self, loop: Any) -> None:
        """Put a clock around the steps themselves."""
        inner = loop._step

        def step(*args: Any) -> Any:
            self.checks.append({})
            begun = time.perf_counter()
            found = inner(*args)
            self.steps.append(time.perf_counter() - begun)
            return found

        loop._step = step

    def values(self) -> dict[str, float]:
        """Seconds of all steps, and of each check in them; of fewer steps, what 200 of them would have taken."""
        more = STEPS - len(self.steps)
        found = {"steps": sum(self.steps) + more * statistics.median(self.steps[FIRST:])}
        for label in {label for spent in self.checks for label in spent}:
            later = [spent.get(label, 0.0) for spent in self.checks[FIRST + 1 :]]
            found[label] = sum(spent.get(label, 0.0) for spent in self.checks) + more * statistics.median(later)
        return found


def checked_run(out: Path, steps: int) -> None:
    """A run whose checks are timed; it writes what they took, and ends the process."""
    from importlib import import_module

    from llmt.training.loop import TrainingLoop

    clock = Clock()
    for module, names in CHECKED.items():
        for name in names:
            place, _, method = name.rpartition(".")
            owner = import_module(module)
            clock.watch(getattr(owner, place) if place else owner, method, name)
    clock.watch_steps(TrainingLoop)
    try:
        cases.train((*CHECKED_RUN, "--max-steps", str(steps)))()
    finally:
        out.write_text(json.dumps(clock.values()))


def check_times(lab: Lab, steps: int) -> dict[str, float]:
    """Seconds of the steps of a run, and of its checks.

    Raises:
        RuntimeError: The run failed.
    """
    place, out = lab.fresh("cost"), lab.root / "checks.json"
    (place / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    ended = lab.child(place, lambda: checked_run(out, steps), 600)
    if ended.code:
        raise RuntimeError(f"cost: {ended.log}")
    found: dict[str, float] = json.loads(out.read_text())
    return found


def measured(lab: Lab, work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The numbers that `work` finds, in a child.

    Raises:
        RuntimeError: It failed.
    """
    out = lab.root / "cost.json"
    ended = run_child(lambda: out.write_text(json.dumps(work())) * 0, lab.root / "cost.log", 600)
    if ended.code:
        raise RuntimeError(f"cost: {ended.log}")
    found: dict[str, float] = json.loads(out.read_text())
    return found


def run(lab: Lab) -> list[Family]:
    """Measure, and compare with what is promised."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".faults-", dir=Path.cwd()) as folder:  # a real disk, not one in memory
        saves = measured(lab, lambda: save_times(Path(folder), lab.count(REPEATS, 5)))
    ratio = saves["own"] / saves["plain"]
    steps = lab.count(STEPS, FEWEST) if lab.scale < 1 else STEPS
    checks = check_times(lab, steps)
    total = checks.pop("steps")
    share = sum(checks.values()) / total
    notes = {"save, against torch.save and fsync": round(ratio, 3), "save, seconds": round(saves["own"], 3),
             "megabytes": MEGABYTES, "steps": steps, f"seconds of {STEPS} steps": round(total, 1),
             "checks, share": round(share, 5),
             "shares": {name: round(spent / total, 6) for name, spent in sorted(checks.items())}}  # fmt: skip
    verdicts = [
        Verdict("a save", f"takes {ratio:.2f} times as long" if ratio > LARGEST_RATIO else "", LLMT),
        Verdict(f"the checks of {STEPS} steps", f"take {share:.2%} of them" if share > LARGEST_SHARE else "", LLMT),
    ]
    return families("cost", verdicts, started, notes)
