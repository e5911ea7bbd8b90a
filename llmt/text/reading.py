"""How sources are read: what names alone do not say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from llmt.errors import DataError, UsageError

if TYPE_CHECKING:
    from llmt.config.data import DataConfig, EncodingErrors

DataFormat = Literal["text", "instruction", "conversation", "preference"]

TEXT_COLUMN = "text"


@dataclass(frozen=True, slots=True)
class Reading:
    """The choices of whoever reads; one set for all sources of a list.

    Attributes:
        text_column: Field of a row, or column of a table, that holds plain text. Any other than `text` says that rows
            are plain text.
        encoding_errors: `strict` stops at bytes that are not UTF-8, `replace` puts U+FFFD there.
        config: Which configuration of a data set; None where it has one only. Files have none.
        split: Which part of a data set. Files have no parts.
        max_samples: Read so many documents at most, over all sources in order; None reads all.
        format: What a row is; None tells by its columns.
        columns: Part of a row -> the column that holds it; the parts are those of `COLUMN_PARTS`.
        prompt_template: How a prompt is written, with columns in braces; None takes that of the format.
        split_on: What separates the documents of a text file; None makes each file one.
        download: A data set is downloaded as a whole before it is read.
        skip_bad: So many rows that cannot be read are passed over; one more is an error.
        on_bad: Told of each row that is passed over.
        on_empty: Told the place of each row or file that holds no text and is passed over.
        on_format: Told the name of each source of rows, what its rows are, and by which columns.

    Raises:
        UsageError: `max_samples` is less than 1, `skip_bad` is less than 0, or `split_on` is empty.
    """

    text_column: str = TEXT_COLUMN
    encoding_errors: "EncodingErrors" = "strict"
    config: str | None = None
    split: str = "train"
    max_samples: int | None = None
    format: DataFormat | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt_template: str | None = None
    split_on: str | None = None
    download: bool = False
    skip_bad: int = 0
    on_bad: Callable[[DataError], None] | None = None
    on_empty: Callable[[str], None] | None = None
    on_format: Callable[[str, DataFormat, tuple[str, ...]], None] | None = None

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < 1:
            raise UsageError(f"max_samples {self.max_samples}: nothing would be read", "name 1 or more")
        if self.skip_bad < 0:
            raise UsageError(f"skip_bad {self.skip_bad}: fewer than no rows", "name 0 or more")
        if self.split_on == "":
            raise UsageError("split_on: nothing stands between any two characters", "name a text, or leave it out")

    @classmethod
    def of(cls, config: "DataConfig") -> "Reading":
        """As the settings of a run say."""
        return cls(
            text_column=config.text_column,
            encoding_errors=config.encoding_errors,
            config=config.dataset_config,
            split=config.dataset_split,
            max_samples=config.max_samples,
            format=None if config.format == "auto" else config.format,
            columns=config.columns,
            prompt_template=config.prompt_template,
            split_on=config.split_on,
            download=config.dataset_download,
            skip_bad=config.skip_bad,
        )

    def but(self, text_column: str | None, encoding_errors: "EncodingErrors | None") -> "Reading":
        """The same with what is not None put in place."""
        column = self.text_column if text_column is None else text_column
        errors = self.encoding_errors if encoding_errors is None else encoding_errors
        return replace(self, text_column=column, encoding_errors=errors)


PLAIN = Reading()
