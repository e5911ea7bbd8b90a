"""The unit of text: one document."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text that stands for itself: the model sees its end.

    Attributes:
        text: The text, without a byte order mark, otherwise as it was read.
        source: Where it came from: `file`, `file:line`, `-`, `hf:name: row number` or
            `builtin:kind/name`.
    """

    text: str
    source: str
