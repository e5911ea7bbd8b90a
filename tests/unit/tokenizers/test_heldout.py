"""What is kept back to measure on."""

import random

from llmt.tokenizers.heldout import LEAST_CHARACTERS, MOST_CHARACTERS, HeldOut


def _texts(number: int, lines: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(f"line {draw.random()} of some text\n" for _ in range(lines)) for _ in range(number)]


def test_nothing_is_lost_and_nothing_is_doubled() -> None:
    """What passes and what is kept are together every character, once."""
    for texts in (_texts(1, 40_000), _texts(500, 30), _texts(3, 0), ["x" * 300_000], ["a b " * 90_000]):
        held = HeldOut(iter(texts))
        passed = "".join(held)
        assert sorted(passed + "".join(held.kept)) == sorted("".join(texts))


def test_about_a_fiftieth_is_kept_in_whole_lines() -> None:
    """Of one long text and of many short ones two per cent are kept, and no line is cut."""
    for texts in (_texts(1, 40_000), _texts(500, 200)):
        held = HeldOut(iter(texts))
        list(held)
        share = sum(map(len, held.kept)) / sum(map(len, texts))
        assert 0.015 < share < 0.025
        for kept in held.kept:
            assert kept.startswith("line ")
            assert kept.endswith("\n")


def test_a_small_corpus_is_not_robbed() -> None:
    """Below 50,000 characters all of it passes, and the sample is its beginning, which is said."""
    texts = _texts(4, 200)
    assert sum(map(len, texts)) * 0.02 < LEAST_CHARACTERS
    held = HeldOut(iter(texts))
    assert list(held) == texts
    assert held.sample() == (texts, False)


def test_never_more_than_a_million_characters() -> None:
    """A huge corpus loses no more than is needed to measure."""
    text = "a line of text\n" * 70_000
    held = HeldOut(text for _ in range(80))
    for _ in held:
        pass
    kept = sum(map(len, held.kept))
    assert 0.97 * MOST_CHARACTERS < kept < 1.03 * MOST_CHARACTERS
    assert held.sample()[1]
