"""Columns of a row to a document."""

from itertools import islice
from typing import Any

import pytest

from llmt.config.names import COLUMN_PARTS
from llmt.errors import DataError, UsageError
from llmt.text.builtin import builtin_instructions
from llmt.text.documents import Document
from llmt.text.formats import recognise
from llmt.text.reading import Reading
from llmt.text.rows import Row

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def _read(values: dict[str, Any], **choices: Any) -> Document | None:
    form = recognise(list(values), Reading(**choices), "f", "field")
    return form.document(Row("f:1", values))


def _split(values: dict[str, Any], **choices: Any) -> tuple[str, str]:
    document = _read(values, **choices)
    assert document is not None
    assert document.source == "f:1"
    assert document.prompt is not None
    assert not document.messages
    return document.text[: document.prompt], document.text[document.prompt :]


ALPACA = "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n"
BARE = "### Instruction:\nadd\n\n### Response:\n"


@pytest.mark.parametrize(
    ("values", "prompt", "completion"),
    [
        ({"prompt": " a{b} ", "completion": "c "}, " a{b} ", "c "),
        ({"prompt": "a", "response": " b"}, "a", " b"),
        ({"prompt": "", "completion": "b"}, "", "b"),
        ({"instruction": "add", "input": "1 2", "output": "3"}, ALPACA, "3"),
        ({"instruction": "add", "input": "", "output": "3"}, BARE, "3"),
        ({"instruction": "add", "input": None, "output": "3"}, BARE, "3"),
        ({"instruction": "add", "output": "3", "text": "all"}, BARE, "3"),
        ({"question": "1 + {x}?", "answer": "{3}"}, "Question: 1 + {x}?\nAnswer:", " {3}"),
        ({"question": "q", "answer": "a", "prompt": "p", "completion": "c"}, "p", "c"),
    ],
)
def test_instructions_are_recognised_by_their_columns(values: dict[str, Any], prompt: str, completion: str) -> None:
    """Each format has its layout; braces in the text are text; the first format that is whole wins."""
    assert _split(values) == (prompt, completion)
    assert recognise(list(values), Reading(), "f").format == "instruction"


def test_an_input_may_come_with_a_later_row() -> None:
    """The first row need not have the optional part."""
    form = recognise(["instruction", "output"], Reading(), "f", "field")
    document = form.document(Row("f:2", {"instruction": "add", "input": "1 2", "output": "3"}))
    assert document == Document(ALPACA + "3", "f:2", prompt=len(ALPACA), layout="instruction")


def test_what_is_none_of_these_is_plain_text() -> None:
    """The text column is read where no format is whole; a blank one is no document."""
    for values in ({"text": "a"}, {"text": "a", "prompt": "b"}, {"text": "a", "answer": "b", "input": "c"}):
        assert _read(values) == Document("a", "f:1")
    assert _read({"text": " \n"}) is None
    assert _read({"body": "b", "question": "q", "answer": "a"}, text_column="body") == Document("b", "f:1")
    assert _read({"text": "a", "question": "q", "answer": "a"}, format="text") == Document("a", "f:1")


@pytest.mark.parametrize(
    ("values", "columns", "prompt", "completion"),
    [
        ({"q": "a", "text": "t", "r": "b"}, {"prompt": "q", "completion": "r"}, "a", "b"),
        ({"q": "a", "completion": "b"}, {"prompt": "q"}, "a", "b"),
        ({"question": "q", "final": "f", "answer": "a"}, {"answer": "final"}, "Question: q\nAnswer:", " f"),
        ({"do": "add", "with": "1 2", "output": "3"}, {"instruction": "do", "input": "with"}, ALPACA, "3"),
    ],
)
def test_mapped_columns_name_the_format(
    values: dict[str, Any], columns: dict[str, str], prompt: str, completion: str
) -> None:
    """Parts that are not mapped keep their usual columns."""
    assert _split(values, columns=columns) == (prompt, completion)


