"""shards -> training sequences by number: where in the row of ids each lies.

An input at place i of the row of ids is followed by its label at i + 1. A document's inputs begin with the
end-of-text id before it, which begins it, and its labels end with the end-of-text id after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from llmt.data.batch import IGNORED
from llmt.data.shards import ShardSet

Row = NDArray[np.int64]


class Part(NamedTuple):
    """A part of a document in a sequence.

    Attributes:
        document: Its number.
        start: The place of its first input in the row of ids.
        length: How many inputs it has, and labels, which are the ids from the next place on.
    """

    document: int
    start: int
    length: int


class Sequences(ABC):
    """The sequences that one split or source is divided into.

    Attributes:
        count: How many there are.
        trained: How many labels they have, over all.
        text_bytes: UTF-8 bytes behind all labels; 0 where some of the text is left out.
        masks: Attention is to stay inside documents, and positions are given.
        pairs: Each two documents are a pair: the chosen one, and the rejected one after it.
    """

    count: int
    trained: int
    text_bytes: int
    masks: bool
    pairs: bool = False

    def __init__(self, shards: ShardSet, block_size: int) -> None:
        self.shards = shards
        self.block_size = block_size

    @abstractmethod
    def fill(self, number: int, input_ids: Row, labels: Row, position_ids: Row | None) -> int:
        """Write sequence `number` into three rows of `(T,)`, and return how many labels it has.

        Args:
            number: From 0.
            input_ids: Holds the padding id already.
            labels: Holds -100 already.
            position_ids: Holds 0 to T - 1 already; None where documents are not kept apart.
        """

    @abstractmethod
    def parts(self, number: int) -> list[Part]:
        """What sequence `number` is made of, in order; for people to look at."""

    def _labels(self, start: int, stop: int, labels: Row) -> int:
        """Write the ids of `[start, stop)` where they are learnt; return how many are."""
        shards = self.shards
        labels[:] = shards.tokens[start:stop]
        if shards.mask is None:
            return stop - start
        learnt = shards.mask[start:stop]
        labels[learnt == 0] = IGNORED
        return int(np.count_nonzero(learnt))


@final
class BlockSequences(Sequences):
    """The row of ids cut every `block_size` ids; each id but the first is predicted once. The last may be short.

    Args:
        shards: The ids, at least two.
        block_size: T.
        document_mask: Keep documents apart.
    """

    def __init__(self, shards: ShardSet, block_size: int, *, document_mask: bool = False) -> None:
        super().__init__(shards, block_size)
        self.count = -(-shards.targets // block_size)
        self.trained = shards.targets if shards.mask is None else _count_learnt(shards.mask)
        self.text_bytes = shards.text_bytes if shards.mask is None else shards.trained_bytes
        self.masks = document_mask and shards.documents > 1

    def fill(self, number: int, input_ids: Row, labels: Row, position_ids: Row | None) -> int:
        """Write a block; positions begin anew at its start and at each end-of-text id that begins a document."""
        start = number * self.block_size
        stop = min(start + self.block_size, self.shards.targets)
        length = stop - start
        input_ids[:length] = self.shards.tokens[start:stop]
        if position_ids is not None:
            for first, _ in self._starts(start, stop):
                position_ids[first - start : length] -= position_ids[first - start]
            position_ids[length:] -= length
        return self._labels(start + 1, stop + 1, labels[:length])

    def parts(self, number: int) -> list[Part]:
        """The parts of documents in a block."""
        start = number * self.block_size
        stop = min(start + self.block_size, self.shards.targets)
        inside = int(np.searchsorted(self.shards.offsets, start + 1, side="right")) - 1
        begins = [(start, inside), *self._starts(start, stop)]
        ends = [*(first for first, _ in begins[1:]), stop]
        return [Part(document, first, end - first) for (first, document), end in zip(begins, ends, strict=True)]

    def _starts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Places in `(start, stop)` where a document begins with the end-of-text id before it, and which."""
        offsets = self.shards.offsets
        low, high = np.searchsorted(offsets, (start + 2, stop + 1))
        return [(int(offsets[n]) - 1, n) for n in range(int(low), min(int(high), len(offsets) - 1))]


@final
class PackedSequences(Sequences):
    """Sequences of whole documents, or of long parts of them, as a plan says.

    Args:
        shards: The ids.
        block_size: T.
        pieces: For each part the place of its first input and its length, `(P, 2)`.
        edges: The first part of each sequence and the end, `(count + 1,)`.
        trained: How many labels the sequences have.
        whole: No part of the text is left out.
        document_mask: Keep documents apart.
    """

    def __init__(
        self,
        shards: ShardSet,
        block_size: int,
        pieces: NDArray[Any],
        edges: NDArray[Any],
        *,
        trained: int,
        whole: bool,
        document_mask: bool = True,
    ) -> None:
        super().__init__(shards, block_size)
        self._pieces = pieces
        self._edges = edges
        self.count = len(edges) - 1
        self.trained = trained
        self.text_bytes = (shards.text_bytes if shards.mask is None else shards.trained_bytes) if whole else 0
        self.masks = document_mask

    def fill(self, number: int, input_ids: Row, labels: Row, position_ids: Row | None) -> int:
        """Write the parts one behind the other; what is left is padding, which positions treat as one more."""
        column = trained = 0
        for start, length in self._parts(number):
            end = column + length
            input_ids[column:end] = self.shards.tokens[start : start + length]
            trained += self._labels(start + 1, start + length + 1, labels[column:end])
            if position_ids is not None:
                position_ids[column:end] -= column
            column = end
        if position_ids is not None:
            position_ids[column:] -= column
        return trained

    def parts(self, number: int) -> list[Part]:
        """The documents in a sequence, or parts of them."""
        offsets = self.shards.offsets
        return [
            Part(int(np.searchsorted(offsets, start + 1, side="right")) - 1, start, length)
            for start, length in self._parts(number)
        ]

    def _parts(self, number: int) -> Sequence[tuple[int, int]]:
        parts: list[tuple[int, int]] = self._pieces[self._edges[number] : self._edges[number + 1]].tolist()
        return parts


def _count_learnt(mask: NDArray[np.uint8]) -> int:
    """The ids that are learnt; a part of the mask is in memory at once."""
    return sum(int(np.count_nonzero(mask[start : start + (1 << 24)])) for start in range(0, len(mask), 1 << 24))
