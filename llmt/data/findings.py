"""what was met on the way through the data -> counts, with a few examples of each."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmt.checkpoints.files import storage_errors
from llmt.text.documents import Document

EXAMPLES = 3
_REPLACEMENT = "\ufffd"
_AT_ONCE = 1 << 22
_FLUSH = 1 << 16


@dataclass
class Finding:
    """How often something was met, and where.

    Attributes:
        count: How often.
        examples: The first places, at most three.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: str, count: int = 1) -> None:
        """It was met here."""
        self.count += count
        if len(self.examples) < EXAMPLES:
            self.examples.append(place)

    def where(self) -> str:
        """The examples, to be read after a count; nothing where there are none."""
        return f" ({', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''})" if self.count else ""


class TextCounter:
    """Counts documents on their way, a long one once for all of its parts.

    Args:
        control: Special tokens; a text that spells one is counted, and stays ordinary text.
    """

    def __init__(self, control: Sequence[str] = ()) -> None:
        self.documents = self.text_bytes = self.characters = self.shortest_bytes = self.longest_bytes = 0
        self.replaced = Finding()
        self.spelled = Finding()
        self._control = tuple(control)
        self._size = 0

    def count(self, document: Document) -> None:
        """One document, or a part of one."""
        text = document.text
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        self.text_bytes += size
        self.characters += len(text)
        if size != len(text) and (lost := text.count(_REPLACEMENT)):
            self.replaced.add(document.source, lost)
        if any(token in text for token in self._control):
            self.spelled.add(document.source)
        self._size += size
        if document.more:
            return
        self.shortest_bytes = min(self._size, self.shortest_bytes) if self.documents else self._size
        self.longest_bytes = max(self.longest_bytes, self._size)
        self.documents += 1
        self._size = 0


class Digests:
    """Eight bytes of the SHA-256 of every document of a split, in a file of their own.

    Args:
        path: A file that does not exist yet.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = array("Q")
        self._open = hashlib.sha256()
        self._parts = 0
        with storage_errors("writing digests", path):
            path.open("xb").close()

    def add(self, document: Document, digest: int) -> None:
        """One document, or a part of one; `digest` is that of its text.

        Raises:
            StorageError: The disk refused.
        """
        if document.more or self._parts:
            self._open.update(document.text.encode("utf-8", "surrogatepass"))
            self._parts += 1
            if document.more:
                return
            digest = int.from_bytes(self._open.digest()[:8], "big")
            self._open, self._parts = hashlib.sha256(), 0
        self._pending.append(digest)
        if len(self._pending) >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            StorageError: The disk refused.
        """
        with storage_errors("writing digests", self.path), self.path.open("ab") as file:
            file.write(self._pending.tobytes())
        self._pending = array("Q")

    def values(self) -> NDArray[np.uint64]:
        """All of them, in order, mapped."""
        self.flush()
        if not self.path.stat().st_size:
            return np.zeros(0, dtype=np.uint64)
        return np.asarray(np.memmap(self.path, dtype=np.uint64, mode="r"))


def digest_of(text: str) -> int:
    """Eight bytes of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def find_duplicates(splits: Mapping[str, NDArray[np.uint64]]) -> tuple[int, list[tuple[str, int]]]:
    """How many documents repeat an earlier one, and the first three of them as (split, number).

    Memory: about four million digests at once; more are gone through in several passes, a part of all values in each.
    """
    count, first = 0, []
    starts = np.cumsum([0, *(len(values) for values in splits.values())])
    for numbers, values in _in_parts(list(splits.values()), starts):
        _, kept = np.unique(values, return_index=True)
        repeated = np.ones(len(values), dtype=bool)
        repeated[kept] = False
        count += int(repeated.sum())
        first += np.sort(numbers[repeated])[:EXAMPLES].tolist()
    names = list(splits)
    found = []
    for number in sorted(first)[:EXAMPLES]:
        split = int(np.searchsorted(starts, number, side="right")) - 1
        found.append((names[split], int(number - starts[split])))
    return count, found


def find_common(one: NDArray[np.uint64], others: Sequence[NDArray[np.uint64]]) -> tuple[int, list[int]]:
    """How many documents of `one` stand in `others` too, and the numbers of the first three; `one` is held whole."""
    known = np.zeros(len(one), dtype=bool)
    for values in others:
        for start in range(0, len(values), _AT_ONCE):
            known |= np.isin(one, values[start : start + _AT_ONCE])
    return int(known.sum()), np.flatnonzero(known)[:EXAMPLES].tolist()


def _in_parts(
    arrays: Sequence[NDArray[np.uint64]], starts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """The values whose leading bits are equal, for one leading part after the other, each with its number."""
    bits = max(int(starts[-1] // _AT_ONCE).bit_length(), 0)
    for part in range(1 << bits):
        numbers, values = [], []
        for start, array_ in zip(starts, arrays, strict=False):
            for first in range(0, len(array_), _AT_ONCE):
                piece = array_[first : first + _AT_ONCE]
                here = np.flatnonzero(piece >> np.uint64(64 - bits) == part) if bits else np.arange(len(piece))
                numbers.append(here + int(start) + first)
                values.append(piece[here])
        if numbers:
            yield np.concatenate(numbers), np.concatenate(values)
