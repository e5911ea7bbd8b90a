"""Which documents share a sequence, and that every token is accounted for."""

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmt.config.model import ModelConfig
from llmt.data.batch import IGNORED
from llmt.data.loader import evaluation_batches
from llmt.data.packing import Packed, best_fit, pack
from llmt.data.sequences import PackedSequences
from llmt.data.shards import ShardSet, ShardWriter, open_shards
from llmt.errors import DataError
from llmt.models.transformer import TransformerLM

EOS = 0
Pieces = list[tuple[list[int], bool]]


def _shards(folder: Path, documents: list[Pieces]) -> ShardSet:
    with ShardWriter(folder, "train", vocab_size=10_000, eos_token_id=EOS) as writer:
        for number, pieces in enumerate(documents):
            learnt = pieces[-1][1] if pieces else True
            writer.add(pieces, 1, trained_bytes=1, end_learnt=learnt, place=f"file:{number + 1}")
        writer.finish()
    return open_shards(folder, "train")


def _sequences(shards: ShardSet, packed: Packed, size: int, *, mask: bool = True) -> PackedSequences:
    return PackedSequences(
        shards, size, packed.pieces, packed.edges, trained=packed.audit.trained, whole=True, document_mask=mask
    )


pieces = st.lists(
    st.tuples(st.lists(st.integers(1, 9_999), min_size=1, max_size=12), st.booleans()), min_size=1, max_size=3
)
corpora = st.lists(pieces, min_size=1, max_size=12)


@given(
    documents=corpora,
    size=st.integers(2, 16),
    truncation=st.sampled_from(["split", "truncate", "drop"]),
    share=st.booleans(),
)
def test_every_token_is_learnt_or_counted(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Pieces],
    size: int,
    truncation: Literal["split", "truncate", "drop"],
    share: bool,
) -> None:
    """The labels of all sequences are, as a multiset, those of the documents that were not left out."""
    shards = _shards(tmp_path_factory.mktemp("shards"), documents)
    packed = pack(shards, size, truncation, share=share)
    audit = packed.audit
    expected: Counter[tuple[int, int]] = Counter()
    counts = Counter[str]()
    for document in documents:
        inputs = [EOS, *(token for ids, _ in document for token in ids)]
        labels = [(token, learnt) for ids, learnt in document for token in ids] + [(EOS, document[-1][1])]
        if len(labels) > size and truncation == "drop":
            counts["dropped"] += len(labels)
            continue
        if len(labels) > size and truncation == "truncate":
            counts["truncated"] += len(labels) - size
            labels = labels[:size]
        for start in range(0, len(labels), size):
            part = labels[start : start + size]
            if not any(learnt for _, learnt in part):
                counts["dropped"] += len(part)
                continue
            counts["masked"] += sum(not learnt for _, learnt in part)
            counts["trained"] += sum(learnt for _, learnt in part)
            expected.update((inputs[start + place], label) for place, (label, learnt) in enumerate(part) if learnt)
    found: Counter[tuple[int, int]] = Counter()
    trained = 0
    sequences = _sequences(shards, packed, size)
    for batch in evaluation_batches(sequences, 5):
        counted = batch.labels != IGNORED
        trained += batch.tokens
        assert int(counted.sum()) == batch.tokens
        found.update(zip(batch.input_ids[counted].tolist(), batch.labels[counted].tolist(), strict=True))
    assert found == expected
    assert (audit.trained, audit.masked, audit.dropped, audit.truncated) == (
        counts["trained"], counts["masked"], counts["dropped"], counts["truncated"]
    )  # fmt: skip
    assert trained == audit.trained == sequences.trained
    assert audit.total == shards.targets
    assert (audit.sequences, audit.capacity) == (sequences.count, sequences.count * size)


@given(lengths=st.lists(st.integers(1, 30), max_size=200), capacity=st.integers(30, 60))
def test_best_fit_is_best_fit(lengths: list[int], capacity: int) -> None:
    """The same number of sequences as a plain search for the fullest that fits; none is overfull."""
    order, counts = best_fit(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    edges = np.cumsum([0, *counts])
    filled = [sum(lengths[number] for number in order[a:b]) for a, b in pairwise(edges)]
    assert all(0 < full <= capacity for full in filled)
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, room in enumerate(rooms) if room >= length]
        if fitting:
            place = min(fitting, key=lambda place: rooms[place])
            rooms[place] -= length
        else:
            rooms.append(capacity - length)
    assert sorted(rooms) == sorted(capacity - full for full in filled)


