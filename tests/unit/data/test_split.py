"""Which documents are held out."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.data.split import FEW_DOCUMENTS, describe_split, hold_out, survey
from llmt.errors import DataError
from llmt.text.documents import Document


def _documents(texts: list[str]) -> Iterator[Document]:
    return (Document(text, f"file:{number}") for number, text in enumerate(texts, 1))


def _sides(texts: list[str], share: float | None) -> tuple[list[str], list[str]]:
    parts = list(hold_out(_documents(texts), share))
    return [part.text for part, held in parts if not held], [part.text for part, held in parts if held]


many_texts = st.lists(st.text(min_size=1, max_size=5), min_size=FEW_DOCUMENTS, max_size=60)


@given(many_texts, st.floats(0.001, 0.9), st.randoms(use_true_random=False))
def test_the_text_alone_decides(texts: list[str], share: float, rng: random.Random) -> None:
    """Every document comes out once, equal texts on one side, at least one held out, in whatever order."""
    train, held = _sides(texts, share)
    assert sorted(train + held) == sorted(texts)
    assert held
    assert not set(train) & set(held)
    rng.shuffle(texts)
    assert set(_sides(texts, share)[1]) == set(held)


def test_the_share_is_met() -> None:
    """Of 20,000 documents the share is held out within a fifth of it."""
    texts = [f"text {number}" for number in range(20_000)]
    for share in (0.01, 0.05, 0.3, 0.9):
        assert len(_sides(texts, share)[1]) == pytest.approx(share * len(texts), rel=0.2)


def test_a_larger_share_holds_out_what_a_smaller_one_did() -> None:
    """Raising the share moves documents in one direction only."""
    texts = [f"text {number}" for number in range(1000)]
    held = [set(_sides(texts, share)[1]) for share in (0.02, 0.05, 0.1, 0.5)]
    assert held[0] < held[1] < held[2] < held[3]


def test_a_share_of_zero_holds_out_nothing() -> None:
    """Neither for few documents nor for many."""
    for count in (1, 100):
        texts = [f"text {number}" for number in range(count)]
        assert _sides(texts, 0) == (texts, [])


def test_the_end_of_few_texts_is_held_out_at_a_line() -> None:
    """One file of 100 lines and a share of 5 %: the last five lines."""
    lines = [f"line {number:03d}\n" for number in range(100)]
    assert _sides(["".join(lines)], 0.05) == (["".join(lines[:95])], ["".join(lines[95:])])


def test_text_without_a_line_nearby_is_cut_between_characters() -> None:
    """A title above one endless line does not leave the title alone for training."""
    text = "Title\n" + "語" * 994
    train, held = _sides([text], 0.1)
    assert [*map(len, train), *map(len, held)] == [900, 100]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=FEW_DOCUMENTS - 1), st.floats(0.001, 0.99))
def test_the_parts_of_few_texts_make_them_again(texts: list[str], share: float) -> None:
    """No character is lost or doubled, and a held-out part has something before it and in it."""
    pieces: dict[str, list[tuple[str, bool]]] = {}
    for part, held in hold_out(_documents(texts), share):
        pieces.setdefault(part.source, []).append((part.text, held))
    assert ["".join(text for text, _ in parts) for parts in pieces.values()] == texts
    for parts in pieces.values():
        assert [held for _, held in parts] in ([False], [False, True])
        assert all(text for text, _ in parts)


def test_no_more_than_the_first_documents_are_read_ahead() -> None:
    """The first document comes out when 20 were read."""
    taken = 0

    def count() -> Iterator[Document]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield Document(f"text {number}", "")

    next(iter(hold_out(count(), 0.05)))
    assert taken <= FEW_DOCUMENTS + 1


def test_the_split_is_described_as_it_is_done() -> None:
    """One sentence for each way."""
    assert "nothing is held out" in describe_split(0, few=False)
    assert "last 5 % of each text" in describe_split(0.05, few=True)
    assert "5 % of the documents" in describe_split(0.05, few=False)
    assert "last 10 % of each text" in describe_split(None, few=True)
    assert "5 % of the documents" in describe_split(None, few=False)


def test_the_default_is_a_twentieth_of_many_and_a_tenth_of_few() -> None:
    """Few documents are a text each, of which 5 % would be little."""
    texts = [f"text {number}" for number in range(20_000)]
    assert _sides(texts, None) == _sides(texts, 0.05)
    lines = [f"line {number:03d}\n" for number in range(100)]
    assert _sides(["".join(lines)], None) == (["".join(lines[:90])], ["".join(lines[90:])])


def test_prompts_and_conversations_are_not_cut() -> None:
    """Of few of them the last ones are held out, whole; of one alone nothing is."""
    for count, share, held in ((1, 0.1, 0), (5, 0.1, 1), (19, 0.1, 2), (5, 0.95, 4), (2, 0.5, 1)):
        documents = [Document(f"prompt {number} answer", "", prompt=8) for number in range(count)]
        parts = list(hold_out(iter(documents), share))
        assert [part for part, _ in parts] == documents
        assert [is_held for _, is_held in parts] == [number >= count - held for number in range(count)]


@given(st.lists(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4), min_size=1, max_size=25))
def test_long_texts_come_out_whole(texts: list[list[str]]) -> None:
    """Their parts follow each other, all on one side where there are many documents; a survey changes nothing."""

    def parts() -> Iterator[Document]:
        for number, text in enumerate(texts):
            for place, piece in enumerate(text):
                yield Document(piece, f"{number}", more=place < len(text) - 1)

    found = list(hold_out(parts(), 0.1))
    assert found == list(hold_out(parts(), 0.1, survey(parts())))
    joined: dict[str, str] = {}
    for part, _ in found:
        joined[part.source] = joined.get(part.source, "") + part.text
    assert sorted(joined.items()) == sorted((str(number), "".join(text)) for number, text in enumerate(texts))
    sides = {part.source: set() for part, _ in found}  # type: dict[str, set[bool]]
    for part, held in found:
        sides[part.source].add(held)
    if len(texts) >= FEW_DOCUMENTS:
        assert all(len(side) == 1 for side in sides.values())
    open_parts = {(part.source, held) for part, held in found if part.more}
    for source, held in open_parts:  # each side of a text ends
        last = [part for part, is_held in found if (part.source, is_held) == (source, held)][-1]
        assert not last.more


def test_a_source_that_grew_is_noticed() -> None:
    """After the survey."""
    with pytest.raises(DataError, match="changed while it was read"):
        list(hold_out(_documents(["a b c", "d e f"]), 0.1, survey(_documents(["a b c"]))))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 3)), min_size=FEW_DOCUMENTS, max_size=40))
def test_something_is_held_out_of_long_texts_too(texts: list[tuple[int, int]]) -> None:
    """Equal ones on one side, whole, also where chance would hold out none."""

    def parts() -> Iterator[Document]:
        for number, (kind, count) in enumerate(texts):
            for place in range(count):
                yield Document(f"text {kind} {count} {place}", f"{number}", more=place < count - 1)

    found = list(hold_out(parts(), 0.001))
    held = {texts[int(part.source)] for part, is_held in found if is_held}
    assert held
    assert not held & {texts[int(part.source)] for part, is_held in found if not is_held}
    assert len(found) == sum(count for _, count in texts)
