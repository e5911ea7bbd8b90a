"""a number that is none, put anywhere into a run -> exit 8 in that step, and no trace of it on the disk."""

import itertools
import json
import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import cases, peers
from harness.lab import LORA, SCRATCH, Lab, command
from harness.lanes import spread
from harness.verdicts import LLMT, Family, Verdict, families

DIVERGED = 8
WAYS = ("loss", "gradient", "weight", "moment")
VALUES = (math.nan, math.inf)
STEPS = (1, 4, 5)
EVERY = 2
"""A checkpoint every so many steps: bad optimizer state is found by then at the latest."""

RUN = ("--max-steps", "8", "--save-steps", str(EVERY), "--eval-steps", "1000")
RUNS = {
    "scratch": (*SCRATCH, *RUN),
    "lora": (*LORA, *RUN),
    "accumulation": (*SCRATCH, *RUN, "--gradient-accumulation-steps", "2"),
}


@dataclass(frozen=True)
class Poison:
    """Where a number goes bad.

    Attributes:
        run: Which configuration.
        way: What goes bad: the loss or a gradient within the step, a weight before it, a moment after it.
        value: What it becomes.
        step: When.
    """

    run: str
    way: str
    value: float
    step: int


def poison(what: Poison) -> None:
    """Change the parts of llmt so that the number goes bad when its time comes."""
    import torch

    from llmt.models import base
    from llmt.training.optim import Optimizer

    done = [0]
    step, accumulate, token_loss = Optimizer.step, Optimizer.accumulate, base.token_loss

    def now(way: str) -> bool:
        return what.way == way and done[0] == what.step - 1

    def bad_step(self: Optimizer) -> None:
        if now("weight"):  # as if the one before had overflowed
            _spoil(self.weights[0].master, what.value)
            self.weights[0].parameter.data.copy_(self.weights[0].master.data)
        step(self)
        if now("moment"):
            moments = [value for value in self.state().values() if value.is_floating_point() and value.numel() > 1]
            _spoil(moments[0], what.value)
        done[0] += 1

    def bad_accumulate(self: Optimizer) -> None:
        accumulate(self)
        if now("gradient"):
            gradient = self.weights[0].master.grad
            if gradient is not None:
                _spoil(gradient, what.value)

    def bad_loss(*arguments: Any) -> Any:
        found = token_loss(*arguments)
        return replace(found, nats=found.nats * what.value) if now("loss") and torch.is_grad_enabled() else found

    Optimizer.step, Optimizer.accumulate = bad_step, bad_accumulate  # type: ignore[method-assign]
    base.token_loss = bad_loss  # type: ignore[attr-defined]


def _spoil(tensor: Any, value: float) -> None:
    tensor.data.view(-1)[tensor.numel() // 2] = value


def examine(lab: Lab, source: Path, what: Poison) -> Verdict:
    """One run that goes bad: how it ends, and what it leaves."""
    name = f"{what.run}: {what.value} in a {what.way} at step {what.step}"
    place = lab.copy(source, f"nan-{what.run}-{what.way}-{what.value}-{what.step}")

    def work() -> None:
        poison(what)
        command((*RUNS[what.run], "-o", cases.RUN_DIRECTORY))

    ended = lab.child(place, work)
    why = ""
    if ended.code != DIVERGED:
        why = f"exit code {ended.code}: {ended.last_line}"
    last = _next_save(what.step) if what.way == "moment" else what.step
    steps = [int(number) for number in re.findall(r"step (\d+)", _error(ended.log))]
    if not why and not (steps and what.step <= steps[0] <= last):
        why = f"not found in its step: {_error(ended.log)}"
    why = why or numbers_on_disk(place / "runs") or _kept(place / cases.RUN_DIRECTORY, what.step)
    if not why:
        shutil.rmtree(place)
    return Verdict(name, why, LLMT, (what.way, what.step), "silent" if why else "caught")


def _next_save(step: int) -> int:
    return -(-step // EVERY) * EVERY


def _error(log: str) -> str:
    return next((line for line in log.splitlines() if line.startswith("error:")), "no error line")


def numbers_on_disk(directory: Path) -> str:
    """The first number below a folder that is none; empty where there is none."""
    from safetensors.torch import load_file

    for path in sorted(directory.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            if not bool(tensor.isfinite().all()):
                return f"{path.relative_to(directory)}: {name} is not finite"
    found: list[str] = []
    for path in sorted(directory.rglob("*.json*")):
        for line in [path.read_text(encoding="utf-8")] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line, parse_constant=lambda text, path=path: found.append(f"{path.name}: {text}"))
    return found[0] if found else ""


def _kept(run: Path, step: int) -> str:
    """Whether the last good checkpoint is there."""
    from llmt.checkpoints.store import CheckpointStore

    found = CheckpointStore(run).latest()
    expected = (step - 1) // EVERY * EVERY
    if (found.step if found is not None else 0) < expected:
        return f"checkpoint {expected} is gone"
    return ""


def train_hf_badly(way: str, at: int) -> None:
    """The Trainer of transformers with one bad weight, or a bad loss, from a step on."""
    from transformers import TrainerCallback

    class Spoiler(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            if way == "weight" and state.global_step == at - 1:
                _spoil(next(model.parameters()), math.nan)

    trainer = peers.hf_trainer(Path("runs/tiny"), save_steps=EVERY, max_steps=8)
    if way == "loss":
        inner = trainer.compute_loss

        def bad_loss(*arguments: Any, **more: Any) -> Any:
            found = inner(*arguments, **more)
            return found * math.nan if trainer.state.global_step == at - 1 else found

        trainer.compute_loss = bad_loss
    trainer.add_callback(Spoiler())
    trainer.train()


def examine_hf(lab: Lab, source: Path, what: Poison) -> Verdict:
    """The same of the Trainer: it must stop, and save nothing bad."""
    place = lab.copy(source, f"nan-hf-{what.way}-{what.step}")
    ended = lab.child(place, lambda: train_hf_badly(what.way, what.step))
    why = "trains on to the end; " * (ended.code == 0) + numbers_on_disk(place / "runs")
    return Verdict(f"nan in a {what.way} at step {what.step}", why, "HF Trainer", (what.way, what.step))


def run(lab: Lab) -> list[Family]:
    """Let numbers go bad in every way."""
    started = time.monotonic()
    ways = [Poison(*choice) for choice in itertools.product(RUNS, WAYS, VALUES, STEPS)]
    every = max(round(1 / min(lab.scale, 1)), 1)
    source = lab.prepared("scratch", lambda place: cases.with_base(lab, place))
    work: list[tuple[Callable[[Lab, Path, Poison], Verdict], Poison]] = []
    work += [(examine, what) for what in ways[:: every + (every % 2 == 0)]]  # odd, so that all values are met
    peer = [Poison("HF Trainer", way, math.nan, step) for way in ("weight", "loss") for step in STEPS]
    work += [(examine_hf, what) for what in peer[:: min(every, 3)]]
    return families("nan", spread(work, lambda item: item[0](lab, source, item[1]), lab.lanes), started)
