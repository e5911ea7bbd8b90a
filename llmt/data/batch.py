"""runs of token ids -> batches. The one place where labels are shifted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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


def make_batch(runs: Sequence[NDArray[Any]], block_size: int, padding_id: int) -> Batch:
    """A batch of `(len(runs), block_size)`: the input is a run without its last id, the labels the ids after.

    Args:
        runs: Consecutive ids, between 2 and `block_size + 1` of each.
        block_size: T.
        padding_id: Fills the input of a short run; its labels there are -100.
    """
    input_ids = np.full((len(runs), block_size), padding_id, dtype=np.int64)
    labels = np.full((len(runs), block_size), IGNORED, dtype=np.int64)
    for row, run in enumerate(runs):
        input_ids[row, : len(run) - 1] = run[:-1]
        labels[row, : len(run) - 1] = run[1:]
    tokens = sum(len(run) - 1 for run in runs)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), tokens)
