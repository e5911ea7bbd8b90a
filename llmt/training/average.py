"""weights of all steps -> their exponential moving average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llmt.training.optim import Optimizer


class Average:
    """An exponential moving average of the trained weights, in fp32.

    The decay grows to its value over the first steps, as `(1 + step) / (10 + step)`, so that the random weights of
    the beginning are forgotten.

    Args:
        optimizer: Whose weights.
        decay: Share of the old average that stays in a step.

    Attributes:
        values: Name -> average.
    """

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self._optimizer = optimizer
        self._decay = decay
        self.values = {name: tensor.clone() for name, tensor in optimizer.masters().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        masters = list(self._optimizer.masters().values())
        torch._foreach_lerp_(list(self.values.values()), masters, 1 - decay)

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Take up an average by name."""
        for name, tensor in self.values.items():
            tensor.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the body runs, the model computes with the average; then with its own weights, bit for bit."""
        weights = self._optimizer.weights
        own = [weight.parameter.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                weight.parameter.copy_(self.values[weight.name])
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, own, strict=True):
                    weight.parameter.copy_(value)
