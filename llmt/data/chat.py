"""conversations -> pieces of text, through the tokenizer's chat template."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from llmt.data.pieces import Piece, is_seamless
from llmt.errors import DataError
from llmt.system.children import receive, send, start_child
from llmt.text.documents import Message
from llmt.text.prompts import CHAT_TEMPLATES
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
"""So long its process may take to start."""

# Noncharacters, which no text holds: around what the assistant says, and inside of what only looks like a control
# token.
_BEGIN, _END, _PLAIN = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_BEGIN}{_END}{_PLAIN}]")
_ANSWER = "\ufdd3"  # stands for what is not said yet
_SPANS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_EXCHANGE = (Message("user", "a"), Message("assistant", f"{_BEGIN}b{_END}"))
_AT_ONCE = 64
_HINT = "correct the template, or name another: --chat-template FILE"


class Span(NamedTuple):
    """Characters that are learnt."""

    start: int
    end: int


class Written(NamedTuple):
    """What a template made of a conversation.

    Attributes:
        text: All of it.
        spans: What is learnt.
    """

    text: str
    spans: tuple[Span, ...]


class Opening(NamedTuple):
    """A conversation up to where the assistant begins to answer.

    Attributes:
        pieces: As in training, where what follows is learnt.
        lead: What the template writes before the words of the answer, and the model learnt to write too.
    """

    pieces: Sequence[Piece]
    lead: str


class Ending(NamedTuple):
    """What the template writes after an answer.

    Attributes:
        text: Before the control token, or all of it where there is none; may be empty.
        token_id: The control token; None where the tokenizer has none there.
        blank: White space that is learnt before the end-of-text id, where the template writes nothing else.
    """

    text: str
    token_id: int | None
    blank: str = ""


def without_marks(text: str) -> str:
    """The text with U+FFFD in the place of noncharacters, which no turn may hold."""
    return _MARKS.sub("\ufffd", text)


class ChatWriter:
    """Writes conversations as the tokenizer's template does, or as the one in a file.

    What the assistant says is learnt, with the control token that ends its turn, or with white space where nothing
    else does: from there it is learnt that the text ends. A template says so itself with `{% generation %}`; otherwise
    its text is looked for in what the template wrote.

    Args:
        tokenizer: Has a template, or none: then it is ChatML. So it is where the template only stands for rows of
            another layout (`text.prompts`): it was never learnt for more than one turn.
        template_file: A file to read instead.
        seconds: How long one conversation may take.
        template: A template to take instead.

    Raises:
        DataError: The file is not text.
        StorageError: The file cannot be read.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template_file: str | None = None,
        seconds: float = SECONDS,
        *,
        template: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._seconds = seconds
        own = tokenizer.chat_template
        if template is None and own in CHAT_TEMPLATES.values():
            own = None
        self.template = template or own or CHATML
        self.name = "the chat template of the tokenizer" if template or own else "the ChatML template"
        if template_file is not None:
            self.template = "".join(read_pieces(Path(template_file)))
            self.name = template_file

    def fingerprint(self) -> str:
        """SHA-256 of the template."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @contextmanager
    def open(self, *, all_learnt: bool = False) -> "Iterator[ChatSession]":
        """Something that writes conversations; its process starts with the first, and ends here.

        Args:
            all_learnt: Everything is learnt, so that the words of the assistant may be missing.
        """
        session = ChatSession(self, self._tokenizer, self._seconds, all_learnt=all_learnt)
        try:
            yield session
        finally:
            session.close()


class ChatSession:
    """Conversations through one template, in a process that is ended when it takes too long."""

    def __init__(self, writer: ChatWriter, tokenizer: Tokenizer, seconds: float, *, all_learnt: bool) -> None:
        self._name, template = writer.name, writer.template
        self._has_spans = _SPANS.search(template) is not None
        self._all_learnt = all_learnt
        self._control = tokenizer.control_tokens
        self._is_seamless = is_seamless(tokenizer)
        setup = {"template": template, "has_spans": self._has_spans, "values": tokenizer.special_tokens}
        self._setup = json.dumps(setup).encode()
        self._seconds = seconds
        self._child: _Child | None = None

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Sequence[Piece] | DataError]:
        """The pieces of each, or why it cannot be written."""
        found: list[Sequence[Piece] | DataError] = []
        for written in self.write(conversations):
            found.append(written if isinstance(written, DataError) else self._cut(written))
        return found

    def write(self, conversations: Sequence[Sequence[Message]]) -> "list[Written | DataError]":
        """What the template makes of each conversation, and which characters of it are learnt; or why nothing.

        A U+FDD2 stands inside of what only looks like a control token.
        """
        plain = self._plainly(conversations)
        found = self._render(plain)
        for number, messages in enumerate(conversations):
            if any(_MARKS.search(message.content) for message in messages):
                found[number] = _not_text()
        return found if self._has_spans else self._with_spans(plain, found)

    def opening(self, messages: Sequence[Message]) -> "Opening | DataError":
        """The conversation up to where an answer begins, or why it cannot be written.

        It is the longest text before the answer that training knows: what the template writes before what is learnt
        of an answer, or more where it says with `add_generation_prompt` that an answer begins with more. Where
        training could not learn from such a conversation, the latter alone counts.
        """
        (opened,) = self._render(self._plainly([messages]), opens=True)
        (whole,) = self.write([[*messages, Message("assistant", _ANSWER)]])
        place = -1 if isinstance(whole, DataError) else whole.text.rfind(_ANSWER)
        if isinstance(whole, DataError) or place < 0:
            if isinstance(opened, DataError) or any(_MARKS.search(message.content) for message in messages):
                return opened if isinstance(opened, DataError) else _not_text()
            return Opening(self._cut(Written(opened.text, ())), "")
        end = next((span.start for span in whole.spans if span.start <= place < span.end), place)
        if not isinstance(opened, DataError) and whole.text[:place].startswith(opened.text):
            end = max(end, len(opened.text))
        if not self._is_seamless:  # a space would become one token with what follows
            end = len(whole.text[:end].rstrip(" "))
        spans = tuple(Span(start, min(stop, end)) for start, stop in whole.spans if start < end)
        return Opening(self._cut(Written(whole.text[:end], spans)), whole.text[end:place])

    @cached_property
    def ending(self) -> Ending:
        """What ends an answer; of a template that ends none, what it writes up to the next turn of the user."""
        is_blank = not self._ending.strip()
        text, blank = (self._between, self._ending) if is_blank else (self._ending, "")
        token = next((name for name in self._control if text.endswith(name)), None)
        return Ending(text, None, blank) if token is None else Ending(text[: -len(token)], self._control[token], blank)

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _plainly(self, conversations: Sequence[Sequence[Message]]) -> list[list[Message]]:
        return [[Message(role, self._plain(content)) for role, content in messages] for messages in conversations]

    def _plain(self, content: str) -> str:
        """The content with a mark inside of each control token that it spells."""
        if self._control_pattern is None:
            return content
        return self._control_pattern.sub(lambda match: match[0][0] + _PLAIN + match[0][1:], content)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        names = sorted(self._control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _with_spans(
        self, conversations: Sequence[Sequence[Message]], found: "list[Written | DataError]"
    ) -> "list[Written | DataError]":
        """The same with the assistant's turns as spans, each with what ends it.

        They are marked as they are, and where the template strips them, inside of their white space.
        """
        found = list(found)
        left = [number for number, written in enumerate(found) if not isinstance(written, DataError)]
        for is_whole in (True, False):
            marked = [[_marked(message, is_whole=is_whole) for message in conversations[number]] for number in left]
            missing = []
            for number, written in zip(left, self._render(marked), strict=True):
                plain = found[number]
                assert not isinstance(plain, DataError)
                turns = sum(message.role == "assistant" for message in conversations[number])
                spans = () if isinstance(written, DataError) else _spans_of(written.text, plain.text, turns)
                if spans:
                    found[number] = Written(plain.text, self._ended(plain.text, spans))
                else:
                    missing.append(number)
            left = missing
        for number in () if self._all_learnt else left:  # otherwise nothing has to be told apart
            found[number] = DataError(
                f"{self._name} changes or leaves out what the assistant says, so what is to be learnt cannot be told",
                "put {% generation %} around it in the template, or --train-on-prompt",
            )
        return found

    def _ended(self, text: str, spans: Sequence[Span]) -> tuple[Span, ...]:
        ending = self._ending
        return tuple(Span(start, end + len(ending) * text.startswith(ending, end)) for start, end in spans)

    @cached_property
    def _ending(self) -> str:
        """What follows the last turn, one of the assistant, up to the end of its first control token.

        Where there is none, up to white space; or all of it, where it is white space alone.
        """
        (written,) = self._render([_EXCHANGE])
        rest = "" if isinstance(written, DataError) else written.text.partition(_END)[2]
        return self._to_control(rest) or rest

    @cached_property
    def _between(self) -> str:
        """What stands between a turn of the assistant and the words of the user's next, to a control token or space."""
        (written,) = self._render([[*_EXCHANGE, Message("user", _ANSWER)]])
        rest = "" if isinstance(written, DataError) else written.text.partition(_END)[2]
        return self._to_control(rest.partition(_ANSWER)[0])

    def _to_control(self, rest: str) -> str:
        match = self._control_pattern.search(rest) if self._control_pattern is not None else None
        return rest[: match.end()] if match else rest.rstrip()

    def _cut(self, written: "Written") -> list[Piece]:
        """The text at the ends of spans and around control tokens."""
        text, spans = written
        edges = {0, len(text), *(edge for span in spans for edge in span)}
        tokens = dict[int, str]()
        if self._control_pattern is not None:
            tokens = {match.start(): match[0] for match in self._control_pattern.finditer(text)}
            edges |= {start for start in tokens} | {start + len(token) for start, token in tokens.items()}
        places = sorted(edges)
        pieces: list[Piece] = []
        for start, end in pairwise(places):
            learnt = self._all_learnt or any(span.start <= start and end <= span.end for span in spans)
            token = tokens.get(start)
            if token is not None and end == start + len(token):
                pieces.append(Piece(token, learnt, self._control[token]))
            else:
                pieces.append(Piece(text[start:end].replace(_PLAIN, ""), learnt))
        return pieces

    def _render(
        self, conversations: Sequence[Sequence[Message]], *, opens: bool = False
    ) -> "list[Written | DataError]":
        found: list[Written | DataError] = []
        while len(found) < len(conversations):
            found += self._answers(conversations[len(found) : len(found) + _AT_ONCE], opens=opens)
        return found

    def _answers(self, conversations: Sequence[Sequence[Message]], *, opens: bool) -> "list[Written | DataError]":
        """The answers of the process for some conversations; fewer where one of them ended it."""
        if self._child is None:
            self._child = _Child(self._setup)
        plain = [[message._asdict() for message in messages] for messages in conversations]
        self._child.ask({"conversations": plain, "opens": opens})
        found: list[Written | DataError] = []
        for _ in conversations:
            try:
                answer = self._child.answer(self._seconds)
            except (OSError, Empty) as error:
                self.close()
                why = f"takes more than {self._seconds:g} s" if isinstance(error, Empty) else "ended its process"
                found.append(DataError(f"{self._name} {why} for this conversation", _HINT))
                break
            if "error" in answer:
                said = answer["error"]
                found.append(DataError(f"{self._name} refuses this conversation: {said}", _HINT))
            else:
                found.append(Written(answer["text"], tuple(Span(*span) for span in answer["spans"])))
        return found


