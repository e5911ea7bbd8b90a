"""several sources and their weights -> which sequence stands at which place of the endless order.

The sources take turns in a pattern of ten thousand places in which each has its share, spread evenly: after any number
of samples each source was drawn from as often as its weight says, to within a few. Which of its own sequences is drawn
is the order of that source alone, so that adding steps, processes or batches changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmt.data.order import sample_index, sample_indices
from llmt.data.sequences import Row, Sequences

PERIOD = 10_000
_OTHER_SEED = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class TrainingSet:
    """What a run is trained on.

    Attributes:
        parts: The sequences of each source, or of all sources together.
        weights: How often each part is drawn from; empty draws every sequence once in an epoch.
    """

    parts: tuple[Sequences, ...]
    weights: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Samples in an epoch: as many as there are sequences."""
        return sum(part.count for part in self.parts)

    @property
    def masks(self) -> bool:
        """Documents are kept apart in some part, so that batches have positions."""
        return any(part.masks for part in self.parts)

    @property
    def block_size(self) -> int:
        """T, the length of a sequence."""
        return self.parts[0].block_size

    @property
    def padding_id(self) -> int:
        """The id that fills short sequences."""
        return self.parts[0].shards.eos_token_id

    @property
    def tokens_per_sample(self) -> float:
        """Labels of a sample on average."""
        shares = self.shares()
        return sum(share * part.trained / part.count for share, part in zip(shares, self.parts, strict=True) if share)

    def shares(self) -> list[float]:
        """The share of the samples that comes from each part."""
        if not self.weights:
            return [part.count / self.count for part in self.parts]
        return [int((self._pattern == number).sum()) / PERIOD for number in range(len(self.parts))]

    def passes(self) -> list[float]:
        """How often one epoch goes through each part."""
        return [share * self.count / max(part.count, 1) for share, part in zip(self.shares(), self.parts, strict=True)]

    def find(self, seed: int, start: int, count: int) -> list[tuple[int, int]]:
        """The samples `start` to `start + count - 1` as (part, number of its sequence).

        Args:
            seed: The seed of the run.
            start: Sample number, from 0, over any number of epochs.
            count: How many.
        """
        if not self.weights:
            found = []
            for number in sample_indices(seed, start, count, self.count):
                part = int(np.searchsorted(self._ends, number, side="right"))
                found.append((part, int(number) - (int(self._ends[part - 1]) if part else 0)))
            return found
        return [self._find_weighted(seed, place) for place in range(start, start + count)]

    def fill(self, sample: tuple[int, int], input_ids: Row, labels: Row, position_ids: Row | None) -> int:
        """Write one sample; see `Sequences.fill`."""
        return self.parts[sample[0]].fill(sample[1], input_ids, labels, position_ids)

    def _find_weighted(self, seed: int, place: int) -> tuple[int, int]:
        turns, at = divmod(place, PERIOD)
        part = int(self._pattern[at])
        drawn = turns * int(self._drawn[part, PERIOD]) + int(self._drawn[part, at])
        return part, sample_index(seed + part * _OTHER_SEED, drawn, self.parts[part].count)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([part.count for part in self.parts])

    @cached_property
    def _pattern(self) -> NDArray[np.int64]:
        return spread([weight if part.count else 0 for weight, part in zip(self.weights, self.parts, strict=True)])

    @cached_property
    def _drawn(self) -> NDArray[np.int64]:
        """How often each part occurs before each place of the pattern, `(parts, PERIOD + 1)`."""
        hits = np.stack([self._pattern == number for number in range(len(self.parts))])
        return np.concatenate([np.zeros((len(self.parts), 1), np.int64), np.cumsum(hits, axis=1)], axis=1)


def spread(weights: Sequence[float]) -> NDArray[np.int64]:
    """A pattern of `PERIOD` numbers in which each number has the share of its weight, evenly spread.

    Shares are rounded to a ten-thousandth by the largest remainder; a weight above 0 gets one place at least.
    """
    relative = np.asarray(weights, dtype=float) / max(weights)  # sums of huge or tiny numbers would not hold
    shares = relative * (PERIOD / relative.sum())
    counts = np.floor(shares).astype(int)
    for number in np.argsort(counts - shares, kind="stable")[: PERIOD - int(counts.sum())]:
        counts[number] += 1
    for number in np.flatnonzero((counts == 0) & (shares > 0)):
        counts[number], counts[int(counts.argmax())] = 1, int(counts.max()) - 1
    # The k-th of n turns of a source is due at (k + 1/2) / n of the period.
    due = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n])
    owner = np.concatenate([np.full(n, number) for number, n in enumerate(counts) if n])
    return owner[np.argsort(due, kind="stable")]
