"""texts in memory -> blocks of token ids, for those who call llmt from Python."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmt.data.batch import IGNORED
from llmt.data.loader import BatchLoader
from llmt.data.mixture import TrainingSet
from llmt.data.sequences import BlockSequences, Sequences
from llmt.data.shards import ShardSet, token_dtype
from llmt.errors import DataError
from llmt.tokenizers.base import Tokenizer
from llmt.units import format_size

_BATCH = 512


class LanguageModelingDataset:
    """Texts as blocks of token ids, all of them in memory.

    Each text is followed by the end-of-text id, and each id of each text is predicted once: `labels[t]` is
    `input_ids[t + 1]`, shifted already.

    Args:
        texts: The documents.
        tokenizer: Makes the ids.
        block_size: T, ids of a block.
        document_mask: Attention stays inside each document.

    Raises:
        DataError: There is no text, or one of them is no string.

    Attributes:
        tokenizer: The same.
        sequences: The blocks.
        fingerprint: SHA-256 of ids and options.
    """

    def __init__(
        self, texts: Iterable[str], tokenizer: Tokenizer, block_size: int = 256, *, document_mask: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.block_size = block_size
        documents = [_require_text(text, number) for number, text in enumerate(texts)]
        end = tokenizer.eos_token_id
        rows, offsets = [np.array([end])], [1]
        for first in range(0, len(documents), _BATCH):
            for ids in tokenizer.encode_batch(documents[first : first + _BATCH]):
                rows.append(np.array([*ids, end]))
                offsets.append(offsets[-1] + len(ids) + 1)
        tokens = np.concatenate(rows).astype(token_dtype(tokenizer.vocab_size))
        if len(tokens) < 2 or not any(documents):
            raise DataError("texts: there is no text in any of them", "give at least one that is not empty")
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in documents)
        shards = ShardSet(tokens, np.array(offsets, dtype="<u8"), size, tokenizer.vocab_size, end)
        self.sequences: Sequences = BlockSequences(shards, block_size, document_mask=document_mask)
        content = hashlib.sha256(tokens.tobytes())
        content.update(f"{tokens.dtype} {block_size} {document_mask} {offsets}".encode())
        self.fingerprint = content.hexdigest()

    def __len__(self) -> int:
        """Number of blocks."""
        return self.sequences.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`input_ids` and `labels` of one block, each `(T,)`; a label of -100 is not predicted.

        Raises:
            IndexError: There is no such block.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        input_ids = np.full(self.block_size, self.tokenizer.eos_token_id, dtype=np.int64)
        labels = np.full(self.block_size, IGNORED, dtype=np.int64)
        self.sequences.fill(number % len(self), input_ids, labels, None)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


def _require_text(text: Any, number: int) -> str:
    if not isinstance(text, str):
        kind = type(text).__name__
        raise DataError(f"texts: number {number} is of type {kind}, not text", "give strings, one for each document")
    return text


class TextData:
    """Texts in memory in the place of a corpus that was read from files.

    Args:
        train: To train on.
        held_out: To validate on.
    """

    def __init__(self, train: LanguageModelingDataset, held_out: LanguageModelingDataset | None) -> None:
        self.train = TrainingSet((train.sequences,))
        self.validation = None if held_out is None else held_out.sequences
        self.fingerprint = train.fingerprint
        self._documents = train.sequences.shards.documents
        self._size = train.sequences.shards.text_bytes

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return self.train.count

    @property
    def tokens_per_sample(self) -> float:
        """Labels of a sample on average."""
        return self.train.tokens_per_sample

    @property
    def masks(self) -> bool:
        """Attention stays inside each document."""
        return self.train.masks

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing has to be said."""
        return ()

    def describe(self) -> str:
        """What is trained on, in a phrase."""
        return f"{self._documents:,} texts in memory, {format_size(self._size)}"

    def loader(
        self, batch_size: int, seed: int, num_workers: int, pin_memory: bool, rank: int = 0, world_size: int = 1
    ) -> BatchLoader:
        """Batches in the order of a seed; of several processes, those of one."""
        return BatchLoader(self.train, batch_size, seed, num_workers, pin_memory, rank=rank, world_size=world_size)

    def audit_values(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {"in_memory": True, "documents": self._documents, "text_bytes": self._size, "notes": []}
