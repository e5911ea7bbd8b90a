"""runs of token ids -> batches. The one place where labels are shifted."""

from collections.abc import Sequence
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
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from page-locked memory without waiting for the copy."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.tokens,
        )

    def pin(self) -> "Batch":
        """The batch in page-locked memory."""
        return Batch(self.input_ids.pin_memory(), self.labels.pin_memory(), self.tokens)


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
