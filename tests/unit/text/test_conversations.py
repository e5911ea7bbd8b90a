"""The turns of a conversation."""

from typing import Any

import pytest

from llmt.errors import DataError
from llmt.text.conversations import ROLES, read_messages

SHORT = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def _turns(letters: str) -> list[dict[str, str]]:
    return [{"role": SHORT[letter], "content": f"{letter}{number}"} for number, letter in enumerate(letters)]


@pytest.mark.parametrize("letters", ["ua", "sua", "uaua", "suata", "uatta", "uau", "uatua"])
def test_conversations_in_order_are_kept_as_they_are(letters: str) -> None:
    """Roles and contents, turn by turn."""
    messages = read_messages(_turns(letters), "f:1")
    assert [tuple(message) for message in messages] == [(t["role"], t["content"]) for t in _turns(letters)]


def test_sharegpt_has_other_names_for_the_same() -> None:
    """`from` and `value`; every name that is known stands for one of four roles."""
    for name, role in ROLES.items():
        before = {"system": "", "user": "", "assistant": "u", "tool": "ua"}[role]
        after = {"system": "ua", "user": "a", "assistant": "", "tool": ""}[role]
        turns = [*_turns(before), {"from": name, "value": "said"}, *_turns(after)]
        assert read_messages(turns, "f:1")[len(before)] == (role, "said")
    assert set(ROLES.values()) == set(SHORT.values())


def test_fields_of_both_kinds_may_be_null() -> None:
    """A table gives every turn all fields."""
    turns = [{**turn, "from": None, "value": None, "tool_calls": None} for turn in _turns("ua")]
    assert read_messages(turns, "f:1") == read_messages(_turns("ua"), "f:1")


def test_parts_of_text_are_joined() -> None:
    """A content that is a list of parts, all of them text."""
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = read_messages([{"role": "user", "content": parts}, *_turns("a")], "f:1")
    assert messages[0].content == "one two"


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([], ": the conversation is empty"),
        (_turns("u"), ": no turn of the assistant, so there is nothing to learn"),
        (_turns("su"), ": no turn of the assistant"),
        (_turns("usa"), ", turn 2: a system turn that is not the first"),
        (_turns("ssua"), ", turn 2: a system turn that is not the first"),
        (_turns("uua"), ", turn 2: two turns of the user in a row"),
        (_turns("a"), ", turn 1: out of order, assistant comes first and not after user or tool"),
        (_turns("sa"), ", turn 2: out of order, assistant comes after system"),
        (_turns("uaa"), ", turn 3: out of order, assistant comes after assistant"),
        (_turns("uta"), ", turn 2: out of order, tool comes after user and not after assistant or tool"),
        ([*_turns("u"), {"role": "narrator", "content": "x"}], ", turn 2: unknown role 'narrator'"),
        ([{"role": 5, "content": "x"}], ", turn 1: unknown role 5"),
        ([{"role": ["user"], "content": "x"}], ", turn 1: unknown role ['user']"),
        ([{"speaker": "user", "content": "x"}], ", turn 1 has no role; it has speaker, content"),
        (["hello"], ", turn 1 is str, not an object"),
        ([None], ", turn 1 is null, not an object"),
        ([{"role": "user"}], ", turn 1: content is null, not text"),
        ([{"role": "user", "content": 5}], ", turn 1: content is int, not text"),
        ([{"from": "human", "value": {}}], ", turn 1: value is dict, not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], ", turn 1: content holds a part that is image, not text"),
        ([{"role": "user", "content": ["text"]}], ", turn 1: content holds a part that is str, not text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], ", turn 1: content holds a part"),
        ([*_turns("u"), {"role": "assistant", "content": " \n"}], ", turn 2: the assistant says nothing"),
        ([*_turns("u"), {"role": "assistant", "content": "x", "tool_calls": [1]}], ", turn 2: tool_calls cannot"),
    ],
)
def test_what_is_wrong_is_named_with_its_turn(turns: list[Any], said: str) -> None:
    """The row, the turn and the reason; exit code 3."""
    with pytest.raises(DataError) as error:
        read_messages(turns, "f:7: field 'messages'")
    assert error.value.message.startswith("f:7: field 'messages'" + said)
    assert error.value.hint
    assert error.value.exit_code == 3
