"""SGD with momentum whose weight decay is decoupled, as in every other optimizer here."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class DecoupledSGD(torch.optim.SGD):
    """`torch.optim.SGD`, but that decay scales the weights and does not enter the momentum.

    torch's adds it to the gradient: with a momentum of 0.9 the weights would shrink ten times as fast as asked.

    Source: SGDW in Loshchilov and Hutter, "Decoupled weight decay regularization", 2019
    (https://arxiv.org/abs/1711.05101).

    Args:
        weights: Of any shape.
        lr: Learning rate.
        momentum: Share of the last move that goes into the next; with 0 there is no state.
        decay: Each step scales the weights by 1 - lr * decay first.
    """

    def __init__(self, weights: Sequence[Tensor], lr: float, momentum: float, decay: float) -> None:
        super().__init__(weights, lr=lr, momentum=momentum, foreach=True)
        for group in self.param_groups:
            group["decay"] = decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every weight that has a gradient; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            if moved:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["decay"])
        super().step()
        return loss
