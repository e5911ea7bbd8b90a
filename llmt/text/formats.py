"""the columns of a row -> a document: plain text, a prompt with its completion, a conversation, or a pair."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmt.config.names import COLUMN_PARTS
from llmt.errors import DataError, UsageError
from llmt.text.columns import no_column, require_text
from llmt.text.conversations import read_messages
from llmt.text.documents import Document, Layout
from llmt.text.preferences import Known, pair_of_texts, pair_of_turns
from llmt.text.prompts import ANSWER, INSTRUCTION_INPUT_PROMPT, INSTRUCTION_PROMPT, QUESTION_PROMPT
from llmt.text.reading import TEXT_COLUMN, DataFormat, Reading
from llmt.text.rows import Row

_HINT = "--columns PART=COLUMN, with the parts " + ", ".join(COLUMN_PARTS)
_SYSTEM, _INPUT = "system", "input"
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How rows of one kind are written: their parts with the columns that usually hold them."""

    format: DataFormat
    names: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    completion: str = ""
    optional: tuple[str, ...] = ()
    prompt_with_input: str = ""
    written_as: Layout | None = None
    count: int = 1

    @property
    def answers(self) -> list[str]:
        """The parts that are completions: the last one, or the last ones."""
        return list(self.names)[-self.count :]

    @property
    def asked(self) -> str:
        """The part that is answered."""
        return next(part for part in self.names if part != _SYSTEM)


_ANSWERS = {"chosen": ("chosen",), "rejected": ("rejected",)}
_PREFERENCE = _Layout(
    "preference",
    {_SYSTEM: (_SYSTEM,), "prompt": ("prompt", "query"), **_ANSWERS},
    prompt="{prompt}",
    completion="{answer}",
    optional=(_SYSTEM, "prompt"),
    count=2,
)
_PREFERENCES = (
    _PREFERENCE,
    _Layout(
        "preference",
        {_SYSTEM: (_SYSTEM,), "question": ("question",), **_ANSWERS},
        prompt=QUESTION_PROMPT,
        completion=ANSWER,
        optional=(_SYSTEM,),
        written_as="question",
        count=2,
    ),
    _Layout(
        "preference",
        {_SYSTEM: (_SYSTEM,), "instruction": ("instruction",), _INPUT: (_INPUT,), **_ANSWERS},
        prompt=INSTRUCTION_PROMPT,
        completion="{answer}",
        optional=(_SYSTEM, _INPUT),
        prompt_with_input=INSTRUCTION_INPUT_PROMPT,
        written_as="instruction",
        count=2,
    ),
)
"""Of these the first whose question is there, or else the first."""
_ASKED = tuple(name for layout in _PREFERENCES for name in layout.names[layout.asked])