@pytest.mark.parametrize(
    ("values", "template", "prompt", "completion"),
    [
        ({"question": "q", "answer": "a"}, "Q: {question} A:", "Q: q A:", " a"),
        ({"question": "q", "answer": "a"}, "Q: {question}\n", "Q: q\n", "a"),
        ({"prompt": "p", "completion": "c", "my tag.x": "t"}, "{{{my tag.x}}} {prompt}{prompt}", "{t} pp", "c"),
        ({"text": "no prompt", "output": "c"}, "{text}?", "no prompt?", "c"),
        ({"prompt": "{completion}", "completion": "c"}, "{prompt}", "{completion}", "c"),
    ],
)
def test_a_template_writes_the_prompt(values: dict[str, Any], template: str, prompt: str, completion: str) -> None:
    """Any column by its name; what a column holds is never filled in again, and a space is not doubled."""
    assert _split(values, prompt_template=template) == (prompt, completion)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{prompt.__class__}", "names no field by {prompt.__class__}; it has prompt, completion"),
        ("{prompt[0]}", "names no field by {prompt[0]}; it has"),
        ("{prompt!r}", "names no field by {prompt!r}; it has"),
        ("{}", "names no field by {}; it has"),
        ("{0}", "names no field by {0}; it has"),
        ("{prompt", "has a '{' alone, at character 1"),
        ("{prompt} }", "has a '}' alone, at character 10"),
        ("Answer: {{prompt}}", "names no field, so every prompt would be the same; it has prompt, completion"),
    ],
)
def test_a_template_holds_names_and_nothing_else(template: str, said: str) -> None:
    """No attribute, index, number or conversion; the columns that exist are listed."""
    with pytest.raises(DataError) as error:
        _read({"prompt": "a", "completion": "b"}, prompt_template=template)
    assert error.value.message.startswith(f"f: prompt_template {said}")
    assert error.value.hint


def test_both_lists_of_turns_are_a_conversation() -> None:
    """As TRL writes it; in each row for itself."""
    values = {"prompt": TURNS[:1], "completion": TURNS[1:]}
    form = recognise(list(values), Reading(), "f", "field")
    row = Row("f:1", values)
    assert form.format_of(row) == "conversation"
    document = form.document(row)
    assert document is not None
    assert [tuple(message) for message in document.messages] == [("user", "hi"), ("assistant", "hello")]
    assert (document.text, document.prompt) == ("hi\nhello", None)
    assert form.format_of(Row("f:2", {"prompt": "a", "completion": "b"})) == "instruction"
    with pytest.raises(DataError, match="f:1: field 'completion' is list, not text"):
        _read(values, format="instruction")


@pytest.mark.parametrize("columns", [{}, {"messages": "chat"}])
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_conversations_come_before_everything_else(name: str, columns: dict[str, str]) -> None:
    """Under either usual name, or under the one that is mapped."""
    values = {"text": "t", "prompt": "p", "completion": "c", columns.get("messages", name): TURNS}
    document = _read(values, columns=columns)
    assert document is not None
    assert [message.content for message in document.messages] == ["hi", "hello"]