class _Child:
    """The process that runs a template, and a thread that waits for what it says."""

    def __init__(self, setup: bytes) -> None:
        self._process = start_child("llmt.data.chat_child")
        self._said: SimpleQueue[bytes | None] = SimpleQueue()
        Thread(target=self._listen, name="llmt-chat", daemon=True).start()
        with suppress(OSError, Empty):  # nobody is there, which the next answer will tell
            send(self._process.stdin, setup)
            self.answer(START_SECONDS)

    def ask(self, conversations: dict[str, Any]) -> None:
        """Send some conversations; each gets an answer."""
        with suppress(OSError):  # nobody is there, which the answer will tell
            send(self._process.stdin, json.dumps(conversations).encode())

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            Empty: It took longer.
            OSError: The process ended.
        """
        said = self._said.get(timeout=seconds)
        if said is None:
            self._said.put(None)  # for who asks again
            raise OSError("the process ended")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def end(self) -> None:
        """Kill the process, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):  # what was not written yet never will be
            self._process.stdin.close()

    def _listen(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            while (said := receive(pipe)) is not None:
                self._said.put(said)
        self._said.put(None)


def _marked(message: Message, *, is_whole: bool) -> Message:
    """The message with marks around what the assistant says, or inside of white space around that."""
    if message.role != "assistant":
        return message
    content = message.content
    start = 0 if is_whole else len(content) - len(content.lstrip())
    end = len(content) if is_whole else max(start, len(content.rstrip()))
    return Message(message.role, f"{content[:start]}{_BEGIN}{content[start:end]}{_END}{content[end:]}")


def _spans_of(marked: str, text: str, turns: int) -> tuple[Span, ...]:
    """What stands between marks, if without them it is the text and there are so many; otherwise nothing."""
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
    return tuple(spans) if "".join(parts) == text and len(spans) == turns else ()


def _not_text() -> DataError:
    return DataError("a turn holds U+FDD0, U+FDD1 or U+FDD2, which are no characters", "take them out")
