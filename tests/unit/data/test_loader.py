"""Shards to batches."""

import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from llmt.data.batch import IGNORED, Batch
from llmt.data.loader import BatchLoader, evaluation_batches
from llmt.data.mixture import TrainingSet
from llmt.data.order import sample_index
from llmt.data.sequences import BlockSequences
from llmt.data.shards import ShardSet


def _shards(tokens: int) -> ShardSet:
    """A stream in which each id tells its place."""
    return ShardSet(np.arange(tokens, dtype="<u4"), np.array([1, tokens]), 1, tokens, 0)


def _blocks(tokens: int, block_size: int) -> TrainingSet:
    return TrainingSet((BlockSequences(_shards(tokens), block_size),))


def _pairs(batch: Batch) -> list[tuple[int, int]]:
    """The (input, label) pairs that count, in order."""
    counts = batch.labels != IGNORED
    assert int(counts.sum()) == batch.tokens
    return list(zip(batch.input_ids[counts].tolist(), batch.labels[counts].tolist(), strict=True))


def _rows(loader: BatchLoader, start: int, samples: int) -> list[list[int]]:
    rows: list[list[int]] = []
    batches = loader.batches(start)
    while len(rows) < samples:
        batch = next(batches)
        rows += torch.cat([batch.input_ids, batch.labels], dim=1).tolist()
    batches.close()  # type: ignore[attr-defined]
    return rows[:samples]


def test_labels_are_the_inputs_shifted_once() -> None:
    """Each label is the id that follows its input in the stream; the padding predicts nothing."""
    (batch,) = evaluation_batches(BlockSequences(_shards(6), 3), 2)
    assert batch.input_ids.tolist() == [[0, 1, 2], [3, 4, 0]]
    assert batch.labels.tolist() == [[1, 2, 3], [4, 5, IGNORED]]
    assert batch.tokens == 5
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


