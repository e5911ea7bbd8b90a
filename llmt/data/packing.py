"""lengths of documents -> which documents share a sequence: best-fit decreasing.

The longest document is placed first, each into the sequence with the least room that holds it (Johnson, Demers,
Ullman, Garey and Graham, "Worst-case performance bounds for simple one-dimensional packing algorithms", SIAM J.
Comput. 1974; for language models Ding et al., "Fewer truncations improve language modeling", 2024).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmt.config.data import Truncation
from llmt.data.audit import PackingAudit
from llmt.data.findings import EXAMPLES, Finding
from llmt.data.shards import ShardSet
from llmt.errors import DataError

GROUP = 1 << 20
"""So many documents are packed at once, which bounds memory."""

_WINDOW = 1 << 22

Pieces = NDArray[np.int64]
"""For each part of a document the place of its first input in the row of ids, and its length, `(P, 2)`."""


@dataclass(frozen=True)
class Packed:
    """The plan of one split.

    Attributes:
        pieces: The parts of documents.
        edges: The first part of each sequence, and the end, `(count + 1,)`.
        audit: What became of the tokens.
    """

    pieces: Pieces
    edges: NDArray[np.int64]
    audit: PackingAudit


def pack(shards: ShardSet, block_size: int, truncation: Truncation, *, share: bool, pairs: bool = False) -> Packed:
    """Plan the sequences of a split; each label is in one of them, or counted as left out.

    Args:
        shards: The ids.
        block_size: T.
        truncation: What becomes of a document with more than T labels.
        share: Let short documents share a sequence; otherwise each has its own.
        pairs: Each two documents stay together, in one sequence.

    Raises:
        DataError: A document is too long, and `truncation` is `error`; a pair is, and it says nothing else.
    """
    audit, kind, size = PackingAudit(), _PairGroup if pairs else _Group, 2 if pairs else 1
    all_pieces, all_edges, sequences = [], [np.zeros(1, dtype=np.int64)], 0
    for first in range(0, shards.documents, GROUP):
        pieces, counted = kind(shards, first, block_size, truncation).pieces()
        audit = audit.plus(counted)
        items = pieces.reshape(-1, size, 2)
        order, counts = best_fit(items[:, :, 1].sum(axis=1), block_size) if share else _one_each(len(items))
        all_pieces.append(items[order].reshape(-1, 2))
        all_edges.append(size * np.cumsum(counts) + all_edges[-1][-1])
        sequences += len(counts)
    audit = audit.plus(PackingAudit(sequences=sequences, capacity=sequences * block_size))
    return Packed(np.concatenate([np.zeros((0, 2), np.int64), *all_pieces]), np.concatenate(all_edges), audit)


def best_fit(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the items, sequence by sequence, and how many each sequence holds.

    Args:
        lengths: From 1 to `capacity`.
        capacity: What a sequence holds.
    """
    order = np.argsort(-lengths, kind="stable")
    open_at: list[list[int]] = [[] for _ in range(capacity + 1)]  # room -> the sequences with this much of it
    rooms = 0  # bit n is set where a sequence has room n
    owner = np.empty(len(lengths), dtype=np.int64)
    count = 0
    for number, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = open_at[room].pop()
            if not open_at[room]:
                rooms ^= 1 << room
        else:
            sequence, room, count = count, capacity, count + 1
        owner[number] = sequence
        left = room - length
        if left:
            open_at[left].append(sequence)
            rooms |= 1 << left
    return np.argsort(owner, kind="stable"), np.bincount(owner, minlength=count)


def block_audit(sequences: int, trained: int, targets: int, block_size: int) -> PackingAudit:
    """What becomes of the tokens where they are cut into blocks: every one is read."""
    return PackingAudit(sequences=sequences, trained=trained, masked=targets - trained, capacity=sequences * block_size)


