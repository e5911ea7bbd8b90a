"""sequences -> batches, in an order that depends on the seed and the sample number alone."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import torch

from llmt.data.batch import IGNORED, Batch
from llmt.data.mixture import TrainingSet
from llmt.data.sequences import Sequences
from llmt.errors import MismatchError

_AHEAD_PER_WORKER = 2


class BatchLoader:
    """Endless batches for training.

    Sample number k is `samples.find(seed, k, 1)`, whatever the batch size, the workers and the processes. Of a run on
    several processes, each reads every `world_size`-th batch, beginning with its own.

    Args:
        samples: The sequences to train on.
        batch_size: B, the samples of a batch.
        seed: Decides the order.
        num_workers: Threads that read ahead; 0 reads in the caller's thread.
        pin_memory: Put batches into page-locked memory.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        samples: TrainingSet,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._rank = rank
        self._world_size = world_size

    @property
    def count(self) -> int:
        """Samples in an epoch."""
        return self.samples.count

    def epoch(self, samples: int) -> float:
        """Passes over the text after so many samples."""
        return samples / self.count

    def position(self) -> None:
        """Nothing: where these batches go on is told by the number of the sample."""

    def go_to(self, position: dict[str, Any] | None) -> None:
        """Nothing has to be done; see `position`.

        Raises:
            MismatchError: A place in a stream is given.
        """
        if position is not None:
            raise MismatchError("the checkpoint belongs to a run that streams its text", "start the run anew")

    def batch_at(self, start_sample: int) -> Batch:
        """The `(B, T)` batch of the samples `start_sample` to `start_sample + B - 1`."""
        samples = self.samples
        found = samples.find(self._seed, start_sample, self._batch_size)
        batch = _read(samples, found, samples.block_size, samples.padding_id, masks=samples.masks)
        return batch.pin() if self._pin_memory else batch

    def batches(self, start_sample: int = 0) -> Iterator[Batch]:
        """Batch after batch from a sample of all processes on, over all epochs; close it to end its threads."""
        starts = count(start_sample + self._rank * self._batch_size, self._batch_size * self._world_size)
        if self._num_workers == 0:
            yield from map(self.batch_at, starts)
        else:
            yield from self._read_ahead(starts)

    def _read_ahead(self, starts: Iterator[int]) -> Iterator[Batch]:
        executor = ThreadPoolExecutor(self._num_workers, thread_name_prefix="llmt-batches")
        waiting: deque[Future[Batch]] = deque()
        try:
            while True:
                while len(waiting) < self._num_workers * _AHEAD_PER_WORKER:
                    waiting.append(executor.submit(self.batch_at, next(starts)))
                yield waiting.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


class SampledData:
    """Data whose samples are numbered and can be read in any order: the part that a run asks all of it for.

    Attributes:
        train: The sequences to train on.
    """

    train: TrainingSet

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return self.train.count

    @property
    def tokens_per_sample(self) -> float:
        """Labels of a sample on average."""
        return self.train.tokens_per_sample

    @property
    def masks(self) -> bool:
        """Attention stays inside each document."""
        return self.train.masks

    def loader(
        self, batch_size: int, seed: int, num_workers: int, pin_memory: bool, rank: int = 0, world_size: int = 1
    ) -> BatchLoader:
        """Batches in the order of a seed; of several processes, those of one."""
        return BatchLoader(self.train, batch_size, seed, num_workers, pin_memory, rank=rank, world_size=world_size)


def evaluation_batches(sequences: Sequences, batch_size: int, count: int | None = None) -> Iterator[Batch]:
    """Every target of the first `count` sequences once, in order, of all without it; the last batch may be smaller."""
    held_out = TrainingSet((sequences,))
    padding_id = held_out.padding_id
    count = sequences.count if count is None else count
    for first in range(0, count, batch_size):
        numbers = [(0, number) for number in range(first, min(first + batch_size, count))]
        yield _read(held_out, numbers, sequences.block_size, padding_id, masks=sequences.masks)


def _read(
    samples: TrainingSet, found: Sequence[tuple[int, int]], block_size: int, padding_id: int, *, masks: bool
) -> Batch:
    shape = (len(found), block_size)
    input_ids = np.full(shape, padding_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.broadcast_to(np.arange(block_size), shape).copy() if masks else None
    tokens = 0
    for row, sample in enumerate(found):
        kept_apart = positions[row] if positions is not None and samples.parts[sample[0]].masks else None
        tokens += samples.fill(sample, input_ids[row], labels[row], kept_apart)
    position_ids = None if positions is None else torch.from_numpy(positions)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), tokens, position_ids)
