"""Rows with a chosen and a rejected answer to pairs of documents."""

from pathlib import Path
from typing import Any

import pytest

from llmt.errors import DataError, UsageError
from llmt.text.documents import Document, Message
from llmt.text.formats import recognise
from llmt.text.reading import Reading
from llmt.text.rows import Row
from llmt.text.sources import open_documents

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be brief"}


def _says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _read(values: dict[str, Any], first: dict[str, Any] | None = None, **choices: Any) -> Document:
    form = recognise(list(first or values), Reading(**choices), "f", "field")
    document = form.document(Row("f:1", values))
    assert document is not None
    assert form.format == "preference"
    return document


def _split(values: dict[str, Any], **choices: Any) -> tuple[str, str, str]:
    """The prompt and both answers."""
    document = _read(values, **choices)
    chosen, rejected = document.pair
    assert chosen.prompt is not None
    assert chosen.prompt == rejected.prompt
    assert {chosen.source, rejected.source, document.source} == {"f:1"}
    prompt = chosen.text[: chosen.prompt]
    assert rejected.text.startswith(prompt)
    assert document.text == f"{chosen.text}\n{rejected.text[rejected.prompt :]}"
    return prompt, chosen.text[chosen.prompt :], rejected.text[rejected.prompt :]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "a ", "chosen": "b", "rejected": "c"}, ("a ", "b", "c")),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, ("", "b", "c")),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "messages": [USER], "text": "d"}, ("a", "b", "c")),
        # Without a prompt it is what both begin with, and no word is cut.
        (
            {"chosen": "Human: why?\n\nAssistant: I am", "rejected": "Human: why?\n\nAssistant: I'm"},
            ("Human: why?\n\nAssistant:", " I am", " I'm"),
        ),
        ({"chosen": "Q: a\n\nyes", "rejected": "Q: a\n\nno"}, ("Q: a", "\n\nyes", "\n\nno")),
        ({"chosen": "the cat", "rejected": "the cat sat"}, ("the", " cat", " cat sat")),
        ({"chosen": "yes", "rejected": "no"}, ("", "yes", "no")),
        ({"chosen": " yes", "rejected": " no"}, ("", " yes", " no")),
    ],
)
def test_pairs_of_texts(values: dict[str, Any], expected: tuple[str, str, str]) -> None:
    """A prompt and two answers, under their usual names and before every other format."""
    assert _split(values) == expected


ASKED = "Question: why?\nAnswer:"
DO = "### Instruction:\nadd\n\n### Response:\n"
DO_WITH = "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n"


@pytest.mark.parametrize(
    ("asked", "prompt", "answers", "layout"),
    [
        ({"question": "why?"}, ASKED, (" b", " c"), "question"),
        ({"system": "Be brief.", "question": "why?"}, f"Be brief.\n\n{ASKED}", (" b", " c"), "question"),
        ({"system": "", "question": "why?"}, ASKED, (" b", " c"), "question"),
        ({"system": None, "question": "why?"}, ASKED, (" b", " c"), "question"),
        ({"instruction": "add"}, DO, ("b", "c"), "instruction"),
        ({"instruction": "add", "input": "1 2"}, DO_WITH, ("b", "c"), "instruction"),
        ({"system": "Be brief.", "instruction": "add", "input": ""}, f"Be brief.\n\n{DO}", ("b", "c"), "instruction"),
        ({"query": "why? "}, "why? ", ("b", "c"), None),
        ({"system": "Be brief.", "prompt": "why? "}, "Be brief.\n\nwhy? ", ("b", "c"), None),
        ({"prompt": "why? ", "question": "else"}, "why? ", ("b", "c"), None),
    ],
)  # fmt: skip
def test_what_is_asked_in_other_columns(
    asked: dict[str, Any], prompt: str, answers: tuple[str, str], layout: str | None
) -> None:
    """It is written as for rows with one answer, after what the system says, in front of both answers."""
    values = {**asked, "chosen": "b", "rejected": "c"}
    assert _split(values) == (prompt, *answers)
    assert _read(values).layout == layout
    supervised = {"question": "answer", "instruction": "output"}
    single = {name: value for name, value in asked.items() if name != "system"}
    if layout is not None:
        row = {**single, supervised[layout]: "b"}
        alone = recognise(list(row), Reading(), "f").document(Row("f:1", row))
        assert alone is not None
        chosen = _read({**single, "chosen": "b", "rejected": "c"}).pair[0]
        assert (chosen.text, chosen.prompt, layout) == (alone.text, alone.prompt, alone.layout)


def test_what_is_asked_may_be_mapped() -> None:
    """As question, instruction, prompt or system; what was said of the answers stays."""
    row = {"q": "why?", "s": "Be brief.", "good": "b", "bad": "c"}
    answers = {"chosen": "good", "rejected": "bad"}
    assert _split(row, columns={"question": "q", **answers}) == (ASKED, " b", " c")
    assert _split(row, columns={"system": "s", "prompt": "q", **answers}) == ("Be brief.\n\nwhy?", "b", "c")
    assert _split(row, columns={"instruction": "q", "input": "s", **answers})[0].startswith("### Instruction:\nwhy?")
    found = recognise(["question", "answer"], Reading(columns={"question": "question"}), "f")
    assert found.format == "instruction"


