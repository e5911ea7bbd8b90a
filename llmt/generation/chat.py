"""turns of a conversation -> ids -> an answer, piece by piece."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from llmt.data.chat import SECONDS, ChatSession, ChatWriter, Ending, without_marks
from llmt.data.encode import DocumentEncoder
from llmt.data.pieces import Piece
from llmt.errors import DataError, ModelFileError, UsageError
from llmt.generation.decode import generate
from llmt.generation.sampling import Sampling
from llmt.models.base import BaseLanguageModel
from llmt.text.documents import Document, Message
from llmt.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Manner:
    """How answers are drawn.

    Attributes:
        sampling: The rule.
        max_new_tokens: Longest answer, in tokens.
        seed: Start of the random numbers of the first answer; each later one begins with the next.
    """

    sampling: Sampling
    max_new_tokens: int
    seed: int


class Asked(NamedTuple):
    """A conversation as a model reads it, up to where its answer begins.

    Attributes:
        ids: Token ids.
        cut: Takes from the answer what the template writes around it.
    """

    ids: list[int]
    cut: "AnswerCut"


class Speaker:
    """Conversations as ids, exactly as training made them of the same conversations, and where answers end.

    A process that runs the template starts with the first conversation; `close` ends it.

    Args:
        tokenizer: The model's own.
        template: The chat template that the model was trained with.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self.tokenizer = tokenizer
        writer = ChatWriter(tokenizer, template=template)
        self._session = ChatSession(writer, tokenizer, SECONDS, all_learnt=False)
        self._lead = ""
        self._encoder = DocumentEncoder(tokenizer, 1, train_on_prompt=False, render=self._render)

    def ask(self, messages: Sequence[Message]) -> Asked:
        """The ids of a conversation whose next turn is the assistant's, after the id that begins every document.

        Raises:
            DataError: The template refuses the conversation.
        """
        document = Document("", "chat", messages=tuple(messages))
        ((_, _, encoded),) = next(self._encoder.encode([[(document, None)]]))
        if isinstance(encoded, DataError):
            raise encoded
        ids = [token for piece in encoded.pieces for token in piece.ids]
        ending, end_of_text = self._session.ending, self.tokenizer.eos_token_id
        stops = frozenset((end_of_text,) if ending.token_id is None else (end_of_text, ending.token_id))
        cut = AnswerCut(self._lead, ending, stops)
        return Asked([end_of_text, *ids], cut)

    def close(self) -> None:
        """End the process; it starts again when it is needed."""
        self._session.close()

    def _render(self, conversations: Sequence[Sequence[Message]]) -> list[Sequence[Piece] | DataError]:
        found = [self._session.opening(messages) for messages in conversations]
        self._lead = next((opening.lead for opening in found if not isinstance(opening, DataError)), "")
        return [opening if isinstance(opening, DataError) else opening.pieces for opening in found]


class Speakers:
    """A speaker for each of several models that share a base; what is the same for two of them is there once.

    A tokenizer without a chat template borrows the first that another has.

    Args:
        tokenizers: Name of a model -> its tokenizer.

    Raises:
        ModelFileError: None of them has a template.
    """

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        lender = next((name for name, tokenizer in tokenizers.items() if tokenizer.chat_template is not None), None)
        if lender is None:
            raise ModelFileError(
                "chat: the tokenizer has no chat template, so that it is not known how a conversation is written",
                "train on conversations or on questions and answers, llmt train --lora, or write with --prompt",
            )
        self.borrowed = {name: lender for name, tokenizer in tokenizers.items() if tokenizer.chat_template is None}
        """Name -> whose template it borrows."""
        self._speakers: dict[str, Speaker] = {}
        alike: dict[tuple[str, str], Speaker] = {}
        for name, tokenizer in tokenizers.items():
            template = tokenizer.chat_template or tokenizers[lender].chat_template or ""
            special = sorted(tokenizer.special_tokens.items()), sorted(tokenizer.control_tokens.items())
            key = (f"{tokenizer.fingerprint()} {special}", template)
            if key not in alike:
                alike[key] = Speaker(tokenizer, template)
            self._speakers[name] = alike[key]

    def __getitem__(self, name: str) -> Speaker:
        """The speaker of the model of this name."""
        return self._speakers[name]

    def close(self) -> None:
        """End their processes."""
        for speaker in self._speakers.values():
            speaker.close()


class AnswerCut:
    """Text as it comes -> the words of the answer; what may belong to the template is held back.

    Args:
        lead: Begins the text, and is no part of the answer.
        ending: What the template writes after an answer; a text without a control token ends it by itself.
        stops: Ids that end it.
    """

    def __init__(self, lead: str, ending: Ending, stops: frozenset[int]) -> None:
        self.stops = stops
        self.ended = False
        self._lead = lead
        self._ending = ending.text
        self._blank = ending.blank
        self._ends_with_text = ending.token_id is None
        self._held = ""

    def feed(self, text: str) -> str:
        """What of the text up to here is certainly part of the answer, and was not given yet."""
        self._held += text
        if self._lead:
            if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
                return ""
            self._held = self._held.removeprefix(self._lead)
            self._lead = ""
        if self._ends_with_text and self._ending and self._ending in self._held:
            self.ended = True
            return self._give(self._held.index(self._ending))
        return self._give(len(self._held) - self._doubtful())

    def finish(self, *, stopped: bool) -> str:
        """What is left at the end.

        Args:
            stopped: An id ended the answer. Otherwise it was cut off, maybe inside of its ending.
        """
        if self._lead:  # not even that was written
            return ""
        if not stopped:
            return "" if self._ends_with_text else self._held
        if not self._ends_with_text and self._held == self._ending:
            return ""
        return self._held.removesuffix(self._blank)

    def _doubtful(self) -> int:
        """Length of the end of what is held that may begin the ending or the blank, or be all of it before an id."""
        longest = max(len(self._ending), len(self._blank))
        sizes = range(min(len(self._held), longest), 0, -1)
        starts = (self._ending, self._blank)
        return next((n for n in sizes if any(self._held[-n:] == start[:n] for start in starts)), 0)

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given


