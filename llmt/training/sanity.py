"""A run that would learn nothing stops before it costs anything."""

import math

import torch
from torch import Tensor, nn

from llmt.errors import DivergedError
from llmt.training.optim import Optimizer

CHECKED_STEPS = 2
"""Steps that are watched: one half of a fresh adapter has no gradient in the first."""

WATCHED_RATE = 1e-6
"""Steps with a lower rate are not watched: rounding to fp32 may swallow what they change."""


def check_coverage(model: nn.Module, optimizer: Optimizer) -> None:
    """Every trainable tensor is in exactly one group.

    Raises:
        DivergedError: One is missing, moved twice, or has a learning rate of zero; names it.
    """
    grouped = [w.name for group in optimizer.groups for w in group.weights]
    for name, parameter in model.named_parameters():
        times = grouped.count(name)
        if times != int(parameter.requires_grad):
            raise DivergedError(f"{name}: in {times} optimizer groups", "report this with your configuration")
    if not grouped:
        raise DivergedError("no tensor is trainable", "check lora.target_modules")
    still = next((group.weights[0].name for group in optimizer.groups if group.peak == 0), None)
    if still is not None:
        raise DivergedError(f"{still}: its learning rate is zero", "llmt train --learning-rate 3e-3")


def check_finite(step: int, loss: float, grad_norm: float, weights: Optimizer) -> None:
    """The loss and every gradient are numbers.

    Raises:
        DivergedError: One is not; names the step and the first bad tensor.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    bad = next(
        (w.name for w in weights.weights if w.master.grad is not None and not w.master.grad.isfinite().all()), None
    )
    what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient norm became {grad_norm}"
    where = f", first bad tensor {bad}" if bad else ""
    raise DivergedError(f"{what} at step {step}{where}", "lower training.learning_rate or lengthen the warm-up")


def check_weights(step: int, optimizer: Optimizer) -> None:
    """What would be saved holds numbers only: the last update before a checkpoint may have overflowed.

    Raises:
        DivergedError: It does not; names the step and the first bad tensor.
    """
    for name, tensor in (optimizer.masters() | optimizer.state()).items():
        if not bool(tensor.isfinite().all()):
            raise DivergedError(
                f"{name} is not finite after step {step}", "lower training.learning_rate or lengthen the warm-up"
            )


class ChangeWatch:
    """Compares every tensor before the first step with the same tensor after the second."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._before = self._sums()
        self._steps = 0

    def after_step(self) -> bool:
        """Count one step; at the last watched one, compare. Returns whether watching goes on.

        Raises:
            DivergedError: A trainable tensor is unchanged, or a frozen one moved.
        """
        self._steps += 1
        if self._steps < CHECKED_STEPS:
            return True
        trained = {w.name for w in self._optimizer.weights}
        for name, after in self._sums().items():
            changed = after != self._before[name]
            if changed and name not in trained:
                raise DivergedError(f"{name}: is frozen and yet it changed", "report this with your configuration")
            if not changed and name in trained:
                raise DivergedError(
                    f"{name}: unchanged after {CHECKED_STEPS} steps, it gets no gradient",
                    "check that the data has targets and that the learning rate is above zero",
                )
        return False

    def _sums(self) -> dict[str, tuple[float, float]]:
        masters: dict[str, Tensor] = {name: p.detach() for name, p in self._model.named_parameters()}
        masters |= self._optimizer.masters()
        return {name: (_sum(tensor), _sum(tensor.abs())) for name, tensor in masters.items()}


def _sum(tensor: Tensor) -> float:
    wide = torch.float32 if tensor.device.type == "mps" else torch.float64
    return float(tensor.sum(dtype=wide))
