"""token ids <-> memory-mapped files.

One split is up to five files: NAME.tokens.bin, all ids in a row; NAME.documents.bin, the place of each document's
first id and of the end (little-endian uint64); NAME.mask.bin, a byte for each id that is 1 where it is learnt, absent
where all are; NAME.places.txt, where each document came from; NAME.json, the numbers beside them. The row begins
with one end-of-text id and each document is followed by one, so that every id of every text is predicted once.
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
from llmt.data.places import PlaceWriter, read_place
from llmt.errors import DataError, ModelFileError

SHARD_FORMAT = 2
_BUFFER_BYTES = 1 << 20
_FLUSH_TOKENS = 1 << 16
_OFFSET = np.dtype("<u8")
_NUMBERS = ("tokens", "documents", "text_bytes", "trained_bytes", "vocab_size", "eos")


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
        mask: 1 for each id that is learnt, `(N,)`; None where all are.
        trained_bytes: UTF-8 bytes of what is learnt.
        places: The file that says where each document came from; None where nothing does.
    """

    tokens: NDArray[Any]
    offsets: NDArray[Any]
    text_bytes: int
    vocab_size: int
    eos_token_id: int
    mask: NDArray[np.uint8] | None = None
    trained_bytes: int = 0
    places: Path | None = None

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

    def place(self, number: int) -> str:
        """Where a document came from, as `Document.source` says; reads the list up to there."""
        if self.places is None:
            return f"document {number + 1}"
        return read_place(self.places, number)


def open_shards(directory: Path, name: str) -> ShardSet:
    """Map one split that a `ShardWriter` wrote; reads no ids.

    Raises:
        ModelFileError: A file is missing, of another format, or not as long as it should be.
    """
    meta = read_json(directory, f"{name}.json")
    numbers = {key: meta.get(key) for key in ("format", *_NUMBERS)}
    masked = meta.get("masked")
    if meta.get("format") != SHARD_FORMAT or not all(type(value) is int for value in numbers.values()):
        raise ModelFileError(f"{directory / name}.json: not shards of format {SHARD_FORMAT}", "delete the folder")
    count = {key: int(str(value)) for key, value in numbers.items()}
    dtype = np.dtype(token_dtype(count["vocab_size"]))
    return ShardSet(
        tokens=map_array(directory / f"{name}.tokens.bin", dtype, count["tokens"]),
        offsets=map_array(directory / f"{name}.documents.bin", _OFFSET, count["documents"] + 1),
        text_bytes=count["text_bytes"],
        vocab_size=count["vocab_size"],
        eos_token_id=count["eos"],
        mask=map_array(directory / f"{name}.mask.bin", np.dtype("u1"), count["tokens"]) if masked else None,
        trained_bytes=count["trained_bytes"],
        places=directory / f"{name}.places.txt",
    )


