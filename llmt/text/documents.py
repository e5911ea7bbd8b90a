"""The unit of text: one document."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Layout = Literal["question", "instruction"]
"""Kinds of rows that each have one way of being written."""

Role = Literal["system", "user", "assistant", "tool"]


class Message(NamedTuple):
    """One turn of a conversation: whose it is, and what was said."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text that stands for itself: the model sees its end.

    Attributes:
        text: The text, without a byte order mark, otherwise as it was read. Of a prompt and its completion both
            in a row; of a conversation what was said, one turn a line; of a pair what stands before the answers, once,
            and both answers.
        source: Where it came from: `file`, `file:line`, `file: row number`, `-`, `hf:name: row number` or
            `builtin:kind/name`.
        prompt: How many characters of `text` are the prompt; None where it has none.
        layout: Its row is of this kind, and its prompt is written as for that; None for everything else.
        messages: The turns of a conversation; empty for everything else.
        more: The text goes on in the next document: a long one comes in parts that are cut where no word is.
        answers: How many turns of the assistant, the last ones, are learnt; None learns all of them.
        pair: The chosen and the rejected text, each with what stands before it; empty for everything else.
    """

    text: str
    source: str
    prompt: int | None = None
    layout: Layout | None = None
    messages: tuple[Message, ...] = ()
    more: bool = False
    answers: int | None = None
    pair: "tuple[()] | tuple[Document, Document]" = ()

    @property
    def belongs_with(self) -> str:
        """Documents for which it is the same fall on one side of a split: the text, or of a pair what both answer.

        Pairs that have nothing in common answer nothing that is known, and go by their text.
        """
        if not self.pair:
            return self.text
        chosen, rejected = self.pair
        if not chosen.messages:
            asked = chosen.text[: chosen.prompt]
        else:
            equal = [one == other for one, other in zip(chosen.messages, rejected.messages, strict=False)]
            shared = min([*equal, False].index(False), len(chosen.messages) - 1, len(rejected.messages) - 1)
            asked = "\n".join(message.content for message in chosen.messages[:shared])
        return asked if asked.strip() else self.text
