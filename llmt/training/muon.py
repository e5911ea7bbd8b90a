"""Muon over all matrices of one shape at once, in the precision of the run.

torch.optim.Muon takes one matrix after another, and in bf16 whatever the weights are. Matrices as small as a block's do
not fill a processor with matrix tiles, whose products of many at once are two or three times as fast; and where a
processor has no bf16 products they are emulated, and a step takes many times as long as in fp32.

Source: Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: an optimizer for hidden layers in neural
networks", 2024 (https://kellerjordan.github.io/posts/muon/).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 1 << 22
"""Values of the matrices that are orthogonalised at once: more would take memory and be no faster."""

Pair = tuple[Tensor, Tensor]
"""A matrix and its gradient."""


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, but for rounding.

    Args:
        weights: Matrices in fp32.
        dtype: What the products are computed in.
        options: Those of `torch.optim.Muon`.
    """

    def __init__(self, weights: list[Tensor], dtype: torch.dtype, **options: Any) -> None:
        super().__init__(weights, adjust_lr_fn="match_rms_adamw", **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every matrix that has a gradient; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for batch in _batches([(weight, weight.grad) for weight in group["params"] if weight.grad is not None]):
                self._move(batch, group)
        return loss

    def _move(self, batch: list[Pair], group: Mapping[str, Any]) -> None:
        """One step of matrices whose shapes are the same, or would be if some were transposed."""
        first, _ = batch[0]
        updates = torch.empty(len(batch), *sorted(first.shape), dtype=self.dtype, device=first.device)
        for (weight, gradient), place in zip(batch, updates, strict=True):
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            place.copy_(_wide(update))
        directions = orthogonalise(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for (weight, _), direction in zip(batch, directions, strict=True):
            rate = group["lr"] * 0.2 * math.sqrt(max(weight.shape))  # as large as AdamW's, whatever the shape
            _wide(weight.mul_(1 - group["lr"] * group["weight_decay"])).add_(direction, alpha=-rate)


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, by Newton and Schulz's iteration.

    Args:
        matrices: `(k, n, m)`, n at most m; changed to have norm 1.
        coefficients: Of the polynomial of degree five, by which each step takes the singular values.
        steps: How many.
        eps: The norm is taken to be at least this.

    Returns:
        `(k, n, m)`.
    """
    a, b, c = coefficients
    x = matrices.div_(matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _wide(matrix: Tensor) -> Tensor:
    """The matrix, or a view of it with the longer side last."""
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _batches(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Weights of the same shape, tall ones with wide ones, as many at once as there may be."""
    alike = defaultdict[tuple[Any, ...], list[Pair]](list)
    for pair in pairs:
        alike[(*sorted(pair[0].shape), pair[0].device)].append(pair)
    for members in alike.values():
        size = max(1, AT_ONCE // members[0][0].numel())
        yield from (members[start : start + size] for start in range(0, len(members), size))
