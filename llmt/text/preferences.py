"""a prompt, the chosen and the rejected of two answers -> a pair of documents."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmt.errors import DataError
from llmt.text.conversations import read_messages
from llmt.text.documents import Document, Message


@dataclass(frozen=True, slots=True)
class Known:
    """What columns say of both conversations of a pair.

    Attributes:
        column: Holds what is asked.
        system: What opens both; empty says nothing of it.
        asked: The last turn of the user that both have; empty says nothing of it.
    """

    column: str = "prompt"
    system: str = ""
    asked: str = ""


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
    prompt: Sequence[object],
    answers: tuple[list[object], list[object]],
    columns: tuple[str, str],
    place: str,
    known: Known = Known(),
) -> Document:
    """Two answers as turns; what is learnt are those of the assistant after the turns that both have.

    Args:
        prompt: The turns before both; may be empty.
        answers: The turns of the chosen and of the rejected answer, or whole conversations.
        columns: What errors call them.
        place: Where they came from.
        known: What other columns say of both.

    Raises:
        DataError: They are no conversations, an answer has no turn of the assistant, both are the same, they answer
            different turns, or they are not what is known of them.
    """
    chosen, rejected = (
        _opened(read_messages([*prompt, *turns], f"{place}: {column!r}"), known.system, f"{place}: {column!r}")
        for column, turns in zip(columns, answers, strict=True)
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
    _require_one_question(chosen, rejected, shared, columns, place)
    last = next((message.content for message in reversed(chosen[:shared]) if message.role == "user"), "")
    if known.asked.strip() not in ("", last.strip()):
        raise DataError(
            f"{place}: {known.column!r} is not the last turn of the user that both have",
            "correct it or take it out, or pass over so many rows with --skip-bad NUMBER",
        )
    return Document(f"{sides[0].text}\n{_said(rejected[shared:])}", place, pair=(sides[0], sides[1]))


def _opened(messages: tuple[Message, ...], system: str, place: str) -> tuple[Message, ...]:
    """The conversation with what the system says before it, unless it begins with that."""
    if not system.strip():
        return messages
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content.strip() != system.strip():
        raise DataError(f"{place}: its system turn is another one than the system column's", _HINT)
    return messages


def _require_one_question(
    chosen: Sequence[Message], rejected: Sequence[Message], shared: int, columns: tuple[str, str], place: str
) -> None:
    """The first turns that differ are the assistant's: otherwise they answer something else each."""
    one, other = chosen[shared], rejected[shared]
    if not one.role == other.role == "assistant":
        raise DataError(
            f"{place}: {columns[0]!r} and {columns[1]!r} differ in turn {shared + 1}, which is {one.role}'s and "
            f"{other.role}'s: they do not answer the same",
            _HINT,
        )


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
