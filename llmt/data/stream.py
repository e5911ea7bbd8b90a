"""sources -> batches as they are read, in their order, with nothing prepared."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from llmt.config.data import DataConfig
from llmt.data.batch import IGNORED, Batch
from llmt.data.chat import ChatWriter
from llmt.data.encode import DocumentEncoder, Encoded
from llmt.errors import DataError, MismatchError
from llmt.text.documents import Document
from llmt.text.reading import Reading
from llmt.text.sources import open_stream
from llmt.tokenizers.base import Tokenizer

_BATCH_DOCUMENTS = 128
_BATCH_CHARACTERS = 500_000
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream was read.

    Attributes:
        passes: Times that it was read to its end.
        file: Number of the file or data set, from 0.
        row: Number of the row in it, or of the part of a text.
        tokens: Labels that were taken of this row, its end-of-text id among them.
    """

    passes: int = 0
    file: int = 0
    row: int = 0
    tokens: int = 0

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Position":
        """What `asdict` made of one.

        Raises:
            MismatchError: It is something else.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise MismatchError(f"the position in the stream cannot be read: {error}", "start the run anew") from None

    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Labels:
    """The labels of one row, all or what is left of them.

    Attributes:
        ids: `(n,)` int64.
        learnt: `(n,)` bool.
        begins: The first of them begins a document.
        place: The row.
    """

    ids: np.ndarray[Any, np.dtype[np.int64]]
    learnt: np.ndarray[Any, np.dtype[np.bool_]]
    begins: bool
    place: Position


class StreamLoader:
    """Endless batches out of sources that are read again and again.

    Rows are encoded as they come; the row of all ids is cut every `block_size` ids. What is held is some documents and
    some batches. A stream goes on from a `Position` as if it had never stopped; files before it are not opened.

    Args:
        config: The sources.
        tokenizer: Makes the ids.
        batch_size: B.
        num_workers: 0 reads in the caller's thread, otherwise one thread reads ahead.
        pin_memory: Put batches into page-locked memory.
    """

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, batch_size: int, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._position = Position()
        self._context = tokenizer.eos_token_id

    def epoch(self, samples: int) -> float:
        """Times that the sources were read to their end; how long they are is not known before."""
        return float(self._position.passes) if samples else 0.0

    def position(self) -> dict[str, Any]:
        """Where the batch that was given last ends."""
        return self._position.values()

    def go_to(self, position: dict[str, Any] | None) -> None:
        """The next batches begin here.

        Raises:
            MismatchError: It is no position of a stream.
        """
        if position is None:
            raise MismatchError("the checkpoint has no position in a stream", "start the run anew")
        self._position = Position.parse(position)

    def batches(self, start_sample: int = 0) -> Iterator[Batch]:
        """Batch after batch from the position on; close it to end its thread.

        Raises:
            DataError: As `open_documents`; or a whole pass gave no text. So do the other errors.
        """
        made = self._made(self._position)
        with closing(made if self._num_workers == 0 else _read_ahead(made)) as batches:
            for batch, position in batches:
                self._position = position
                yield batch.pin() if self._pin_memory else batch

    def _made(self, start: Position) -> Generator[tuple[Batch, Position]]:
        size = self._config.block_size
        held: deque[_Labels] = deque()
        count = 0
        for labels in self._labels(start):
            held.append(labels)
            count += len(labels.ids)
            while count >= size * self._batch_size:
                yield self._take(held)
                count -= size * self._batch_size

    def _take(self, held: deque[_Labels]) -> tuple[Batch, Position]:
        """The next batch out of the labels that are held, and where it ends."""
        size, wanted = self._config.block_size, self._config.block_size * self._batch_size
        inputs = np.empty(wanted, dtype=np.int64)
        labels = np.empty(wanted, dtype=np.int64)
        begins = np.zeros(wanted, dtype=bool)
        done, position = 0, Position()
        while done < wanted:
            row = held.popleft()
            taken = min(len(row.ids), wanted - done)
            end = done + taken
            inputs[done] = self._context
            inputs[done + 1 : end] = row.ids[: taken - 1]
            labels[done:end] = np.where(row.learnt[:taken], row.ids[:taken], IGNORED)
            begins[done] = row.begins
            self._context = int(row.ids[taken - 1])
            position = replace(row.place, tokens=row.place.tokens + taken)
            if taken < len(row.ids):
                held.appendleft(_Labels(row.ids[taken:], row.learnt[taken:], False, position))
            done = end
        shape = (self._batch_size, size)
        positions = torch.from_numpy(_restarted(begins.reshape(shape))) if self._config.document_mask else None
        tokens = int((labels != IGNORED).sum())
        batch = Batch(
            torch.from_numpy(inputs.reshape(shape)), torch.from_numpy(labels.reshape(shape)), tokens, positions
        )
        return batch, position

    def _labels(self, start: Position) -> Iterator[_Labels]:
        """The labels of every row from a position on, pass after pass."""
        config, tokenizer = self._config, self._tokenizer
        self._context = tokenizer.eos_token_id
        chat = ChatWriter(tokenizer, config.chat_template)
        with (
            chat.open(all_learnt=config.train_on_prompt) as render,
            DocumentEncoder(
                tokenizer, config.num_proc, train_on_prompt=config.train_on_prompt, render=render
            ) as encoder,
        ):
            place = start
            while True:
                found = False
                for labels in self._pass(encoder, place):
                    found = True
                    yield labels
                if not found and place == Position(place.passes):
                    raise DataError("data.sources: no text in any of them", "name files with text")
                place = Position(place.passes + 1)

    def _pass(self, encoder: DocumentEncoder, start: Position) -> Iterator[_Labels]:
        """The labels of every row from a position to the end of the sources."""
        goes_on = False
        for batch in encoder.encode(self._batches(start)):
            for document, where, encoded in batch:
                if isinstance(encoded, DataError):
                    raise encoded
                labels = self._row(encoded, document, where, begins=not goes_on)
                goes_on = document.more
                if (where.file, where.row) == (start.file, start.row) and start.tokens:
                    labels, self._context = _without(labels, start.tokens)
                if len(labels.ids):
                    yield labels

    def _row(self, encoded: Encoded, document: Document, where: Position, *, begins: bool) -> _Labels:
        ids = [token for piece in encoded.pieces for token in piece.ids]
        learnt = [piece.learnt for piece in encoded.pieces for _ in piece.ids]
        if not document.more:
            ids.append(self._tokenizer.eos_token_id)
            learnt.append(encoded.end_learnt)
        return _Labels(np.array(ids, dtype=np.int64), np.array(learnt, dtype=bool), begins, where)

    def _batches(self, start: Position) -> Iterator[list[tuple[Document, Position]]]:
        batch: list[tuple[Document, Position]] = []
        characters = 0
        reading = Reading.of(self._config)
        for file, row, document in open_stream(self._config.sources, reading, start.file, start.row):
            if document.pair:
                raise DataError(
                    f"{document.source}: a pair of answers, which a stream would part",
                    "--no-streaming, or --format text",
                )
            batch.append((document, Position(start.passes, file, row)))
            characters += len(document.text)
            if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch


def _without(labels: _Labels, count: int) -> tuple[_Labels, int]:
    """The labels without the first `count`, which were given before, and the last of these.

    Raises:
        MismatchError: There are not so many: the text is another one.
    """
    if count > len(labels.ids):
        place = labels.place
        raise MismatchError(
            f"row {place.row} of file {place.file} has {len(labels.ids)} tokens, {count} were read before",
            "put the sources back as they were, or start the run anew",
        )
    place = replace(labels.place, tokens=count)
    return _Labels(labels.ids[count:], labels.learnt[count:], False, place), int(labels.ids[count - 1])


def _restarted(begins: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions `(B, T)` that begin anew with each row and where `begins` is set."""
    columns = np.broadcast_to(np.arange(begins.shape[1]), begins.shape)
    last = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    return np.ascontiguousarray(columns - last)


def _read_ahead(made: Generator[tuple[Batch, Position]]) -> Generator[tuple[Batch, Position]]:
    """The same, made by one thread that is some batches ahead."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="llmt-batches")
    waiting: deque[Future[tuple[Batch, Position]]] = deque()
    try:
        while True:
            while len(waiting) < _AHEAD:
                waiting.append(executor.submit(next, made))
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
        made.close()
