"""the turns of a row -> a checked conversation."""

from collections.abc import Mapping, Sequence
from typing import get_args

from llmt.errors import DataError
from llmt.text.documents import Message, Role

ROLES: Mapping[str, Role] = {
    **{role: role for role in get_args(Role)},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
}
"""What data sets call those who speak -> what they are."""

_NAMES = (("role", "content"), ("from", "value"))
_CALLS = ("tool_calls", "function_call")
_BEFORE: Mapping[Role, tuple[Role | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> whose turn may stand before it; None is the beginning."""


def read_messages(turns: Sequence[object], place: str) -> tuple[Message, ...]:
    """The turns of one conversation; each is `{role, content}`, or `{from, value}` as ShareGPT writes it.

    Args:
        turns: What the row holds.
        place: What errors call it.

    Raises:
        DataError: It is empty, has an unknown role, content that is no text, no turn of the assistant, an
            empty one, or turns out of order.
    """
    if not turns:
        raise _bad(f"{place}: the conversation is empty")
    messages = tuple(_message(turn, f"{place}, turn {number}") for number, turn in enumerate(turns, 1))
    _require_order(messages, place)
    return messages


def _message(turn: object, place: str) -> Message:
    if not isinstance(turn, dict):
        raise _bad(f"{place} is {_kind(turn)}, not an object with a role and its content")
    names = next((names for names in _NAMES if turn.get(names[0]) is not None), None)
    if names is None:
        raise _bad(f"{place} has no role; it has {', '.join(map(str, turn)) or 'nothing'}")
    speaker, content = turn[names[0]], turn.get(names[1])
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise _bad(f"{place}: unknown role {speaker!r}", f"known are {', '.join(ROLES)}")
    called = next((name for name in _CALLS if turn.get(name)), None)
    if called is not None:  # a turn without them would be another answer than the one that was given
        raise _bad(f"{place}: {called} cannot be read, only text", "write the calls into the content")
    text = _content(content, f"{place}: {names[1]}")
    if role == "assistant" and not text.strip():
        raise _bad(f"{place}: the assistant says nothing, so there is nothing to learn")
    return Message(role, text)


def _content(content: object, place: str) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _bad(f"{place} is {_kind(content)}, not text")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise _bad(f"{place} holds a part that is {kind if isinstance(kind, str) else _kind(part)}, not text")
        texts.append(text)
    return "".join(texts)


def _require_order(messages: Sequence[Message], place: str) -> None:
    if all(message.role != "assistant" for message in messages):
        raise _bad(f"{place}: no turn of the assistant, so there is nothing to learn")
    before: Role | None = None
    for number, message in enumerate(messages, 1):
        if before not in _BEFORE[message.role]:
            raise _bad(f"{place}, turn {number}: {_disorder(message.role, before)}")
        before = message.role


def _disorder(role: Role, before: Role | None) -> str:
    if role == "system":
        return "a system turn that is not the first"
    if role == before == "user":
        return "two turns of the user in a row"
    missing = " or ".join(name for name in _BEFORE[role] if name)
    return f"out of order, {role} comes {f'after {before}' if before else 'first'} and not after {missing}"


def _bad(message: str, hint: str = "") -> DataError:
    return DataError(message, hint or "correct the row, or take it out")


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
