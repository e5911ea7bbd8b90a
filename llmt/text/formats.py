"""the columns of a row -> a document: plain text, a prompt with its completion, a conversation, or a pair."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmt.config.names import COLUMN_PARTS
from llmt.errors import DataError, UsageError
from llmt.text.columns import no_column, require_text
from llmt.text.conversations import read_messages
from llmt.text.documents import Document, Layout
from llmt.text.preferences import pair_of_texts, pair_of_turns
from llmt.text.prompts import ANSWER, INSTRUCTION_INPUT_PROMPT, INSTRUCTION_PROMPT, QUESTION_PROMPT
from llmt.text.reading import TEXT_COLUMN, DataFormat, Reading
from llmt.text.rows import Row

_HINT = "--columns PART=COLUMN, with the parts " + ", ".join(COLUMN_PARTS)
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How rows of one kind are written: their parts with the columns that usually hold them."""

    format: DataFormat
    names: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    completion: str = ""
    optional: str = ""
    prompt_with_optional: str = ""
    written_as: Layout | None = None
    count: int = 1

    @property
    def answers(self) -> list[str]:
        """The parts that are completions: the last one, or the last ones."""
        return list(self.names)[-self.count :]


_PREFERENCE = _Layout(
    "preference",
    {"prompt": ("prompt",), "chosen": ("chosen",), "rejected": ("rejected",)},
    optional="prompt",
    count=2,
)
_CONVERSATION = _Layout("conversation", {"messages": ("messages", "conversations")})
_PAIR = _Layout(
    "instruction",
    {"prompt": ("prompt",), "completion": ("completion", "response")},
    prompt="{prompt}",
    completion="{completion}",
)
_LAYOUTS = (
    _PREFERENCE,
    _CONVERSATION,
    _PAIR,
    _Layout(
        "instruction",
        {"instruction": ("instruction",), "input": ("input",), "output": ("output",)},
        prompt=INSTRUCTION_PROMPT,
        completion="{output}",
        optional="input",
        prompt_with_optional=INSTRUCTION_INPUT_PROMPT,
        written_as="instruction",
    ),
    _Layout(
        "instruction",
        {"question": ("question",), "answer": ("answer",)},
        prompt=QUESTION_PROMPT,
        completion=ANSWER,
        written_as="question",
    ),
)
"""In the order in which they are recognised."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What the rows of one source are.

    Attributes:
        format: What they are by their columns; see `format_of` for one row.
        columns: The columns that are read.
    """

    format: DataFormat
    columns: tuple[str, ...]
    _parts: Mapping[str, str]
    _layout: _Layout | None
    _template: str | None
    _asked: DataFormat | None

    def format_of(self, row: Row) -> DataFormat:
        """What this row is: a prompt and a completion that are both lists of turns are a conversation."""
        turns = all(isinstance(row.values.get(column), list) for column in self._parts.values())
        return "conversation" if self._layout is _PAIR and turns and self._asked != "instruction" else self.format

    def document(self, row: Row) -> Document | None:
        """The row as a document; None where there is no text in it.

        Raises:
            DataError: A part is missing, null or of another type; a completion is empty; a conversation is none. Names
                the row and the column.
        """
        if self._layout is None:
            text = _text(row, self.columns[0])
            return Document(text, row.place) if text.strip() else None
        if self._layout is _PREFERENCE:
            return self._preference(row)
        if self.format_of(row) == "conversation":
            return self._conversation(row)
        prompt, completion = self._pair(row, self._layout)
        if not completion.strip():
            column = self._parts[self._layout.answers[0]]
            if not any(
                isinstance(row.values.get(name), str) and str(row.values[name]).strip() for name in self.columns
            ):
                return None
            raise DataError(
                f"{row.place}: {row.kind} {column!r} is empty, so there is nothing to learn", "take the row out"
            )
        layout = self._layout.written_as if self._template is None else None
        return Document(prompt + completion, row.place, prompt=len(prompt), layout=layout)

    def _conversation(self, row: Row) -> Document:
        values = {column: _value(row, column) for column in self._parts.values()}
        place = f"{row.place}: {row.kind} {' and '.join(map(repr, values))}"
        turns: list[object] = []
        for column, value in values.items():
            if not isinstance(value, list):
                raise _not_turns(row, column, value)
            turns += value
        messages = read_messages(turns, place)
        return Document("\n".join(message.content for message in messages), row.place, messages=messages)

    def _preference(self, row: Row) -> Document | None:
        """Two answers, as texts or as turns; of whole conversations a prompt that is a text says nothing new."""
        columns = self._parts["chosen"], self._parts["rejected"]
        chosen, rejected = (_value(row, column) for column in columns)
        if self._template is not None:
            prompt: str | None = _fill(self._template, lambda column: _text(row, column))
        elif isinstance(chosen, list) and isinstance(rejected, list):
            before = row.values.get(self._parts["prompt"])
            if before is not None and not isinstance(before, str | list):
                raise _not_turns(row, self._parts["prompt"], before, "name another column: --columns prompt=COLUMN")
            return pair_of_turns(before if isinstance(before, list) else [], (chosen, rejected), columns, row.place)
        else:
            column = self._parts["prompt"]
            prompt = _text(row, column) if column in self.columns or column in row.values else None
        return pair_of_texts(prompt, (_text(row, columns[0]), _text(row, columns[1])), columns, row.place)

    def _pair(self, row: Row, layout: _Layout) -> tuple[str, str]:
        completion = _text(row, self._parts[layout.answers[0]])
        if self._template is not None:
            prompt = _fill(self._template, lambda column: _text(row, column))
        else:
            shape = layout.prompt
            if layout.optional and self._has(row, layout.optional):
                shape = layout.prompt_with_optional
            prompt = _fill(shape, lambda part: _text(row, self._parts[part]))
        # A prompt that ends in white space has what stands before a completion already.
        shape = layout.completion.lstrip() if prompt[-1:].isspace() else layout.completion
        return prompt, _fill(shape, lambda _: completion) if completion else ""

    def _has(self, row: Row, part: str) -> bool:
        """Whether a part that may be left out is there; of another type than text it is an error later."""
        value = row.values.get(self._parts.get(part, ""))
        return value is not None and (not isinstance(value, str) or bool(value.strip()))


