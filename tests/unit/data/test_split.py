"""Which documents are held out."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.data.split import FEW_DOCUMENTS, describe_split, hold_out
from llmt.text.documents import Document


def _documents(texts: list[str]) -> Iterator[Document]:
    return (Document(text, f"file:{number}") for number, text in enumerate(texts, 1))


def _sides(texts: list[str], share: float) -> tuple[list[str], list[str]]:
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
    """One sentence for each of the three ways."""
    assert "nothing is held out" in describe_split(0, 50)
    assert "last 5 % of each text" in describe_split(0.05, FEW_DOCUMENTS - 1)
    assert "5 % of the documents" in describe_split(0.05, FEW_DOCUMENTS)
