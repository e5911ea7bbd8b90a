"""What a model is trained on at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

IGNORED = -100
"""The label of a position at which nothing is predicted (what PyTorch's cross entropy ignores)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Input ids and the ids to predict from them.

    Attributes:
        input_ids: `(B, T)` int64.
        labels: `(B, T)` int64; `labels[b, t]` is the id that follows `input_ids[b, t]`, or -100.
        tokens: How many labels are not -100.
        position_ids: `(B, T)` int64, the place of each input in its document: a 0 begins another one, and attention
            does not cross it. None where a row is read as one text.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int
    position_ids: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from page-locked memory without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The batch in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        positions = None if self.position_ids is None else change(self.position_ids)
        return Batch(change(self.input_ids), change(self.labels), self.tokens, positions)
