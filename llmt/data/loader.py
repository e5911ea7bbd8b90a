"""shards -> batches, in an order that depends on the seed and the sample number alone.

The stream of N ids is cut into blocks of T + 1 ids that overlap by one, so that each id but the first is
predicted exactly once in an epoch. The last block may be short.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from llmt.data.batch import Batch, make_batch
from llmt.data.order import sample_indices
from llmt.data.shards import ShardSet

_AHEAD_PER_WORKER = 2


def count_blocks(shards: ShardSet, block_size: int) -> int:
    """Blocks in one pass over the shards, the last and perhaps short one included."""
    return -(-shards.targets // block_size)


class BatchLoader:
    """Endless batches for training.

    Sample number k is block `sample_index(seed, k, blocks)`, whatever the batch size and the workers.

    Args:
        shards: The ids to train on, at least two.
        block_size: T, the tokens of a sample.
        batch_size: B, the samples of a batch.
        seed: Decides the order.
        num_workers: Threads that read ahead; 0 reads in the caller's thread.
        pin_memory: Put batches into page-locked memory.
    """

    def __init__(
        self,
        shards: ShardSet,
        block_size: int,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._shards = shards
        self._block_size = block_size
        self._batch_size = batch_size
        self._seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self.blocks = count_blocks(shards, block_size)
        """Samples in an epoch."""

    def batch_at(self, start_sample: int) -> Batch:
        """The `(B, T)` batch of the samples `start_sample` to `start_sample + B - 1`."""
        numbers = sample_indices(self._seed, start_sample, self._batch_size, self.blocks)
        batch = _read_blocks(self._shards, [int(number) for number in numbers], self._block_size)
        return batch.pin() if self._pin_memory else batch

    def batches(self, start_sample: int = 0) -> Iterator[Batch]:
        """Batch after batch from a sample on, over any number of epochs; close it to end its threads."""
        starts = count(start_sample, self._batch_size)
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


def evaluation_batches(shards: ShardSet, block_size: int, batch_size: int) -> Iterator[Batch]:
    """Every target of the shards once, in order; the last batch may hold fewer rows."""
    blocks = count_blocks(shards, block_size)
    for first in range(0, blocks, batch_size):
        yield _read_blocks(shards, range(first, min(first + batch_size, blocks)), block_size)


def _read_blocks(shards: ShardSet, numbers: Sequence[int], block_size: int) -> Batch:
    starts = [number * block_size for number in numbers]
    runs = [shards.tokens[start : start + block_size + 1] for start in starts]
    return make_batch(runs, block_size, shards.eos_token_id)
