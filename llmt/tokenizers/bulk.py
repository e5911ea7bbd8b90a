"""batches of texts -> batches of ids, by one process or by several, always the same ids in the same order."""

import json
import os
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType

import tokenizers

from llmt.system.children import death, receive, send, start_child
from llmt.system.memory import physical_cores
from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.chunks import ChunkEncoder, find_cut, unpack_ids
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.ranks import RankEncoder, rank_encoder
from llmt.tokenizers.trial import rust_refusals

BULK_CACHE = 200_000
# Where the number of processes is left open, so much text is encoded before others are started: starting them
# and filling their tables takes about as long as encoding it.
ALONE_CHARACTERS = 16_000_000
# Less text is encoded before the check of a vocabulary for tiktoken, a tenth of a second, has paid.
RANKS_FROM_CHARACTERS = 1_000_000
# One process reads and writes for all; it cannot keep more of them busy.
MOST_PROCESSES = 8


class BulkEncoder:
    """Encodes the texts of a corpus. Use it as a context, which ends its processes.

    A tokenizer that does not encode by the library alone encodes in this process.

    Args:
        tokenizer: Makes the ids.
        num_proc: Processes; None starts one for each core once there was enough text to pay for them.
        cache_size: How many words and word groups each process remembers.
    """

    def __init__(self, tokenizer: Tokenizer, num_proc: int | None = 1, cache_size: int = BULK_CACHE) -> None:
        self._tokenizer = tokenizer
        self._cache_size = cache_size
        self._spec = _spec(tokenizer)
        self._encoder = _Encoder(self._spec, cache_size) if self._spec is not None else None
        self._num_proc = min(physical_cores(), MOST_PROCESSES) if num_proc is None else num_proc
        self._alone = ALONE_CHARACTERS if num_proc is None else 0
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "BulkEncoder":
        """Itself; processes start when there is work for them."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def encode(self, batches: Iterable[Sequence[str]]) -> Iterator[list[list[int]]]:
        """The ids of each text of each batch; at most two batches for each process are held.

        Raises:
            DataError: A process died.
            OutOfMemoryError: One was killed, as the system does where memory runs out.
        """
        waiting: deque[Future[list[list[int]]]] = deque()
        for texts in batches:
            if self._num_proc == 1 or self._spec is None or self._alone > 0:
                self._alone -= sum(map(len, texts))
                yield self._encode_here(texts)
                continue
            waiting.append(self._started().submit(self._encode_there, texts))
            if len(waiting) == 2 * self._num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode_here(self, texts: Sequence[str]) -> list[list[int]]:
        if self._encoder is None:
            return self._tokenizer.encode_batch(texts)
        return self._encoder.encode([well_formed(text) for text in texts])

    def _started(self) -> ThreadPoolExecutor:
        """A thread for each process, which waits for it."""
        if self._threads is None:
            assert self._spec is not None
            self._threads = ThreadPoolExecutor(self._num_proc, thread_name_prefix="llmt-encode")
            for number in range(1, self._num_proc + 1):
                self._workers.append(_Worker(number, self._spec, self._cache_size))
                self._idle.put(self._workers[-1])
        return self._threads

    def _encode_there(self, texts: Sequence[str]) -> list[list[int]]:
        worker = self._idle.get()
        try:
            return worker.encode(texts)
        finally:
            self._idle.put(worker)


def _spec(tokenizer: Tokenizer) -> str | None:
    """The tokenizer.json that encodes as `tokenizer` does; None for one that does it in its own way."""
    if isinstance(tokenizer, FastTokenizer) and type(tokenizer).encode_batch is FastTokenizer.encode_batch:
        spec: str = tokenizer.backend.to_str()
        return spec
    return None


class _Encoder:
    """The same in every process: by tiktoken where that gives the same ids, by chunks, or by the library."""

    def __init__(self, spec: str, cache_size: int) -> None:
        self._backend = tokenizers.Tokenizer.from_str(spec)
        self._backend.encode_special_tokens = True
        self._spec = json.loads(spec)
        cut = find_cut(self._spec)
        self._chunks = ChunkEncoder(self._backend, cut, cache_size) if cut is not None else None
        self._ranks: RankEncoder | None = None
        self._until_ranks = RANKS_FROM_CHARACTERS

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._until_ranks > 0:
            self._until_ranks -= sum(map(len, texts))
            if self._until_ranks <= 0:
                self._ranks = rank_encoder(self._backend, self._spec)
        ranks = self._ranks
        if ranks is None:
            return self._encode_plainly(texts)
        others = iter(self._encode_plainly([text for text in texts if not ranks.accepts(text)]))
        return [ranks.encode(text) if ranks.accepts(text) else next(others) for text in texts]

    def _encode_plainly(self, texts: Sequence[str]) -> list[list[int]]:
        if self._chunks is not None:
            return self._chunks.encode_batch(texts)
        with rust_refusals("tokenizer.json"):
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]


class _Worker:
    """A process that encodes one batch after the other."""

    def __init__(self, number: int, spec: str, cache_size: int) -> None:
        self._number = number
        self._process = start_child(__name__)
        self._first = [spec, str(cache_size)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text.

        Raises:
            DataError: The process died.
            OutOfMemoryError: It was killed, as the system does where memory runs out.
        """
        try:
            if self._first:
                send(self._process.stdin, _texts_to_bytes(self._first))
                self._first = []
            send(self._process.stdin, _texts_to_bytes([well_formed(text) for text in texts]))
            lengths, packed = receive(self._process.stdout), receive(self._process.stdout)
        except OSError:  # nobody is there
            lengths = packed = None
        if lengths is None or packed is None:
            hint = "encode in one process: --set data.num_proc=1"
            raise death("data.num_proc", self._number, self._process.wait(), hint)
        ids, start = [], 0
        for length in unpack_ids(lengths):
            ids.append(unpack_ids(packed[start : start + length]))
            start += length
        return ids

    def kill(self) -> None:
        """End the process; who waits for it gets an error."""
        self._process.kill()

    def end(self) -> None:
        """Wait until the killed process is gone, and close its pipes."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not written yet never will be
                pipe.close()


def serve() -> None:
    """Encode what comes on standard input: first the tokenizer.json and the size of the table, then the batches."""
    os.putenv("TOKENIZERS_PARALLELISM", "false")  # the other cores have processes of their own
    source, target = sys.stdin.buffer, sys.stdout.buffer
    first = receive(source)
    if first is None:
        return
    spec, cache_size = json.loads(first)
    encoder = _Encoder(spec, int(cache_size))
    while (data := receive(source)) is not None:
        packed = [array("I", ids).tobytes() for ids in encoder.encode(json.loads(data))]
        try:
            send(target, array("I", map(len, packed)).tobytes())
            send(target, b"".join(packed))
        except OSError:  # nobody wants them any more
            os._exit(0)


def _texts_to_bytes(texts: Sequence[str]) -> bytes:
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode()