_CONVERSATION = _Layout("conversation", {"messages": ("messages", "conversations")})
_PAIR = _Layout(
    "instruction",
    {"prompt": ("prompt",), "completion": ("completion", "response")},
    prompt="{prompt}",
    completion="{completion}",
)
_LAYOUTS = (
    *_PREFERENCES,
    _CONVERSATION,
    _PAIR,
    _Layout(
        "instruction",
        {"instruction": ("instruction",), _INPUT: (_INPUT,), "output": ("output",)},
        prompt=INSTRUCTION_PROMPT,
        completion="{output}",
        optional=(_INPUT,),
        prompt_with_input=INSTRUCTION_INPUT_PROMPT,
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
    _names: tuple[str, ...]

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns of a table that are looked at: all where answers hold what they answer, to see that they do."""
        bare = self._layout is _PREFERENCE and self._template is None and self._parts["prompt"] not in self.columns
        return tuple(dict.fromkeys((*self.columns, *self._names))) if bare else self.columns

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
        if self._layout in _PREFERENCES:
            return self._preference(row, self._layout)
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

    def _preference(self, row: Row, layout: _Layout) -> Document | None:
        """Two answers, as texts or as turns."""
        columns = self._parts["chosen"], self._parts["rejected"]
        chosen, rejected = (_value(row, column) for column in columns)
        if self._template is None and isinstance(chosen, list) and isinstance(rejected, list):
            return self._turns(row, layout, (chosen, rejected))
        texts = _text(row, columns[0]), _text(row, columns[1])
        if self._template is not None:
            prompt: str | None = _fill(self._template, lambda column: _text(row, column))
            written_as = None
        else:
            prompt, written_as = self._asked_of(row, layout), layout.written_as
            texts = _completed(prompt or "", layout, texts[0]), _completed(prompt or "", layout, texts[1])
        found = pair_of_texts(prompt, texts, columns, row.place)
        if prompt is None and found is not None:
            self._require_read(row, found)
        return found if found is None else replace(found, layout=written_as)

    def _asked_of(self, row: Row, layout: _Layout) -> str | None:
        """What both answer, after what the system says; None where the answers hold it.

        Raises:
            DataError: The system says something, and the answers hold the prompt, into which it cannot be put.
        """
        column = self._parts[layout.asked]
        if layout.asked in layout.optional and column not in self.columns and column not in row.values:
            if not self._has(row, _SYSTEM):
                return None
            raise DataError(
                f"{row.place}: {row.kind} {self._parts[_SYSTEM]!r} belongs before a prompt, and there is none",
                "--columns prompt=COLUMN, or leave it out where the answers hold it",
            )
        prompt = self._prompt(row, layout)
        if not self._has(row, _SYSTEM):
            return prompt
        return f"{_text(row, self._parts[_SYSTEM])}\n\n{prompt}"

    def _turns(self, row: Row, layout: _Layout, answers: tuple[list[object], list[object]]) -> Document:
        """Two answers as turns, after those of the prompt; of whole conversations a prompt that is a text is known."""
        column = self._parts[layout.asked]
        before = row.values.get(column)
        if before is not None and not isinstance(before, str | list):
            raise _not_turns(row, column, before, "name another column: --columns prompt=COLUMN")
        known = Known(
            column,
            _text(row, self._parts[_SYSTEM]) if self._has(row, _SYSTEM) else "",
            before if isinstance(before, str) and not self._has(row, _INPUT) else "",
        )
        columns = self._parts["chosen"], self._parts["rejected"]
        return pair_of_turns(before if isinstance(before, list) else [], answers, columns, row.place, known)

    def _require_read(self, row: Row, pair: Document) -> None:
        """Where answers are to hold what they answer, no other column may.

        Raises:
            DataError: One that usually does is there, or any text where the answers begin with nothing that they share.
        """
        texts = [name for name, value in row.values.items() if isinstance(value, str) and value.strip()]
        begins = any(side.prompt for side in pair.pair)
        left = [name for name in texts if name not in self.columns and (name in _ASKED or not begins)]
        if left:
            raise DataError(
                f"{row.place}: no {row.kind} is read as the prompt, the answers begin with none, and there is "
                f"{_listed(left)}",
                "--columns prompt=COLUMN, or leave out what is no prompt",
            )

    def _pair(self, row: Row, layout: _Layout) -> tuple[str, str]:
        completion = _text(row, self._parts[layout.answers[0]])
        if self._template is not None:
            prompt = _fill(self._template, lambda column: _text(row, column))
        else:
            prompt = self._prompt(row, layout)
        return prompt, _completed(prompt, layout, completion)

    def _prompt(self, row: Row, layout: _Layout) -> str:
        shape = layout.prompt_with_input if layout.prompt_with_input and self._has(row, _INPUT) else layout.prompt
        return _fill(shape, lambda part: _text(row, self._parts[part]))

    def _has(self, row: Row, part: str) -> bool:
        """Whether a part that may be left out is there; of another type than text it is an error later."""
        value = row.values.get(self._parts.get(part, ""))
        return value is not None and (not isinstance(value, str) or bool(value.strip()))


def _completed(prompt: str, layout: _Layout, completion: str) -> str:
    """The completion as its layout writes it; a prompt that ends in white space has what stands before it already."""
    shape = layout.completion.lstrip() if prompt[-1:].isspace() else layout.completion
    return _fill(shape, lambda _: completion) if completion.strip() else completion


def recognise(
    names: Sequence[str], reading: Reading, place: str, kind: Literal["field", "column"] = "column"
) -> RowFormat:
    """What rows with these columns are: the kind that was named, else the first that its columns are enough for.

    Pairs come first (`chosen` with `rejected`; what they answer is in `prompt` or `query`, in `question`, in
    `instruction` with `input`, or in both), then conversations (`messages`, `conversations`), `prompt` with
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
    for layout in _one_of_pairs(_candidates(reading), names, reading):
        parts = _parts(layout, names, reading)
        always = [part for part in layout.names if part not in layout.optional]
        needed = [part for part in always if not _is_replaced(part, layout, reading)]
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
        return [layout for layout in found if layout in _PREFERENCES]
    if reading.format == "instruction":
        return [layout for layout in found if layout.format == "instruction"]
    if reading.prompt_template is not None:
        return [layout for layout in found if layout is not _CONVERSATION]
    return found


def _one_of_pairs(found: Sequence[_Layout], names: Sequence[str], reading: Reading) -> list[_Layout]:
    """The same with at most one kind of pairs: the one whose question is mapped, or else there."""
    pairs = [layout for layout in found if layout in _PREFERENCES]
    if reading.prompt_template is not None:
        there: list[_Layout] = []
    else:
        there = [layout for layout in pairs if layout.asked in reading.columns]
        there += [layout for layout in pairs if any(name in names for name in layout.names[layout.asked])]
    kept = (there or pairs)[:1]
    return [layout for layout in found if layout in kept or layout not in _PREFERENCES]


def _is_named(layout: _Layout, reading: Reading) -> bool:
    """Whether a mapped column says that rows are of this kind; of pairs it is an answer that says so."""
    return any(part in reading.columns for part in (layout.answers if layout in _PREFERENCES else layout.names))


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
    for part in layout.optional:
        if part in reading.columns and parts[part] not in names:
            raise _missing(place, kind, parts[part], names)
    template = reading.prompt_template
    if template is not None:
        parts = {part: parts[part] for part in layout.answers}
        read = (*_columns_of(template, names, place, kind), *parts.values())
    else:
        read = tuple(parts.values())
        for part in layout.optional:  # the first row need not have it
            parts.setdefault(part, layout.names[part][0])
    is_conversation = layout is _CONVERSATION or reading.format == "conversation"
    return RowFormat(
        "conversation" if is_conversation else layout.format,
        tuple(dict.fromkeys(read)),
        parts,
        layout,
        template,
        "instruction" if template is not None else reading.format,
        tuple(names),
    )


def _plain(names: Sequence[str], reading: Reading, place: str, kind: str) -> RowFormat:
    if reading.text_column not in names:
        raise no_column(place, kind, reading.text_column, names)
    return RowFormat("text", (reading.text_column,), {}, None, None, reading.format, tuple(names))


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