def recognise(
    names: Sequence[str], reading: Reading, place: str, kind: Literal["field", "column"] = "column"
) -> RowFormat:
    """What rows with these columns are: the kind that was named, else the first that its columns are enough for.

    Pairs come first (`chosen` with `rejected`), then conversations (`messages`, `conversations`), `prompt` with
    `completion` or `response`, `instruction` with `output`, `question` with `answer`, and then plain text.

    Args:
        names: The columns that there are.
        reading: May name the format, the columns, the text column and the template.
        place: What errors call it.
        kind: What errors call a column.

    Raises:
        DataError: A column is not there, or a template that cannot be filled; lists the columns that exist.
        UsageError: A part that is none, or choices that exclude each other.
    """
    _require_sense(reading)
    if _is_text(reading):
        return _plain(names, reading, place, kind)
    for layout in _candidates(reading):
        parts = _parts(layout, names, reading)
        needed = [part for part in layout.names if part != layout.optional and not _is_replaced(part, layout, reading)]
        if _is_named(layout, reading) or not any(part not in parts for part in needed):
            for part in needed:
                if parts.get(part) not in names:
                    raise _missing(place, kind, parts.get(part, part), names)
            return _made(layout, parts, names, reading, place, kind)
    if reading.format is None and reading.prompt_template is None:
        return _plain(names, reading, place, kind)
    asked = f"no {kind}s of the format {reading.format}" if reading.format else f"no {kind} to complete the prompt with"
    raise DataError(f"{place}: {asked}; it has {_listed(names)}", _HINT)


def _require_sense(reading: Reading) -> None:
    unknown = next((part for part in reading.columns if part not in COLUMN_PARTS), None)
    if unknown is not None:
        raise UsageError(f"columns: no part {unknown!r}", f"the parts are {', '.join(COLUMN_PARTS)}")
    if reading.format == "text" and reading.columns:
        raise UsageError("columns: plain text has no parts", "--text-column COLUMN")
    if reading.prompt_template is not None and reading.format in ("text", "conversation"):
        raise UsageError(f"prompt_template: the format {reading.format} has no prompt", "leave one of them out")
    if reading.columns and not _candidates(reading):
        named = ", ".join(reading.columns)
        raise UsageError(f"columns: no format {reading.format or ''} has the parts {named}".replace("  ", " "), _HINT)


def _is_text(reading: Reading) -> bool:
    """Plain text was asked for, by the format or by the name of its column."""
    named = reading.text_column != TEXT_COLUMN and not reading.columns and reading.prompt_template is None
    return reading.format == "text" or (reading.format is None and named)


