"""texts in memory -> blocks of token ids, for those who call llmt from Python."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmt.data.batch import IGNORED
from llmt.data.loader import SampledData
from llmt.data.mixture import TrainingSet
from llmt.data.sequences import BlockSequences, Sequences
from llmt.data.shards import ShardSet, token_dtype
from llmt.errors import DataError, MismatchError, UsageError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.huggingface import as_tokenizer
from llmt.units import format_size

_BATCH = 512


class LanguageModelingDataset:
    """Texts as blocks of token ids, all of them in memory.

    Each text is followed by the end-of-text id, and each id of each text is predicted once: `labels[t]` is
    `input_ids[t + 1]`, shifted already, so that a loss which shifts again (`labels=` of transformers) is wrong for it.

    Args:
        texts: The documents: strings, or rows with a column of text, such as those of a data set. Read once.
        tokenizer: Makes the ids: a tokenizer of llmt or of transformers.
        block_size: T, ids of a block, at least 2.
        document_mask: Attention stays inside each document.
        text_column: The column of rows that holds the text.

    Raises:
        DataError: There is no text, or one of them is no string.
        MismatchError: The tokenizer makes ids that it says it does not have.
        ModelFileError: The tokenizer names no end-of-text token.
        UsageError: An argument is something else.

    Attributes:
        tokenizer: The same, behind our interface.
        block_size: See above.
        document_mask: See above.
        sequences: The blocks.
        fingerprint: SHA-256 of ids and options.
    """

    def __init__(
        self,
        texts: Iterable[Any],
        tokenizer: Any,
        block_size: int = 256,
        *,
        document_mask: bool = False,
        text_column: str = "text",
    ) -> None:
        self.tokenizer = as_tokenizer(tokenizer)
        self.block_size = _require_length(block_size)
        self.document_mask = document_mask
        shards = _encoded(_documents(texts, text_column), self.tokenizer)
        self.sequences: Sequences = BlockSequences(shards, self.block_size, document_mask=document_mask)
        content = hashlib.sha256(shards.tokens.tobytes())
        offsets = shards.offsets.tolist()
        content.update(f"{shards.tokens.dtype} {self.block_size} {document_mask} {offsets}".encode())
        self.fingerprint = content.hexdigest()

    def __len__(self) -> int:
        """Number of blocks."""
        return self.sequences.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`input_ids` and `labels` of one block, each `(T,)` int64; a label of -100 is not predicted.

        Where documents are kept apart, `position_ids` too: a 0 begins another one.

        Raises:
            IndexError: There is no such block.
        """
        place = index(number)
        if not -len(self) <= place < len(self):
            raise IndexError(f"block {place} of {len(self)}")
        input_ids = np.full(self.block_size, self.sequences.shards.eos_token_id, dtype=np.int64)
        labels = np.full(self.block_size, IGNORED, dtype=np.int64)
        positions = np.arange(self.block_size) if self.sequences.masks else None
        self.sequences.fill(place % len(self), input_ids, labels, positions)
        rows = {"input_ids": input_ids, "labels": labels, "position_ids": positions}
        return {name: torch.from_numpy(row) for name, row in rows.items() if row is not None}


def _require_length(block_size: Any) -> int:
    size = index(block_size) if hasattr(block_size, "__index__") else 0
    if size < 2:
        raise UsageError(f"block_size {block_size!r}: it is a whole number of ids, at least 2", "256 is usual")
    return size


def _documents(texts: Any, column: str) -> Iterator[str]:
    """The text of each string or row."""
    if isinstance(texts, str | bytes | Mapping):
        kind = "row" if isinstance(texts, Mapping) else "text"
        raise UsageError(f"texts: one {kind}, where several are expected", f"[{kind}]")
    if not isinstance(texts, Iterable):
        raise UsageError(f"texts: a {type(texts).__name__} holds no texts", "give a list of strings")
    for number, item in enumerate(texts):
        text = item
        if isinstance(item, Mapping):
            if column not in item:
                found = ", ".join(map(str, item))
                raise DataError(f"texts: number {number} has no column {column!r}, but {found}", 'text_column="..."')
            text = item[column]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"texts: number {number} is of type {kind}, not text", "a string for each document")
        yield text


def _encoded(documents: Iterator[str], tokenizer: Tokenizer) -> ShardSet:
    """The ids of documents in a row, an end-of-text id before the first and after each."""
    end, vocab_size, size = tokenizer.eos_token_id, tokenizer.vocab_size, 0
    dtype = token_dtype(vocab_size)
    rows, lengths = [np.array([end], dtype=dtype)], [1]
    while batch := list(islice(documents, _BATCH)):
        encoded = tokenizer.encode_batch(batch)
        rows.append(_require_known(encoded, end, vocab_size).astype(dtype))
        lengths += [len(ids) + 1 for ids in encoded]
        size += sum(len(text.encode("utf-8", "surrogatepass")) for text in batch)
    if not size:
        raise DataError("texts: there is no text in any of them", "give at least one that is not empty")
    return ShardSet(np.concatenate(rows), np.cumsum(lengths, dtype="<u8"), size, vocab_size, end)


def _require_known(encoded: list[list[int]], end: int, vocab_size: int) -> NDArray[np.int64]:
    """The ids of a batch in a row, each document followed by its end."""
    row = np.fromiter(chain.from_iterable((*ids, end) for ids in encoded), dtype=np.int64)
    unknown = row[(row < 0) | (row >= vocab_size)]
    if len(unknown):
        raise MismatchError(
            f"texts: the tokenizer made the id {unknown[0]}, and says that it has 0 to {vocab_size - 1}",
            "its vocab_size has to count every id",
        )
    return row


class TextData(SampledData):
    """Texts in memory in the place of a corpus that was read from files.

    Args:
        train: To train on.
        held_out: To validate on.

    Attributes:
        train: See above, as samples.
        validation: The held-out sequences; None when nothing is held out.
        fingerprint: SHA-256 of all that is trained and validated on.
    """

    def __init__(self, train: LanguageModelingDataset, held_out: LanguageModelingDataset | None) -> None:
        self.train = TrainingSet((train.sequences,))
        self.validation = None if held_out is None else held_out.sequences
        self.fingerprint = train.fingerprint
        if held_out is not None:  # losses on other texts cannot be compared
            self.fingerprint = hashlib.sha256(f"{train.fingerprint} {held_out.fingerprint}".encode()).hexdigest()
        self._documents = train.sequences.shards.documents
        self._size = train.sequences.shards.text_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing has to be said."""
        return ()

    def describe(self) -> str:
        """What is trained on, in a phrase."""
        return f"{self._documents:,} texts in memory, {format_size(self._size)}"

    def audit_values(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {"in_memory": True, "documents": self._documents, "text_bytes": self._size, "notes": []}