@pytest.mark.parametrize("tokens", [2, 3, 8, 9, 10, 100, 101])
@pytest.mark.parametrize("block_size", [2, 4, 7])
def test_an_epoch_predicts_every_token_once(tokens: int, block_size: int) -> None:
    """For training and for evaluation: each id but the first is a label once, after the id before it."""
    shards = _shards(tokens)
    expected = [(place, place + 1) for place in range(tokens - 1)]
    blocks = BlockSequences(shards, block_size)
    loader = BatchLoader(TrainingSet((blocks,)), batch_size=1, seed=3)
    for epoch in range(2):
        batches = islice(loader.batches(epoch * loader.count), loader.count)
        assert sorted(pair for batch in batches for pair in _pairs(batch)) == expected
    for batch_size in (1, 3, 64):
        found = list(evaluation_batches(blocks, batch_size))
        assert [pair for batch in found for pair in _pairs(batch)] == expected
        assert [len(batch.labels) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
        assert all(batch.input_ids.shape[1] == block_size for batch in found)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("start", [0, 5, 1000])
def test_sample_k_is_the_same_however_it_is_read(batch_size: int, num_workers: int, start: int) -> None:
    """Batch size, workers and starting point do not change which sample has which number."""
    loader = BatchLoader(_blocks(104, 10), batch_size, seed=42, num_workers=num_workers)
    assert loader.count == 11
    firsts = [row[0] for row in _rows(loader, start, 40)]
    assert firsts == [sample_index(42, start + number, 11) * 10 for number in range(40)]


def test_epochs_differ_and_a_batch_may_span_two() -> None:
    """The last batch of an epoch is filled from the next one, in which every sample comes again."""
    loader = BatchLoader(_blocks(101, 10), batch_size=4, seed=0)
    rows = [row[0] for row in _rows(loader, 0, 20)]
    assert rows[:10] != rows[10:]
    assert Counter(rows) == Counter({start: 2 for start in range(0, 100, 10)})
    assert loader.batch_at(8).input_ids[:, 0].tolist() == rows[8:12]


def test_another_seed_is_another_order() -> None:
    """And the same seed is the same one."""
    orders = [[row[0] for row in _rows(BatchLoader(_blocks(1001, 10), 4, seed), 0, 100)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_reading_draws_no_random_number() -> None:
    """torch's own generator stands where it stood, so that evaluating does not change training."""
    state = torch.get_rng_state()
    next(BatchLoader(_blocks(101, 10), 4, seed=0, num_workers=1).batches())
    list(evaluation_batches(BlockSequences(_shards(101), 10), 4))
    assert torch.equal(torch.get_rng_state(), state)


def _workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llmt-batches")]


def test_threads_end_with_the_iterator_and_read_a_bounded_part_ahead() -> None:
    """Two workers hold at most four batches ready; none is left when the iterator is closed or dropped."""
    read: list[int] = []

    class Watched(BatchLoader):
        def batch_at(self, start_sample: int) -> Batch:
            read.append(start_sample)
            return super().batch_at(start_sample)

    batches = Watched(_blocks(101, 10), 4, seed=0, num_workers=2).batches()
    next(batches)
    time.sleep(0.05)
    assert len(read) <= 1 + 4
    assert _workers()
    del batches
    assert not _workers()


def test_an_exception_of_a_worker_arrives_at_its_place() -> None:
    """The batches before it come first; afterwards no thread is left."""

    class Broken(BatchLoader):
        def batch_at(self, start_sample: int) -> Batch:
            if start_sample >= 8:
                raise OSError("the disk is gone")
            return super().batch_at(start_sample)

    batches = Broken(_blocks(101, 10), 4, seed=0, num_workers=2).batches()
    assert next(batches).tokens == next(batches).tokens == 40
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert not _workers()


def test_a_batch_moves_to_a_device() -> None:
    """Both tensors go, the count stays."""
    batch = next(evaluation_batches(BlockSequences(_shards(3), 2), 1)).to("meta")
    assert (batch.input_ids.device.type, batch.labels.device.type, batch.tokens) == ("meta", "meta", 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_batches_can_lie_in_page_locked_memory(tmp_path: Path) -> None:
    """With `pin_memory` both tensors are pinned."""
    batch = next(BatchLoader(_blocks(101, 10), 4, seed=0, pin_memory=True).batches())
    assert batch.input_ids.is_pinned()
    assert batch.labels.is_pinned()


def _documents(lengths: list[int]) -> ShardSet:
    """A stream of documents of these lengths, end-of-text ids (0) between them."""
    rows = [
        [0],
        *([number * 100 + place for place in range(1, length)] + [0] for number, length in enumerate(lengths, 1)),
    ]
    ids = np.array([token for row in rows for token in row], dtype="<u4")
    return ShardSet(ids, np.cumsum([1, *lengths]).astype("<u8"), 1, 10_000, 0)


@pytest.mark.parametrize("block_size", [2, 3, 5, 8, 64])
def test_positions_begin_anew_with_each_document(block_size: int) -> None:
    """At each end-of-text input, at the start of a block, and where the padding begins: counted input by input."""
    shards = _documents([4, 1, 2, 30, 1, 1, 9])
    for batch in evaluation_batches(BlockSequences(shards, block_size, document_mask=True), 3):
        assert batch.position_ids is not None
        for row, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids.tolist(), strict=True):
            expected, place, padded = [], 0, False
            for column, (token, label) in enumerate(zip(row.tolist(), labels.tolist(), strict=True)):
                begins = label != IGNORED and token == 0
                pads = label == IGNORED and not padded
                place = 0 if column == 0 or begins or pads else place + 1
                padded = padded or pads
                expected.append(place)
            assert positions == expected


def _masked(shards: ShardSet, block_size: int, *, document_mask: bool = True) -> TrainingSet:
    return TrainingSet((BlockSequences(shards, block_size, document_mask=document_mask),))


def test_without_borders_or_unasked_there_are_no_positions() -> None:
    """A stream of one document is read as it always was, and so is one whose documents are not kept apart."""
    one, several = _documents([30]), _documents([4, 20])
    assert BatchLoader(_masked(one, 8), 2, seed=0).batch_at(0).position_ids is None
    assert BatchLoader(_masked(several, 8, document_mask=False), 2, seed=0).batch_at(0).position_ids is None
    assert BatchLoader(_masked(several, 8), 2, seed=0).batch_at(0).position_ids is not None
