"""the last two checkpoints -> whether training from one gives the other, bit for bit."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmt.checkpoints import layout
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import MismatchError, UsageError
from llmt.training.limits import Cadence
from llmt.training.loop import TrainingLoop
from llmt.training.model import restore

if TYPE_CHECKING:
    from llmt.training.build import Prepared


@dataclass(frozen=True)
class Replay:
    """An interval that came out the same.

    Attributes:
        first: Step of the checkpoint that training went on from.
        last: Step of the checkpoint that it came to.
        tensors: Weights and optimizer tensors compared.
        sha256: Of all of them, by name.
    """

    first: int
    last: int
    tensors: int
    sha256: str


def replay(
    prepared: "Prepared", build: Callable[["Prepared"], TrainingLoop], progress: Callable[[int, int], None]
) -> Replay:
    """Train from the checkpoint before the last to the last again. Nothing in the run's directory changes.

    Args:
        prepared: A resume of the run.
        build: Makes the loop of a run that is prepared.
        progress: Told the step and the last one.

    Raises:
        MismatchError: It came out otherwise; names the first tensor that differs.
        UsageError: There are no two checkpoints, or the learning rate followed the clock.
    """
    store, last = CheckpointStore(prepared.directory), prepared.checkpoint
    assert last is not None
    if prepared.config.training.max_time is not None:
        raise UsageError(
            "--verify-resume: the learning rate of this run follows the clock (training.max_time)",
            "llmt checkpoints verify reads every byte",
        )
    earlier = [step for step in store.steps() if step < last.step]
    if not earlier:
        raise UsageError(
            f"--verify-resume: {prepared.directory} has one checkpoint, two are needed", "--save-total-limit 2"
        )
    first = store.verified(earlier[-1])
    with tempfile.TemporaryDirectory(prefix="llmt-replay-") as folder:
        loop = build(replace(prepared, checkpoint=first, directory=Path(folder)))
        loop.limits = replace(
            loop.limits, max_steps=last.step, evaluate=Cadence(), sample=Cadence(), save=Cadence(), patience=None
        )
        loop.go_back = None
        for report in loop.run():
            progress(report.step, last.step)
    found = _hashes(loop)
    restore(loop, last)
    for name, digest in _hashes(loop).items():
        if found[name] != digest:
            raise MismatchError(
                f"--verify-resume: {name} is another after steps {first.step} to {last.step}",
                f"compare threads, versions and machine with {last.path / layout.STATE}",
            )
    return Replay(first.step, last.step, len(found), hashlib.sha256("".join(found.values()).encode()).hexdigest())


def _hashes(loop: TrainingLoop) -> dict[str, str]:
    """SHA-256 of each weight, optimizer tensor and average."""
    tensors = {**loop.optimizer.masters(), **loop.optimizer.state()}
    if loop.average is not None:
        tensors |= {f"average of {name}": tensor for name, tensor in loop.average.values.items()}
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in sorted(tensors.items())
    }
