"""what safety costs: a save against `torch.save` and fsync of the same bytes; the checks of a step against the step."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.lab import Lab
from harness.lanes import run_child
from harness.verdicts import LLMT, Family, Verdict, families

LARGEST_RATIO = 1.3
LARGEST_SHARE = 0.01
REPEATS = 15
MEGABYTES = 128
STEPS = 60


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


def check_share(steps: int) -> dict[str, float]:
    """Seconds of a step of a model of five million weights, and of the checks in it."""
    import torch

    from llmt.config.model import ModelConfig
    from llmt.config.training import TrainingConfig
    from llmt.data.batch import Batch
    from llmt.models.transformer import TransformerLM
    from llmt.training.optim import Optimizer
    from llmt.training.runtime import Runtime
    from llmt.training.sanity import check_finite
    from llmt.training.step import Stepper

    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(), 2048, 128)
    optimizer = Optimizer(model, TrainingConfig())
    stepper, ids = Stepper(model, optimizer, 0, Runtime()), torch.randint(2048, (8, 129))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), ids[:, 1:].numel())
    found: dict[str, list[float]] = {"step": [], "check": []}
    for step in range(steps):
        started = time.perf_counter()
        gradients: Any = stepper.gradients([batch], step, batch.tokens, None)
        before = time.perf_counter()
        check_finite(step + 1, gradients.nats, gradients.norm, optimizer)
        after = time.perf_counter()
        optimizer.set_rate(1.0)
        optimizer.step()
        found["check"].append(after - before)
        found["step"].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


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
    steps = measured(lab, lambda: check_share(lab.count(STEPS, 8)))
    share = steps["check"] / steps["step"]
    notes = {"save, against torch.save and fsync": round(ratio, 3), "save, seconds": round(saves["own"], 3),
             "megabytes": MEGABYTES, "checks of a step, share": round(share, 6)}  # fmt: skip
    verdicts = [
        Verdict("a save", f"takes {ratio:.2f} times as long" if ratio > LARGEST_RATIO else "", LLMT),
        Verdict("the checks of a step", f"take {share:.1%} of it" if share > LARGEST_SHARE else "", LLMT),
    ]
    return families("cost", verdicts, started, notes)