@pytest.mark.parametrize(
    ("values", "first", "named"),
    [
        ({"text": "why?", "chosen": "yes", "rejected": "no"}, None, "text"),
        ({"question": "why?", "chosen": "yes", "rejected": "no"}, {"chosen": "a", "rejected": "b"}, "question"),
        ({"query": "why?", "chosen": "the a", "rejected": "the b"}, {"chosen": "a", "rejected": "b"}, "query"),
        ({"system": "Be brief.", "chosen": "the a", "rejected": "the b"}, None, "'system' belongs before a prompt"),
    ],
)
def test_what_is_asked_is_never_dropped(values: dict[str, Any], first: dict[str, Any] | None, named: str) -> None:
    """Where answers do not hold it, a column with text that nobody reads is an error that says how to name it."""
    with pytest.raises(DataError, match=f"f:1: .*{named}") as caught:
        _read(values, first)
    assert "--columns prompt=COLUMN" in caught.value.hint


def test_tables_are_looked_at_whole_where_no_prompt_is_read(tmp_path: Path) -> None:
    """So that a column of theirs is missed as one of rows is; otherwise only what is needed is read."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"asked": ["why?"], "chosen": ["yes"], "rejected": ["no"]}), path)
    with pytest.raises(DataError, match="there is asked"):
        list(open_documents([str(path)], Reading()))
    (document,) = open_documents([str(path)], Reading(columns={"prompt": "asked"}))
    assert document.pair[0].text == "why?yes"
    names = ["id", "prompt", "chosen", "rejected"]
    assert recognise(names, Reading(), "f").needed == ("prompt", "chosen", "rejected")


def test_mapped_columns_and_templates() -> None:
    """Parts have other columns by `columns`, and prompts another layout by `prompt_template`."""
    row = {"question": "a", "good": "b", "bad": "c"}
    mapped = {"chosen": "good", "rejected": "bad"}
    assert _split(row, columns={"prompt": "question", **mapped}) == ("a", "b", "c")
    assert _split(row, columns=mapped, prompt_template="Q {question}: ") == ("Q a: ", "b", "c")
    usual = {"question": "a", "chosen": "b", "rejected": "c"}
    assert _split(usual, prompt_template="Q {question}: ") == ("Q a: ", "b", "c")
    assert _split(usual, columns={"prompt": "question"}) == ("a", "b", "c")


def test_one_answer_alone_can_be_asked_for() -> None:
    """`completion=chosen` makes prompts with completions of pairs, `messages=chosen` conversations, a column text."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for reading, expected in (
        (Reading(columns={"completion": "chosen"}), Document("ab", "f:1", prompt=1)),
        (Reading(text_column="chosen"), Document("b", "f:1")),
    ):
        assert recognise(list(row), reading, "f").document(Row("f:1", row)) == expected
    talk = {"chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}
    found = recognise(list(talk), Reading(columns={"messages": "chosen"}), "f").document(Row("f:1", talk))
    assert found == Document("hi\nb", "f:1", messages=(Message("user", "hi"), Message("assistant", "b")))


@pytest.mark.parametrize(
    ("values", "learnt"),
    [
        ({"prompt": "hi", "chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}, (1, 1)),
        ({"chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}, (1, 1)),
        ({"prompt": [SYSTEM, USER], "chosen": [_says("b")], "rejected": [_says("c")]}, (1, 1)),
        ({"prompt": [USER, _says("a"), USER], "chosen": [_says("b")], "rejected": [_says("c")]}, (1, 1)),
        ({"chosen": [USER, _says("a"), USER, _says("b")], "rejected": [USER, _says("a"), USER, _says("c")]}, (1, 1)),
        ({"chosen": [USER, _says("b")], "rejected": [USER, _says("c"), USER, _says("b")]}, (1, 2)),
        ({"chosen": [USER, _says("b")], "rejected": [USER, _says("b"), USER, _says("c")]}, (1, 2)),
    ],
)
def test_pairs_of_conversations(values: dict[str, Any], learnt: tuple[int, int]) -> None:
    """Whole conversations, or turns before both; learnt are the turns of the assistant that differ."""
    document = _read(values)
    before = values.get("prompt") if isinstance(values.get("prompt"), list) else []
    for side, part, count in zip(document.pair, ("chosen", "rejected"), learnt, strict=True):
        turns = [*before, *values[part]]
        assert side.messages == tuple(Message(turn["role"], turn["content"]) for turn in turns)
        assert side.answers == count
        assert (side.prompt, side.source) == (None, "f:1")
    assert all(turn["content"] in document.text for part in ("chosen", "rejected") for turn in values[part])


def test_the_system_column_opens_both_conversations() -> None:
    """Unless they begin with it already."""
    pair = {"chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}
    opened = {part: [SYSTEM, *turns] for part, turns in pair.items()}
    expected = _read(opened)
    assert _read({"system": SYSTEM["content"], **pair}) == expected
    assert _read({"system": SYSTEM["content"], **opened}) == expected
    assert _read({"system": " ", **opened}) == expected
    assert _read({"question": "hi", **opened}) == expected


OTHER = {"role": "user", "content": "ho"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chosen": [USER, _says("b")], "rejected": [OTHER, _says("c")]}, "differ in turn 1, which is user's and"),
        ({"chosen": [SYSTEM, USER, _says("b")], "rejected": [USER, _says("c")]}, "turn 1, which is system's and"),
        ({"chosen": [USER, _says("a"), USER, _says("b")], "rejected": [USER, _says("a"), OTHER, _says("b")]}, "turn 3"),
        ({"prompt": "ho", "chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}, "'prompt' is not the last"),
        ({"query": "ho", "chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}, "'query' is not the last"),
        (
            {"prompt": "hi", "chosen": [USER, _says("a"), OTHER, _says("b")],
             "rejected": [USER, _says("a"), OTHER, _says("c")]},
            "'prompt' is not the last turn",
        ),
        (
            {"system": "be long", "chosen": [SYSTEM, USER, _says("b")], "rejected": [SYSTEM, USER, _says("c")]},
            "'chosen': its system turn is another one",
        ),
    ],
)  # fmt: skip
def test_answers_to_different_turns_are_no_pair(values: dict[str, Any], words: str) -> None:
    """The shared turns are the same up to the assistant's, and those that other columns name; errors name the row."""
    with pytest.raises(DataError, match=f"f:1: .*{words}") as caught:
        _read(values)
    assert "--skip-bad" in caught.value.hint


def test_a_row_with_no_text_at_all_is_empty() -> None:
    """It is passed over and counted, as with other formats."""
    for row in ({"prompt": "", "chosen": " ", "rejected": ""}, {"chosen": "", "rejected": ""}):
        assert recognise(list(row), Reading(), "f").document(Row("f:1", row)) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ("'chosen' and 'rejected' are the same",)),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, ("'chosen' holds no answer",)),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, ("'rejected' holds no answer",)),
        ({"chosen": "a ", "rejected": "a b"}, ("'chosen' holds no answer",)),
        ({"chosen": "a b", "rejected": "a b"}, ("are the same",)),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, ("'prompt' is null, not text",)),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, ("'prompt' is int, not text",)),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, ("'chosen' is int, not text",)),
        ({"prompt": "a", "chosen": "b", "rejected": None}, ("'rejected' is null, not text",)),
        ({"prompt": "a", "chosen": [USER, _says("b")], "rejected": "c"}, ("'chosen' is list, not text",)),
        ({"prompt": 3, "chosen": [USER, _says("b")], "rejected": [USER, _says("c")]}, ("'prompt' is int, not a list",)),
        ({"chosen": [USER, _says("b")], "rejected": [USER, _says("b")]}, ("are the same",)),
        ({"chosen": [USER, _says("b")], "rejected": [USER]}, ("'rejected'", "no turn of the assistant")),
        ({"chosen": [USER, _says("a")], "rejected": [USER, _says("a"), USER]}, ("are the same",)),
        ({"chosen": [_says("b")], "rejected": [_says("c")]}, ("'chosen'", "out of order")),
        ({"chosen": [], "rejected": [USER, _says("c")]}, ("'chosen'", "empty")),
    ],
)
def test_bad_rows_name_row_and_column(values: dict[str, Any], words: tuple[str, ...]) -> None:
    """Equal and empty answers, other types, and conversations that are none."""
    form = recognise(list(values), Reading(), "f", "field")
    with pytest.raises(DataError) as caught:
        form.document(Row("f:1", values))
    assert caught.value.message.startswith("f:1: ")
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint


def test_a_later_row_without_a_column() -> None:
    """It is an error that names the column; a prompt that only later rows have is read."""
    whole = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for missing in whole:
        with pytest.raises(DataError, match=f"f:1: no field '{missing}'"):
            _read({key: value for key, value in whole.items() if key != missing}, first=whole)
    assert _read(whole, first={"chosen": "x", "rejected": "y"}).pair[0].prompt == 1


def test_what_is_asked_for_and_not_there() -> None:
    """A format, a mapped column and a part that the columns do not offer."""
    with pytest.raises(DataError, match="no columns of the format preference"):
        recognise(["prompt", "chosen"], Reading(format="preference"), "f")
    with pytest.raises(DataError, match="no column 'good'"):
        recognise(["prompt", "chosen", "rejected"], Reading(columns={"chosen": "good"}), "f")
    with pytest.raises(DataError, match="no column 'asked'"):
        recognise(["chosen", "rejected"], Reading(columns={"chosen": "chosen", "prompt": "asked"}), "f")
    with pytest.raises(UsageError, match="no format conversation has the parts chosen"):
        recognise(["chosen", "rejected"], Reading(format="conversation", columns={"chosen": "chosen"}), "f")