@pytest.mark.parametrize(
    ("values", "choices", "said"),
    [
        ({"body": "a", "id": 1}, {}, "f: no field 'text'; it has body, id"),
        ({"body": "a"}, {"text_column": "b"}, "f: no field 'b'; it has body"),
        ({"text": "a"}, {"format": "instruction"}, "f: no fields of the format instruction; it has text"),
        ({"text": "a"}, {"format": "conversation"}, "f: no fields of the format conversation; it has text"),
        ({"text": "a"}, {"columns": {"prompt": "q"}}, "f: no field 'q'; it has text"),
        ({"prompt": "a"}, {"columns": {"prompt": "prompt"}}, "f: no field 'completion'; it has prompt"),
        ({"instruction": "a", "output": "b"}, {"columns": {"input": "x"}}, "f: no field 'x'; it has instruction"),
        ({"text": "a"}, {"prompt_template": "{text}"}, "f: no field to complete the prompt with; it has text"),
        ({"text": None}, {}, "f:1: field 'text' is null, not text"),
        ({"text": ["a"]}, {}, "f:1: field 'text' is list, not text"),
        ({"question": "q", "answer": 5}, {}, "f:1: field 'answer' is int, not text"),
        ({"question": "q", "answer": 0.5}, {}, "f:1: field 'answer' is float, not text"),
        ({"question": None, "answer": "a"}, {}, "f:1: field 'question' is null, not text"),
        ({"instruction": "a", "input": 5, "output": "b"}, {}, "f:1: field 'input' is int, not text"),
        ({"prompt": "p", "completion": TURNS}, {}, "f:1: field 'completion' is list, not text"),
        ({"prompt": "p", "completion": TURNS, "x": "y"}, {"prompt_template": "{x}"}, "f:1: field 'completion' is list"),
        ({"prompt": "p", "completion": " "}, {}, "f:1: field 'completion' is empty, so there is nothing to learn"),
        ({"question": "q", "answer": ""}, {}, "f:1: field 'answer' is empty, so there is nothing to learn"),
        ({"messages": "hi"}, {}, "f:1: field 'messages' is str, not a list of turns"),
        ({"messages": None}, {}, "f:1: field 'messages' is null, not a list of turns"),
        ({"prompt": "p", "completion": "c"}, {"format": "conversation"}, "f:1: field 'prompt' is str, not a list"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(values: dict[str, Any], choices: dict[str, Any], said: str) -> None:
    """The row, the column, and for a missing one those that exist; exit code 3."""
    with pytest.raises(DataError) as error:
        _read(values, **choices)
    assert error.value.message.startswith(said)
    assert error.value.hint
    assert error.value.exit_code == 3


def test_a_later_row_without_the_column_is_named() -> None:
    """With what it has instead."""
    form = recognise(["prompt", "completion"], Reading(), "f", "field")
    with pytest.raises(DataError, match=r"f:2: no field 'completion'; it has prompt, id"):
        form.document(Row("f:2", {"prompt": "a", "id": 1}))


def test_a_row_that_is_blank_throughout_is_no_document() -> None:
    """An empty line of a table is passed over, an answer that is missing is not."""
    assert _read({"prompt": "", "completion": " "}) is None


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"columns": {"reply": "x"}}, "columns: no part 'reply'"),
        ({"columns": {"prompt": "x", "output": "y"}}, "columns: no format has the parts prompt, output"),
        ({"columns": {"messages": "x"}, "format": "instruction"}, "columns: no format instruction has the parts"),
        ({"columns": {"prompt": "x"}, "format": "text"}, "columns: plain text has no parts"),
        ({"prompt_template": "{text}", "format": "text"}, "prompt_template: the format text has no prompt"),
        ({"prompt_template": "{text}", "format": "conversation"}, "prompt_template: the format conversation has no"),
    ],
)
def test_choices_that_exclude_each_other_are_refused(choices: dict[str, Any], said: str) -> None:
    """What was asked and cannot be done is an error."""
    with pytest.raises(UsageError) as error:
        _read({"text": "a", "prompt": "b", "completion": "c"}, **choices)
    assert error.value.message.startswith(said)
    assert error.value.hint


def test_only_the_columns_that_are_needed_are_chosen() -> None:
    """So that a table's others need not be read; from these the same format is recognised again."""
    names = ["id", "question", "text", "answer", "input", "instruction", "output", "source"]
    for choices, columns in (
        ({}, ("instruction", "input", "output")),
        ({"format": "text"}, ("text",)),
        ({"columns": {"answer": "answer"}}, ("question", "answer")),
        ({"prompt_template": "{source}: {text}"}, ("source", "text", "output")),
    ):
        reading = Reading(**choices)  # type: ignore[arg-type]
        assert recognise(names, reading, "f").columns == columns
        assert recognise(columns, reading, "f").columns == columns


def test_every_part_can_be_mapped() -> None:
    """A column of any name can hold any part."""
    for part in COLUMN_PARTS:
        others = [name for name in COLUMN_PARTS if name != part]
        with pytest.raises(DataError, match="f: no column 'x'; it has"):
            recognise(others, Reading(columns={part: "x"}), "f")
        assert "x" in recognise([*others, "x"], Reading(columns={part: "x"}), "f").columns


def test_the_builtin_instructions_have_prompts() -> None:
    """The text is a question and its answer, and the prompt ends before the answer's space."""
    for document in islice(builtin_instructions(), 50):
        assert document.prompt is not None
        assert document.text[: document.prompt].startswith("Question: What does `")
        assert document.text[: document.prompt].endswith("?\nAnswer:")
        assert document.text[document.prompt :].startswith(" ")
        assert document.text[document.prompt :].strip()
