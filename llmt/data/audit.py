"""documents -> numbers about them, gathered while they pass."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmt.text.documents import Document

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class DataAudit:
    """What was read, in numbers. Sizes are bytes of UTF-8.

    Attributes:
        documents: Texts that were read, before any was cut.
        text_bytes: Their size.
        tokens: Ids that can be predicted, over both splits.
        bytes_per_token: How much text a token holds on average.
        duplicate_documents: Texts that had been read before, character for character.
        shortest_bytes: The shortest text.
        longest_bytes: The longest text.
        replacement_characters: U+FFFD in the texts: bytes that were not UTF-8, here or earlier.
        held_out_share: Share of `text_bytes` that is held out.
        held_out_seen: Texts of `data.validation_sources` that `data.sources` holds as well.
    """

    documents: int
    text_bytes: int
    tokens: int
    bytes_per_token: float
    duplicate_documents: int
    shortest_bytes: int
    longest_bytes: int
    replacement_characters: int
    held_out_share: float
    held_out_seen: int

    def notes(self) -> Iterator[str]:
        """What somebody should know before training on it, one sentence each."""
        if self.duplicate_documents:
            yield f"{self.duplicate_documents} of {self.documents} documents repeat an earlier one"
        if self.replacement_characters:
            yield f"{self.replacement_characters} characters are U+FFFD: text was lost when it was decoded"
        if self.held_out_seen:
            yield f"{self.held_out_seen} held-out documents are also trained on, so validation flatters"


class TextCounter:
    """Counts documents on their way; keeps eight bytes of each."""

    def __init__(self) -> None:
        self.documents = self.text_bytes = self.shortest_bytes = self.longest_bytes = 0
        self.replacement_characters = 0
        self.digests = array("Q")

    def watch(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The same documents, counted."""
        for document in documents:
            self._count(document.text)
            yield document

    def distinct(self) -> NDArray[np.uint64]:
        """The digests of all texts, each once, sorted."""
        return np.unique(np.frombuffer(self.digests, dtype=np.uint64))

    def _count(self, text: str) -> None:
        encoded = text.encode()
        size = len(encoded)
        self.shortest_bytes = min(size, self.shortest_bytes) if self.documents else size
        self.longest_bytes = max(size, self.longest_bytes)
        self.documents += 1
        self.text_bytes += size
        self.replacement_characters += text.count(_REPLACEMENT)
        self.digests.append(int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big"))


def audit(read: TextCounter, held_out: TextCounter, *, tokens: int, held_out_bytes: int) -> DataAudit:
    """The numbers of a corpus that was read to its end.

    Args:
        read: What passed from `data.sources`.
        held_out: What passed from `data.validation_sources`; nothing when a part of `read` is held out.
        tokens: Ids that can be predicted, over both splits.
        held_out_bytes: Size of the held-out texts.
    """
    counters = [counter for counter in (read, held_out) if counter.documents]
    documents = sum(counter.documents for counter in counters)
    text_bytes = sum(counter.text_bytes for counter in counters)
    distinct, distinct_held_out = read.distinct(), held_out.distinct()
    return DataAudit(
        documents=documents,
        text_bytes=text_bytes,
        tokens=tokens,
        bytes_per_token=text_bytes / max(tokens, 1),
        duplicate_documents=documents - len(distinct) - len(distinct_held_out),
        shortest_bytes=min((counter.shortest_bytes for counter in counters), default=0),
        longest_bytes=max((counter.longest_bytes for counter in counters), default=0),
        replacement_characters=sum(counter.replacement_characters for counter in counters),
        held_out_share=held_out_bytes / max(text_bytes, 1),
        held_out_seen=len(np.intersect1d(distinct, distinct_held_out, assume_unique=True)),
    )
