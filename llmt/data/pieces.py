"""a document -> the pieces of its text that are learnt, and those that are only read."""

from typing import NamedTuple

from llmt.text.documents import Document
from llmt.tokenizers.base import Tokenizer

# Texts whose border is one where a prompt ends or a turn begins.
_BORDERS = (
    ("Question: why?\nAnswer:", " so it is"),
    ("### Response:\n", "So it is"),
    ("assistant\n", "hello"),
    ("hello", "\n"),
    ("first text.\n", "\nsecond"),
)


class Piece(NamedTuple):
    """A piece of a document.

    Attributes:
        text: As it is written.
        learnt: Its ids are predicted, not only read.
        token_id: It is this token of the tokenizer's own, not text that is encoded.
    """

    text: str
    learnt: bool
    token_id: int | None = None


def pieces_of(document: Document, *, train_on_prompt: bool) -> list[Piece]:
    """A text as one piece; a prompt and its completion as two, unless both are learnt alike."""
    if document.prompt is None:
        return [Piece(document.text, True)]
    prompt, completion = document.text[: document.prompt], document.text[document.prompt :]
    return [Piece(prompt, train_on_prompt), Piece(completion, True)]


def is_seamless(tokenizer: Tokenizer) -> bool:
    """Whether texts that are encoded one by one read as when they are encoded in one, at the borders of prompts."""
    return all(
        tokenizer.decode(tokenizer.encode(one) + tokenizer.encode(other))
        == tokenizer.decode(tokenizer.encode(one + other))
        for one, other in _BORDERS
    )
