"""one window of batches -> gradients -> one move of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from llmt.data.batch import Batch
from llmt.models.base import BaseLanguageModel
from llmt.training.objective import NextToken, Objective
from llmt.training.optim import Optimizer
from llmt.training.runtime import Runtime

FIRST_SCALE = 65536.0
"""What the loss is multiplied by in fp16 at the beginning."""

GROWTH_STEPS = 2000
"""Steps without an overflow after which the scale is doubled."""

LARGEST_SCALE = 2.0**24


@dataclass(frozen=True)
class Gradients:
    """What the backward passes of a step found.

    Attributes:
        summed: Sum of the losses over all processes, such as negative log-likelihoods.
        norm: Global norm of the gradients of the mean loss, over all processes.
        scale: What the loss was multiplied by; None where it was not.
    """

    summed: float
    norm: float
    scale: float | None


class Stepper:
    """Computes the gradients of steps.

    Args:
        model: On its device, in its compute precision.
        optimizer: Over its trainable parameters.
        seed: Start of the random numbers of dropout.
        runtime: The processes that share a step.
        objective: What is learnt; None is the next token.
    """

    def __init__(
        self,
        model: BaseLanguageModel,
        optimizer: Optimizer,
        seed: int,
        runtime: Runtime,
        objective: Objective | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._seed = seed
        self._runtime = runtime
        self._objective = objective or NextToken()

    def gradients(self, window: list[Batch], step: int, count: int, scale: float | None) -> Gradients:
        """Leave the gradients of the mean loss of a step in the optimizer.

        In fp16 a step that overflows is computed again with half the scale, from the same random numbers, so that
        no step is skipped. What overflows at a scale of 1 is no number.

        Args:
            window: This process's batches.
            step: Steps finished before.
            count: What the sum of the losses is divided by: targets or pairs of the step, over all processes.
            scale: What to multiply the loss by; None for nothing.
        """
        while True:
            summed = self._backward(window, step, count, scale or 1.0)
            if self._runtime.world_size > 1:
                summed = self._exchange(summed)
            if scale is not None:
                self._optimizer.unscale(1.0 / scale)
            found = self._optimizer.gradients()
            norm = float(torch.nn.utils.get_total_norm(found)) if found else 0.0
            if scale is None or math.isfinite(norm) or not math.isfinite(summed) or scale <= 1.0:
                return Gradients(summed, norm, scale)
            self._clear()
            scale /= 2

    def _backward(self, window: list[Batch], step: int, count: int, scale: float) -> float:
        """Sum the gradients of the window's batches; the sum of its losses.

        A batch in which no token is trained is passed over.
        """
        total = 0.0
        for number, batch in enumerate(window):
            if not batch.tokens:
                continue
            seed = step_seed(self._seed, step, number * self._runtime.world_size + self._runtime.rank)
            here = batch.to(self._model.device)
            with self._exact_head():
                torch.manual_seed(seed)
                summed = self._objective.summed(self._model, here)
            (summed * (scale / count) if scale != 1.0 else summed / count).backward()
            self._optimizer.accumulate()
            total += float(summed.detach())
        return total

    @contextmanager
    def _exact_head(self) -> Iterator[None]:
        """Within it, the loss gives the output head's gradient to the fp32 values that are trained, where it can."""
        with torch.no_grad():
            self._model.exact_head = self._optimizer.master_of(self._model.output_weight())
        try:
            yield
        finally:
            self._model.exact_head = None

    def _exchange(self, summed: float) -> float:
        """Sum gradients and loss over all processes; a tensor without a gradient on all of them keeps none."""
        weights = self._optimizer.weights
        summed, *having = self._runtime.total(summed, *(float(w.master.grad is not None) for w in weights))
        for weight, processes in zip(weights, having, strict=True):
            if processes and weight.master.grad is None:
                weight.master.grad = torch.zeros_like(weight.master)
        self._runtime.sum_gradients([weight.master.grad for weight in weights])
        return summed

    def _clear(self) -> None:
        for weight in self._optimizer.weights:
            weight.parameter.grad = weight.master.grad = None


def next_scale(scale: float | None, before: float | None, steps: int) -> tuple[float | None, int]:
    """The loss scale after a step, and the steps since it changed.

    Args:
        scale: What the step came through with.
        before: What it began with.
        steps: Steps without a change before it.
    """
    if scale is None or scale != before:
        return scale, 0
    if steps + 1 >= GROWTH_STEPS and scale < LARGEST_SCALE:
        return scale * 2, 0
    return scale, steps + 1


def step_seed(seed: int, step: int, batch: int) -> int:
    """Seed of one forward pass, from a counter: SplitMix64 (https://doi.org/10.1145/2714064.2660195).

    Args:
        seed: That of the run.
        step: Steps finished before.
        batch: Number of the batch within the step, over all processes.
    """
    mask = (1 << 64) - 1
    mixed = (seed * 0x9E3779B97F4A7C15 + (step << 20) + batch) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) & ((1 << 63) - 1)
