"""values -> the terminal: the only place that prints.

Results go to stdout, everything else to stderr. Text from outside is never markup, and its control
characters are shown, not sent.
"""

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmt.errors import ConfigError, LlmtError

PIPE_WIDTH = 100_000
"""Characters of a line where no terminal limits it: in a pipe, one row of a table is one line."""

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def safe(text: object) -> str:
    """Text that cannot move the cursor, ring, or turn the reading direction: such characters are spelled out."""
    return "".join(char if _is_harmless(char) else _spell(char) for char in str(text))


def _is_harmless(char: str) -> bool:
    code = ord(char)
    if code < 0x20:
        return char in "\n\t"
    return not (0x7F <= code < 0xA0 or code in _BIDI or 0xD800 <= code < 0xE000 or code in (0x2028, 0x2029))


def _spell(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


class _Console(Console):
    """A console whose reader may go away: messages are dropped then, and results end the command."""

    def on_broken_pipe(self) -> None:
        """Called by rich when a write found nobody reading."""
        self.quiet = True
        _give_up(self.file)
        if not self.stderr:
            raise BrokenPipeError


def _console(stream: Any, *, messages: bool) -> Console:
    # A process may be started with its streams closed; they are None then.
    file = stream if stream is not None else io.StringIO()
    console = _Console(file=file, stderr=messages, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _give_up(stream: Any) -> None:
    """Send what a stream still holds nowhere, so that the flush at exit does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def give_up_broken_streams() -> None:
    """Flush both streams for the last time; what cannot be written is dropped."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _give_up(stream)


@dataclass
class Output:
    """Where a command writes, and how much.

    Attributes:
        quiet: Results only; no messages, no progress.
        as_json: Results as JSON.
        debug: Errors with their traceback.
        arguments: The command line, without the name of the program.
    """

    quiet: bool = False
    as_json: bool = False
    debug: bool = False
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        self.out = _console(sys.stdout, messages=False)
        self.err = _console(sys.stderr, messages=True)

    @property
    def live(self) -> bool:
        """Progress may be redrawn in place."""
        return self.err.is_terminal and not self.err.is_dumb_terminal and not self.quiet

    def result(self, text: object) -> None:
        """A line of the result, for people."""
        self.out.print(Text(safe(text)))

    @property
    def colours(self) -> bool:
        """The result is read where colours can be seen, and by somebody who wants them."""
        return self.out.color_system is not None and not self.out.no_color

    def styled(self, parts: Iterable[tuple[str, str]]) -> None:
        """A line of the result made of (text, style)."""
        self.out.print(Text.assemble(*[(safe(text), style) for text, style in parts]))

    def stream(self, text: str) -> None:
        """A piece of the result, at once and without a new line; raw where nobody's terminal reads it."""
        file = self.out.file
        file.write(safe(text) if file.isatty() else text)
        file.flush()

    def flush(self) -> None:
        """Write out the result.

        Raises:
            BrokenPipeError: Nobody reads it.
            OSError: The disk refused it.
        """
        self.out.file.flush()

    def json(self, value: Any) -> None:
        """The result for programs: one JSON document."""
        # In ASCII, the document is the same whatever the encoding, and harmless on a terminal.
        text = json.dumps(_finite(value), ensure_ascii=True, default=str)
        self.out.file.write(text.replace("\x7f", "\\u007f") + "\n")

    def say(self, text: object, style: str = "") -> None:
        """A message beside the result."""
        if not self.quiet:
            self.err.print(Text(safe(text), style=style))

    def mark(self, text: str) -> None:
        """What stands on a terminal before the words that are typed there."""
        if not self.quiet and self.err.is_terminal:
            self.err.file.write(safe(text))
            self.err.file.flush()

    def at_once(self, text: str) -> None:
        """A message on a terminal from the middle of anything, such as a signal: past what is being drawn."""
        if self.live:
            with suppress(OSError):  # the terminal is gone
                os.write(self.err.file.fileno(), f"\r\x1b[K{safe(text)}\r\n".encode())

    def heading(self, text: str) -> None:
        """The title of what follows."""
        self.say(text, "bold")

    def table(self, rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), to_result: bool = False) -> None:
        """Aligned columns, among the messages or as the result."""
        if self.quiet and not to_result:
            return
        table = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        lines = [[Text(safe(cell)) for cell in row] for row in rows]
        columns = len(header) or max((len(line) for line in lines), default=0)
        for column in range(columns):
            # Only the last column may wrap: it holds the sentences.
            table.add_column(header[column] if header else "", overflow="fold", no_wrap=column < columns - 1)
        for line in lines:
            table.add_row(*line)
        console = self.out if to_result else self.err
        console.print(table, soft_wrap=False)

    def error(self, error: LlmtError) -> None:
        """Two lines: what went wrong, and what to type; further configuration problems one line each."""
        problems = error.problems if isinstance(error, ConfigError) else (error.message,)
        for problem in problems:
            self.err.print(Text.assemble(("error: ", "bold red"), _one_line(problem)))
        if error.hint:
            self.err.print(Text.assemble(("hint: ", "bold"), _one_line(error.hint)))


def _one_line(text: str) -> str:
    return " ".join(safe(text).splitlines())


def _finite(value: Any) -> Any:
    """JSON knows no infinity: such numbers become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
