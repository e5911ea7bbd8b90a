"""Weighted mixtures, and the order of their samples."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmt.data.loader import BatchLoader
from llmt.data.mixture import PERIOD, TrainingSet, spread
from llmt.data.sequences import BlockSequences
from llmt.data.shards import ShardSet, ShardWriter, open_shards

SIZE = 4


def _blocks(tokens: int, first: int = 0) -> BlockSequences:
    """A row of ids in which each tells its place and its source."""
    ids = np.arange(first, first + tokens, dtype="<u4")
    return BlockSequences(ShardSet(ids, np.array([1, tokens]), 1, 10**6, 0), SIZE)


@given(st.lists(st.just(0.0) | st.floats(1e-3, 1e6), min_size=1, max_size=6).filter(any))
def test_each_source_has_its_share(weights: list[float]) -> None:
    """To a ten-thousandth, evenly: after any number of places a source is within two of its due."""
    pattern = spread(weights)
    assert len(pattern) == PERIOD
    largest = max(weights)
    total = sum(weight / largest for weight in weights)
    for number, weight in enumerate(weights):
        count = int((pattern == number).sum())
        assert abs(count - weight / largest / total * PERIOD) <= len(weights)
        assert (count > 0) == (weight > 0)
        drawn = np.cumsum(pattern == number)
        due = np.arange(1, PERIOD + 1) * count / PERIOD
        assert np.abs(drawn - due).max() <= len(weights) + 1


def test_without_weights_an_epoch_holds_every_sequence_once() -> None:
    """Of all parts; the order is one over all of them."""
    train = TrainingSet((_blocks(41), _blocks(81)))
    assert train.count == 30
    for epoch in range(3):
        found = train.find(7, epoch * 30, 30)
        assert sorted(found) == [(0, n) for n in range(10)] + [(1, n) for n in range(20)]
    assert train.find(7, 0, 30) != train.find(8, 0, 30)
    assert train.tokens_per_sample == 4


def test_a_mixture_draws_by_weight_and_goes_through_each_source() -> None:
    """A small source of a large weight comes again and again, each time all of it, in another order."""
    train = TrainingSet((_blocks(41), _blocks(4_001, 100)), (3, 1))
    found = train.find(1, 0, 10_000)
    counts = Counter(part for part, _ in found)
    assert counts == {0: 7_500, 1: 2_500}
    assert train.shares() == [0.75, 0.25]
    small = [number for part, number in found if part == 0]
    passes = [small[place : place + 10] for place in range(0, len(small), 10)]
    assert all(sorted(once) == list(range(10)) for once in passes)
    assert len({tuple(once) for once in passes}) > 500
    large = [number for part, number in found if part == 1]
    assert sorted(large[:1_000]) == list(range(1_000))


@given(st.integers(0, 30_000), st.integers(1, 50))
def test_a_mixture_is_read_from_any_place(start: int, count: int) -> None:
    """As from the beginning."""
    train = TrainingSet((_blocks(41), _blocks(401), _blocks(81)), (1, 2, 0.5))
    assert train.find(3, start, count) == [train.find(3, start + place, 1)[0] for place in range(count)]


def test_the_order_is_that_of_every_version() -> None:
    """A run of an earlier llmt goes on with the samples that it would have had."""
    train = TrainingSet((_blocks(41), _blocks(401), _blocks(81)), (1, 2, 0.5))
    drawn = " ".join(f"{part}:{number}" for part, number in train.find(3, 0, 2_000))
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "5c5d84c137e47310"


def test_a_weight_of_zero_is_never_drawn() -> None:
    """Also of a source that is empty."""
    train = TrainingSet((_blocks(41), _blocks(401)), (1, 0))
    assert {part for part, _ in train.find(0, 0, 5_000)} == {0}


_STREAM = """
import sys
import torch
from pathlib import Path
from llmt.data.loader import BatchLoader
from llmt.data.mixture import TrainingSet
from llmt.data.sequences import BlockSequences
from llmt.data.shards import open_shards

