"""How sources are read: what names alone do not say."""

from dataclasses import dataclass, replace

from llmt.config.data import EncodingErrors
from llmt.errors import UsageError


@dataclass(frozen=True, slots=True)
class Reading:
    """The choices of whoever reads; one set for all sources of a list.

    Attributes:
        text_column: Field of a .jsonl row, or column of a data set, that holds the text.
        encoding_errors: `strict` stops at bytes that are not UTF-8, `replace` puts U+FFFD there.
        config: Which configuration of a data set; None where it has one only. Files have none.
        split: Which part of a data set. Files have no parts.
        max_samples: Read so many documents at most, over all sources in order; None reads all.

    Raises:
        UsageError: `max_samples` is less than 1.
    """

    text_column: str = "text"
    encoding_errors: EncodingErrors = "strict"
    config: str | None = None
    split: str = "train"
    max_samples: int | None = None

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < 1:
            raise UsageError(f"max_samples {self.max_samples}: nothing would be read", "name 1 or more")

    def but(self, text_column: str | None, encoding_errors: EncodingErrors | None) -> "Reading":
        """The same with what is not None put in place."""
        column = self.text_column if text_column is None else text_column
        errors = self.encoding_errors if encoding_errors is None else encoding_errors
        return replace(self, text_column=column, encoding_errors=errors)


PLAIN = Reading()
