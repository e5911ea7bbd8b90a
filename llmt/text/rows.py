"""Rows: what every table and every file of records is read as."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmt.errors import DataError

Choose = Callable[[Sequence[str]], Sequence[str]]
"""The columns that there are -> those to read. May raise `DataError`: none of them is what was asked for."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or why it cannot be read.

    Attributes:
        place: `file:line` of what is written line by line, `file: row number` (from 1) of everything else.
        values: Its fields by name, as plain Python values.
        error: What is wrong with it; the rows after it can be read nevertheless.
        kind: What its fields are called in messages.
    """

    place: str
    values: Mapping[str, object] = field(default_factory=dict)
    error: DataError | None = None
    kind: Literal["field", "column"] = "field"