def test_positions_begin_with_each_part_and_with_the_padding(tmp_path: Path) -> None:
    """So that attention stays inside a document; without the mask there are none."""
    shards = _shards(tmp_path, [[([1, 2, 3], True)], [([4], True)], [([5] * 9, True)]])
    packed = pack(shards, 8, "split", share=True)
    sequences = _sequences(shards, packed, 8)
    rows: list[list[int]] = []
    for batch in evaluation_batches(sequences, 1):
        assert batch.position_ids is not None
        rows += batch.position_ids.tolist()
        parts = sequences.parts(len(rows) - 1)
        expected = [place for _, _, length in parts for place in range(length)]
        expected += range(8 - len(expected))
        assert rows[-1] == expected
    assert sorted(rows) == sorted([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 0, 1, 0, 1]])
    assert next(evaluation_batches(_sequences(shards, packed, 8, mask=False), 1)).position_ids is None


def test_a_document_that_is_too_long_can_be_an_error(tmp_path: Path) -> None:
    """It is named with its length."""
    shards = _shards(tmp_path, [[([1, 2], True)], [([3] * 9, True)]])
    with pytest.raises(DataError) as error:
        pack(shards, 8, "error", share=True)
    assert error.value.message == "file:2: 10 tokens, more than data.block_size 8"
    pack(shards, 10, "error", share=True)


def test_examples_name_their_documents(tmp_path: Path) -> None:
    """Of what is cut off, left out, or holds nothing to learn: the first three places, and how many."""
    documents: list[Pieces] = [[([1] * length, True)] for length in (3, 20, 4, 30, 9, 9, 9)]
    documents += [[([1, 2], False)], [([1] * 10, False), ([2], True)]]
    shards = _shards(tmp_path, documents)
    audit = pack(shards, 8, "truncate", share=True).audit
    assert (audit.truncated_documents.count, audit.truncated_documents.examples) == (6, ["file:2", "file:4", "file:5"])
    assert (audit.all_masked.count, audit.all_masked.examples) == (2, ["file:8", "file:9"])
    audit = pack(shards, 8, "drop", share=True).audit
    assert (audit.dropped_documents.count, audit.dropped_documents.examples) == (6, ["file:2", "file:4", "file:5"])
    assert audit.total == shards.targets


@given(documents=corpora, size=st.integers(2, 16))
def test_masks_are_counted_in_windows(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Pieces], size: int
) -> None:
    """Of whatever size: the plan is the same."""
    shards = _shards(tmp_path_factory.mktemp("shards"), documents)
    expected = pack(shards, size, "split", share=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmt.data.packing._WINDOW", 3)
        found = pack(shards, size, "split", share=True)
    assert found.audit == expected.audit
    assert np.array_equal(found.pieces, expected.pieces)


def test_many_documents_are_packed_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group for itself; nothing is lost between them."""
    monkeypatch.setattr("llmt.data.packing.GROUP", 7)
    chance = random.Random(1)
    documents: list[Pieces] = [[([chance.randrange(1, 99)] * chance.randrange(1, 20), True)] for _ in range(40)]
    shards = _shards(tmp_path, documents)
    packed = pack(shards, 16, "split", share=True)
    labels = Counter(
        label
        for batch in evaluation_batches(_sequences(shards, packed, 16), 4)
        for label in batch.labels[batch.labels != IGNORED].tolist()
    )
    assert labels == Counter([token for document in documents for ids, _ in document for token in [*ids, EOS]])
    assert packed.audit.total == packed.audit.trained == shards.targets


def test_packed_rows_are_computed_as_rows_of_their_own(tmp_path: Path) -> None:
    """Logits of each document in a packed row equal those of the document alone to 1e-5, and so does its loss."""
    chance = random.Random(3)
    documents: list[Pieces] = []
    for _ in range(40):
        ids = [chance.randrange(1, 99) for _ in range(chance.randrange(2, 60))]
        cut = chance.randrange(1, len(ids))
        documents.append([(ids[:cut], False), (ids[cut:], True)])
    shards = _shards(tmp_path, documents)
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = TransformerLM(shape, 100, 64)
    model.initialize(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    model.eval()
    packed, alone = (
        _sequences(shards, pack(shards, 64, "split", share=share), 64, mask=share) for share in (True, False)
    )
    assert packed.count < alone.count / 1.5
    separate: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for number, batch in enumerate(evaluation_batches(alone, 1)):
            separate[alone.parts(number)[0].document] = model(batch.input_ids)[0]
        for number, batch in enumerate(evaluation_batches(packed, 1)):
            logits = model(batch.input_ids, position_ids=batch.position_ids)[0]
            column = 0
            for document, _, length in packed.parts(number):
                there = logits[column : column + length]
                assert torch.allclose(there, separate[document][:length], atol=1e-5, rtol=0)
                column += length
        together, apart = (
            [model.loss(b.input_ids, b.labels, b.position_ids) for b in evaluation_batches(sequences, 8)]
            for sequences in (packed, alone)
        )
    assert sum(loss.tokens for loss in together) == sum(loss.tokens for loss in apart)
    nats = [float(sum(loss.nats.double() for loss in losses)) for losses in (together, apart)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-6)
