"""what was met on the way through the data -> counts, with a few examples of each."""

import hashlib
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from llmt.checkpoints.files import storage_errors
from llmt.data.places import PlaceWriter, read_place
from llmt.text.documents import Document, Layout

EXAMPLES = 3
_REPLACEMENT = "\ufffd"
_AT_ONCE = 1 << 22
_FLUSH = 1 << 16
_BUFFER_BYTES = 1 << 20


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
        more = ", ..." if self.count > len(self.examples) else ""
        return f" ({', '.join(self.examples)}{more})" if self.examples else ""


class DocumentDigest:
    """Eight bytes of the SHA-256 of each document; of a long one over all of its parts."""

    def __init__(self) -> None:
        self._open = hashlib.sha256()
        self._parts = 0

    def add(self, document: Document) -> int | None:
        """The digest of the document that ends here; None where it goes on."""
        if not document.more and not self._parts:
            return digest_of(document.text)
        self._open.update(_bytes(document.text))
        self._parts += 1
        if document.more:
            return None
        digest = int.from_bytes(self._open.digest()[:8], "big")
        self._open, self._parts = hashlib.sha256(), 0
        return digest


class TextCounter:
    """Counts what is read, a long document once for all of its parts; use it as a context, which closes its files.

    Args:
        directory: Takes two files for the time being, with eight bytes and a few of the place of each document.
        control: Special tokens; a text that spells one is counted, and stays ordinary text.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(self, directory: Path, control: Sequence[str] = ()) -> None:
        self.documents = self.supervised = self.conversations = self.pairs = 0
        self.layouts: set[Layout | None] = set()
        self.text_bytes = self.characters = self.shortest_bytes = self.longest_bytes = 0
        self.replaced = Finding()
        self.spelled = Finding()
        self._control = tuple(control)
        self._size, self._has_spelled = 0, False
        self._digest = DocumentDigest()
        self._pending = array("Q")
        self._paths = [directory / ".digests.tmp", directory / ".places.tmp"]
        with ExitStack() as files, storage_errors("writing digests", directory):
            self._digests = files.enter_context(self._paths[0].open("xb", buffering=_BUFFER_BYTES))
            self._place_file = files.enter_context(self._paths[1].open("xb", buffering=_BUFFER_BYTES))
            self._files = files.pop_all()
        self._places = PlaceWriter(self._place_file)

    def __enter__(self) -> "TextCounter":
        """Itself; the files are open from the start."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close and remove the files."""
        with storage_errors("removing digests", self._paths[0]):
            self._files.close()
            for path in self._paths:
                path.unlink(missing_ok=True)

    def count(self, document: Document) -> None:
        """One document, or a part of one.

        Raises:
            StorageError: The disk refused.
        """
        text = document.text
        size = len(text) if text.isascii() else len(_bytes(text))
        self.text_bytes += size
        self.characters += len(text)
        if size != len(text) and (lost := text.count(_REPLACEMENT)):
            self.replaced.add(document.source, lost)
        if not self._has_spelled and any(token in text for token in self._control):
            self.spelled.add(document.source)
            self._has_spelled = True
        self._size += size
        digest = self._digest.add(document)
        if digest is None:
            return
        self.shortest_bytes = min(self._size, self.shortest_bytes) if self.documents else self._size
        self.longest_bytes = max(self.longest_bytes, self._size)
        self.documents += 1
        self.supervised += document.prompt is not None or bool(document.messages or document.pair)
        self.conversations += any(text.messages for text in document.pair or (document,))
        self.pairs += bool(document.pair)
        self.layouts.add(document.layout)
        self._size, self._has_spelled = 0, False
        self._pending.append(digest)
        with storage_errors("writing digests", self._paths[0]):
            self._places.add(document.source)
            if len(self._pending) >= _FLUSH:
                self._write()

    def duplicates(self) -> Finding:
        """The documents that repeat an earlier one; the last thing that is asked.

        Raises:
            StorageError: The disk refused.
        """
        with storage_errors("reading digests", self._paths[0]):
            self._write()
            self._files.close()
            if not self.documents:
                return Finding()
            values = np.memmap(self._paths[0], dtype=np.uint64, mode="r")
            count, first = find_duplicates(np.asarray(values))
            return Finding(count, [read_place(self._paths[1], number) for number in first])

    def _write(self) -> None:
        self._digests.write(self._pending.tobytes())
        self._pending = array("Q")


def digest_of(text: str) -> int:
    """Eight bytes of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(_bytes(text)).digest()[:8], "big")


def find_duplicates(values: NDArray[np.uint64]) -> tuple[int, list[int]]:
    """How many values repeat an earlier one, and the places of the first three that do.

    Memory: about four million values at once; of more a part is gone through in each of several passes.
    """
    count, first = 0, []
    bits = max((len(values) // _AT_ONCE).bit_length(), 0)
    for part in range(1 << bits):
        places, found = _with_leading(values, bits, part)
        _, kept = np.unique(found, return_index=True)
        repeated = np.ones(len(found), dtype=bool)
        repeated[kept] = False
        count += int(repeated.sum())
        first += places[repeated][:EXAMPLES].tolist()
    return count, sorted(first)[:EXAMPLES]


def _with_leading(values: NDArray[np.uint64], bits: int, part: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The values whose leading bits are `part`, with their places."""
    if not bits:
        return np.arange(len(values)), values
    places = []
    for start in range(0, len(values), _AT_ONCE):
        piece = values[start : start + _AT_ONCE]
        places.append(np.flatnonzero(piece >> np.uint64(64 - bits) == part) + start)
    chosen = np.concatenate(places)
    return chosen, values[chosen]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
