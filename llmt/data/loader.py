"""shards -> batches, in an order that depends on the seed and the sample number alone.

The stream of N ids is cut into blocks of T + 1 ids that overlap by one, so that each id but the first is
predicted exactly once in an epoch. The last block may be short. With a document mask, the inputs of a document begin
with the end-of-text id before it, and positions begin anew there and at the start of each block.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from llmt.data.batch import Batch, make_batch
from llmt.data.order import sample_indices
from llmt.data.shards import ShardSet

_AHEAD_PER_WORKER = 2


def count_blocks(shards: ShardSet, block_size: int) -> int:
    """Blocks in one pass over the shards, the last and perhaps short one included."""
    return -(-shards.targets // block_size)


class BatchLoader:
    """Endless batches for training.

    Sample number k is block `sample_index(seed, k, blocks)`, whatever the batch size, the workers and the processes:
    of several processes each reads every `world_size`-th batch, beginning with its own.

    Args:
        shards: The ids to train on, at least two.
        block_size: T, the tokens of a sample.
        batch_size: B, the samples of a batch.
        seed: Decides the order.
        num_workers: Threads that read ahead; 0 reads in the caller's thread.
        pin_memory: Put batches into page-locked memory.
        document_mask: Give the positions that keep documents apart.
    """

    def __init__(
        self,
        shards: ShardSet,
        block_size: int,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        document_mask: bool = False,
    ) -> None:
        self._shards = shards
        self._block_size = block_size
        self._batch_size = batch_size
        self._seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._document_mask = document_mask
        self.blocks = count_blocks(shards, block_size)
        """Samples in an epoch."""

    def batch_at(self, start_sample: int) -> Batch:
        """The `(B, T)` batch of the samples `start_sample` to `start_sample + B - 1`."""
        numbers = sample_indices(self._seed, start_sample, self._batch_size, self.blocks)
        blocks = [int(number) for number in numbers]
        batch = _read_blocks(self._shards, blocks, self._block_size, document_mask=self._document_mask)
        return batch.pin() if self._pin_memory else batch

    def batches(self, start_sample: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batch after batch from a sample on, over any number of epochs; close it to end its threads.

        Args:
            start_sample: The first sample of all processes.
            rank: Number of this process.
            world_size: Number of processes.
        """
        starts = count(start_sample + rank * self._batch_size, self._batch_size * world_size)
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


def evaluation_batches(
    shards: ShardSet, block_size: int, batch_size: int, *, document_mask: bool = False
) -> Iterator[Batch]:
    """Every target of the shards once, in order; the last batch may hold fewer rows."""
    blocks = count_blocks(shards, block_size)
    for first in range(0, blocks, batch_size):
        numbers = range(first, min(first + batch_size, blocks))
        yield _read_blocks(shards, numbers, block_size, document_mask=document_mask)


def _read_blocks(shards: ShardSet, numbers: Sequence[int], block_size: int, *, document_mask: bool) -> Batch:
    starts = [number * block_size for number in numbers]
    runs = [shards.tokens[start : start + block_size + 1] for start in starts]
    batch = make_batch(runs, block_size, shards.eos_token_id)
    if not document_mask or shards.documents < 2:
        return batch
    positions = np.stack([_positions(shards, start, block_size) for start in starts])
    return Batch(batch.input_ids, batch.labels, batch.tokens, torch.from_numpy(positions))


def _positions(shards: ShardSet, start: int, block_size: int) -> NDArray[np.int64]:
    """The place of each input of a block in its document, `(T,)`; padding is one more document."""
    stop = min(start + block_size, shards.targets)
    # The first input of a document is the end-of-text id before it.
    low, high = np.searchsorted(shards.offsets, (start + 2, stop + 1))
    positions = np.arange(block_size, dtype=np.int64)
    for first in shards.offsets[low:high].astype(np.int64) - 1 - start:
        positions[first:] -= positions[first]
    positions[stop - start :] = np.arange(block_size - (stop - start))
    return positions
