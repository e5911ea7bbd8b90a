"""conversations -> pieces of text, through the tokenizer's chat template."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from llmt.data.pieces import Piece
from llmt.errors import DataError
from llmt.system.children import receive, send, start_child
from llmt.text.documents import Message
from llmt.text.readers import read_pieces
from llmt.tokenizers.base import Tokenizer

CHATML = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""What is taken where a tokenizer has no template: ChatML, with what the assistant says marked for learning."""

SECONDS = 2.0
"""So long a template may take for one conversation."""

START_SECONDS = 60.0
"""So long the first one may take, with the start of the process."""

# Noncharacters, which no text holds: around what the assistant says, and inside of what only looks like a control
# token.
_BEGIN, _END, _PLAIN = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_BEGIN}{_END}{_PLAIN}]")
_SPANS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_HINT = "correct the template, or name another: --chat-template FILE"


class Span(NamedTuple):
    """Characters that are learnt."""

    start: int
    end: int


class ChatWriter:
    """Writes conversations as the tokenizer's template does, or as the one in a file.

    What the assistant says is learnt, with the control token that ends its turn. A template says so itself with
    `{% generation %}`; otherwise its text is looked for in what the template wrote.

    Args:
        tokenizer: Has a template, or none: then it is ChatML.
        template_file: A file to read instead.
        seconds: How long one conversation may take.

    Raises:
        DataError: The file is not text.
        StorageError: The file cannot be read.
    """

    def __init__(self, tokenizer: Tokenizer, template_file: str | None = None, seconds: float = SECONDS) -> None:
        self._tokenizer = tokenizer
        self._seconds = seconds
        self.template = tokenizer.chat_template or CHATML
        self.name = "the chat template of the tokenizer" if tokenizer.chat_template else "the ChatML template"
        if template_file is not None:
            self.template = "".join(read_pieces(Path(template_file)))
            self.name = template_file

    def fingerprint(self) -> str:
        """SHA-256 of the template."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @contextmanager
    def open(self) -> "Iterator[ChatSession]":
        """Something that writes conversations; its process starts with the first, and ends here."""
        session = ChatSession(self.name, self.template, self._tokenizer, self._seconds)
        try:
            yield session
        finally:
            session.close()


class ChatSession:
    """Conversations through one template, in a process that is ended when it takes too long."""

    def __init__(self, name: str, template: str, tokenizer: Tokenizer, seconds: float) -> None:
        self._name = name
        self._has_spans = _SPANS.search(template) is not None
        self._control = tokenizer.control_tokens
        setup = {"template": template, "has_spans": self._has_spans, "values": tokenizer.special_tokens}
        self._setup = json.dumps(setup).encode()
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Sequence[Piece] | DataError]:
        """The pieces of each, or why it cannot be written."""
        found: list[Sequence[Piece] | DataError] = []
        for messages in conversations:
            try:
                text, spans = self.write(messages)
                found.append(self._cut(text, spans))
            except DataError as error:
                found.append(error)
        return found

    def write(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """What the template makes of a conversation, and which characters of it are learnt.

        A U+FDD2 stands inside of what only looks like a control token.

        Raises:
            DataError: The template refuses it, takes too long, or changes what the assistant says.
        """
        if any(_MARKS.search(message.content) for message in messages):
            raise DataError("a turn holds U+FDD0, U+FDD1 or U+FDD2, which are no characters", "take them out")
        messages = [Message(message.role, self._plain(message.content)) for message in messages]
        text, spans = self._render(messages)
        return (text, spans) if self._has_spans else (text, self._find_spans(messages, text))

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                with suppress(OSError):  # what was not written yet never will be
                    pipe.close()

    def _plain(self, content: str) -> str:
        """The content with a mark inside of each control token that it spells."""
        if self._control_pattern is None:
            return content
        return self._control_pattern.sub(lambda match: match[0][0] + _PLAIN + match[0][1:], content)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        names = sorted(self._control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _find_spans(self, messages: Sequence[Message], text: str) -> list[Span]:
        """Where the assistant's turns stand in `text`, each with what ends it.

        They are marked as they are, and if the template strips them, inside of their white space.
        """
        turns = sum(message.role == "assistant" for message in messages)
        for is_whole in (True, False):
            marked, _ = self._render([_marked(message, is_whole=is_whole) for message in messages])
            found, spans = _take_marks(marked)
            if found == text and len(spans) == turns:
                ending = self._ending
                return [Span(start, end + len(ending) * text.startswith(ending, end)) for start, end in spans]
        raise DataError(
            f"{self._name} changes or leaves out what the assistant says, so what is to be learnt cannot be told",
            "put {% generation %} around it in the template, or --train-on-prompt",
        )

    @cached_property
    def _ending(self) -> str:
        """What follows a turn of the assistant up to the end of its first control token, or else before white space."""
        question, answer = Message("user", "a"), Message("assistant", f"{_BEGIN}b{_END}")
        rest = self._render([question, answer])[0].partition(_END)[2]
        match = self._control_pattern.search(rest) if self._control_pattern is not None else None
        return rest[: match.end()] if match else rest.rstrip()

    def _cut(self, text: str, spans: Sequence[Span]) -> list[Piece]:
        """The text at the ends of spans and around control tokens."""
        edges = {0, len(text), *(edge for span in spans for edge in span)}
        tokens = dict[int, str]()
        if self._control_pattern is not None:
            tokens = {match.start(): match[0] for match in self._control_pattern.finditer(text)}
            edges |= {start for start in tokens} | {start + len(token) for start, token in tokens.items()}
        places = sorted(edges)
        pieces: list[Piece] = []
        for start, end in pairwise(places):
            learnt = any(span.start <= start and end <= span.end for span in spans)
            token = tokens.get(start)
            if token is not None and end == start + len(token):
                pieces.append(Piece(token, learnt, self._control[token]))
            else:
                pieces.append(Piece(text[start:end].replace(_PLAIN, ""), learnt))
        return pieces

    def _render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        data = json.dumps([{"role": message.role, "content": message.content} for message in messages]).encode()
        seconds = self._seconds
        sent = [data]
        if self._child is None:
            self._child = start_child("llmt.data.chat_child")
            seconds += START_SECONDS
            sent.insert(0, self._setup)
        late = Timer(seconds, self._child.kill)
        late.start()
        try:
            for part in sent:
                send(self._child.stdin, part)
            answer = receive(self._child.stdout)
        except OSError:  # nobody is there
            answer = None
        finally:
            is_late = not late.is_alive()
            late.cancel()
        if answer is None:
            self.close()
            why = f"takes more than {self._seconds:g} s" if is_late else "ended its process"
            raise DataError(f"{self._name} {why} for this conversation", _HINT)
        found = json.loads(answer)
        if "error" in found:
            raise DataError(f"{self._name} refuses this conversation: {found['error']}", _HINT)
        return found["text"], [Span(*span) for span in found["spans"]]


def _marked(message: Message, *, is_whole: bool) -> Message:
    """The message with marks around what the assistant says, or inside of white space around that."""
    if message.role != "assistant":
        return message
    content = message.content
    start = 0 if is_whole else len(content) - len(content.lstrip())
    end = len(content) if is_whole else len(content.rstrip())
    return Message(message.role, f"{content[:start]}{_BEGIN}{content[start:end]}{_END}{content[end:]}")


def _take_marks(marked: str) -> tuple[str, list[Span]]:
    """The text without marks, and what stood between them."""
    spans: list[Span] = []
    parts: list[str] = []
    place, begin = 0, None
    for part in re.split(f"([{_BEGIN}{_END}])", marked):
        if part == _BEGIN:
            begin = place
        elif part == _END and begin is not None:
            spans.append(Span(begin, place))
            begin = None
        else:
            parts.append(part)
            place += len(part)
    return "".join(parts), spans