class ShardWriter:
    """Writes the files of one split, document by document, in constant memory.

    Args:
        directory: An existing folder, published by the caller when all of it is written.
        name: The split, such as `train` or `validation`.
        vocab_size: Ids must be below this.
        eos_token_id: The id that ends a document.
        unk_token_id: The id that is counted as unknown.

    Attributes:
        largest: The largest id so far.
        unknown: How many unknown tokens there were.
        ends: How many end-of-text ids stand inside documents.
        documents: How many documents there were.
        text_bytes: UTF-8 bytes of their texts.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(
        self, directory: Path, name: str, *, vocab_size: int, eos_token_id: int, unk_token_id: int | None = None
    ) -> None:
        self._directory, self._name = directory, name
        self._vocab_size = vocab_size
        self._eos, self._unk = eos_token_id, unk_token_id
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._ids: list[int] = [eos_token_id]
        self._learnt: list[tuple[int, bool]] = [
            (1, False)
        ]  # runs of what was not written yet; the first id is no target
        self._ends: list[int] = [1]
        self._written = 0
        self._open = False  # a document that goes on
        self.documents = self.text_bytes = self._trained_bytes = 0
        self.largest = self.unknown = self.ends = 0
        self._mask: Any = None
        self._files: list[Any] = []
        with storage_errors("writing token shards", directory):
            self._tokens = self._create("tokens.bin")
            self._offsets = self._create("documents.bin")
            self._places = PlaceWriter(self._create("places.txt"))

    def __enter__(self) -> "ShardWriter":
        """Itself; the files are open from the start."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the files, whether they are complete or not."""
        with storage_errors("writing token shards", self._directory):
            for file in self._files:
                try:
                    file.close()
                except OSError:
                    if error is None:  # otherwise what failed first is what is told
                        raise

    @property
    def count(self) -> int:
        """Ids so far."""
        return self._written + len(self._ids)

    def add(
        self,
        pieces: Sequence[tuple[Sequence[int], bool]],
        text_bytes: int,
        *,
        trained_bytes: int | None = None,
        end_learnt: bool = True,
        place: str = "",
        more: bool = False,
    ) -> None:
        """Append a document, or a part of one that goes on.

        Args:
            pieces: Ids, and whether they are learnt.
            text_bytes: UTF-8 bytes of its text.
            trained_bytes: UTF-8 bytes of what is learnt; None means all of it.
            end_learnt: The end-of-text id after it is learnt.
            place: Where it came from.
            more: The next call goes on with the same document.

        Raises:
            DataError: An id that the vocabulary does not have.
            StorageError: The disk refused.
        """
        if not self._open:
            with storage_errors("writing token shards", self._directory):
                self._places.add(place)
        for ids, learnt in pieces:
            self._ids += ids
            self._learnt.append((len(ids), learnt))
        self.text_bytes += text_bytes
        self._trained_bytes += text_bytes if trained_bytes is None else trained_bytes
        self._open = more
        if not more:
            self._ids.append(self._eos)
            self._learnt.append((1, end_learnt))
            self._ends.append(self.count)
            self.documents += 1
        if len(self._ids) >= _FLUSH_TOKENS:
            self._flush()

    def finish(self) -> None:
        """Write what is left and the numbers; the split can be opened afterwards.

        Raises:
            DataError: An id that the vocabulary does not have.
            StorageError: The disk refused.
        """
        self._flush()
        numbers = {
            "format": SHARD_FORMAT,
            "tokens": self._written,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "trained_bytes": self._trained_bytes,
            "vocab_size": self._vocab_size,
            "eos": self._eos,
            "masked": self._mask is not None,
        }
        with storage_errors("writing token shards", self._directory):
            for file in self._files:
                file.close()
            path = self._directory / f"{self._name}.json"
            path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    def _create(self, suffix: str) -> Any:
        file = (self._directory / f"{self._name}.{suffix}").open("xb", buffering=_BUFFER_BYTES)
        self._files.append(file)
        return file

    def _flush(self) -> None:
        if not self._ids:
            return
        array = np.array(self._ids, dtype=np.int64)
        self._check(array)
        self.largest = max(self.largest, int(array.max(initial=0)))
        if self._unk is not None:
            self.unknown += int((array == self._unk).sum())
        self.ends += int((array == self._eos).sum()) - len(self._ends)
        with storage_errors("writing token shards", self._directory):
            self._tokens.write(array.astype(self._dtype).tobytes())
            self._offsets.write(np.array(self._ends, dtype=_OFFSET).tobytes())
            self._write_mask(len(array))
        self._written += len(array)
        self._ids, self._learnt, self._ends = [], [], []

    def _write_mask(self, length: int) -> None:
        """The mask of what is written now; the file begins with the first id that is not learnt."""
        if self._mask is None:
            if all(learnt for _, learnt in self._learnt[self._written == 0 :]):
                return
            self._mask = self._create("mask.bin")
            self._mask.write(b"\0"[: self._written])  # the first id is no target
            for start in range(1, self._written, _BUFFER_BYTES):
                self._mask.write(b"\1" * min(_BUFFER_BYTES, self._written - start))
        lengths, learnt = zip(*self._learnt, strict=True)
        mask = np.repeat(np.array(learnt, dtype=np.uint8), lengths)
        assert len(mask) == length
        self._mask.write(mask.tobytes())

    def _check(self, array: NDArray[np.int64]) -> None:
        outside = (array < 0) | (array >= self._vocab_size)
        if outside.any():
            at = int(outside.argmax())
            document = self.documents - sum(end - self._written > at for end in self._ends) + 1
            raise DataError(
                f"id {int(array[at])} in document {document}: the vocabulary has {self._vocab_size} ids",
                "use the tokenizer that the model was made with",
            )


def map_array(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """An array in a file, read as it is needed.

    Raises:
        ModelFileError: The file is missing or not as long as it should be.
    """
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}", "delete the folder") from error
    if found != length * dtype.itemsize:
        raise ModelFileError(f"{path}: {found} bytes, not {length * dtype.itemsize}", "delete the folder")
    if length == 0:
        return np.zeros(0, dtype=dtype)
    # As a plain array: slices of a memmap object are several times slower to make.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))