def _candidates(reading: Reading) -> list[_Layout]:
    """The layouts that what was asked for leaves; of mapped columns the one that has all of these parts."""
    found = [layout for layout in _LAYOUTS if set(reading.columns) <= set(layout.names)]
    if reading.format == "conversation":
        return [layout for layout in found if layout in (_CONVERSATION, _PAIR)]
    if reading.format == "preference":
        return [layout for layout in found if layout is _PREFERENCE]
    if reading.format == "instruction":
        return [layout for layout in found if layout.format == "instruction"]
    if reading.prompt_template is not None:
        return [layout for layout in found if layout is not _CONVERSATION]
    return found


def _is_named(layout: _Layout, reading: Reading) -> bool:
    """Whether a mapped column says that rows are of this kind; of pairs it is an answer that says so."""
    return any(part in reading.columns for part in (layout.answers if layout is _PREFERENCE else layout.names))


def _parts(layout: _Layout, names: Sequence[str], reading: Reading) -> dict[str, str]:
    """Part -> its column, for each that was mapped or that is there under a usual name."""
    usual = {part: [name for name in known if name in names] for part, known in layout.names.items()}
    return {
        part: reading.columns.get(part) or usual[part][0] for part in usual if part in reading.columns or usual[part]
    }


def _is_replaced(part: str, layout: _Layout, reading: Reading) -> bool:
    """Whether the template writes what this part would."""
    return reading.prompt_template is not None and part not in layout.answers and part not in reading.columns


def _made(
    layout: _Layout, parts: dict[str, str], names: Sequence[str], reading: Reading, place: str, kind: str
) -> RowFormat:
    if layout.optional in reading.columns and parts[layout.optional] not in names:
        raise _missing(place, kind, parts[layout.optional], names)
    template = reading.prompt_template
    if template is not None:
        parts = {part: parts[part] for part in layout.answers}
        read = (*_columns_of(template, names, place, kind), *parts.values())
    else:
        read = tuple(parts.values())
        if layout.optional:  # the first row need not have it
            parts.setdefault(layout.optional, layout.names[layout.optional][0])
    is_conversation = layout is _CONVERSATION or reading.format == "conversation"
    return RowFormat(
        "conversation" if is_conversation else layout.format,
        tuple(dict.fromkeys(read)),
        parts,
        layout,
        template,
        "instruction" if template is not None else reading.format,
    )


def _plain(names: Sequence[str], reading: Reading, place: str, kind: str) -> RowFormat:
    if reading.text_column not in names:
        raise no_column(place, kind, reading.text_column, names)
    return RowFormat("text", (reading.text_column,), {}, None, None, reading.format)


def _columns_of(template: str, names: Sequence[str], place: str, kind: str) -> tuple[str, ...]:
    """The columns that a template names.

    Raises:
        DataError: One of them is not there, none is named, or a brace stands alone.
    """
    columns: list[str] = []
    for match in _FIELD.finditer(template):
        if match[2]:
            raise DataError(
                f"{place}: prompt_template has a {match[2]!r} alone, at character {match.start() + 1}",
                "write {{ or }} for a brace that is text",
            )
        if match[1] is not None and match[1] not in names:
            raise DataError(
                f"{place}: prompt_template names no {kind} by {{{match[1]}}}; it has {_listed(names)}",
                "put the name of one of them in braces",
            )
        columns += [match[1]] if match[1] is not None else []
    if not columns:
        raise DataError(
            f"{place}: prompt_template names no {kind}, so every prompt would be the same; it has {_listed(names)}",
            "put the name of one of them in braces",
        )
    return tuple(columns)


def _fill(template: str, value: Callable[[str], str]) -> str:
    """The template with what `value` gives for each name in braces; names are looked up, never evaluated."""
    return _FIELD.sub(lambda match: match[0][0] if match[1] is None else value(match[1]), template)


def _value(row: Row, column: str) -> object:
    if column not in row.values:
        raise no_column(row.place, row.kind, column, row.values)
    return row.values[column]


def _text(row: Row, column: str) -> str:
    return require_text(_value(row, column), f"{row.place}: {row.kind} {column!r}")


def _not_turns(row: Row, column: str, value: object, hint: str = "--set data.format=instruction") -> DataError:
    kind = "null" if value is None else type(value).__name__
    return DataError(f"{row.place}: {row.kind} {column!r} is {kind}, not a list of turns", hint)


def _missing(place: str, kind: str, column: str, names: Sequence[str]) -> DataError:
    return DataError(no_column(place, kind, column, names).message, _HINT)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) or "nothing"
