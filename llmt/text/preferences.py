"""a prompt, the chosen and the rejected of two answers -> a pair of documents."""

from collections.abc import Sequence

from llmt.errors import DataError
from llmt.text.conversations import read_messages
from llmt.text.documents import Document, Message

_HINT = "take the row out, or pass over so many with --skip-bad NUMBER"


def pair_of_texts(
    prompt: str | None, answers: tuple[str, str], columns: tuple[str, str], place: str
) -> Document | None:
    """Two answers as texts.

    Args:
        prompt: What both answer. None takes what both begin with, up to the last white space in it.
        answers: The chosen and the rejected one; without a prompt, each with what it answers.
        columns: What errors call them.
        place: Where they came from.

    Returns:
        The pair; None where there is no text at all.

    Raises:
        DataError: An answer is empty, or both are the same.
    """
    if not (prompt or "").strip() and not any(answer.strip() for answer in answers):
        return None
    if prompt is None:
        prompt = _shared_text(*answers)
        answers = (answers[0][len(prompt) :], answers[1][len(prompt) :])
    for column, answer in zip(columns, answers, strict=True):
        if not answer.strip():
            raise DataError(f"{place}: {column!r} holds no answer, so there is nothing to compare", _HINT)
    _require_different(answers[0] != answers[1], columns, place)
    chosen, rejected = (Document(prompt + answer, place, prompt=len(prompt)) for answer in answers)
    return Document(f"{chosen.text}\n{answers[1]}", place, pair=(chosen, rejected))


def pair_of_turns(
    prompt: Sequence[object], answers: tuple[list[object], list[object]], columns: tuple[str, str], place: str
) -> Document:
    """Two answers as turns; what is learnt are those of the assistant after the turns that both have.

    Args:
        prompt: The turns before both; may be empty.
        answers: The turns of the chosen and of the rejected answer, or whole conversations.
        columns: What errors call them.
        place: Where they came from.

    Raises:
        DataError: They are no conversations, an answer has no turn of the assistant, or both are the same.
    """
    chosen, rejected = (
        read_messages([*prompt, *turns], f"{place}: {column!r}") for column, turns in zip(columns, answers, strict=True)
    )
    _require_different(_to_the_last_answer(chosen) != _to_the_last_answer(rejected), columns, place)
    equal = (one == other for one, other in zip(chosen, rejected, strict=False))
    shared = min(next((n for n, same in enumerate(equal) if not same), len(chosen)), len(chosen) - 1, len(rejected) - 1)
    sides = []
    for column, messages in zip(columns, (chosen, rejected), strict=True):
        learnt = sum(message.role == "assistant" for message in messages[shared:])
        if not learnt:
            raise DataError(f"{place}: {column!r} has no turn of the assistant after those that both have", _HINT)
        sides.append(Document(_said(messages), place, messages=messages, answers=learnt))
    return Document(f"{sides[0].text}\n{_said(rejected[shared:])}", place, pair=(sides[0], sides[1]))


def _shared_text(one: str, other: str) -> str:
    """What both begin with, up to the last white space in it, so that no word is cut."""
    both = enumerate(zip(one, other, strict=False))
    begin = one[: next((n for n, (a, b) in both if a != b), min(len(one), len(other)))]
    return begin[: max((n for n, character in enumerate(begin) if character.isspace()), default=0)].rstrip()


def _require_different(different: bool, columns: tuple[str, str], place: str) -> None:
    if not different:
        raise DataError(f"{place}: {columns[0]!r} and {columns[1]!r} are the same, so none is preferred", _HINT)


def _to_the_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    last = max(number for number, message in enumerate(messages) if message.role == "assistant")
    return messages[: last + 1]


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)
