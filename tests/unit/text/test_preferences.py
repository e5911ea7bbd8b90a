"""Rows with a chosen and a rejected answer to pairs of documents."""

from typing import Any

import pytest

from llmt.errors import DataError, UsageError
from llmt.text.documents import Document, Message
from llmt.text.formats import recognise
from llmt.text.reading import Reading
from llmt.text.rows import Row

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