folder, workers, batch_size, rank, world_size, start, samples = sys.argv[1], *map(int, sys.argv[2:])
parts = tuple(BlockSequences(open_shards(Path(folder), name), 4, document_mask=True) for name in ("train", "train-1"))
loader = BatchLoader(TrainingSet(parts, (2, 1)), batch_size, 5, workers, rank=rank, world_size=world_size)
batches = loader.batches(start)
for _ in range((samples - start) // (batch_size * world_size)):
    batch = next(batches)
    for row in torch.cat([batch.input_ids, batch.labels, batch.position_ids], dim=1).tolist():
        print(*row)
batches.close()
"""


def test_the_stream_of_samples_is_one_over_processes(tmp_path: Path) -> None:
    """One hash over processes, workers, batch sizes and starts; the whole product of them is tried below.

    Each process reads by itself, as in a run on several; the batches of a step are put together in the order of ranks.
    """
    for name, count in (("train", 40), ("train-1", 70)):
        with ShardWriter(tmp_path, name, vocab_size=1_000, eos_token_id=0) as writer:
            for number in range(count):
                writer.add([([number + 1] * (number % 7 + 1), number % 2 == 0)], 1)
            writer.finish()
    parts = tuple(BlockSequences(open_shards(tmp_path, n), 4, document_mask=True) for n in ("train", "train-1"))
    samples = 96
    whole = BatchLoader(TrainingSet(parts, (2, 1)), samples, 5).batch_at(0)
    assert whole.position_ids is not None
    rows = torch.cat([whole.input_ids, whole.labels, whole.position_ids], dim=1).tolist()
    expected = [" ".join(map(str, row)) for row in rows]
    hashes = set()
    cases = ((1, 4, 8, 0), (2, 0, 2, 16), (2, 4, 1, 48))
    for world_size, workers, batch_size, start in cases:
        arguments = [str(tmp_path), *map(str, (workers, batch_size))]
        rest = list(map(str, (world_size, start, samples)))
        started = [
            subprocess.Popen(
                [sys.executable, "-c", _STREAM, *arguments, str(rank), *rest], stdout=subprocess.PIPE, text=True
            )
            for rank in range(world_size)
        ]
        printed = [process.communicate()[0].splitlines() for process in started]
        assert all(process.returncode == 0 for process in started)
        found = list(expected[:start])
        while printed[0]:
            for lines in printed:
                found += lines[:batch_size]
                del lines[:batch_size]
        hashes.add(hashlib.sha256("\n".join(found).encode()).hexdigest())
    assert hashes == {hashlib.sha256("\n".join(expected).encode()).hexdigest()}


def test_the_stream_of_samples_is_one_over_everything() -> None:
    """The whole product of workers, batch sizes, ranks and starts, in one process."""
    train = TrainingSet((_blocks(90), _blocks(200, 100)), (1, 3))

    def rows(batch_size: int, workers: int, ranks: int, start: int) -> list[list[int]]:
        streams = [
            BatchLoader(train, batch_size, 5, workers, rank=rank, world_size=ranks).batches(start)
            for rank in range(ranks)
        ]
        found: list[list[int]] = []
        while len(found) < 96 - start:
            for stream in streams:
                batch = next(stream)
                found += torch.cat([batch.input_ids, batch.labels], dim=1).tolist()
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
        return found

    reference = rows(1, 0, 1, 0)
    for workers in (0, 1, 4):
        for batch_size in (1, 2, 8):
            for ranks in (1, 2):
                for start in (0, 16, 32, 48, 80):
                    assert rows(batch_size, workers, ranks, start) == reference[start:]


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
def test_samples_know_where_they_come_from(weights: tuple[float, ...]) -> None:
    """`find` and the batches agree."""
    train = TrainingSet((_blocks(90), _blocks(200, 100)), weights)
    batch = BatchLoader(train, 16, 5).batch_at(3)
    for (part, number), row in zip(train.find(5, 3, 16), batch.input_ids.tolist(), strict=True):
        assert row[0] == 100 * part + SIZE * number
