"""blocks of documents -> a word table, counted by this process and others.

A thread for each other process hands it one block after the other and takes its table at the end. Blocks that
nobody has room for are counted here. The processes are of their own group: Ctrl-C reaches this one alone, which
ends them.
"""

import json
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from queue import Full, Queue
from typing import IO

from llmt.system.children import death, receive, send, start_child
from llmt.tokenizers.pretokenize import WordStyle
from llmt.tokenizers.table import WordTable


def count_in_processes(blocks: Iterable[list[str]], table: WordTable, num_proc: int) -> None:
    """Count blocks into `table` with `num_proc` processes, this one among them.

    Raises:
        DataError: One of them died.
        OutOfMemoryError: One was killed, as the system does where memory runs out.
    """
    queue: Queue[list[str] | None] = Queue(maxsize=num_proc - 1)
    workers: list[_Worker] = []
    try:
        for number in range(1, num_proc):
            workers.append(_Worker(number, table.style, queue))
        for block in blocks:
            try:
                queue.put_nowait(block)
            except Full:
                table.add(block)
            for worker in workers:
                worker.check()
        for _ in workers:
            queue.put(None)
        table.settle()
        for worker in workers:
            table.merge(worker.table())
    finally:
        for worker in workers:
            worker.end()
        while any(worker.waits() for worker in workers):
            with suppress(Full):
                queue.put(None, timeout=0.01)


class _Worker:
    """A process, and the thread that feeds it."""

    def __init__(self, number: int, style: WordStyle, queue: Queue[list[str] | None]) -> None:
        self._number = number
        self._queue = queue
        self._table: dict[str, int] | None = None
        self._failed = False
        self._process = start_child(__name__, style)
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if the process is gone."""
        if self._failed:
            raise death("num_proc", self._number, self._process.wait(), "count in one process: num_proc 1")

    def table(self) -> dict[str, int]:
        """The words it counted; waits for them."""
        self._thread.join()
        self.check()
        assert self._table is not None
        table, self._table = self._table, None
        return table

    def end(self) -> None:
        """Make sure that process and thread are gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not self._thread.is_alive():
                with suppress(OSError):  # what was not written yet never will be
                    pipe.close()

    def waits(self) -> bool:
        """Whether the thread still waits for blocks."""
        return self._thread.is_alive()

    def _feed(self) -> None:
        """Runs in the thread. After a failure blocks are taken and dropped, so that nobody waits for ever."""
        while (block := self._queue.get()) is not None:
            if not self._failed:
                self._failed = not _write(self._process.stdin, block)
        if not self._failed:
            self._failed = not _write(self._process.stdin, None)
        if not self._failed:
            table = _read(self._process.stdout)
            self._table = table if isinstance(table, dict) else None
            self._failed = self._table is None


def serve(style: WordStyle) -> None:
    """Count the blocks that come on standard input and write the table to standard output."""
    table = WordTable(style)
    while isinstance(block := _read(sys.stdin.buffer), list):
        table.add(block)
    _write(sys.stdout.buffer, table.words())


def _write(pipe: IO[bytes] | None, value: list[str] | dict[str, int] | None) -> bool:
    """Send a block or a table; returns whether anybody was there."""
    try:
        send(pipe, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    except OSError:
        return False
    return True


def _read(pipe: IO[bytes] | None) -> list[str] | dict[str, int] | None:
    """Receive one; None is the end, expected or not."""
    data = receive(pipe)
    value: list[str] | dict[str, int] | None = (
        None if data is None else json.loads(data.decode("utf-8", "surrogatepass"))
    )
    return value
