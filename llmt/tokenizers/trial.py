"""bytes of a foreign tokenizer.json -> the same, known not to abort, hang or exhaust this process.

What can be checked by reading is checked by `validate`. What is left, a pattern that never ends or a part that the
Rust library trusts, is tried in a child process first.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from llmt.errors import ModelFileError
from llmt.tokenizers import trial_child
from llmt.tokenizers.trial_child import Refusal
from llmt.tokenizers.validate import is_harmless, parse_tokenizer

SECONDS = 5.0
"""How long one file may take in the child."""

START_SECONDS = 120.0
"""How long the child may take to start; on a slow disk that is the interpreter's time, not the file's."""


def checked_tokenizer(data: bytes, where: str, trial: "Trial | None" = None) -> tuple[dict[str, Any], str]:
    """Check a tokenizer.json by reading it and, unless it has only parts that are known, in a child process.

    Args:
        data: The file's bytes.
        where: The file's name, for messages.
        trial: A child to use again; by default one is started and ended.

    Returns:
        The parsed file without its padding and truncation, and the text that the library is to be given.

    Raises:
        ModelFileError: Not a tokenizer, or one that could do harm.
    """
    spec = parse_tokenizer(data, where)
    text = json.dumps(spec, separators=(",", ":"))
    if is_harmless(spec):
        return spec, text
    if trial is not None:
        reason = trial.refusal(text)
    else:
        with Trial() as own:
            reason = own.refusal(text)
    if reason is not None:
        raise ModelFileError(f"{where}: {reason}", "copy or train the tokenizer again")
    return spec, text


@contextmanager
def rust_refusals(where: str) -> Iterator[None]:
    """Turn what the Rust library raises into a `ModelFileError` that names `where`."""
    with Refusal() as refusal:
        yield
    if refusal.reason is not None:
        raise ModelFileError(f"{where}: {refusal.reason}", "copy or train the tokenizer again")


class Trial:
    """A child process that tries tokenizers, one after the other; ended and started anew where one kills it.

    Args:
        seconds: How long one file may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Trial":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def process_id(self) -> int | None:
        """The child's, while there is one."""
        return None if self._process is None else self._process.pid

    def refusal(self, text: str) -> str | None:
        """Why this tokenizer.json must not be loaded, or None where nothing speaks against it."""
        if self._process is None:
            self._start()
        payload = text.encode()
        try:
            answer = self._ask(len(payload).to_bytes(8, "big") + payload, self._seconds)
        except _ChildDied as death:
            return str(death)
        reason: str | None = json.loads(answer)
        return reason

    def _start(self) -> None:
        # -P: the folder of the program holds modules with the names of others.
        command = [sys.executable, "-P", "-X", "utf8", str(Path(trial_child.__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self._ask(b"", START_SECONDS)
        except _ChildDied as death:
            raise ModelFileError(
                f"tokenizer: the process that would try it cannot be started: {death}",
                "check that `python -c 'import tokenizers'` works",
            ) from None

    def _ask(self, payload: bytes, seconds: float) -> bytes:
        """The child's next line."""
        process, late = self._process, threading.Event()
        assert process is not None

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            line = _exchange(process.stdin, process.stdout, payload)
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return line
        self._end()
        if late.is_set():
            raise _ChildDied(f"trying it took more than {seconds:.3g} seconds")
        code = process.returncode
        raise _ChildDied(f"trying it ended the process (exit {code}): it asks for too much memory, or is damaged")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # what was not sent cannot be flushed any more
                process.communicate()


class _ChildDied(Exception):  # noqa: N818 - never leaves this module
    """The child ended without an answer; the text says how."""


def _exchange(source: IO[bytes] | None, sink: IO[bytes] | None, payload: bytes) -> bytes:
    assert source is not None
    assert sink is not None
    try:
        source.write(payload)
        source.flush()
    except OSError:  # it died while it was being told
        return b""
    return sink.readline()