def _one_each(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.arange(count), np.ones(count, dtype=np.int64)


class _Group:
    """About a million documents, and what is left out of them."""

    def __init__(self, shards: ShardSet, first: int, block_size: int, truncation: Truncation) -> None:
        self._shards = shards
        self._first = first
        self._size = block_size
        self._truncation = truncation
        offsets = np.asarray(shards.offsets[first : first + GROUP + 1], dtype=np.int64)
        self._starts, self._lengths = offsets[:-1] - 1, np.diff(offsets)
        self._numbers = np.arange(len(self._starts))

    def pieces(self) -> tuple[Pieces, PackingAudit]:
        audit = self._shorten()
        counts = -(-self._lengths // self._size)
        which = np.repeat(np.arange(len(counts)), counts)
        part = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = self._starts[which] + part * self._size
        lengths = np.minimum(self._lengths[which] - part * self._size, self._size)
        learnt = self._learnt(starts, lengths)
        kept = learnt > 0
        lost = self._numbers[which[~kept]]
        return np.stack([starts[kept], lengths[kept]], axis=1), replace(
            audit,
            trained=int(learnt.sum()),
            masked=int((lengths - learnt)[kept].sum()),
            dropped=audit.dropped + int(lengths[~kept].sum()),
            all_masked=self._finding(lost),
        )

    def _shorten(self) -> PackingAudit:
        """Cut or leave out what is too long, unless it is to be split."""
        long = np.flatnonzero(self._lengths > self._size)
        if self._truncation == "split" or not len(long):
            return PackingAudit()
        if self._truncation == "error":
            place = self._shards.place(self._first + int(long[0]))
            raise DataError(
                f"{place}: {int(self._lengths[long[0]])} tokens, more than data.block_size {self._size}",
                "--truncation split, truncate or drop",
            )
        if self._truncation == "truncate":
            cut = int((self._lengths[long] - self._size).sum())
            self._lengths = np.minimum(self._lengths, self._size)
            return PackingAudit(truncated=cut, truncated_documents=self._finding(long))
        dropped = int(self._lengths[long].sum())
        kept = self._lengths <= self._size
        self._starts, self._lengths, self._numbers = self._starts[kept], self._lengths[kept], self._numbers[kept]
        return PackingAudit(dropped=dropped, dropped_documents=self._finding(long))

    def _learnt(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many labels of each part are learnt."""
        mask = self._shards.mask
        if mask is None or not len(starts):
            return lengths
        found = np.empty(len(starts), dtype=np.int64)
        first = 0
        while first < len(starts):
            # A window of some millions of ids: their sums take many times the room of the mask itself.
            last = max(int(np.searchsorted(starts, starts[first] + _WINDOW)), first + 1)
            low, high = int(starts[first]) + 1, int(starts[last - 1] + lengths[last - 1]) + 1
            sums = np.concatenate([[0], np.cumsum(mask[low:high], dtype=np.int64)])
            begins = starts[first:last] + 1 - low
            found[first:last] = sums[begins + lengths[first:last]] - sums[begins]
            first = last
        return found

    def _finding(self, numbers: NDArray[Any]) -> Finding:
        """Documents of this group by number, the first of them by place."""
        return Finding(len(numbers), [self._shards.place(self._first + int(n)) for n in numbers[:EXAMPLES]])


class _PairGroup(_Group):
    """The same of pairs: a document with an even number, and the next one."""

    def pieces(self) -> tuple[Pieces, PackingAudit]:
        audit = self._shorten()
        learnt = self._learnt(self._starts, self._lengths).reshape(-1, 2)
        lengths = self._lengths.reshape(-1, 2)
        kept = (learnt > 0).all(axis=1)
        pieces = np.stack([self._starts, self._lengths], axis=1).reshape(-1, 4)[kept].reshape(-1, 2)
        return pieces, replace(
            audit,
            trained=int(learnt[kept].sum()),
            masked=int((lengths - learnt)[kept].sum()),
            dropped=audit.dropped + int(lengths[~kept].sum()),
            all_masked=self._finding(self._numbers.reshape(-1, 2)[~kept][:, 0]),
        )

    def _shorten(self) -> PackingAudit:
        """Cut or leave out pairs that are too long. The longer of two gets the room that the shorter one leaves."""
        lengths = self._lengths.reshape(-1, 2)
        long = np.flatnonzero(lengths.sum(axis=1) > self._size)
        if not len(long):
            return PackingAudit()
        found = self._finding(2 * long)
        if self._truncation in ("split", "error"):
            raise DataError(
                f"{found.examples[0]}: a pair of {int(lengths[long[0]].sum())} tokens, more than data.block_size "
                f"{self._size}",
                "--truncation truncate or drop, or a longer --block-size",
            )
        if self._truncation == "truncate":
            room = np.maximum(self._size - lengths[:, ::-1], self._size // 2)
            fitting = np.where((lengths.sum(axis=1) > self._size)[:, None], np.minimum(lengths, room), lengths)
            self._lengths = fitting.reshape(-1)
            return PackingAudit(truncated=int((lengths - fitting).sum()), truncated_documents=found)
        kept = np.repeat(lengths.sum(axis=1) <= self._size, 2)
        self._starts, self._lengths, self._numbers = self._starts[kept], self._lengths[kept], self._numbers[kept]
        return PackingAudit(dropped=int(lengths[long].sum()), dropped_documents=found)
