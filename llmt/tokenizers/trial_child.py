"""bytes of a tokenizer.json on stdin -> whether the Rust library survives them: run as a program by `trial`.

Each file is eight bytes of length and the bytes themselves; the answer is one line of JSON, null or the reason.
Nothing of llmt is imported here, so that the program can be started by its path.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

MEMORY = 1_000_000_000
"""What one file may take, in bytes, above what the interpreter has mapped at the start."""

_LONG = (
    "A word, 1 line.\n\tTabs,  two  spaces and 1,234,567.89 numbers; don't!\r\n\r\n"
    "caf\u00e9 cafe\u0301 \u65e5\u672c\u8a9e\u306e \u041c\u0438\u0440 \u0928\u092e\u0938\u094d\u0924\u0947 "
    "\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f469 \x00\x7f\u00a0\ufeff ## ### <|a|> [B] \u2581c</w> "
    + "a" * 300
    + " " * 50
    + "-" * 50
    + "ab" * 100
)
# A part that fails over one text need not fail over a longer one that holds it.
SAMPLES = ("", "\n", "   ", "a", "a" * 64 + "!", "x" * 40, "7" * 40, "_ab " * 20, "\u3042" * 40, _LONG)


class Refusal:
    """Catches what the Rust library raises, a bare `Exception` or a panic, and keeps its first line."""

    reason: str | None = None

    def __enter__(self) -> "Refusal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # A panic is a BaseException of a class that cannot be imported.
        if kind is Exception or (kind is not None and kind.__name__ == "PanicException"):
            self.reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        return self.reason is not None


def attempt(text: str) -> str | None:
    """Load a tokenizer.json, encode and decode samples; the reason where the library refuses, or None."""
    from tokenizers import Tokenizer

    with Refusal() as refusal:
        backend = Tokenizer.from_str(text)
        added = backend.get_added_tokens_decoder()
        special = "".join(added[number].content for number in sorted(added)[:3])
        for sample in (*SAMPLES, _LONG + special):
            for framed in (True, False):
                ids = backend.encode(sample, add_special_tokens=framed).ids
                backend.decode(ids, skip_special_tokens=framed)
    return refusal.reason


def limit_memory() -> None:
    """Bound the address space and write no core file, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def serve(source: BinaryIO, answer: Callable[[str], None]) -> None:
    """Answer for each file on `source` until it ends."""
    while len(head := source.read(8)) == 8:
        text = source.read(int.from_bytes(head, "big")).decode("utf-8")
        answer(json.dumps(attempt(text)) + "\n")


def _write(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    import tokenizers  # noqa: F401 - before the limit, which counts from what is mapped now

    limit_memory()
    _write("null\n")
    serve(sys.stdin.buffer, _write)
