"""`llmt generate --chat`: a conversation in the terminal, or of the turns in a pipe."""

import io
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmt.cli.opening import OpenedSet
from llmt.cli.output import Output
from llmt.cli.signals import Stopped, forget_signal
from llmt.config.names import BASE
from llmt.errors import DataError, LlmtError

if TYPE_CHECKING:
    from llmt.generation.chat import Exchange, Manner, Speakers

_COMMANDS = {
    "/adapters": "what can answer; * marks what does",
    "/adapter NAME": "let this adapter answer, or base: the model without one",
    "/undo": "take back the last exchange",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/exit": "end, as Ctrl-D does; Ctrl-C stops an answer",
}


def talk(out: Output, opened: OpenedSet, manner: "Manner", system: str | None, record: list[dict[str, Any]]) -> None:
    """Answer each line of standard input, until it ends.

    Args:
        out: Gets the answers; marks and notes stand beside them.
        opened: What can answer.
        manner: How answers are drawn.
        system: Opens the conversation.
        record: Gets every exchange that is not taken back, the last as far as it came, however this ends.

    Raises:
        DataError: The template refuses the opening of a conversation.
        ModelFileError: There is no chat template.
        Stopped: A signal came, and not while an answer was written; or another one than Ctrl-C.
        UsageError: The longest answer leaves no room in the context.
    """
    from llmt.generation.chat import Speakers

    speakers = Speakers(opened.tokenizers)
    try:
        _Conversation(out, opened, speakers, manner, system, record).run()
    finally:
        speakers.close()


class _Conversation:
    """What is typed -> answers and commands."""

    def __init__(
        self,
        out: Output,
        opened: OpenedSet,
        speakers: "Speakers",
        manner: "Manner",
        system: str | None,
        record: list[dict[str, Any]],
    ) -> None:
        from llmt.generation.chat import Chat

        self._out = out
        self._adapters = opened.adapters
        self._speakers = speakers
        self._record = record
        self._is_typed = sys.stdin is not None and sys.stdin.isatty() and not out.as_json
        self._has_said_left_out = False
        name = self._adapters.active
        self._chat = Chat((name, self._adapters.model), speakers[name], manner, system)

    def run(self) -> None:
        """Go through the lines until they end, or one of them says so."""
        if self._is_typed:
            self._out.say("a line is a turn; /help lists the commands, Ctrl-D ends")
        self._note_template()
        for line in self._lines():
            if line.strip() == "/exit":
                return
            try:
                line.encode()
            except UnicodeEncodeError:
                encoding = (sys.stdin.encoding or "UTF-8").upper()
                message = f"standard input: a turn with bytes that are not {encoding}, which is not taken"
                self._out.error(DataError(message, f"type it as {encoding}"))
                continue
            self._heed(line)

    def _lines(self) -> Iterator[str]:
        # As surrogates stray bytes reach the line that they stand in, where an error would lose the lines around it.
        if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "surrogateescape":
            sys.stdin.reconfigure(errors="surrogateescape")
        while sys.stdin is not None:
            if self._is_typed:
                self._out.mark(f"{self._adapters.active}> ")
            try:
                line = sys.stdin.readline()
            except Stopped:
                self._end_line()
                raise
            if not line:
                self._end_line()
                return
            yield line.rstrip("\n")

    def _end_line(self) -> None:
        if self._is_typed:
            self._out.mark("\n")

    def _heed(self, line: str) -> None:
        """Obey a command or answer a turn; who types a word with a slash meant a command."""
        words = line.split()
        if line.startswith("/") and self._obey(line):
            return
        if self._is_typed and line.startswith("//"):
            self._answer(line[1:])
        elif self._is_typed and line.startswith("/") and len(words) == 1:
            self._out.say(f"{line}: no such command; there are {', '.join(_COMMANDS)}; // begins a turn with /")
        elif words:
            self._answer(line)

    def _answer(self, prompt: str) -> None:
        before = len(self._chat.exchanges)
        is_stopped = False
        try:
            for piece in self._ask(prompt):
                if not self._out.as_json:
                    self._out.stream(piece)
        except DataError as error:
            self._out.error(error)
            return
        except Stopped as stop:
            if stop.signum != signal.SIGINT:
                raise
            forget_signal()
            is_stopped = True
        finally:
            self._record += [_values(exchange) for exchange in self._chat.exchanges[before:]]
        if is_stopped and len(self._chat.exchanges) == before:
            self._out.say("stopped, and the turn is not taken")
            return
        if self._out.as_json:
            self._out.json(self._record[-1])
            self._out.flush()
        else:
            self._out.stream("\n")
        if is_stopped:
            self._out.say("stopped; what was said stays")

    def _ask(self, prompt: str) -> "Exchange":
        exchange = self._chat.ask(prompt)
        if exchange.left_out and not self._has_said_left_out:
            exchanges = f"exchange{'s' * (exchange.left_out > 1)}"
            self._out.say(f"the context is full: the model does not read the {exchange.left_out:,} oldest {exchanges}")
            self._has_said_left_out = True
        return exchange

    def _obey(self, line: str) -> bool:
        """Do what a command says; whether it is one."""
        command, _, argument = line.strip().partition(" ")
        alone: dict[str, Callable[[], None]] = {
            "/adapters": self._list, "/undo": self._undo, "/reset": self._reset, "/help": self._help,
        }  # fmt: skip
        if command in alone and not argument.strip():
            alone[command]()
        elif command == "/adapter" and argument.strip():
            self._switch(argument.strip())
        elif command == "/adapter":
            self._out.say(f"/adapter: which? there are {', '.join(self._adapters.folders)}")
        else:
            return False
        return True

    def _list(self) -> None:
        for name, folder in self._adapters.folders.items():
            self._out.say(f"{'*' if name == self._adapters.active else ' '} {name}  {folder}")

    def _undo(self) -> None:
        taken = self._chat.undo()
        if taken is not None:
            self._record.pop()
        self._out.say("there is nothing to take back" if taken is None else f"taken back: {taken.prompt}")

    def _reset(self) -> None:
        self._chat.reset()
        self._has_said_left_out = False
        self._out.say("the conversation is forgotten")

    def _help(self) -> None:
        self._out.table(_COMMANDS.items())

    def _switch(self, name: str) -> None:
        before = self._adapters.active
        try:
            self._adapters.choose(name)
            self._chat.use((name, self._adapters.model), self._speakers[name])
        except LlmtError as error:
            self._adapters.choose(before)
            self._out.error(error)
            return
        self._out.say("the base answers, without an adapter" if name == BASE else f"{name} answers")
        self._note_template()

    def _note_template(self) -> None:
        name = self._adapters.active
        if name in self._speakers.borrowed:
            self._out.say(f"{name} has no chat template; that of {self._speakers.borrowed[name]} is taken")


def _values(exchange: "Exchange") -> dict[str, Any]:
    """What is kept of an exchange."""
    return {
        "adapter": exchange.adapter, "prompt": exchange.prompt, "text": exchange.text, "tokens": exchange.tokens,
    }  # fmt: skip