@dataclass
class Exchange:
    """A turn of the user and the answer to it, as far as it came.

    Attributes:
        prompt: What the user said.
        adapter: By which name the model answers.
        left_out: Exchanges that the model did not read, since they no longer fit into its context.
        text: The answer.
        tokens: Ids that were drawn for it, without the one that ended it.
    """

    prompt: str
    adapter: str
    left_out: int
    text: str = ""
    tokens: int = 0
    _pieces: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[str]:
        """The answer, as soon as each piece is whole; whoever stops leaves it as it is."""
        return self._pieces


class Chat:
    """A conversation with a model.

    Args:
        named: The model that answers first, by the name that stands in the exchanges.
        speaker: Writes conversations for it.
        manner: How answers are drawn.
        system: Opens the conversation.

    Attributes:
        exchanges: What was said, in order.

    Raises:
        DataError: The template refuses the opening of the conversation.
        UsageError: The longest answer leaves no room in the context.
    """

    def __init__(
        self, named: tuple[str, BaseLanguageModel], speaker: Speaker, manner: Manner, system: str | None = None
    ) -> None:
        self.exchanges: list[Exchange] = []
        self._manner = manner
        self._system = [] if system is None else [Message("system", system)]
        self._left_out = 0
        self._asked = 0
        self._running: Generator[str] | None = None
        self.use(named, speaker)

    def use(self, named: tuple[str, BaseLanguageModel], speaker: Speaker) -> None:
        """From now on this model answers; the conversation stays, and an answer that is being written ends.

        Every answer reads the whole conversation anew, so that nothing of another model takes part in it.

        The arguments and errors are those of the class; after an error the former model goes on.
        """
        self._end_running()
        name, model = named
        room = model.context_length - self._manner.max_new_tokens
        opened = len(_ids(speaker, [*self._system, Message("user", "a")]).ids)
        if opened > room:
            raise UsageError(
                f"chat: of a context of {model.context_length:,} tokens an answer of {self._manner.max_new_tokens:,} "
                f"leaves {max(room, 0):,}, and the shortest conversation takes {opened:,}",
                f"--max-new-tokens {max(model.context_length // 4, 1)}",
            )
        self._name, self._model, self._speaker, self._room = name, model, speaker, room
        self._left_out = 0

    def ask(self, prompt: str) -> Exchange:
        """Say something; the answer is written as the exchange is gone through.

        Where the conversation no longer fits into the context less the longest answer, its oldest exchanges are not
        read. The exchange is part of the conversation at once.

        Raises:
            DataError: It is too long by itself, or the template refuses it; the conversation is as before.
        """
        self._end_running()
        asked = self._fitting(prompt)
        exchange = Exchange(prompt, self._name, self._left_out)
        exchange._pieces = self._running = self._answer(exchange, asked, self._manner.seed + self._asked)
        self._asked += 1
        self.exchanges.append(exchange)
        return exchange

    def undo(self) -> Exchange | None:
        """Take back the last exchange, if there is one."""
        self._end_running()
        self._left_out = 0
        return self.exchanges.pop() if self.exchanges else None

    def reset(self) -> None:
        """Forget all that was said."""
        self._end_running()
        self._left_out = 0
        self.exchanges.clear()

    def _fitting(self, prompt: str) -> Asked:
        """The conversation with as many of its exchanges as fit, from the last back."""
        for left_out in range(self._left_out, len(self.exchanges) + 1):
            messages = list(self._system)
            for exchange in self.exchanges[left_out:]:
                messages += [Message("user", exchange.prompt), Message("assistant", exchange.text)]
            asked = _ids(self._speaker, [*messages, Message("user", prompt)])
            if len(asked.ids) <= self._room:
                self._left_out = left_out
                return asked
        raise DataError(
            f"this turn takes {len(asked.ids):,} tokens alone, and there is room for {self._room:,}",
            "say it shorter, or begin with a smaller --max-new-tokens",
        )

    def _answer(self, exchange: Exchange, asked: Asked, seed: int) -> Generator[str]:
        manner, cut, stream = self._manner, asked.cut, self._speaker.tokenizer.decode_stream()
        stopped = False
        for drawn in generate(
            self._model, torch.tensor([asked.ids]), manner.sampling,
            max_new_tokens=manner.max_new_tokens, stop_id=None, seed=seed,
        ):  # fmt: skip
            token = int(drawn[0])
            if token in cut.stops:
                stopped = True
                break
            exchange.tokens += 1
            yield from _said(exchange, cut.feed(stream.step(token) or ""))
            if cut.ended:
                return
        last = cut.feed(stream.flush())
        yield from _said(exchange, last if cut.ended else last + cut.finish(stopped=stopped))

    def _end_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()


def _ids(speaker: Speaker, messages: Sequence[Message]) -> Asked:
    """As `Speaker.ask`; whatever interrupts it, the next conversation is written anew."""
    done = False
    try:
        asked = speaker.ask(messages)
        done = True
    finally:
        if not done:
            speaker.close()
    return asked


def _said(exchange: Exchange, text: str) -> Iterator[str]:
    """Note what was said, and give it."""
    if text:
        text = without_marks(text)
        exchange.text += text
        yield text
