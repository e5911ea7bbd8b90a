"""token ids <-> memory-mapped files.

One split is three files: NAME.tokens.bin, all ids in a row; NAME.documents.bin, the place of each document's
first id and of the end (little-endian uint64); NAME.json, the numbers beside them. The row begins with one
end-of-text id and each document is followed by one, so that every id of every text is predicted once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmt.checkpoints.files import storage_errors
from llmt.checkpoints.reading import read_json
from llmt.errors import DataError, ModelFileError

SHARD_FORMAT = 1
_BUFFER_BYTES = 1 << 20
_OFFSET = np.dtype("<u8")


def token_dtype(vocab_size: int) -> Literal["<u2", "<u4"]:
    """The smallest stored type that holds every id: two bytes up to 65,536 ids, then four."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The ids of one split, read from the disk as they are needed.

    Attributes:
        tokens: All ids in a row, `(N,)`, the first and the last of them end-of-text.
        offsets: Where each document begins, and where the last one ends, `(documents + 1,)`.
        text_bytes: UTF-8 bytes of the texts.
        vocab_size: Ids are below this.
        eos_token_id: The id after each document.
    """

    tokens: NDArray[Any]
    offsets: NDArray[Any]
    text_bytes: int
    vocab_size: int
    eos_token_id: int

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def targets(self) -> int:
        """Number of ids that can be predicted: all but the first."""
        return len(self.tokens) - 1

    def document(self, number: int) -> NDArray[Any]:
        """The ids of one document and the end-of-text id after them."""
        return self.tokens[int(self.offsets[number]) : int(self.offsets[number + 1])]


def open_shards(directory: Path, name: str) -> ShardSet:
    """Map one split that a `ShardWriter` wrote; reads no ids.

    Raises:
        ModelFileError: A file is missing, of another format, or not as long as it should be.
    """
    meta = read_json(directory, f"{name}.json")
    numbers = {key: meta.get(key) for key in ("format", "tokens", "documents", "text_bytes", "vocab_size", "eos")}
    if meta.get("format") != SHARD_FORMAT or not all(type(value) is int for value in numbers.values()):
        raise ModelFileError(f"{directory / name}.json: not shards of format {SHARD_FORMAT}", "delete the folder")
    count = {key: int(str(value)) for key, value in numbers.items()}
    return ShardSet(
        tokens=_map(directory / f"{name}.tokens.bin", np.dtype(token_dtype(count["vocab_size"])), count["tokens"]),
        offsets=_map(directory / f"{name}.documents.bin", _OFFSET, count["documents"] + 1),
        text_bytes=count["text_bytes"],
        vocab_size=count["vocab_size"],
        eos_token_id=count["eos"],
    )


class ShardWriter:
    """Writes the three files of one split, document by document, in constant memory.

    Args:
        directory: An existing folder, published by the caller when all of it is written.
        name: The split: `train` or `validation`.
        vocab_size: Ids must be below this.
        eos_token_id: The id that ends a document.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(self, directory: Path, name: str, *, vocab_size: int, eos_token_id: int) -> None:
        self._path = directory / f"{name}.json"
        self._vocab_size = vocab_size
        self._eos = eos_token_id
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._count = self._documents = self._text_bytes = 0
        with storage_errors("writing token shards", directory):
            self._tokens = (directory / f"{name}.tokens.bin").open("xb", buffering=_BUFFER_BYTES)
            self._offsets = (directory / f"{name}.documents.bin").open("xb", buffering=_BUFFER_BYTES)
        self._write([eos_token_id])

    def __enter__(self) -> "ShardWriter":
        """Itself; the files are open from the start."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the files, whether they are complete or not."""
        self._tokens.close()
        self._offsets.close()

    def add(self, ids: Sequence[int], text_bytes: int) -> None:
        """Append one document and the end-of-text id.

        Args:
            ids: The tokens of its text.
            text_bytes: UTF-8 bytes of its text.

        Raises:
            DataError: An id that the vocabulary does not have.
            StorageError: The disk refused.
        """
        self._write([*ids, self._eos])
        self._documents += 1
        self._text_bytes += text_bytes

    def finish(self) -> None:
        """Write what is left and the numbers; the split can be opened afterwards.

        Raises:
            StorageError: The disk refused.
        """
        numbers = {
            "format": SHARD_FORMAT,
            "tokens": self._count,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
            "vocab_size": self._vocab_size,
            "eos": self._eos,
        }
        with storage_errors("writing token shards", self._path):
            self._tokens.close()
            self._offsets.close()
            self._path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    def _write(self, ids: list[int]) -> None:
        array = np.asarray(ids, dtype=np.int64)
        outside = (array < 0) | (array >= self._vocab_size)
        if outside.any():
            wrong = int(array[outside][0])
            raise DataError(
                f"id {wrong} in document {self._documents + 1}: the vocabulary has {self._vocab_size} ids",
                "use the tokenizer that the model was made with",
            )
        self._count += len(array)
        with storage_errors("writing token shards", self._path):
            self._tokens.write(array.astype(self._dtype).tobytes())
            self._offsets.write(np.asarray(self._count, dtype=_OFFSET).tobytes())


def _map(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}", "delete the folder") from error
    if found != length * dtype.itemsize:
        raise ModelFileError(f"{path}: {found} bytes, not {length * dtype.itemsize}", "delete the folder")
    # As a plain array: slices of a memmap object are several times slower to make.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))
